"""The kernels of distillation, or their numpy twins where no compiler was at hand: same arguments, same bits.

Each function says what it computes by its twin; the C versions are in `distillation.c`. `implementation()` tells
which serve. Kernels release the interpreter's lock, so the daemon runs them as jobs beside its loop.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

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


LEVELS = ("portable", "avx2", "avx512")


@contextmanager
def limited_to(level: str) -> Iterator[None]:
    """Use no processor feature beyond `level` of `LEVELS` inside the block: for tests, which must reach every path."""
    library.qd_limit_level(LEVELS.index(level))
    try:
        yield
    finally:
        library.qd_limit_level(len(LEVELS) - 1)


def polynomial_hash(data: bytes, point: int) -> int:
    """Return Σ c_i·r^(k-i+1) mod 2¹²⁷ - 1 for the 15-byte little-endian chunks c_1 … c_k of `data` at r = `point`."""
    if library is None:
        return polynomial_hash_twin(data, point)
    value = bytearray(16)
    library.qd_polynomial_hash(data, len(data), point.to_bytes(16, "little"), ffi.from_buffer("uint8_t[]", value))
    return int.from_bytes(value, "little")


def polynomial_hash_twin(data: bytes, point: int) -> int:
    """Horner's rule on Python's integers."""
    value = 0
    for start in range(0, len(data), CHUNK_BYTES):
        value = ((value + int.from_bytes(data[start : start + CHUNK_BYTES], "little")) * point) % PRIME_127
    return value


def split(bits: Bits, mask: NDArray[np.bool_]) -> tuple[Bits, Bits]:
    """Return the bits outside `mask` and those inside, each in order."""
    if library is None:
        return split_twin(bits, mask)
    inside = int(np.count_nonzero(mask))
    kept = np.empty(bits.size - inside + 1, dtype=np.uint8)
    taken = np.empty(inside + 1, dtype=np.uint8)
    plain = np.ascontiguousarray(bits)
    library.qd_split(_readable(plain), _readable(mask.view(np.uint8)), bits.size, _writable(kept), _writable(taken))
    return kept[:-1], taken[:-1]


def split_twin(bits: Bits, mask: NDArray[np.bool_]) -> tuple[Bits, Bits]:
    """By boolean indices."""
    return bits[~mask], bits[mask]


def toeplitz(bits: Bits, seed: bytes, output_bits: int) -> Bits:
    """Return the modified Toeplitz hash of `bits`; `protocol.distill.amplification.amplify` defines it.

    `seed` is packed, lowest bit first, and long enough; 0 < output_bits < bits.size.
    """
    if library is None:
        return toeplitz_twin(bits, seed, output_bits)
    tail = np.packbits(bits[output_bits:], bitorder="little").tobytes()
    packed = np.empty((output_bits + 7) // 8, dtype=np.uint8)
    _check(library.qd_toeplitz(tail, bits.size - output_bits, seed, output_bits, _writable(packed)))
    return bits[:output_bits] ^ np.unpackbits(packed, count=output_bits, bitorder="little")


def toeplitz_twin(bits: Bits, seed: bytes, output_bits: int) -> Bits:
    """The hash as a real convolution by FFT, rounded.

    Exact: the error of a coefficient is about 2⁻⁵³·log₂N·‖s‖·‖x‖, with 0/1 entries and at most 2²⁶ of them below
    10⁻⁶, far from the 1/2 that would change a rounding.
    """
    tail = bits[output_bits:]
    wanted = output_bits + tail.size - 1
    diagonal = np.unpackbits(np.frombuffer(seed, dtype=np.uint8), count=wanted, bitorder="little")
    size = 1 << (wanted + tail.size - 1).bit_length()
    spectrum = np.fft.rfft(diagonal.astype(np.float64), size) * np.fft.rfft(tail.astype(np.float64), size)
    product = np.rint(np.fft.irfft(spectrum, size)[tail.size - 1 : tail.size - 1 + output_bits]).astype(np.int64)
    return bits[:output_bits] ^ (product & 1).astype(np.uint8)


class CascadeKernel:
    """One side of Cascade's search in C; the twins in `protocol.distill.reconciliation.cascade_search` specify it.

    Raises ValueError on a malformed message.
    """

    def __init__(self, is_bob: bool, plan: "CascadeShape", bits: Bits) -> None:
        padded = np.zeros((plan.rows * plan.lanes + 7) // 8 + 16, dtype=np.uint8)
        packed = np.packbits(bits, bitorder="little")
        padded[: packed.size] = packed
        side = library.qd_cascade_new(
            is_bob,
            bits.size,
            plan.rows,
            plan.lanes,
            len(plan.block_rows),
            list(plan.block_rows),
            list(plan.keys),
            plan.reuse,
            plan.infer_last,
            _readable(padded),
        )
        if side == ffi.NULL:
            raise MemoryError("no memory for a block of this size")
        self._side = ffi.gc(side, library.qd_cascade_free)
        self._size_bits = bits.size
        self._padded_size_bytes = padded.size
        self.active = 0  # running searches

    @property
    def corrected(self) -> int:
        """Bits flipped so far."""
        return int(library.qd_cascade_corrected(self._side))

    def opening(self, size_bytes: int) -> bytes:
        """Alice: the opening parities, `size_bytes` long by the plan."""
        out = bytearray(size_bytes)
        written = library.qd_cascade_opening(self._side, ffi.from_buffer("uint8_t[]", out))
        assert written == size_bytes, "the plan and the kernel disagree on the opening's size"
        return bytes(out)

    def follow(self, directions: bytes, records: bytes) -> None:
        """Alice: narrow the running searches and take up new ones."""
        _check(library.qd_cascade_follow(self._side, directions, records, len(records) // 8))
        self.active = library.qd_cascade_active(self._side)

    def answer(self) -> bytes:
        """Alice: one parity per running search."""
        out = bytearray((self.active + 7) // 8)
        library.qd_cascade_answer(self._side, ffi.from_buffer("uint8_t[]", out))
        return bytes(out)

    def open(self, parities: bytes) -> tuple[bytes, bytes]:
        """Bob: compare the opening; return no directions and the new searches."""
        return b"", self._records(_check(library.qd_cascade_open(self._side, parities)))

    def step(self, parities: bytes) -> tuple[bytes, bytes]:
        """Bob: take one answer per running search; return directions and the new searches."""
        directions = bytearray((self.active + 7) // 8)
        added = _check(library.qd_cascade_step(self._side, parities, ffi.from_buffer("uint8_t[]", directions)))
        return bytes(directions), self._records(added)

    def _records(self, count: int) -> bytes:
        self.active = library.qd_cascade_active(self._side)
        out = bytearray(8 * count)
        library.qd_cascade_records(self._side, ffi.from_buffer("uint8_t[]", out))
        return bytes(out)

    def bits(self) -> Bits:
        """Bob: the corrected string."""
        packed = np.zeros(self._padded_size_bytes, dtype=np.uint8)
        library.qd_cascade_bits(self._side, _writable(packed))
        return np.unpackbits(packed, count=self._size_bits, bitorder="little")


class CascadeShape(Protocol):
    """What the kernel needs of `protocol.distill.reconciliation.cascade.CascadePlan`."""

    @property
    def rows(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def block_rows(self) -> tuple[int, ...]: ...
    @property
    def keys(self) -> tuple[int, ...]: ...
    @property
    def reuse(self) -> bool: ...
    @property
    def infer_last(self) -> bool: ...


def _readable(array: NDArray[Any]) -> Any:
    return ffi.from_buffer("uint8_t[]", array)


def _writable(array: NDArray[Any]) -> Any:
    return ffi.from_buffer("uint8_t[]", array, require_writable=True)


def _check(result: int) -> int:
    """Turn the kernel's error codes into exceptions; pass counts through."""
    if result == -2:
        raise MemoryError("no memory for a block of this size")
    if result < 0:
        raise ValueError("malformed message")
    return int(result)


