"""Entanglement over a chain of segments: Werner pairs, swapping, memories, purification, and BBM92 over the result.

Decides when a pair spans the chain and how good it is; the key is distilled from it as from BB84, by the same code.
Implements SPEC §8.2 (row S0-E10).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import require, require_range

Floats = NDArray[np.float64]

LIGHT_IN_FIBRE_KM_PER_S: Final = 2.0e5


def werner_parameter(fidelity: float) -> float:
    """Return w of the Werner state w Φ+ + (1 - w) I/4 with this fidelity to Φ+: (4F - 1)/3."""
    return (4.0 * fidelity - 1.0) / 3.0


def fidelity_of(w: float) -> float:
    """Return the fidelity to Φ+ of a Werner parameter: (1 + 3w)/4."""
    return (1.0 + 3.0 * w) / 4.0


def swapped_fidelity(first: float, second: float) -> float:
    """Return the fidelity behind an ideal Bell measurement on two Werner pairs: F1 F2 + (1 - F1)(1 - F2)/3."""
    return first * second + (1.0 - first) * (1.0 - second) / 3.0


def purified(fidelity: float) -> tuple[float, float]:
    """Return (fidelity, success probability) of one round of BBPSSW on two Werner pairs (Bennett et al. 1996)."""
    rest = (1.0 - fidelity) / 3.0
    success = fidelity**2 + 2.0 * fidelity * rest + 5.0 * rest**2
    return (fidelity**2 + rest**2) / success, success


@dataclass(frozen=True, slots=True)
class ChainParameters:
    """A repeater chain of equal segments between Alice and Bob.

    pair_efficiency: everything but the fibre between a pair's making and its heralded storage; bell_efficiency: success
    of one Bell measurement; memory_time_s: Werner parameters of waiting pairs fall by exp(-t/memory_time);
    purification_rounds: BBPSSW on every segment before swapping; alice_efficiency: her detectors.
    """

    segments: int = 2
    length_km: float = 50.0
    attenuation_db_per_km: float = 0.2
    attempt_rate_hz: float = 1e6
    pair_fidelity: float = 0.98
    pair_efficiency: float = 0.5
    bell_efficiency: float = 0.5
    memory_time_s: float = 1.0
    purification_rounds: int = 0
    alice_efficiency: float = 0.9

    def __post_init__(self) -> None:
        require_range("segments", self.segments, 1, 64)
        require_range("length_km", self.length_km, 0.0, 10_000.0, "km")
        require_range("attenuation_db_per_km", self.attenuation_db_per_km, 0.0, 10.0, "dB/km")
        require_range("attempt_rate_hz", self.attempt_rate_hz, 1.0, 1e10, "Hz")
        require_range("pair_fidelity", self.pair_fidelity, 0.25, 1.0)
        require_range("pair_efficiency", self.pair_efficiency, 1e-9, 1.0)
        require_range("bell_efficiency", self.bell_efficiency, 1e-6, 1.0)
        require_range("memory_time_s", self.memory_time_s, 1e-9, 1e9, "s")
        require_range("purification_rounds", self.purification_rounds, 0, 4)
        require_range("alice_efficiency", self.alice_efficiency, 0.0, 1.0)
        require(
            int(self.segments) == self.segments and int(self.purification_rounds) == self.purification_rounds,
            "segments and purification_rounds are whole numbers",
        )

    @property
    def attempt_probability(self) -> float:
        """Return the chance that one attempt on one segment stores a pair."""
        loss_db = self.attenuation_db_per_km * self.length_km / self.segments
        return float(self.pair_efficiency * 10.0 ** (-loss_db / 10.0))

    @property
    def attempt_period_s(self) -> float:
        """Return the time of one attempt: the source's, or the herald's way along the segment if that is longer."""
        return max(1.0 / self.attempt_rate_hz, self.length_km / self.segments / LIGHT_IN_FIBRE_KM_PER_S)

    def purification(self) -> tuple[float, list[float]]:
        """Return the fidelity of a segment's pair after purification, and the success probability of every round."""
        fidelity, successes = self.pair_fidelity, []
        for _ in range(self.purification_rounds):
            fidelity, success = purified(fidelity)
            successes.append(success)
        return fidelity, successes

    def expected_attempts(self) -> float:
        """Return the mean attempts until all segments hold a pair, without purification: Σ_t 1 - (1 - (1 - p)^t)^k.

        The largest of k geometric variables. For p below 1e-3 by the sum's integral H_k / -ln(1 - p) + 1/2, exact to
        order p; above by its terms, of which the last ones fall below 1e-17.
        """
        require(self.purification_rounds == 0, "the closed form holds without purification")
        k, rate = self.segments, -math.log1p(-min(self.attempt_probability, 1.0 - 1e-12))
        if rate < 1e-3:
            return math.fsum(1.0 / j for j in range(1, k + 1)) / rate + 0.5
        times = np.arange(math.ceil((40.0 + math.log(k)) / rate))
        return float(np.sum(-np.expm1(k * np.log1p(-np.exp(-rate * times[1:]))))) + 1.0

    def expected_pairs_per_attempt(self) -> float:
        """Return the rate of end-to-end pairs per attempt slot: all swaps must succeed, else all begins anew."""
        return float(self.bell_efficiency ** (self.segments - 1) / self.expected_attempts())

    # ---- the chain as the medium of a link (channel.Medium)

    @property
    def transmittance(self) -> float:
        """Return the mean number of end-to-end pairs per attempt of which Alice's half clicks."""
        return self.alice_efficiency * expected_pairs(self)[0]

    @property
    def background_rate_hz(self) -> float:
        """Return the background light at Bob's input: none."""
        return 0.0

    @property
    def coherence_time_s(self) -> float | None:
        """Return None: a chain does not fade."""
        return None

    def fading(self, physics: np.random.Generator, count: int) -> Floats:
        """Return the constant transmittance `count` times."""
        return np.full(count, self.transmittance)

    def fading_levels(self) -> tuple[Floats, Floats]:
        """Return one level of transmittance."""
        return np.ones(1), np.array([self.transmittance])


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds of a chain one after the other: attempts each took, whether all swaps succeeded, the pair's w then."""

    attempts: NDArray[np.int64]
    succeeded: NDArray[np.bool_]
    werner: Floats


