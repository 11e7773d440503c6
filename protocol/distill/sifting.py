"""Sifting: which detections become key, by basis and intensity, and when a block is long enough (S0-E6, S4-A1.7-11).

Decides nothing about security: the classes it makes are what `estimation`, `key_length` and `decoy` reason about.
Bob announces the position and the basis of every detection, never the bit; Alice answers with the mask of matches
and the intensities. Implements SPEC §3.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import require

Bits = NDArray[np.uint8]


class SiftingError(ValueError):
    """An announcement that no honest peer makes: positions out of order or range, or lengths that differ."""


def check_positions(positions: NDArray[np.int64], pulse_count: int) -> None:
    """Refuse announced positions unless they increase strictly from 0 to below `pulse_count`. Raises SiftingError."""
    if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
        raise SiftingError("positions are one line of integers")
    if positions.size and (int(positions[0]) < 0 or int(positions[-1]) >= pulse_count):
        raise SiftingError(f"a detection lies outside the {pulse_count} pulses of the block")
    if positions.size > 1 and not bool(np.all(positions[1:] > positions[:-1])):
        raise SiftingError("positions must increase strictly: a pulse is announced once")


def sift(
    positions: NDArray[np.int64], bob_basis: NDArray[np.uint8], alice_basis: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Return the mask over Bob's detections where both chose the same basis.

    `positions` and `bob_basis` have one entry per detection; `alice_basis` one per pulse of the block, or per
    detection already, when Alice kept only what was detected (then `positions` must be 0, 1, 2, …).
    Raises SiftingError for an announcement no honest Bob makes.
    """
    check_positions(positions, alice_basis.size)
    if bob_basis.shape != positions.shape:
        raise SiftingError(f"{positions.size} positions but {bob_basis.size} bases")
    return np.equal(alice_basis[positions], bob_basis)


@dataclass(frozen=True, slots=True)
class SiftedClass:
    """The sifted detections of one basis and one intensity, as indices into the detections."""

    basis: int
    intensity: int
    index: NDArray[np.int64]


def classify(
    matched: NDArray[np.bool_], bob_basis: NDArray[np.uint8], intensity: NDArray[np.uint8]
) -> tuple[SiftedClass, ...]:
    """Split the matched detections by (basis, intensity), in ascending order; classes without detections are absent.

    With biased bases one basis makes the key and the other the test; with decoys every intensity is counted apart.
    """
    if not matched.shape == bob_basis.shape == intensity.shape:
        raise SiftingError("mask, bases and intensities differ in length")
    kept = np.flatnonzero(matched)
    label = bob_basis[kept].astype(np.int64) << 8 | intensity[kept]
    return tuple(SiftedClass(int(v) >> 8, int(v) & 0xFF, kept[label == v]) for v in np.unique(label))


@dataclass(slots=True)
class BlockAccumulator:
    """Collects sifted bits until a block is worth distilling.

    The finite-size terms of `key_length` grow like √n, so short blocks give nothing: at QBER 2 % and ε = 10⁻¹⁰ about
    10⁴ bits are the least, and 10⁶ are within a tenth of the asymptotic rate. Both sides append the same counts, so
    they cut at the same bits. Holds secret bits: `wipe` when the link ends.
    """

    block_bits: int
    _pending: list[Bits] = field(default_factory=list, repr=False)
    _count: int = 0

    def __post_init__(self) -> None:
        require(self.block_bits > 0, f"block_bits is {self.block_bits}; a block has at least one bit")

    @property
    def pending_bits(self) -> int:
        """Bits that wait for their block to fill."""
        return self._count

    def append(self, bits: Bits) -> list[Bits]:
        """Add sifted bits; return the blocks that became full, each of exactly `block_bits`."""
        self._pending.append(np.array(bits, dtype=np.uint8))
        self._count += bits.size
        if self._count < self.block_bits:
            return []
        joined = np.concatenate(self._pending)
        whole = self._count - self._count % self.block_bits
        self._pending = [joined[whole:].copy()]
        self._count -= whole
        return [joined[i : i + self.block_bits].copy() for i in range(0, whole, self.block_bits)]

    def wipe(self) -> None:
        """Overwrite and forget what is pending."""
        for part in self._pending:
            part[:] = 0
        self._pending.clear()
        self._count = 0
