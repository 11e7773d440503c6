"""What a block's clicks say: honest links pass, every listener who leaves a trace is noticed."""

import numpy as np
import pytest

from protocol.assessment import BlockSuspect, Sifting, WatchParameters, assess, sift_block
from protocol.entropy import SeededEntropy
from protocol.parameters import ParameterError
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import LinkParameters, Receiver, Transmitter

PULSES = 4_000_000
LINK = LinkParameters.from_mapping(
    {
        "source": {"signal_probability": 0.7, "decoy_probability": 0.2, "basis_z_probability": 0.7},
        "channel": {"length_km": 10.0},
        "detector": {"basis_z_probability": 0.7, "dead_time_ns": 10.0},
    }
)


def block(seed: int, attack: tuple[str, dict[str, float]] | None = None) -> tuple[Sifting, np.ndarray]:
    """Return Bob's sifting of one block, and Alice's test bits."""
    transmitter = Transmitter(LINK, SeededEntropy(b"alice"), np.random.default_rng(seed))
    receiver = Receiver(LINK, SeededEntropy(b"bob"), np.random.default_rng(seed + 1))
    if attack is not None:
        transmitter.attack = make_eavesdropper(*attack, np.random.default_rng(seed + 2))
    found = [receiver.measure(chunk) for chunk in transmitter.emit_chunks(PULSES)]
    positions = np.concatenate([each.positions for each in found])
    basis = np.concatenate([each.basis for each in found])
    bits = np.concatenate([each.bit for each in found])
    choices = transmitter.choices(positions)
    alice = sift_block(choices.bit, choices.basis, basis, choices.intensity)
    return sift_block(bits, choices.basis, basis, choices.intensity), alice.own_test_bits


@pytest.mark.parametrize("seed", range(10))
def test_an_honest_block_passes(seed: int) -> None:
    sifting, peer_bits = block(seed)
    assessment = assess(sifting, peer_bits, PULSES, LINK, WatchParameters())
    assert 0.005 < assessment.qber < 0.03
    assert assessment.test_bits == sum(assessment.counts.test)


@pytest.mark.parametrize(
    ("attack", "trace"),
    [
        (("intercept_resend", {"fraction": 1.0}), "exceeds the limit"),
        (("intercept_resend", {"fraction": 0.2}), "qber_0"),  # 5 % more errors: below the limit, far beyond chance
        (("photon_number_splitting", {}), "gain"),  # no errors at all; the decoys' gains give it away
        (("beam_splitting", {"tapped": 0.5, "compensated": 0.0}), "gain_low"),
        (("jamming", {"level_hz": 1e7}), ""),
    ],
    ids=lambda value: str(value),
)
def test_a_listener_is_noticed(attack: tuple[str, dict[str, float]], trace: str) -> None:
    sifting, peer_bits = block(1, attack)
    with pytest.raises(BlockSuspect) as raised:
        assess(sifting, peer_bits, PULSES, LINK, WatchParameters())
    assert raised.value.attacked
    assert trace in raised.value.reason


def test_a_wide_tolerance_lets_drift_pass() -> None:
    sifting, peer_bits = block(1, ("beam_splitting", {"tapped": 0.5, "compensated": 0.0}))
    assert assess(sifting, peer_bits, PULSES, LINK, WatchParameters(gain_tolerance=2.0)).qber < 0.05


def test_nothing_to_compare_is_no_attack() -> None:
    nothing = np.zeros(0, np.uint8)
    with pytest.raises(BlockSuspect) as raised:
        assess(sift_block(nothing, nothing, nothing, nothing), nothing, PULSES, LINK, WatchParameters())
    assert not raised.value.attacked


@pytest.mark.parametrize(
    "values", [{"qber_max": 0.5}, {"false_alarm": 0.0}, {"qber_tolerance": -0.1}, {"gain_tolerance": -1.0}]
)
def test_bad_tolerances_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        WatchParameters(**values)
