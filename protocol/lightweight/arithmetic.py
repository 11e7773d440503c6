"""The arithmetic of distillation on whole numbers: what a device computes without numpy (rows S4-5.7, S4-5.8).

Bit strings are Python integers, bit i of the string at weight 2^i. Every function equals one of `protocol.distill`
bit for bit; tests hold them together. Decides nothing about lengths or order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PRIME_127: Final = (1 << 127) - 1
CHUNK_BYTES: Final = 15
FRAME_BITS_MAX: Final = 4096
"""Sifted bits of one session: one frame of the parity code. Bounds the device's memory and work."""
EDGES_MAX: Final = 8192
"""Edges of the largest code for FRAME_BITS_MAX bits; a peer cannot make the device work more than this."""


class CodeError(ValueError):
    """A description of a parity code that no correct node sends."""


def from_bits(bits: Iterable[int]) -> int:
    """Return 0/1 values as an integer, the first at the lowest weight."""
    packed = 0
    for index, bit in enumerate(bits):
        packed |= bit << index
    return packed


def to_bytes(bits: int, size_bits: int) -> bytes:
    """Return `size_bits` packed eight to a byte, first bit lowest."""
    return bits.to_bytes((size_bits + 7) // 8, "little")


def verification_tag(bits: int, size_bits: int, seed: bytes, tag_bits: int) -> bytes:
    """Return `protocol.distill.verification.verification_tag` of a string: Horner's rule modulo 2¹²⁷ - 1."""
    point = (int.from_bytes(seed, "little") >> 1) % PRIME_127
    data = to_bytes(bits, size_bits)
    value = 0
    for start in range(0, len(data), CHUNK_BYTES):
        value = ((value + int.from_bytes(data[start : start + CHUNK_BYTES], "little")) * point) % PRIME_127
    value = ((value + size_bits) * point) % PRIME_127
    return (value & ((1 << tag_bits) - 1)).to_bytes(tag_bits // 8, "little")


def amplify(bits: int, size_bits: int, seed: bytes, output_bits: int) -> int:
    """Return `protocol.distill.amplification.amplify` of a string: x₁…x_m + T·(x_m+1 … x_n) over GF(2).

    One shift and one addition per set bit behind the first m. `seed` holds n - 1 bits, lowest first.
    """
    mask = (1 << output_bits) - 1
    diagonal = int.from_bytes(seed, "little")
    hashed, rest = bits & mask, bits >> output_bits
    shift = size_bits - output_bits - 1
    while rest:
        low = (rest & -rest).bit_length() - 1
        hashed ^= (diagonal >> (shift - low)) & mask
        rest &= rest - 1
    return hashed


@dataclass(frozen=True, slots=True)
class ParityCode:
    """A quasi-cyclic parity-check matrix as the node describes it: rows of (column, shift) edges, circulants of size z.

    `base_rows` rows are the code, the rest spare checks (see `protocol.distill.reconciliation.ldpc_code`).
    """

    z: int
    base_rows: int
    rows: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def unpack(cls, data: bytes, size_bits: int) -> "ParityCode":
        """Read a description: z, base rows, rows, then per row a count and 16-bit (column, shift) pairs.

        Raises CodeError on anything else, and on codes beyond the device's bounds.
        """
        words = memoryview(data).cast("H") if len(data) % 2 == 0 and data else ()
        if len(words) < 3 or not 0 < words[0] <= FRAME_BITS_MAX or not 0 < words[1] <= words[2] <= 64:
            raise CodeError("not a parity code")
        z, base_rows, count = words[0], words[1], words[2]
        rows, at = [], 3
        for _ in range(count):
            edges = words[at] if at < len(words) else 0
            pairs = words[at + 1 : at + 1 + 2 * edges]
            if not edges or len(pairs) != 2 * edges:
                raise CodeError("a parity code ends inside a row")
            rows.append(tuple((pairs[2 * i], pairs[2 * i + 1]) for i in range(edges)))
            at += 1 + 2 * edges
        if at != len(words) or at > 2 * EDGES_MAX or any(s >= z or c * z >= size_bits + z for r in rows for c, s in r):
            raise CodeError("a parity code beyond its frame")
        return cls(z, base_rows, tuple(rows))

    def pack(self) -> bytes:
        """Return the description that `unpack` reads."""
        words = [self.z, self.base_rows, len(self.rows)]
        for row in self.rows:
            words += [len(row), *(value for edge in row for value in edge)]
        return b"".join(word.to_bytes(2, "little") for word in words)

    def checks(self, bits: int, first_row: int, last_row: int) -> int:
        """Return the parities of rows first_row … last_row - 1 over `bits`, z of them per row (row S4-5.7: H·K)."""
        z, mask = self.z, (1 << self.z) - 1
        columns: dict[int, int] = {}
        packed = 0
        for place, row in enumerate(self.rows[first_row:last_row]):
            parity = 0
            for column, shift in row:
                block = columns.get(column)
                if block is None:
                    block = columns[column] = (bits >> column * z) & mask
                parity ^= block >> shift | block << (z - shift)
            packed |= (parity & mask) << place * z
        return packed
