"""Statements of validators, the certificates they add up to, and the book of one height that collects them (S0-B2).

A statement is signed over a domain-separated tuple with the chain, the validator set, height and view (SPEC 4.1). A
certificate is q statements of distinct validators that say the same. What to say when is decided in `consensus`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Self

from ledger.encoding import (
    DIGEST_SIZE_BYTES,
    MalformedEncoding,
    as_array,
    as_bytes,
    as_integer,
    as_text,
    digest,
    pack,
    unpack_array,
)
from ledger.signatures import VOTE_SIGNATURE_SIZES_BYTES, Verifier, verify_vote
from ledger.validators import Validators

NO_DIGEST = bytes(DIGEST_SIZE_BYTES)
FRESH = -1
"""The justification view of a block that was never notarized."""


class Kind(IntEnum):
    """What a statement says. Certificates carry the kind of their statements."""

    PROPOSE = 0
    VOTE = 1  # a quorum is a notarization N(v, d)
    FINALIZE = 2  # a quorum is a commit certificate C(v, d)
    NULLIFY = 3  # a quorum is a nullification X(v)


CERTIFICATES_MAX = 64
"""In one message; a longer row of views comes with the next."""
CERTIFIED = (Kind.VOTE, Kind.FINALIZE, Kind.NULLIFY)


def statement_bytes(
    genesis_digest: bytes, validators_digest: bytes, kind: Kind, height: int, view: int, block: bytes, justified: int
) -> bytes:
    """Return what a validator signs; `justified` is −1 for a fresh block."""
    members = (genesis_digest, validators_digest, int(kind), height, view, block, justified + 1)
    return digest("qnode/statement/1", *members)


@dataclass(frozen=True)
class Statement:
    """One signed statement: PROPOSE(v, d, pv), VOTE(v, d, pv), FINALIZE(v, d) or NULLIFY(v)."""

    kind: Kind
    height: int
    view: int
    block: bytes
    justified: int
    signer: str
    signature: bytes

    @property
    def says(self) -> tuple[bytes, int]:
        """What statements must share to count together."""
        return self.block, self.justified

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack(self.members())

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return (
            *(int(self.kind), self.height, self.view, self.block, self.justified + 1),
            *(self.signer, self.signature),
        )

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        kind, height, view, block, justified, signer, signature = as_array(value, 7)
        statement = cls(
            kind=Kind(as_integer(kind, 0, 3)),
            height=as_integer(height, 1),
            view=as_integer(view),
            block=as_bytes(block, DIGEST_SIZE_BYTES),
            justified=as_integer(justified) - 1,
            signer=as_text(signer),
            signature=_as_signature(signature),
        )
        if not _is_well_formed(statement.kind, statement.view, statement.block, statement.justified):
            raise MalformedEncoding("a statement with members that its kind does not have")
        return statement

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises MalformedEncoding."""
        return cls.from_members(unpack_array(data, 7))

    def is_signed(self, public_key: bytes, genesis_digest: bytes, validators_digest: bytes, verifier: Verifier) -> bool:
        """Say whether the owner of `public_key` signed this for this chain and validator set."""
        says = (self.kind, self.height, self.view, self.block, self.justified)
        message = statement_bytes(genesis_digest, validators_digest, *says)
        return verify_vote(verifier, public_key, message, self.signature)


def _is_well_formed(kind: Kind, view: int, block: bytes, justified: int) -> bool:
    if kind in (Kind.PROPOSE, Kind.VOTE):
        return FRESH <= justified < view or justified == FRESH
    return justified == FRESH and (kind is not Kind.NULLIFY or block == NO_DIGEST)


def contradict(one: Statement, other: Statement) -> bool:
    """Say whether no correct validator signs both: they are evidence against their common signer."""
    if (one.signer, one.height, one.view) != (other.signer, other.height, other.view):
        return False
    if one.kind == other.kind:
        return one.says != other.says
    return {one.kind, other.kind} == {Kind.FINALIZE, Kind.NULLIFY}


