"""State comparison: how close the received states are to the sent ones, from sacrificed pulses and by the swap test.

Decides estimates with intervals that hold for every sample size. Implements SPEC §8.3 (row S0-E19).
"""

import math
from dataclasses import dataclass

import numpy as np

from protocol.parameters import require, require_range
from protocol.quantum.noise import Matrix
from protocol.quantum.states import overlap


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with an interval that covers the truth with the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float


def tail_exponent(observed: float, p: float) -> float:
    """Return the relative entropy D(observed ‖ p) of two coins in nats: n D bounds a binomial tail's exponent."""
    if p <= 0.0 or p >= 1.0:
        return 0.0 if observed == p else math.inf
    first = observed * math.log(observed / p) if observed > 0.0 else 0.0
    second = (1.0 - observed) * math.log((1.0 - observed) / (1.0 - p)) if observed < 1.0 else 0.0
    return first + second


def proportion(successes: int, trials: int, confidence: float = 0.99) -> Estimate:
    """Return successes/trials with the Chernoff interval: the p with trials · D(observed ‖ p) ≤ ln(2/(1 - confidence)).

    It covers the truth with at least `confidence` for any number of trials, without a normal approximation.
    """
    require_range("trials", trials, 1, 1e15)
    require(0 <= successes <= trials, f"{successes} successes in {trials} trials")
    require_range("confidence", confidence, 0.5, 1.0 - 1e-15)
    observed = successes / trials
    limit = math.log(2.0 / (1.0 - confidence)) / trials
    ends = []
    for outside in (0.0, 1.0):
        inside = observed
        for _ in range(100):
            middle = 0.5 * (outside + inside)
            if tail_exponent(observed, middle) >= limit:
                outside = middle
            else:
                inside = middle
        ends.append(outside)
    return Estimate(observed, ends[0], ends[1], confidence)


def fidelity_from_sacrificed(matches: int, sacrificed: int, confidence: float = 0.99) -> Estimate:
    """Return the mean fidelity of the received BB84 states, from pulses whose bits were compared in equal bases.

    A pulse sent as |ψ> and measured in its basis matches with probability <ψ|ρ|ψ>: the share of matches estimates it.
    """
    return proportion(matches, sacrificed, confidence)


def sample_swap_test(rho: Matrix, sigma: Matrix, shots: int, physics: np.random.Generator) -> Estimate:
    """Return the overlap tr(ρσ) that `shots` swap tests estimate: outcome 0 comes with (1 + tr(ρσ))/2."""
    zeros = int(physics.binomial(shots, min(1.0, (1.0 + overlap(rho, sigma)) / 2.0)))
    return overlap_from_swap_test(zeros, shots)


def overlap_from_swap_test(zeros: int, shots: int, confidence: float = 0.99) -> Estimate:
    """Return tr(ρσ) = 2 P(0) - 1 from counted outcomes; the interval is cut to [0, 1], where overlaps are."""
    p = proportion(zeros, shots, confidence)
    value, low, high = (min(1.0, max(0.0, 2.0 * v - 1.0)) for v in (p.value, p.low, p.high))
    return Estimate(value, low, high, confidence)
