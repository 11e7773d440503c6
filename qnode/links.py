"""The quantum links of a node: one endless cycle of QKD sessions with each neighbour (row S0-E1).

Decides when a session starts, what it may use of the authentication key, what becomes of its block, and what is
reported. One session per link at a time; its steps run as jobs, one after the other. Does not decide what a session
says (`protocol.session`) nor where its key goes afterwards (`keystore`).

A block's way: the session ends at both sides → each side stores it as pending, then signs the record → the chain
commits the record → each side makes the key available and appends the refills to both authentication streams, in
chain order. Key that the chain does not commit is destroyed at the record's expiry height.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np

from ledger.genesis import Genesis
from ledger.signatures import Signer, Verifier
from ledger.transactions import AlarmRaised, KeyBlockRecorded
from protocol.authentication import HASH_KEY_BYTES, PAD_BYTES, WINDOW_BYTES, Authenticator, session_id
from protocol.messages import Record
from protocol.parameters import ParameterError
from protocol.quantum.comparison import Estimate, fidelity_from_sacrificed
from protocol.quantum.eavesdropper import Combined, Eavesdropper, make_eavesdropper
from protocol.quantum.link import LinkParameters, Receiver, Transmitter
from protocol.session import (
    PROBED,
    AliceSession,
    BlockDistilled,
    BobSession,
    DistilledBlock,
    Output,
    PeerSigned,
    SendLight,
    SendMessage,
    SessionAborted,
    SessionParameters,
)
from qnode.context import Context
from qnode.effects import Put, TrafficClass
from qnode.keystore import RECEIVER, TRANSMITTER, KeyStore, PendingBlock
from qnode.rules import ChainRules
from qnode.streams import RESERVE_BYTES, AuthenticationStream
from qnode.vault import Vault
from qnode.wire import LightFrame, LightTaken, SessionFrame, SessionRefused

BLOCK_NUMBER_TABLE: Final = "link.block"

SESSION_DEADLINE_NS: Final = 60_000_000_000
"""A session that takes longer is given up: ten times the longest that a loaded two-core machine was seen to need."""

LIGHT_CHUNKS_MAX: Final = 16
"""Chunks of light on their way or waiting at the receiver: 4 MiB a link, enough to keep both ends busy."""

QUEUED_INPUTS_MAX: Final = 2 * LIGHT_CHUNKS_MAX
"""Steps that wait for a session's running job: the light under way, and the few messages a session can be ahead."""

RETRY_FIRST_NS: Final = 200_000_000
RETRY_MAX_NS: Final = 5_000_000_000
ATTACKED_RETRY_NS: Final = 1_500_000_000
"""Between blocks of an attacked link: each costs a few hundred bytes of authentication key, so 32 KiB last for minutes
of attack, and the end of the attack is noticed within seconds."""

OPENING_BYTES_MAX: Final = 1024
"""A sealed first message of either end. A false one costs no key, so that nobody can burn a stream by guessing; the
short bound keeps each guess at its tag below 2^−96 (SPEC 3.5)."""

WINDOW_BYTES_MIN: Final = HASH_KEY_BYTES + 64 * PAD_BYTES
"""Below the key for 64 messages a session is not begun: it could not end."""

TOP_UP_BYTES_MAX: Final = 2048
"""What a stream below its target gains per block and direction, so that a refill never starves delivery."""
STREAM_TARGET_BYTES: Final = 4 * WINDOW_BYTES

UNRECORDED_MAX: Final = 4
"""Blocks that wait for the chain: one being voted on, one in the next proposal, and what comes of them in between."""
RECORD_LIFETIME_HEIGHTS: Final = 2000
"""Heights until a record expires: minutes at full speed, hours on an idle chain; bounds how long pending key lives."""

QBER_LIMIT_MIN: Final = 0.001
"""What a session accepts as its limit at least; a policy below it refuses the finished blocks."""

PULSES_MAX: Final = 1 << 44


