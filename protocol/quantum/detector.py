"""Bob's detectors: efficiency, dark counts, dead time, after-pulses, misalignment and the double-click rule.

Decides, for every kind of arriving light and each measurement basis, the probability of every click pattern; the
registration over time is the kernel's. Implements SPEC §4 (rows S0-E4, S0-E5).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.kernels import emulation
from protocol.kernels.emulation_twin import DetectorRules
from protocol.parameters import ParameterError, require, require_range

# Tag of one arrival: photons (1 … 15, more saturate) in the high nibble; in the low one the kind of light.
UNPOLARISED: Final = 0x04
BREIDBART: Final = 0x05  # + bit
POLARISED_KINDS: Final = 7  # 0 … 3: BB84 states basis << 1 | bit, then the three above
BRIGHT: Final = 0x08  # | basis << 1 | bit: a pulse that drives a blinded detector over its threshold
PHOTONS_TAG_MAX: Final = 15


@dataclass(frozen=True, slots=True)
class DetectorParameters:
    """Bob's receiver: two threshold detectors behind an actively chosen basis.

    efficiency_0 and efficiency_1 may differ (efficiency mismatch). dark_count_probability is per gate and detector.
    dead_time_ns blocks both detectors after every registered click (simultaneous dead time: an eavesdropper cannot
    learn from it which one fired). after_pulse_probability is the chance that a click leaves one after-pulse in its
    detector, after the dead time and an exponential delay of mean after_pulse_decay_ns. gate_width_ns is the time per
    pulse in which background light counts. misalignment is the probability that a photon takes the wrong output.
    double_click: `random` bit (what the security proofs assume) or `discard` (for experiments only).
    """

    basis_z_probability: float = 0.8
    efficiency_0: float = 0.2
    efficiency_1: float = 0.2
    insertion_loss_db: float = 0.0
    misalignment: float = 0.01
    dark_count_probability: float = 1e-6
    dead_time_ns: float = 50.0
    after_pulse_probability: float = 0.01
    after_pulse_decay_ns: float = 100.0
    gate_width_ns: float = 0.5
    double_click: str = "random"

    def __post_init__(self) -> None:
        require_range("basis_z_probability", self.basis_z_probability, 0.0, 1.0)
        require_range("efficiency_0", self.efficiency_0, 0.0, 1.0)
        require_range("efficiency_1", self.efficiency_1, 0.0, 1.0)
        require_range("insertion_loss_db", self.insertion_loss_db, 0.0, 60.0, "dB")
        require_range("misalignment", self.misalignment, 0.0, 0.5)
        require_range("dark_count_probability", self.dark_count_probability, 0.0, 0.1, "per gate")
        require_range("dead_time_ns", self.dead_time_ns, 0.0, 1e9, "ns")
        require_range("after_pulse_probability", self.after_pulse_probability, 0.0, 0.5)
        require_range("after_pulse_decay_ns", self.after_pulse_decay_ns, 0.0, 1e6, "ns")
        require_range("gate_width_ns", self.gate_width_ns, 0.001, 1e6, "ns")
        require(max(self.efficiency_0, self.efficiency_1) > 0.0, "efficiency_0 or efficiency_1 must be above 0")
        if self.double_click not in ("random", "discard"):
            raise ParameterError(f"double_click is {self.double_click!r}; it must be 'random' or 'discard'")

    @property
    def efficiency_max(self) -> float:
        """Return the larger detector efficiency with the receiver's optics: the light that is worth carrying."""
        return float(max(self.efficiency_0, self.efficiency_1) * 10.0 ** (-self.insertion_loss_db / 10.0))

    @property
    def dark_probability(self) -> float:
        """Return the probability of a dark count in at least one detector in one gate."""
        return 1.0 - (1.0 - self.dark_count_probability) ** 2

    def rules(self, pulse_rate_hz: float) -> DetectorRules:
        """Return the kernel's rules with times in pulse periods (dead time rounded up, at least the click's gate)."""
        per_ns = pulse_rate_hz * 1e-9
        return DetectorRules(
            dead_pulses=max(1, math.ceil(round(self.dead_time_ns * per_ns, 9))),
            after_pulse_probability=self.after_pulse_probability,
            after_pulse_decay_pulses=self.after_pulse_decay_ns * per_ns,
            discard_double=self.double_click == "discard",
        )

    def basis_threshold(self) -> int:
        """Return the limit below which a uniform 32-bit word means the X basis."""
        return round((1.0 - self.basis_z_probability) * 2**32)

    def one_probability(self, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(outcome 1) for [kind of light, basis]: the channel's noise map followed by the misalignment."""
        return noise * (1.0 - self.misalignment) + (1.0 - noise) * self.misalignment

    def outcome_table(self, noise: NDArray[np.float64], blinded: bool = False) -> NDArray[np.float64]:
        """Return cumulative probabilities [tag, basis, (only 0, only 1, both)] for every tag.

        noise: P(outcome 1) per kind of light and basis behind the channel (`NoiseParameters.one_probability`).
        The light was already thinned by `efficiency_max`, so detector d keeps a photon with efficiency_d / max. Blinded
        detectors see bright pulses alone.
        """
        table = np.zeros((256, 2, 3))
        for bright in range(4):
            table[BRIGHT | bright :: 16, bright >> 1] = np.cumsum([1 - (bright & 1), bright & 1, 0])
        if blinded:
            return table
        one = self.one_probability(noise)
        best = max(self.efficiency_0, self.efficiency_1)
        kept_0 = (1.0 - one) * (self.efficiency_0 / best)
        kept_1 = one * (self.efficiency_1 / best)
        for photons in range(1, PHOTONS_TAG_MAX + 1):
            none = (1.0 - kept_0 - kept_1) ** photons
            only_0, only_1 = (1.0 - kept_1) ** photons - none, (1.0 - kept_0) ** photons - none
            both = 1.0 - none - only_0 - only_1
            table[photons << 4 : (photons << 4) + POLARISED_KINDS] = np.cumsum(
                np.stack([only_0, only_1, both], axis=-1), axis=-1
            )
        table[emulation.DARK_TAG_FIRST] = 1.0, 1.0, 1.0
        table[emulation.DARK_TAG_FIRST + 1] = 0.0, 1.0, 1.0
        table[emulation.DARK_TAG_FIRST + 2] = 0.0, 0.0, 1.0
        return table

    def dark_tags(self, uniforms: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return which detectors fired, given that at least one did, as internal tags; uniforms in [0, 1)."""
        single = self.dark_count_probability * (1.0 - self.dark_count_probability)
        scaled = uniforms * self.dark_probability
        return (emulation.DARK_TAG_FIRST + (scaled >= single).astype(np.uint8) + (scaled >= 2.0 * single)).astype(
            np.uint8
        )
