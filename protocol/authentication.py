"""Tags on the classical channel, and the accounting of the key that they consume (SPEC part 3).

Decides: how a message of a session is tagged and checked, and which bytes of the link's authentication key that
takes. Does not decide where the key is stored or when it is refilled: the daemon's link does.

Construction: Wegman–Carter. A session draws a fresh 16-byte hash key r per direction and a fresh 16-byte pad s per
message; the tag is Poly1305 under (r, s), so a polynomial hash over GF(2^130 − 5) hidden by a one-time pad. A forger
who saw any number of tags succeeds with probability at most 8·⌈L/16⌉·2^−106 per attempt on a message of L bytes
(Bernstein 2005), whatever his computing power; reuse of r inside the session is covered by that bound because every
pad is fresh (Wegman and Carter 1981). The first false tag ends the session, and with it r.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

HASH_KEY_BYTES: Final = 16
PAD_BYTES: Final = 16
TAG_BYTES: Final = 16
SESSION_ID_BYTES: Final = 16

SESSION_MESSAGES_MAX: Final = 512
"""Messages per direction and session. Cascade in its most talkative form stays below 200; a session that wants more
is broken or attacked, and ends. It bounds the authentication key that one session can burn to WINDOW_BYTES."""

WINDOW_BYTES: Final = HASH_KEY_BYTES + SESSION_MESSAGES_MAX * PAD_BYTES
"""Authentication key, per direction, that a session may use at most."""

MESSAGE_BYTES_MAX: Final = 7 * 1024 * 1024
"""One message. Below the transport's frame bound; at this length a forgery succeeds with probability < 2^−84."""

_DOMAIN: Final = b"qnode session message v1"


class ForgedMessage(Exception):
    """A message whose tag, order, session or direction is not what the session expects: the session must end."""


class KeyExhausted(Exception):
    """The authentication key at hand does not cover another message."""


def session_id(link_id: str, block_number: int, nonce: bytes) -> bytes:
    """Return the 16-byte name of one session, bound to the link, the block and Alice's fresh nonce."""
    digest = hashlib.sha256(b"qnode session id v1")
    for part in (link_id.encode(), block_number.to_bytes(8, "big"), nonce):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()[:SESSION_ID_BYTES]


def _tag(hash_key: bytes, pad: bytes, session: bytes, sender: str, sequence: int, body: bytes) -> Poly1305:
    mac = Poly1305(hash_key + pad)
    role = sender.encode()
    mac.update(_DOMAIN + session + bytes([len(role)]) + role + sequence.to_bytes(4, "big"))
    mac.update(len(body).to_bytes(8, "big"))
    mac.update(body)
    return mac


@dataclass(slots=True)
class _Direction:
    """One direction's window of authentication key: r, then one pad per message, strictly in order."""

    sender: str
    window: bytes = field(default=b"", repr=False)
    messages: int = 0

    def next_key(self) -> tuple[bytes, bytes, int]:
        start = HASH_KEY_BYTES + self.messages * PAD_BYTES
        pad = self.window[start : start + PAD_BYTES]
        if len(pad) < PAD_BYTES or self.messages >= SESSION_MESSAGES_MAX:
            raise KeyExhausted(
                f"the authentication key covers {self.messages} messages from {self.sender}, and one more is due"
            )
        sequence = self.messages
        self.messages += 1
        return self.window[:HASH_KEY_BYTES], pad, sequence

    @property
    def used_bytes(self) -> int:
        return HASH_KEY_BYTES + self.messages * PAD_BYTES if self.messages else 0


class Authenticator:
    """Seals and opens the messages of one session for one of its two ends.

    `send_window` and `receive_window` are the next unused bytes of the link's two authentication streams (at most
    WINDOW_BYTES of each are used). The owner must have made the send window's use durable before it lets a sealed
    message leave, and must never offer used bytes again: `send_used_bytes` and `receive_used_bytes` say how far.
    """

    def __init__(
        self, session: bytes, role: str, peer_role: str, send_window: bytes, receive_window: bytes = b""
    ) -> None:
        self._session = session
        self._send = _Direction(role, send_window)
        self._receive = _Direction(peer_role, receive_window)
        self.opened_messages = 0
        """How many messages of the peer were true. At 0, whatever came may be from anybody."""

    def begin_receiving(self, window: bytes) -> None:
        """Give the window of the peer's stream, where it becomes known only with the peer's first message."""
        assert not self._receive.messages, "the receive window is fixed by the first message"
        self._receive.window = window

    @property
    def send_used_bytes(self) -> int:
        return self._send.used_bytes

    @property
    def receive_used_bytes(self) -> int:
        return self._receive.used_bytes

    def seal(self, body: bytes) -> bytes:
        """Return the tag (16 bytes) followed by `body`. Raises KeyExhausted."""
        if len(body) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(body)} bytes; the bound is {MESSAGE_BYTES_MAX}")
        hash_key, pad, sequence = self._send.next_key()
        return _tag(hash_key, pad, self._session, self._send.sender, sequence, body).finalize() + body

    def open(self, sealed: bytes) -> bytes:
        """Return the body of the next message of the peer; its place in the order is part of the tag.

        Raises ForgedMessage for anything but the peer's next message of this very session, KeyExhausted.
        """
        if not TAG_BYTES <= len(sealed) <= TAG_BYTES + MESSAGE_BYTES_MAX:
            raise ForgedMessage(f"a sealed message has {TAG_BYTES} bytes and more, this one {len(sealed)}")
        hash_key, pad, sequence = self._receive.next_key()
        body = sealed[TAG_BYTES:]
        mac = _tag(hash_key, pad, self._session, self._receive.sender, sequence, body)
        try:
            mac.verify(sealed[:TAG_BYTES])
        except InvalidSignature:
            raise ForgedMessage(f"message {sequence} from {self._receive.sender} carries a false tag") from None
        self.opened_messages += 1
        return body
