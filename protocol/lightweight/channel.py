"""The authenticated classical channel of a device, and what its secrets are derived from (rows S4-A1.3–6, S4-A1.15).

Every message of a session carries its number and a tag of HMAC-SHA256 under a key of this session and direction. A
small device's sessions yield fewer bits than one-time tags for their messages would take, so authentication here is
computational at the time of the session, as in Mosca, Stebila and Ustaoğlu (PQCrypto 2013): who breaks it later learns
nothing of keys that were made before. The authentication key is renewed from every session's own secret bits.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from protocol.lightweight.records import RECORDS
from protocol.records import MalformedMessage, Record, decode_record, encode_record

TAG_BYTES: Final = 16
HEADER_BYTES: Final = 8 + 2
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES
MESSAGE_BYTES_MAX: Final = 64 * 1024
"""The largest message is the list of clicks of 4,096 sifted bits at a high loss: some 20 kB."""
MESSAGES_MAX: Final = 40
"""A session takes 5 messages of the device, 12 more if it needs every spare check."""
DEVICE: Final = "device"
NODE: Final = "node"


class Forged(Exception):
    """A message that the peer did not make for this place of this session."""


def derive(secret: bytes, purpose: str, *context: bytes) -> bytes:
    """Return 32 bytes for one purpose: HMAC-SHA256 as a pseudo-random function of purpose and context."""
    mac = hmac.new(secret, b"qnode L-QKD v1\0" + purpose.encode(), hashlib.sha256)
    for part in context:
        mac.update(len(part).to_bytes(4, "big") + part)
    return mac.digest()


def proof_of(confirm_key: bytes, role: str, challenge: bytes) -> bytes:
    """Return the answer of `role` to a challenge: only who holds the session's key gives it."""
    return derive(confirm_key, f"proof of {role}", challenge)[:16]


def equal(ours: bytes, theirs: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(ours, theirs)


def session_counter(frame: bytes) -> int:
    """Return which session a frame claims to belong to. Raises Forged for anything that is no frame."""
    if not OVERHEAD_BYTES < len(frame) <= MESSAGE_BYTES_MAX:
        raise Forged(f"a frame of {len(frame)} bytes")
    return int.from_bytes(frame[:8], "big")


def sequence_of(frame: bytes) -> int:
    """Return the number that a frame claims in its session."""
    return int.from_bytes(frame[8:HEADER_BYTES], "big")


@dataclass(slots=True)
class Channel:
    """One end of one session. `authentication_key` is shared; `counter` numbers the sessions of the device."""

    device_id: str
    counter: int
    role: str
    authentication_key: bytes = field(repr=False)
    sent: int = 0
    received: int = 0

    def seal(self, record: Record) -> bytes:
        """Return the frame of the next message: session, number, tag, record."""
        header = self.counter.to_bytes(8, "big") + self.sent.to_bytes(2, "big")
        self.sent += 1
        body = encode_record(record)
        return header + self._tag(self.role, header, body) + body

    def open(self, frame: bytes) -> Record:
        """Return the record of the peer's next message. Raises Forged and changes nothing, or MalformedMessage."""
        if session_counter(frame) != self.counter or sequence_of(frame) != self.received:
            raise Forged("not the next message of this session")
        header, tag, body = frame[:HEADER_BYTES], frame[HEADER_BYTES:OVERHEAD_BYTES], frame[OVERHEAD_BYTES:]
        peer = NODE if self.role == DEVICE else DEVICE
        if not equal(self._tag(peer, header, body), tag):
            raise Forged("a false tag")
        self.received += 1
        if self.received > MESSAGES_MAX:
            raise MalformedMessage("more messages than a session has")
        return decode_record(body, RECORDS)

    def _tag(self, sender: str, header: bytes, body: bytes) -> bytes:
        key = derive(self.authentication_key, f"tags of {sender}", self.device_id.encode(), header[:8])
        return hmac.new(key, header + body, hashlib.sha256).digest()[:TAG_BYTES]


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What a finished session leaves at both ends."""

    key_id: bytes
    key: bytes = field(repr=False)  # K_final, nothing taken off: fit for a one-time pad
    authentication_key: bytes = field(repr=False)

    @classmethod
    def split(
        cls, device_id: str, counter: int, secret: bytes, control_bytes: int, old: bytes, shared: bytes = b""
    ) -> "SessionKey":
        """Cut the amplified secret into the part that renews the authentication and the key; name it publicly.

        `shared`, the secret of a KEM, makes both hybrid: the key is then 32 bytes derived from both (S4-8.3).
        """
        control, key = secret[:control_bytes], secret[control_bytes:]
        place = (device_id.encode(), counter.to_bytes(8, "big"))
        renewed = derive(old, "authentication key", control, *place, shared)
        if shared:
            key = derive(key, "hybrid key", shared, *place)
        return cls(derive(control, "key id", *place)[:16], key, renewed)
