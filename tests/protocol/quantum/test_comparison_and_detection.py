"""State comparison and the eavesdropping test: coverage, false alarms, power."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocol.parameters import ParameterError
from protocol.quantum import comparison, plan, states
from protocol.quantum.detection_test import BlockCounts, EavesdroppingTest, counts_of, tail_above, tail_below
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import LinkParameters
from protocol.quantum.noise import NoiseParameters


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.9, 0.99, 0.999999]))
def test_proportion_contains_clopper_pearson(trials, rate, confidence):
    """The exact interval lies inside ours, so that ours covers at least as often."""
    successes = round(rate * trials)
    ours = comparison.proportion(successes, trials, confidence)
    exact = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert ours.low <= exact.low + 1e-9 and ours.high >= exact.high - 1e-9
    assert ours.low <= ours.value <= ours.high


def test_fidelity_of_a_noisy_channel_is_found():
    noise = NoiseParameters(depolarising=0.1)
    ket = states.bb84_state(1, 0)
    truth = states.fidelity(noise.apply(states.density(ket)), ket)
    matches = int(np.random.default_rng(1).binomial(20_000, truth))
    found = comparison.fidelity_from_sacrificed(matches, 20_000)
    assert found.low < truth < found.high and found.high - found.low < 0.02


def test_swap_test_circuit_and_sampler_agree():
    physics = np.random.default_rng(2)
    for depolarised, angle in ((0.0, 0.0), (0.3, 0.4), (1.0, 1.0)):
        rho = states.density(states.bb84_state(0, 0))
        sigma = NoiseParameters(depolarising=depolarised, rotation_rad=angle).apply(rho)
        overlap = states.overlap(rho, sigma)
        assert states.swap_test_probability(rho, sigma) == pytest.approx((1 + overlap) / 2)
        found = comparison.sample_swap_test(rho, sigma, 20_000, physics)
        assert found.low - 1e-9 <= overlap <= found.high + 1e-9


@given(st.integers(1, 3000), st.floats(0.001, 0.999), st.floats(0, 1))
def test_tails_bound_the_binomial(trials, p, position):
    count = round(position * trials)
    assert tail_above(count, trials, p) >= stats.binom.sf(count - 1, trials, p) * (1 - 1e-9)
    assert tail_below(count, trials, p) >= stats.binom.cdf(count, trials, p) * (1 - 1e-9)


def sampled_counts(link, pulses, physics, attack=None):
    """Block counts drawn from a signature (agreement of signature and emulator is tested elsewhere)."""
    signature = plan.expected_signature(link, attack)
    chances = link.source.intensity_probabilities
    detected = [physics.poisson(pulses * p * g) for p, g in zip(chances, signature.gain, strict=True)]
    shares = [min(1.0, sum(row) / g) if g else 0.0 for row, g in zip(signature.basis_gain, signature.gain, strict=True)]
    sifted = [physics.binomial(d, s) for d, s in zip(detected, shares, strict=True)]
    errors = [physics.binomial(s, q) for s, q in zip(sifted, signature.qber, strict=True)]
    return counts_of(pulses, chances, *([int(v) for v in column] for column in (detected, sifted, errors)))


def test_honest_links_hardly_ever_alarm():
    link = LinkParameters()
    test = EavesdroppingTest(plan.expected_signature(link), false_alarm=0.05, qber_tolerance=0.0, gain_tolerance=0.0)
    physics = np.random.default_rng(3)
    alarms = sum(test.assess(sampled_counts(link, 10_000_000, physics)).alarm for _ in range(1000))
    assert alarms <= 0.05 * 1000 + 5 * np.sqrt(50)


@pytest.mark.parametrize(
    ("kind", "parameters", "evidence"),
    [
        ("intercept_resend", {"fraction": 0.2}, "qber_0"),
        ("photon_number_splitting", {"transmittance": 0.2}, "gain_low_1"),
        ("detector_blinding", {}, "gain_low_2"),
        ("jamming", {"level_hz": 1e8}, "gain_high_2"),
    ],
)
def test_attacks_are_found_with_their_evidence(kind, parameters, evidence):
    link = LinkParameters()
    test = EavesdroppingTest(plan.expected_signature(link))
    eve = make_eavesdropper(kind, parameters, np.random.default_rng(1))
    verdict = test.assess(sampled_counts(link, 30_000_000, np.random.default_rng(4), eve))
    assert verdict.alarm and evidence in verdict.evidence


def test_announced_power_is_reached():
    link = LinkParameters()
    signature = plan.expected_signature(link)
    test = EavesdroppingTest(signature)
    needed = test.sifted_needed(fraction=0.25, miss=0.05)
    eve = make_eavesdropper("intercept_resend", {"fraction": 0.25}, np.random.default_rng(1))
    qber = plan.expected_signature(link, eve).qber[0]
    physics, emitted, missed = np.random.default_rng(5), 10 * needed, 0
    for _ in range(400):
        errors = int(physics.binomial(needed, qber))
        counts = BlockCounts((emitted, 0, 0), (needed, 0, 0), (needed, 0, 0), (errors, 0, 0))
        missed += "qber_0" not in test.assess(counts).evidence
    assert missed <= 0.05 * 400 + 15
    with pytest.raises(ParameterError, match="tolerance"):
        test.sifted_needed(fraction=0.01)


def test_contradictory_counts_are_refused():
    with pytest.raises(ParameterError):
        BlockCounts((1,), (2,), (0,), (0,))
    test = EavesdroppingTest(plan.expected_signature(LinkParameters()))
    with pytest.raises(ParameterError):
        test.assess(BlockCounts((1,), (0,), (0,), (0,)))
