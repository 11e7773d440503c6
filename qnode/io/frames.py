"""Frames on a peer connection: header, checksum, kinds, and the first words that two nodes exchange.

A frame is `size (u32 BE) | CRC-32 (u32 BE) | kind (u8) | payload`; the checksum covers kind and payload (row S0-E18).
TLS already rejects every altered byte, so a failing checksum means faulty memory or a bug on one side: it is counted
apart from security failures. No sockets here: `FrameReader` eats bytes and yields frames.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgpack

PROTOCOL_VERSION: Final = 1
HEADER: Final = struct.Struct(">IIB")
# The largest legitimate frame is a block body (2 MiB) or a chunk of emulated light; 8 MiB leaves room for both and
# bounds what one peer can make us hold. Beyond it the connection ends.
FRAME_SIZE_BYTES_MAX: Final = 8 << 20
# Everything but DATA is small; a stranger cannot make us buffer more before it has said who it is.
CONTROL_SIZE_BYTES_MAX: Final = 4096


class FrameKind(IntEnum):
    """What a frame is for: DATA carries the node's own frames, the others belong to the transport."""

    HELLO = 0
    WELCOME = 1
    DATA = 2
    PING = 3
    PONG = 4
    BYE = 5


class FrameError(ValueError):
    """A peer sent bytes that are not a frame, or not one that may come now."""


class FrameChecksumError(FrameError):
    """A frame's CRC-32 does not match: an accident (row S0-E18)."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of either side; `instance`, random per start of a daemon, tells a restart from a duplicate."""

    version: int
    genesis_digest: bytes
    node_id: str
    instance: int

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb([self.version, self.genesis_digest, self.node_id, self.instance])
        return packed

    @classmethod
    def decode(cls, payload: bytes) -> "Hello":
        """Read a hello. Raises FrameError; a newer version may have more fields, its first four stay."""
        try:
            fields = msgpack.unpackb(payload, use_list=True, max_array_len=64)
            version, genesis_digest, node_id, instance = fields[:4]
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise FrameError("its hello is malformed") from error
        good = type(version) is int and type(genesis_digest) is bytes and type(node_id) is str and type(instance) is int
        if not good:
            raise FrameError("its hello is malformed")
        return cls(version, genesis_digest, node_id, instance)


def frame_header(kind: FrameKind, payload: bytes) -> bytes:
    """Return the header that goes before `payload`."""
    assert len(payload) <= FRAME_SIZE_BYTES_MAX, f"a frame of {len(payload)} bytes exceeds {FRAME_SIZE_BYTES_MAX}"
    return HEADER.pack(len(payload), _checksum(kind, payload), kind)


class FrameReader:
    """Cuts a byte stream into frames; sizes are checked before the payload is awaited."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.authenticated = False

    def feed(self, data: bytes) -> Iterator[tuple[FrameKind, bytes]]:
        """Add received bytes and yield every frame that is complete. Raises FrameError; the stream is unusable then."""
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= HEADER.size:
                size, crc32, number = HEADER.unpack_from(self._buffer, offset)
                kind = self._checked_kind(number, size)
                end = offset + HEADER.size + size
                if len(self._buffer) < end:
                    break
                payload = bytes(memoryview(self._buffer)[offset + HEADER.size : end])
                if _checksum(kind, payload) != crc32:
                    raise FrameChecksumError(f"a frame of {size} bytes failed its checksum")
                offset = end
                yield kind, payload
        finally:
            del self._buffer[:offset]

    def _checked_kind(self, number: int, size: int) -> FrameKind:
        try:
            kind = FrameKind(number)
        except ValueError:
            raise FrameError(f"it sent a frame of unknown kind {number}") from None
        limit = FRAME_SIZE_BYTES_MAX if kind is FrameKind.DATA and self.authenticated else CONTROL_SIZE_BYTES_MAX
        if size > limit:
            raise FrameError(f"it announced a {kind.name} frame of {size} bytes; at most {limit} are allowed")
        return kind


def _checksum(kind: FrameKind, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(bytes((kind,))))
