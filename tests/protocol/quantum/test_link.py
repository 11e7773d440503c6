"""The link against closed forms, against a pulse-by-pulse emulation, and at its edges."""

import math
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protocol.entropy import SeededEntropy
from protocol.parameters import ParameterError
from protocol.quantum import _light
from protocol.quantum.eavesdropper import Combined, make_eavesdropper
from protocol.quantum.link import Detections, LightError, LinkParameters, Receiver, Transmitter

SHORT = {"channel": {"length_km": 0, "connector_count": 0, "extra_loss_db": 10.0}}


def devices(parameters, seed=1):
    alice = Transmitter(parameters, SeededEntropy(b"alice%d" % seed), np.random.default_rng([seed, 1]))
    bob = Receiver(parameters, SeededEntropy(b"bob%d" % seed), np.random.default_rng([seed, 2]))
    return alice, bob


def run(parameters, pulses, seed=1, attack=None):
    """Return (choices, detections) of one emission in chunks."""
    alice, bob = devices(parameters, seed)
    alice.attack = attack
    parts = [bob.measure(light) for light in alice.emit_chunks(pulses)]
    detections = Detections(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("positions", "basis", "bit"))
    )
    return alice.choices(detections.positions), detections


def qber(choices, detections, intensity=0, basis=None):
    kept = (choices.basis == detections.basis) & (choices.intensity == intensity)
    if basis is not None:
        kept &= choices.basis == basis
    return (choices.bit != detections.bit)[kept].mean(), int(kept.sum())


def pulse_by_pulse(parameters, pulses, physics):
    """The dumb twin: every pulse, every photon, every gate; returns rows (intensity, bases equal, error or -1)."""
    source, detector = parameters.source, parameters.detector
    rules = detector.rules(source.pulse_rate_hz)
    transmittance = parameters.channel.medium.transmittance * 10 ** (-detector.insertion_loss_db / 10)
    one = parameters.channel.noise.one_probability()
    rows, dead_end, pending = [], 0, [None, None]
    for n in range(pulses):
        intensity = physics.choice(len(source.intensities), p=source.intensity_probabilities)
        basis = int(physics.random() >= source.basis_z_probability)
        bit = int(physics.integers(2))
        bob_basis = int(physics.random() >= detector.basis_z_probability)
        clicked = [False, False]
        for _ in range(physics.poisson(source.intensities[intensity])):
            if physics.random() < transmittance:
                outcome = int(physics.random() < one[basis << 1 | bit, bob_basis])
                outcome ^= int(physics.random() < detector.misalignment)
                efficiency = (detector.efficiency_0, detector.efficiency_1)[outcome]
                clicked[outcome] |= physics.random() < efficiency
        for d in (0, 1):
            clicked[d] |= physics.random() < detector.dark_count_probability
            if pending[d] == n:
                clicked[d], pending[d] = True, None
        if n >= dead_end and any(clicked):
            dead_end = n + rules.dead_pulses
            for d in (0, 1):
                if clicked[d] and physics.random() < rules.after_pulse_probability:
                    pending[d] = dead_end + int(physics.exponential(rules.after_pulse_decay_pulses))
            outcome = int(physics.integers(2)) if all(clicked) else int(clicked[1])
            rows.append((n, intensity, basis, bob_basis, bit, outcome))
    return np.array(rows)


def test_link_equals_the_pulse_by_pulse_twin():
    """Every kind of detection (intensity × bases × bit × outcome) is as frequent as in the dumb twin (S0-E4, S0-E5)."""
    parameters = LinkParameters.from_mapping(
        {
            "source": {
                "signal_intensity": 0.9,
                "decoy_intensity": 0.3,
                "vacuum_intensity": 0.02,
                "signal_probability": 0.5,
            },
            "channel": {
                "length_km": 0,
                "connector_count": 0,
                "extra_loss_db": 3.0,
                "rotation_rad": 0.2,
                "dephasing": 0.05,
            },
            "detector": {
                "efficiency_0": 0.6,
                "efficiency_1": 0.4,
                "dark_count_probability": 0.01,
                "dead_time_ns": 3,
                "after_pulse_probability": 0.3,
                "after_pulse_decay_ns": 4,
                "misalignment": 0.05,
            },
        }
    )
    pulses = 60_000
    dumb = pulse_by_pulse(parameters, pulses, np.random.default_rng(5))
    choices, found = run(parameters, 20 * pulses)
    fast = np.stack([choices.intensity, choices.basis, found.basis, choices.bit, found.bit], axis=1).astype(int)
    weights = np.array([16, 8, 4, 2, 1])
    table = np.array([np.bincount(rows @ weights, minlength=48) for rows in (dumb[:, 1:], fast)])
    table = table[:, table.sum(axis=0) > 20]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert len(fast) / (20 * pulses) == pytest.approx(len(dumb) / pulses, rel=5 / math.sqrt(len(dumb)))
    gaps = [np.bincount(np.minimum(np.diff(p.astype(int)), 30), minlength=31) for p in (dumb[:, 0], found.positions)]
    gaps = np.array(gaps)[:, np.array(gaps).sum(axis=0) > 20]
    assert stats.chi2_contingency(gaps).pvalue > 1e-3


