"""What can happen to a replica: the inputs of `ledger.replica.Replica.step`, in the past tense."""

from dataclasses import dataclass

from ledger.transactions import Transaction


@dataclass(frozen=True, slots=True)
class Started:
    """The first input after construction: the driver is ready to execute outputs."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """An authenticated connection with the node `peer` of this chain is up."""

    peer: str


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The connection with `peer` is gone; messages queued for it may be lost."""

    peer: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A payload of `SendMessage` from the authenticated `peer`; any bytes are allowed."""

    peer: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class TransactionsSubmitted:
    """This node wants these recorded, under its own name. Answered by one output that carries `token`.

    They may wait so long for others that share their bundle (SPEC 3.5), and with it the block.
    """

    token: int
    transactions: tuple[Transaction, ...]
    patience_ns: int = 0


@dataclass(frozen=True, slots=True)
class EncodedTransactionsSubmitted:
    """The same for transactions that are already encoded; bytes that do not decode are refused at once."""

    token: int
    transactions: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The deadline of `next_deadline_ns` has passed, or time may have."""


Input = (
    Started | PeerUp | PeerDown | MessageReceived | TransactionsSubmitted | EncodedTransactionsSubmitted | TimePassed
)
