"""Alice's source: how many photons leave in a pulse, and her choices as a function of the position.

Decides the photon-number statistics and the choices (basis, bit, intensity) of every pulse; knows nothing of the
channel. Implements SPEC §1 (rows S0-E3, S4-7).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.kernels import emulation
from protocol.parameters import ParameterError, require, require_range

BASIS_Z: Final = 0
BASIS_X: Final = 1
SIGNAL: Final = 0
DECOY: Final = 1
VACUUM: Final = 2

# The photon-number vectors end here: a Poisson mean of 2, the largest allowed, exceeds 40 with probability 1e-38.
PHOTONS_MAX: Final = 40

# 2^44 pulses are almost five hours at 1 GHz; the bound keeps every sum of gaps inside 64 bits.
PULSES_MAX: Final = 2**44

WEAK_COHERENT: Final = "weak_coherent"
SINGLE_PHOTON: Final = "single_photon"


@dataclass(frozen=True, slots=True)
class SourceParameters:
    """What Alice's source emits.

    model: `weak_coherent` (phase-randomised laser pulses, Poisson photon number, three intensities) or
    `single_photon` (exactly one photon with probability `efficiency`, one intensity).
    Intensities are mean photon numbers per pulse; the vacuum intensity has the remaining probability.
    intensity_fluctuation: relative standard deviation of a pulse's mean photon number, independent per pulse.
    """

    model: str = WEAK_COHERENT
    pulse_rate_hz: float = 1e9
    basis_z_probability: float = 0.8
    signal_intensity: float = 0.5
    decoy_intensity: float = 0.1
    vacuum_intensity: float = 0.0
    signal_probability: float = 0.8
    decoy_probability: float = 0.12
    intensity_fluctuation: float = 0.0
    efficiency: float = 1.0

    def __post_init__(self) -> None:
        if self.model not in (WEAK_COHERENT, SINGLE_PHOTON):
            raise ParameterError(f"model is {self.model!r}; it must be {WEAK_COHERENT!r} or {SINGLE_PHOTON!r}")
        require_range("pulse_rate_hz", self.pulse_rate_hz, 1.0, 1e12, "Hz")
        require_range("basis_z_probability", self.basis_z_probability, 0.0, 1.0)
        require_range("efficiency", self.efficiency, 0.0, 1.0)
        require_range("intensity_fluctuation", self.intensity_fluctuation, 0.0, 0.3)
        for name in ("signal_intensity", "decoy_intensity", "vacuum_intensity"):
            require_range(name, getattr(self, name), 0.0, 2.0, "photons per pulse")
        require(
            self.signal_intensity > self.decoy_intensity + self.vacuum_intensity
            and self.decoy_intensity > self.vacuum_intensity,
            "the intensities must be ordered signal > decoy + vacuum, decoy > vacuum ≥ 0, as the decoy bounds need; "
            f"they are {self.signal_intensity:g}, {self.decoy_intensity:g}, {self.vacuum_intensity:g}",
        )
        require_range("signal_probability", self.signal_probability, 0.0, 1.0)
        require_range("decoy_probability", self.decoy_probability, 0.0, 1.0 - self.signal_probability)

    @property
    def intensities(self) -> tuple[float, ...]:
        """Mean photon numbers by intensity code: (signal, decoy, vacuum), or the efficiency of single photons."""
        if self.model == SINGLE_PHOTON:
            return (self.efficiency,)
        return (self.signal_intensity, self.decoy_intensity, self.vacuum_intensity)

    @property
    def intensity_probabilities(self) -> tuple[float, ...]:
        """Probabilities of the intensity codes, in the order of `intensities`; they sum to one."""
        if self.model == SINGLE_PHOTON:
            return (1.0,)
        rest = max(0.0, 1.0 - self.signal_probability - self.decoy_probability)
        return (self.signal_probability, self.decoy_probability, rest)

    def photon_distribution(self) -> NDArray[np.float64]:
        """Return P[k, n], the probability that a pulse of intensity k leaves with n photons, n ≤ PHOTONS_MAX.

        Fluctuation mixes Poissonians of normally distributed mean (cut at zero) by Gauss–Hermite quadrature.
        """
        if self.model == SINGLE_PHOTON:
            single = np.zeros((1, PHOTONS_MAX + 1))
            single[0, :2] = 1.0 - self.efficiency, self.efficiency
            return single
        if self.intensity_fluctuation == 0.0:
            return np.array([poisson(mean) for mean in self.intensities])
        nodes, weights = np.polynomial.hermite_e.hermegauss(41)
        factors = np.maximum(0.0, 1.0 + self.intensity_fluctuation * nodes)
        weights = weights / weights.sum()
        return np.array(
            [sum(w * poisson(m * x) for w, x in zip(weights, factors, strict=True)) for m in self.intensities]
        )

    def choice_thresholds(self) -> NDArray[np.uint64]:
        """Return the limits (X basis, signal, signal + decoy) that split a uniform 32-bit word, in units of 2^-32."""
        probabilities = self.intensity_probabilities
        decoy_limit = 1.0 if len(probabilities) == 1 else probabilities[0] + probabilities[1]
        limits = (1.0 - self.basis_z_probability, probabilities[0], decoy_limit)
        return np.array([round(limit * 2**32) for limit in limits], dtype=np.uint64)


def poisson(mean: float) -> NDArray[np.float64]:
    """Return the Poisson probabilities of 0 … PHOTONS_MAX photons, by the recursion p(n+1) = p(n)·mean/(n+1)."""
    probabilities = np.empty(PHOTONS_MAX + 1)
    probabilities[0] = np.exp(-mean)
    for n in range(PHOTONS_MAX):
        probabilities[n + 1] = probabilities[n] * mean / (n + 1)
    return probabilities


@dataclass(frozen=True, slots=True, repr=False)
class Choices:
    """Alice's choices, uint8 each: basis (0 Z, 1 X), bit, intensity code (0 signal, 1 decoy, 2 vacuum)."""

    basis: NDArray[np.uint8]
    bit: NDArray[np.uint8]
    intensity: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<Choices of {self.basis.size} pulses, redacted>"


