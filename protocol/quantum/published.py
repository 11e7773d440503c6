"""Published results, recomputed with this project's bounds: the check that the bounds mean what the papers mean.

Holds the experiments' parameters and the search for the best source settings; decides nothing for a live link. The
comparison is printed by `python -m loadtest.figures` and kept in docs/physics.md. Implements SPEC §6.4.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocol.distill import decoy

Floats = NDArray[np.float64]

# Gobby, Yuan, Shields (2004) as Ma et al. 2005 use it: dB/km, misalignment, background yield, Bob's efficiency, f.
GYS_LOSS_DB_PER_KM: Final = 0.21
GYS_MISALIGNMENT: Final = 0.033
GYS_BACKGROUND: Final = 1.7e-6
GYS_EFFICIENCY: Final = 0.045
GYS_F: Final = 1.22


def gys_observed(mu: ArrayLike, length_km: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return (transmittance η, gain Q_µ, error E_µ) of the GYS experiment (Ma et al. 2005, eqs. 8 to 11)."""
    eta = GYS_EFFICIENCY * 10.0 ** (-GYS_LOSS_DB_PER_KM * np.asarray(length_km, dtype=float) / 10.0)
    light = 1.0 - np.exp(-eta * np.asarray(mu))
    gain = GYS_BACKGROUND + light
    return eta, gain, np.asarray((0.5 * GYS_BACKGROUND + GYS_MISALIGNMENT * light) / gain)


def gys_rate(mu: ArrayLike, length_km: ArrayLike, weak: float | None, efficiency: float = GYS_F) -> Floats:
    """Return secret bits per pulse with infinitely many decoys (`weak` None) or vacuum + a weak decoy of that µ."""
    eta, gain, qber = gys_observed(mu, length_km)
    if weak is None:
        y1 = GYS_BACKGROUND + eta
        single: tuple[ArrayLike, ArrayLike] = (y1, (0.5 * GYS_BACKGROUND + GYS_MISALIGNMENT * eta) / y1)
    else:
        _, weak_gain, weak_qber = gys_observed(weak, length_km)
        single = decoy.weak_decoy_bounds((mu, weak), (gain, weak_gain), weak_qber, GYS_BACKGROUND)
    return decoy.asymptotic_rate(mu, gain, qber, single, efficiency, sifting=0.5)


def gys_distance_km(mu: float, weak: float | None) -> float:
    """Return the largest distance with a positive key rate, to 10 m."""
    lengths = np.arange(100.0, 180.0, 0.01)
    return float(lengths[gys_rate(mu, lengths, weak) > 0.0].max())


def optimal_intensity(misalignment: float, efficiency: float) -> float:
    """Return the signal intensity of Ma et al. 2005 eq. 12: (1 - µ) e^-µ = f h(e) / (1 - h(e)), by bisection."""
    entropy = float(decoy.entropy_of(misalignment))
    target = efficiency * entropy / (1.0 - entropy)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (1.0 - middle) * math.exp(-middle) > target else (low, middle)
    return low


# Lim et al. 2014, section IV: 0.2 dB/km, Bob 10 %, dark 6e-7, after-pulses 4 %, misalignment 0.5 %, f 1.16, µ3 2e-4;
# ε_secrecy is 1e-15 per secret bit, ε_correctness 1e-15. The paper prints the channel's transmittance in the error
# model; only the system's, used here, gives its figures.
LIM_LOSS_DB_PER_KM: Final = 0.2
LIM_EFFICIENCY: Final = 0.1
LIM_DARK: Final = 6e-7
LIM_AFTER_PULSE: Final = 0.04
LIM_MISALIGNMENT: Final = 5e-3
LIM_F: Final = 1.16
LIM_VACUUM: Final = 2e-4
LIM_EPSILON_PER_BIT: Final = 1e-15
LIM_EPSILON_CORRECTNESS: Final = 1e-15

# Order of the settings that are optimised: Bob's and Alice's key-basis probability, P(µ1), P(µ2), µ1, µ2.
_LOW: Final = np.array([0.02, 0.005, 0.01, 0.05, 0.005])
_HIGH: Final = np.array([0.999, 0.98, 0.95, 1.0, 0.5])


def lim_rate(length_km: float, block_bits: float, settings: Floats) -> Floats:
    """Return secret bits per pulse for settings of shape (5, …), with blocks of `block_bits` sifted key bits."""
    q, p1, p2, mu1, mu2 = settings
    p3 = 1.0 - p1 - p2
    valid = (p3 > 1e-3) & (mu1 > mu2 + LIM_VACUUM) & (mu2 > LIM_VACUUM)
    intensities = np.stack([mu1, mu2, np.full_like(mu1, LIM_VACUUM)])
    probabilities = np.stack([p1, p2, np.where(valid, p3, 1.0)])
    eta = LIM_EFFICIENCY * 10.0 ** (-LIM_LOSS_DB_PER_KM * length_km / 10.0)
    clicks = 1.0 - (1.0 - 2.0 * LIM_DARK) * np.exp(-eta * intensities)
    wrong = LIM_DARK + LIM_MISALIGNMENT * (1.0 - np.exp(-eta * intensities)) + LIM_AFTER_PULSE * clicks / 2.0
    gains = probabilities * clicks * (1.0 + LIM_AFTER_PULSE)
    errors = probabilities * wrong
    pulses = block_bits / (q**2 * gains.sum(axis=0))
    test = pulses * (1.0 - q) ** 2
    leaked = LIM_F * block_bits * decoy.entropy_of(errors.sum(axis=0) / gains.sum(axis=0))
    costs = leaked + math.log2(2.0 / LIM_EPSILON_CORRECTNESS)
    length = np.full(mu1.shape, block_bits)
    for _ in range(4):  # ε is proportional to the length: a few rounds settle its logarithm
        epsilon = LIM_EPSILON_PER_BIT * np.maximum(length, 1.0)
        counts = (pulses * q**2 * gains, test * gains, test * errors)
        bounds = decoy.decoy_bounds(intensities, probabilities, *counts, epsilon, decoy.LIM_2014)
        length = decoy.finite_length(bounds, costs, epsilon)
    return np.asarray(np.where(valid, length / pulses, 0.0))


def lim_best_rate(length_km: float, block_bits: float, physics: np.random.Generator) -> tuple[float, Floats]:
    """Return the best rate over all settings and these: a random search that closes in on its best points."""
    settings = _LOW[:, None] + (_HIGH - _LOW)[:, None] * physics.random((5, 60_000))
    settings[1] = physics.random(60_000) ** 0.5
    settings[2] = (1.0 - settings[1]) * physics.random(60_000)
    for _ in range(40):
        rates = lim_rate(length_km, block_bits, settings)
        order = np.argsort(rates)[::-1][:50]
        best = settings[:, order]
        centres = best[:, physics.integers(0, 50, 4_000)]
        spread = best.std(axis=1)[:, None] * physics.standard_normal(centres.shape)
        settings = np.concatenate([best, np.clip(centres + spread, _LOW[:, None], _HIGH[:, None])], axis=1)
    rates = lim_rate(length_km, block_bits, settings)
    return float(rates.max()), settings[:, int(rates.argmax())]
