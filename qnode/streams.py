"""The authentication key of one direction of a link: a byte stream that is used once, from front to back (SPEC part 3).

It starts with the link's pre-shared secret and grows by a part of every block that the chain commits, in chain order,
so that both ends hold the same bytes at the same offsets. The position only grows, and it is durable ahead of use: a
reservation of RESERVE_BYTES is stored before the first byte of it is used, so a crash can waste at most that much and
can never bring a used byte back.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from qnode.effects import Delete, Put
from qnode.vault import Vault

SEGMENT_TABLE: Final = "authentication.segment"
POSITION_TABLE: Final = "authentication.position"

RESERVE_BYTES: Final = 1024
"""64 messages a reservation: about one synced write per session, and at most 8,192 bits lost by a crash."""

Write = Put | Delete
Stored = Mapping[str, Sequence[tuple[bytes, bytes]]]


def stream_prefix(link_id: str, direction: str) -> bytes:
    """Return the storage key prefix of a stream; link IDs hold no NUL."""
    return f"{link_id}\0{direction}\0".encode()


class AuthenticationStream:
    """One direction's stream at one end. `direction` names the sender's role: "transmitter" or "receiver"."""

    def __init__(self, link_id: str, direction: str, vault: Vault, reserve_bytes: int) -> None:
        """`reserve_bytes`: how far a durable reservation runs ahead of use."""
        self._prefix = stream_prefix(link_id, direction)
        self._vault = vault
        self._reserve_bytes = reserve_bytes
        self._segments: list[tuple[int, bytes]] = []  # (start offset, secret bytes), ascending, contiguous
        self.position = 0
        self._reserved = 0

    @classmethod
    def restore(
        cls, link_id: str, direction: str, vault: Vault, reserve_bytes: int, stored: Stored
    ) -> "AuthenticationStream":
        """Return the stream as the stored rows leave it: everything reserved before the restart counts as used."""
        stream = cls(link_id, direction, vault, reserve_bytes)
        for key, value in stored.get(SEGMENT_TABLE, ()):
            if key.startswith(stream._prefix):
                start = int.from_bytes(key[len(stream._prefix) :], "big")
                stream._segments.append((start, vault.open(SEGMENT_TABLE, key, value)))
        stream._segments.sort(key=lambda segment: segment[0])
        for key, value in stored.get(POSITION_TABLE, ()):
            if key == stream._prefix:
                stream.position = stream._reserved = int.from_bytes(value, "big")
        return stream

    @property
    def end(self) -> int:
        """Offset behind the last byte that this end holds; the position may lie beyond it after a crash."""
        if not self._segments:
            return 0
        start, secret = self._segments[-1]
        return start + len(secret)

    @property
    def available_bytes(self) -> int:
        return max(0, self.end - self.position)

    def window(self, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` from `offset`, which must not lie before the position."""
        assert offset >= self.position, "authentication key is never offered twice"
        window = bytearray()
        for start, secret in self._segments:
            low = max(offset + len(window), start)
            if low == offset + len(window) and low < start + len(secret) and len(window) < size_bytes:
                window += secret[low - start : low - start + size_bytes - len(window)]
        return bytes(window)

    def append(self, secret: bytes) -> list[Write]:
        """Add key at the end; returns what must be stored with it."""
        if not secret:
            return []
        start = self.end
        self._segments.append((start, secret))
        key = self._segment_key(start)
        return [Put(SEGMENT_TABLE, key, self._vault.seal(SEGMENT_TABLE, key, secret))]

    def reserve(self, offset: int) -> list[Write]:
        """Make every byte below `offset` count as used after any crash; returns what must be stored first."""
        if offset <= self._reserved:
            return []
        self._reserved = offset + self._reserve_bytes
        return [Put(POSITION_TABLE, self._prefix, self._reserved.to_bytes(8, "big"))]

    def advance(self, offset: int) -> list[Write]:
        """Count every byte below `offset` as used, durably, and destroy segments that are used up."""
        assert offset >= self.position, "the use of authentication key never goes backwards"
        self.position = offset
        writes: list[Write] = self.reserve(offset)
        while len(self._segments) > 1 and self._segments[0][0] + len(self._segments[0][1]) <= offset:
            start, _ = self._segments.pop(0)
            writes.append(Delete(SEGMENT_TABLE, self._segment_key(start)))
        return writes

    def _segment_key(self, start: int) -> bytes:
        return self._prefix + start.to_bytes(8, "big")
