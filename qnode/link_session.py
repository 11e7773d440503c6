"""One session of a link under way: its steps run as jobs one after the other, its light as fast as the peer takes it.

Decides in what order steps run, how much light may be on its way, and when a peer's frame ends the session. Makes the
use of authentication key durable before a message leaves (`link_authentication`), and gives the block to
`link_blocks`. What the end of the session means for the link, its owner decides (`links`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from protocol.authentication import WINDOW_BYTES
from protocol.session import (
    AliceSession,
    BlockDistilled,
    BobSession,
    DistilledBlock,
    Output,
    PeerSigned,
    SendLight,
    SendMessage,
    SessionAborted,
)
from qnode.context import Context
from qnode.effects import TrafficClass
from qnode.link_authentication import LinkAuthentication, Loan
from qnode.link_blocks import LinkBlocks
from qnode.wire import LightFrame, LightTaken, SessionFrame

SESSION_DEADLINE_NS: Final = 60_000_000_000
"""A session that takes longer is given up: ten times the longest that a loaded two-core machine was seen to need."""

LIGHT_CHUNKS_MAX: Final = 16
"""Chunks of light on their way or waiting at the receiver: 4 MiB a link, enough to keep both ends busy."""

QUEUED_INPUTS_MAX: Final = 2 * LIGHT_CHUNKS_MAX
"""Steps that wait for a session's running job: the light under way, and the few messages a session can be ahead."""

OPENING_BYTES_MAX: Final = 1024
"""A sealed first message of either end. A false one costs no key, so that nobody can burn a stream by guessing; the
short bound keeps each guess at its tag below 2^−96 (SPEC 3.5)."""


@dataclass(frozen=True, slots=True)
class _LightDrawn:
    """A chunk of light to send."""

    chunk: int
    last: bool
    light: bytes


@dataclass(frozen=True, slots=True)
class _LightMeasured:
    """A chunk of light reached the detectors."""

    chunk: int


_StepOutput = Output | _LightDrawn | _LightMeasured
_Step = Callable[[], Sequence[_StepOutput]]


class SessionOwner(Protocol):
    """The link of a session."""

    link_id: str
    peer: str

    def tamper(self, sealed: bytes) -> bytes:
        """Return a message as it leaves the emulated classical channel."""

    def finished(self, session: "LinkSession", block: DistilledBlock) -> None:
        """The session is over, and this end has signed its block."""

    def aborted(self, session: "LinkSession", aborted: SessionAborted) -> None:
        """The session is over without a block."""


