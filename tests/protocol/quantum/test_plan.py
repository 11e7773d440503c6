"""The planner against the emulator, eavesdroppers against their signatures, and the planner's own edges."""

import math

import numpy as np
import pytest

from protocol.distill import decoy
from protocol.entropy import SeededEntropy
from protocol.parameters import ParameterError
from protocol.quantum import plan
from protocol.quantum.eavesdropper import Combined, eavesdropper_kinds, make_eavesdropper
from protocol.quantum.link import Detections, LinkParameters, Receiver, Transmitter


def emulate(parameters, pulses, seed=1, attack=None):
    alice = Transmitter(parameters, SeededEntropy(b"a%d" % seed), np.random.default_rng([seed, 1]))
    bob = Receiver(parameters, SeededEntropy(b"b%d" % seed), np.random.default_rng([seed, 2]))
    alice.attack = attack
    parts = [bob.measure(light) for light in alice.emit_chunks(pulses)]
    found = Detections(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("positions", "basis", "bit")))
    return alice.choices(found.positions), found, bob


def assert_agrees(parameters, pulses, attack=None, sigmas=4.5, seed=1):
    """Every gain and QBER per intensity and basis lies within its confidence interval (4.5σ: 7e-6 per comparison)."""
    expected = plan.expected_signature(parameters, attack)
    choices, found, _ = emulate(parameters, pulses, seed, attack)
    for k, chance in enumerate(parameters.source.intensity_probabilities):
        of_k = choices.intensity == k
        within(of_k.sum(), pulses * chance * expected.gain[k], sigmas)
        for basis in (0, 1):
            sifted = of_k & (choices.basis == basis) & (found.basis == basis)
            mean = pulses * chance * expected.basis_gain[k][basis]
            within(sifted.sum(), mean, sigmas)
            wrong = (choices.bit != found.bit) & sifted
            within(wrong.sum(), sifted.sum() * expected.basis_qber[k][basis], sigmas)
    return expected


def within(count, mean, sigmas):
    assert abs(count - mean) <= sigmas * math.sqrt(mean) + 3, (count, mean)


@pytest.mark.parametrize("length_km", [0.0, 5.0, 25.0, 60.0, 120.0])
def test_emulated_links_agree_with_the_plan(length_km):
    parameters = plan.at_distance(LinkParameters(), length_km)
    click = plan.expected_signature(parameters).click_rate
    assert_agrees(parameters, int(min(3e9, 4e5 / click)))


def test_agreement_with_every_imperfection_on():
    table = {
        "source": {"intensity_fluctuation": 0.1, "vacuum_intensity": 0.005, "basis_z_probability": 0.6},
        "channel": {"length_km": 10, "rotation_rad": 0.1, "amplitude_damping": 0.1, "depolarising": 0.02},
        "detector": {
            "efficiency_1": 0.12,
            "insertion_loss_db": 2.0,
            "dark_count_probability": 1e-4,
            "after_pulse_probability": 0.1,
            "dead_time_ns": 12,
            "after_pulse_decay_ns": 30,
        },
    }
    assert_agrees(LinkParameters.from_mapping(table), 50_000_000)


@pytest.mark.parametrize(
    ("detector", "pulses"),
    [
        ({"dead_time_ns": 5, "after_pulse_probability": 0.05, "after_pulse_decay_ns": 20}, 30_000_000),
        ({"dead_time_ns": 0, "efficiency_0": 0.8, "efficiency_1": 0.8}, 4_000_000),
        ({"dead_time_ns": 4, "efficiency_0": 0.8, "efficiency_1": 0.8, "double_click": "discard"}, 10_000_000),
    ],
)
def test_agreement_where_most_gates_click(detector, pulses):
    """Short and bright links: dead time, refilled traps and double clicks all matter."""
    channel = {"length_km": 0, "connector_count": 0}
    assert_agrees(LinkParameters.from_mapping({"channel": channel, "detector": detector}), pulses)


ATTACKS = [
    ("intercept_resend", {"fraction": 0.5, "basis_z_probability": 0.7}),
    ("intercept_resend", {"breidbart": 1}),
    ("photon_number_splitting", {"single_pass": 0.05, "transmittance": 0.3}),
    ("beam_splitting", {"tapped": 0.5}),
    ("beam_splitting", {"tapped": 0.5, "compensated": 0}),
    ("trojan_horse", {"reflected_photons": 0.3}),
    ("detector_blinding", {}),
    ("jamming", {"level_hz": 1e7}),
    ("man_in_the_middle", {}),
]


