"""Secret bits from the operating system (row S0-E2): the daemon's implementation of `protocol.entropy.Entropy`.

Every draw passes the two continuous health tests of NIST SP 800-90B §4.4, which catch a source that got stuck or
heavily biased. They cannot prove that the source is good, and they run on bytes as samples, claiming 4 bits of
min-entropy per byte: half of what a healthy source has, so that a healthy one practically never fails.
"""

import os

SAMPLE_ENTROPY_BITS = 4
# §4.4.1: 1 + ⌈−log2(α) / H⌉ with the false-alarm probability α = 2^-40 per sample.
REPETITION_CUTOFF = 1 + 40 // SAMPLE_ENTROPY_BITS
# §4.4.2: window of 512 samples; the cutoff is 1 + the quantile of Binomial(512, 2^-4) at 1 − 2^-40.
PROPORTION_WINDOW = 512
PROPORTION_CUTOFF = 78


class EntropyFailure(RuntimeError):
    """The source failed a health test; fatal to the daemon, since no key made from it would be secret."""


class HealthTests:
    """The repetition-count and the adaptive-proportion test over a stream of bytes, state kept between draws."""

    def __init__(self) -> None:
        self._last = -1
        self._run = 0
        self._window_first = -1
        self._window_seen = 0
        self._window_hits = 0

    def check(self, drawn: bytes) -> None:
        """Test the next bytes of the stream. Raises EntropyFailure naming the test that failed."""
        for sample in drawn:
            self._repetition(sample)
            self._proportion(sample)

    def _repetition(self, sample: int) -> None:
        self._run = self._run + 1 if sample == self._last else 1
        self._last = sample
        if self._run >= REPETITION_CUTOFF:
            raise EntropyFailure("the randomness source repeats itself (repetition count test, SP 800-90B 4.4.1)")

    def _proportion(self, sample: int) -> None:
        if self._window_seen == 0:
            self._window_first, self._window_hits = sample, 0
        self._window_hits += sample == self._window_first
        self._window_seen = (self._window_seen + 1) % PROPORTION_WINDOW
        if self._window_hits >= PROPORTION_CUTOFF:
            raise EntropyFailure("the randomness source is biased (adaptive proportion test, SP 800-90B 4.4.2)")


class OperatingSystemEntropy:
    """Fresh bytes from the kernel's generator.

    The health tests see at most TESTED_BYTES of each draw: they cost 0.2 µs per byte in Python, and a broken source
    shows within a few dozen samples of any draw.
    """

    TESTED_BYTES = 4096

    def __init__(self) -> None:
        self._health = HealthTests()

    def take(self, size_bytes: int) -> bytes:
        """Return `size_bytes` fresh bytes. Raises EntropyFailure when the source is broken."""
        drawn = os.urandom(size_bytes)
        self._health.check(drawn[: self.TESTED_BYTES])
        return drawn
