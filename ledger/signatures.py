"""Signing and checking, behind two small interfaces: Ed25519 for daemons, a keyed hash for simulations.

Decides which library checks a signature (PyNaCl, pinned, so that every node accepts exactly the same set), and how two
signatures make a hybrid one for votes (ML-DSA-65 of FIPS 204, from `cryptography`; row S0-G3). What is signed, and when
it may be, is decided in `guard` and `transactions`.
"""

import hashlib
import hmac
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

SIGNATURE_SIZE_BYTES = 64
PUBLIC_KEY_SIZE_BYTES = 32
SEED_SIZE_BYTES = 32
POST_QUANTUM_KEY_SIZE_BYTES = 1952
POST_QUANTUM_SIGNATURE_SIZE_BYTES = 3309
HYBRID_KEY_SIZE_BYTES = PUBLIC_KEY_SIZE_BYTES + POST_QUANTUM_KEY_SIZE_BYTES
HYBRID_SIGNATURE_SIZE_BYTES = SIGNATURE_SIZE_BYTES + POST_QUANTUM_SIGNATURE_SIZE_BYTES
VOTE_SIGNATURE_SIZES_BYTES = (SIGNATURE_SIZE_BYTES, HYBRID_SIGNATURE_SIZE_BYTES)
_VOTE_CONTEXT = b"qnode vote"


class Signer(Protocol):
    """Holds one private key."""

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        ...


class Verifier(Protocol):
    """Checks signatures; stateless."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Say whether `signature` is the owner's of `public_key` over `message`; never raises for bad input."""
        ...


class Ed25519Signer:
    """Ed25519 (RFC 8032) under a 32-byte seed. About 20 µs a signature."""

    __slots__ = ("_secret_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_SIZE_BYTES} bytes, this one has {len(seed)}")
        public_key, self._secret_key = crypto_sign_seed_keypair(seed)
        self.public_key: bytes = public_key

    def sign(self, message: bytes) -> bytes:
        return crypto_sign(message, self._secret_key)[:SIGNATURE_SIZE_BYTES]

    def __repr__(self) -> str:
        return f"<Ed25519Signer {self.public_key.hex()[:16]}…>"


class Ed25519Verifier:
    """The check of libsodium: canonical S, no small-order public key or R. About 60 µs."""

    __slots__ = ()

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        if len(public_key) != PUBLIC_KEY_SIZE_BYTES or len(signature) != SIGNATURE_SIZE_BYTES:
            return False
        try:
            crypto_sign_open(signature + message, public_key)
        except (BadSignatureError, ValueError):
            return False
        return True


def post_quantum_seed(seed: bytes) -> bytes:
    """Return the ML-DSA-65 seed of a node whose Ed25519 seed this is: one secret to keep.

    Who breaks Ed25519 learns the scalar, which is a hash of the seed, and not the seed itself.
    """
    return hashlib.sha256(b"qnode/ml-dsa-65 seed/1" + seed).digest()


class HybridSigner:
    """Signs votes twice: the classical signature, followed by the one of ML-DSA-65. About 0.3 ms a vote.

    Its public key is the classical one followed by that of ML-DSA-65.
    """

    __slots__ = ("_classical", "_post_quantum", "public_key")

    def __init__(self, classical: Signer, seed: bytes) -> None:
        if len(seed) != SEED_SIZE_BYTES:
            raise ValueError(f"an ML-DSA seed has {SEED_SIZE_BYTES} bytes, this one has {len(seed)}")
        self._classical = classical
        self._post_quantum = MLDSA65PrivateKey.from_seed_bytes(seed)
        self.public_key: bytes = classical.public_key + self._post_quantum.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._classical.sign(message) + self._post_quantum.sign(message, _VOTE_CONTEXT)

    def __repr__(self) -> str:
        return f"<HybridSigner {self.public_key.hex()[:16]}…>"


def verify_vote(classical: Verifier, vote_key: bytes, message: bytes, signature: bytes) -> bool:
    """Check a statement's signature under an Ed25519 key alone, or under both keys, and then both must hold.

    The size of the key decides, never that of the signature: nobody can leave the second signature away.
    """
    if len(vote_key) != HYBRID_KEY_SIZE_BYTES:
        return classical.verify(vote_key, message, signature)
    if len(signature) != HYBRID_SIGNATURE_SIZE_BYTES:
        return False
    key, more_key = vote_key[:PUBLIC_KEY_SIZE_BYTES], vote_key[PUBLIC_KEY_SIZE_BYTES:]
    one, other = signature[:SIGNATURE_SIZE_BYTES], signature[SIGNATURE_SIZE_BYTES:]
    return classical.verify(key, message, one) and _is_post_quantum_signature(more_key, message, other)


def _is_post_quantum_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        MLDSA65PublicKey.from_public_bytes(public_key).verify(signature, message, _VOTE_CONTEXT)
    except (InvalidSignature, ValueError):
        return False
    return True


class SimulatedSigner:
    """A keyed hash in place of a signature: fast, and as good as one among parties who keep to `SimulatedVerifier`.

    For simulations only: whoever knows the seed can sign, and the verifier knows all seeds.
    """

    __slots__ = ("_seed", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self.public_key: bytes = hashlib.sha256(b"simulated key" + seed).digest()

    def sign(self, message: bytes) -> bytes:
        return hashlib.blake2b(message, key=self._seed[:64], digest_size=SIGNATURE_SIZE_BYTES).digest()

    def __repr__(self) -> str:
        return f"<SimulatedSigner {self.public_key.hex()[:16]}…>"


class SimulatedVerifier:
    """Recomputes the keyed hash of every signer it was told of; unknown keys never verify."""

    __slots__ = ("_signers",)

    def __init__(self, signers: tuple[SimulatedSigner, ...] = ()) -> None:
        self._signers = {signer.public_key: signer for signer in signers}

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        signer = self._signers.get(public_key)
        return signer is not None and hmac.compare_digest(signer.sign(message), signature)