class PositionFunction:
    """A pseudo-random function of the pulse position under a 32-byte key: AES-256 of the position, 128 bits per pulse.

    Random access in about four nanoseconds per position; nothing of other positions is drawn. With a secret key its
    values cannot be told from uniform, independent bits, so choices read from it are as good as drawn one by one.
    """

    __slots__ = ("_encryptor", "_output")

    # 2^15 positions make 512 KiB of blocks: they stay in the second-level cache.
    BATCH: Final = 32768

    def __init__(self, key: bytes) -> None:
        # Single-block AES as a pseudo-random permutation of distinct positions, not as encryption of a message.
        self._encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
        self._output = bytearray(16 * self.BATCH + 15)

    def words(self, blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return two uniform words per row of `blocks` (n ≤ BATCH rows of (position, 0)).

        The result is a view of an internal buffer, valid until the next call.
        """
        assert len(blocks) <= self.BATCH
        if len(blocks):
            self._encryptor.update_into(blocks.data.cast("B"), self._output)
        return np.frombuffer(self._output, dtype="<u8", count=2 * len(blocks)).reshape(-1, 2)

    def words_at(self, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return two uniform words for each of at most BATCH positions; a view as in `words`."""
        blocks = np.zeros((len(positions), 2), dtype="<u8")
        blocks[:, 0] = positions
        return self.words(blocks)

    def __repr__(self) -> str:
        return "<PositionFunction, key redacted>"


class ChoiceGenerator:
    """Alice's choices under one secret key: any position, at any time, in any order."""

    __slots__ = ("_function", "_thresholds")

    def __init__(self, parameters: SourceParameters, key: bytes) -> None:
        self._function = PositionFunction(key)
        self._thresholds = parameters.choice_thresholds()

    @property
    def function(self) -> PositionFunction:
        """The pseudo-random function itself, for the device that prepares the pulses."""
        return self._function

    def choices(self, positions: NDArray[np.uint64]) -> Choices:
        """Return the choices at `positions` (uint64, any order)."""
        basis, bit, intensity = (np.empty(len(positions), dtype=np.uint8) for _ in range(3))
        for start in range(0, len(positions), PositionFunction.BATCH):
            part = slice(start, start + PositionFunction.BATCH)
            words = self._function.words_at(positions[part])
            emulation.split_choices(words, self._thresholds, basis[part], bit[part], intensity[part])
        return Choices(basis, bit, intensity)