class CodeShape(Protocol):
    """What the kernels need of `protocol.distill.reconciliation.ldpc_code.Code`."""

    @property
    def z(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def row_start(self) -> NDArray[np.uint32]: ...
    @property
    def column(self) -> NDArray[np.uint32]: ...
    @property
    def shift(self) -> NDArray[np.uint32]: ...


UNITS_PER_NAT = 64  # of a log-likelihood ratio; coarser costs efficiency at low rates
MESSAGE_LIMIT = 1023
_PHI_SCALE = 1 << 20  # so that 400 edges of a check sum below 2³¹


def _phi(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -ln tanh(x/2), its own inverse: it turns the products of the tanh rule into sums."""
    return -np.log(np.tanh(x / 2))


# φ of a message (a zero counts as half a unit), and back: by the exponent and five mantissa bits of the sum as float32.
PHI = np.rint(_PHI_SCALE * _phi(np.maximum(np.arange(MESSAGE_LIMIT + 1), 0.5) / UNITS_PER_NAT)).astype(np.uint32)
_BINS = 2.0 ** (np.arange(1024) // 32) * (1 + (np.arange(1024) % 32 + 0.5) / 32) / _PHI_SCALE
PHI_INVERSE = np.rint(np.minimum(UNITS_PER_NAT * _phi(np.minimum(_BINS, 30.0)), MESSAGE_LIMIT)).astype(np.int32)


def ldpc_syndrome(code: CodeShape, rows: int, bits: Bits) -> Bits:
    """Return the first `rows`·z checks of `bits`, which are padded with zeros to the code's length."""
    if library is None:
        return ldpc_syndrome_twin(code, rows, bits)
    padded = np.zeros(code.columns * code.z, dtype=np.uint8)
    padded[: bits.size] = bits
    syndrome = np.empty(rows * code.z, dtype=np.uint8)
    library.qd_ldpc_syndrome(code.z, rows, *_tables(code), _readable(padded), _writable(syndrome))
    return syndrome


def ldpc_syndrome_twin(code: CodeShape, rows: int, bits: Bits) -> Bits:
    """Sum the turned columns of each row."""
    padded = np.zeros(code.columns * code.z, dtype=np.uint8)
    padded[: bits.size] = bits
    table = padded.reshape(code.columns, code.z)
    syndrome = np.zeros((rows, code.z), dtype=np.uint8)
    for row in range(rows):
        for edge in range(int(code.row_start[row]), int(code.row_start[row + 1])):
            syndrome[row] ^= np.roll(table[code.column[edge]], -int(code.shift[edge]))
    return syndrome.reshape(-1)


def ldpc_decode(
    code: CodeShape, rows: int, syndrome: Bits, size_bits: int, prior: int, iterations_max: int
) -> tuple[Bits, int]:
    """Return the likely error pattern of `syndrome` and the iterations it took, 0 if it did not converge.

    `prior` is the scaled log-likelihood ratio of each of the first `size_bits` variables, 0 < prior ≤ 1023; the
    others are known to be 0.
    """
    if library is None:
        return ldpc_decode_twin(code, rows, syndrome, size_bits, prior, iterations_max)
    errors = np.empty(size_bits, dtype=np.uint8)
    used = _check(
        library.qd_ldpc_decode(
            code.z,
            rows,
            *_tables(code),
            code.columns,
            size_bits,
            prior,
            ffi.from_buffer("uint32_t[]", PHI),
            ffi.from_buffer("int32_t[]", PHI_INVERSE),
            _readable(syndrome),
            iterations_max,
            _writable(errors),
        )
    )
    return errors, used


def ldpc_decode_twin(
    code: CodeShape, rows: int, syndrome: Bits, size_bits: int, prior: int, iterations_max: int
) -> tuple[Bits, int]:
    """Layered belief propagation, a row of circulants at a time."""
    values = np.full(code.columns * code.z, MESSAGE_LIMIT, dtype=np.int32)
    values[:size_bits] = prior
    table = values.reshape(code.columns, code.z)
    said = np.zeros((code.column.size, code.z), dtype=np.int32)
    target = syndrome.reshape(rows, code.z).astype(bool)
    turned = (np.arange(code.z) + code.shift[:, None]) % code.z
    for iteration in range(1, iterations_max + 1):
        settled = True
        for row in range(rows):
            edges = slice(int(code.row_start[row]), int(code.row_start[row + 1]))
            where = (code.column[edges, None], turned[edges])
            before = table[where]
            heard = before - said[edges]
            terms = PHI[np.minimum(np.abs(heard), MESSAGE_LIMIT)].astype(np.int64)
            others = np.maximum(terms.sum(axis=0) - terms, 1).astype(np.float32)
            size = PHI_INVERSE[(others.view(np.int32) >> 18) - 127 * 32]
            negative = np.logical_xor.reduce(heard < 0, axis=0) ^ target[row]
            said[edges] = np.where(negative ^ (heard < 0), -size, size)
            after = heard + said[edges]
            table[where] = after
            wrong = np.logical_xor.reduce(before < 0, axis=0) ^ target[row]
            settled = settled and not wrong.any() and bool(np.array_equal(after < 0, before < 0))
        if settled:
            return (values[:size_bits] < 0).astype(np.uint8), iteration
    return (values[:size_bits] < 0).astype(np.uint8), 0


def _tables(code: CodeShape) -> tuple[Any, Any, Any]:
    cast = "uint32_t[]"
    return ffi.from_buffer(cast, code.row_start), ffi.from_buffer(cast, code.column), ffi.from_buffer(cast, code.shift)