@dataclass(frozen=True, slots=True)
class LinkConfiguration:
    """One link as this node must know it; built by the shell from settings and genesis."""

    link_id: str
    transmitter: str
    receiver: str
    parameters: LinkParameters
    session: SessionParameters
    block_pulses: int
    pool_target_bits: int
    pre_shared_secret: bytes = field(repr=False)
    probe_interval_ns: int = 10_000_000_000  # a link whose pool is full still measures its error rate this often
    start_spread_ns: int = 0  # the first session begins at a moment drawn from so long


@dataclass(slots=True)
class LinkFigures:
    """What an operator sees of a link. Counts since the start of the process."""

    blocks: int = 0
    aborts: int = 0
    attacked_aborts: int = 0
    secret_bits: int = 0
    last_qber_ppm: int | None = None
    last_abort: str | None = None
    first_block_ns: int | None = None
    last_block_ns: int | None = None
    session_ms: float | None = None
    chsh: float | None = None  # of an entangled link's last block (S0-E10)
    fidelity: Estimate | None = None  # of the received states, from the block's sacrificed test bits (S0-E19)


@dataclass(slots=True)
class _Running:
    """The session under way and what it has been lent."""

    session: AliceSession | BobSession
    block_number: int
    nonce: bytes
    send_start: int
    receive_start: int
    deadline_ns: int
    begun_ns: int
    queue: "deque[_Step]" = field(default_factory=deque)
    busy: bool = False
    answered: bool = False
    heard: bool = False
    send_used: int = 0
    receive_used: int = 0
    block: DistilledBlock | None = None
    refused: bool = False
    light: Iterator[bytes] | None = None
    light_ahead: bytes | None = None
    light_chunks: int = 0


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


@dataclass(frozen=True, slots=True)
class LinkServices:
    """What every link of a node shares."""

    context: Context
    keys: KeyStore
    genesis: Genesis
    signer: Signer
    verifier: Verifier
    vault: Vault
    physics: Callable[[str], np.random.Generator]
    is_alarmed: Callable[[str], bool]
    rules: ChainRules
    record_keys: Callable[[str], list[bytes]]  # of a node: what its signature inside a record may be of


