"""Records that the ledger's profiles execute: of nodes whose keys follow from their names, good and signed."""

import hashlib

from ledger.genesis import Genesis
from ledger.signatures import Ed25519Signer
from ledger.transactions import KeyBlockRecorded


def signer_of(name: str) -> Ed25519Signer:
    """Return a node's signer; its key is no secret."""
    return Ed25519Signer(hashlib.sha256(name.encode()).digest())


def key_block(genesis: Genesis, link_id: str, transmitter: str, receiver: str) -> KeyBlockRecorded:
    """Return the record of a link's first block, of a million pulses at 2.1 % errors, signed by both ends."""
    sizes = (1_000_000, 20_000, 10_000, 1_000, 21_000, 1_600, 64, 256, 4_096, 33_219)
    named = (link_id, 0, *sizes, "lim-2014", "cascade", bytes(32), 10**6)
    message = KeyBlockRecorded(*named, bytes(64), bytes(64)).signing_bytes(genesis.chain_id, genesis.digest)
    return KeyBlockRecorded(*named, *(signer_of(end).sign(message) for end in (transmitter, receiver)))
