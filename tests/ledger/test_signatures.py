"""RFC 8032 vectors, bundles, the signing guard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.bundle import Bundle, MalformedBundle, make_bundle
from ledger.encoding import pack
from ledger.genesis import GenesisParameters
from ledger.guard import Guard, Record
from ledger.signatures import Ed25519Signer, Ed25519Verifier, SimulatedSigner, SimulatedVerifier
from ledger.validators import Validators
from ledger.votes import FRESH, NO_DIGEST, Kind
from tests.ledger.cluster import signer_of

LIMITS = GenesisParameters()
# RFC 8032, section 7.1: secret key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2"
        "4655141438e7a100b",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28"
        "dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
def test_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    signer = Ed25519Signer(bytes.fromhex(seed))
    assert signer.public_key.hex() == public
    assert signer.sign(bytes.fromhex(message)).hex() == signature
    assert Ed25519Verifier().verify(signer.public_key, bytes.fromhex(message), bytes.fromhex(signature))


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_bad_input_is_false_and_never_raises(public: bytes, message: bytes, signature: bytes) -> None:
    assert not Ed25519Verifier().verify(public, message, signature)


def test_malleable_and_small_order_signatures_are_refused() -> None:
    signer, verifier = signer_of("alpha"), Ed25519Verifier()
    signature = signer.sign(b"m")
    order = 2**252 + 27742317777372353535851937790883648493
    shifted = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not verifier.verify(signer.public_key, b"m", signature[:32] + shifted)
    identity = b"\x01" + bytes(31)
    assert not verifier.verify(identity, b"m", identity + bytes(32))


def test_a_signer_never_shows_its_secret() -> None:
    seed = bytes(range(32))
    assert seed.hex() not in repr(Ed25519Signer(seed))
    with pytest.raises(ValueError, match="32 bytes"):
        Ed25519Signer(b"short")


def test_simulated_signatures_bind_signer_and_message() -> None:
    one, two = SimulatedSigner(b"1"), SimulatedSigner(b"2")
    verifier = SimulatedVerifier((one, two))
    assert verifier.verify(one.public_key, b"m", one.sign(b"m"))
    assert not verifier.verify(two.public_key, b"m", one.sign(b"m"))
    assert not verifier.verify(one.public_key, b"n", one.sign(b"m"))
    assert not verifier.verify(SimulatedSigner(b"3").public_key, b"m", SimulatedSigner(b"3").sign(b"m"))


# ---- bundles


def bundle(*bodies: bytes, sequence: int = 1) -> Bundle:
    return make_bundle(signer_of("alpha"), "test", bytes(32), "alpha", sequence, bodies or (b"body",))


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=20), st.integers(1, 2**40))
def test_bundles_round_trip(bodies: list[bytes], sequence: int) -> None:
    made = bundle(*bodies, sequence=sequence)
    again = Bundle.decode(made.encoded, LIMITS)
    assert again == made and again.digest == made.digest
    assert again.is_signed_by(signer_of("alpha").public_key, "test", bytes(32), Ed25519Verifier())


def test_a_bundle_is_bound_to_chain_sender_sequence_and_contents() -> None:
    made, verifier, key = bundle(), Ed25519Verifier(), signer_of("alpha").public_key
    assert not made.is_signed_by(key, "other", bytes(32), verifier)
    assert not made.is_signed_by(key, "test", bytes(31) + b"\x01", verifier)
    assert not made.is_signed_by(signer_of("beta").public_key, "test", bytes(32), verifier)
    moved = Bundle("alpha", 2, made.root, made.signature, made.transactions)
    assert not moved.is_signed_by(key, "test", bytes(32), verifier)
    with pytest.raises(MalformedBundle, match="root"):
        Bundle.decode(Bundle("alpha", 1, made.root, made.signature, (b"other",)).encoded, LIMITS)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(MalformedBundle):
        Bundle.decode(data, LIMITS)


def test_bundle_limits() -> None:
    limits = GenesisParameters(bundle_transactions_max=2, bundle_size_bytes_max=400, transaction_size_bytes_max=100)
    assert Bundle.decode(bundle(b"a", b"b").encoded, limits)
    for bad in (bundle(b"a", b"b", b"c"), bundle(bytes(101)), bundle(b"")):
        with pytest.raises(MalformedBundle):
            Bundle.decode(bad.encoded, limits)
    with pytest.raises(MalformedBundle):
        Bundle.decode(bundle(bytes(100), bytes(100), bytes(100)).encoded, limits)
    with pytest.raises(MalformedBundle):
        Bundle.decode(pack(("alpha", 1, bytes(32), bytes(64), ())), limits)


# ---- the guard


def test_the_guard_signs_forward_only() -> None:
    guard = Guard("alpha", bytes(32), Record())
    name = (signer_of("alpha"), Validators(("alpha",), (signer_of("alpha").public_key,)))
    assert not guard.allows(Kind.PROPOSE, 0, 0)
    guard.sign(*name, Kind.VOTE, 1, 0, bytes(32), FRESH)
    assert not guard.allows(Kind.VOTE, 1, 0) and not guard.allows(Kind.PROPOSE, 1, 0)
    guard.sign(*name, Kind.NULLIFY, 1, 0, NO_DIGEST, FRESH)
    assert not guard.allows(Kind.FINALIZE, 1, 0) and not guard.allows(Kind.NULLIFY, 1, 0)
    assert guard.allows(Kind.PROPOSE, 1, 1) and guard.allows(Kind.PROPOSE, 2, 0)
    with pytest.raises(AssertionError):
        guard.sign(*name, Kind.FINALIZE, 1, 0, bytes(32), FRESH)
    assert Record.decode(guard.record.encoded()) == guard.record == Record(1, 0, 2)
