"""Blocks: a header that names everything agreed on, and the bundles it orders (row S0-B1).

The header's digest is what validators vote on; it does not contain the view, so that a later leader can re-propose the
same block (SPEC 4.1, 4.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from ledger.bundle import Bundle, MalformedBundle
from ledger.encoding import (
    DIGEST_SIZE_BYTES,
    MalformedEncoding,
    as_array,
    as_bytes,
    as_integer,
    digest,
    pack,
    unpack_array,
)
from ledger.genesis import GenesisParameters
from ledger.merkle import list_root

FIRST_VERSION = 1
VERSIONS = frozenset({FIRST_VERSION})
"""The versions of blocks and rules that this program knows; which one counts, the chain says (SPEC 5.5)."""


class MalformedBlock(ValueError):
    """A block that breaks its format or the chain's limits."""


@dataclass(frozen=True)
class Header:
    """What a block is: `state_root` is the state after `height` − 1, `previous` the digest of that height's header."""

    genesis_digest: bytes
    height: int
    previous: bytes
    state_root: bytes
    validators_digest: bytes
    transaction_root: bytes
    time_ns: int
    version: int = FIRST_VERSION

    @cached_property
    def digest(self) -> bytes:
        """The 32 bytes that are voted on; the genesis digest binds the chain id."""
        return digest("qnode/block/1", self.members())

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return (
            *(self.version, self.genesis_digest, self.height, self.previous, self.state_root),
            *(self.validators_digest, self.transaction_root, self.time_ns),
        )

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        version, genesis_digest, height, previous, state_root, validators, transactions, time_ns = as_array(value, 8)
        return cls(
            version=as_integer(version),
            genesis_digest=as_bytes(genesis_digest, DIGEST_SIZE_BYTES),
            height=as_integer(height, 1),
            previous=as_bytes(previous, DIGEST_SIZE_BYTES),
            state_root=as_bytes(state_root, DIGEST_SIZE_BYTES),
            validators_digest=as_bytes(validators, DIGEST_SIZE_BYTES),
            transaction_root=as_bytes(transactions, DIGEST_SIZE_BYTES),
            time_ns=as_integer(time_ns),
        )


@dataclass(frozen=True)
class Block:
    """A header and the bundles of its transaction root, in order of execution."""

    header: Header
    bundles: tuple[Bundle, ...]

    @property
    def height(self) -> int:
        return self.header.height

    @property
    def digest(self) -> bytes:
        return self.header.digest

    @property
    def transaction_count(self) -> int:
        return sum(len(bundle.transactions) for bundle in self.bundles)

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes: the header and the bundles' own bytes, opaque."""
        return pack((self.header.members(), tuple(bundle.encoded for bundle in self.bundles)))

    @classmethod
    def decode(cls, data: bytes, limits: GenesisParameters) -> Self:
        """Read canonical bytes; checks limits, every bundle's root and the transaction root, no signatures.

        Raises MalformedBlock.
        """
        try:
            members, bodies = unpack_array(data, 2)
            header = Header.from_members(members)
            bundles = tuple(Bundle.decode(as_bytes(body), limits) for body in as_array(bodies))
        except (MalformedEncoding, MalformedBundle) as error:
            raise MalformedBlock(str(error)) from None
        block = cls(header, bundles)
        if reason := limits_fault(bundles, limits):
            raise MalformedBlock(reason)
        if transaction_root([bundle.digest for bundle in bundles]) != header.transaction_root:
            raise MalformedBlock("the transaction root is not that of the bundles")
        block.__dict__["encoded"] = data
        return block


def transaction_root(bundle_digests: Sequence[bytes]) -> bytes:
    """Return the root over the digests of a block's bundles."""
    return list_root(bundle_digests)


def limits_fault(bundles: Sequence[Bundle], limits: GenesisParameters) -> str | None:
    """Return how the bundles of a block exceed the chain's limits, or None."""
    if len(bundles) > limits.block_bundles_max:
        return f"a block has at most {limits.block_bundles_max} bundles"
    if sum(len(bundle.transactions) for bundle in bundles) > limits.block_transactions_max:
        return f"a block has at most {limits.block_transactions_max} transactions"
    if sum(bundle.size_bytes for bundle in bundles) > limits.block_size_bytes_max:
        return f"a block has at most {limits.block_size_bytes_max} bytes"
    by_sender: dict[str, tuple[int, int]] = {}
    for bundle in bundles:
        transactions, size_bytes = by_sender.get(bundle.sender, (0, 0))
        transactions, size_bytes = transactions + len(bundle.transactions), size_bytes + bundle.size_bytes
        if transactions > limits.sender_block_transactions_max or size_bytes > limits.sender_block_size_bytes_max:
            return f"{bundle.sender} has more than a sender's share of a block"
        by_sender[bundle.sender] = (transactions, size_bytes)
    return None
