"""The small exact layer: state vectors and density matrices of up to ten qubits, by plain linear algebra.

The oracle that the fast samplers are tested against, and the state model of SPEC §1.1 (rows S0-E3, S4-7); nothing in a
running link calls it. Qubit 0 is the first factor of the tensor product, the most significant bit of an index.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Final

import numpy as np

from protocol.parameters import require, require_range
from protocol.quantum.noise import BB84_KETS, IDENTITY, PAULI_X, PAULI_Y, PAULI_Z, Matrix

QUBITS_MAX: Final = 10  # a density matrix of ten qubits takes 16 MiB

HADAMARD: Final[Matrix] = np.array([[1, 1], [1, -1]], dtype=np.complex128) / math.sqrt(2)
CNOT: Final[Matrix] = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=np.complex128)
PAULIS: Final[dict[str, Matrix]] = {"I": IDENTITY, "X": PAULI_X, "Y": PAULI_Y, "Z": PAULI_Z}

# Φ+, Ψ+, Φ-, Ψ-: index z << 1 | x of the Pauli Z^z X^x on the second qubit that makes it from Φ+.
BELL_KETS: Final[Matrix] = math.sqrt(0.5) * np.array(
    [[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, -1], [0, 1, -1, 0]], dtype=np.complex128
)


def qubit(alpha: complex, beta: complex) -> Matrix:
    """Return the ket α|0> + β|1>. Raises ParameterError unless |α|² + |β|² is 1 to within 1e-9."""
    norm = abs(alpha) ** 2 + abs(beta) ** 2
    require(abs(norm - 1.0) < 1e-9, f"|α|² + |β|² is {norm:g}; amplitudes must be normalised to 1")
    return np.array([alpha, beta], dtype=np.complex128)


def superposition(probabilities: Sequence[float]) -> Matrix:
    """Return the ket Σ √p_i |i> (the paper's state preparation). The length must be a power of two."""
    size = len(probabilities)
    require(size >= 2 and size & (size - 1) == 0, f"{size} amplitudes; a register of qubits has 2, 4, 8, …")
    require(abs(sum(probabilities) - 1.0) < 1e-9 and min(probabilities) >= 0.0, "probabilities must sum to 1")
    return np.asarray(np.sqrt(np.array(probabilities, dtype=float)), dtype=np.complex128)


def bb84_state(basis: int, bit: int) -> Matrix:
    """Return |0>, |1> (basis 0) or |+>, |-> (basis 1)."""
    return np.asarray(BB84_KETS[basis << 1 | bit])


def tensor(*factors: Matrix) -> Matrix:
    """Return the tensor product of kets or of operators, the first factor most significant."""
    return reduce(lambda left, right: np.asarray(np.kron(left, right)), factors)


def density(ket: Matrix) -> Matrix:
    """Return |ψ><ψ|."""
    return np.outer(ket, ket.conj())


def qubit_count(state: Matrix) -> int:
    """Return the number of qubits. Raises ParameterError for another dimension or more than ten."""
    count = int(state.shape[0]).bit_length() - 1
    require(state.shape[0] == 1 << count, f"a dimension of {state.shape[0]} is no register of qubits")
    require_range("qubits", count, 1, QUBITS_MAX)
    return count


def embed(operator: Matrix, targets: Sequence[int], count: int) -> Matrix:
    """Return the operator on `count` qubits that acts on `targets`, in their order, and leaves the others alone."""
    rest = [q for q in range(count) if q not in targets]
    full = np.kron(operator, np.eye(1 << len(rest))).reshape([2] * (2 * count))
    order = np.argsort([*targets, *rest])
    axes = [*order, *(order + count)]
    return np.ascontiguousarray(full.transpose(axes).reshape(1 << count, 1 << count))


def pauli_string(letters: str) -> Matrix:
    """Return the operator of a string such as "XZZXI"."""
    return tensor(*(PAULIS[letter] for letter in letters))


def apply_kraus(rho: Matrix, kraus: Sequence[Matrix], targets: Sequence[int]) -> Matrix:
    """Return Σ K ρ K† with the operators on `targets`; a unitary is a list of one."""
    count = qubit_count(rho)
    lifted = [embed(k, targets, count) for k in kraus]
    return np.asarray(sum(k @ rho @ k.conj().T for k in lifted))


def project(rho: Matrix, projector: Matrix, targets: Sequence[int]) -> tuple[float, Matrix]:
    """Return (probability, state behind it) of a measurement's outcome; the state is zero at probability zero."""
    after = apply_kraus(rho, [projector], targets)
    probability = float(np.trace(after).real)
    return probability, after / probability if probability > 1e-15 else np.zeros_like(after)


def partial_trace(rho: Matrix, kept: Sequence[int]) -> Matrix:
    """Return the state of the qubits `kept`, in ascending order."""
    count = qubit_count(rho)
    tensor_form = rho.reshape([2] * (2 * count))
    for q in sorted(set(range(count)) - set(kept), reverse=True):
        tensor_form = np.trace(tensor_form, axis1=q, axis2=q + tensor_form.ndim // 2)
    size = 1 << len(set(kept))
    return np.asarray(tensor_form).reshape(size, size)


def fidelity(rho: Matrix, ket: Matrix) -> float:
    """Return <ψ|ρ|ψ>."""
    return float((ket.conj() @ rho @ ket).real)


def overlap(rho: Matrix, sigma: Matrix) -> float:
    """Return tr(ρσ)."""
    return float(np.trace(rho @ sigma).real)


def werner(fidelity_to_bell: float) -> Matrix:
    """Return the Werner state of a fidelity to Φ+: w Φ+ + (1 - w) I/4 with w = (4F - 1)/3."""
    require_range("fidelity", fidelity_to_bell, 0.25, 1.0)
    w = (4.0 * fidelity_to_bell - 1.0) / 3.0
    return np.asarray(w * density(BELL_KETS[0]) + (1.0 - w) * np.eye(4) / 4.0)


def correlation(rho: Matrix, angle_a_rad: float, angle_b_rad: float) -> float:
    """Return <A ⊗ B> of two qubits for observables cos θ Z + sin θ X."""
    observables = (math.cos(t) * PAULI_Z + math.sin(t) * PAULI_X for t in (angle_a_rad, angle_b_rad))
    return float(np.trace(rho @ tensor(*observables)).real)


def swap_test_probability(rho: Matrix, sigma: Matrix) -> float:
    """Return the probability of outcome 0 of the swap-test circuit on two qubits, by running the circuit exactly."""
    swap = np.eye(4, dtype=np.complex128)[[0, 2, 1, 3]]
    controlled = np.eye(8, dtype=np.complex128)
    controlled[4:, 4:] = swap
    state = tensor(density(BB84_KETS[0]), rho, sigma)
    for gate, targets in ((HADAMARD, (0,)), (controlled, (0, 1, 2)), (HADAMARD, (0,))):
        state = apply_kraus(state, [gate], targets)
    return project(state, density(BB84_KETS[0]), (0,))[0]
