"""The typed records of a session and their codec (SPEC part 4).

The codec is in `protocol.records`; this module holds the records of a BB84 session and their arrays.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.records import INTEGER_MAX as INTEGER_MAX
from protocol.records import TEXT_LENGTH_MAX as TEXT_LENGTH_MAX
from protocol.records import TUPLE_ITEMS_MAX as TUPLE_ITEMS_MAX
from protocol.records import MalformedMessage as MalformedMessage
from protocol.records import Record as Record
from protocol.records import decode_record as decode_record
from protocol.records import encode_record as encode_record

# ---- the records of a BB84 session, in the order in which they are sent


@dataclass(frozen=True, slots=True)
class Open(Record):
    """Alice → Bob: the next block; `parameters_digest` names what both must agree on."""

    KIND = 1
    pulse_count: int
    method: str
    parameters_digest: bytes


@dataclass(frozen=True, slots=True)
class Accept(Record):
    """Bob → Alice: my receiver is ready, send the light."""

    KIND = 2


@dataclass(frozen=True, slots=True)
class Detected(Record):
    """Bob → Alice: which pulses clicked, and the bases of those measurements (never an outcome)."""

    KIND = 3
    count: int
    positions: bytes
    bases: bytes


@dataclass(frozen=True, slots=True)
class Sifted(Record):
    """Alice → Bob: her bases and intensities of those pulses, and her bits where both used the test basis."""

    KIND = 4
    bases: bytes
    intensities: bytes
    test_bits: bytes


@dataclass(frozen=True, slots=True)
class Tested(Record):
    """Bob → Alice: his bits where both used the test basis."""

    KIND = 5
    test_bits: bytes


@dataclass(frozen=True, slots=True)
class Reconcile(Record):
    """Either way: one message of the error correction."""

    KIND = 6
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reconciled(Record):
    """Bob → Alice: my string is corrected; so many errors, so many bits leaked by my count."""

    KIND = 7
    corrected_errors: int
    leaked_bits: int


@dataclass(frozen=True, slots=True)
class Finish(Record):
    """Alice → Bob: the verification hash of her string, and the public seed and split of the amplification."""

    KIND = 8
    verification_seed: bytes
    verification_tag: bytes
    amplification_seed: bytes
    secret_bits: int
    refill_bytes: int
    expiry_height: int


@dataclass(frozen=True, slots=True)
class Signed(Record):
    """Bob → Alice: the strings are equal, my key is stored; my signature over the block record."""

    KIND = 9
    signature: bytes


@dataclass(frozen=True, slots=True)
class Abort(Record):
    """Either way: this block ends without a key."""

    KIND = 10
    reason: str
    qber_ppm: int


SESSION_RECORDS: Final[dict[int, type[Record]]] = {
    record.KIND: record
    for record in (Open, Accept, Detected, Sifted, Tested, Reconcile, Reconciled, Finish, Signed, Abort)
}


# ---- arrays


def pack_bits(bits: NDArray[np.uint8]) -> bytes:
    """Return 0/1 values packed eight to a byte, first bit highest."""
    return np.packbits(bits).tobytes()


def unpack_bits(data: bytes, count: int) -> NDArray[np.uint8]:
    """Return `count` 0/1 values. Raises MalformedMessage unless `data` has exactly the bytes for them."""
    if len(data) != (count + 7) // 8:
        raise MalformedMessage(f"{count} bits take {(count + 7) // 8} bytes, these are {len(data)}")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count)


_GAP_TYPES: Final[tuple[np.dtype[Any], ...]] = (np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))


def pack_positions(positions: NDArray[np.uint64]) -> bytes:
    """Return strictly increasing positions as gaps of the narrowest width that holds them all, width first."""
    gaps = np.diff(positions, prepend=np.uint64(0)) if len(positions) else positions
    largest = int(gaps.max()) if len(gaps) else 0
    width = next(index for index, kind in enumerate(_GAP_TYPES) if largest < 1 << 8 * kind.itemsize)
    return bytes([width]) + gaps.astype(_GAP_TYPES[width]).tobytes()


def unpack_positions(data: bytes, count: int, pulse_count: int) -> NDArray[np.uint64]:
    """Return `count` strictly increasing positions below `pulse_count`. Raises MalformedMessage."""
    if not data or data[0] >= len(_GAP_TYPES) or len(data) - 1 != count * _GAP_TYPES[data[0]].itemsize:
        raise MalformedMessage(f"not {count} positions")
    gaps = np.frombuffer(data, _GAP_TYPES[data[0]], offset=1).astype(np.uint64)
    if count and (int(gaps[1:].min(initial=1)) == 0 or int(gaps.max()) >= pulse_count):
        raise MalformedMessage("positions must increase and stay inside the block")
    positions = np.cumsum(gaps, dtype=np.uint64)
    if count and (int(positions[-1]) >= pulse_count or bool((positions[1:] <= positions[:-1]).any())):
        raise MalformedMessage("positions must increase and stay inside the block")
    return positions
