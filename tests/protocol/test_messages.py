"""The session's codec: round trips, pinned bytes, and nothing but MalformedMessage for all other bytes."""

import contextlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import messages
from protocol.messages import (
    INTEGER_MAX,
    SESSION_RECORDS,
    TEXT_LENGTH_MAX,
    Abort,
    Accept,
    Detected,
    Finish,
    MalformedMessage,
    Open,
    Reconcile,
    Reconciled,
    Record,
    Sifted,
    Signed,
    decode_record,
    encode_record,
    pack_bits,
    pack_positions,
    unpack_bits,
    unpack_positions,
)

PINNED = Path(__file__).parents[1] / "data" / "session_records.json"
EXAMPLES: tuple[Record, ...] = (
    Open(600_000, "cascade-original", bytes(range(32))),
    Accept(),
    Detected(3, b"\0\1\2\3", b"\xa0"),
    Sifted(b"\x60", b"\0\1\2", b"\x80"),
    messages.Tested(b"\x40"),
    Reconcile(b"parity"),
    Reconciled(17, 1234),
    Finish(bytes(16), b"tagtagta", b"seed", 141_263, 528, 2_001),
    Signed(bytes(64)),
    Abort("QBER 0.2500 exceeds the limit 0.09", 250_000),
)


def values(kind: object) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(0, INTEGER_MAX)
    if kind is str:
        return st.text(max_size=40)
    if kind is bytes:
        return st.binary(max_size=60)
    if kind is bool:
        return st.booleans()
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        return st.lists(values(kinds[0]), max_size=5).map(tuple)
    return st.tuples(*(values(each) for each in kinds))


def records(family: dict[int, type[Record]]) -> st.SearchStrategy[Record]:
    return st.one_of([st.builds(kind, *(values(f.type) for f in fields(kind))) for kind in family.values()])


@given(records(SESSION_RECORDS))
def test_records_survive_the_wire(record: Record) -> None:
    assert decode_record(encode_record(record), SESSION_RECORDS) == record


def test_pinned_bytes_of_every_record() -> None:
    pinned = json.loads(PINNED.read_text())
    assert {type(record).__name__ for record in EXAMPLES} == {kind.__name__ for kind in SESSION_RECORDS.values()}
    assert {type(record).__name__: encode_record(record).hex() for record in EXAMPLES} == pinned
    for record in EXAMPLES:
        assert decode_record(bytes.fromhex(pinned[type(record).__name__]), SESSION_RECORDS) == record


@given(st.binary(max_size=200))
def test_random_bytes_are_malformed_or_a_record(data: bytes) -> None:
    try:
        record = decode_record(data, SESSION_RECORDS)
    except MalformedMessage:
        return
    assert type(record) is SESSION_RECORDS[record.KIND]


@given(records(SESSION_RECORDS), st.data())
def test_truncated_and_trailing_bytes_are_malformed(record: Record, data: st.DataObject) -> None:
    encoded = encode_record(record)
    for other in (encoded[: data.draw(st.integers(0, len(encoded) - 1))], encoded + b"\xc0", encoded + encoded):
        with pytest.raises(MalformedMessage):
            decode_record(other, SESSION_RECORDS)


@given(records(SESSION_RECORDS), st.data())
def test_a_flipped_bit_never_raises_anything_else(record: Record, data: st.DataObject) -> None:
    encoded = bytearray(encode_record(record))
    place = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[place // 8] ^= 1 << place % 8
    with contextlib.suppress(MalformedMessage):
        decode_record(bytes(encoded), SESSION_RECORDS)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.integers(0, 12), st.lists(ODD, max_size=7))
def test_well_formed_nonsense_is_malformed_or_exact(kind: int, items: list[Any]) -> None:
    data = msgpack.packb([kind, *items], use_bin_type=True)
    try:
        record = decode_record(data, SESSION_RECORDS)
    except MalformedMessage:
        return
    assert encode_record(record) == data, "what is accepted is what `encode` makes"


@pytest.mark.parametrize(
    "items",
    [
        [],
        [99],
        ["1"],
        [True],
        [2, 0],
        [1, 5, "m"],
        [1, -1, "m", b""],
        [1, 2**63, "m", b""],
        [1, True, "m", b""],
        [1, 1.0, "m", b""],
        [1, 5, b"m", b""],
        [1, 5, "m", "text"],
        [1, 5, "m" * (TEXT_LENGTH_MAX + 1), b""],
        [1, 5, "m", None],
        [10, {}, 0],
    ],
    ids=str,
)
def test_wrong_types_counts_and_ranges_are_malformed(items: list[Any]) -> None:
    with pytest.raises(MalformedMessage):
        decode_record(msgpack.packb(items), SESSION_RECORDS)


def test_deep_nesting_and_false_lengths_are_malformed() -> None:
    for data in (b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1", b""):
        with pytest.raises(MalformedMessage):
            decode_record(data, SESSION_RECORDS)


# ---- arrays


@given(st.lists(st.integers(0, 1), max_size=100))
def test_bits_survive_packing(bits: list[int]) -> None:
    array = np.array(bits, np.uint8)
    packed = pack_bits(array)
    assert unpack_bits(packed, len(bits)).tolist() == bits
    for other in (packed + b"\0", packed[:-1]) if packed else (b"\0",):
        with pytest.raises(MalformedMessage):
            unpack_bits(other, len(bits))


POSITIONS = st.sets(
    st.integers(0, 300) | st.integers(0, 70_000) | st.integers(0, 2**33) | st.integers(0, 2**44 - 1), max_size=40
).map(sorted)


@given(POSITIONS)
def test_positions_survive_packing(positions: list[int]) -> None:
    packed = pack_positions(np.array(positions, np.uint64))
    assert unpack_positions(packed, len(positions), 2**44).tolist() == positions


@given(POSITIONS.filter(bool))
def test_positions_outside_the_block_are_malformed(positions: list[int]) -> None:
    packed = pack_positions(np.array(positions, np.uint64))
    assert unpack_positions(packed, len(positions), positions[-1] + 1).tolist() == positions
    with pytest.raises(MalformedMessage):
        unpack_positions(packed, len(positions), positions[-1])


@given(st.binary(max_size=80), st.integers(0, 30), st.integers(1, 2**44))
def test_random_positions_increase_inside_the_block_or_are_malformed(data: bytes, count: int, pulses: int) -> None:
    try:
        positions = unpack_positions(data, count, pulses).tolist()
    except MalformedMessage:
        return
    assert len(positions) == count
    assert positions == sorted(set(positions))
    assert all(0 <= position < pulses for position in positions)


@pytest.mark.parametrize("gaps", [[5, 0], [2**64 - 1, 2], [1, 2**64 - 1], [2**63, 2**63]], ids=str)
def test_gaps_of_zero_and_gaps_that_overflow_are_malformed(gaps: list[int]) -> None:
    data = b"\3" + np.array(gaps, "<u8").tobytes()
    with pytest.raises(MalformedMessage):
        unpack_positions(data, len(gaps), 2**44)


def test_positions_that_do_not_increase_cannot_be_announced() -> None:
    """Light chunks out of order make such positions at Bob: Alice refuses them, she does not read other pulses."""
    packed = pack_positions(np.array([5, 9, 7], np.uint64))
    with pytest.raises(MalformedMessage):
        unpack_positions(packed, 3, 2**44)
