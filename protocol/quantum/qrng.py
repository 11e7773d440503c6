"""Random numbers for the link: an emulated quantum generator or another raw source, health-tested and conditioned.

Decides whether raw bits may become key: the tests of NIST SP 800-90B §4.4 (repetition count, adaptive proportion) run
over every bit, and a failure stops the source until an operator acts. Implements SPEC §1.4 (row S0-E2).
"""

import hashlib
import math
from functools import cache
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.entropy import Entropy
from protocol.parameters import require_range

# SP 800-90B §4.4.2: windows of 1024 for binary sources; §4.3: at least 1024 samples tested before any output.
WINDOW_BITS: Final = 1024
STARTUP_BITS: Final = 4096

# One output block of SHA-256 takes 256 + 64 bits of min-entropy (§3.1.5.1.2: full entropy but for 2^-64).
BLOCK_BYTES: Final = 32
BLOCK_ENTROPY_BITS: Final = 320


class EntropyFailure(RuntimeError):
    """A health test failed: no further bits come from this source, and key generation must stop."""


class RawSource(Protocol):
    """A noise source before any processing."""

    def raw_bits(self, count: int) -> NDArray[np.uint8]:
        """Return `count` fresh raw bits as 0/1."""
        ...


class EmulatedQrng:
    """Photons on a beam splitter, one per bit: biased by the splitter, sticky by the detectors' memory.

    one_probability: of the bit 1; stickiness: probability that a bit repeats the one before whatever the photon did
    (1 is a dead detector). The randomness itself comes from `entropy`, seeded for reproducible runs.
    """

    def __init__(self, entropy: Entropy, one_probability: float = 0.5, stickiness: float = 0.0) -> None:
        require_range("one_probability", one_probability, 0.0, 1.0)
        require_range("stickiness", stickiness, 0.0, 1.0)
        self._entropy = entropy
        self._last = 0
        self.one_probability = one_probability
        self.stickiness = stickiness

    def raw_bits(self, count: int) -> NDArray[np.uint8]:
        """Return `count` raw bits."""
        words = np.frombuffer(self._entropy.take(8 * count), dtype="<u4").reshape(2, count)
        bits = (words[0] < self.one_probability * 2.0**32).astype(np.uint8)
        fresh = words[1] >= self.stickiness * 2.0**32
        source = np.maximum.accumulate(np.where(fresh, np.arange(count), -1))
        bits = np.where(source >= 0, bits[np.maximum(source, 0)], self._last).astype(np.uint8)
        if count:
            self._last = int(bits[-1])
        return bits

    @property
    def min_entropy_per_bit(self) -> float:
        """Return -log2 of the most likely next bit's probability, given the one before."""
        likeliest = max(self.one_probability, 1.0 - self.one_probability)
        return -math.log2(self.stickiness + (1.0 - self.stickiness) * likeliest)


