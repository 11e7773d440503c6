"""Decoy bounds: against simulated truth, a scalar second implementation, exact tails and published figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protocol.distill import decoy
from protocol.distill.key_length import SecurityParameters
from protocol.parameters import ParameterError
from protocol.quantum import published

MU = np.array([0.5, 0.1, 0.0])
P = np.array([0.7, 0.2, 0.1])
SECURITY = SecurityParameters(epsilon_secrecy=1e-10, epsilon_correctness=1e-15)


def simulated_block(pulses, transmittance, dark, error, physics):
    """Return per-photon-number truth and observed counts of one basis: counts[3], errors[3], singles, wrong singles."""
    counts, errors, singles, wrong = np.zeros(3), np.zeros(3), 0, 0
    for k in range(3):
        for n in range(8):
            sent = physics.poisson(pulses * P[k] * stats.poisson.pmf(n, MU[k]))
            clicks = physics.binomial(sent, 1 - (1 - dark) * (1 - transmittance) ** n)
            bad = physics.binomial(clicks, 0.5 if n == 0 else error)
            counts[k] += clicks
            errors[k] += bad
            if n == 1:
                singles += clicks
                wrong += bad
    return counts, errors, singles, wrong


@pytest.mark.parametrize("method", [decoy.LIM_2014, decoy.CHERNOFF])
def test_bounds_hold_on_simulated_blocks(method):
    physics = np.random.default_rng(3)
    for _ in range(60):
        key, _, key_single, key_wrong = simulated_block(3e8, 0.02, 1e-5, 0.02, physics)
        test, errors, test_single, test_wrong = simulated_block(5e7, 0.02, 1e-5, 0.02, physics)
        bounds = decoy.decoy_bounds(MU, P, key, test, errors, 1e-6, method)
        assert 0 < bounds.key_single <= key_single
        assert bounds.test_single <= test_single
        assert bounds.test_single_errors >= test_wrong
        assert bounds.phase_error >= key_wrong / key_single
        assert bounds.phase_error < 0.2


def test_chernoff_is_tighter_than_the_paper_where_counts_are_few():
    key, _, _, _ = simulated_block(3e6, 0.02, 1e-5, 0.02, np.random.default_rng(1))
    loose, tight = (interval(key, 1e-10) for interval in (decoy.hoeffding_interval, decoy.chernoff_interval))
    assert np.all(tight[0][1:] >= loose[0][1:]) and np.all(tight[1][1:] <= loose[1][1:])


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1e-6, 1e-10]))
def test_chernoff_interval_covers_the_exact_poisson_tail(n, failure):
    low, high = decoy.chernoff_interval(np.array([float(n)]), failure)
    assert low[0] <= n <= high[0]
    assert stats.poisson.cdf(n, high[0]) <= failure * (1 + 1e-6)
    if n:
        assert stats.poisson.sf(n - 1, low[0]) <= failure * (1 + 1e-6)


@given(st.integers(50, 3000), st.integers(50, 3000), st.floats(0, 0.3))
def test_phase_error_covers_the_exact_hypergeometric_tail(test, key, rate):
    """Were the key wrong more often than the bound, the test had shown so few errors with less than ε."""
    errors, failure = int(rate * test), 1e-4
    bound = float(
        decoy.sampled_phase_error(np.array(float(errors)), np.array(float(test)), np.array(float(key)), failure)
    )
    wrong_in_key = math.ceil(bound * key + 1e-9)
    if bound < 0.5 and wrong_in_key <= key:
        assert stats.hypergeom.cdf(errors, test + key, errors + wrong_in_key, test) <= failure * (1 + 1e-6)


def scalar_lim(key, test, errors, epsilon):
    """Equations 1 to 5 of the paper, written down once more with plain floats."""

    def expected(counts, k, sign):
        return math.exp(MU[k]) / P[k] * (counts[k] + sign * math.sqrt(sum(counts) / 2 * math.log(21 / epsilon)))

    tau0 = sum(math.exp(-m) * p for m, p in zip(MU, P, strict=True))
    tau1 = sum(math.exp(-m) * m * p for m, p in zip(MU, P, strict=True))
    m1, m2, m3 = MU

    def vacuum(c):
        return max(0.0, tau0 * (m2 * expected(c, 2, -1) - m3 * expected(c, 1, 1)) / (m2 - m3))

    def single(c):
        bracket = expected(c, 1, -1) - expected(c, 2, 1)
        bracket -= (m2**2 - m3**2) / m1**2 * (expected(c, 0, 1) - vacuum(c) / tau0)
        return tau1 * m1 * bracket / (m1 * (m2 - m3) - m2**2 + m3**2)

    v = tau1 * (expected(errors, 1, 1) - max(0.0, expected(errors, 2, -1))) / (m2 - m3)
    c, d = single(test), single(key)
    b = v / c
    gamma = math.sqrt(
        (c + d) * (1 - b) * b / (c * d * math.log(2)) * math.log2((c + d) / (c * d * (1 - b) * b) * 21**2 / epsilon**2)
    )
    phi = b + gamma
    entropy = -phi * math.log2(phi) - (1 - phi) * math.log2(1 - phi)
    return vacuum(key) + d * (1 - entropy) - 6 * math.log2(21 / epsilon)


def test_lim_against_the_scalar_second_implementation():
    physics = np.random.default_rng(5)
    for _ in range(5):
        key, _, _, _ = simulated_block(3e8, 0.02, 1e-4, 0.02, physics)
        test, errors, _, _ = simulated_block(1e8, 0.02, 1e-4, 0.02, physics)
        bounds = decoy.decoy_bounds(MU, P, key, test, errors, 1e-9, decoy.LIM_2014)
        length = decoy.finite_length(bounds, 0.0, 1e-9)
        assert float(length) == pytest.approx(scalar_lim(key, test, errors, 1e-9), rel=1e-9)


def key_length(key, test, errors, leaked=0, tag=64, security=SECURITY):
    columns = ([int(v) for v in column] for column in (key, test, errors))
    return decoy.decoy_key_length(tuple(MU), tuple(P), *columns, leaked, tag, security)


def test_key_length_of_a_good_block_is_the_sum_of_its_terms():
    physics = np.random.default_rng(6)
    key, _, single, _ = simulated_block(3e8, 0.02, 1e-5, 0.01, physics)
    test, errors, _, _ = simulated_block(3e7, 0.02, 1e-5, 0.01, physics)
    length = key_length(key, test, errors, leaked=100_000)
    assert 0 < length.bits < single
    assert length.bits == math.floor(sum(length.terms_bits.values()))
    assert length.terms_bits["reconciliation"] == -100_000 and length.terms_bits["verification"] == -64
    assert key_length(key, test, errors, leaked=100_001).bits in (length.bits - 1, length.bits - 2)
    assert length.epsilon_total == pytest.approx(1e-10, rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 10**7), min_size=3, max_size=3),
    st.lists(st.integers(0, 10**6), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.integers(0, 10**6),
)
def test_any_counts_give_a_length_below_the_clicks_or_a_reason(key, test, rates, leaked):
    errors = [int(n * rate) for n, rate in zip(test, rates, strict=True)]
    length = key_length(key, test, errors, leaked)
    assert 0 <= length.bits <= max(0, sum(key) - leaked)
    assert (length.bits == 0) == (length.reason is not None)


def test_refusals():
    good = ([10**6] * 3, [10**5] * 3, [100] * 3)
    with pytest.raises(ParameterError):
        key_length(good[0], good[1], [10**6] * 3)
    with pytest.raises(ParameterError):
        key_length([-1, 1, 1], good[1], good[2])
    assert "tag" in key_length(*good, tag=8).reason
    assert key_length([0, 0, 0], good[1], good[2]).bits == 0
    drifting = decoy.decoy_key_length(tuple(MU), tuple(P), *good, 0, 64, SECURITY, intensity_fluctuation=0.01)
    assert drifting.bits == 0 and "fluctuation" in drifting.reason


# ---- published results (docs/physics.md has the table)


def test_gys_of_ma_et_al_2005():
    assert published.optimal_intensity(published.GYS_MISALIGNMENT, 1.22) == pytest.approx(0.48, abs=0.005)
    assert published.optimal_intensity(published.GYS_MISALIGNMENT, 1.0) == pytest.approx(0.54, abs=0.005)
    assert published.gys_distance_km(0.48, None) == pytest.approx(142.05, abs=0.5)
    assert published.gys_distance_km(0.48, 0.05) == pytest.approx(140.55, abs=0.5)


@pytest.mark.slow
def test_lim_et_al_2014():
    physics = np.random.default_rng(2)
    short, long = (published.lim_best_rate(100.0, n, physics)[0] for n in (1e7, 1e9))
    assert long / short == pytest.approx(1.75, abs=0.06)
    reach = [max(published.lim_best_rate(km, 1e4, physics)[0] for _ in range(3)) for km in (126.0, 134.0)]
    assert reach[0] > 0.0 and reach[1] == 0.0
