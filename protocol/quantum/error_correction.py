"""Quantum error correction: stabiliser codes over a noise map, decoded by syndrome.

Decides logical error rates, by Monte Carlo on Pauli frames and by exact enumeration; the encoder and the decoder act on
exact states too. Implements SPEC §8.1 (rows S0-E7, S0-E9, S0-E11).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import require, require_range
from protocol.quantum import states
from protocol.quantum.noise import BB84_KETS, Matrix

Bits = NDArray[np.uint8]

# A Pauli is a pair (x, z) of bits: I 00, X 10, Z 01, Y 11. This is the order of the probabilities I, X, Y, Z.
_LETTER_X: Final = np.array([0, 1, 1, 0], dtype=np.uint8)
_LETTER_Z: Final = np.array([0, 0, 1, 1], dtype=np.uint8)


def _symplectic(strings: Sequence[str]) -> Bits:
    """Return rows (x | z) of Pauli strings."""
    codes = np.array([["IXYZ".index(letter) for letter in string] for string in strings])
    return np.concatenate([_LETTER_X[codes], _LETTER_Z[codes]], axis=1)


@dataclass(frozen=True)
class Code:
    """A stabiliser code of one logical qubit: generators and logical X, Z as Pauli strings.

    Raises ParameterError unless generators commute with each other and with the logical operators, and these do not
    commute.
    """

    name: str
    stabilisers: tuple[str, ...]
    logical_x: str
    logical_z: str

    def __post_init__(self) -> None:
        rows = _symplectic([*self.stabilisers, self.logical_x, self.logical_z])
        anticommute = _anticommute(rows, rows)
        expected = np.zeros_like(anticommute)
        expected[-1, -2] = expected[-2, -1] = 1
        require(bool(np.array_equal(anticommute, expected)), f"{self.name} is not a stabiliser code of one qubit")
        require(len(self.stabilisers) == self.qubits - 1, f"{self.name} needs {self.qubits - 1} generators")

    @property
    def qubits(self) -> int:
        """Return the number of physical qubits."""
        return len(self.logical_x)

    @cached_property
    def _checks(self) -> Bits:
        return _symplectic(self.stabilisers)

    @cached_property
    def _logicals(self) -> Bits:
        return _symplectic([self.logical_x, self.logical_z])

    def syndrome(self, errors: Bits) -> NDArray[np.int64]:
        """Return the syndromes, as numbers, of errors given as rows (x | z)."""
        bits = _anticommute(errors, self._checks)
        return np.asarray(bits @ (1 << np.arange(len(self.stabilisers), dtype=np.int64)))

    @cached_property
    def corrections(self) -> Bits:
        """Return one lightest error per syndrome; among equals a Y-free one, then the first in the order of qubits."""
        table = np.zeros((1 << len(self.stabilisers), 2 * self.qubits), dtype=np.uint8)
        errors = self._all_errors()
        x, z = errors[:, : self.qubits], errors[:, self.qubits :]
        weight, ys = (x | z).sum(axis=1).astype(int), (x & z).sum(axis=1).astype(int)
        order = np.lexsort((ys, weight))[::-1]
        table[self.syndrome(errors[order])] = errors[order]  # the lightest is written last
        return table

    def _all_errors(self) -> Bits:
        require_range("qubits", self.qubits, 1, 8)
        codes = np.array(list(product(range(4), repeat=self.qubits)))
        return np.concatenate([_LETTER_X[codes], _LETTER_Z[codes]], axis=1)

    def residual(self, errors: Bits) -> Bits:
        """Return what is left after decoding, as logical operators: columns (logical X happened, logical Z happened).

        A residual anticommutes with the logical Z exactly if it acts as a logical X, and the other way round.
        """
        left = errors ^ self.corrections[self.syndrome(errors)]
        return _anticommute(left, self._logicals[::-1])

    # ---- exact states

    def encode(self, ket: Matrix) -> Matrix:
        """Return the logical ket α|0_L> + β|1_L> of a qubit (S0-E7)."""
        size = 1 << self.qubits
        projector = np.eye(size, dtype=np.complex128)
        for generator in (*self.stabilisers, self.logical_z):
            projector = projector @ (np.eye(size) + states.pauli_string(generator)) / 2.0
        zero = projector[:, int(np.argmax(np.abs(np.diag(projector))))]
        zero = zero / np.linalg.norm(zero)
        return np.asarray(ket[0] * zero + ket[1] * (states.pauli_string(self.logical_x) @ zero))

    def decode(self, rho: Matrix) -> Matrix:
        """Measure the syndrome of a density matrix, correct, and return the 2×2 state of the logical qubit (S0-E11)."""
        # A correction carries the space of its syndrome onto the code space, so that projecting on the code words
        # behind it is the syndrome measurement too.
        words = np.stack([self.encode(BB84_KETS[bit]) for bit in (0, 1)]).conj()
        decoded = np.zeros((2, 2), dtype=np.complex128)
        for correction in self.corrections:
            recovery = words @ states.pauli_string(self._letters(correction))
            decoded += recovery @ rho @ recovery.conj().T
        return decoded

    def _letters(self, error: Bits) -> str:
        x, z = error[: self.qubits], error[self.qubits :]
        return "".join("IXZY"[a + 2 * b] for a, b in zip(x.tolist(), z.tolist(), strict=True))


def _anticommute(left: Bits, right: Bits) -> Bits:
    """Return a matrix of bits: does row i of `left` anticommute with row j of `right`?"""
    half = left.shape[1] // 2
    crossed = np.concatenate([right[:, half:], right[:, :half]], axis=1)
    return np.asarray((left @ crossed.T) & np.uint8(1))  # at most 14 terms: bytes do not overflow


def repetition_code(qubits: int = 3) -> Code:
    """Return the bit-flip repetition code of an odd number of qubits (3, 5 or 7): it corrects X errors only."""
    require(qubits in (3, 5, 7), f"a repetition of {qubits}; it must be 3, 5 or 7")
    checks = tuple("I" * i + "ZZ" + "I" * (qubits - i - 2) for i in range(qubits - 1))
    return Code(f"repetition-{qubits}", checks, "X" * qubits, "Z" + "I" * (qubits - 1))


FIVE_QUBIT: Final = Code("five-qubit", ("XZZXI", "IXZZX", "XIXZZ", "ZXIXZ"), "XXXXX", "ZZZZZ")
STEANE: Final = Code("steane", ("IIIXXXX", "IXXIIXX", "XIXIXIX", "IIIZZZZ", "IZZIIZZ", "ZIZIZIZ"), "XXXXXXX", "ZZZZZZZ")


@dataclass(frozen=True, slots=True)
class LogicalErrors:
    """Probabilities that decoding leaves a logical X or Y (flip), a logical Z or Y (phase), or any of them."""

    flip: float
    phase: float
    any: float


def sample_logical_errors(
    code: Code, pauli: NDArray[np.float64], shots: int, physics: np.random.Generator
) -> LogicalErrors:
    """Return rates over `shots` words through independent Pauli noise (probabilities of I, X, Y, Z per qubit).

    The Pauli twirl of a noise map (`noise.pauli_probabilities`) gives `pauli`. Errors are independent of the state, so
    their frames alone are drawn, all at once per batch of 2^16 words.
    """
    require_range("shots", shots, 1, 1e9)
    counts = np.zeros(3)
    for start in range(0, shots, 1 << 16):
        size = min(1 << 16, shots - start)
        letters = physics.choice(4, size=(size, code.qubits), p=pauli)
        left = code.residual(np.concatenate([_LETTER_X[letters], _LETTER_Z[letters]], axis=1))
        counts += left[:, 0].sum(), left[:, 1].sum(), (left[:, 0] | left[:, 1]).sum()
    return LogicalErrors(*(counts / shots).tolist())


def exact_logical_errors(code: Code, pauli: NDArray[np.float64]) -> LogicalErrors:
    """Return the same rates by enumeration of all 4^n errors (n ≤ 7: 16 384)."""
    codes = np.array(list(product(range(4), repeat=code.qubits)))
    chance = np.prod(pauli[codes], axis=1)
    left = code.residual(np.concatenate([_LETTER_X[codes], _LETTER_Z[codes]], axis=1))
    either = left[:, 0] | left[:, 1]
    return LogicalErrors(*(float(chance @ column) for column in (left[:, 0], left[:, 1], either)))
