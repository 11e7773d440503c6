"""The quantum links of a node: one endless cycle of QKD sessions with each neighbour (row S0-E1).

Decides when a session starts, when it is tried again, and what is reported. One session per link at a time
(`link_session`). Does not decide what a session says (`protocol.session`), what it may use of the authentication key
(`link_authentication`), what becomes of its block (`link_blocks`) nor where its key goes afterwards (`keystore`).

A block's way: the session ends at both sides → each side stores it as pending, then signs the record → the chain
commits the record → each side makes the key available and appends the refills to both authentication streams, in
chain order. Key that the chain does not commit is destroyed at the record's expiry height.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from ledger.transactions import AlarmRaised, KeyBlockRecorded
from protocol.authentication import WINDOW_BYTES, Authenticator, session_id
from protocol.quantum.comparison import Estimate, fidelity_from_sacrificed
from protocol.quantum.eavesdropper import make_eavesdroppers
from protocol.quantum.link import Receiver, Transmitter
from protocol.session import PROBED, AliceSession, BobSession, DistilledBlock, SessionAborted, SessionParameters
from qnode.effects import TrafficClass
from qnode.keystore import RECEIVER, TRANSMITTER
from qnode.link_authentication import WINDOW_BYTES_MIN, LinkAuthentication, Loan
from qnode.link_blocks import LinkBlocks
from qnode.link_session import OPENING_BYTES_MAX, LinkSession
from qnode.link_setup import LinkConfiguration, LinkServices
from qnode.streams import Stored
from qnode.wire import LightFrame, LightTaken, SessionFrame, SessionRefused

RETRY_FIRST_NS: Final = 200_000_000
RETRY_MAX_NS: Final = 5_000_000_000
ATTACKED_RETRY_NS: Final = 1_500_000_000
"""Between blocks of an attacked link: each costs a few hundred bytes of authentication key, so 32 KiB last for minutes
of attack, and the end of the attack is noticed within seconds."""

RECORD_LIFETIME_HEIGHTS: Final = 2000
"""Heights until a record expires: minutes at full speed, hours on an idle chain; bounds how long pending key lives."""

QBER_LIMIT_MIN: Final = 0.001
"""What a session accepts as its limit at least; a policy below it refuses the finished blocks."""

PULSES_MAX: Final = 1 << 44


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


class Link:
    """One end of one quantum link."""

    def __init__(self, configuration: LinkConfiguration, services: LinkServices, stored: Stored) -> None:
        self._configuration = configuration
        self._services = services
        self.link_id = configuration.link_id
        node_id = services.context.node_id
        self.role = TRANSMITTER if configuration.transmitter == node_id else RECEIVER
        self.peer = configuration.receiver if self.role == TRANSMITTER else configuration.transmitter
        self.figures = LinkFigures()
        self.attack: str | None = None
        self.authentication = LinkAuthentication(
            self.link_id, self.role, configuration.pre_shared_secret, services.context, services.vault, stored
        )
        self._blocks = LinkBlocks(self.link_id, self.peer, configuration.pool_target_bits, services)
        self._eavesdropper_physics = services.physics(f"{self.link_id}/eavesdropper")
        self._transmitter = Transmitter(
            configuration.parameters, services.context.entropy, services.physics(f"{self.link_id}/transmitter")
        )
        self._receiver = Receiver(
            configuration.parameters, services.context.entropy, services.physics(f"{self.link_id}/receiver")
        )
        self.session: LinkSession | None = None
        """The session under way."""
        self._given_up: LinkSession | None = None  # the one before it, as long as a job of it may run
        spread_ns = configuration.start_spread_ns
        self._rests_until_ns = services.context.now_ns + int(spread_ns * services.context.jitter.random())
        self._probe_due_ns = 0
        self._is_full = False  # the pool, when it was last looked at
        self._failures = 0

    # ---- what happens

    def tick(self) -> None:
        """Give up a session that takes too long; start the next one when it is due."""
        if self.session is not None:
            self.session.give_up_when_late()
        elif self._is_free() and self._services.context.now_ns >= self._due_ns:
            self._start()

    def next_deadline_ns(self) -> int | None:
        """When `tick` must be called next."""
        if self.session is not None:
            return None if self.session.is_busy else self.session.deadline_ns  # a job's end is a step of its own
        return self._due_ns if self._is_free() else None

    def look_at_pool(self) -> None:
        """Notice what was taken from the pool, or has faded in it, and what came in."""
        self._is_full = self._blocks.pool_is_full

    def peer_lost(self) -> None:
        """The neighbour is gone: a session under way ends."""
        if self.session is not None:
            self.session.abort("the connection was lost")

    def session_frame(self, frame: SessionFrame) -> None:
        """A sealed message arrived from the neighbour."""
        session = self._session_of(frame.block_number)
        if session is not None and session.nonce == frame.nonce:
            session.receive(frame)
        elif self.role == RECEIVER:
            self._accept(frame)

    def light_frame(self, frame: LightFrame) -> None:
        """Light arrived at the receiver; light of no running session falls on closed shutters."""
        if (session := self._session_of(frame.block_number)) is not None:
            session.receive_light(frame)

    def light_taken(self, frame: LightTaken) -> None:
        """The receiver has room for one more chunk."""
        if (session := self._session_of(frame.block_number)) is not None:
            session.light_taken()

    def refused(self, frame: SessionRefused) -> None:
        """The receiver cannot open the session: catch up with where it stands, and try again."""
        session = self._session_of(frame.block_number)
        if session is None or session.loan.heard:
            return
        self.authentication.catch_up(session.loan, frame.block_number_last, frame.stream_offset)
        session.abort(f"the receiver refused: {frame.reason}")

    def _session_of(self, block_number: int) -> LinkSession | None:
        session = self.session
        return session if session is not None and session.loan.block_number == block_number else None

    def recorded(self, block_number: int, secret_bits: int) -> None:
        """The chain committed a block of this link."""
        block = self._blocks.recorded(block_number)
        if block is None:
            return
        self.authentication.refill(block)
        figures, now_ns = self.figures, self._services.context.now_ns
        figures.blocks += 1
        figures.secret_bits += secret_bits
        figures.first_block_ns = figures.first_block_ns or now_ns
        figures.last_block_ns = now_ns
        self.look_at_pool()

    def refused_by_chain(self, record: KeyBlockRecorded, reason: str) -> None:
        """The chain refused a record of this link."""
        self._blocks.refused_by_chain(record, reason)

    def forget_unrecorded(self, block_number: int) -> None:
        """The record of this block has expired."""
        self._blocks.forget_unrecorded(block_number)

    def set_attack(self, kind: str | None, parameters: Mapping[str, float]) -> None:
        """Put an eavesdropper on the emulated channel, from the next emission on; several are joined by "+".

        Of several, a parameter is named `kind.parameter`. Raises ParameterError.
        """
        physics = self._eavesdropper_physics
        self._transmitter.attack = make_eavesdroppers(kind, parameters, physics) if kind else None
        self.attack = kind

    # ---- beginning

    @property
    def is_alarmed(self) -> bool:
        return self._services.is_alarmed(self.link_id)

    @property
    def _only_probes(self) -> bool:
        """Whether the link has as much key as it may keep, and nothing but its error rate to find out."""
        return self._is_full and not self.is_alarmed

    @property
    def _due_ns(self) -> int:
        """When the next session starts; every session measures the error rate, and puts the next probe off."""
        return max(self._rests_until_ns, self._probe_due_ns) if self._only_probes else self._rests_until_ns

    def _is_free(self) -> bool:
        """Whether only time keeps the next session from starting; all else that does ends with an input."""
        return (
            self.role == TRANSMITTER
            and self.peer in self._services.context.connected
            and not self._is_busy  # a job of a session that was given up may still use the device
            and not self._blocks.has_enough_pending()
        )

    @property
    def _is_busy(self) -> bool:
        """Whether a job of this link runs."""
        return any(session is not None and session.is_busy for session in (self.session, self._given_up))

    def _start(self) -> None:
        """Alice: begin a session, or say why there can be none."""
        self.look_at_pool()
        configuration, context, authentication = self._configuration, self._services.context, self.authentication
        if authentication.available_bytes < WINDOW_BYTES_MIN:
            self._rests_until_ns = self._probe_due_ns = context.now_ns + RETRY_MAX_NS
            self.figures.last_abort = "authentication key exhausted: give the link a new pre-shared secret"
            context.log("error", "link stopped", link=self.link_id, reason=self.figures.last_abort)
            return
        number, nonce = authentication.last_block_number + 1, context.entropy.take(16)
        identity = session_id(self.link_id, number, nonce)
        loan = Loan(number, authentication.send.position, authentication.receive.position)
        session = AliceSession(
            self._session_parameters(),
            self._transmitter,
            configuration.parameters,
            Authenticator(identity, "alice", "bob", authentication.send.window(loan.send_start, WINDOW_BYTES)),
            context.entropy,
            session_id=identity,
            pulse_count=configuration.block_pulses,
            expiry_height=context.height + RECORD_LIFETIME_HEIGHTS,
            top_up_bytes=authentication.top_up_bytes,
            probe=self._only_probes,
        )
        interval_ns = int(1e9 * configuration.block_pulses / configuration.parameters.source.pulse_rate_hz)
        self._rests_until_ns = context.now_ns + interval_ns
        self._probe_due_ns = context.now_ns + configuration.probe_interval_ns
        self._begin(session, nonce, loan).start()

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
        context, authentication = self._services.context, self.authentication
        reason = self._cannot_open(frame)
        if reason is None and self.session is not None:
            self.session.abort("the transmitter began anew")
        send_start = max(authentication.send.position, frame.reply_offset)  # the earlier session's end used key
        reason = reason or authentication.refusal(frame.stream_offset, frame.reply_offset, send_start)
        if reason is not None:
            position, number = authentication.receive.position, max(0, authentication.last_block_number)
            refusal = SessionRefused(self.link_id, frame.block_number, reason, position, number)
            context.send(self.peer, TrafficClass.SESSION, refusal)
            return
        identity = session_id(self.link_id, frame.block_number, frame.nonce)
        authenticator = Authenticator(
            identity,
            "bob",
            "alice",
            authentication.send.window(send_start, WINDOW_BYTES),
            authentication.receive.window(frame.stream_offset, WINDOW_BYTES),
        )
        session = BobSession(
            self._session_parameters(),
            self._receiver,
            self._configuration.parameters,
            authenticator,
            session_id=identity,
            pulse_count_max=PULSES_MAX,
        )
        loan = Loan(frame.block_number, send_start, frame.stream_offset)
        self._begin(session, frame.nonce, loan).receive(frame)

    def _cannot_open(self, frame: SessionFrame) -> str | None:
        if self._is_busy:
            return "the receiver is still busy with an earlier session"
        if frame.block_number <= self.authentication.last_block_number:
            return "the block number was used"
        if len(frame.sealed) > OPENING_BYTES_MAX:
            return "the first message is too long for one"
        return None

    def _begin(self, session: AliceSession | BobSession, nonce: bytes, loan: Loan) -> LinkSession:
        self._given_up = None
        self.session = LinkSession(
            self,
            session,
            nonce,
            loan,
            context=self._services.context,
            authentication=self.authentication,
            blocks=self._blocks,
        )
        return self.session

    # ---- what a session tells

    def tamper(self, sealed: bytes) -> bytes:
        """Return a message as it leaves the classical channel: the emulated adversary owns that too."""
        attack = self._transmitter.attack
        return sealed if attack is None else attack.tamper(sealed)

    def finished(self, session: LinkSession, block: DistilledBlock) -> None:
        """The session is over, and this end has signed its block."""
        context, figures = self._services.context, self.figures
        self._leave(session)
        figures.last_qber_ppm = block.qber_ppm
        figures.session_ms = (context.now_ns - session.begun_ns) / 1e6
        if isinstance(session.machine, AliceSession) and session.machine.chsh is not None:
            figures.chsh = session.machine.chsh.value
        matches = round(block.sample_bits * (1 - block.qber_ppm / 1e6))
        figures.fidelity = fidelity_from_sacrificed(matches, block.sample_bits)
        self._failures = 0
        context.log(
            "info",
            "block distilled",
            link=self.link_id,
            block=session.loan.block_number,
            qber=block.qber_ppm / 1e6,
            secret_bits=block.secret_bits,
        )

    def aborted(self, session: LinkSession, aborted: SessionAborted) -> None:
        """The session is over without a block: report it, and try again later."""
        context, figures = self._services.context, self.figures
        self._leave(session)
        if aborted.reason.endswith(PROBED):
            figures.last_qber_ppm = aborted.qber_ppm
            return
        self._failures += 1
        figures.aborts += 1
        figures.last_abort = aborted.reason
        if aborted.qber_ppm:
            figures.last_qber_ppm = aborted.qber_ppm
        retry_ns = min(RETRY_FIRST_NS << min(self._failures, 8), RETRY_MAX_NS)
        if context.now_ns >= session.deadline_ns and self._failures > 1:  # no lost frame, but too much at once:
            retry_ns = context.now_ns - session.begun_ns  # as much time is left to others
        if aborted.attacked:
            retry_ns = ATTACKED_RETRY_NS
            figures.attacked_aborts += 1
            self._raise_alarm(session.loan.block_number, aborted)
        jittered_ns = int(retry_ns * (0.75 + 0.5 * context.jitter.random()))
        self._rests_until_ns = max(self._rests_until_ns, context.now_ns + jittered_ns)
        context.log(
            "warning",
            "block aborted",
            link=self.link_id,
            block=session.loan.block_number,
            reason=aborted.reason,
            qber=aborted.qber_ppm / 1e6,
        )

    def _leave(self, session: LinkSession) -> None:
        """Free the link for the next session."""
        self.session = None
        self._given_up = session if session.is_busy else None

    def _raise_alarm(self, block_number: int, aborted: SessionAborted) -> None:
        if self.is_alarmed and not self._services.rules.counts_aborts(self.link_id):
            return
        context = self._services.context
        reason = "qber" if aborted.qber_ppm else "authentication"
        context.submit(AlarmRaised(self.link_id, block_number, reason, min(aborted.qber_ppm, 10**6), context.node_id))

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
            "session_runs": self.session is not None,
            "pool_full": self._only_probes,
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
            "authentication_bytes": self.authentication.available_bytes,
        }
