"""One change of the validator set, provable: a certified header, and the entry of the state before it (SPEC 7.8).

The header is under a set that its reader knows; its state root commits to the sets of its own height and of the next.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from ledger.block import Header
from ledger.encoding import DIGEST_SIZE_BYTES, MalformedEncoding, as_array, as_bytes, pack, unpack
from ledger.merkle import TrieProof, trie_check
from ledger.signatures import Verifier
from ledger.validators import SETS_KEY, Validators, sets_from_value
from ledger.votes import Certificate, Kind


@dataclass(frozen=True)
class SetChange:
    """The last header under a set, its commit certificate, and the path to the entry `v` under its state root."""

    header: Header
    certificate: Certificate
    trie: TrieProof

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack(self.members())

    def following(self) -> Validators | None:
        """Return the set of the next height that the header's state root commits to, or None if it does not."""
        good, value = trie_check(self.header.state_root, SETS_KEY, self.trie)
        if not good or value is None:
            return None
        try:
            present, following = sets_from_value(value)
        except MalformedEncoding:
            return None
        return following if present.digest == self.header.validators_digest else None

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return self.header.members(), self.certificate.members(), trie_members(self.trie)

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        header, certificate, trie = as_array(value, 3)
        return cls(Header.from_members(header), Certificate.from_members(certificate), trie_from_members(trie))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises MalformedEncoding."""
        return cls.from_members(unpack(data))


def follow(
    validators: Validators, changes: Iterable[SetChange], genesis_digest: bytes, verifier: Verifier
) -> Validators | str:
    """Return the set that a chain of changes leads to from a known one, or why it leads nowhere."""
    height = 0
    for change in changes:
        header, certificate = change.header, change.certificate
        if header.height <= height or header.validators_digest != validators.digest:
            return "a change of the validator set does not follow the one before"
        height = header.height
        if header.genesis_digest != genesis_digest or (certificate.kind, certificate.height, certificate.block) != (
            Kind.FINALIZE,
            header.height,
            header.digest,
        ):
            return "a change of the validator set is not certified"
        if not certificate.is_valid(validators, genesis_digest, verifier):
            return "a change of the validator set is not signed by a quorum"
        following = change.following()
        if following is None:
            return "a change of the validator set is not under the state root of its header"
        validators = following
    return validators


def trie_members(trie: TrieProof) -> tuple[Any, ...]:
    """Return the canonical members of a path in the state trie."""
    return trie.branches, () if trie.leaf is None else trie.leaf


def trie_from_members(value: Any) -> TrieProof:
    """Read what `trie_members` returned. Raises MalformedEncoding."""
    branches, leaf = as_array(value, 2)
    rows = tuple(tuple(as_bytes(child) for child in as_array(row, 16)) for row in as_array(branches))
    end = as_array(leaf)
    if len(end) not in (0, 2):
        raise MalformedEncoding("a leaf is a path and a value, or nothing")
    return TrieProof(rows, (as_bytes(end[0], DIGEST_SIZE_BYTES), as_bytes(end[1])) if end else None)