def test_gains_follow_the_closed_form():
    parameters = LinkParameters.from_mapping(
        {**SHORT, "detector": {"dead_time_ns": 0, "after_pulse_probability": 0, "dark_count_probability": 1e-5}}
    )
    pulses = 20_000_000
    choices, _ = run(parameters, pulses)
    for code, (mean, chance) in enumerate(
        zip(parameters.source.intensities, parameters.source.intensity_probabilities, strict=True)
    ):
        gain = 1 - (1 - 1e-5) ** 2 * math.exp(-mean * 0.1 * 0.2)
        expected = pulses * chance * gain
        assert abs((choices.intensity == code).sum() - expected) < 5 * math.sqrt(expected) + 1


def test_wrong_basis_says_nothing_of_the_bit():
    """Opacity: without matching bases the detector's outcome is independent of Alice's bit."""
    choices, found = run(LinkParameters.from_mapping(SHORT), 20_000_000)
    wrong = choices.basis != found.basis
    table = np.histogram2d(choices.bit[wrong], found.bit[wrong], bins=2)[0]
    assert table.sum() > 30_000
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_right_basis_errors_are_the_misalignment():
    choices, found = run(LinkParameters.from_mapping({**SHORT, "detector": {"misalignment": 0.03}}), 10_000_000)
    rate, count = qber(choices, found)
    assert abs(rate - 0.03) < 5 * math.sqrt(0.03 / count) + 0.002  # double clicks and after-pulses add a little


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 0.25),
        ({"fraction": 0.4}, 0.1),
        ({"basis_z_probability": 1.0}, 0.0),
        ({"breidbart": 1.0}, 0.25),
    ],
)
def test_intercept_resend_signature(parameters, expected):
    link = LinkParameters.from_mapping(
        {**SHORT, "detector": {"misalignment": 0.0, "dark_count_probability": 0.0, "after_pulse_probability": 0.0}}
    )
    eve = make_eavesdropper("intercept_resend", parameters, np.random.default_rng(9))
    rate, count = qber(*run(link, 10_000_000, attack=eve), basis=0)
    assert abs(rate - expected) < 5 * math.sqrt(max(expected, 1e-9) / count) + 0.01


def test_two_eavesdroppers_combine():
    link = LinkParameters.from_mapping({**SHORT, "detector": {"misalignment": 0.0}})
    parts = [make_eavesdropper("intercept_resend", {}, np.random.default_rng(k)) for k in (1, 2)]
    rate, _ = qber(*run(link, 10_000_000, attack=Combined(parts)), basis=0)
    assert rate == pytest.approx(0.375, abs=0.015)  # 1/2 (1 - 1/4)


def test_attack_is_put_on_and_taken_off_a_running_transmitter():
    alice, bob = devices(LinkParameters.from_mapping(SHORT))
    rates = []
    for attack in (None, make_eavesdropper("intercept_resend", {}, np.random.default_rng(3)), None):
        alice.attack = attack
        found = bob.measure(alice.emit(2_000_000))
        rates.append(qber(alice.choices(found.positions), found)[0])
    assert rates[0] < 0.03 and rates[2] < 0.03 and rates[1] > 0.2


def test_chunks_cover_all_pulses_in_small_frames():
    alice, _ = devices(LinkParameters.from_mapping({"channel": {"length_km": 0}}))
    position = 0
    for frame in alice.emit_chunks(3_000_000):
        light = _light.decode(frame)
        assert light.first == position and len(frame) <= 256 * 1024
        position += light.pulse_count
    assert position == 3_000_000


def test_dead_time_and_after_pulses_go_on_from_frame_to_frame():
    detector = {"dead_time_ns": 5_000.0, "after_pulse_probability": 0.5, "after_pulse_decay_ns": 3_000.0}
    link = LinkParameters.from_mapping({"channel": {"length_km": 0}, "detector": detector})
    alice, bob = devices(link)
    frames = list(alice.emit_chunks(3_000_000))
    found = [bob.measure(frame).positions for frame in frames]
    assert len(frames) > 5 and sum(map(len, found)) > 400
    assert np.diff(np.concatenate(found).astype(np.int64)).min() >= 5_000
    # Skipping a frame is another emission, or lost time: the detectors have recovered.
    bob.measure(frames[0])
    assert bob.measure(frames[2]).positions[0] < _light.decode(frames[2]).first + 200


def test_dark_links_are_cut_into_frames_that_a_receiver_takes():
    link = LinkParameters.from_mapping(
        {"channel": {"extra_loss_db": 100}, "detector": {"dark_count_probability": 0.05}}
    )
    alice, bob = devices(link)
    frames = list(alice.emit_chunks(30_000_000))
    assert len(frames) == 3
    assert bob.measure(frames[0]).positions.size > 100_000
    with pytest.raises(LightError, match="dark counts"):
        bob.measure(alice.emit(2**32 - 1))


