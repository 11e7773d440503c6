"""What may be concluded from repeated runs: intervals, tests with effect sizes, exponents, trends, proportions.

Chooses the methods and what they are told; the methods themselves are SciPy's and statsmodels'. The unit is the
repetition: thousands of requests of one run share its luck, so they are never treated as independent.
"""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE: Final = 0.95
ALPHA: Final = 0.05
RANKS_FROM: Final = 10
"""Repetitions on each side from which ranks decide: Mann-Whitney's smallest p is then 1e-5, which survives a correction
for hundreds of figures; with five a side it is 0.008 and could never. Fewer are compared by Welch's test, which takes
the repetitions' figures (medians and rates of many requests, so nearly normal) at their means."""
BOOTSTRAP_SAMPLES: Final = 2000
TREND_BINS_MAX: Final = 32
TREND_BINS_MIN: Final = 8
TREND_ALPHA: Final = 0.01
_Series = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval; no bounds (None) where there is too little data for any."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two samples: medians, the relative change from the first, the p-value, and how far apart they lie.

    `cliffs_delta` is the chance that a value of the second exceeds one of the first, less the reverse; `hedges_g` the
    difference of the means in pooled standard deviations, None without spread. `p` is None with fewer than two
    values on a side.
    """

    first: Interval
    second: Interval
    change: float | None
    p: float | None
    test: str
    cliffs_delta: float
    hedges_g: float | None

    @property
    def is_tested(self) -> bool:
        """Whether a test made the p-value; values that are all equal need none."""
        return not self.test.startswith("none")


@dataclass(frozen=True, slots=True)
class Exponent:
    """y ∝ size^exponent: Theil-Sen's estimate and interval, and the least-squares line beside it."""

    exponent: float
    low: float
    high: float
    least_squares: float
    least_squares_low: float
    least_squares_high: float
    r_squared: float
    sizes: int


@dataclass(frozen=True, slots=True)
class Trend:
    """Whether a series grew: slope per hour, relative growth over the series, and the p-value of "no trend"."""

    slope_per_hour: float
    low_per_hour: float
    high_per_hour: float
    growth: float
    p: float
    bins: int

    @property
    def grows(self) -> bool:
        """Whether there is growth beyond noise: significant, upwards, and by more than a hundredth of the level."""
        return self.grows_beyond(0.01)

    def grows_beyond(self, share: float) -> bool:
        """Whether there is significant growth, over the whole series, of more than a share of its level."""
        return self.p < TREND_ALPHA and self.slope_per_hour > 0 and self.growth > share


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the median with its bootstrap interval (percentile method: the median is not smooth enough for BCa)."""
    if not values:
        raise ValueError("no values have no median")
    middle = statistics.median(values)
    if len(values) < 2:
        return Interval(middle, None, None, len(values))
    if min(values) == max(values):
        return Interval(middle, middle, middle, len(values))
    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.median,
        n_resamples=BOOTSTRAP_SAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(middle, float(found.low), float(found.high), len(values))


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two samples: by ranks (Mann-Whitney) from ten repetitions a side, else by means (Welch)."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    base = statistics.median(first)
    change = (statistics.median(second) - base) / abs(base) if base else None
    p, test = _p_value(a, b)
    signs = np.sign(b[:, None] - a[None, :])
    return Comparison(
        median_interval(first), median_interval(second), change, p, test, float(signs.mean()), _hedges_g(a, b)
    )


def _p_value(a: _Series, b: _Series) -> tuple[float | None, str]:
    if min(len(a), len(b)) < 2:
        return None, "none: one repetition"
    if np.ptp(np.concatenate((a, b))) == 0:
        return 1.0, "none: all equal"
    if min(len(a), len(b)) >= RANKS_FROM:
        together = np.concatenate((a, b))
        exact = len(together) <= 100 and len(np.unique(together)) == len(together)
        found = stats.mannwhitneyu(a, b, alternative="two-sided", method="exact" if exact else "asymptotic")
        return float(found.pvalue), "Mann-Whitney"
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return None, "none: no spread"  # too few values that do not vary: Welch would divide by nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that are equal but for their last digits
        p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return (p, "Welch") if math.isfinite(p) else (None, "none: no spread")


def _hedges_g(a: _Series, b: _Series) -> float | None:
    freedom = len(a) + len(b) - 2
    if min(len(a), len(b)) < 2:
        return None
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / freedom)
    return float((b.mean() - a.mean()) / pooled * (1 - 3 / (4 * freedom - 1))) if pooled > 0 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for being many (Holm's method)."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def proportion(successes: int, trials: int) -> Interval:
    """Return a rate with Wilson's interval. Raises ValueError for more successes than trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no rate")
    low, high = proportion_confint(successes, trials, alpha=1 - CONFIDENCE, method="wilson")
    return Interval(successes / trials, max(0.0, float(low)), min(1.0, float(high)), trials)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> Exponent | None:
    """Fit value ∝ size^exponent on logarithmic axes; None with fewer than three sizes or values not above 0."""
    usable = [(math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if n > 0 and v > 0]
    different = len({x for x, _ in usable})
    if different < 3:
        return None
    x, y = np.array([x for x, _ in usable]), np.array([y for _, y in usable])
    if np.ptp(y) == 0:
        return Exponent(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, different)
    robust = stats.theilslopes(y, x, alpha=CONFIDENCE)
    line = stats.linregress(x, y)
    spread = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)) * float(line.stderr)
    return Exponent(
        float(robust.slope),
        float(robust.low_slope),
        float(robust.high_slope),
        float(line.slope),
        float(line.slope) - spread,
        float(line.slope) + spread,
        float(line.rvalue) ** 2,
        different,
    )


