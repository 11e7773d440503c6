"""Decoy-state bounds: how many clicks were single photons, how wrong these were, and how long the key may be.

Decides lengths from counts by intensity; holds no bits. Asymptotic: Ma, Qi, Zhao, Lo, "Practical decoy state for
quantum key distribution", Phys. Rev. A 72, 012326 (2005). Finite blocks: Lim, Curty, Walenta, Xu, Zbinden, "Concise
security bounds for practical decoy-state quantum key distribution", Phys. Rev. A 89, 022307 (2014); the delivered
length uses tighter concentration bounds in the same proof and pays for its variable length. Implements
`protocol/quantum/SPEC.md` §7 (S0-E6). Functions of float arrays work element by element, the planner uses that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocol.distill.key_length import KeyLength, SecurityParameters
from protocol.parameters import require

Floats = NDArray[np.float64]

PROOF: Final = "Lim et al. 2014 (two decoys, uncertainty relation; Chernoff bounds, variable length)"

# ε_secrecy is split into this many equal parts: the failures of the concentration bounds and smoothings of the proof.
EPSILON_PARTS: Final = 21

LIM_2014: Final = "lim_2014"
CHERNOFF: Final = "chernoff"


def entropy_of(probability: ArrayLike) -> Floats:
    """Return the binary entropy in bits, one from 1/2 on: a bound on an error rate never counts as information."""
    p = np.clip(np.asarray(probability, dtype=float), 1e-300, 0.5)
    return np.asarray(-p * np.log2(p) - (1.0 - p) * np.log2(1.0 - p))


# ---- asymptotic bounds (Ma et al. 2005)


def weak_decoy_bounds(
    intensities: tuple[ArrayLike, ArrayLike],
    gains: tuple[ArrayLike, ArrayLike],
    qbers: ArrayLike,
    background: ArrayLike,
) -> tuple[Floats, Floats]:
    """Return (lower bound on the yield Y1, upper bound on the error e1) of vacuum + weak decoy, eqs. 34 and 37.

    intensities (µ, ν) and gains (Q_µ, Q_ν) of signal and weak decoy, qbers: E_ν, background: Y0 as the vacuum measures
    it.
    """
    mu, nu = (np.asarray(v, dtype=float) for v in intensities)
    gain_mu, gain_nu = (np.asarray(v, dtype=float) for v in gains)
    y0 = np.asarray(background, dtype=float)
    inner = gain_nu * np.exp(nu) - gain_mu * np.exp(mu) * nu**2 / mu**2 - (mu**2 - nu**2) / mu**2 * y0
    y1 = mu / (mu * nu - nu**2) * inner
    e1 = (np.asarray(qbers) * gain_nu * np.exp(nu) - 0.5 * y0) / (np.maximum(y1, 1e-300) * nu)
    return np.maximum(y1, 0.0), np.clip(e1, 0.0, 0.5)


def asymptotic_rate(
    mu: ArrayLike,
    gain: ArrayLike,
    qber: ArrayLike,
    single: tuple[ArrayLike, ArrayLike],
    efficiency: float,
    sifting: float,
) -> Floats:
    """Return the secret bits per pulse of GLLP with decoys: q (-Q_µ f h(E_µ) + µ e^-µ Y1 (1 - h(e1))), not below 0.

    single: (Y1, e1); efficiency: f of the error correction; sifting: q.
    """
    y1, e1 = single
    q1 = np.asarray(mu) * np.exp(-np.asarray(mu)) * np.asarray(y1)
    rate = sifting * (q1 * (1.0 - entropy_of(e1)) - np.asarray(gain) * efficiency * entropy_of(qber))
    return np.asarray(np.maximum(rate, 0.0))


# ---- finite blocks (Lim et al. 2014)


@dataclass(frozen=True, slots=True)
class DecoyBounds:
    """What the decoys certify of a block, each except with its share of ε: clicks of the key basis without a photon
    and with one (lower bounds), the same single-photon clicks of the test basis, their errors and the phase error rate
    of the key's single photons (upper bounds)."""

    key_vacuum: Floats
    key_single: Floats
    test_single: Floats
    test_single_errors: Floats
    phase_error: Floats


def hoeffding_interval(counts: Floats, failure: ArrayLike) -> tuple[Floats, Floats]:
    """Return bounds on the expected counts, Lim eqs. 3 and 5: ± sqrt(n/2 · ln(1/ε)) with the total n in every class."""
    deviation = np.sqrt(counts.sum(axis=0) / 2.0 * np.log(1.0 / np.asarray(failure)))
    return np.maximum(counts - deviation, 0.0), counts + deviation


def chernoff_interval(counts: Floats, failure: ArrayLike) -> tuple[Floats, Floats]:
    """Return bounds on the expected counts by the Chernoff bound of independent trials, each but for `failure`.

    They are the E below and above n with E - n + n ln(n/E) = ln(1/ε): a rare class pays for its own counts only, not
    for the total as in Hoeffding's bound.
    """
    exponent = np.broadcast_to(np.log(1.0 / np.asarray(failure)), counts.shape)
    n = np.maximum(counts, 1e-9)
    # Above, this much is always enough: x - n ln(1 + x/n) ≥ x² / (2 (n + x)).
    enough = n + exponent + np.sqrt(exponent**2 + 2.0 * n * exponent)

    def excess(expected: Floats) -> Floats:
        return np.asarray(expected - n + n * np.log(n / expected) - exponent)

    low = _root(excess, np.full(counts.shape, 1e-300), n)
    return np.where(counts > 0.0, low, 0.0), _root(excess, enough, n)