def _as_signature(value: Any) -> bytes:
    signature = as_bytes(value)
    if len(signature) not in VOTE_SIGNATURE_SIZES_BYTES:
        raise MalformedEncoding("a vote's signature has the size of an Ed25519 or of a hybrid one")
    return signature


@dataclass(frozen=True)
class Evidence:
    """Two contradicting statements of one signer, and the validator set that both are signed for.

    The set's digest is not believed: no correct validator signs contradicting statements for any set, real or not.
    """

    one: Statement
    other: Statement
    validators_digest: bytes

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack((self.one.members(), self.other.members(), self.validators_digest))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises MalformedEncoding."""
        one, other, validators_digest = unpack_array(data, 3)
        statements = Statement.from_members(one), Statement.from_members(other)
        return cls(*statements, as_bytes(validators_digest, DIGEST_SIZE_BYTES))

    def is_signed(self, public_key: bytes, genesis_digest: bytes, verifier: Verifier) -> bool:
        """Say whether the owner of `public_key` signed both for this chain."""
        name = (public_key, genesis_digest, self.validators_digest, verifier)
        return self.one.is_signed(*name) and self.other.is_signed(*name)


@dataclass(frozen=True)
class Certificate:
    """q statements of distinct validators: which (a bit per index of the set, lowest first) and their signatures."""

    kind: Kind
    height: int
    view: int
    block: bytes
    justified: int
    signers: bytes
    signatures: tuple[bytes, ...]

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack(self.members())

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return (
            *(int(self.kind), self.height, self.view, self.block, self.justified + 1),
            *(self.signers, self.signatures),
        )

    def indices(self) -> list[int]:
        """Return the indices of the signers, ascending."""
        return bits_of(self.signers)

    def statements(self, validators: Validators) -> Iterator[Statement]:
        """Yield the statements of a valid certificate of these validators."""
        for index, signature in zip(self.indices(), self.signatures, strict=True):
            says = (self.kind, self.height, self.view, self.block, self.justified)
            yield Statement(*says, validators.node_ids[index], signature)

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        kind, height, view, block, justified, signers, signatures = as_array(value, 7)
        certificate = cls(
            kind=Kind(as_integer(kind, 1, 3)),
            height=as_integer(height, 1),
            view=as_integer(view),
            block=as_bytes(block, DIGEST_SIZE_BYTES),
            justified=as_integer(justified) - 1,
            signers=as_bytes(signers),
            signatures=tuple(_as_signature(each) for each in as_array(signatures)),
        )
        if not _is_well_formed(certificate.kind, certificate.view, certificate.block, certificate.justified):
            raise MalformedEncoding("a certificate with members that its kind does not have")
        return certificate

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises MalformedEncoding."""
        return cls.from_members(unpack_array(data, 7))

    def is_valid(self, validators: Validators, genesis_digest: bytes, verifier: Verifier) -> bool:
        """Say whether q distinct members of the set signed it for this chain. About 60 µs a signature."""
        count = len(validators.node_ids)
        if len(self.signers) != (count + 7) // 8:
            return False
        indices = self.indices()
        if indices and indices[-1] >= count:
            return False
        if len(indices) < validators.quorum or len(indices) != len(self.signatures):
            return False
        says = (self.kind, self.height, self.view, self.block, self.justified)
        message = statement_bytes(genesis_digest, validators.digest, *says)
        pairs = zip(indices, self.signatures, strict=True)
        return all(verify_vote(verifier, validators.public_keys[index], message, each) for index, each in pairs)


def bits_of(bitmap: bytes) -> list[int]:
    """Return the positions of the set bits, ascending."""
    number = int.from_bytes(bitmap, "little")
    return [i for i in range(number.bit_length()) if number >> i & 1]


