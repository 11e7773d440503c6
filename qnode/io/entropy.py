"""Secret bits for the daemon (row S0-E2): the operating system's generator, or an emulated quantum one over it.

Both implement `protocol.entropy.Entropy` and pass the continuous health tests of NIST SP 800-90B §4.4
(`protocol.quantum.qrng`); the first failure stops every later draw, and with it key generation.
"""

import os
import threading
from typing import Final

import numpy as np

from protocol.entropy import Entropy
from protocol.quantum.qrng import EmulatedQrng, EntropyFailure, HealthTests, TestedEntropy

__all__ = ["EntropyFailure", "OperatingSystemEntropy", "node_entropy"]

CLAIMED_BITS_PER_BIT: Final = 0.9
"""What the tests assume of the system's generator: less than it gives, so a healthy one practically never fails."""


class OperatingSystemEntropy:
    """Fresh bytes from the kernel's generator. Safe to call from several threads.

    Small draws are cut from POOL_BYTES that were drawn and tested at once, since testing sixteen bytes costs as much as
    testing a thousand; what is handed out is overwritten in the pool. The health tests see at most TESTED_BYTES of a
    large draw: a broken source shows within a few dozen of them.
    """

    TESTED_BYTES = 4096
    POOL_BYTES = 1024

    def __init__(self) -> None:
        self._health = HealthTests(CLAIMED_BITS_PER_BIT)
        self._failure: EntropyFailure | None = None
        self._lock = threading.Lock()
        self._pool = bytearray()
        self._pool_process = os.getpid()

    def take(self, size_bytes: int) -> bytes:
        """Return `size_bytes` fresh bytes. Raises EntropyFailure when the source is broken, from then on always."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if size_bytes > self.POOL_BYTES // 4:
                return self._draw(size_bytes)
            if len(self._pool) < size_bytes or self._pool_process != os.getpid():  # a fork must not share a pool
                self._pool[:] = self._draw(self.POOL_BYTES)
                self._pool_process = os.getpid()
            first = len(self._pool) - size_bytes
            taken = bytes(self._pool[first:])
            self._pool[first:] = bytes(size_bytes)
            del self._pool[first:]
            return taken

    def _draw(self, size_bytes: int) -> bytes:
        drawn = os.urandom(size_bytes)
        try:
            self._health.check(np.unpackbits(np.frombuffer(drawn[: self.TESTED_BYTES], np.uint8)))
        except EntropyFailure as failure:
            self._failure = failure
            raise
        return drawn


class _Shared:
    """An entropy source that keeps state between draws, for the threads of one daemon."""

    def __init__(self, source: Entropy) -> None:
        self._source = source
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> bytes:
        with self._lock:
            return self._source.take(size_bytes)


def node_entropy(kind: str) -> Entropy:
    """Return the source that a node's `entropy` setting names: "system", or "emulated_qrng".

    The emulated generator has the imperfections of a real one (a biased splitter, detectors with memory), so that its
    tests and conditioning are at work; its unpredictability is that of the operating system below it.
    """
    system = OperatingSystemEntropy()
    if kind == "system":
        return system
    assert kind == "emulated_qrng", f"settings let {kind!r} through"
    photons = EmulatedQrng(system, one_probability=0.49, stickiness=0.01)
    return _Shared(TestedEntropy(photons, min_entropy_per_bit=0.9))
