"""What a replica wants done: the outputs of `ledger.replica.Replica.step`, in the imperative or as news.

The driver makes every `Store` and `Erase` of a batch of steps durable in one atomic, synced write; then it executes the
rest in order. `SendMessage(after_sync=False)` need not wait for the sync; every other output must.
"""

from dataclasses import dataclass
from typing import Any

from ledger.block import Block
from ledger.execution import Receipt
from ledger.votes import Certificate


@dataclass(frozen=True, slots=True)
class Store:
    """Keep `value` under (table, key); byte order of keys is their order."""

    table: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Erase:
    """Forget (table, key)."""

    table: str
    key: bytes


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Queue `payload` for a directly connected peer; `urgent` is consensus, the rest is gossip and catch-up."""

    peer: str
    payload: bytes
    urgent: bool
    after_sync: bool


@dataclass(frozen=True, slots=True)
class BlockCommitted:
    """The block of `height` is final and executed; `receipts` in block order."""

    height: int
    block: Block
    certificate: Certificate
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class SnapshotAdopted:
    """The state is now that after `height`, fetched from peers: the blocks up to it were not executed here."""

    height: int


@dataclass(frozen=True, slots=True)
class TransactionsAdmitted:
    """The submitted transactions survive a crash of this node and will be offered until they are committed."""

    token: int


@dataclass(frozen=True, slots=True)
class TransactionsRefused:
    """None of the submitted transactions was taken; `reason` says why and what to do."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class PeerFaulted:
    """`peer` sent what no correct node sends; the driver scores it and may disconnect."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Something an operator should see: one structured log line."""

    level: str
    event: str
    fields: tuple[tuple[str, Any], ...] = ()


Output = (
    Store
    | Erase
    | SendMessage
    | BlockCommitted
    | SnapshotAdopted
    | TransactionsAdmitted
    | TransactionsRefused
    | PeerFaulted
    | Noted
)
