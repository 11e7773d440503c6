"""Light in flight: the one place where the frames of the emulated quantum channel are written and parsed.

A frame stands for what a fibre carries during a stretch of pulses, as a sparse list of arrivals. Its content is
physics, not protocol data: only `link.Transmitter` writes it and only `link.Receiver`, behind the detector model, reads
it. Implements SPEC §3.4.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.quantum.detector import BRIGHT, POLARISED_KINDS
from protocol.quantum.source import PULSES_MAX

# magic, flags (1: continuous bright light that blinds), first position, pulse count, arrival count; little-endian.
HEADER: Final = struct.Struct("<4sIQII")
MAGIC: Final = b"QLT1"
FLAG_BLINDING: Final = 1
FRAME_PULSES_MAX: Final = 2**32 - 1
ARRIVAL_BYTES: Final = 5  # offset from the first position (4), tag (1)


class LightError(ValueError):
    """A light frame that no transmitter of this protocol can have emitted."""


@dataclass(frozen=True, slots=True, repr=False)
class Light:
    """A stretch of pulses: arrivals at first + offsets (uint32, not decreasing) with their tags (uint8)."""

    first: int
    pulse_count: int
    offsets: NDArray[np.uint32]
    tags: NDArray[np.uint8]
    blinding: bool = False

    def __repr__(self) -> str:
        return f"<Light of {self.pulse_count} pulses from {self.first}, opaque>"


def _valid_tags() -> NDArray[np.bool_]:
    tags = np.arange(256)
    kinds, photons = tags & 0x0F, tags >> 4
    return (photons > 0) & ((kinds < POLARISED_KINDS) | ((kinds >= BRIGHT) & (kinds < BRIGHT + 4)))


_VALID_TAG: Final = _valid_tags()


def encode(light: Light) -> bytes:
    """Return the frame of a stretch of light."""
    flags = FLAG_BLINDING if light.blinding else 0
    header = HEADER.pack(MAGIC, flags, light.first, light.pulse_count, len(light.offsets))
    return b"".join((header, light.offsets.astype("<u4", copy=False).tobytes(), light.tags.tobytes()))


def decode(frame: bytes) -> Light:
    """Parse a frame. Raises LightError, and nothing else, on anything that is not one whole valid frame."""
    if len(frame) < HEADER.size:
        raise LightError(f"a light frame has at least {HEADER.size} bytes, this one has {len(frame)}")
    magic, flags, first, pulse_count, count = HEADER.unpack_from(frame)
    if magic != MAGIC or flags & ~FLAG_BLINDING:
        raise LightError("not a light frame of this version")
    if len(frame) != HEADER.size + ARRIVAL_BYTES * count:
        raise LightError(f"a light frame with {count} arrivals has another length than {len(frame)} bytes")
    if pulse_count > FRAME_PULSES_MAX or first + pulse_count > PULSES_MAX:
        raise LightError("a light frame beyond the last pulse position")
    offsets = np.frombuffer(frame, dtype="<u4", count=count, offset=HEADER.size).astype(np.uint32, copy=False)
    tags = np.frombuffer(frame, dtype=np.uint8, offset=HEADER.size + 4 * count)
    if count and (int(offsets[-1]) >= pulse_count or bool(np.any(offsets[1:] < offsets[:-1]))):
        raise LightError("arrivals of a light frame are out of order or beyond its pulses")
    if bool(np.any(offsets[2:] == offsets[:-2])):
        raise LightError("more than a pulse and background light arrive at one position of a light frame")
    if not bool(np.all(_VALID_TAG[tags])):
        raise LightError("an arrival of a light frame that light cannot be")
    return Light(first, pulse_count, offsets, tags, bool(flags & FLAG_BLINDING))
