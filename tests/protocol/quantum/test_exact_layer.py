"""States and codes: the exact layer against itself and textbook values, the samplers against the exact layer."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.parameters import ParameterError
from protocol.quantum import error_correction as qec
from protocol.quantum import noise, states

CODES = [qec.repetition_code(3), qec.repetition_code(5), qec.FIVE_QUBIT, qec.STEANE]
PROBABILITY = st.floats(0, 1)


@given(PROBABILITY)
def test_kraus_maps_keep_the_trace(p):
    for kraus in (noise.depolarising(p), noise.dephasing(p / 2), noise.amplitude_damping(p), noise.bit_flip(p / 2)):
        assert np.allclose(sum(k.conj().T @ k for k in kraus), np.eye(2))
        assert noise.pauli_probabilities(kraus).sum() == pytest.approx(1.0)


@given(PROBABILITY)
def test_noise_in_closed_form(p):
    plus, one = states.density(states.bb84_state(1, 0)), states.density(states.bb84_state(0, 1))
    assert noise.apply(noise.dephasing(p / 2), plus)[0, 1] == pytest.approx((1 - p) / 2)
    assert noise.apply(noise.amplitude_damping(p), one)[0, 0] == pytest.approx(p)
    assert states.fidelity(noise.apply(noise.depolarising(p), plus), states.bb84_state(1, 0)) == pytest.approx(
        1 - p / 2
    )


@given(st.floats(-math.pi, math.pi))
def test_rotation_gives_malus_law(angle):
    table = noise.NoiseParameters(rotation_rad=angle).one_probability()
    assert table[0, 0] == pytest.approx(math.sin(angle) ** 2, abs=1e-12)
    assert table[0, 1] == pytest.approx((1 - math.sin(2 * angle)) / 2, abs=1e-12)


@given(st.floats(-math.pi, math.pi))
def test_time_bin_phase_is_felt_in_x_only(angle):
    table = noise.NoiseParameters(phase_rad=angle).one_probability()
    assert table[:2, 0] == pytest.approx([0.0, 1.0], abs=1e-12)
    assert table[2, 1] == pytest.approx((1 - math.cos(angle)) / 2, abs=1e-12)


def test_states_of_the_papers():
    assert np.allclose(states.superposition([0.25] * 4), 0.5)
    assert np.allclose(states.qubit(1 / math.sqrt(2), -1 / math.sqrt(2)), states.bb84_state(1, 1))
    with pytest.raises(ParameterError):
        states.qubit(1, 1)
    with pytest.raises(ParameterError):
        states.superposition([0.5, 0.25, 0.25])


def test_embedding_and_partial_trace():
    bell = states.tensor(states.bb84_state(1, 0), states.bb84_state(0, 0))
    bell = states.embed(states.CNOT, (0, 1), 2) @ bell
    assert np.allclose(bell, states.BELL_KETS[0])
    reverse = states.embed(states.CNOT, (1, 0), 2)
    assert np.allclose(reverse, np.eye(4)[[0, 3, 2, 1]])
    three = states.tensor(states.density(states.bb84_state(0, 1)), states.density(bell))
    assert np.allclose(states.partial_trace(three, [1]), np.eye(2) / 2)
    assert np.allclose(states.partial_trace(three, [0]), states.density(states.bb84_state(0, 1)))
    assert np.allclose(states.partial_trace(three, [1, 2]), states.density(bell))
    with pytest.raises(ParameterError):
        states.qubit_count(np.eye(3, dtype=complex))


def test_bell_states_are_paulis_of_the_first():
    for index, ket in enumerate(states.BELL_KETS):
        pauli = np.linalg.matrix_power(noise.PAULI_Z, index >> 1) @ np.linalg.matrix_power(noise.PAULI_X, index & 1)
        made = states.embed(pauli, (1,), 2) @ states.BELL_KETS[0]
        assert abs(ket.conj() @ made) == pytest.approx(1.0)


@pytest.mark.parametrize("code", CODES, ids=lambda c: c.name)
def test_encoding_and_decoding_return_the_state(code):
    ket = states.qubit(0.6, 0.8j)
    logical = code.encode(ket)
    for generator in code.stabilisers:
        assert np.allclose(states.pauli_string(generator) @ logical, logical)
    assert np.allclose(code.decode(states.density(logical)), states.density(ket))


@pytest.mark.parametrize("code", [qec.FIVE_QUBIT, qec.STEANE], ids=lambda c: c.name)
def test_every_single_error_is_corrected(code):
    for qubit in range(code.qubits):
        for letter in (0, 1, 2, 3):
            pauli = np.zeros(4)
            pauli[letter] = 1.0
            errors = np.zeros((1, 2 * code.qubits), dtype=np.uint8)
            errors[0, qubit], errors[0, qubit + code.qubits] = (letter in (1, 2)), (letter in (2, 3))
            assert not code.residual(errors).any()


@pytest.mark.parametrize("size", [3, 5, 7])
def test_repetition_follows_the_binomial_closed_form(size):
    p = 0.12
    closed = sum(math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size // 2 + 1, size + 1))
    exact = qec.exact_logical_errors(qec.repetition_code(size), np.array([1 - p, p, 0, 0]))
    assert exact.flip == pytest.approx(closed)
    assert exact.phase == pytest.approx(0.0)


@pytest.mark.parametrize("code", CODES, ids=lambda c: c.name)
def test_sampled_rates_agree_with_enumeration(code):
    pauli = noise.pauli_probabilities(noise.depolarising(0.15))
    exact = qec.exact_logical_errors(code, pauli)
    shots = 200_000
    sampled = qec.sample_logical_errors(code, pauli, shots, np.random.default_rng(8))
    for name in ("flip", "phase", "any"):
        mean = getattr(exact, name)
        assert abs(getattr(sampled, name) - mean) < 5 * math.sqrt(mean * (1 - mean) / shots) + 1e-9


@pytest.mark.parametrize("code", [qec.repetition_code(3), qec.FIVE_QUBIT], ids=lambda c: c.name)
def test_enumeration_agrees_with_density_matrices(code):
    """The oracle: encode, apply the Kraus map to every qubit, measure the syndrome, correct, compare."""
    kraus = noise.depolarising(0.1)
    exact = qec.exact_logical_errors(code, noise.pauli_probabilities(kraus))
    for basis, rate in ((0, exact.flip), (1, exact.phase)):
        ket = states.bb84_state(basis, 0)
        rho = states.density(code.encode(ket))
        for qubit in range(code.qubits):
            rho = states.apply_kraus(rho, kraus, (qubit,))
        assert 1.0 - states.fidelity(code.decode(rho), ket) == pytest.approx(rate, abs=1e-12)


def test_codes_help_below_their_threshold_only():
    rates = []
    for p in (0.01, 0.05, 0.5):
        pauli = noise.pauli_probabilities(noise.depolarising(p))
        bare = 1.0 - pauli[0]
        rates.append(qec.exact_logical_errors(qec.FIVE_QUBIT, pauli).any / bare)
    assert all(a < b for a, b in pairwise(rates)) and rates[0] < 0.2 and rates[2] > 1.0


def test_wrong_codes_are_refused():
    with pytest.raises(ParameterError):
        qec.Code("wrong", ("XX",), "XI", "ZI")
    with pytest.raises(ParameterError):
        qec.repetition_code(4)
