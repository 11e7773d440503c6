"""What a node wants done: the effects of `qnode.node.Node.step`, in the imperative.

The driver executes the effects of one batch of steps in this order: every `Put` and `Delete` in one atomic, synced
write; then everything else in the order given. `SendTo(after_sync=False)` and `RunJob` need not wait for the sync.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from qnode.inputs import Answer


class TrafficClass(IntEnum):
    """What a frame is for; a peer's send queue is bounded per class, and the lower class is sent first."""

    CONSENSUS = 0  # proposals, votes, certificates
    SESSION = 1  # the classical channel of QKD sessions, key relay
    GOSSIP = 2  # transaction bundles, block bodies, catch-up
    LIGHT = 3  # the emulated quantum channel


@dataclass(frozen=True, slots=True)
class Put:
    """Store `value` under (table, key); survives a crash before any later effect of the batch is executed."""

    table: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Forget (table, key); the space is overwritten by the storage's secure deletion."""

    table: str
    key: bytes


@dataclass(frozen=True, slots=True)
class SendTo:
    """Queue one frame for a peer; dropped, and counted, when the peer is not connected or its queue is full."""

    peer: str
    traffic: TrafficClass
    frame: bytes
    after_sync: bool = True


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection with a peer because of its fault; the transport backs off before it reconnects."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class UsePeerKeys:
    """Let connections show these keys, (public key, node), and no key of `refused`; show `own_key` in one's own."""

    own_key: bytes
    accepted: tuple[tuple[bytes, str], ...]
    refused: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RunJob:
    """Run `work()` off the loop and bring the result back as `JobDone(job_id, …)`."""

    job_id: int
    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer a request."""

    request_id: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Log:
    """One structured log line; `fields` hold no key material."""

    level: str
    event: str
    fields: tuple[tuple[str, Any], ...] = ()


Effect = Put | Delete | SendTo | Disconnect | UsePeerKeys | RunJob | Respond | Log
