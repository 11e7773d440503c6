"""The quantum channel: loss, background light, fading and the noise map on the qubit.

Decides the transmittance between Alice's output and Bob's input and how the channel disturbs the states. Fibre here,
free space in `free_space`. Implements SPEC §2 (row S0-E8).
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import require_range
from protocol.quantum.noise import NoiseParameters


@dataclass(frozen=True, slots=True)
class FibreParameters:
    """A fibre: attenuation per kilometre, connectors and splices, and any further fixed loss."""

    length_km: float = 25.0
    attenuation_db_per_km: float = 0.2
    connector_count: int = 2
    connector_loss_db: float = 0.25
    extra_loss_db: float = 0.0

    def __post_init__(self) -> None:
        require_range("length_km", self.length_km, 0.0, 1000.0, "km")
        require_range("attenuation_db_per_km", self.attenuation_db_per_km, 0.0, 10.0, "dB/km")
        require_range("connector_count", self.connector_count, 0, 1000)
        require_range("connector_loss_db", self.connector_loss_db, 0.0, 10.0, "dB")
        require_range("extra_loss_db", self.extra_loss_db, 0.0, 200.0, "dB")

    @property
    def loss_db(self) -> float:
        """Return the total loss from Alice's output to Bob's input in dB."""
        connectors_db = self.connector_count * self.connector_loss_db
        return self.length_km * self.attenuation_db_per_km + connectors_db + self.extra_loss_db

    @property
    def transmittance(self) -> float:
        """Return the (constant) probability that a photon arrives."""
        return float(10.0 ** (-self.loss_db / 10.0))

    @property
    def background_rate_hz(self) -> float:
        """Return the background photons per second at Bob's input: none in a dark fibre."""
        return 0.0

    @property
    def coherence_time_s(self) -> float | None:
        """Return the time over which fading is constant: None, a fibre does not fade."""
        return None

    def fading(self, physics: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return transmittances of `count` coherence intervals."""
        return np.full(count, self.transmittance)

    def fading_levels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (weights, transmittances) for averages over the fading: one level."""
        return np.ones(1), np.array([self.transmittance])


class Medium(Protocol):
    """What light travels through; every medium is a frozen record of parameters."""

    @property
    def transmittance(self) -> float:
        """Mean probability that a photon arrives."""
        ...

    @property
    def background_rate_hz(self) -> float:
        """Unpolarised background photons per second that reach Bob's input."""
        ...

    @property
    def coherence_time_s(self) -> float | None:
        """Time over which the transmittance keeps one value; None where it never changes."""
        ...

    def fading(self, physics: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Transmittances of `count` coherence intervals, mean `transmittance`."""
        ...

    def fading_levels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (sum one) and transmittances that stand for the fading in averages."""
        ...


@dataclass(frozen=True, slots=True)
class ChannelParameters:
    """One quantum channel: the medium (fibre or free space) and the noise on the encoded qubit."""

    medium: Medium = field(default_factory=FibreParameters)
    noise: NoiseParameters = field(default_factory=NoiseParameters)

    @property
    def loss_db(self) -> float:
        """Return the mean loss in dB."""
        return -10.0 * math.log10(self.medium.transmittance) if self.medium.transmittance > 0.0 else math.inf