def _root(excess: Callable[[Floats], Floats], safe: Floats, unsafe: Floats) -> Floats:
    """Bisect between an array where excess ≥ 0 and one where it is negative; return the safe end."""
    for _ in range(100):
        middle = 0.5 * (safe + unsafe)
        good = excess(middle) >= 0.0
        safe, unsafe = np.where(good, middle, safe), np.where(good, unsafe, middle)
    return safe


_INTERVALS: Final = {LIM_2014: hoeffding_interval, CHERNOFF: chernoff_interval}


def decoy_bounds(
    intensities: Floats,
    probabilities: Floats,
    key: Floats,
    test: Floats,
    test_errors: Floats,
    epsilon_secrecy: ArrayLike,
    method: str = CHERNOFF,
) -> DecoyBounds:
    """Return what three intensities certify of a block (Lim et al. 2014, eqs. 2 to 5 and the phase error).

    All arguments are arrays of shape (3, …) in the order signal, decoy, vacuum: mean photon numbers µ1 > µ2 + µ3,
    µ2 > µ3 ≥ 0, their probabilities, clicks of the key basis, clicks and errors of the test basis.
    """
    failure = np.asarray(epsilon_secrecy) / EPSILON_PARTS
    if method == CHERNOFF:
        failure = (
            failure**2
        )  # smoothing by ε takes a tail of ε² (Tomamichel et al. 2012); the paper's ε is kept as it is
    weight = np.exp(intensities) / probabilities
    tau = [np.sum(probabilities * np.exp(-intensities) * intensities**n, axis=0) / math.factorial(n) for n in (0, 1)]
    key_vacuum, key_single = _vacuum_and_single(intensities, weight, tau, _INTERVALS[method](key, failure))
    _, test_single = _vacuum_and_single(intensities, weight, tau, _INTERVALS[method](test, failure))
    # Only counts that no source can cause promise more than there are; they must not make a key either.
    key_single = np.minimum(key_single, key.sum(axis=0))
    key_vacuum = np.minimum(key_vacuum, key.sum(axis=0) - key_single)
    test_single = np.minimum(test_single, test.sum(axis=0))
    errors_low, errors_high = (weight * bound for bound in _INTERVALS[method](test_errors, failure))
    # Of an intensity µ the weighted errors exceed those of the vacuum by at least (µ - µ3) v1/τ1. The paper uses the
    # decoy; the signal's multi-photons blur it more, but it has more clicks, and in short blocks that is worth more.
    used = slice(1, 2) if method == LIM_2014 else slice(0, 2)
    excess = (errors_high[used] - errors_low[2]) / (intensities[used] - intensities[2])
    errors = np.maximum(tau[1] * excess.min(axis=0), 0.0)
    sampling = lim_phase_error if method == LIM_2014 else sampled_phase_error
    phase_error = np.where(test_single < 1.0, 0.5, sampling(errors, test_single, key_single, failure))
    return DecoyBounds(key_vacuum, key_single, test_single, errors, phase_error)


