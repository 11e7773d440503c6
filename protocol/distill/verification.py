"""Verification: do both sides hold the same reconciled bits? And the checksum that must not be mistaken for it.

S0-E16: a tag from an almost-universal family under a fresh public seed, polynomial evaluation over the prime field
p = 2¹²⁷ - 1, cut to `tag_bits`. The seed is drawn after reconciliation has ended, so no error pattern can depend on
it; the tag costs its length, which `key_length` subtracts. A mismatch discards the block and is recorded.
S0-E18: a CRC over frames and stored records finds accidents; it is no evidence against an attacker and is reported
apart. Implements SPEC §6.
"""

import hmac
import zlib

import numpy as np
from numpy.typing import NDArray

from protocol.kernels import distillation as kernels
from protocol.parameters import require

Bits = NDArray[np.uint8]

SEED_SIZE_BYTES = 16
TAG_BITS_MAX = 120  # a multiple of 8 below the field's 127, so that cutting keeps nearly all of the field's strength
_PRIME = (1 << 127) - 1
_CHUNK_BYTES = 15  # the largest whole number of bytes below the field


def collision_bound(size_bits: int, tag_bits: int) -> float:
    """Return ε: the probability over the seed that two different strings of `size_bits` get equal tags.

    The difference polynomial has degree d = ⌈n/120⌉ + 1; a cut tag collides when it falls on one of at most
    2 (2^(127-t) + 1) field elements, each with at most d roots and, the seed being 127 bits, probability ≤ 2 / 2¹²⁷.
    """
    degree = -(-size_bits // (8 * _CHUNK_BYTES)) + 1
    return degree * 2 * (2.0 ** (127 - tag_bits) + 1) * 2 / 2.0**127


def tag_bits_for(size_bits: int, epsilon: float) -> int:
    """Return the shortest tag, in whole bytes, whose `collision_bound` is at most `epsilon`.

    Raises ParameterError below about 10⁻³⁰, beyond the field; no block needs it.
    """
    for tag_bits in range(8, TAG_BITS_MAX + 1, 8):
        if collision_bound(size_bits, tag_bits) <= epsilon:
            return tag_bits
    least = collision_bound(size_bits, TAG_BITS_MAX)
    require(False, f"epsilon is {epsilon:.1e}; a tag over {size_bits} bits reaches {least:.1e}")
    raise AssertionError("unreachable")


def verification_tag(bits: Bits, seed: bytes, tag_bits: int = 64) -> bytes:
    """Return the tag of `bits` (0/1 array) under `seed`, `tag_bits` / 8 bytes.

    Both sides compute it and one announces it. ε is `collision_bound(bits.size, tag_bits)`: 2·10⁻¹⁵ for a megabit
    at 64 bits. `seed` is 16 fresh public bytes, drawn after reconciliation. Raises ParameterError on other sizes.
    """
    require(len(seed) == SEED_SIZE_BYTES, f"the seed has {len(seed)} bytes; it must have {SEED_SIZE_BYTES}")
    require(tag_bits % 8 == 0 and 8 <= tag_bits <= TAG_BITS_MAX, f"tag_bits is {tag_bits}; use 8, 16, … {TAG_BITS_MAX}")
    point = (int.from_bytes(seed, "little") >> 1) % _PRIME
    packed = np.packbits(bits, bitorder="little").tobytes()
    value = kernels.polynomial_hash(packed, point)
    # The length enters as the last coefficient: strings of different lengths are different polynomials.
    value = ((value + bits.size) * point) % _PRIME
    return (value & ((1 << tag_bits) - 1)).to_bytes(tag_bits // 8, "little")


def tags_agree(ours: bytes, theirs: bytes) -> bool:
    """Compare two tags in constant time; False means that the block is to be discarded and the mismatch recorded."""
    return hmac.compare_digest(ours, theirs)


def record_checksum(record: bytes) -> int:
    """Return the CRC-32 of a frame or a stored record (S0-E18): for accidents only."""
    return zlib.crc32(record)
