"""The signing guard: the only way to sign a statement (SPEC rule 10).

It keeps a monotone record (height, view, step) of what it signed last and refuses anything that is not newer, so that a
restart, a restored backup or a fault of `consensus` cannot make this node contradict itself. The record is stored in
the same atomic write as what it allowed, before any of it is sent.
"""

from dataclasses import dataclass

from ledger.encoding import as_integer, pack, unpack_array
from ledger.signatures import Signer
from ledger.validators import Validators
from ledger.votes import Kind, Statement, statement_bytes

STEPS = {Kind.PROPOSE: 0, Kind.VOTE: 1, Kind.FINALIZE: 2, Kind.NULLIFY: 2}
"""FINALIZE and NULLIFY share a step: whichever comes first excludes the other in its view."""


@dataclass(frozen=True, order=True, slots=True)
class Record:
    """The last statement signed; (0, 0, 0) is before every statement."""

    height: int = 0
    view: int = 0
    step: int = 0

    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack((self.height, self.view, self.step))

    @classmethod
    def decode(cls, data: bytes) -> "Record":
        """Read canonical bytes. Raises MalformedEncoding."""
        height, view, step = unpack_array(data, 3)
        return cls(as_integer(height), as_integer(view), as_integer(step, 0, 2))


class Guard:
    """Signs statements of one node, each (height, view, step) at most once and in order."""

    def __init__(self, node_id: str, genesis_digest: bytes, record: Record) -> None:
        self._node_id = node_id
        self._genesis_digest = genesis_digest
        self.record = record

    def allows(self, kind: Kind, height: int, view: int) -> bool:
        """Say whether `sign` would agree."""
        return Record(height, view, STEPS[kind]) > self.record

    def sign(
        self, signer: Signer, validators: Validators, kind: Kind, height: int, view: int, block: bytes, justified: int
    ) -> Statement:
        """Advance the record and return the signed statement; the caller stores `record` before it sends it.

        `signer` holds the key under which `validators`, the set of the height, know this node: whatever the key, the
        record is one, so that a node with two keys contradicts itself with neither.
        """
        assert self.allows(kind, height, view), (kind, height, view, self.record)
        self.record = Record(height, view, STEPS[kind])
        message = statement_bytes(self._genesis_digest, validators.digest, kind, height, view, block, justified)
        return Statement(kind, height, view, block, justified, self._node_id, signer.sign(message))
