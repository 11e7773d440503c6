"""Signing and checking, behind two small interfaces: Ed25519 for daemons, a keyed hash for simulations.

Decides which library checks a signature (PyNaCl, pinned, so that every node accepts exactly the same set). What is
signed, and when it may be, is decided in `guard` and `transactions`.
"""

import hashlib
import hmac
from typing import Protocol

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

SIGNATURE_SIZE_BYTES = 64
PUBLIC_KEY_SIZE_BYTES = 32
SEED_SIZE_BYTES = 32


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
