"""The statistics say what is there, and nothing where nothing is: known answers, and error rates on seeded noise."""

import math
import statistics as plain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import statistics as judged

values = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(sample=values)
def test_the_median_lies_in_its_interval(sample: list[float]) -> None:
    found = judged.median_interval(sample)
    assert found.value == plain.median(sample) and found.count == len(sample)
    if len(sample) == 1:
        assert found.low is None and found.high is None
    else:
        assert found.low is not None and found.high is not None
        assert (
            min(sample) * (1 - 1e-12) <= found.low <= found.value * (1 + 1e-12)
            and found.value * (1 - 1e-12) <= found.high
        )


@settings(max_examples=25, deadline=None)
@given(first=values, second=values)
def test_cliffs_delta_counts_pairs(first: list[float], second: list[float]) -> None:
    found = judged.compare(first, second)
    wins = sum((b > a) - (b < a) for a in first for b in second)
    assert found.cliffs_delta == pytest.approx(wins / (len(first) * len(second)))
    back = judged.compare(second, first)
    assert back.cliffs_delta == pytest.approx(-found.cliffs_delta)
    assert back.p == (None if found.p is None else pytest.approx(found.p))


def test_a_comparison_by_hand() -> None:
    found = judged.compare([10.0, 11.0, 12.0], [20.0, 21.0, 22.0])
    assert found.test == "Welch" and found.change == pytest.approx(10 / 11)
    assert found.p == pytest.approx(0.000255, rel=0.01)  # t = 12.247 at 4 degrees of freedom
    assert found.cliffs_delta == 1.0
    assert found.hedges_g == pytest.approx(10 * (1 - 3 / 15))
    ranks = judged.compare(list(range(10)), list(range(10, 20)))
    assert ranks.test == "Mann-Whitney" and ranks.p == pytest.approx(2 / math.comb(20, 10))


def test_too_little_says_nothing() -> None:
    assert judged.compare([1.0], [2.0, 3.0]).p is None
    assert judged.compare([1.0, 1.0], [2.0, 2.0]).p is None
    assert judged.compare([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert judged.compare([0.0, 0.0], [1.0, 2.0]).change is None
    assert judged.exponent([4, 8, 8], [1, 2, 3]) is None
    assert judged.trend([1.0, 2.0], [1.0, 2.0]) is None
    assert judged.trend([5.0] * 20, [1.0] * 20) is None
    with pytest.raises(ValueError):
        judged.median_interval([])
    with pytest.raises(ValueError):
        judged.proportion(3, 2)


def test_holm_steps_down() -> None:
    assert judged.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert judged.holm([]) == []


def test_wilsons_interval_by_its_formula() -> None:
    successes, trials, z = 98, 100, 1.959964
    p = successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    found = judged.proportion(successes, trials)
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    none = judged.proportion(0, 50)
    assert none.low == pytest.approx(0.0, abs=1e-12) and 0.05 < (none.high or 0) < 0.1


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_an_exponent_is_found_again(power: float) -> None:
    chance = np.random.default_rng(1)
    sizes = [n for n in (4, 8, 16, 32, 64, 128, 200) for _ in range(3)]
    found = judged.exponent(sizes, [n**power * math.exp(chance.normal(0, 0.05)) for n in sizes])
    assert found is not None and found.sizes == 7
    assert found.low <= power <= found.high and found.exponent == pytest.approx(power, abs=0.05)
    assert found.least_squares == pytest.approx(power, abs=0.05)


def test_an_outlier_moves_the_line_but_not_the_exponent() -> None:
    sizes = [4, 8, 16, 32, 64, 128]
    found = judged.exponent(sizes, [*(float(n) for n in sizes[:-1]), 12_800.0])
    assert found is not None
    assert found.exponent == pytest.approx(1.0, abs=0.15) and found.least_squares > 1.5


def test_noise_with_memory_rarely_counts_as_growth() -> None:
    """AR(1) noise, as memory and latency have: false growth in no more than a few of a hundred series."""
    chance = np.random.default_rng(7)
    wrong = 0
    for _ in range(100):
        noise = [0.0]
        for _ in range(359):
            noise.append(0.7 * noise[-1] + chance.normal(0, 1))
        found = judged.trend(list(range(360)), [100 + 3 * each for each in noise])
        wrong += found is not None and found.grows
    assert wrong <= 3


def test_a_leak_is_seen() -> None:
    chance = np.random.default_rng(7)
    times = np.arange(0, 1800, 5.0)
    leaking = 20 + 2 * times / 1800 + chance.normal(0, 0.5, len(times))
    found = judged.trend(times.tolist(), leaking.tolist())
    assert found is not None and found.grows
    assert found.low_per_hour <= 4 <= found.high_per_hour and found.growth == pytest.approx(0.1, rel=0.2)
    steady = judged.trend(times.tolist(), [20.0] * len(times))
    assert steady is not None and not steady.grows
    falling = judged.trend(times.tolist(), (-leaking).tolist())
    assert falling is not None and not falling.grows
    line = judged.trend(times.tolist(), times.tolist())
    assert line is not None and line.grows
