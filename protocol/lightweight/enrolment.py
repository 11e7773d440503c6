"""How a device becomes known: a one-time code proves it to its node, its identity key signs its place on the chain.

Rows S4-A1.3–6. The code (32 secret bytes) reaches the device outside the network, with the name of the chain. Both
ends derive the initial secret, which authenticates the first session, from the code and two fresh nonces. Rotating
pseudonyms of vehicles (S0-G5) would be signed here as well, by the same identity key.
"""

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Final

import msgpack

from protocol.lightweight.channel import derive
from protocol.records import Record, decode_record, encode_record

CODE_BYTES: Final = 32
NONCE_BYTES: Final = 16
CODE_NAME_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Enrol(Record):
    """Device → node: my identity key, my signature over the chain's record of me, and that I hold the code."""

    KIND = 1
    code_name: bytes
    device_id: str
    public_key: bytes
    signature: bytes
    nonce: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class Enrolled(Record):
    """Node → device: you are on the chain."""

    KIND = 2
    nonce: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class EnrolmentRefused(Record):
    """Node → device: why not. Anybody could say so, hence a hint for people only."""

    KIND = 3
    reason: str


RECORDS: Final[dict[int, type[Record]]] = {record.KIND: record for record in (Enrol, Enrolled, EnrolmentRefused)}


def decode(frame: bytes) -> Record:
    """Return the record of a frame. Raises MalformedMessage."""
    return decode_record(frame, RECORDS)


def code_name(code: bytes) -> bytes:
    """Return the public name of a code."""
    return derive(code, "name of an enrolment code")[:CODE_NAME_BYTES]


def statement(
    chain_id: str, genesis_digest: bytes, device_id: str, node_id: str, public_key: bytes, floor: tuple[int, int]
) -> bytes:
    """Return what the device signs: `ledger.transactions.DeviceRegistered.signing_bytes` of its record.

    `floor` is (key_bits_min, security_millibits_min). Tests hold the two together: a device does not load the ledger.
    """
    members = (device_id, node_id, public_key, *floor)
    packed = msgpack.packb(("qnode/device/1", chain_id, genesis_digest, members), use_bin_type=True)
    return hashlib.sha256(packed).digest()


def with_mac(record: Enrol, code: bytes) -> Enrol:
    """Return the record with the proof that its sender holds the code."""
    return replace(record, mac=_mac(replace(record, mac=b""), code))


def has_mac(record: Enrol, code: bytes) -> bool:
    """Say whether the sender of `record` holds the code."""
    return hmac.compare_digest(record.mac, _mac(replace(record, mac=b""), code))


def enrolled(request: Enrol, nonce: bytes, code: bytes) -> Enrolled:
    """Return the node's answer."""
    return Enrolled(nonce, derive(code, "enrolled", encode_record(request), nonce)[:16])


def is_answer(answer: Enrolled, request: Enrol, code: bytes) -> bool:
    """Say whether `answer` is the node's to this very request."""
    return hmac.compare_digest(answer.mac, enrolled(request, answer.nonce, code).mac)


def initial_secret(request: Enrol, nonce: bytes, code: bytes) -> bytes:
    """Return the first authentication key of the device."""
    return derive(code, "initial secret", request.device_id.encode(), request.nonce, nonce)


def _mac(record: Enrol, code: bytes) -> bytes:
    return derive(code, "enrolment", encode_record(record))[:16]