@pytest.mark.parametrize(("kind", "parameters"), ATTACKS)
def test_every_eavesdropper_shows_its_signature(kind, parameters):
    link = LinkParameters()
    assert_agrees(link, 100_000_000, make_eavesdropper(kind, parameters, np.random.default_rng(4)))


def test_attacks_combine_into_one_signature():
    parts = [make_eavesdropper(k, p, np.random.default_rng(4)) for k, p in (ATTACKS[0], ATTACKS[2], ATTACKS[7])]
    assert_agrees(LinkParameters(), 100_000_000, Combined(parts))


def test_all_kinds_are_covered():
    assert {kind for kind, _ in ATTACKS} == set(eavesdropper_kinds())


def signature(kind, link=None, **parameters):
    eve = make_eavesdropper(kind, parameters, np.random.default_rng(1))
    return plan.expected_signature(link or LinkParameters(), eve)


def test_documented_signatures():
    """The closed forms in the docstrings of the eavesdroppers."""
    quiet = {"misalignment": 0.0, "dark_count_probability": 0.0, "after_pulse_probability": 0.0}
    ideal = LinkParameters.from_mapping({"detector": quiet, "channel": {"length_km": 150}})
    honest = plan.expected_signature(ideal)
    resent = signature("intercept_resend", ideal, fraction=0.8, basis_z_probability=0.75)
    assert resent.basis_qber[0] == pytest.approx((0.8 * 0.25 / 2, 0.8 * 0.75 / 2), rel=1e-3)
    assert resent.gain == pytest.approx(honest.gain, rel=1e-9)
    assert signature("intercept_resend", ideal, breidbart=1).qber[0] == pytest.approx(0.25, rel=1e-3)
    assert signature("trojan_horse", ideal) == honest
    assert signature("beam_splitting", ideal).gain == pytest.approx(honest.gain, rel=1e-6)
    assert signature("beam_splitting", ideal, compensated=0).gain[0] == pytest.approx(honest.gain[0] / 2, rel=5e-3)
    link = LinkParameters()
    blinded, honest = signature("detector_blinding", link), plan.expected_signature(link)
    assert blinded.qber[0] < 1e-12 and blinded.gain[2] < 1e-12 and honest.gain[2] > 1e-5
    assert blinded.basis_gain[0][0] == pytest.approx(honest.basis_gain[0][0], rel=0.03)
    jammed = signature("jamming", link, level_hz=1e8)
    stray = 1e8 * 0.5e-9 * 0.2
    dead = jammed.live_fraction / honest.live_fraction
    rise = [(j / dead - h) / stray for j, h in zip(jammed.gain, honest.gain, strict=True)]
    assert rise == pytest.approx([jammed.live_fraction / dead] * 3, rel=0.1)


def test_photon_number_splitting_hides_from_the_signal_and_shows_in_the_decoy():
    link = LinkParameters.from_mapping({"channel": {"length_km": 60}})
    honest = plan.expected_signature(link)
    single_pass = plan.unsuspicious_single_pass(link, np.random.default_rng(1))
    # Splitting with a lossless channel gives too many clicks here, even without single photons: she adds loss.
    split = signature("photon_number_splitting", link, single_pass=0.0, transmittance=0.04)
    assert single_pass == pytest.approx(0.0, abs=1e-9)
    ratio = (split.gain[1] / split.gain[0]) / (honest.gain[1] / honest.gain[0])
    assert ratio < 0.5
    far = LinkParameters.from_mapping({"channel": {"length_km": 25}, "source": {"signal_intensity": 0.2}})
    hidden = plan.unsuspicious_single_pass(far, np.random.default_rng(1))
    if hidden > 0.0:
        matched = signature("photon_number_splitting", far, single_pass=hidden)
        assert matched.gain[0] == pytest.approx(plan.expected_signature(far).gain[0], rel=1e-3)


def test_decoys_leave_no_key_under_photon_number_splitting():
    link = LinkParameters()
    eve = make_eavesdropper("photon_number_splitting", {"transmittance": 0.5}, np.random.default_rng(1))
    assert plan.plan_link(link, 10**10).key_length.bits > 0
    assert plan.plan_link(link, 10**10, attack=eve).key_length.bits == 0


