"""Chains of Werner pairs against theory and against the exact layer; BBM92 through the receiver of BB84."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.distill.key_length import SecurityParameters, secret_key_length
from protocol.entropy import SeededEntropy
from protocol.parameters import ParameterError
from protocol.quantum import entanglement as ent
from protocol.quantum import states
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import Detections, LinkParameters, Receiver, Transmitter
from protocol.quantum.plan import expected_signature, plan_link

FIDELITY = st.floats(0.25, 1.0)
QUIET = {"misalignment": 0.0, "dark_count_probability": 0.0, "after_pulse_probability": 0.0, "dead_time_ns": 0.0}


@given(FIDELITY, FIDELITY)
def test_swapping_against_an_exact_bell_measurement(first, second):
    """Two Werner pairs, a Bell measurement in the middle, the announced Pauli on the far qubit (S0-E10)."""
    rho = states.tensor(states.werner(first), states.werner(second))
    total, probability = 0.0, 0.0
    for index, bell in enumerate(states.BELL_KETS):
        chance, after = states.project(rho, states.density(bell), (1, 2))
        ends = states.partial_trace(after, [0, 3])
        pauli = np.linalg.matrix_power(states.PAULIS["X"], index & 1) @ np.linalg.matrix_power(
            states.PAULIS["Z"], index >> 1
        )
        ends = states.apply_kraus(ends, [pauli], (1,))
        total += chance * states.fidelity(ends, states.BELL_KETS[0])
        probability += chance
    assert probability == pytest.approx(1.0)
    assert total == pytest.approx(ent.swapped_fidelity(first, second))
    w = ent.werner_parameter(first) * ent.werner_parameter(second)
    assert total == pytest.approx(ent.fidelity_of(w))


@given(st.floats(0.5, 1.0))
def test_purification_against_the_exact_circuit(fidelity):
    """BBPSSW: CNOTs from pair one to pair two on both sides; equal Z results keep pair one."""
    rho = states.tensor(states.werner(fidelity), states.werner(fidelity))
    rho = states.apply_kraus(rho, [states.CNOT], (0, 2))
    rho = states.apply_kraus(rho, [states.CNOT], (1, 3))
    success, kept = 0.0, 0.0
    for bit in (0, 1):
        ket = states.tensor(states.bb84_state(0, bit), states.bb84_state(0, bit))
        chance, after = states.project(rho, states.density(ket), (2, 3))
        success += chance
        kept += chance * states.fidelity(states.partial_trace(after, [0, 1]), states.BELL_KETS[0])
    expected, probability = ent.purified(fidelity)
    assert success == pytest.approx(probability)
    assert kept / success == pytest.approx(expected)
    assert expected >= fidelity - 1e-12


@pytest.mark.parametrize("segments", [1, 2, 3, 8])
def test_attempts_and_rate_follow_the_closed_form(segments):
    chain = ent.ChainParameters(segments=segments, length_km=20.0 * segments)
    rounds = ent.sample_rounds(chain, 100_000, np.random.default_rng(1))
    mean = rounds.attempts.mean()
    p = chain.attempt_probability
    inclusion = sum(math.comb(segments, j) * (-1) ** (j + 1) / (1 - (1 - p) ** j) for j in range(1, segments + 1))
    assert chain.expected_attempts() == pytest.approx(inclusion, rel=1e-9)
    assert abs(mean - chain.expected_attempts()) < 5 * rounds.attempts.std() / math.sqrt(1e5)
    rate = rounds.succeeded.sum() / rounds.attempts.sum()
    assert rate == pytest.approx(chain.expected_pairs_per_attempt(), rel=5 / math.sqrt(rounds.succeeded.sum()))


def test_both_forms_of_the_expected_attempts_meet():
    for segments in (1, 2, 30, 64):
        low, high = (
            ent.ChainParameters(segments=segments, length_km=0.0, pair_efficiency=p).expected_attempts()
            for p in (0.9994e-3, 1.0006e-3)
        )
        assert low / high == pytest.approx(1.0012, rel=1e-4)


def test_fidelity_with_decoherence_follows_the_closed_form():
    """Two segments: the earlier pair waits |t1 - t2| attempts, whose generating function is known."""
    chain = ent.ChainParameters(segments=2, length_km=40, memory_time_s=2e-3, pair_fidelity=0.95)
    rounds = ent.sample_rounds(chain, 400_000, np.random.default_rng(2))
    p = chain.attempt_probability
    decay = (1 - p) * math.exp(-chain.attempt_period_s / chain.memory_time_s)
    expected = ent.werner_parameter(0.95) ** 2 * p / (2 - p) * (1 + 2 * decay / (1 - decay))
    assert rounds.werner.mean() == pytest.approx(expected, abs=5 * rounds.werner.std() / math.sqrt(4e5))
    assert rounds.werner.std() > 0.01


def test_purification_costs_attempts_and_gives_fidelity():
    plain, pure = (
        ent.ChainParameters(segments=2, pair_fidelity=0.9, memory_time_s=1e9, purification_rounds=n) for n in (0, 2)
    )
    physics = np.random.default_rng(3)
    worse, better = ent.sample_rounds(plain, 20_000, physics), ent.sample_rounds(pure, 20_000, physics)
    assert better.werner.mean() > worse.werner.mean()
    one = ent.ChainParameters(segments=1, pair_fidelity=0.9, purification_rounds=2)
    attempts = ent.sample_rounds(one, 100_000, physics).attempts
    _, successes = one.purification()
    expected = 4 / successes[0] / successes[1] / one.attempt_probability
    assert attempts.mean() == pytest.approx(expected, abs=5 * attempts.std() / math.sqrt(1e5))


def chain_link(chain, detector=None):
    """The link of a chain, from the table that an operator would write."""
    attempts_hz = 1.0 / ent.ChainParameters(**chain).attempt_period_s
    table = {
        "source": {"model": "single_photon", "pulse_rate_hz": attempts_hz},
        "channel": {"kind": "swapped_chain", **chain},
        "detector": {**QUIET, **(detector or {})},
    }
    return LinkParameters.from_mapping(table)


def bbm92(link, slots, attack=None):
    alice = Transmitter(link, SeededEntropy(b"a"), np.random.default_rng(1))
    alice.attack = attack
    bob = Receiver(link, SeededEntropy(b"b"), np.random.default_rng(2))
    parts = [bob.measure(light) for light in alice.emit_chunks(slots)]
    found = Detections(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("positions", "basis", "bit")))
    return alice, alice.choices(found.positions), found


def test_bbm92_over_a_swapped_chain_makes_key():
    table = {"segments": 2, "length_km": 40, "pair_fidelity": 0.99, "memory_time_s": 1.0}
    chain, link = ent.ChainParameters(**table), chain_link(table, {"efficiency_0": 0.9, "efficiency_1": 0.9})
    slots = 20_000_000
    alice, choices, found = bbm92(link, slots)
    expected = slots * chain.expected_pairs_per_attempt() * 0.9 * 0.9
    assert abs(len(found.positions) - expected) < 6 * math.sqrt(expected)
    sifted = choices.basis == found.basis
    errors = (choices.bit != found.bit) & sifted
    w = ent.sample_rounds(chain, 100_000, np.random.default_rng(5)).werner.mean()
    mean = sifted.sum() * (1 - w) / 2
    assert abs(errors.sum() - mean) < 5 * math.sqrt(mean)
    key, test = sifted & (choices.basis == 0), sifted & (choices.basis == 1)
    length = secret_key_length(
        int(key.sum()), int(test.sum()), int((errors & test).sum()), int(0.25 * key.sum()), 64, SecurityParameters()
    )
    assert length.bits > 0
    assert alice.chsh(40_000).violates()


@pytest.mark.parametrize(
    ("table", "attack"),
    [
        ({"segments": 3, "length_km": 60, "memory_time_s": 0.01}, None),
        ({"segments": 2, "length_km": 30, "pair_fidelity": 0.9, "purification_rounds": 1}, None),
        ({"segments": 2, "length_km": 20}, "intercept_resend"),
    ],
)
def test_chains_agree_with_the_plan(table, attack):
    link = chain_link(table, {"misalignment": 0.01, "dark_count_probability": 1e-5})
    eve = make_eavesdropper(attack, {"fraction": 0.5}, np.random.default_rng(1)) if attack else None
    expected = expected_signature(link, eve)
    slots = 10_000_000
    _, choices, found = bbm92(link, slots, eve)
    mean = slots * expected.click_rate
    assert abs(len(found.positions) - mean) < 5 * math.sqrt(mean) + 0.01 * mean
    sifted = choices.basis == found.basis
    wrong = ((choices.bit != found.bit) & sifted).sum()
    mean = sifted.sum() * expected.qber[0]
    assert abs(wrong - mean) < 5 * math.sqrt(mean) + 0.02 * mean


def test_planned_chains_give_key_by_the_proof_of_single_photons():
    link = chain_link(
        {"segments": 2, "length_km": 40, "pair_fidelity": 0.99}, {"efficiency_0": 0.9, "efficiency_1": 0.9}
    )
    planned = plan_link(link, 20_000_000)
    assert planned.key_length.bits > 0 and "single" in planned.key_length.proof


def test_interception_breaks_bbm92():
    link = chain_link({"segments": 1, "length_km": 10, "pair_fidelity": 1.0})
    eve = make_eavesdropper("intercept_resend", {}, np.random.default_rng(1))
    _, choices, found = bbm92(link, 300_000, eve)
    sifted = choices.basis == found.basis
    assert (choices.bit != found.bit)[sifted].mean() == pytest.approx(0.25, abs=0.02)


def test_chsh_agrees_with_the_exact_layer():
    for fidelity in (1.0, 0.9, 0.6):
        rho = states.werner(fidelity)
        angles = [(a, b) for a in (0.0, math.pi / 2) for b in (math.pi / 4, -math.pi / 4)]
        e = [states.correlation(rho, *pair) for pair in angles]
        exact = e[0] + e[1] + e[2] - e[3]
        w = np.full(400_000, ent.werner_parameter(fidelity))
        found = ent.sample_chsh(w, np.random.default_rng(4))
        assert exact == pytest.approx(2 * math.sqrt(2) * w[0])
        assert abs(found.value - exact) < 5 * found.standard_error
        assert found.violates() == (exact > 2.05)


def test_bad_chains_are_refused():
    for bad in ({"segments": 0}, {"segments": 1.5}, {"pair_fidelity": 1.1}, {"bell_efficiency": 0.0}):
        with pytest.raises(ParameterError):
            ent.ChainParameters(**bad)
    with pytest.raises(ParameterError, match="single_photon"):
        LinkParameters.from_mapping({"channel": {"kind": "swapped_chain"}})
    with pytest.raises(ParameterError, match="count attempts"):
        LinkParameters.from_mapping({"source": {"model": "single_photon"}, "channel": {"kind": "swapped_chain"}})
    with pytest.raises(ParameterError, match="CHSH"):
        Transmitter(LinkParameters(), SeededEntropy(b""), np.random.default_rng(1)).chsh(100)
