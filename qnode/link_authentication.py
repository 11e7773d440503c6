"""What sessions of a link may use of its authentication key, and the block numbers that name them (SPEC part 3).

Joins the two streams of one end (`qnode.streams`) and the last block number. All three only grow, and what a session
used of them is durable before its messages leave, so that no crash and no peer brings anything used back. Does not
decide when a session begins (`links`), nor what it says.
"""

from dataclasses import dataclass
from typing import Final

from protocol.authentication import HASH_KEY_BYTES, PAD_BYTES, WINDOW_BYTES, Authenticator
from qnode.context import Context
from qnode.effects import Put
from qnode.keystore import RECEIVER, TRANSMITTER, PendingBlock
from qnode.streams import RESERVE_BYTES, AuthenticationStream, Stored
from qnode.vault import Vault

BLOCK_NUMBER_TABLE: Final = "link.block"

WINDOW_BYTES_MIN: Final = HASH_KEY_BYTES + 64 * PAD_BYTES
"""Below the key for 64 messages a session is not begun: it could not end."""

TOP_UP_BYTES_MAX: Final = 2048
"""What a stream below its target gains per block and direction, so that a refill never starves delivery."""
STREAM_TARGET_BYTES: Final = 4 * WINDOW_BYTES

BLOCK_NUMBER_CLAIM_MAX: Final = 2**62
"""A peer may claim to be that far and no further: numbers keep room to grow."""


@dataclass(slots=True)
class Loan:
    """What a session has been lent, and what it was seen to use of it."""

    block_number: int
    send_start: int
    receive_start: int
    send_used: int = 0
    receive_used: int = 0
    heard: bool = False


class LinkAuthentication:
    """One end's two streams, `send` and `receive`, and the number of the last block."""

    def __init__(
        self, link_id: str, role: int, pre_shared_secret: bytes, context: Context, vault: Vault, stored: Stored
    ) -> None:
        """`role` is TRANSMITTER or RECEIVER; a stream that is not in `stored` begins with half of the secret."""
        self._link_id = link_id
        self._role = role
        self._context = context
        half = len(pre_shared_secret) // 2
        parts = {"transmitter": pre_shared_secret[:half], "receiver": pre_shared_secret[half : 2 * half]}
        own, peers = ("transmitter", "receiver") if role == TRANSMITTER else ("receiver", "transmitter")
        self.send = self._stream(own, parts[own], vault, stored)
        self.receive = self._stream(peers, parts[peers], vault, stored)
        self.last_block_number = -1
        for key, value in stored.get(BLOCK_NUMBER_TABLE, ()):
            if key == link_id.encode():
                self.last_block_number = int.from_bytes(value, "big")

    def _stream(self, direction: str, secret: bytes, vault: Vault, stored: Stored) -> AuthenticationStream:
        stream = AuthenticationStream.restore(self._link_id, direction, vault, RESERVE_BYTES, stored)
        if stream.end == 0:
            self._context.write(stream.append(secret))
        return stream

    @property
    def available_bytes(self) -> int:
        """Key that is left in the scarcer direction."""
        return min(self.send.available_bytes, self.receive.available_bytes)

    @property
    def top_up_bytes(self) -> int:
        """What the next block gives each stream beyond what it used."""
        return min(max(0, STREAM_TARGET_BYTES - self.available_bytes), TOP_UP_BYTES_MAX)

    def refusal(self, stream_offset: int, reply_offset: int, send_start: int) -> str | None:
        """Bob: say why no session can use the streams from where the transmitter wants it to."""
        if stream_offset < self.receive.position:
            return "that authentication key was used"
        if self.receive.end - stream_offset < WINDOW_BYTES_MIN:
            return "the authentication key is not yet known here"
        if reply_offset > self.send.position + RESERVE_BYTES:  # no tag covers it: see `catch_up`
            return "the answers are wanted far ahead of where this stream stands"
        if self.send.end - send_start < WINDOW_BYTES_MIN:
            return "no authentication key left for the answers"
        return None

    def catch_up(self, loan: Loan, block_number: int, stream_offset: int) -> None:
        """Alice: the receiver says where it stands; the next session begins there.

        It can stand one reservation ahead of what was sent; a stranger's claim must not burn the stream.
        """
        self.last_block_number = max(self.last_block_number, min(block_number, BLOCK_NUMBER_CLAIM_MAX))
        reach = loan.send_start + loan.send_used + RESERVE_BYTES
        loan.send_start = max(loan.send_start, min(stream_offset, reach, self.send.end))

    def account(self, loan: Loan, authenticator: Authenticator) -> None:
        """Make the use of authentication key durable before the messages that used it leave.

        Before the peer's first true message nothing that a frame claims (offsets, block number) counts.
        """
        loan.send_used = authenticator.send_used_bytes
        if loan.send_used:
            self._context.write(self.send.reserve(loan.send_start + loan.send_used))
        if authenticator.opened_messages:
            loan.heard = True
            loan.receive_used = authenticator.receive_used_bytes
            self._context.write(self.receive.reserve(loan.receive_start + loan.receive_used))
        if self.last_block_number < loan.block_number and (loan.heard or self._role == TRANSMITTER):
            self._remember_block_number(loan.block_number)

    def _remember_block_number(self, number: int) -> None:
        self.last_block_number = number
        self._context.write([Put(BLOCK_NUMBER_TABLE, self._link_id.encode(), number.to_bytes(8, "big"))])

    def settle(self, loan: Loan) -> None:
        """The session is over: what it was seen to use is used."""
        if loan.send_used:
            self._context.write(self.send.advance(loan.send_start + loan.send_used))
        if loan.receive_used:
            self._context.write(self.receive.advance(loan.receive_start + loan.receive_used))

    def refill(self, block: PendingBlock) -> None:
        """Append what a recorded block holds for the two streams."""
        own, peers = block.refill_transmitter.reveal(), block.refill_receiver.reveal()
        if self._role == RECEIVER:
            own, peers = peers, own
        self._context.write(self.send.append(own))
        self._context.write(self.receive.append(peers))