@pytest.mark.parametrize("single_pass", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("transmittance", [0.03, 0.3])
def test_decoy_bound_never_exceeds_the_single_photons_that_splitting_leaves(single_pass, transmittance):
    """Whatever she blocks, what the decoys certify is below the clicks of which she holds no photon."""
    quiet = {"dead_time_ns": 0, "after_pulse_probability": 0, "dark_count_probability": 0}
    link = LinkParameters.from_mapping({"detector": quiet})
    eve = make_eavesdropper(
        "photon_number_splitting",
        {"single_pass": single_pass, "transmittance": transmittance},
        np.random.default_rng(1),
    )
    planned = plan.plan_link(link, 10**11, attack=eve)
    source = link.source
    columns = (planned.key_clicks, planned.test_clicks, planned.test_errors)
    bounds = decoy.decoy_bounds(
        np.array(source.intensities),
        np.array(source.intensity_probabilities),
        *(np.array(column, dtype=float) for column in columns),
        1e-10,
    )
    lone = sum(p * m * math.exp(-m) for p, m in zip(source.intensity_probabilities, source.intensities, strict=True))
    unknown = 10**11 * 0.8**2 * lone * single_pass * transmittance * 0.2
    assert bounds.key_single <= unknown * (1 + 1e-9)
    assert bounds.key_single >= 0.7 * unknown - 1e6  # and the bound is not idle


def test_interception_leaves_no_key():
    eve = make_eavesdropper("intercept_resend", {}, np.random.default_rng(1))
    attacked = plan.plan_link(LinkParameters(), 10**10, attack=eve)
    assert attacked.key_length.bits == 0 and attacked.key_length.reason


def test_monitors_show_blinding_and_probes():
    link = LinkParameters()
    blinding = make_eavesdropper("detector_blinding", {}, np.random.default_rng(1))
    assert emulate(link, 10_000, attack=blinding)[2].photocurrent
    assert not emulate(link, 10_000)[2].photocurrent
    alice = Transmitter(link, SeededEntropy(b"a"), np.random.default_rng(1))
    assert alice.incoming_photons_per_pulse == 0.0
    alice.attack = make_eavesdropper("trojan_horse", {}, np.random.default_rng(1))
    assert alice.incoming_photons_per_pulse > 1e8


def test_jamming_comes_in_bursts():
    link = LinkParameters.from_mapping({"channel": {"length_km": 100}})
    burst = {"level_hz": 1e8, "period_s": 1e-3, "duty_cycle": 0.25, "start_s": 2e-3, "duration_s": 4e-3}
    eve = make_eavesdropper("jamming", burst, np.random.default_rng(3))
    _, found, _ = emulate(link, 8_000_000, attack=eve)
    quarter_ms = np.bincount((found.positions // np.uint64(250_000)).astype(int), minlength=32)
    jammed = np.flatnonzero(quarter_ms > 500)
    assert jammed.tolist() == [8, 12, 16, 20]
    peak = plan.expected_signature(link, eve).click_rate
    assert quarter_ms[jammed].sum() == pytest.approx(peak * 1_000_000, rel=0.02)


def test_tampering_alters_exactly_one_bit():
    eve = make_eavesdropper("man_in_the_middle", {}, np.random.default_rng(3))
    for message in (b"x", b"sifting" * 9):
        changed = eve.tamper(message)
        assert sum((a ^ b).bit_count() for a, b in zip(message, changed, strict=True)) == 1
    assert eve.tamper(b"") == b""


def test_rate_falls_with_distance_and_dies():
    plans = plan.rate_against_distance(LinkParameters(), [0, 50, 100, 150, 200, 400], 10**10)
    rates = [p.secret_key_rate_bits_per_s for p in plans]
    assert rates == sorted(rates, reverse=True) and rates[0] > 1e6 and rates[-1] == 0.0
    assert plans[0].block_time_s == 10.0


def test_single_photon_links_are_planned_by_their_own_proof():
    link = LinkParameters.from_mapping({"source": {"model": "single_photon"}})
    planned = plan.plan_link(link, 10**8)
    assert planned.key_length.bits > 0 and "single" in planned.key_length.proof


@pytest.mark.parametrize(
    "table",
    [
        {"detector": {"efficiency_1": 0.1}},
        {"detector": {"double_click": "discard"}},
        {"source": {"intensity_fluctuation": 0.05}},
    ],
)
def test_no_key_where_the_proof_does_not_reach(table):
    link = LinkParameters.from_mapping(table)
    length = plan.plan_link(link, 10**10).key_length
    assert length.bits == 0 and length.reason == "; ".join(link.proof_gaps) != ""
    assert LinkParameters().proof_gaps == ()


def test_planner_refuses_nonsense():
    with pytest.raises(ParameterError, match="pulses"):
        plan.plan_link(LinkParameters(), 0)
    with pytest.raises(ParameterError, match="length_km"):
        plan.at_distance(LinkParameters(), -1.0)
