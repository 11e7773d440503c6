"""The records: pinned bytes, ranges, and decoders that refuse everything else."""

import contextlib
import hashlib
from dataclasses import fields, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.encoding import pack
from ledger.transactions import (
    KINDS,
    AlarmRaised,
    EquivocationProven,
    KeyDelivered,
    MalformedTransaction,
    SaeRegistered,
    Transaction,
    decode,
    encode,
    transaction_id,
)
from tests.ledger.cluster import make_genesis, make_key_block

DELIVERED = KeyDelivered(bytes(range(16)), "app-a", "app-b", 256, ("a", "b"), (("a-b", 7, 128, 256),))
ALARM = AlarmRaised("a-b", 7, "qber", 112_000, "a")
REGISTERED = SaeRegistered("app-a", "a")


def test_bytes_are_pinned() -> None:
    """A change here is a new format: give it a new kind and an activation height."""
    assert encode(REGISTERED).hex() == "9304a56170702d61a161"
    assert encode(ALARM).hex() == "9602a3612d6207a471626572ce0001b580a161"
    assert encode(EquivocationProven(b"1", b"2", bytes(32))).hex() == "9418c40131c40132c420" + bytes(32).hex()
    assert encode(DELIVERED).hex() == (
        "9703c410000102030405060708090a0b0c0d0e0fa56170702d61a56170702d62cd010092a161a1629194a3612d6207cc80cd0100"
    )
    record = encode(make_key_block(make_genesis()))
    assert hashlib.sha256(record).hexdigest() == PINNED_KEY_BLOCK


PINNED_KEY_BLOCK = "33fa8bb2aa849106b678f2edb08cbda11f537f156e6aa07b0bbc037150096007"


@pytest.mark.parametrize("record", [REGISTERED, ALARM, DELIVERED])
def test_decode_is_the_inverse_of_encode(record: object) -> None:
    assert decode(encode(record)) == record  # type: ignore[arg-type]


def test_no_two_records_share_a_kind() -> None:
    assert set(KINDS.values()) == set(get_args(Transaction)) and len(KINDS) == len(get_args(Transaction))


def test_key_blocks_round_trip() -> None:
    record = make_key_block(make_genesis())
    assert decode(encode(record)) == record


@given(st.binary(max_size=120))
def test_random_bytes_decode_canonically_or_are_refused(data: bytes) -> None:
    try:
        record = decode(data)
    except MalformedTransaction:
        return
    assert encode(record) == data


@given(st.sampled_from([REGISTERED, ALARM, DELIVERED]), st.data())
def test_damaged_records_never_decode_to_the_same(record: object, data: st.DataObject) -> None:
    good = encode(record)  # type: ignore[arg-type]
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    for candidate in (bad, good[:at], good + b"\x00"):
        with contextlib.suppress(MalformedTransaction):
            assert decode(candidate) != record


@pytest.mark.parametrize(
    "members",
    [
        (),
        (9, "a", "b"),
        (4, "a"),
        (4, "a", "b", "c"),
        (4, "", "b"),
        (4, "a" * 65, "b"),
        (4, b"a", "b"),
        (2, "a-b", -1, "qber", 1, "a"),
        (2, "a-b", 1, "qber", 1_000_001, "a"),
        (2, "a-b", 1.0, "qber", 1, "a"),
        (2, "a-b", True, "qber", 1, "a"),
        (3, bytes(15), "m", "s", 256, ("a",), ()),
        (3, bytes(16), "m", "s", 0, ("a",), ()),
        (3, bytes(16), "m", "s", 256, (), ()),
        (3, bytes(16), "m", "s", 256, ("a", "a"), ()),
        (3, bytes(16), "m", "s", 256, ("a",), ((1, 2, 3, 4),)),
        (3, bytes(16), "m", "s", 256, ("a",), (("l", 2, 3),)),
        (3, bytes(16), "m", "s", 256, ("a",), (("l", 2, 3, 0),)),
        (3, bytes(16), "m", "s", 256, tuple(str(i) for i in range(65)), ()),
    ],
)
def test_values_out_of_range_are_refused(members: tuple[object, ...]) -> None:
    with pytest.raises(MalformedTransaction):
        decode(pack(members))


@pytest.mark.parametrize(
    "changes",
    [
        {"qber_ppm": 1_000_001},
        {"detections": 1_000_001},
        {"sifted_bits": 20_001},
        {"sample_bits": 10_001},
        {"secret_bits": 9_001},
        {"commitment": bytes(31)},
        {"receiver_signature": bytes(63)},
        {"expiry_height": -1},
        {"link_id": ""},
        {"pulses": 2**63},
    ],
)
def test_impossible_key_blocks_are_refused(changes: dict[str, object]) -> None:
    record = make_key_block(make_genesis())
    with pytest.raises(MalformedTransaction):
        replace(record, **changes)  # type: ignore[arg-type]


def test_every_member_is_signed_and_bound_to_the_chain() -> None:
    record = make_key_block(make_genesis())
    base = record.signing_bytes("test", bytes(32))
    assert base != record.signing_bytes("other", bytes(32))
    assert base != record.signing_bytes("test", bytes(31) + b"\x01")
    for each in fields(record):
        value = getattr(record, each.name)
        if each.name.endswith("_signature"):
            continue
        changed = (
            value - 1 if isinstance(value, int) else value[:-1] + type(value)(b"!" if type(value) is bytes else "!")
        )
        assert replace(record, **{each.name: changed}).signing_bytes("test", bytes(32)) != base, each.name


def test_transaction_ids_are_leaf_digests() -> None:
    body = encode(REGISTERED)
    assert transaction_id(body) == hashlib.sha256(b"\x00" + body).digest()