def bitmap_of(positions: Iterator[int] | list[int], size_bytes: int | None = None) -> bytes:
    """Return a bitmap with the bits at `positions` set, of `size_bytes` or as short as possible."""
    number = 0
    for position in positions:
        number |= 1 << position
    return number.to_bytes((number.bit_length() + 7) // 8 if size_bytes is None else size_bytes, "little")


CERTIFICATES_SIZE_BYTES_MAX = 1_048_576
"""Certificates that travel together: 64 of the largest Ed25519 ones fit many times, of 31 hybrid votes some fifteen."""


def as_many_as_travel(certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """Return the first certificates that fit one message beside whatever else is in it, at least one."""
    chosen: list[Certificate] = []
    size_bytes = 0
    for certificate in certificates[:CERTIFICATES_MAX]:
        size_bytes += sum(len(signature) for signature in certificate.signatures) + 256
        if chosen and size_bytes > CERTIFICATES_SIZE_BYTES_MAX:
            break
        chosen.append(certificate)
    return tuple(chosen)


class Book:
    """The verified statements of one height, at most one per signer, kind and view, and what contradicts them.

    Bounded: the caller admits only views in a window around its own, and `forget_before` drops older ones.
    """

    def __init__(self, validators: Validators) -> None:
        self._validators = validators
        self._index = {node_id: i for i, node_id in enumerate(validators.node_ids)}
        self._held: dict[tuple[Kind, int], dict[int, Statement]] = {}

    def get(self, kind: Kind, view: int, signer: str) -> Statement | None:
        """Return the statement held, or None."""
        index = self._index.get(signer)
        return None if index is None else self._held.get((kind, view), {}).get(index)

    def contradiction(self, statement: Statement) -> Statement | None:
        """Return a held statement that contradicts this one, or None."""
        for kind in Kind:
            held = self.get(kind, statement.view, statement.signer)
            if held is not None and contradict(held, statement):
                return held
        return None

    def add(self, statement: Statement) -> None:
        """Keep a verified statement of a member, unless one of this signer, kind and view is held."""
        index = self._index[statement.signer]
        self._held.setdefault((statement.kind, statement.view), {}).setdefault(index, statement)

    def certificate(self, kind: Kind, view: int) -> Certificate | None:
        """Return the certificate that the statements add up to, with exactly q signatures, or None."""
        held = self._held.get((kind, view))
        if held is None or len(held) < self._validators.quorum:
            return None
        camps: dict[tuple[bytes, int], list[int]] = {}
        for index in sorted(held):
            camps.setdefault(held[index].says, []).append(index)
        for (block, justified), indices in camps.items():
            if len(indices) >= self._validators.quorum:
                chosen = indices[: self._validators.quorum]
                signers = bitmap_of(chosen, (len(self._validators.node_ids) + 7) // 8)
                signatures = tuple(held[i].signature for i in chosen)
                return Certificate(kind, held[chosen[0]].height, view, block, justified, signers, signatures)
        return None

    def speakers(self, view: int) -> int:
        """Return how many validators said anything in `view`."""
        heard = [set(self._held.get((kind, view), ())) for kind in Kind]
        return len(set().union(*heard))

    def signers(self, kind: Kind, view: int) -> bytes:
        """Return the bitmap of those whose statement is held."""
        return bitmap_of(list(self._held.get((kind, view), ())))

    def missing(self, kind: Kind, view: int, signers: bytes) -> list[Statement]:
        """Return the held statements of signers outside the bitmap, in index order."""
        known = int.from_bytes(signers, "little")
        held = self._held.get((kind, view), {})
        return [held[index] for index in sorted(held) if not known >> index & 1]

    def views(self) -> set[int]:
        """Return the views that statements are held for."""
        return {view for _, view in self._held}

    def forget_before(self, view: int) -> None:
        """Drop the statements of earlier views."""
        for key in [key for key in self._held if key[1] < view]:
            del self._held[key]