def test_light_is_parsed_in_one_private_place():
    """Opacity as an interface: nobody but the devices knows the frame's format."""
    root = pathlib.Path(__file__).parents[3]
    users = {
        str(path.relative_to(root))
        for package in ("protocol", "qnode", "ledger", "loadtest")
        for path in (root / package).rglob("*.py")
        if re.search(r"import _light\b|quantum\._light", path.read_text(encoding="utf-8"))
    }
    assert users == {"protocol/quantum/link.py", "protocol/quantum/_emission.py"}
    sampler = (root / "protocol/quantum/_emission.py").read_text(encoding="utf-8")
    assert not re.search(r"\b(encode|decode)\b", sampler)  # it makes light, and leaves frames to the devices


def test_ideal_single_photons():
    table = {
        "source": {"model": "single_photon"},
        "detector": {
            "misalignment": 0.0,
            "dark_count_probability": 0.0,
            "efficiency_0": 1.0,
            "efficiency_1": 1.0,
            "after_pulse_probability": 0.0,
            "dead_time_ns": 0.0,
        },
        "channel": {"length_km": 0, "connector_count": 0},
    }
    choices, found = run(LinkParameters.from_mapping(table), 100_000)
    assert found.positions.tolist() == list(range(100_000))
    assert qber(choices, found)[0] == 0.0
    assert not choices.intensity.any()


def test_emissions_do_not_repeat_choices_or_bases():
    alice, bob = devices(LinkParameters.from_mapping({**SHORT, "source": {"basis_z_probability": 0.5}}))
    positions = np.arange(4096, dtype=np.uint64)
    light = alice.emit(4096)
    first = alice.choices(positions)
    alice.emit(4096)
    second = alice.choices(positions)
    assert 1500 < (first.bit != second.bit).sum() < 2600
    assert not np.array_equal(first.basis, second.basis)
    assert len(light) < 10_000
    bob.measure(light)


def test_choices_beyond_the_emission_are_refused():
    alice, _ = devices(LinkParameters())
    with pytest.raises(ParameterError):
        alice.choices(np.array([0], dtype=np.uint64))
    alice.emit(10)
    with pytest.raises(ParameterError, match="10 pulses"):
        alice.choices(np.array([10], dtype=np.uint64))


def test_equal_seeds_give_equal_runs():
    runs = [run(LinkParameters.from_mapping(SHORT), 200_000, seed=4)[1] for _ in range(2)]
    assert np.array_equal(runs[0].positions, runs[1].positions) and np.array_equal(runs[0].bit, runs[1].bit)


def test_nothing_secret_in_text_forms():
    alice, bob = devices(LinkParameters.from_mapping(SHORT))
    found = bob.measure(alice.emit(100_000))
    choices = alice.choices(found.positions)
    for thing in (choices, found, _light.decode(alice.emit(1000))):
        assert "redacted" in repr(thing) or "opaque" in repr(thing)
        assert "array" not in repr(thing)


# ---- the light frame as a parser


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(LightError):
        devices(LinkParameters())[1].measure(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_frame_measures_or_is_refused(data):
    alice, bob = devices(LinkParameters.from_mapping(SHORT))
    frame = bytearray(alice.emit(2_000))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    try:
        found = bob.measure(bytes(frame))
    except LightError:
        return
    assert np.all(np.diff(found.positions.astype(np.int64)) > 0)
    assert found.bit.max(initial=0) <= 1 and found.basis.max(initial=0) <= 1


def test_truncated_and_trailing_bytes_are_refused():
    alice, bob = devices(LinkParameters.from_mapping(SHORT))
    frame = alice.emit(5_000)
    for cut in range(len(frame)):
        with pytest.raises(LightError):
            bob.measure(frame[:cut])
    with pytest.raises(LightError):
        bob.measure(frame + b"\0")


# ---- parameters


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sauce": {}}, "source, channel, detector"),
        ({"source": {"signal": 1}}, "signal_intensity"),
        ({"channel": {"kind": "string"}}, "fibre"),
        ({"channel": {"length_km": -1}}, "0 to 1000 km"),
        ({"detector": {"efficiency_0": 1.1}}, "0 to 1"),
        ({"detector": {"double_click": "keep"}}, "discard"),
        ({"source": {"signal_intensity": 0.1, "decoy_intensity": 0.2}}, "ordered"),
        ({"source": {"model": 3}}, "a string"),
        ({"source": {"pulse_rate_hz": "fast"}}, "a number"),
        ({"source": 7}, "table"),
        ({"channel": {"depolarising": 2.0}}, "0 to 1"),
        ({"detector": {"dark_count_probability": float("nan")}}, "dark_count_probability"),
    ],
)
def test_bad_parameters_are_refused_with_the_reason(table, words):
    with pytest.raises(ParameterError, match=words):
        LinkParameters.from_mapping(table)


def test_unknown_eavesdroppers_are_refused_with_the_names():
    physics = np.random.default_rng(1)
    with pytest.raises(ParameterError, match="intercept_resend"):
        make_eavesdropper("mallory", {}, physics)
    with pytest.raises(ParameterError, match="fraction"):
        make_eavesdropper("intercept_resend", {"level": 1.0}, physics)
    with pytest.raises(ParameterError, match="0 to 1"):
        make_eavesdropper("intercept_resend", {"fraction": 2.0}, physics)
