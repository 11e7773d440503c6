"""Bundles: a node's transactions under one signature, so that the cost of checking it is shared by all of them.

The signature covers the Merkle root of the transactions, the sender and its sequence number, and the chain; each
transaction is therefore attributable alone, through its path to the root. The bodies stay opaque until they are
executed: receiving a bundle hashes them and checks one signature (SPEC 3.1 to 3.3).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

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
from ledger.genesis import GenesisParameters
from ledger.merkle import leaf_digest, list_root
from ledger.signatures import SIGNATURE_SIZE_BYTES, Signer, Verifier


class MalformedBundle(ValueError):
    """A bundle that breaks its format or the chain's limits."""


@dataclass(frozen=True)
class Bundle:
    """Transactions of `sender`, number `sequence` of its bundles (from 1, without gaps on the chain)."""

    sender: str
    sequence: int
    root: bytes
    signature: bytes
    transactions: tuple[bytes, ...]

    @cached_property
    def digest(self) -> bytes:
        """Names this bundle, signature included; the leaf of a block's transaction root."""
        return digest("qnode/bundle/1", self.sender, self.sequence, len(self.transactions), self.root, self.signature)

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack((self.sender, self.sequence, self.root, self.signature, self.transactions))

    @property
    def size_bytes(self) -> int:
        """The size of the canonical bytes."""
        return len(self.encoded)

    @cached_property
    def transaction_ids(self) -> list[bytes]:
        """The leaf digests of the transactions, in order."""
        return [leaf_digest(each) for each in self.transactions]

    @classmethod
    def decode(cls, data: bytes, limits: GenesisParameters) -> Self:
        """Read canonical bytes and check sizes and the Merkle root, not the signature. Raises MalformedBundle."""
        bundle = cls.parse(data, limits)
        bundle.check_contents(limits)
        return bundle

    @classmethod
    def parse(cls, data: bytes, limits: GenesisParameters) -> Self:
        """Read canonical bytes without looking at the transactions. Raises MalformedBundle."""
        if len(data) > limits.bundle_size_bytes_max:
            raise MalformedBundle(f"a bundle has at most {limits.bundle_size_bytes_max} bytes")
        try:
            sender, sequence, root, signature, transactions = unpack_array(data, 5)
            bundle = cls(
                as_text(sender),
                as_integer(sequence, 1),
                as_bytes(root, DIGEST_SIZE_BYTES),
                as_bytes(signature, SIGNATURE_SIZE_BYTES),
                as_array(transactions),
            )
        except MalformedEncoding as error:
            raise MalformedBundle(str(error)) from None
        bundle.__dict__["encoded"] = data
        return bundle

    def check_contents(self, limits: GenesisParameters) -> None:
        """Check the transactions' number and sizes and the Merkle root, about 1.5 µs each. Raises MalformedBundle."""
        check_transactions(self.transactions, limits)
        if list_root(self.transaction_ids) != self.root:
            raise MalformedBundle("the root is not that of the transactions")

    def is_signed_by(self, public_key: bytes, chain_id: str, genesis_digest: bytes, verifier: Verifier) -> bool:
        """Say whether the owner of `public_key` signed this bundle for this chain. One signature check."""
        message = signing_bytes(chain_id, genesis_digest, self.sender, self.sequence, len(self.transactions), self.root)
        return verifier.verify(public_key, message, self.signature)


def check_transactions(transactions: Iterable[object], limits: GenesisParameters) -> None:
    """Check number and sizes of opaque transactions. Raises MalformedBundle."""
    bodies = tuple(transactions)
    if not 1 <= len(bodies) <= limits.bundle_transactions_max:
        raise MalformedBundle(f"a bundle has 1 to {limits.bundle_transactions_max} transactions")
    for body in bodies:
        if type(body) is not bytes or not 1 <= len(body) <= limits.transaction_size_bytes_max:
            raise MalformedBundle(f"a transaction is 1 to {limits.transaction_size_bytes_max} bytes")


def signing_bytes(
    chain_id: str, genesis_digest: bytes, sender: str, sequence: int, transaction_count: int, root: bytes
) -> bytes:
    """Return what the sender of a bundle signs."""
    return digest("qnode/bundle signature/1", chain_id, genesis_digest, sender, sequence, transaction_count, root)


def make_bundle(
    signer: Signer, chain_id: str, genesis_digest: bytes, sender: str, sequence: int, transactions: tuple[bytes, ...]
) -> Bundle:
    """Sign `transactions` (encoded) as bundle number `sequence` of `sender`."""
    root = list_root([leaf_digest(each) for each in transactions])
    message = signing_bytes(chain_id, genesis_digest, sender, sequence, len(transactions), root)
    return Bundle(sender, sequence, root, signer.sign(message), transactions)
