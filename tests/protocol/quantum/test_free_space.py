"""Free space: limits of the formulas, fading against its averages, and the emulated link against the plan."""

import math

import numpy as np
import pytest

from protocol.entropy import SeededEntropy
from protocol.parameters import ParameterError
from protocol.quantum.free_space import PROFILES, FreeSpaceParameters
from protocol.quantum.link import Detections, LinkParameters, Receiver, Transmitter
from protocol.quantum.plan import expected_signature, plan_link


def test_geometric_loss_in_both_limits():
    near = FreeSpaceParameters(range_m=10, beam_waist_mm=5, divergence_mrad=0.01, receiver_aperture_mm=100)
    assert near.centred_transmittance == pytest.approx(1.0, abs=1e-6)
    far = FreeSpaceParameters(range_m=20_000, divergence_mrad=1.0, receiver_aperture_mm=50)
    # A small aperture in a wide Gaussian beam: 2 a²/w² of the power.
    assert far.centred_transmittance == pytest.approx(2 * (0.025 / far.beam_radius_m) ** 2, rel=1e-3)


def test_pointing_loss_against_an_integral_over_the_beam():
    """Farid's approximation against brute force: a Gaussian beam displaced by Gaussian jitter on a round aperture."""
    air = FreeSpaceParameters(range_m=1000, divergence_mrad=0.1, pointing_jitter_mrad=0.05, cn2=0.0)
    physics = np.random.default_rng(1)
    w, a = air.beam_radius_m, air.receiver_aperture_mm * 0.5e-3
    spot = physics.normal(0, w / 2, (400_000, 2)) + physics.normal(0, 0.05e-3 * 1000, (400_000, 2))
    direct = (np.hypot(*spot.T) < a).mean() * 10 ** (-(air.optics_loss_db + air.weather_loss_db) / 10)
    assert air.transmittance == pytest.approx(direct, rel=0.05)


@pytest.mark.parametrize("range_m", [10.0, 100.0, 1000.0, 5000.0])
@pytest.mark.parametrize(("profile", "time"), sorted(PROFILES))
def test_fading_samples_have_the_mean_of_the_levels(range_m, profile, time):
    air = FreeSpaceParameters(range_m=range_m, profile=profile, time=time)
    samples = air.fading(np.random.default_rng(2), 200_000)
    weights, levels = air.fading_levels()
    assert weights.sum() == pytest.approx(1.0) and np.all((levels >= 0) & (levels <= 1))
    assert air.transmittance == pytest.approx(samples.mean(), rel=0.02)
    assert weights @ levels**2 == pytest.approx((samples**2).mean(), rel=0.05)


def test_weak_turbulence_is_the_rytov_variance():
    air = FreeSpaceParameters(range_m=300, cn2=1e-16, receiver_aperture_mm=1.0)
    k = 2 * math.pi / 850e-9
    assert air.scintillation_index == pytest.approx(1.23e-16 * k ** (7 / 6) * 300 ** (11 / 6), rel=0.01)


def test_fog_and_day_are_worse_than_clear_nights():
    clear, fog = FreeSpaceParameters(range_m=1000), FreeSpaceParameters(range_m=1000, visibility_km=0.2)
    assert fog.weather_loss_db == pytest.approx(10 * math.log10(math.e) * 3.912 / 0.2, rel=1e-6)
    assert fog.transmittance < 1e-6 * clear.transmittance
    day, night = (FreeSpaceParameters(profile="urban", time=t).background_rate_hz for t in ("day", "night"))
    assert day > 500 * night > 0


def test_background_photons_by_hand():
    air = FreeSpaceParameters(radiance=1.0, optics_loss_db=0.0)
    watts = 1.0 * math.pi * 0.025**2 * math.pi * 0.15e-3**2 * 1e-3
    assert air.background_rate_hz == pytest.approx(watts / (6.62607015e-34 * 299792458 / 850e-9), rel=1e-6)


def emulated(link, pulses):
    alice = Transmitter(link, SeededEntropy(b"a"), np.random.default_rng(1))
    bob = Receiver(link, SeededEntropy(b"b"), np.random.default_rng(2))
    parts = [bob.measure(light) for light in alice.emit_chunks(pulses)]
    found = Detections(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("positions", "basis", "bit")))
    return alice.choices(found.positions), found


@pytest.mark.slow
@pytest.mark.parametrize(("range_m", "profile", "time"), [(50, "urban", "day"), (800, "suburban", "day")])
def test_emulated_fading_links_agree_with_the_plan(range_m, profile, time):
    channel = {"kind": "free_space", "range_m": range_m, "profile": profile, "time": time, "coherence_s": 1e-5}
    link = LinkParameters.from_mapping({"source": {"pulse_rate_hz": 1e8}, "channel": channel})
    pulses = 4_000_000
    expected = expected_signature(link)
    choices, found = emulated(link, pulses)
    for k, chance in enumerate(link.source.intensity_probabilities):
        mean = pulses * chance * expected.gain[k]
        # Fading is common to the 1000 pulses of an interval: its variance adds to that of counting.
        weights, levels = link.channel.medium.fading_levels()
        relative = (weights @ levels**2) / (weights @ levels) ** 2 - 1.0
        assert abs((choices.intensity == k).sum() - mean) < 5 * math.sqrt(mean + relative * mean**2 / 4000) + 3
    sifted = (choices.basis == found.basis) & (choices.intensity == 0)
    errors = ((choices.bit != found.bit) & sifted).sum()
    assert abs(errors - sifted.sum() * expected.qber[0]) < 5 * math.sqrt(sifted.sum() * expected.qber[0]) + 3


def test_vehicles_share_keys_in_the_range_of_the_scenario():
    """S0-T1: 10 to 100 m in every profile."""
    for range_m in (10.0, 100.0):
        for profile, time in PROFILES:
            channel = {"kind": "free_space", "range_m": range_m, "profile": profile, "time": time}
            link = LinkParameters.from_mapping({"source": {"pulse_rate_hz": 1e8}, "channel": channel})
            assert plan_link(link, 10**9).key_length.bits > 0, (range_m, profile, time)


def test_bad_parameters_are_refused():
    for table in ({"profile": "moon"}, {"range_m": -5}, {"visibility_km": 0}, {"time": 7}, {"cn2": 1.0}):
        with pytest.raises(ParameterError):
            LinkParameters.from_mapping({"channel": {"kind": "free_space", **table}})
