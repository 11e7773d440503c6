"""SPEC 4.8: hybrid votes need both signatures, of the set's own choosing; without them nothing changes by a byte."""

import hashlib
import time
from dataclasses import replace

import pytest

from ledger.encoding import pack
from ledger.genesis import HYBRID_VOTES, Genesis, GenesisError, GenesisNode, GenesisParameters
from ledger.identity import OwnKeys
from ledger.inputs import TransactionsSubmitted
from ledger.light import LightClient
from ledger.outputs import PeerFaulted
from ledger.proofs import prove_entry
from ledger.set_change import SetChange
from ledger.signatures import (
    HYBRID_KEY_SIZE_BYTES,
    HYBRID_SIGNATURE_SIZE_BYTES,
    SIGNATURE_SIZE_BYTES,
    Ed25519Signer,
    Ed25519Verifier,
    HybridSigner,
    post_quantum_seed,
    verify_vote,
)
from ledger.state_entries import link_key
from ledger.transactions import SaeRegistered, encode
from ledger.validators import Validators
from ledger.votes import CERTIFICATES_SIZE_BYTES_MAX, FRESH, Certificate, Kind, as_many_as_travel, bitmap_of
from qnode.identity import make_rotation
from tests.ledger.cluster import MS, NODES, Net, make_genesis

PARAMETERS = GenesisParameters(vote_signatures=HYBRID_VOTES, transaction_size_bytes_max=16_384)


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def hybrid(name: str) -> HybridSigner:
    return HybridSigner(Ed25519Signer(seed_of(name)), post_quantum_seed(seed_of(name)))


def make_hybrid_genesis() -> Genesis:
    plain = make_genesis()
    nodes = tuple(replace(node, post_quantum_key=hybrid(node.node_id).public_key[32:]) for node in plain.nodes)
    return replace(plain, nodes=nodes, parameters=PARAMETERS)


def make_net() -> Net:
    genesis = make_hybrid_genesis()
    net = Net(genesis, ())
    for name in NODES:
        net.keys[name] = OwnKeys.of_seeds(name, (seed_of(name),), hybrid=True)
        net.start(name)
    return net


def test_both_signatures_must_hold() -> None:
    signer, verifier = hybrid("alpha"), Ed25519Verifier()
    signature = signer.sign(b"m")
    assert len(signer.public_key) == HYBRID_KEY_SIZE_BYTES and len(signature) == HYBRID_SIGNATURE_SIZE_BYTES
    assert verify_vote(verifier, signer.public_key, b"m", signature)
    assert not verify_vote(verifier, signer.public_key, b"n", signature)
    assert not verify_vote(verifier, signer.public_key, b"m", signature[:SIGNATURE_SIZE_BYTES])
    for position in (0, SIGNATURE_SIZE_BYTES - 1, SIGNATURE_SIZE_BYTES, len(signature) - 1):
        bad = bytearray(signature)
        bad[position] ^= 1
        assert not verify_vote(verifier, signer.public_key, b"m", bytes(bad)), position
    other = hybrid("beta").sign(b"m")
    mixed = signature[:SIGNATURE_SIZE_BYTES] + other[SIGNATURE_SIZE_BYTES:]
    assert not verify_vote(verifier, signer.public_key, b"m", mixed)
    assert not verify_vote(verifier, signer.public_key[:32], b"m", signature), "nor does a longer one pass for a short"


def test_a_chain_commits_and_is_proven_with_hybrid_votes() -> None:
    net = make_net()
    net.give("alpha", TransactionsSubmitted(1, (SaeRegistered("new", "alpha"),)))
    net.pass_time(7_000 * MS)
    assert len({replica.state.root for replica in net.replicas.values()}) == 1
    assert net.replicas["delta"].state.sae("new") is not None and not net.seen(PeerFaulted)
    certificate = net.commits("beta")[0].certificate
    assert all(len(each) == HYBRID_SIGNATURE_SIZE_BYTES for each in certificate.signatures)
    proof = prove_entry(net.replicas["beta"].chain, link_key("alpha-beta"))
    assert proof.check(LightClient(net.genesis))
    net.stop("alpha")
    assert net.start("alpha").state.root == net.replicas["beta"].state.root
    assert not [each for each in net.replicas["beta"].chain.set_changes() if isinstance(each, SetChange)]


