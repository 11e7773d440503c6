"""Readings on their way: AES-256-GCM or a one-time pad, and the window that finds repeats and gaps (row S4-5.10).

A frame is key ID (16 bytes), sequence (8), mode (1) and the sealed reading; all of it and the device's name are
authenticated. Sequences start at 1 under every key and are the nonce: each is used once per key. Decides nothing about
when keys are renewed.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.lightweight.channel import derive

KEY_ID_BYTES: Final = 16
HEADER_BYTES: Final = KEY_ID_BYTES + 8 + 1
TIME_BYTES: Final = 8
READING_BYTES_MAX: Final = 16 * 1024
WINDOW: Final = 1024
"""How far back a reading may come in late: more than a device keeps unanswered."""
GCM: Final = 0
PAD: Final = 1
_PAD_TAG_BYTES: Final = 16
_PAD_KEY_BYTES: Final = 16


class TelemetryError(ValueError):
    """A frame that no device made with this key."""


class PadExhausted(Exception):
    """The rest of the key is shorter than the reading: a one-time pad needs a new key."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says in the clear."""

    key_id: bytes
    sequence: int
    mode: int

    @classmethod
    def read(cls, frame: bytes) -> "Header":
        """Read the header. Raises TelemetryError."""
        if not HEADER_BYTES < len(frame) <= HEADER_BYTES + READING_BYTES_MAX + 64:
            raise TelemetryError(f"a telemetry frame of {len(frame)} bytes")
        sequence, mode = int.from_bytes(frame[KEY_ID_BYTES : HEADER_BYTES - 1], "big"), frame[HEADER_BYTES - 1]
        if not 0 < sequence < 1 << 63 or mode not in (GCM, PAD):
            raise TelemetryError("a telemetry frame of no known form")
        return cls(frame[:KEY_ID_BYTES], sequence, mode)


@dataclass(slots=True)
class TelemetryKey:
    """One key in use at one end. `pad_used` counts the bytes of pad that the sealing end has spent."""

    device_id: str
    key_id: bytes
    key: bytes = field(repr=False)
    pad_used: int = 0
    _cipher: AESGCM | None = field(default=None, repr=False)

    @property
    def pad_left(self) -> int:
        """Bytes of one-time pad that remain."""
        return max(0, len(self.key) - _PAD_KEY_BYTES - self.pad_used)

    def seal(self, sequence: int, time_ms: int, reading: bytes, mode: int = GCM) -> bytes:
        """Return the frame of a reading. Raises PadExhausted, ValueError for a reading that is too long."""
        if len(reading) > READING_BYTES_MAX:
            raise ValueError(f"a reading of {len(reading)} bytes; the bound is {READING_BYTES_MAX}")
        header = self.key_id + sequence.to_bytes(8, "big") + bytes([mode])
        plain = time_ms.to_bytes(TIME_BYTES, "big") + reading
        if mode == GCM:
            return header + self._gcm().encrypt(sequence.to_bytes(12, "big"), plain, self._bound(header))
        if len(plain) > self.pad_left:
            raise PadExhausted
        offset = self.pad_used.to_bytes(2, "big")
        body = offset + self._padded(self.pad_used, plain)
        self.pad_used += len(plain)
        return header + body + self._pad_tag(header, body)

    def open(self, frame: bytes) -> tuple[int, bytes]:
        """Return (time in ms, reading). Raises TelemetryError for anything that was not sealed so with this key.

        Only the sealing end spends pad: here readings may come late and in any order, each once by its sequence.
        """
        header = Header.read(frame)
        if header.mode == GCM:
            try:
                nonce = header.sequence.to_bytes(12, "big")
                plain = self._gcm().decrypt(nonce, frame[HEADER_BYTES:], self._bound(frame[:HEADER_BYTES]))
            except InvalidTag:
                raise TelemetryError("a reading that this key did not seal") from None
        else:
            plain = self._open_pad(frame)
        if len(plain) < TIME_BYTES:
            raise TelemetryError("a reading without its time")
        return int.from_bytes(plain[:TIME_BYTES], "big"), plain[TIME_BYTES:]

    def acknowledgement(self, sequence: int) -> bytes:
        """Return the node's receipt of a reading: key ID, sequence, proof."""
        number = sequence.to_bytes(8, "big")
        return self.key_id + number + derive(self.key, "receipt", self.device_id.encode(), number)[:8]

    def _open_pad(self, frame: bytes) -> bytes:
        body, tag = frame[HEADER_BYTES:-_PAD_TAG_BYTES], frame[-_PAD_TAG_BYTES:]
        if len(body) < 2 or not hmac.compare_digest(tag, self._pad_tag(frame[:HEADER_BYTES], body)):
            raise TelemetryError("a reading that this key did not seal")
        offset, sealed = int.from_bytes(body[:2], "big"), body[2:]
        if offset + len(sealed) > len(self.key) - _PAD_KEY_BYTES:
            raise TelemetryError("a pad beyond the key's end")
        return self._padded(offset, sealed)

    def _padded(self, offset: int, text: bytes) -> bytes:
        pad = self.key[_PAD_KEY_BYTES + offset : _PAD_KEY_BYTES + offset + len(text)]
        return bytes(a ^ b for a, b in zip(text, pad, strict=True))

    def _pad_tag(self, header: bytes, body: bytes) -> bytes:
        key = derive(self.key[:_PAD_KEY_BYTES], "pad tags", self.device_id.encode())
        return hmac.new(key, header + body, hashlib.sha256).digest()[:_PAD_TAG_BYTES]

    def _gcm(self) -> AESGCM:
        if self._cipher is None:
            self._cipher = AESGCM(derive(self.key, "AES-256-GCM", self.key_id))
        return self._cipher

    def _bound(self, header: bytes) -> bytes:
        return self.device_id.encode() + b"\0" + header


@dataclass(slots=True)
class ReplayWindow:
    """Which sequences were seen, at most WINDOW back; `missing` counts those that were passed over and never came."""

    last: int = 0
    seen: int = 0  # bit i: last - i
    missing: int = 0

    def is_new(self, sequence: int) -> bool:
        """Say whether this sequence was not seen and is not too old to know."""
        if sequence > self.last:
            return True
        back = self.last - sequence
        return back < WINDOW and not self.seen >> back & 1

    def accept(self, sequence: int) -> None:
        """Note a sequence that is new."""
        if sequence > self.last:
            step = sequence - self.last
            self.missing += step - 1
            self.seen = (self.seen << step | 1) & ((1 << WINDOW) - 1) if step < WINDOW else 1
            self.last = sequence
        else:
            self.missing -= 1
            self.seen |= 1 << (self.last - sequence)
