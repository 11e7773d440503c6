"""The emulation's inner loops: the C kernel `_emulation` where it was built, else the numpy twin.

`IMPLEMENTATION` says which ("c" or "numpy"). Both are pure functions of the random words that they are given, and
equal bit for bit; `emulation_twin` is the specification and says what every argument means.
"""

import importlib
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.kernels import emulation_twin
from protocol.kernels.emulation_twin import CARRY_SIZE, DARK_TAG_FIRST, DetectorRules, fresh_carry

__all__ = [
    "CARRY_SIZE",
    "DARK_TAG_FIRST",
    "IMPLEMENTATION",
    "DetectorRules",
    "detect",
    "emit",
    "fresh_carry",
    "propose",
    "split_choices",
]


def _load() -> Any:
    """Return the kernel's module, or None: not built, or a machine whose words are not those of AES blocks."""
    if sys.byteorder != "little":
        return None
    try:
        return importlib.import_module("protocol.kernels._emulation")
    except ImportError:
        return None


_kernel: Final = _load()

IMPLEMENTATION: Final = "numpy" if _kernel is None else "c"

_CELLS: Final = {"d": "double[]", "L": "uint64_t[]", "Q": "uint64_t[]", "B": "uint8_t[]"}


def _pointer(array: NDArray[Any]) -> Any:
    """Return the array's memory for the kernel; an array that is not contiguous raises ValueError."""
    return _kernel.ffi.from_buffer(_CELLS[array.dtype.char], array)


def _propose(
    exponentials: NDArray[np.float64], inverse_rate: float, start: int, end: int, blocks: NDArray[np.uint64]
) -> int:
    arguments = (_pointer(exponentials), len(exponentials), inverse_rate, start, end, _pointer(blocks))
    return int(_kernel.lib.emulation_propose(*arguments))


def _emit(
    blocks: NDArray[np.uint64],
    words: NDArray[np.uint64],
    uniforms: NDArray[np.uint64],
    thresholds: NDArray[np.uint64],
    tails: NDArray[np.float64],
    ceiling: float,
    positions: NDArray[np.uint64],
    tags: NDArray[np.uint8],
) -> int:
    assert len(words) == len(uniforms) == len(blocks) <= min(len(positions), len(tags)) and tails.shape[1] == 15
    inputs = (_pointer(blocks), _pointer(words), _pointer(uniforms), len(blocks), _pointer(thresholds), _pointer(tails))
    return int(_kernel.lib.emulation_emit(*inputs, ceiling, _pointer(positions), _pointer(tags)))


def _split_choices(
    words: NDArray[np.uint64],
    thresholds: NDArray[np.uint64],
    basis: NDArray[np.uint8],
    bit: NDArray[np.uint8],
    intensity: NDArray[np.uint8],
) -> None:
    assert len(words) == len(basis) == len(bit) == len(intensity)
    outputs = (_pointer(basis), _pointer(bit), _pointer(intensity))
    _kernel.lib.emulation_split_choices(_pointer(words), len(words), _pointer(thresholds), *outputs)


def _detect(
    positions: NDArray[np.uint64],
    tags: NDArray[np.uint8],
    words: NDArray[np.uint64],
    uniforms: NDArray[np.uint64],
    outcomes: NDArray[np.float64],
    basis_threshold: int,
    end: int,
    detectors: DetectorRules,
    carry: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint8]]:
    """Call the kernel, again where chains of after-pulses outran the room for results."""
    count = len(positions)
    assert len(tags) == len(words) == len(uniforms) == count and outcomes.shape == (256, 2, 3)
    room = count + count // 8 + 16
    progress = _kernel.ffi.new("size_t *", 0)
    rules = (detectors.dead_pulses, *detectors[1:3], int(detectors.discard_double))
    inputs = tuple(_pointer(array) for array in (positions, tags, words, uniforms))
    parts = []
    while True:
        found = np.empty(room, np.uint64), np.empty(room, np.uint8), np.empty(room, np.uint8)
        results = tuple(_pointer(array) for array in found)
        number = _kernel.lib.emulation_detect(
            *inputs, count, progress, _pointer(outcomes), basis_threshold, end, *rules, _pointer(carry), *results, room
        )
        parts.append((found[0][:number], found[1][:number], found[2][:number]))
        if progress[0] == count:
            break
        progress[0] = min(progress[0], count)
    if len(parts) == 1:
        return parts[0]
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] for p in parts]),
    )


propose = emulation_twin.propose if _kernel is None else _propose
emit = emulation_twin.emit if _kernel is None else _emit
split_choices = emulation_twin.split_choices if _kernel is None else _split_choices
detect = emulation_twin.detect if _kernel is None else _detect
