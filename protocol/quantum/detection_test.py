"""Is somebody on the line? A hypothesis test with a stated false-alarm probability.

Decides between "the link behaves as planned" and "it does not", from a block's counts; what to do then is the node's
decision. Rests on tail bounds that hold for every sample size, so that the stated probability is never exceeded by an
honest link inside its tolerances. Implements SPEC §6.3 (row S0-T1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.parameters import require, require_range
from protocol.quantum.comparison import tail_exponent
from protocol.quantum.plan import Signature


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """What both ends know of a block, by intensity code: pulses emitted, detections, sifted detections, errors."""

    emitted: tuple[int, ...]
    detected: tuple[int, ...]
    sifted: tuple[int, ...]
    errors: tuple[int, ...]

    def __post_init__(self) -> None:
        columns = (self.emitted, self.detected, self.sifted, self.errors)
        require(len({len(c) for c in columns}) == 1, "counts of all intensities are needed")
        ordered = all(
            0 <= e <= s <= d <= n
            for n, d, s, e in zip(self.emitted, self.detected, self.sifted, self.errors, strict=True)
        )
        require(ordered, "counts must be ordered errors ≤ sifted ≤ detected ≤ emitted")


@dataclass(frozen=True, slots=True)
class Verdict:
    """alarm: the honest hypothesis is rejected; p_values: bound per statistic; evidence: the statistics that did it."""

    alarm: bool
    false_alarm: float
    p_values: dict[str, float]
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EavesdroppingTest:
    """Tests a block against the expected signature of its link.

    false_alarm: probability that an honest link alarms, shared equally (Bonferroni) among gains (two-sided) and QBERs
    (one-sided) of every intensity. qber_tolerance (absolute) and gain_tolerance (relative) are how far an honest link
    may drift from its plan: ageing, temperature, fading.
    """

    expected: Signature
    false_alarm: float = 1e-6
    qber_tolerance: float = 0.005
    gain_tolerance: float = 0.1

    def __post_init__(self) -> None:
        require_range("false_alarm", self.false_alarm, 1e-30, 0.5)
        require_range("qber_tolerance", self.qber_tolerance, 0.0, 0.5)
        require_range("gain_tolerance", self.gain_tolerance, 0.0, 10.0)

    def assess(self, counts: BlockCounts) -> Verdict:
        """Return the verdict on a block. Raises ParameterError where the number of intensities differs."""
        require(len(counts.emitted) == len(self.expected.gain), "counts of another number of intensities")
        p_values = {}
        for k, gain in enumerate(self.expected.gain):
            observed = (counts.detected[k], counts.emitted[k])
            p_values[f"gain_high_{k}"] = tail_above(*observed, min(1.0, gain * (1.0 + self.gain_tolerance)))
            p_values[f"gain_low_{k}"] = tail_below(*observed, gain * max(0.0, 1.0 - self.gain_tolerance))
            qber = min(1.0, self.expected.qber[k] + self.qber_tolerance)
            p_values[f"qber_{k}"] = tail_above(counts.errors[k], counts.sifted[k], qber)
        share = self.false_alarm / len(p_values)
        evidence = tuple(name for name, p in p_values.items() if p < share)
        return Verdict(bool(evidence), self.false_alarm, p_values, evidence)

    def sifted_needed(self, fraction: float, miss: float = 0.01) -> int:
        """Return how many sifted signal detections reveal intercept-resend of `fraction` of the pulses but for `miss`.

        By the same bounds: the smallest n at which the alarm threshold lies below what the attack exceeds.
        """
        require_range("fraction", fraction, 0.0, 1.0)
        honest = self.expected.qber[0] + self.qber_tolerance
        attacked = self.expected.qber[0] + fraction * 0.25 * (1.0 - 2.0 * self.expected.qber[0])
        require(attacked > honest, "an attack inside the tolerance cannot be told from drift")
        share = self.false_alarm / (3 * len(self.expected.gain))
        low, high = honest, attacked
        for _ in range(100):  # the threshold rate where both tails need equally many detections
            rate = 0.5 * (low + high)
            for_alarm = math.log(1.0 / share) / tail_exponent(rate, honest)
            for_power = math.log(1.0 / miss) / tail_exponent(rate, attacked)
            low, high = (rate, high) if for_alarm > for_power else (low, rate)
        return math.ceil(math.log(1.0 / share) / tail_exponent(high, honest))


def tail_above(count: int, trials: int, p: float) -> float:
    """Return a bound on P(at least `count` in `trials`) at probability p: exp(-n D(count/n ‖ p)) above the mean."""
    if trials == 0 or count <= trials * p:
        return 1.0
    return math.exp(-trials * tail_exponent(count / trials, p))


def tail_below(count: int, trials: int, p: float) -> float:
    """Return a bound on P(at most `count` in `trials`) at probability p."""
    if trials == 0 or count >= trials * p:
        return 1.0
    return math.exp(-trials * tail_exponent(count / trials, p))


def counts_of(
    pulses: int, probabilities: Sequence[float], detected: Sequence[int], sifted: Sequence[int], errors: Sequence[int]
) -> BlockCounts:
    """Return the counts of a block of `pulses`, with the emitted numbers at their expectation.

    Alice need not count her emissions by intensity (a function of the position chooses them); their binomial spread is
    far inside any gain tolerance.
    """
    emitted = tuple(max(round(pulses * p), d) for p, d in zip(probabilities, detected, strict=True))
    return BlockCounts(emitted, tuple(detected), tuple(sifted), tuple(errors))
