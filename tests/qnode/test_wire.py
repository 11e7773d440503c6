"""Frames between nodes: round trips, pinned bytes, and a PeerFault for everything else."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.messages import BundleMessage, BundlesWanted
from ledger.messages import encode as encode_message
from protocol.messages import Record
from qnode.wire import (
    FRAMES,
    KeyTransfer,
    KeyTransferred,
    LedgerFrame,
    LightFrame,
    LightTaken,
    PathProbe,
    PathProbed,
    PeerFault,
    SessionFrame,
    SessionRefused,
    brings_records,
    decode,
    encode,
)

PINNED = Path(__file__).parents[1] / "data" / "wire_frames.json"
REGIONS = (("link-1-2", 4, 96, 20), ("link-1-2", 5, 0, 44))
EXAMPLES: tuple[Record, ...] = (
    LedgerFrame(b"vote"),
    SessionFrame("link-1-2", 3, bytes(16), 4096, 8208, b"sealed"),
    LightFrame("link-1-2", 3, 1, True, b"QLT1"),
    SessionRefused("link-1-2", 3, "the block number was used", 4112, 7),
    KeyTransfer(
        bytes(16), (bytes(range(16)),), 32, "sae-1", ("sae-3",), ("a", "b", "c"), 1, REGIONS, bytes(32), b"T" * 16
    ),
    KeyTransferred(bytes(16), True, "", REGIONS),
    PathProbe(bytes(16), ("a", "b", "c"), 0, 1000),
    PathProbed(bytes(16), 900),
    LightTaken("link-1-2", 3, 1),
)


def values(kind: object) -> st.SearchStrategy[Any]:
    simple = {int: st.integers(0, 2**63 - 1), str: st.text(max_size=20), bytes: st.binary(max_size=40)}
    if kind is bool:
        return st.booleans()
    if isinstance(kind, type) and kind in simple:
        return simple[kind]
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        return st.lists(values(kinds[0]), max_size=4).map(tuple)
    return st.tuples(*(values(each) for each in kinds))


ANY_FRAME = st.one_of([st.builds(kind, *(values(f.type) for f in fields(kind))) for kind in FRAMES.values()])


@given(ANY_FRAME)
def test_frames_survive_the_wire(frame: Record) -> None:
    assert decode(encode(frame)) == frame


def test_pinned_bytes_of_every_frame() -> None:
    pinned = json.loads(PINNED.read_text())
    assert {type(frame) for frame in EXAMPLES} == set(FRAMES.values())
    assert {type(frame).__name__: encode(frame).hex() for frame in EXAMPLES} == pinned
    for frame in EXAMPLES:
        assert decode(bytes.fromhex(pinned[type(frame).__name__])) == frame


@given(st.binary(max_size=300))
def test_random_bytes_are_a_fault_or_a_frame(data: bytes) -> None:
    assert type(decode(data)) in {PeerFault, *FRAMES.values()}


@given(ANY_FRAME, st.data())
def test_truncated_and_trailing_bytes_are_faults(frame: Record, data: st.DataObject) -> None:
    encoded = encode(frame)
    assert isinstance(decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))]), PeerFault)
    assert isinstance(decode(encoded + b"\0"), PeerFault)


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: type(frame).__name__)
def test_every_single_bit_flip_is_a_fault_or_a_frame(frame: Record) -> None:
    encoded = encode(frame)
    for place in range(8 * len(encoded)):
        flipped = bytearray(encoded)
        flipped[place // 8] ^= 1 << place % 8
        assert type(decode(bytes(flipped))) in {PeerFault, *FRAMES.values()}


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: type(frame).__name__)
def test_byte_by_byte_only_the_whole_frame_decodes(frame: Record) -> None:
    encoded = encode(frame)
    assert all(isinstance(decode(encoded[:size]), PeerFault) for size in range(len(encoded)))


def test_faults_do_not_repeat_what_the_peer_sent() -> None:
    """A fault is logged: the bytes of a transfer must not come with it."""
    fault = decode(encode(EXAMPLES[4]) + b"SECRETSECRET")
    assert isinstance(fault, PeerFault)
    assert "SECRET" not in fault.reason
    assert len(fault.reason) < 200


@given(st.binary(max_size=70_000))
def test_bundles_are_known_by_their_first_bytes(body: bytes) -> None:
    wanted = encode_message(BundlesWanted((bytes(32),)))
    assert brings_records(encode(LedgerFrame(encode_message(BundleMessage(body)))))
    assert not brings_records(encode(LedgerFrame(wanted)))
    assert not brings_records(encode(LightFrame("link", 3, 1, False, body)))
    assert not brings_records(body) or isinstance(decode(body), LedgerFrame | PeerFault)
