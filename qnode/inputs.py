"""What can happen to a node: the inputs of `qnode.node.Node.step`, in the past tense, and the requests of its doors.

Plain frozen records; whoever makes one owns its values. Requests carry a `request_id` chosen by the driver, which
comes back in the effect `Respond`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A mutually authenticated connection with a node of this chain is up (exactly one per peer)."""

    peer: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The connection is gone; frames that were queued for it may or may not have arrived."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """One whole frame from an authenticated peer, length already checked by the transport."""

    peer: str
    frame: bytes
    arrived_ns: int = 0
    """When the shell had all of it, by its clock: for figures, nothing is decided by it."""


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job of the effect `RunJob` returned; `error` is set instead of `result` when it raised."""

    job_id: int
    result: Any
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Ticked:
    """The deadline of `next_deadline_ns` has passed, or time may have."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A caller at one of the doors asks for something."""

    request_id: int
    request: "Request"
    arrived_ns: int = 0
    """When the driver was asked; see `FrameReceived`."""


# ---- requests of applications (ETSI GS QKD 014); `caller_sae` is from the client's certificate, never from the body


@dataclass(frozen=True, slots=True)
class GetStatus:
    """014 status: what can the caller (master) get for this slave?"""

    caller_sae: str
    slave_sae: str


@dataclass(frozen=True, slots=True)
class GetKeys:
    """014 enc_keys: `number` fresh keys of `size_bits` (None = the default size) shared with `slave_sae`."""

    caller_sae: str
    slave_sae: str
    number: int = 1
    size_bits: int | None = None
    additional_slave_saes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GetKeysWithIds:
    """014 dec_keys: the keys that `master_sae` obtained for the caller; all or none of them."""

    caller_sae: str
    master_sae: str
    key_ids: tuple[str, ...]


# ---- requests of operators


@dataclass(frozen=True, slots=True)
class GetNodeStatus:
    """What the node is and how it is: peers, links, pools, height, state root."""


@dataclass(frozen=True, slots=True)
class SetAttack:
    """Put an eavesdropper on a link whose transmitter is here, or take it off (`kind` None)."""

    link_id: str
    kind: str | None
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GetBlocks:
    """Committed blocks from `first_height`, at most `count`."""

    first_height: int
    count: int


@dataclass(frozen=True, slots=True)
class GetProof:
    """The proof that anybody can check offline of a delivered key (its ID as a UUID).

    Answered by the next block where the key's record is not there yet, or not certified yet.
    """

    key_id: str


@dataclass(frozen=True, slots=True)
class GetGovernance:
    """What the validators decide and decided: electorate, proposals, revocations, policies."""


@dataclass(frozen=True, slots=True)
class SubmitTransactions:
    """Records of an operator or a bench, already encoded by `ledger.transactions`.

    Answered when they are safe from a crash of this node or, `until_committed`, when this node has executed the block
    with the last of them; the answer then says its height and whether that one was accepted.
    """

    transactions: tuple[bytes, ...]
    until_committed: bool = False


@dataclass(frozen=True, slots=True)
class GetIdentity:
    """The keys by which the chain knows this node, or knew it."""


@dataclass(frozen=True, slots=True)
class RotateKey:
    """Hold the keys of these seeds, and have the chain know this node by `public_key`, which is of one of them.

    Answered like `SubmitTransactions` when the block with the record is executed.
    """

    public_key: bytes
    seeds: tuple[bytes, ...] = field(repr=False)


# ---- devices: what comes from the broker, and what operators ask about them


@dataclass(frozen=True, slots=True)
class DeviceFrame:
    """One frame of a device as the broker delivered it: `channel` is "enrol", "session" or "data"."""

    device_id: str
    channel: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class IssueEnrolment:
    """An operator wants a one-time code for a new device, whose keys never go below this floor."""

    device_id: str
    key_bits_min: int
    security_millibits_min: int


@dataclass(frozen=True, slots=True)
class RevokeDevice:
    """An operator ends the trust in a device, on the chain and for good."""

    device_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class GetDevices:
    """What the node knows of its devices."""


@dataclass(frozen=True, slots=True)
class GetReadings:
    """The last readings of a device that the node keeps."""

    device_id: str
    count: int


@dataclass(frozen=True, slots=True)
class SetDeviceAttack:
    """Put an eavesdropper on the emulated channel to a device, or take it off (`kind` None)."""

    device_id: str
    kind: str | None


Request = (
    GetStatus
    | GetKeys
    | GetKeysWithIds
    | GetNodeStatus
    | SetAttack
    | GetBlocks
    | GetProof
    | GetGovernance
    | SubmitTransactions
    | GetIdentity
    | RotateKey
    | DeviceFrame
    | IssueEnrolment
    | RevokeDevice
    | GetDevices
    | GetReadings
    | SetDeviceAttack
)
Input = PeerConnected | PeerLost | FrameReceived | JobDone | Ticked | Requested


@dataclass(frozen=True, slots=True)
class RequestError:
    """A caller's fault, or something the node cannot do now: the 014 status code and what to do about it."""

    status: int
    message: str
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveredKey:
    """One key on its way to its application. `key` is revealed only by the door that writes the answer."""

    key_id: str
    key: Any  # protocol.keys.KeyMaterial; not imported, so that the doors depend on records alone


@dataclass(frozen=True, slots=True)
class KeysAnswer:
    """The answer to `GetKeys` and `GetKeysWithIds`."""

    keys: tuple[DeliveredKey, ...]


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """The answer to `GetStatus`; sizes in bits, counts in keys of `key_size_bits`."""

    source_kme_id: str
    target_kme_id: str
    master_sae_id: str
    slave_sae_id: str
    key_size_bits: int
    stored_key_count: int
    max_key_count: int
    max_key_per_request: int
    max_key_size_bits: int
    min_key_size_bits: int
    max_sae_id_count: int


@dataclass(frozen=True, slots=True)
class DocumentAnswer:
    """The answer to an operator's request: a JSON-ready document (no bytes, no key material)."""

    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeviceReply:
    """What a frame of a device is answered with: (channel, payload) in order, and the reading that it brought."""

    messages: tuple[tuple[str, bytes], ...]
    reading: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EnrolmentAnswer:
    """The answer to `IssueEnrolment`. The code is shown once, to the operator who carries it to the device."""

    device_id: str
    code: bytes = field(repr=False)
    node_id: str
    chain_id: str
    genesis_digest: bytes
    key_bits_min: int
    security_millibits_min: int


Answer = KeysAnswer | StatusAnswer | DocumentAnswer | DeviceReply | EnrolmentAnswer | RequestError
