"""The kernels of distillation, or their numpy twins where no compiler was at hand: same arguments, same bits.

Each function says what it computes by its twin; the C versions are in `distillation.c`. `implementation()` tells
which serve. Kernels release the interpreter's lock, so the daemon runs them as jobs beside its loop.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_compiled: Any
try:
    _compiled = importlib.import_module("protocol.kernels._distillation")
except ImportError:  # no compiler when the package was built: the twins serve
    _compiled = None

Bits = NDArray[np.uint8]

PRIME_127 = (1 << 127) - 1
CHUNK_BYTES = 15

library: Any = _compiled.lib if _compiled is not None else None
ffi: Any = _compiled.ffi if _compiled is not None else None


def implementation() -> str:
    """Return which implementation serves: "numpy", or "C" with the processor features in use."""
    if library is None:
        return "numpy"
    features: bytes = ffi.string(library.qd_features())
    return f"C ({features.decode()})"


def polynomial_hash(data: bytes, point: int) -> int:
    """Return Σ c_i·r^(k-i) mod 2¹²⁷ - 1 for the 15-byte little-endian chunks c_1 … c_k of `data` at r = `point`."""
    return polynomial_hash_twin(data, point)


def polynomial_hash_twin(data: bytes, point: int) -> int:
    """Horner's rule on Python's integers."""
    value = 0
    for start in range(0, len(data), CHUNK_BYTES):
        value = ((value + int.from_bytes(data[start : start + CHUNK_BYTES], "little")) * point) % PRIME_127
    return value


def toeplitz(bits: Bits, seed: bytes, output_bits: int) -> Bits:
    """Return the modified Toeplitz hash of `bits`; see `protocol.distill.amplification.amplify` for its definition."""
    return toeplitz_twin(bits, seed, output_bits)


def toeplitz_twin(bits: Bits, seed: bytes, output_bits: int) -> Bits:
    """The hash as a real convolution by FFT, rounded.

    Exact: the error of a coefficient is about 2⁻⁵³·log₂N·‖s‖·‖x‖, with 0/1 entries and at most 2²⁶ of them below
    10⁻⁶, far from the 1/2 that would change a rounding.
    """
    tail = bits[output_bits:]
    wanted = output_bits + tail.size - 1
    diagonal = np.unpackbits(np.frombuffer(seed, dtype=np.uint8), count=wanted)
    size = 1 << (wanted + tail.size - 1).bit_length()
    spectrum = np.fft.rfft(diagonal.astype(np.float64), size) * np.fft.rfft(tail.astype(np.float64), size)
    product = np.rint(np.fft.irfft(spectrum, size)[tail.size - 1 : tail.size - 1 + output_bits]).astype(np.int64)
    return bits[:output_bits] ^ (product & 1).astype(np.uint8)
