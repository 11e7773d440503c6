"""What certifies a snapshot (SPEC 10.1): the block it follows, and the next header, which names its root, committed.

Decides nothing about whom to trust: the validators come from the caller.
"""

from dataclasses import dataclass
from typing import Any, Self

from ledger.block import Header
from ledger.encoding import as_array, pack, unpack
from ledger.signatures import Verifier
from ledger.validators import Validators
from ledger.votes import Certificate, Kind


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """The block after which the state was taken, and the next header, which names that state's root, committed."""

    header: Header
    following: Header
    certificate: Certificate

    @property
    def height(self) -> int:
        """The height after which the state was taken."""
        return self.header.height

    @property
    def state_root(self) -> bytes:
        """The root that every part of the snapshot is checked against."""
        return self.following.state_root

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return self.header.members(), self.following.members(), self.certificate.members()

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        header, following, certificate = as_array(value, 3)
        return cls(Header.from_members(header), Header.from_members(following), Certificate.from_members(certificate))

    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack(self.members())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises MalformedEncoding."""
        return cls.from_members(unpack(data))

    def link_fault(self, genesis_digest: bytes) -> str | None:
        """Return why the three do not belong together, or None; signatures apart."""
        header, following, certificate = self.header, self.following, self.certificate
        if header.genesis_digest != genesis_digest or following.genesis_digest != genesis_digest:
            return "the snapshot is of another chain"
        if following.height != header.height + 1 or following.previous != header.digest:
            return "the snapshot's headers do not follow each other"
        if (certificate.kind, certificate.height, certificate.block) != (
            Kind.FINALIZE,
            following.height,
            following.digest,
        ):
            return "the snapshot's certificate is for another block"
        return None

    def fault(self, genesis_digest: bytes, validators: Validators, verifier: Verifier) -> str | None:
        """Return why a quorum of `validators` did not commit this, or None."""
        if reason := self.link_fault(genesis_digest):
            return reason
        if self.following.validators_digest != validators.digest:
            return "the snapshot is under a validator set that this node does not know"
        if not self.certificate.is_valid(validators, genesis_digest, verifier):
            return "the snapshot's certificate is not signed by a quorum"
        return None
