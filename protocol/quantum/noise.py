"""Noise on one qubit: Kraus maps and their Pauli probabilities.

Decides what decoherence does to a state; loss is the channel's, wrong outputs of the analyser are the detector's.
Implements SPEC §2.3 (rows S0-E7, S0-E8).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import require_range

Matrix = NDArray[np.complex128]

IDENTITY: Final[Matrix] = np.eye(2, dtype=np.complex128)
PAULI_X: Final[Matrix] = np.array([[0, 1], [1, 0]], dtype=np.complex128)
PAULI_Y: Final[Matrix] = np.array([[0, -1j], [1j, 0]], dtype=np.complex128)
PAULI_Z: Final[Matrix] = np.array([[1, 0], [0, -1]], dtype=np.complex128)

# The BB84 states as kets, index basis << 1 | bit: |0>, |1>, |+>, |->.
BB84_KETS: Final[Matrix] = np.array([[1, 0], [0, 1], [1, 1], [1, -1]], dtype=np.complex128) / np.array(
    [[1], [1], [math.sqrt(2)], [math.sqrt(2)]]
)

BREIDBART_KETS: Final[Matrix] = np.array(
    [[math.cos(math.pi / 8), math.sin(math.pi / 8)], [-math.sin(math.pi / 8), math.cos(math.pi / 8)]],
    dtype=np.complex128,
)


def depolarising(probability: float) -> list[Matrix]:
    """Return Kraus operators: with `probability` the state is replaced by the maximally mixed one."""
    require_range("depolarising", probability, 0.0, 1.0)
    weights = [1.0 - 0.75 * probability] + [probability / 4.0] * 3
    return [math.sqrt(w) * p for w, p in zip(weights, (IDENTITY, PAULI_X, PAULI_Y, PAULI_Z), strict=True)]


def dephasing(probability: float) -> list[Matrix]:
    """Return Kraus operators: with `probability` a phase flip Z (1/2 destroys all coherence)."""
    require_range("dephasing", probability, 0.0, 0.5)
    return [math.sqrt(1.0 - probability) * IDENTITY, math.sqrt(probability) * PAULI_Z]


def bit_flip(probability: float) -> list[Matrix]:
    """Return Kraus operators: with `probability` a bit flip X."""
    require_range("bit_flip", probability, 0.0, 0.5)
    return [math.sqrt(1.0 - probability) * IDENTITY, math.sqrt(probability) * PAULI_X]


def amplitude_damping(probability: float) -> list[Matrix]:
    """Return Kraus operators: |1> decays to |0> with `probability`."""
    require_range("amplitude_damping", probability, 0.0, 1.0)
    keep = np.array([[1, 0], [0, math.sqrt(1.0 - probability)]], dtype=np.complex128)
    decay = np.array([[0, math.sqrt(probability)], [0, 0]], dtype=np.complex128)
    return [keep, decay]


def rotation(angle_rad: float) -> list[Matrix]:
    """Return the unitary of a polarisation rotation by `angle_rad` in the plane of the BB84 states (real rotation)."""
    require_range("rotation_rad", angle_rad, -math.pi, math.pi, "rad")
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return [np.array([[c, -s], [s, c]], dtype=np.complex128)]


def phase(angle_rad: float) -> list[Matrix]:
    """Return the unitary of a phase between |0> and |1>: the drift of a time-bin interferometer."""
    require_range("phase_rad", angle_rad, -math.pi, math.pi, "rad")
    return [np.array([[1, 0], [0, complex(math.cos(angle_rad), math.sin(angle_rad))]], dtype=np.complex128)]


def apply(kraus: list[Matrix], density: Matrix) -> Matrix:
    """Return Σ K ρ K† for a 2×2 density matrix."""
    return sum((k @ density @ k.conj().T for k in kraus), np.zeros((2, 2), dtype=np.complex128))


def pauli_probabilities(kraus: list[Matrix]) -> NDArray[np.float64]:
    """Return the probabilities of I, X, Y, Z of the Pauli twirl of a map: Σ |tr(P K)|² / 4."""
    paulis = (IDENTITY, PAULI_X, PAULI_Y, PAULI_Z)
    return np.array([sum(abs(np.trace(p @ k)) ** 2 for k in kraus) / 4.0 for p in paulis])


@dataclass(frozen=True, slots=True)
class NoiseParameters:
    """The noise maps of a channel, applied in this order: rotation, phase, dephasing, damping, depolarising.

    They say what a carrier suffers: polarisation turns (rotation_rad, all BB84 states alike); a time-bin qubit's
    interferometers drift apart (phase_rad) or blur (dephasing), which only the X basis feels.
    """

    rotation_rad: float = 0.0
    phase_rad: float = 0.0
    dephasing: float = 0.0
    amplitude_damping: float = 0.0
    depolarising: float = 0.0

    def __post_init__(self) -> None:
        self.maps()

    def maps(self) -> list[list[Matrix]]:
        """Return the Kraus operators of each map. Raises ParameterError for a parameter out of range."""
        return [
            rotation(self.rotation_rad),
            phase(self.phase_rad),
            dephasing(self.dephasing),
            amplitude_damping(self.amplitude_damping),
            depolarising(self.depolarising),
        ]

    def apply(self, density: Matrix) -> Matrix:
        """Return the density matrix behind the channel."""
        for kraus in self.maps():
            density = apply(kraus, density)
        return density

    def one_probability(self) -> NDArray[np.float64]:
        """Return P(outcome 1) as [kind of light, measured basis (0 Z, 1 X)], from the density matrices.

        Kinds: 0 … 3 the BB84 states (basis << 1 | bit), 4 unpolarised (it enters behind the noise), 5 and 6 the two
        Breidbart states, half-way between Z and X.
        """
        table = np.full((7, 2), 0.5)
        kinds = {**dict(enumerate(BB84_KETS)), 5: BREIDBART_KETS[0], 6: BREIDBART_KETS[1]}
        for kind, ket in kinds.items():
            density = self.apply(np.outer(ket, ket.conj()))
            for basis in (0, 1):
                effect = BB84_KETS[basis << 1 | 1]
                table[kind, basis] = (effect.conj() @ density @ effect).real
        return np.asarray(np.clip(table, 0.0, 1.0))
