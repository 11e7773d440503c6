"""Light proofs: that a transaction or a state entry is on the chain, checkable offline with the genesis alone.

A proof ends in a block header and its commit certificate; whether a checker believes them is decided in `light`
(SPEC 7.4, 7.8). Carries SEED_MAP S0-B1 and S0-B4.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from ledger.block import Block, Header
from ledger.bundle import Bundle
from ledger.bundle import signing_bytes as bundle_signing_bytes
from ledger.chain import Chain
from ledger.encoding import (
    DIGEST_SIZE_BYTES,
    as_array,
    as_bytes,
    as_integer,
    as_text,
    pack,
    unpack,
)
from ledger.encoding import digest as encoding_digest
from ledger.genesis import Genesis
from ledger.light import LightClient, ProofError
from ledger.merkle import TrieProof, leaf_digest, list_path, root_from_path, trie_check
from ledger.set_change import trie_from_members, trie_members
from ledger.signatures import SIGNATURE_SIZE_BYTES, Verifier
from ledger.votes import Certificate


@dataclass(frozen=True, slots=True)
class Anchor:
    """A header that a quorum committed."""

    header: Header
    certificate: Certificate

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return self.header.members(), self.certificate.members()

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        header, certificate = as_array(value, 2)
        return cls(Header.from_members(header), Certificate.from_members(certificate))

    def check(self, light: LightClient) -> None:
        """Raise ProofError unless a quorum of a set that the light client knows committed this header."""
        light.check(self.header, self.certificate)


@dataclass(frozen=True, slots=True)
class TransactionProof:
    """A transaction, its path to its bundle, the bundle's envelope, its path to the block, and the block's anchor."""

    transaction: bytes
    index: int
    count: int
    path: tuple[bytes, ...]
    sender: str
    sequence: int
    signature: bytes
    bundle_index: int
    bundle_count: int
    bundle_path: tuple[bytes, ...]
    anchor: Anchor

    def check(self, trust: Genesis | LightClient, verifier: Verifier | None = None) -> None:
        """Raise ProofError unless the transaction is in a committed block of this chain, signed by its sender."""
        light = LightClient.of(trust, verifier)
        genesis = light.genesis
        self.anchor.check(light)
        root = root_from_path(leaf_digest(self.transaction), self.index, self.count, self.path)
        if root is None:
            raise ProofError("the path to the bundle has the wrong shape")
        envelope = (self.sender, self.sequence, self.count, root)
        message = bundle_signing_bytes(genesis.chain_id, genesis.digest, *envelope)
        keys = light.sender_keys(self.sender, self.anchor.header.height)
        if not any(light.verifier.verify(key, message, self.signature) for key in keys):
            raise ProofError("the bundle is not signed by its sender")
        bundle = encoding_digest("qnode/bundle/1", *envelope, self.signature)
        found = root_from_path(bundle, self.bundle_index, self.bundle_count, self.bundle_path)
        if found != self.anchor.header.transaction_root:
            raise ProofError("the bundle is not in the block")

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return (
            *(self.transaction, self.index, self.count, self.path, self.sender, self.sequence, self.signature),
            *(self.bundle_index, self.bundle_count, self.bundle_path, self.anchor.members()),
        )

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        body, index, count, path, sender, sequence, signature, at, of, bundle_path, anchor = as_array(value, 11)
        return cls(
            transaction=as_bytes(body),
            index=as_integer(index),
            count=as_integer(count, 1),
            path=_digests(path),
            sender=as_text(sender),
            sequence=as_integer(sequence, 1),
            signature=as_bytes(signature, SIGNATURE_SIZE_BYTES),
            bundle_index=as_integer(at),
            bundle_count=as_integer(of, 1),
            bundle_path=_digests(bundle_path),
            anchor=Anchor.from_members(anchor),
        )


@dataclass(frozen=True, slots=True)
class StateProof:
    """That `key` is, or is not, an entry of the state before the block of `anchor`."""

    key: bytes
    trie: TrieProof
    anchor: Anchor

    def check(self, trust: Genesis | LightClient, verifier: Verifier | None = None) -> bytes | None:
        """Return the entry's value, or None if its absence is proven. Raises ProofError."""
        self.anchor.check(LightClient.of(trust, verifier))
        good, value = trie_check(self.anchor.header.state_root, self.key, self.trie)
        if not good:
            raise ProofError("the path does not lead to the state root of the header")
        return value

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return self.key, *trie_members(self.trie), self.anchor.members()

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        key, branches, leaf, anchor = as_array(value, 4)
        return cls(as_bytes(key), trie_from_members((branches, leaf)), Anchor.from_members(anchor))


Proof = TransactionProof | StateProof


def _digests(value: Any) -> tuple[bytes, ...]:
    return tuple(as_bytes(each, DIGEST_SIZE_BYTES) for each in as_array(value))


def prove_transaction(chain: Chain, height: int, transaction_id: bytes) -> TransactionProof:
    """Make the proof that a transaction is in the committed block of `height`. Raises ProofError."""
    block, certificate = _committed(chain, height)
    for at, bundle in enumerate(block.bundles):
        if transaction_id in bundle.transaction_ids:
            return _transaction_proof(block, certificate, at, bundle, bundle.transaction_ids.index(transaction_id))
    raise ProofError(f"block {height} does not contain this transaction")


def _transaction_proof(block: Block, certificate: Certificate, at: int, bundle: Bundle, index: int) -> TransactionProof:
    return TransactionProof(
        transaction=bundle.transactions[index],
        index=index,
        count=len(bundle.transactions),
        path=list_path(bundle.transaction_ids, index),
        sender=bundle.sender,
        sequence=bundle.sequence,
        signature=bundle.signature,
        bundle_index=at,
        bundle_count=len(block.bundles),
        bundle_path=list_path([each.digest for each in block.bundles], at),
        anchor=Anchor(block.header, certificate),
    )


def prove_entry(chain: Chain, key: bytes) -> StateProof:
    """Make the proof for a state entry, present or absent, as of the state that the tip's header certifies.

    That is the state before the tip's block: an entry of the tip itself is provable one block later. Raises ProofError.
    """
    return StateProof(key, chain.state.prove(key, previous=True), tip_anchor(chain))


def tip_anchor(chain: Chain) -> Anchor:
    """Return the tip's header and commit certificate: what certifies the state before its block. Raises ProofError."""
    block, certificate = _committed(chain, chain.height)
    return Anchor(block.header, certificate)


def _committed(chain: Chain, height: int) -> tuple[Block, Certificate]:
    stored = chain.stored_block(height)
    if stored is None:
        kept = f": this node keeps blocks from {chain.floor} on; ask one that keeps more" if chain.floor > 1 else ""
        raise ProofError(f"there is no committed block {height} here{kept}")
    return Block.decode(stored.block, chain.genesis.parameters), Certificate.decode(stored.certificate)


def to_json(proof: Proof) -> str:
    """Return a proof as the text of proof.json: its kind, and its canonical bytes in hexadecimal."""
    kind = "transaction" if isinstance(proof, TransactionProof) else "state"
    return json.dumps({"kind": kind, "proof": pack(proof.members()).hex()}) + "\n"


def from_json(text: str) -> Proof:
    """Read proof.json. Raises ProofError."""
    try:
        document = json.loads(text)
        value = unpack(bytes.fromhex(document["proof"]))
        if document["kind"] == "transaction":
            return TransactionProof.from_members(value)
        if document["kind"] == "state":
            return StateProof.from_members(value)
        raise ValueError("unknown kind")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProofError(f"this is not a proof that `qnode ledger prove` wrote ({type(error).__name__})") from None