def sample_rounds(chain: ChainParameters, count: int, physics: np.random.Generator) -> Rounds:
    """Draw `count` rounds: every segment until its pair is stored, then all swaps at once.

    A segment's attempts are exact under purification: wanting n pairs of a round takes n + NB(n, success) tries, each
    of two pairs of the round before. Pairs made early wait and decay.
    """
    fidelity, successes = chain.purification()
    wanted = np.ones((count, chain.segments), dtype=np.int64)
    for success in reversed(successes):
        wanted = 2 * (wanted + physics.negative_binomial(wanted, success))
    ready = wanted + physics.negative_binomial(wanted, chain.attempt_probability)
    attempts = ready.max(axis=1)
    waited_s = (attempts[:, None] - ready).sum(axis=1) * chain.attempt_period_s
    werner = werner_parameter(fidelity) ** chain.segments * np.exp(-waited_s / chain.memory_time_s)
    succeeded = physics.random(count) < chain.bell_efficiency ** (chain.segments - 1)
    return Rounds(attempts, succeeded, werner)


# Rounds that `expected_pairs` averages over: its relative error is below 1 %, that of 1 - w about as much.
PLANNED_ROUNDS: Final = 100_000


@lru_cache(maxsize=256)
def expected_pairs(chain: ChainParameters) -> tuple[float, float]:
    """Return (end-to-end pairs per attempt, mean Werner parameter) of a chain.

    The rate is the closed form where there is one; the rest averages rounds of a generator with a fixed seed, so that a
    plan is the same every time.
    """
    rounds = sample_rounds(chain, PLANNED_ROUNDS, np.random.default_rng(0))
    swaps = chain.bell_efficiency ** (chain.segments - 1)
    rate = swaps / float(rounds.attempts.mean())
    if chain.purification_rounds == 0:
        rate = chain.expected_pairs_per_attempt()
    return rate, float(rounds.werner.mean())


@dataclass(frozen=True, slots=True)
class ChshEstimate:
    """S = E(a,b) + E(a,b') + E(a',b) - E(a',b') and its standard error; local models keep |S| ≤ 2."""

    value: float
    standard_error: float

    def violates(self, sigmas: float = 5.0) -> bool:
        """Return whether S exceeds the classical bound by `sigmas` standard errors."""
        return self.value - sigmas * self.standard_error > 2.0


def sample_chsh(werner: Floats, physics: np.random.Generator) -> ChshEstimate:
    """Return the CHSH value of pairs with these Werner parameters, measured at the optimal angles, settings at random.

    Alice Z or X, Bob half-way: each correlation is ± w/√2. At least 8 pairs; raises ParameterError otherwise.
    """
    require_range("pairs", len(werner), 8, 1e9)
    setting = np.arange(len(werner)) % 4
    sign = np.where(setting == 3, -1.0, 1.0)
    product = np.where(physics.random(len(werner)) < (1.0 + sign * werner / math.sqrt(2.0)) / 2.0, 1.0, -1.0)
    means = [product[setting == k].mean() for k in range(4)]
    variances = [(1.0 - m**2) / np.count_nonzero(setting == k) for k, m in enumerate(means)]
    return ChshEstimate(float(means[0] + means[1] + means[2] - means[3]), math.sqrt(sum(variances)))