class Link:
    """One end of one quantum link."""

    def __init__(
        self, configuration: LinkConfiguration, services: LinkServices, stored: Mapping[str, list[tuple[bytes, bytes]]]
    ) -> None:
        self._configuration = configuration
        self._services = services
        self.link_id = configuration.link_id
        node_id = services.context.node_id
        self.role = TRANSMITTER if configuration.transmitter == node_id else RECEIVER
        self.peer = configuration.receiver if self.role == TRANSMITTER else configuration.transmitter
        self.figures = LinkFigures()
        self.attack: str | None = None
        names = ("transmitter", "receiver") if self.role == TRANSMITTER else ("receiver", "transmitter")
        self._send = self._stream(names[0], RESERVE_BYTES, stored)
        self._receive = self._stream(names[1], RESERVE_BYTES, stored)
        self._last_block_number = -1
        for key, value in stored.get(BLOCK_NUMBER_TABLE, ()):
            if key == self.link_id.encode():
                self._last_block_number = int.from_bytes(value, "big")
        self._eavesdropper_physics = services.physics(f"{self.link_id}/eavesdropper")
        self._transmitter = Transmitter(
            configuration.parameters, services.context.entropy, services.physics(f"{self.link_id}/transmitter")
        )
        self._receiver = Receiver(
            configuration.parameters, services.context.entropy, services.physics(f"{self.link_id}/receiver")
        )
        self._jobs = 0
        self._running: _Running | None = None
        spread_ns = configuration.start_spread_ns
        self._next_start_ns = services.context.now_ns + int(spread_ns * services.context.jitter.random())
        self._failures = 0
        self._unrecorded: dict[int, KeyBlockRecorded] = {}

    def _stream(
        self, direction: str, reserve_bytes: int, stored: Mapping[str, list[tuple[bytes, bytes]]]
    ) -> AuthenticationStream:
        stream = AuthenticationStream.restore(self.link_id, direction, self._services.vault, reserve_bytes, stored)
        if stream.end == 0:
            secret = self._configuration.pre_shared_secret
            half = len(secret) // 2
            part = secret[:half] if direction == "transmitter" else secret[half : 2 * half]
            self._services.context.write(stream.append(part))
        return stream

    # ---- what happens

    def tick(self) -> None:
        """Give up a session that takes too long; start the next one when it is due."""
        context, running = self._services.context, self._running
        if running is not None:
            if context.now_ns >= running.deadline_ns and not running.busy:
                self._end(running, SessionAborted("the session took too long", 0, attacked=False))
        elif self._may_start():
            self._start()

    def next_deadline_ns(self) -> int | None:
        """When `tick` must be called next."""
        if self._running is not None:
            return None if self._running.busy else self._running.deadline_ns  # a job's end is a step of its own
        return self._next_start_ns if self._is_free() else None

    def peer_lost(self) -> None:
        """The neighbour is gone: a session under way ends."""
        if self._running is not None:
            self._end(self._running, SessionAborted("the connection was lost", 0, attacked=False))

    def session_frame(self, frame: SessionFrame) -> None:
        """A sealed message arrived from the neighbour."""
        running = self._running
        if running is not None and running.nonce == frame.nonce and running.block_number == frame.block_number:
            if self.role == TRANSMITTER and not running.answered and not self._begin_receiving(running, frame):
                return
            self._enqueue(running, lambda: running.session.receive(frame.sealed))
        elif self.role == RECEIVER:
            self._accept(frame)

    def light_frame(self, frame: LightFrame) -> None:
        """Light arrived at the receiver; light of no running session falls on closed shutters."""
        running = self._running
        if running is None or not isinstance(running.session, BobSession) or running.block_number != frame.block_number:
            return
        if frame.chunk != running.light_chunks:
            self._end(running, SessionAborted("a part of the light was lost on the way", 0, attacked=False))
            return
        running.light_chunks += 1
        session = running.session
        self._enqueue(running, lambda: [*session.receive_light(frame.light, frame.last), _LightMeasured(frame.chunk)])

    def light_taken(self, frame: LightTaken) -> None:
        """The receiver has room for one more chunk."""
        running = self._running
        if running is not None and running.light is not None and running.block_number == frame.block_number:
            self._enqueue(running, lambda: _draw(running, 1))

    def refused(self, frame: SessionRefused) -> None:
        """The receiver cannot open the session: catch up with where it stands, and try again."""
        running = self._running
        if running is None or running.heard or running.block_number != frame.block_number:
            return
        self._last_block_number = max(self._last_block_number, min(frame.block_number_last, 2**62))
        # The receiver can stand one reservation ahead of what was sent; a stranger's claim must not burn the stream.
        reach = running.send_start + running.send_used + RESERVE_BYTES
        running.send_start = max(running.send_start, min(frame.stream_offset, reach, self._send.end))
        self._end(running, SessionAborted(f"the receiver refused: {frame.reason}", 0, attacked=False))

    def recorded(self, block_number: int, secret_bits: int) -> None:
        """The chain committed a block of this link."""
        services = self._services
        self._unrecorded.pop(block_number, None)
        pending, writes = services.keys.activate(self.link_id, block_number)
        services.context.write(writes)
        if pending is None:
            services.context.log(
                "error",
                "key block committed that this node does not hold",
                link=self.link_id,
                block=block_number,
                remedy="its key is unusable; give the link a new pre-shared secret if its sessions fail from now on",
            )
            return
        own, peers = pending.refill_transmitter.reveal(), pending.refill_receiver.reveal()
        if self.role == RECEIVER:
            own, peers = peers, own
        services.context.write(self._send.append(own))
        services.context.write(self._receive.append(peers))
        figures, now_ns = self.figures, services.context.now_ns
        figures.blocks += 1
        figures.secret_bits += secret_bits
        figures.first_block_ns = figures.first_block_ns or now_ns
        figures.last_block_ns = now_ns

    def refused_by_chain(self, record: KeyBlockRecorded, reason: str) -> None:
        """The chain refused this end's record: the block's key is destroyed. What others submit changes nothing."""
        if self._unrecorded.get(record.block_number) != record:
            return
        del self._unrecorded[record.block_number]
        self._services.context.write(self._services.keys.discard(self.link_id, record.block_number))
        self._services.context.log(
            "warning", "key block refused by the chain", link=self.link_id, block=record.block_number, reason=reason
        )

    def forget_unrecorded(self, block_number: int) -> None:
        """The record of this block has expired."""
        self._unrecorded.pop(block_number, None)

    def set_attack(self, kind: str | None, parameters: Mapping[str, float]) -> None:
        """Put an eavesdropper on the emulated channel, from the next emission on; several are joined by "+".

        Of several, a parameter is named `kind.parameter`. Raises ParameterError.
        """
        self._transmitter.attack = _eavesdropper(kind, parameters, self._eavesdropper_physics) if kind else None
        self.attack = kind

    # ---- beginning

    @property
    def is_alarmed(self) -> bool:
        return self._services.is_alarmed(self.link_id)

    @property
    def pool_bits(self) -> int:
        """Key of this link that either end may still start using, in bits."""
        keys = self._services.keys
        return 8 * (keys.available_bytes(self.link_id) + keys.available_bytes(self.link_id, own=False))

    def _may_start(self) -> bool:
        return self._is_free() and self._services.context.now_ns >= self._next_start_ns

    def _is_free(self) -> bool:
        """Whether only time keeps the next session from starting; all else that does ends with an input."""
        return (
            self.role == TRANSMITTER
            and self.peer in self._services.context.connected
            and self._jobs == 0  # a job of a session that was given up may still use the device
            and not self._has_enough_pending()
        )

    def _has_enough_pending(self) -> bool:
        """Whether the chain is behind: what it has yet to record fills the pool, or is more than is kept at once."""
        pending_bits = sum(record.secret_bits for record in self._unrecorded.values())
        fills = pending_bits > 0 and self.pool_bits + pending_bits >= self._configuration.pool_target_bits
        return fills or len(self._unrecorded) >= UNRECORDED_MAX

    def _start(self) -> None:
        services, configuration = self._services, self._configuration
        context = services.context
        if self._send.available_bytes < WINDOW_BYTES_MIN or self._receive.available_bytes < WINDOW_BYTES_MIN:
            self._next_start_ns = context.now_ns + RETRY_MAX_NS
            self.figures.last_abort = "authentication key exhausted: give the link a new pre-shared secret"
            context.log("error", "link stopped", link=self.link_id, reason=self.figures.last_abort)
            return
        number, nonce = self._last_block_number + 1, context.entropy.take(16)
        identity = session_id(self.link_id, number, nonce)
        send_start = self._send.position
        probe = self.pool_bits >= configuration.pool_target_bits and not self.is_alarmed
        shortage = max(0, STREAM_TARGET_BYTES - min(self._send.available_bytes, self._receive.available_bytes))
        session = AliceSession(
            self._session_parameters(),
            self._transmitter,
            configuration.parameters,
            Authenticator(identity, "alice", "bob", self._send.window(send_start, WINDOW_BYTES)),
            context.entropy,
            session_id=identity,
            pulse_count=configuration.block_pulses,
            expiry_height=context.height + RECORD_LIFETIME_HEIGHTS,
            top_up_bytes=min(shortage, TOP_UP_BYTES_MAX),
            probe=probe,
        )
        running = self._begin(session, number, nonce, send_start, self._receive.position)
        interval_ns = int(1e9 * configuration.block_pulses / configuration.parameters.source.pulse_rate_hz)
        self._next_start_ns = context.now_ns + (configuration.probe_interval_ns if probe else interval_ns)
        self._enqueue(running, session.start)

    def _session_parameters(self) -> SessionParameters:
        """Return the link's parameters, the error rate bounded by the chain's policies as well.

        Both ends must have the same: while one has not executed a new policy yet, sessions are refused and tried again.
        """
        own, limit = self._configuration.session, self._services.rules.qber_max(self.link_id)
        if limit is None or limit >= own.watch.qber_max:
            return own
        return replace(own, watch=replace(own.watch, qber_max=max(limit, QBER_LIMIT_MIN)))

    def _accept(self, frame: SessionFrame) -> None:
        """Bob: a new session, unless it would use anything twice."""
        reason = self._cannot_open(frame)
        if reason is None and self._running is not None:
            self._end(self._running, SessionAborted("the transmitter began anew", 0, attacked=False))
        send_start = max(self._send.position, frame.reply_offset)  # after the end of the earlier session: it used key
        reason = reason or self._lacks_key(frame, send_start)
        if reason is not None:
            refusal = SessionRefused(
                self.link_id, frame.block_number, reason, self._receive.position, max(0, self._last_block_number)
            )
            self._services.context.send(self.peer, TrafficClass.SESSION, refusal)
            return
        identity = session_id(self.link_id, frame.block_number, frame.nonce)
        authenticator = Authenticator(
            identity,
            "bob",
            "alice",
            self._send.window(send_start, WINDOW_BYTES),
            self._receive.window(frame.stream_offset, WINDOW_BYTES),
        )
        session = BobSession(
            self._session_parameters(),
            self._receiver,
            self._configuration.parameters,
            authenticator,
            session_id=identity,
            pulse_count_max=PULSES_MAX,
        )
        running = self._begin(session, frame.block_number, frame.nonce, send_start, frame.stream_offset)
        self._enqueue(running, lambda: session.receive(frame.sealed))

    def _cannot_open(self, frame: SessionFrame) -> str | None:
        if self._jobs:
            return "the receiver is still busy with an earlier session"
        if frame.block_number <= self._last_block_number:
            return "the block number was used"
        if len(frame.sealed) > OPENING_BYTES_MAX:
            return "the first message is too long for one"
        return None

    def _lacks_key(self, frame: SessionFrame, send_start: int) -> str | None:
        if frame.stream_offset < self._receive.position:
            return "that authentication key was used"
        if self._receive.end - frame.stream_offset < WINDOW_BYTES_MIN:
            return "the authentication key is not yet known here"
        if frame.reply_offset > self._send.position + RESERVE_BYTES:  # no tag covers it: see `refused`
            return "the answers are wanted far ahead of where this stream stands"
        if self._send.end - send_start < WINDOW_BYTES_MIN:
            return "no authentication key left for the answers"
        return None

    def _begin(
        self, session: AliceSession | BobSession, number: int, nonce: bytes, send_start: int, receive_start: int
    ) -> _Running:
        now_ns = self._services.context.now_ns
        running = _Running(session, number, nonce, send_start, receive_start, now_ns + SESSION_DEADLINE_NS, now_ns)
        self._running = running
        return running

    def _begin_receiving(self, running: _Running, frame: SessionFrame) -> bool:
        """Alice: Bob's first answer says where his stream stands; it may have moved on, never back."""
        if len(frame.sealed) > OPENING_BYTES_MAX:
            self._end(running, SessionAborted("the first answer is too long for one", 0, attacked=False))
            return False
        if frame.stream_offset < self._receive.position:
            self._end(running, SessionAborted("the receiver offers used authentication key", 0, attacked=True))
            return False
        running.answered = True
        running.receive_start = frame.stream_offset
        window = self._receive.window(frame.stream_offset, WINDOW_BYTES)
        running.session.authenticator.begin_receiving(window)
        return True

    # ---- the session's steps

    def _enqueue(self, running: _Running, step: _Step) -> None:
        if len(running.queue) >= QUEUED_INPUTS_MAX:
            self._end(running, SessionAborted("the peer sends faster than the session can take", 0, attacked=False))
            return
        running.queue.append(step)
        self._run_next(running)

    def _run_next(self, running: _Running) -> None:
        if running.busy or not running.queue or self._running is not running:
            return
        if self._services.context.now_ns >= running.deadline_ns:
            return  # the `tick` of this step ends the session, however much still waits
        running.busy = True
        self._jobs += 1
        step = running.queue.popleft()
        self._services.context.run(step, lambda result, error: self._stepped(running, result, error))

    def _stepped(self, running: _Running, outputs: Any, error: BaseException | None) -> None:
        running.busy = False
        self._jobs -= 1
        if self._running is not running:
            running.session.close()
            return  # given up while the job ran: what it made never leaves
        if error is not None:
            raise error  # our bug: sessions never raise for what a peer or the channel did
        self._account(running)
        for output in outputs:
            if not running.refused:  # a policy has ended it: nothing more of it leaves
                self._execute(running, output)
        self._run_next(running)

    def _account(self, running: _Running) -> None:
        """Make the use of authentication key durable before the messages that used it leave.

        Before the peer's first true message nothing that a frame claims (offsets, block number) counts.
        """
        context, authenticator = self._services.context, running.session.authenticator
        running.send_used = authenticator.send_used_bytes
        if running.send_used:
            context.write(self._send.reserve(running.send_start + running.send_used))
        if authenticator.opened_messages:
            running.heard = True
            running.receive_used = authenticator.receive_used_bytes
            context.write(self._receive.reserve(running.receive_start + running.receive_used))
        if self._last_block_number < running.block_number and (running.heard or self.role == TRANSMITTER):
            self._remember_block_number(running.block_number)

    def _remember_block_number(self, number: int) -> None:
        self._last_block_number = number
        row = Put(BLOCK_NUMBER_TABLE, self.link_id.encode(), number.to_bytes(8, "big"))
        self._services.context.write([row])

    def _execute(self, running: _Running, output: _StepOutput) -> None:
        context = self._services.context
        match output:
            case SendMessage(sealed):
                attack = self._transmitter.attack
                if attack is not None:  # the emulated adversary owns the classical channel too
                    sealed = attack.tamper(sealed)
                self._send_session(
                    SessionFrame(
                        self.link_id,
                        running.block_number,
                        running.nonce,
                        running.send_start,
                        self._receive.position,
                        sealed,
                    )
                )
            case SendLight(chunks):
                running.light = chunks
                self._enqueue(running, lambda: _draw(running, LIGHT_CHUNKS_MAX))
            case _LightDrawn(chunk, last, light):
                context.send(
                    self.peer, TrafficClass.LIGHT, LightFrame(self.link_id, running.block_number, chunk, last, light)
                )
            case _LightMeasured(chunk):
                taken = LightTaken(self.link_id, running.block_number, chunk)
                context.send(self.peer, TrafficClass.SESSION, taken, after_sync=False)
            case BlockDistilled(block):
                self._distilled(running, block)
            case PeerSigned(signature):
                self._signed(running, signature)
            case SessionAborted():
                self._end(running, output)

    def _send_session(self, frame: Record) -> None:
        self._services.context.send(self.peer, TrafficClass.SESSION, frame)

    def _distilled(self, running: _Running, block: DistilledBlock) -> None:
        """Keep the block as pending, if the chain will take it; Bob signs it off, Alice waits for his signature."""
        if fault := self._services.rules.key_block_fault(self._record(running, block)):
            for secret in (block.key, block.refill_transmitter, block.refill_receiver):
                secret.wipe()
            running.refused, attacked = True, fault.startswith("policy.qber")
            self._end(running, SessionAborted(fault, block.qber_ppm, attacked=attacked))
            return
        running.block = block
        pending = PendingBlock(
            self.link_id,
            running.block_number,
            block.expiry_height,
            block.refill_transmitter,
            block.refill_receiver,
            block.key,
        )
        self._services.context.write(self._services.keys.add_pending(pending))
        session = running.session
        if isinstance(session, BobSession):
            signature = self._services.signer.sign(self._signing_bytes(self._record(running, block)))
            self._enqueue(running, lambda: session.sign_off(signature))
            running.queue.append(lambda: [PeerSigned(b"")])  # marks Bob's end, after his last message

    def _signed(self, running: _Running, signature: bytes) -> None:
        """Alice: Bob's signature is here; add hers and let the chain record the block. Bob: the end."""
        block = running.block
        assert block is not None, "a session signs only what it distilled"
        services = self._services
        if self.role == TRANSMITTER:
            record = self._record(running, block)
            signing_bytes = self._signing_bytes(record)
            peer_keys = services.record_keys(self.peer)
            if not any(services.verifier.verify(key, signing_bytes, signature) for key in peer_keys):
                services.context.write(services.keys.discard(self.link_id, running.block_number))
                reason = "the receiver signed another record: the two ends do not hold the same block"
                self._end(running, SessionAborted(reason, block.qber_ppm, attacked=False))
                return
            own = services.signer.sign(signing_bytes)
            record = replace(record, transmitter_signature=own, receiver_signature=signature)
            self._unrecorded[running.block_number] = record
            services.context.submit(record)
        self.figures.last_qber_ppm = block.qber_ppm
        self.figures.session_ms = (services.context.now_ns - running.begun_ns) / 1e6
        if isinstance(running.session, AliceSession) and running.session.chsh is not None:
            self.figures.chsh = running.session.chsh.value
        matches = round(block.sample_bits * (1 - block.qber_ppm / 1e6))
        self.figures.fidelity = fidelity_from_sacrificed(matches, block.sample_bits)
        self._failures = 0
        self._close(running)
        services.context.log(
            "info",
            "block distilled",
            link=self.link_id,
            block=running.block_number,
            qber=block.qber_ppm / 1e6,
            secret_bits=block.secret_bits,
        )

    def _record(self, running: _Running, block: DistilledBlock) -> KeyBlockRecorded:
        unsigned = bytes(64)
        return KeyBlockRecorded(
            link_id=self.link_id,
            block_number=running.block_number,
            pulses=block.pulses,
            detections=block.detections,
            sifted_bits=block.sifted_bits,
            sample_bits=block.sample_bits,
            qber_ppm=block.qber_ppm,
            leaked_bits=block.leaked_bits,
            verification_bits=block.verification_bits,
            authentication_bits=block.authentication_bits,
            secret_bits=block.secret_bits,
            security_millibits=block.security_millibits,
            proof=block.proof,
            method=block.method,
            commitment=block.commitment,
            expiry_height=block.expiry_height,
            transmitter_signature=unsigned,
            receiver_signature=unsigned,
        )

    def _signing_bytes(self, record: KeyBlockRecorded) -> bytes:
        genesis = self._services.genesis
        return record.signing_bytes(genesis.chain_id, genesis.digest)

    # ---- the end

    def _close(self, running: _Running) -> None:
        """Count what the session used as used, and free the link for the next.

        What a job under way uses beyond the last account never leaves: its messages are dropped.
        """
        context = self._services.context
        if running.send_used:
            context.write(self._send.advance(running.send_start + running.send_used))
        if running.receive_used:
            context.write(self._receive.advance(running.receive_start + running.receive_used))
        self._running = None
        running.queue.clear()
        running.light = running.light_ahead = None
        if not running.busy:
            running.session.close()

    def _end(self, running: _Running, aborted: SessionAborted) -> None:
        context = self._services.context
        self._close(running)
        if aborted.reason.endswith(PROBED):
            self.figures.last_qber_ppm = aborted.qber_ppm
            return
        self._failures += 1
        self.figures.aborts += 1
        self.figures.last_abort = aborted.reason
        if aborted.qber_ppm:
            self.figures.last_qber_ppm = aborted.qber_ppm
        retry_ns = min(RETRY_FIRST_NS << min(self._failures, 8), RETRY_MAX_NS)
        if aborted.attacked:
            retry_ns = ATTACKED_RETRY_NS
            self.figures.attacked_aborts += 1
            self._raise_alarm(running, aborted)
        jittered_ns = int(retry_ns * (0.75 + 0.5 * context.jitter.random()))
        self._next_start_ns = max(self._next_start_ns, context.now_ns + jittered_ns)
        context.log(
            "warning",
            "block aborted",
            link=self.link_id,
            block=running.block_number,
            reason=aborted.reason,
            qber=aborted.qber_ppm / 1e6,
        )

    def _raise_alarm(self, running: _Running, aborted: SessionAborted) -> None:
        if self.is_alarmed and not self._services.rules.counts_aborts(self.link_id):
            return
        context = self._services.context
        reason = "qber" if aborted.qber_ppm else "authentication"
        context.submit(
            AlarmRaised(self.link_id, running.block_number, reason, min(aborted.qber_ppm, 10**6), context.node_id)
        )

    def status(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        figures = self.figures
        span_ns = (figures.last_block_ns or 0) - (figures.first_block_ns or 0)
        keys = self._services.keys
        return {
            "link_id": self.link_id,
            "role": "transmitter" if self.role == TRANSMITTER else "receiver",
            "peer": self.peer,
            "connected": self.peer in self._services.context.connected,
            "alarmed": self.is_alarmed,
            "suspended_by": self._services.rules.suspended_by(self.link_id),
            "attack": self.attack,
            "blocks": figures.blocks,
            "aborts": figures.aborts,
            "attacked_aborts": figures.attacked_aborts,
            "last_abort": figures.last_abort,
            "qber": None if figures.last_qber_ppm is None else figures.last_qber_ppm / 1e6,
            "chsh": figures.chsh,
            "fidelity": None if figures.fidelity is None else asdict(figures.fidelity),
            "secret_bits": figures.secret_bits,
            "secret_bits_per_s": round(figures.secret_bits * 1e9 / span_ns, 1) if span_ns > 0 else None,
            "session_ms": figures.session_ms,
            "available_bytes": keys.available_bytes(self.link_id),
            "available_bytes_peer": keys.available_bytes(self.link_id, own=False),
            "authentication_bytes": min(self._send.available_bytes, self._receive.available_bytes),
        }


def _draw(running: _Running, count: int) -> list[_StepOutput]:
    """Let the source emit up to `count` more chunks; runs as a job. One chunk is drawn ahead, to know the last."""
    drawn: list[_StepOutput] = []
    while running.light is not None and len(drawn) < count:
        if running.light_ahead is None:
            running.light_ahead = next(running.light)
        light, running.light_ahead = running.light_ahead, next(running.light, None)
        last = running.light_ahead is None
        drawn.append(_LightDrawn(running.light_chunks, last, light))
        running.light_chunks += 1
        if last:
            running.light = None
    return drawn


def _eavesdropper(kind: str, parameters: Mapping[str, float], physics: np.random.Generator) -> Eavesdropper:
    """Make the eavesdropper of one name, or a row of several. Raises ParameterError."""
    kinds = kind.split("+")
    if len(kinds) == 1:
        return make_eavesdropper(kind, parameters, physics)
    given: dict[str, dict[str, float]] = {each: {} for each in kinds}
    for name, value in parameters.items():
        owner, _, parameter = name.partition(".")
        if owner not in given or not parameter:
            raise ParameterError(f"{name!r} must be kind.parameter, with a kind of {', '.join(kinds)}")
        given[owner][parameter] = value
    return Combined([make_eavesdropper(each, given[each], physics) for each in kinds])
