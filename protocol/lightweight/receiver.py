"""The device's detector, emulated without numpy: light in, clicks out (rows S4-A1.7 to S4-A1.11).

The twin of `protocol.quantum.link.Receiver` for a receiver without dead time and after-pulses, whose outcome
probabilities it reproduces (tests compare them for every kind of light). It reads the frames that SPEC §3.4 of
`protocol.quantum` describes, and like there nothing above this module sees light. The basis of every click is a secret
bit from `Entropy`; physics draws from its own generator.
"""

import itertools
import math
import random
import struct
from dataclasses import dataclass
from typing import Final

from protocol.entropy import Entropy
from protocol.parameters import require_range

_HEADER: Final = struct.Struct("<4sIQII")
_MAGIC: Final = b"QLT1"
_BLINDING: Final = 1
_ARRIVAL_BYTES: Final = 5
ARRIVALS_MAX: Final = 32_768
"""Bounds the device's memory: the largest session needs a quarter of it."""
PULSES_MAX: Final = 1 << 24
_BREIDBART_ONE: Final = math.sin(math.pi / 8) ** 2


class LightError(ValueError):
    """A frame of light that no transmitter sends to a device."""


@dataclass(frozen=True, slots=True)
class ReceiverParameters:
    """The device's detectors; their efficiency is part of the link, as light is thinned where it is emitted."""

    misalignment: float = 0.005
    dark_count_probability: float = 1e-6

    def __post_init__(self) -> None:
        require_range("misalignment", self.misalignment, 0.0, 0.5)
        require_range("dark_count_probability", self.dark_count_probability, 0.0, 0.01, "per gate and detector")


@dataclass(frozen=True, slots=True, repr=False)
class Clicks:
    """What registered: strictly increasing positions, the basis (0 Z, 1 X) and the bit of each."""

    positions: list[int]
    basis: list[int]
    bit: list[int]

    def __repr__(self) -> str:
        return f"<Clicks at {len(self.positions)} pulses, redacted>"


class DeviceReceiver:
    """Measures frames of light, each of a whole session."""

    def __init__(self, parameters: ReceiverParameters, entropy: Entropy, physics: random.Random) -> None:
        self._parameters = parameters
        self._entropy = entropy
        self._physics = physics

    def measure(self, frame: bytes) -> Clicks:
        """Measure one frame. Raises LightError on anything malformed, and nothing else."""
        pulse_count, blinding, arrivals = _parse(frame)
        if not blinding:
            arrivals = sorted((*arrivals, *self._dark(pulse_count)))
        bases = self._entropy.take((len(arrivals) + 7) // 8)
        clicks: dict[int, tuple[int, int]] = {}  # position → basis, mask of detectors
        for index, (position, tag) in enumerate(arrivals):
            known = clicks.get(position)
            basis = known[0] if known else bases[index >> 3] >> (index & 7) & 1
            mask = self._outcome(tag, basis, blinding) | (known[1] if known else 0)
            if mask:
                clicks[position] = basis, mask
        bits = [mask >> 1 if mask != 3 else self._physics.getrandbits(1) for _, mask in clicks.values()]
        return Clicks(list(clicks), [basis for basis, _ in clicks.values()], bits)

    def _dark(self, pulse_count: int) -> list[tuple[int, int]]:
        """Draw dark counts by their gaps; the tag's low nibble 12 and 13 stands for detector 0 and 1."""
        rate = self._parameters.dark_count_probability
        found: list[tuple[int, int]] = []
        for detector in (0, 1) if rate > 0 else ():
            position = -1
            while True:
                position += 1 + int(math.log(1.0 - self._physics.random()) / math.log1p(-rate))
                if position >= pulse_count:
                    break
                found.append((position, 12 + detector))
        return found

    def _outcome(self, tag: int, basis: int, blinding: bool) -> int:
        """Return the mask of detectors that one arrival makes click."""
        kind, photons = tag & 15, tag >> 4
        if photons == 0:
            return 1 << (kind & 1)
        if kind >= 8:
            return 1 << (kind & 1) if kind >> 1 & 1 == basis else 0
        if blinding:
            return 0
        one = self._one_probability(kind, basis)
        mask = 0
        for _ in range(photons):
            mask |= 2 if self._physics.random() < one else 1
        return mask

    def _one_probability(self, kind: int, basis: int) -> float:
        wrong = self._parameters.misalignment
        ideal = 0.5
        if kind < 4 and kind >> 1 == basis:
            ideal = float(kind & 1)
        elif kind > 4:
            ideal = 1 - _BREIDBART_ONE if kind & 1 == 0 else _BREIDBART_ONE
        return ideal * (1 - wrong) + (1 - ideal) * wrong


def _parse(frame: bytes) -> tuple[int, bool, list[tuple[int, int]]]:
    """Return (pulses, blinding, arrivals as (position, tag)). Raises LightError."""
    if len(frame) < _HEADER.size:
        raise LightError("too short for a frame of light")
    magic, flags, first, pulse_count, count = _HEADER.unpack_from(frame)
    if magic != _MAGIC or flags & ~_BLINDING or first or pulse_count > PULSES_MAX or count > ARRIVALS_MAX:
        raise LightError("not a frame of light for a device")
    if len(frame) != _HEADER.size + _ARRIVAL_BYTES * count:
        raise LightError("a frame of light of another length")
    tags = frame[_HEADER.size + 4 * count :]
    offsets = struct.unpack_from(f"<{count}I", frame, _HEADER.size)
    if count and (offsets[-1] >= pulse_count or any(b < a for a, b in itertools.pairwise(offsets))):
        raise LightError("arrivals out of order, or beyond the pulses")
    if not all(tag >> 4 and (tag & 15 < 7 or 8 <= tag & 15 < 12) for tag in tags):
        raise LightError("an arrival that light cannot be")
    return pulse_count, bool(flags & _BLINDING), list(zip(offsets, tags, strict=True))