class SystemSource:
    """Another `Entropy`, such as the operating system's, as a raw source under the same tests."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def raw_bits(self, count: int) -> NDArray[np.uint8]:
        """Return `count` bits."""
        return np.unpackbits(np.frombuffer(self._entropy.take((count + 7) // 8), dtype=np.uint8))[:count]


def repetition_cutoff(min_entropy_per_bit: float, false_alarm: float) -> int:
    """Return the run length that fails: 1 + ceil(-log2 α / H) (SP 800-90B §4.4.1)."""
    return 1 + math.ceil(-math.log2(false_alarm) / min_entropy_per_bit)


@cache
def proportion_cutoff(min_entropy_per_bit: float, false_alarm: float) -> int:
    """Return the count in a window that fails: 1 + critbinom(W, 2^-H, 1 - α) (SP 800-90B §4.4.2)."""
    p = 2.0**-min_entropy_per_bit
    log_p, log_q = math.log(p), math.log1p(-p) if p < 1.0 else -math.inf
    tail = 0.0
    for count in range(WINDOW_BITS, 0, -1):  # from above, where the tail's small terms add up exactly
        chance = math.lgamma(WINDOW_BITS + 1) - math.lgamma(count + 1) - math.lgamma(WINDOW_BITS - count + 1)
        rest = (WINDOW_BITS - count) * log_q if count < WINDOW_BITS else 0.0
        tail += math.exp(chance + count * log_p + rest)
        if tail > false_alarm:
            return min(count + 1, WINDOW_BITS)
    return 1


class HealthTests:
    """The continuous tests over one stream of bits; state goes on from call to call, whatever the chunks.

    false_alarm: per test, 2^-40 by default (the standard asks for 2^-20 to 2^-40).
    """

    def __init__(self, min_entropy_per_bit: float, false_alarm: float = 2.0**-40) -> None:
        require_range("min_entropy_per_bit", min_entropy_per_bit, 0.01, 1.0, "bits")
        require_range("false_alarm", false_alarm, 2.0**-64, 2.0**-10)
        self.repetition_cutoff = repetition_cutoff(min_entropy_per_bit, false_alarm)
        self.proportion_cutoff = proportion_cutoff(min_entropy_per_bit, false_alarm)
        self._run_bit, self._run_length = -1, 0
        self._window: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def check(self, bits: NDArray[np.uint8]) -> None:
        """Test further bits (uint8 0/1). Raises EntropyFailure with the test's name."""
        if len(bits):
            self._repetition_count(bits)
            self._adaptive_proportion(bits)

    def _repetition_count(self, bits: NDArray[np.uint8]) -> None:
        starts = np.concatenate([[0], np.flatnonzero(bits[1:] != bits[:-1]) + 1, [len(bits)]])
        runs = np.diff(starts)
        if int(bits[0]) == self._run_bit:
            runs[0] += self._run_length
        self._run_bit, self._run_length = int(bits[-1]), int(runs[-1])
        if int(runs.max()) >= self.repetition_cutoff:
            raise EntropyFailure(f"repetition count: a run of {runs.max()} bits, {self.repetition_cutoff} fail")

    def _adaptive_proportion(self, bits: NDArray[np.uint8]) -> None:
        pending = np.concatenate([self._window, bits])
        whole = len(pending) // WINDOW_BITS * WINDOW_BITS
        windows = pending[:whole].reshape(-1, WINDOW_BITS)
        self._window = pending[whole:].copy()
        same = (windows == windows[:, :1]).sum(axis=1)
        if len(same) and int(same.max()) >= self.proportion_cutoff:
            raise EntropyFailure(
                f"adaptive proportion: {same.max()} equal bits of {WINDOW_BITS}, {self.proportion_cutoff} fail"
            )


class TestedEntropy:
    """An `Entropy` over a raw source: tested bit by bit, conditioned by SHA-256 to full entropy.

    min_entropy_per_bit: what the source is claimed to give (assessed once, SP 800-90B §3); the tests catch what breaks
    later. Raises EntropyFailure from the constructor or from `take`, and then on every further `take`.
    """

    __test__ = False  # not a test case, whatever its name suggests to pytest

    def __init__(self, source: RawSource, min_entropy_per_bit: float = 0.9, false_alarm: float = 2.0**-40) -> None:
        self._source = source
        self._tests = HealthTests(min_entropy_per_bit, false_alarm)
        self._bits_per_block = math.ceil(BLOCK_ENTROPY_BITS / min_entropy_per_bit / 8) * 8
        self._failure: str | None = None
        self._tested_bits(STARTUP_BITS)  # discarded, as §4.3 demands

    def take(self, size_bytes: int) -> bytes:
        """Return `size_bytes` of full entropy."""
        blocks = -(-size_bytes // BLOCK_BYTES)
        raw = np.packbits(self._tested_bits(blocks * self._bits_per_block)).tobytes()
        size = self._bits_per_block // 8
        output = b"".join(hashlib.sha256(raw[i * size : (i + 1) * size]).digest() for i in range(blocks))
        return output[:size_bytes]

    def _tested_bits(self, count: int) -> NDArray[np.uint8]:
        if self._failure is not None:
            raise EntropyFailure(self._failure)
        bits = self._source.raw_bits(count)
        try:
            self._tests.check(bits)
        except EntropyFailure as failure:
            self._failure = str(failure)
            raise
        return bits
