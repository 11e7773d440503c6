"""Which method reconciles a block best: "auto", with its reason (SPEC §5.5).

The figures below were measured with `loadtest.bench_distill` on one core of a 2026 server with the kernels, both sides
counted. They decide speed only: every method is correct, and the key length subtracts what was leaked, not what was
expected. The original Cascade is not among them: it is there to be compared with, leaves errors in one megabit block
of a hundred, and "cascade-fast" leaks less in as many round trips. Both sides must choose from equal inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from protocol.distill.key_length import binary_entropy
from protocol.parameters import ParameterError, require_range

# Seconds of the other stages per bit: estimation, verification and amplification of both sides.
OTHER_STAGES_S_PER_BIT = 1.0e-8


@dataclass(frozen=True, slots=True)
class Measured:
    """What a method cost: efficiency by QBER (interpolated), round trips by size, seconds by bit and QBER.

    `round_trips` are at 10⁴ and 10⁶ bits; `size_bits` is the range of blocks that the method suits.
    """

    method: str
    efficiency: Sequence[tuple[float, float]]
    fixed_leak_bits: float
    round_trips: tuple[float, float]
    s_per_bit: float
    s_per_error: float
    size_bits: tuple[int, int]

    def efficiency_at(self, size_bits: int, qber: float) -> float:
        """Return the expected leak / (n·h)."""
        points = self.efficiency
        value = points[-1][1]
        for (low, below), (high, above) in pairwise(points):
            if qber <= high:
                share = (max(qber, low) - low) / (high - low)
                value = below + share * (above - below)
                break
        return value + self.fixed_leak_bits / (size_bits * binary_entropy(min(0.5, max(qber, 1e-3))))

    def round_trips_at(self, size_bits: int) -> float:
        """Return the expected round trips, by the logarithm of the size."""
        share = min(1.0, max(0.0, (math.log10(max(1, size_bits)) - 4) / 2))
        return self.round_trips[0] + share * (self.round_trips[1] - self.round_trips[0])


MEASURED: tuple[Measured, ...] = (
    Measured(
        "cascade",
        ((0.01, 1.047), (0.02, 1.046), (0.03, 1.043), (0.05, 1.054), (0.08, 1.064), (0.11, 1.08)),
        24,
        (110, 230),
        4e-9,
        1.3e-7,
        (256, 1 << 26),
    ),
    Measured(
        "cascade-fast",
        ((0.01, 1.076), (0.02, 1.084), (0.03, 1.070), (0.05, 1.077), (0.08, 1.121), (0.11, 1.14)),
        24,
        (45, 78),
        3.2e-9,
        1.1e-7,
        (1, 1 << 26),
    ),
    Measured(
        "ldpc",
        ((0.01, 1.19), (0.02, 1.14), (0.03, 1.125), (0.05, 1.11), (0.08, 1.10), (0.11, 1.10)),
        0,
        (1.1, 1.5),
        3e-7,
        0.0,
        (50_000, 1 << 26),
    ),
    Measured(
        "parity",
        ((0.01, 1.75), (0.02, 1.5), (0.05, 1.33), (0.08, 1.25), (0.11, 1.22)),
        0,
        (1.1, 1.1),
        6e-7,
        0.0,
        (512, 16_384),
    ),
)
_S_PER_ROUND_TRIP = 1.2e-5  # of both sides' computing, beside the network's


@dataclass(frozen=True, slots=True)
class Choice:
    """The method, what it is expected to cost, and why it was chosen, for a log line."""

    method: str
    efficiency: float
    round_trips: float
    duration_s: float
    reason: str


def choose_method(
    size_bits: int, qber: float, *, round_trip_s: float = 0.0, max_efficiency: float | None = None
) -> Choice:
    """Choose the method with the most secret bits per second of computing and waiting for one block.

    `max_efficiency` admits only methods expected to leak no more than that; ParameterError if there is none. Where no
    key can come out anyway, the least leak decides.
    """
    require_range("qber", qber, 0.0, 1.0)
    require_range("round_trip_s", round_trip_s, 0.0, 3600.0)
    candidates = [_expected(m, size_bits, qber, round_trip_s) for m in MEASURED]
    fitting = [c for c, m in zip(candidates, MEASURED, strict=True) if m.size_bits[0] <= size_bits <= m.size_bits[1]]
    allowed = [c for c in fitting or candidates[:2] if max_efficiency is None or c.efficiency <= max_efficiency]
    if not allowed:
        least = min(c.efficiency for c in fitting or candidates[:2])
        raise ParameterError(f"max_efficiency is {max_efficiency}; the least for this block is {least:.3f}")
    best = max(allowed, key=lambda c: (_secret_rate(c, size_bits, qber), -c.efficiency))
    cap = "" if max_efficiency is None else f", of those with f ≤ {max_efficiency:g}"
    reason = (
        f"{best.method} gives the most key per second{cap}: n = {size_bits}, QBER {qber:.2%}, round trip "
        f"{round_trip_s * 1e3:g} ms; expected f {best.efficiency:.3f}, {best.round_trips:.0f} round trips"
    )
    return Choice(best.method, best.efficiency, best.round_trips, best.duration_s, reason)


def _expected(measured: Measured, size_bits: int, qber: float, round_trip_s: float) -> Choice:
    trips = measured.round_trips_at(size_bits)
    computing = size_bits * (measured.s_per_bit + qber * measured.s_per_error + OTHER_STAGES_S_PER_BIT)
    duration = computing + trips * (round_trip_s + _S_PER_ROUND_TRIP)
    return Choice(measured.method, measured.efficiency_at(max(1, size_bits), qber), trips, duration, "")


def _secret_rate(choice: Choice, size_bits: int, qber: float) -> float:
    """Asymptotic secret bits per second; 0 where the leak eats the key."""
    entropy = binary_entropy(min(qber, 0.5))
    return max(0.0, size_bits * (1 - entropy - choice.efficiency * entropy)) / choice.duration_s
