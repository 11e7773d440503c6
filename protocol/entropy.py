"""Where secret bits come from: one narrow interface, so that no other randomness can reach a key.

The daemon injects the operating system's generator (`qnode.io.entropy`), the simulator and the tests the seeded
one below. Emulated physics and jitter use `numpy.random.Generator` and `random.Random`: other types on purpose.
"""

from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class Entropy(Protocol):
    """A source of secret, uniform bytes."""

    def take(self, size_bytes: int) -> bytes:
        """Return `size_bytes` fresh bytes that nobody else has or can derive."""
        ...


class SeededEntropy:
    """A reproducible stream for tests and simulation: AES-256 in counter mode under the seed. Never for real keys."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) > 32:
            raise ValueError(f"a seed has at most 32 bytes, this one has {len(seed)}")
        cipher = Cipher(algorithms.AES(seed.ljust(32, b"\0")), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def take(self, size_bytes: int) -> bytes:
        return self._stream.update(bytes(size_bytes))