def trend(times_s: Sequence[float], values: Sequence[float]) -> Trend | None:
    """Test a series for growth, careful about neighbours being alike; None where it is too short (8 bins).

    Samples are averaged in up to 32 equal stretches of time. The slope is Theil-Sen's; the p-value is the larger of
    two: Kendall's tau of the stretches against time (the Mann-Kendall test), and a least-squares slope whose error
    is Newey-West's, which allows for autocorrelation.
    """
    x, y = _binned(np.asarray(times_s, dtype=float), np.asarray(values, dtype=float))
    if len(x) < TREND_BINS_MIN:
        return None
    if np.ptp(y) == 0:
        return Trend(0.0, 0.0, 0.0, 0.0, 1.0, len(x))
    slope = stats.theilslopes(y, x, alpha=CONFIDENCE)
    lags = max(1, int(4 * (len(x) / 100) ** (2 / 9)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a perfect line has no residuals
        fitted = sm.OLS(y, sm.add_constant(x)).fit(cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": True})
        p_line = float(fitted.pvalues[1])
    p_ranks = float(stats.kendalltau(x, y).pvalue)
    level = float(np.median(np.abs(y))) or 1.0
    return Trend(
        float(slope.slope) * 3600,
        float(slope.low_slope) * 3600,
        float(slope.high_slope) * 3600,
        float(slope.slope) * float(x[-1] - x[0]) / level,
        max(p_ranks, p_line if math.isfinite(p_line) else 0.0),
        len(x),
    )


def _binned(times_s: _Series, values: _Series) -> tuple[_Series, _Series]:
    """Average a series in equal stretches of time; empty ones are left out."""
    if len(times_s) < TREND_BINS_MIN or np.ptp(times_s) == 0:
        return times_s[:0], values[:0]
    count = min(TREND_BINS_MAX, len(times_s))
    edges = np.linspace(times_s.min(), times_s.max(), count + 1)
    which = np.clip(np.searchsorted(edges, times_s, side="right") - 1, 0, count - 1)
    held = np.unique(which)
    x = np.array([times_s[which == one].mean() for one in held])
    return x, np.array([values[which == one].mean() for one in held])
