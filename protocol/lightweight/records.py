"""The records of an L-QKD session, in the order in which they are sent (`docs/devices.md` draws it).

The device speaks, the node answers; so one side alone keeps time, and a lost or repeated message is mended by saying it
again. No field ever holds a bit of key.
"""

from dataclasses import dataclass
from typing import Final

from protocol.records import MalformedMessage, Record


@dataclass(frozen=True, slots=True)
class Begin(Record):
    """Device: make a key. `sifted_bits` to sift, `key_bits` wanted at least; `battery_mj` left by its own account.

    `hybrid`: with a post-quantum KEM besides (S4-8.3).
    """

    KIND = 1
    sifted_bits: int
    selective: bool
    key_bits: int
    battery_mj: int
    hybrid: bool


@dataclass(frozen=True, slots=True)
class Prepared(Record):
    """Node: the light is on its way; the string will be corrected in a frame of `frame_bits` with this code.

    The floor is the one in force for this session: the device's own, or what the chain's policies have raised it to.
    """

    KIND = 2
    pulse_count: int
    frame_bits: int
    code_digest: bytes
    kem_key: bytes
    key_bits_min: int
    security_millibits_min: int


@dataclass(frozen=True, slots=True)
class Detected(Record):
    """Device: which pulses clicked and in which basis it measured them; whether it lacks the code."""

    KIND = 3
    positions: bytes
    bases: bytes
    lacks_code: bool


@dataclass(frozen=True, slots=True)
class Sifted(Record):
    """Node: where its basis was the same, one bit per click; the code, if the device lacked it."""

    KIND = 4
    matched: bytes
    code: bytes


@dataclass(frozen=True, slots=True)
class Checks(Record):
    """Device: parities of its string, and the bits outside the chosen subset, which are revealed (S4-6.2)."""

    KIND = 5
    parities: bytes
    revealed: bytes


@dataclass(frozen=True, slots=True)
class More(Record):
    """Node: the string did not decode; the parities of one more row, please."""

    KIND = 6


@dataclass(frozen=True, slots=True)
class Corrected(Record):
    """Node: decoded, with so many errors in either basis; the hash of its string under a fresh seed."""

    KIND = 7
    errors_z: int
    errors_x: int
    verification_seed: bytes
    verification_tag: bytes


@dataclass(frozen=True, slots=True)
class Finish(Record):
    """Device: the strings are equal. The public seed of the amplification, the length of the key, a challenge."""

    KIND = 8
    amplification_seed: bytes
    key_bits: int
    challenge: bytes
    kem_ciphertext: bytes


@dataclass(frozen=True, slots=True)
class Response(Record):
    """Node: the answer that only the key gives, and a challenge of its own (S4-A1.15)."""

    KIND = 9
    proof: bytes
    challenge: bytes


@dataclass(frozen=True, slots=True)
class Proof(Record):
    """Device: the answer to the node's challenge."""

    KIND = 10
    proof: bytes


@dataclass(frozen=True, slots=True)
class Active(Record):
    """Node: the key is in use and stored."""

    KIND = 11
    key_id: bytes


@dataclass(frozen=True, slots=True)
class Reveal(Record):
    """Node: nothing decodes; the session is over, and its bits may as well show how wrong they are."""

    KIND = 12


@dataclass(frozen=True, slots=True)
class Revealed(Record):
    """Device: the bits of a session that makes no key."""

    KIND = 13
    bits: bytes


@dataclass(frozen=True, slots=True)
class Aborted(Record):
    """Either: this session ends without a key."""

    KIND = 14
    reason: str
    qber_ppm: int


RECORDS: Final[dict[int, type[Record]]] = {
    record.KIND: record
    for record in (
        *(Begin, Prepared, Detected, Sifted, Checks, More, Corrected),
        *(Finish, Response, Proof, Active, Reveal, Revealed, Aborted),
    )
}


def pack_positions(positions: list[int]) -> bytes:
    """Return strictly increasing positions as gaps, seven bits to a byte, the last byte of each below 128."""
    packed, previous = bytearray(), -1
    for position in positions:
        gap = position - previous - 1
        previous = position
        while gap >= 128:
            packed.append(gap & 127 | 128)
            gap >>= 7
        packed.append(gap)
    return bytes(packed)


def unpack_positions(data: bytes, pulse_count: int) -> list[int]:
    """Return the positions, all below `pulse_count`. Raises MalformedMessage."""
    positions: list[int] = []
    position, gap, shift = -1, 0, 0
    for byte in data:
        gap |= (byte & 127) << shift
        shift += 7
        if shift > 35:
            raise MalformedMessage("a gap beyond any session")
        if byte < 128:
            if shift > 7 and byte == 0:
                raise MalformedMessage("a gap is written longer than it is")
            position += gap + 1
            positions.append(position)
            gap = shift = 0
    if shift or position >= pulse_count:
        raise MalformedMessage("positions end inside a gap or beyond the pulses")
    return positions
