"""The numpy twin of the emulation kernel: the specification of `emulation.c`, its test oracle and its fallback.

Every function is a pure function of the uniform words and exponential variates that it is given; no randomness is
drawn here. Implements SPEC §3 (proposals, acceptance) and §4 (detection).
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# A gap longer than any emission (2^44 pulses) is cut to this, so that 2^15 of them still add up below 2^63.
GAP_MAX: Final = 2.0**45
UNIT: Final = 2.0**-53

# Internal tags of dark counts, beside those that light may carry: only detector 0, only detector 1, both.
DARK_TAG_FIRST: Final = 0x0C

# What detection remembers from one stretch of pulses to the next: see `fresh_carry`.
CARRY_SIZE: Final = 5
NEVER: Final = 2**63 - 1
BASIS_UNKNOWN: Final = 2

_MIX_MASK: Final = 2**64 - 1


def propose(
    exponentials: NDArray[np.float64], inverse_rate: float, start: int, end: int, blocks: NDArray[np.uint64]
) -> int:
    """Fill blocks[:, 0] with the proposed positions in [start, end) and blocks[:, 1] with zero; return how many.

    With unit exponential variates E and inverse_rate = -1/ln(1 - p) the gaps floor(E·inverse_rate) are geometric:
    the positions are those of a Bernoulli(p) process. All len(exponentials) are used unless `end` comes first.
    """
    gaps = np.minimum(np.floor(exponentials * inverse_rate), GAP_MAX).astype(np.uint64)
    positions = np.cumsum(gaps + np.uint64(1), dtype=np.uint64) + np.uint64(start) - np.uint64(1)
    count = int(np.searchsorted(positions, np.uint64(end), side="left"))
    blocks[:count, 0] = positions[:count]
    blocks[:count, 1] = 0
    return count


def emit(
    blocks: NDArray[np.uint64],
    words: NDArray[np.uint64],
    uniforms: NDArray[np.uint64],
    thresholds: NDArray[np.uint64],
    tails: NDArray[np.float64],
    ceiling: float,
    positions: NDArray[np.uint64],
    tags: NDArray[np.uint8],
) -> int:
    """Accept proposals by the exact photon statistics of their own intensity; return how many were accepted.

    blocks (n, 2) holds the proposed positions, words (n, 2) Alice's function there. v = ceiling·u is uniform below the
    proposal probability; the photon number is the count of j with v < tails[k, j - 1] = P(at least j photons | k), and
    zero means refused. tags: photons << 4 | basis << 1 | bit.
    """
    basis, bit, intensity = (np.empty(len(blocks), dtype=np.uint8) for _ in range(3))
    split_choices(words, thresholds, basis, bit, intensity)
    v = (uniforms[: len(blocks)] >> np.uint64(11)).astype(np.float64) * UNIT * ceiling
    photons = (v[:, None] < tails[intensity]).sum(axis=1).astype(np.uint8)
    kept = np.flatnonzero(photons)
    positions[: kept.size] = blocks[kept, 0]
    tags[: kept.size] = photons[kept] << 4 | basis[kept] << 1 | bit[kept]
    return int(kept.size)


def split_choices(
    words: NDArray[np.uint64],
    thresholds: NDArray[np.uint64],
    basis: NDArray[np.uint8],
    bit: NDArray[np.uint8],
    intensity: NDArray[np.uint8],
) -> None:
    """Read basis, bit and intensity out of Alice's two words per pulse.

    The low half of the first word against thresholds[1:] gives the intensity, its high half against thresholds[0] the
    basis (below: X), the lowest bit of the second word the bit.
    """
    low = words[:, 0] & np.uint64(0xFFFFFFFF)
    basis[:] = (words[:, 0] >> np.uint64(32)) < thresholds[0]
    bit[:] = words[:, 1] & np.uint64(1)
    intensity[:] = (low >= thresholds[1]).astype(np.uint8) + (low >= thresholds[2])


def fresh_carry() -> NDArray[np.uint64]:
    """Return the state of detectors at rest: [end of dead time, next after-pulse of 0, of 1, their two words]."""
    return np.array([0, NEVER, NEVER, 0, 0], dtype=np.uint64)


def mix(word: int) -> int:
    """Return the SplitMix64 successor of `word`: the words of the after-pulses that one event may cause."""
    z = (word + 0x9E3779B97F4A7C15) & _MIX_MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MIX_MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MIX_MASK
    return z ^ (z >> 31)


def detect(
    positions: NDArray[np.uint64],
    tags: NDArray[np.uint8],
    words: NDArray[np.uint64],
    uniforms: NDArray[np.uint64],
    outcomes: NDArray[np.float64],
    basis_threshold: int,
    end: int,
    detectors: "DetectorRules",
    carry: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint8]]:
    """Turn arrivals into registered detections: (positions, basis, bit); `carry` goes on to the next stretch.

    positions (n, not decreasing) and tags: arrivals of light and dark counts, all below `end`; words (n, 2): Bob's
    function at the positions; uniforms (n): one physical word per arrival. outcomes[tag, basis] are three cumulative
    probabilities: only detector 0, only 1, both (the rest: none). After-pulses at or beyond `end` stay pending. The
    basis is BASIS_UNKNOWN where only an after-pulse clicked: the caller reads it from Bob's function.
    """
    arrival_basis = ((words[:, 0] >> np.uint64(32)) < np.uint64(basis_threshold)).astype(np.uint8)
    u = (uniforms >> np.uint64(11)).astype(np.float64) * UNIT
    masks = np.array([1, 2, 3, 0], dtype=np.uint8)[(u[:, None] >= outcomes[tags, arrival_basis]).sum(axis=1)]
    clicks = np.flatnonzero(masks)
    gates = _Gates(detectors, carry.tolist())
    columns = (positions, masks, arrival_basis, uniforms)
    for position, mask, basis, word in zip(*(column[clicks].tolist() for column in columns), strict=True):
        gates.arrive(position, mask, basis, word)
    gates.run_until(end)
    carry[:] = gates.carry
    found = np.array(gates.found, dtype=np.uint64).reshape(-1, 3)
    return found[:, 0].copy(), found[:, 1].astype(np.uint8), found[:, 2].astype(np.uint8)


class DetectorRules(NamedTuple):
    """Dead time in pulses (≥ 1: the click's own gate), after-pulses, and what a double click becomes."""

    dead_pulses: int
    after_pulse_probability: float
    after_pulse_decay_pulses: float
    discard_double: bool


class _Gates:
    """Two detectors gate by gate, in order of position; at most one after-pulse pending in each.

    A new click of a detector refills its trap: an after-pulse that was pending is replaced, not added to.
    """

    def __init__(self, rules: DetectorRules, carry: list[int]) -> None:
        self._rules = rules
        self._dead_end = carry[0]
        self._pending = carry[1:3]
        self._pending_words = carry[3:5]
        self._position, self._mask, self._basis, self._word = NEVER, 0, BASIS_UNKNOWN, 0
        self.found: list[tuple[int, int, int]] = []

    @property
    def carry(self) -> list[int]:
        return [self._dead_end, *self._pending, *self._pending_words]

    def arrive(self, position: int, mask: int, basis: int, word: int) -> None:
        """Take one click of light or darkness; earlier gates are complete then."""
        if position != self._position:
            self.run_until(position)
            self._position, self._mask, self._basis, self._word = position, 0, basis, word
        self._mask |= mask

    def run_until(self, end: int) -> None:
        """Register everything before `end`: the gathered gate and the after-pulses that come earlier."""
        while (now := min(self._position, *self._pending)) < end:
            if now == self._position:
                mask, basis, word = self._mask, self._basis, self._word
                self._position = NEVER
            else:
                mask, basis, word = 0, BASIS_UNKNOWN, self._pending_words[self._pending.index(now)]
            for detector in (0, 1):
                if self._pending[detector] == now:
                    mask |= 1 << detector
                    self._pending[detector] = NEVER
            if now >= self._dead_end:
                self._register(now, mask, basis, word)

    def _register(self, position: int, mask: int, basis: int, word: int) -> None:
        self._dead_end = position + self._rules.dead_pulses
        for detector in (0, 1):
            if mask >> detector & 1:
                self._trap(detector, mix(word ^ detector))
        if mask != 3:
            self.found.append((position, basis, mask >> 1))
        elif not self._rules.discard_double:
            self.found.append((position, basis, word & 1))

    def _trap(self, detector: int, word: int) -> None:
        """Let a registered click fill a trap of its detector: it may release an after-pulse after the dead time."""
        if (word >> 11) * UNIT >= self._rules.after_pulse_probability:
            return
        word = mix(word)
        delay = -math.log(((word >> 11) + 1) * UNIT) * self._rules.after_pulse_decay_pulses
        self._pending[detector] = self._dead_end + int(delay)
        self._pending_words[detector] = mix(word)