def _vacuum_and_single(
    mu: Floats, weight: Floats, tau: Sequence[Floats], interval: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    """Return lower bounds on the clicks that came from no photon and from one (Lim eqs. 2 and 4)."""
    low, high = (weight * bound for bound in interval)
    vacuum = np.maximum(tau[0] * (mu[1] * low[2] - mu[2] * high[1]) / (mu[1] - mu[2]), 0.0)
    curvature = (mu[1] ** 2 - mu[2] ** 2) / mu[0] ** 2
    inner = low[1] - high[2] - curvature * (high[0] - vacuum / tau[0])
    single = tau[1] * mu[0] * inner / (mu[0] * (mu[1] - mu[2]) - mu[1] ** 2 + mu[2] ** 2)
    return vacuum, np.maximum(single, 0.0)


def lim_phase_error(errors: Floats, test: Floats, key: Floats, failure: ArrayLike) -> Floats:
    """Return v/s + γ(ε, v/s, s_test, s_key) as the paper prints it (after Fung, Ma, Chau 2010), at most 1/2."""
    s, k = np.maximum(test, 1e-9), np.maximum(key, 1e-9)
    rate = np.clip(errors / s, 1e-12, 0.5)
    spread = (s + k) * (1.0 - rate) * rate / (s * k * math.log(2.0))
    argument = (s + k) / (s * k * (1.0 - rate) * rate) / np.asarray(failure) ** 2
    return np.asarray(np.minimum(rate + np.sqrt(spread * np.log2(np.maximum(argument, 1.0))), 0.5))


def sampled_phase_error(errors: Floats, test: Floats, key: Floats, failure: ArrayLike) -> Floats:
    """Return the error rate of the unseen single photons by the exact tail exponent of sampling without replacement.

    If a fraction p of all key + test clicks were wrong, a random test of this size would show so few errors with
    probability at most exp(-test · D(errors/test ‖ p)) (Hoeffding 1963, also without replacement); p is where this is
    `failure`, and what the test did not show lies in the key.
    """
    s, k = np.maximum(test, 1e-9), np.maximum(key, 1e-9)
    rate = np.clip(errors / s, 0.0, 0.5)
    exponent = np.log(1.0 / np.asarray(failure)) / s

    def excess(p: Floats) -> Floats:
        wrong = np.where(rate > 0.0, rate * np.log(np.maximum(rate, 1e-300) / p), 0.0)
        return np.asarray(wrong + (1.0 - rate) * np.log((1.0 - rate) / (1.0 - p)) - exponent)

    p = _root(excess, np.full(s.shape, 1.0 - 1e-12), np.maximum(rate, 1e-15))
    return np.asarray(np.minimum(p + s * (p - rate) / k, 0.5))


def finite_length(bounds: DecoyBounds, costs_bits: ArrayLike, epsilon_secrecy: ArrayLike) -> Floats:
    """Return s0 + s1 (1 - h(φ)) - costs - 6 log2(21/ε) before rounding and not below 0 (Lim eq. 1)."""
    entropy = bounds.key_vacuum + bounds.key_single * (1.0 - entropy_of(bounds.phase_error))
    secrecy = 6.0 * np.log2(EPSILON_PARTS / np.asarray(epsilon_secrecy))
    return np.asarray(np.maximum(entropy - np.asarray(costs_bits) - secrecy, 0.0))


def decoy_key_length(
    intensities: Sequence[float],
    probabilities: Sequence[float],
    key: Sequence[int],
    test: Sequence[int],
    test_errors: Sequence[int],
    leaked_bits: int,
    tag_bits: int,
    security: SecurityParameters,
    *,
    tag_collision: float | None = None,
    intensity_fluctuation: float = 0.0,
) -> KeyLength:
    """Return the secret length of one block of decoy BB84, or 0 bits with a reason.

    Sequences are by intensity code (signal, decoy, vacuum): mean photon numbers of a Poissonian source and their
    probabilities; sifted clicks of the key basis (all of them were reconciled into the key), sifted clicks of the
    test basis and the errors among these. leaked_bits: announced by reconciliation; tag_bits: by verification, whose
    tag collides with `tag_collision` (default 2^-tag_bits). The length follows the observed counts and leak; the
    log₂ of the number of outcomes (n + 1)(leak + 1) pays for that (SPEC §7.3). Raises ParameterError on counts that
    contradict each other.
    """
    _require_counts(key, test, test_errors, min(leaked_bits, tag_bits))
    collision = 2.0**-tag_bits if tag_collision is None else tag_collision
    if collision > security.epsilon_correctness:
        return _no_key(security, f"a tag that collides with probability {collision:.1e} is too weak for the block")
    if intensity_fluctuation > 0.0:
        return _no_key(security, "the decoy bound is proved for exactly known intensities (no fluctuation) only")
    if security.preparation_quality_bits < 1.0:
        return _no_key(security, "the decoy bound is proved for exactly conjugate bases (preparation quality 1) only")
    mu, p, n, m, errors = (np.array(c, dtype=float) for c in (intensities, probabilities, key, test, test_errors))
    if min(sum(key), sum(test)) == 0 or not np.all(p > 0.0):
        return _no_key(security, "clicks of both bases and all three intensities are needed to bound single photons")
    bounds = decoy_bounds(mu, p, n, m, errors, security.epsilon_secrecy)
    single = float(bounds.key_single)
    terms = {
        "vacuum": float(bounds.key_vacuum),
        "single_photons": single,
        "phase_errors": -single * float(entropy_of(bounds.phase_error)),
        "reconciliation": -float(leaked_bits),
        "verification": -float(tag_bits),
        "secrecy": -6.0 * math.log2(EPSILON_PARTS / security.epsilon_secrecy),
        "variable_length": -math.log2((sum(key) + 1) * (leaked_bits + 1)),
    }
    length = math.floor(sum(terms.values()))
    if length > 0:
        return KeyLength(length, security.epsilon_total, PROOF, terms)
    reason = (
        f"of {sum(key)} clicks {single:.0f} are certainly single photons, with a phase error of at most "
        f"{float(bounds.phase_error):.1%}: use longer blocks or a better link"
    )
    return _no_key(security, reason, terms)


def _require_counts(key: Sequence[int], test: Sequence[int], test_errors: Sequence[int], costs: int) -> None:
    require(len(key) == len(test) == len(test_errors) == 3, "counts of three intensities are needed")
    require(min(*key, *test, *test_errors, costs) >= 0, "counts of bits are not negative")
    require(all(e <= n for e, n in zip(test_errors, test, strict=True)), "more errors than clicks in the test basis")


def _no_key(security: SecurityParameters, reason: str, terms: dict[str, float] | None = None) -> KeyLength:
    return KeyLength(0, security.epsilon_total, PROOF, terms or {}, reason)
