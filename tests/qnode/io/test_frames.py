"""Framing without sockets: whole, byte by byte, damaged and random streams."""

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnode.io.frames import (
    CONTROL_SIZE_BYTES_MAX,
    FRAME_SIZE_BYTES_MAX,
    HEADER,
    FrameChecksumError,
    FrameError,
    FrameKind,
    FrameReader,
    Hello,
    frame_header,
)

FRAMES = st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=300)), max_size=8)


def encode(frames: list[tuple[FrameKind, bytes]]) -> bytes:
    return b"".join(frame_header(kind, payload) + payload for kind, payload in frames)


@given(FRAMES, st.lists(st.integers(0, 3000), max_size=10))
def test_frames_survive_any_cutting_of_the_stream(frames: list[tuple[FrameKind, bytes]], cuts: list[int]) -> None:
    stream = encode(frames)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = FrameReader()
    found = [item for a, b in itertools.pairwise(places) for item in reader.feed(stream[a:b])]
    assert found == frames


def test_pinned_bytes_of_a_frame() -> None:
    assert (
        encode([(FrameKind.DATA, b"abc")]).hex() == "00000003" + f"{zlib.crc32(bytes([2]) + b'abc'):08x}" + "02616263"
    )


@given(FRAMES.filter(bool), st.data())
def test_a_flipped_bit_never_passes(frames: list[tuple[FrameKind, bytes]], data: st.DataObject) -> None:
    stream = bytearray(encode(frames))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    found = []
    try:
        for item in FrameReader().feed(bytes(stream)):
            found.append(item)
    except FrameError:
        pass
    assert found == frames[: len(found)]
    assert len(found) < len(frames)


def test_a_damaged_payload_is_an_accident_and_said_so() -> None:
    stream = bytearray(encode([(FrameKind.PING, b"12345678")]))
    stream[-1] ^= 1
    with pytest.raises(FrameChecksumError):
        list(FrameReader().feed(bytes(stream)))


@pytest.mark.parametrize(
    ("kind", "size", "authenticated", "good"),
    [
        (FrameKind.DATA, FRAME_SIZE_BYTES_MAX, True, True),
        (FrameKind.DATA, FRAME_SIZE_BYTES_MAX + 1, True, False),
        (FrameKind.DATA, CONTROL_SIZE_BYTES_MAX + 1, False, False),
        (FrameKind.HELLO, CONTROL_SIZE_BYTES_MAX + 1, True, False),
        (9, 0, True, False),
    ],
)
def test_the_size_is_refused_from_the_header_alone(kind: int, size: int, authenticated: bool, good: bool) -> None:
    reader = FrameReader()
    reader.authenticated = authenticated
    header = HEADER.pack(size, 0, kind)
    if good:
        assert list(reader.feed(header)) == []
    else:
        with pytest.raises(FrameError):
            list(reader.feed(header))


@given(st.binary(max_size=200))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        list(FrameReader().feed(data))
        Hello.decode(data)
    except FrameError:
        pass


@given(st.integers(0, 2**32), st.binary(min_size=32, max_size=32), st.text(max_size=30), st.integers(0, 2**64 - 1))
def test_hello_round_trip(version: int, digest: bytes, node_id: str, instance: int) -> None:
    hello = Hello(version, digest, node_id, instance)
    assert Hello.decode(hello.encode()) == hello