def test_both_keys_rotate_together() -> None:
    net = make_net()
    keys, state = net.keys["beta"], net.replicas["beta"].state
    new_key = keys.add_seed(seed_of("beta again"), hybrid=True)
    record = make_rotation(keys, state, net.genesis, new_key)
    assert len(encode(record)) <= PARAMETERS.transaction_size_bytes_max
    net.give("beta", TransactionsSubmitted(1, (record,)))
    net.pass_time(20_000 * MS)
    assert net.replicas["delta"].state.validators().key_of("beta") == hybrid("beta again").public_key
    assert len({replica.state.root for replica in net.replicas.values()}) == 1 and not net.seen(PeerFaulted)
    net.stop("delta")
    height = net.replicas["alpha"].height
    net.pass_time(20_000 * MS)
    assert net.replicas["alpha"].height > height, "beta's vote is needed now, and it is there"


def test_a_genesis_says_so_and_reads_back() -> None:
    genesis = make_hybrid_genesis()
    assert Genesis.from_json(genesis.to_json()).digest == genesis.digest != make_genesis().digest
    assert "post_quantum" not in make_genesis().to_json() and "vote_signatures" not in make_genesis().to_json()
    with pytest.raises(GenesisError, match="post_quantum_key"):
        replace(make_genesis(), parameters=PARAMETERS)
    with pytest.raises(GenesisError, match="post_quantum_key"):
        replace(genesis, parameters=GenesisParameters())
    with pytest.raises(GenesisError, match="transaction_size_bytes_max"):
        GenesisParameters(vote_signatures=HYBRID_VOTES)
    with pytest.raises(GenesisError, match="vote_signatures"):
        GenesisParameters(vote_signatures="rsa")
    with pytest.raises(GenesisError, match="post_quantum_key"):
        GenesisNode("x", bytes(32), True, b"short") and replace(
            genesis, nodes=(GenesisNode("x", bytes(32), True, b"short"),), links=(), saes=()
        )


def certificate_of(count: int) -> tuple[Certificate, Validators, float]:
    """A certificate of a quorum of `count`, its set, and the milliseconds of processor time that its check takes."""
    signers = [hybrid(f"v{i}") for i in range(count)]
    names = tuple(f"v{i}" for i in range(count))
    validators = Validators(names, tuple(signer.public_key for signer in signers))
    from ledger.votes import statement_bytes

    message = statement_bytes(bytes(32), validators.digest, Kind.FINALIZE, 1, 0, b"d" * 32, FRESH)
    chosen = list(range(validators.quorum))
    bits = bitmap_of(chosen, (count + 7) // 8)
    signatures = tuple(signers[i].sign(message) for i in chosen)
    certificate = Certificate(Kind.FINALIZE, 1, 0, b"d" * 32, FRESH, bits, signatures)
    begun = time.process_time()
    assert certificate.is_valid(validators, bytes(32), Ed25519Verifier())
    return certificate, validators, (time.process_time() - begun) * 1e3


@pytest.mark.parametrize("count", [4, 31])
def test_a_certificate_grows_as_said(count: int) -> None:
    certificate, validators, _ = certificate_of(count)
    assert len(certificate.encoded) == pytest.approx(validators.quorum * 3376 + 50, abs=20)
    one = replace(certificate, signatures=(bytes(HYBRID_SIGNATURE_SIZE_BYTES), *certificate.signatures[1:]))
    assert not one.is_valid(validators, bytes(32), Ed25519Verifier())


def test_certificates_travel_within_a_message() -> None:
    signature = bytes(HYBRID_SIGNATURE_SIZE_BYTES)
    many = [Certificate(Kind.NULLIFY, 1, view, bytes(32), FRESH, b"", (signature,) * 21) for view in range(100)]
    fit = as_many_as_travel(many)
    assert 5 < len(fit) < 64 and len(pack(tuple(each.members() for each in fit))) <= CERTIFICATES_SIZE_BYTES_MAX
    assert len(as_many_as_travel([replace(each, signatures=()) for each in many])) == 64


if __name__ == "__main__":  # python -m tests.ledger.test_hybrid: the figures of docs/ledger.md
    for size in (4, 31):
        found, _, check_ms = min((certificate_of(size) for _ in range(9)), key=lambda each: each[2])
        print(f"n = {size}: {len(found.encoded)} bytes, {check_ms:.2f} ms to check")
