"""Quasi-cyclic LDPC codes, built on demand from a size and a leak: nothing stored or copied (S0-E6, S4-5.7).

A code has `rows` × `columns` circulants of size z. Its column degrees follow a profile found by density evolution
(`ldpc_design`, which prints the thresholds): a chain of degree 2, most of degree 3, some of high degree. Edges are
placed by progressive edge growth over the rows, each on a row of least degree; shifts are drawn until no
cycle of length 4 is closed. Both sides build the same code from the same numbers. Implements SPEC §5.3.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocol.distill.seeding import mix64

ROWS = 32  # enough for a smooth choice of degrees; the leak is a multiple of it
EXTRA_ROWS = 1  # per request for more information: 1/32 of the first syndrome
EXTRAS_MAX = 12
_ATTEMPTS = 200  # shifts tried for one edge before a cycle of length 4 is accepted; reached only by tiny codes
_SEED = 0x6C647063


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """A parity-check matrix: row r has the edges row_start[r] ≤ e < row_start[r + 1].

    Edge e joins check r·z + i to variable column[e]·z + (i + shift[e]) mod z. The first `base_rows` rows are the code;
    the rest are spare checks, used when decoding fails.
    """

    z: int
    base_rows: int
    columns: int
    row_start: NDArray[np.uint32]
    column: NDArray[np.uint32]
    shift: NDArray[np.uint32]

    @property
    def syndrome_bits(self) -> int:
        """Length of the first syndrome."""
        return self.base_rows * self.z


Profile = tuple[tuple[int, float], ...]  # (column degree, share of the columns)

# By the error rate they are for: from `ldpc_design`'s optimum, refined by decoding codes of 10⁵ bits, which like fewer
# columns of degree 2 than the Gaussian approximation does at low rates.
PROFILES: tuple[tuple[float, Profile], ...] = (
    (0.01, ((2, 0.120), (3, 0.550), (6, 0.120), (9, 0.120), (28, 0.090))),
    (0.02, ((2, 0.240), (3, 0.460), (7, 0.110), (9, 0.110), (26, 0.080))),
    (0.03, ((2, 0.280), (3, 0.430), (7, 0.120), (9, 0.090), (26, 0.080))),
    (0.05, ((2, 0.330), (3, 0.400), (7, 0.120), (9, 0.080), (26, 0.070))),
    (0.08, ((2, 0.426), (3, 0.323), (6, 0.058), (7, 0.128), (24, 0.065))),
)


# Short codes with few checks: many columns of degree 2 would give them words of low weight, and wrong strings.
SHORT_BITS = 20_000
SHORT_LEAK_SHARE = 0.45
SHORT_PROFILE: Profile = ((2, 0.02), (3, 0.80), (10, 0.18))


def profile_for(size_bits: int, leak_share: float) -> Profile:
    """Return the profile designed for the nearest syndrome length."""
    if size_bits < SHORT_BITS and leak_share < SHORT_LEAK_SHARE:
        return SHORT_PROFILE
    shares = (0.0975, 0.162, 0.216, 0.308, 0.42)
    return PROFILES[min(range(len(shares)), key=lambda i: abs(math.log(shares[i] / leak_share)))][1]


def column_degrees(columns: int, rows: int, profile: Profile) -> list[int]:
    """Return the degree of each column, ascending, so that the chain comes first."""
    degrees: list[int] = []
    cumulative = 0.0
    for degree, share in profile:
        cumulative += share
        degrees += [min(degree, rows)] * (min(columns, round(cumulative * columns)) - len(degrees))
    return degrees + [min(profile[-1][0], rows)] * (columns - len(degrees))


@lru_cache(maxsize=64)
def build_code(size_bits: int, syndrome_bits: int, rows: int = ROWS) -> Code:
    """Build the code for strings of `size_bits` > 0 and `syndrome_bits` of syndrome, rounded up to whole rows."""
    z = max(1, -(-syndrome_bits // rows))
    columns = -(-size_bits // z)
    builder = _Builder(rows, columns, z)
    for index, degree in enumerate(column_degrees(columns, rows, profile_for(size_bits, syndrome_bits / size_bits))):
        builder.add_column(index, degree)
    builder.add_spares(EXTRA_ROWS * EXTRAS_MAX)
    return builder.code(rows)


class _Builder:
    """Places edges one by one; draws come from one SplitMix64 stream."""

    def __init__(self, rows: int, columns: int, z: int) -> None:
        self._z = z
        self._columns = columns
        self._edges: list[list[tuple[int, int]]] = [[] for _ in range(rows)]  # per row: (column, shift)
        self._of_column: list[list[tuple[int, int]]] = [[] for _ in range(columns)]  # per column: (row, shift)
        self._differences: set[tuple[int, int, int]] = set()  # (row, row, shift difference): twice is a 4-cycle
        self._words = mix64(_SEED, 0, 1 << 16).tolist()
        self._drawn = 0

    def _draw(self, limit: int) -> int:
        self._drawn += 1
        word: int = self._words[self._drawn % len(self._words)]
        return (word >> 32) * limit >> 32

    def add_column(self, column: int, degree: int) -> None:
        """Connect a column: a chain link for degree 2, else rows of least degree, ties at random."""
        if degree == 2 and column + 1 < len(self._edges):
            chosen = [column, column + 1]
        else:
            ranked = sorted(range(len(self._edges)), key=lambda row: (len(self._edges[row]), self._draw(1 << 20)))
            chosen = ranked[:degree]
        for row in chosen:
            self._connect(row, column)

    def add_spares(self, count: int) -> None:
        """Append rows of the mean degree over columns of least degree, ties at random."""
        mean = round(sum(map(len, self._edges)) / len(self._edges))
        for _ in range(count):
            self._edges.append([])
            ranked = sorted(range(self._columns), key=lambda c: (len(self._of_column[c]), self._draw(1 << 20)))
            for column in ranked[: min(mean, self._columns)]:
                self._connect(len(self._edges) - 1, column)

    def _connect(self, row: int, column: int) -> None:
        for _ in range(_ATTEMPTS):
            shift = self._draw(self._z)
            closed = {
                (other, row, (known - shift) % self._z) if other < row else (row, other, (shift - known) % self._z)
                for other, known in self._of_column[column]
            }
            if not closed & self._differences:
                break
        self._differences |= closed
        self._of_column[column].append((row, shift))
        self._edges[row].append((column, shift))

    def code(self, base_rows: int) -> Code:
        """Return what was built."""
        counts = np.array([0] + [len(row) for row in self._edges])
        flat = np.array([edge for row in self._edges for edge in row], dtype=np.uint32).reshape(-1, 2)
        start = np.cumsum(counts).astype(np.uint32)
        column, shift = np.ascontiguousarray(flat[:, 0]), np.ascontiguousarray(flat[:, 1])
        return Code(self._z, base_rows, self._columns, start, column, shift)
