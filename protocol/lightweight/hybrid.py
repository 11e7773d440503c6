"""The place of a post-quantum KEM in a session: K = KDF(K_final, shared secret) (rows S4-8.3, S4-8.1).

A key so made is secret if either the session's proof or the KEM holds. It is computational, hence no one-time pad. KEMs
draw randomness of their own, so they are given to both ends as objects; `qnode.device.kem` has ML-KEM-768.
"""

from collections.abc import Callable
from typing import Protocol


class Kem(Protocol):
    """A key encapsulation mechanism."""

    def new_pair(self) -> tuple[bytes, Callable[[bytes], bytes]]:
        """Return a fresh public key, and what opens ciphertexts under it (raising ValueError)."""
        ...

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """Return (shared secret, ciphertext). Raises ValueError for what is no public key."""
        ...