class LinkSession:
    """See the module. Once `is_over`, what a job under way still brings is dropped."""

    def __init__(
        self,
        owner: SessionOwner,
        machine: AliceSession | BobSession,
        nonce: bytes,
        loan: Loan,
        *,
        context: Context,
        authentication: LinkAuthentication,
        blocks: LinkBlocks,
    ) -> None:
        self.machine = machine
        self.nonce = nonce
        self.loan = loan
        self.begun_ns = context.now_ns
        self.deadline_ns = context.now_ns + SESSION_DEADLINE_NS
        self.is_busy = False  # a job of it runs
        self.is_over = False
        self._owner = owner
        self._context = context
        self._authentication = authentication
        self._blocks = blocks
        self._queue: deque[_Step] = deque()
        self._answered = isinstance(machine, BobSession)
        self._block: DistilledBlock | None = None
        self._refused = False
        self._light: Iterator[bytes] | None = None
        self._light_ahead: bytes | None = None
        self._light_chunks = 0

    # ---- what happens

    def start(self) -> None:
        """Alice: begin."""
        assert isinstance(self.machine, AliceSession), "the transmitter begins"
        self._enqueue(self.machine.start)

    def receive(self, frame: SessionFrame) -> None:
        """A sealed message of this session arrived."""
        if self._answered or self._begin_receiving(frame):
            self._enqueue(lambda: self.machine.receive(frame.sealed))

    def _begin_receiving(self, frame: SessionFrame) -> bool:
        """Alice: Bob's first answer says where his stream stands; it may have moved on, never back."""
        if len(frame.sealed) > OPENING_BYTES_MAX:
            self.abort("the first answer is too long for one")
            return False
        if frame.stream_offset < self._authentication.receive.position:
            self.abort("the receiver offers used authentication key", attacked=True)
            return False
        self._answered = True
        self.loan.receive_start = frame.stream_offset
        window = self._authentication.receive.window(frame.stream_offset, WINDOW_BYTES)
        self.machine.authenticator.begin_receiving(window)
        return True

    def receive_light(self, frame: LightFrame) -> None:
        """Light arrived; at a transmitter it falls on closed shutters."""
        machine = self.machine
        if not isinstance(machine, BobSession):
            return
        if frame.chunk != self._light_chunks:
            self.abort("a part of the light was lost on the way")
            return
        self._light_chunks += 1
        self._enqueue(lambda: [*machine.receive_light(frame.light, frame.last), _LightMeasured(frame.chunk)])

    def light_taken(self) -> None:
        """The receiver has room for one more chunk."""
        if self._light is not None:
            self._enqueue(lambda: self._draw(1))

    def give_up_when_late(self) -> None:
        """Abort a session that takes too long; one whose job runs is looked at when the job ends."""
        if self._context.now_ns >= self.deadline_ns and not self.is_busy:
            self.abort("the session took too long")

    def abort(self, reason: str, *, qber_ppm: int = 0, attacked: bool = False) -> None:
        """End the session without a block."""
        self._end(SessionAborted(reason, qber_ppm, attacked=attacked))

    # ---- its steps

    def _enqueue(self, step: _Step) -> None:
        if len(self._queue) >= QUEUED_INPUTS_MAX:
            self.abort("the peer sends faster than the session can take")
            return
        self._queue.append(step)
        self._run_next()

    def _run_next(self) -> None:
        if self.is_busy or not self._queue or self.is_over:
            return
        if self._context.now_ns >= self.deadline_ns:
            return  # `give_up_when_late` ends the session in this step, however much still waits
        self.is_busy = True
        self._context.run(self._queue.popleft(), self._stepped)

    def _stepped(self, outputs: Any, error: BaseException | None) -> None:
        self.is_busy = False
        if self.is_over:
            self.machine.close()
            return  # given up while the job ran: what it made never leaves
        if error is not None:
            raise error  # our bug: sessions never raise for what a peer or the channel did
        self._authentication.account(self.loan, self.machine.authenticator)
        for output in outputs:
            if not self._refused:  # a policy has ended it: nothing more of it leaves
                self._execute(output)
        self._run_next()

    def _execute(self, output: _StepOutput) -> None:
        match output:
            case SendMessage(sealed):
                self._send_message(self._owner.tamper(sealed))
            case SendLight(chunks):
                self._light = chunks
                self._enqueue(lambda: self._draw(LIGHT_CHUNKS_MAX))
            case _LightDrawn(chunk, last, light):
                frame = LightFrame(self._owner.link_id, self.loan.block_number, chunk, last, light)
                self._context.send(self._owner.peer, TrafficClass.LIGHT, frame)
            case _LightMeasured(chunk):
                taken = LightTaken(self._owner.link_id, self.loan.block_number, chunk)
                self._context.send(self._owner.peer, TrafficClass.SESSION, taken, after_sync=False)
            case BlockDistilled(block):
                self._distilled(block)
            case PeerSigned(signature):
                self._signed(signature)
            case SessionAborted():
                self._end(output)

    def _send_message(self, sealed: bytes) -> None:
        loan, reply_offset = self.loan, self._authentication.receive.position
        frame = SessionFrame(self._owner.link_id, loan.block_number, self.nonce, loan.send_start, reply_offset, sealed)
        self._context.send(self._owner.peer, TrafficClass.SESSION, frame)

    def _draw(self, count: int) -> list[_StepOutput]:
        """Let the source emit up to `count` more chunks; runs as a job. One chunk is drawn ahead, to know the last."""
        drawn: list[_StepOutput] = []
        while self._light is not None and len(drawn) < count:
            if self._light_ahead is None:
                self._light_ahead = next(self._light)
            light, self._light_ahead = self._light_ahead, next(self._light, None)
            last = self._light_ahead is None
            drawn.append(_LightDrawn(self._light_chunks, last, light))
            self._light_chunks += 1
            if last:
                self._light = None
        return drawn

    def _distilled(self, block: DistilledBlock) -> None:
        """Keep the block as pending, if the chain will take it; Bob signs it off, Alice waits for his signature."""
        number, machine = self.loan.block_number, self.machine
        if fault := self._blocks.keep(number, block):
            self._refused = True
            self.abort(fault, qber_ppm=block.qber_ppm, attacked=fault.startswith("policy.qber"))
            return
        self._block = block
        if isinstance(machine, BobSession):
            signature = self._blocks.sign(number, block)
            self._enqueue(lambda: machine.sign_off(signature))
            self._queue.append(lambda: [PeerSigned(b"")])  # marks Bob's end, after his last message

    def _signed(self, signature: bytes) -> None:
        """Alice: Bob's signature is here; add hers and let the chain record the block. Bob: the end."""
        block = self._block
        assert block is not None, "a session signs only what it distilled"
        is_alice = isinstance(self.machine, AliceSession)
        if is_alice and not self._blocks.countersign(self.loan.block_number, block, signature):
            reason = "the receiver signed another record: the two ends do not hold the same block"
            self.abort(reason, qber_ppm=block.qber_ppm)
            return
        self._close()
        self._owner.finished(self, block)

    # ---- the end

    def _end(self, aborted: SessionAborted) -> None:
        self._close()
        self._owner.aborted(self, aborted)

    def _close(self) -> None:
        """Count what the session used as used.

        What a job under way uses beyond the last account never leaves: its messages are dropped.
        """
        self._authentication.settle(self.loan)
        self.is_over = True
        self._queue.clear()
        self._light = self._light_ahead = None
        if not self.is_busy:
            self.machine.close()
