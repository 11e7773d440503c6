"""ML-KEM-768 (FIPS 203) for hybrid keys (rows S4-8.1, S4-8.3). Shell: it draws the operating system's randomness."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey


class MlKem768:
    """`protocol.lightweight.hybrid.Kem`: 1,184-byte public keys, 1,088-byte ciphertexts, 32-byte secrets."""

    def new_pair(self) -> tuple[bytes, Callable[[bytes], bytes]]:
        """Return a fresh public key, and what opens ciphertexts under it."""
        private = MLKEM768PrivateKey.generate()
        return private.public_key().public_bytes_raw(), private.decapsulate

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """Return (shared secret, ciphertext). Raises ValueError."""
        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()
