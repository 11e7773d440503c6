"""A device's protocol state between its sensor and the network: enrolment, keys, readings, rotation (row S4-A1.19).

Pure: frames in and out, time as an argument, storage as a callable that returns when the state is durable. It keeps
what was not answered and says it again, so that a lost, repeated or forged message changes nothing; it renews its key
by age, bytes and messages, and forgets old ones; without the energy for a key it says so.
"""

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.entropy import Entropy
from protocol.lightweight.arithmetic import ParityCode
from protocol.lightweight.channel import DEVICE, Channel
from protocol.lightweight.device import DeviceSession
from protocol.lightweight.hybrid import Kem
from protocol.lightweight.length import DevicePolicy
from protocol.lightweight.receiver import DeviceReceiver
from protocol.lightweight.telemetry import GCM, PAD, PadExhausted, TelemetryKey
from qnode.device.energy import (
    Battery,
    TooWeak,
    plan_session,
    reading_energy_j,
    refresh_period_s,
    session_energy_j,
)

RETRY_NS: Final = 1_000_000_000
"""Unanswered frames are said again after this: far above a round trip, below what a user notices."""
REPEAT_DOUBLINGS_MAX: Final = 4
"""A reading is said again after 2 s, 4 s, … 32 s: a broker that is too slow is not buried under repetitions."""
SESSION_RETRIES: Final = 30
UNANSWERED_MAX: Final = 900
"""Readings that wait for their receipt; fewer than the node's replay window, so that none is ever too late."""
SEQUENCES_RESERVED: Final = 256
"""Sequence numbers that one write of the state covers: a crash skips at most so many, and never uses one again."""
READINGS_PER_KEY_MAX: Final = 1 << 24
"""A device too weak to renew its key goes on under the old one, up to here: far inside what AES-GCM allows a key."""
FAILURE_PAUSE_NS: Final = 500_000_000
Outgoing = list[tuple[str, bytes]]


@dataclass(slots=True)
class DeviceState:
    """What must survive a restart. Written before anything that rests on it leaves the device."""

    device_id: str
    authentication_key: bytes = field(repr=False)
    counter: int = 0
    key_id: bytes = b""
    key: bytes = field(default=b"", repr=False)
    key_time_ns: int = 0
    sequences_reserved: int = 0
    pad_used: int = 0
    charge_j: float | None = None  # of the battery, when this was stored


@dataclass(slots=True)
class AgentFigures:
    """What the device did since its start."""

    keys: int = 0
    session_failures: int = 0
    readings: int = 0
    receipts: int = 0
    repeated: int = 0
    refusals: int = 0
    session_ms: list[float] = field(default_factory=list)
    receipt_ms: list[float] = field(default_factory=list)
    last_failure: str | None = None
    too_weak: str | None = None
    last_session: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Waiting:
    frame: bytes
    sealed_ns: int
    said_ns: int
    repeats: int = 0


class Agent:
    """One device. Methods return the frames to send as (channel, payload)."""

    def __init__(
        self,
        state: DeviceState,
        policy: DevicePolicy,
        battery: Battery,
        entropy: Entropy,
        physics: random.Random,
        save: Callable[[DeviceState], None],
        one_time_pad: bool = False,
        kem: Kem | None = None,
    ) -> None:
        """`state` as stored; `save` returns when it is durable; with `kem` keys are hybrid."""
        assert kem is None or not one_time_pad, "a hybrid key is computational: no one-time pad"
        self.state = state
        self.battery = battery
        if state.charge_j is not None:
            battery.charge_j = state.charge_j
        self.figures = AgentFigures()
        self._own_policy = policy
        self.policy = policy
        """The floor in force, as the node said last; the device's own before."""
        self._floor_heard_ns = 0
        self._entropy = entropy
        self._receiver = DeviceReceiver(battery.profile.receiver(), entropy, physics)
        self._save = save
        self._one_time_pad = one_time_pad
        self._kem = kem
        self._codes: dict[bytes, ParityCode] = {}
        self._session: DeviceSession | None = None
        self._session_begun_ns = 0
        self._session_said_ns = 0
        self._session_retries = 0
        self._pause_until_ns = 0
        self._waiting: OrderedDict[tuple[bytes, int], _Waiting] = OrderedDict()
        self._keys: list[TelemetryKey] = []
        self._sequence = state.sequences_reserved
        self._bytes_under_key = 0
        self._messages_under_key = 0
        if state.key:
            self._keys.append(TelemetryKey(state.device_id, state.key_id, state.key, len(state.key)))
        # After a restart the pad counts as used up: what was on its way is not known.

    # ---- keys

    @property
    def has_key(self) -> bool:
        """Whether readings can be sealed."""
        return bool(self._keys)

    @property
    def in_session(self) -> bool:
        """Whether a key is being made."""
        return self._session is not None

    @property
    def unanswered(self) -> int:
        """How many readings wait for their receipt."""
        return len(self._waiting)

    def wants_key(self, now_ns: int) -> bool:
        """Say whether a session is due: no key yet, or the key is old or worn, and the last readings are through."""
        if self._session is not None or now_ns < self._pause_until_ns:
            return False
        if not self._keys:
            return True
        if any(key_id != self._keys[0].key_id for key_id, _ in self._waiting):
            return False  # the node keeps one key besides the one in use
        profile = self.battery.profile
        return (
            now_ns - self.state.key_time_ns > refresh_period_s(self.battery) * 1e9
            or self._bytes_under_key >= profile.refresh_bytes
            or self._messages_under_key >= profile.refresh_messages
            or (self._one_time_pad and self._keys[0].pad_left < 64)
        )

    def begin_session(self, now_ns: int) -> Outgoing:
        """Begin a session, or find that the battery does not allow one (`figures.too_weak`)."""
        planned = self.policy
        plan = plan_session(self.battery, planned)
        if isinstance(plan, TooWeak) and self._may_ask_again(now_ns):
            planned = self._own_policy
            plan = plan_session(self.battery, planned)
        if isinstance(plan, TooWeak):
            known, self.figures.too_weak = self.figures.too_weak, plan.reason
            self._pause_until_ns = now_ns + 10 * RETRY_NS
            return [] if known is not None else [("status", f"too weak: {plan.reason}".encode())]
        self.figures.too_weak = None
        self.state.counter += 1
        self._persist()
        channel = Channel(self.state.device_id, self.state.counter, DEVICE, self.state.authentication_key)
        self._session = DeviceSession(
            *(channel, self._own_policy, plan.wish, self._receiver, self._entropy, self._codes, self._kem),
            planned,
        )
        self._session_begun_ns = self._session_said_ns = now_ns
        self._session_retries = 0
        return [("session", self._session.start())]

    def _may_ask_again(self, now_ns: int) -> bool:
        """Say whether to begin a session only to hear the floor: it was raised beyond our means, and may be lowered.

        Such a session ends before a qubit is measured if it was not.
        """
        heard_s = (now_ns - self._floor_heard_ns) / 1e9
        return self.policy != self._own_policy and heard_s > self.battery.profile.refresh_s

    def received(self, channel: str, payload: bytes, now_ns: int) -> Outgoing:
        """Take a frame from the node; whatever it is, nothing raises."""
        if channel == "ack":
            self._acknowledged(payload, now_ns)
            return []
        if channel == "refused":
            self.figures.refusals += 1
            self.figures.last_failure = payload[:200].decode("utf-8", "replace")
            return []  # anybody may say so; the session ends by itself if it is true
        session = self._session
        if session is None:
            return []
        if channel == "light":
            if payload[:8] != session.counter.to_bytes(8, "big"):
                return []
            frame = session.receive_light(payload[8:])
        else:
            frame = session.receive(payload)
        if frame is not None:
            self._session_said_ns, self._session_retries = now_ns, 0
        out = [("session", frame)] if frame is not None else []
        if session.finished:
            self._session_ended(session, now_ns)
        return out

    def _persist(self) -> None:
        self.state.charge_j = self.battery.charge_j
        self._save(self.state)

    def _session_ended(self, session: DeviceSession, now_ns: int) -> None:
        self._session = None
        if session.policy != self.policy:
            self.policy = session.policy
        if session.policy != self._own_policy:
            self._floor_heard_ns = now_ns
        figures = session.figures
        joules = session_energy_j(self.battery.profile, figures)
        self.battery.spend("keys", joules)
        milliseconds = (now_ns - self._session_begun_ns) / 1e6
        self.figures.last_session = {
            "ms": round(milliseconds, 2),
            "energy_j": joules,
            "qubits": figures.qubits_measured,
            "raw_bits": figures.sifted_bits,
            "secret_bits": figures.secret_bits,
            "key_bits": figures.key_bits,
            "qber": figures.qber,
            "epsilon": figures.epsilon,
        }
        if session.key is None:
            self.figures.session_failures += 1
            self.figures.last_failure = session.failure
            self._pause_until_ns = now_ns + FAILURE_PAUSE_NS
            return
        made = session.key
        self.state.authentication_key = made.authentication_key
        self.state.key_id, self.state.key, self.state.key_time_ns = made.key_id, made.key, now_ns
        self.state.sequences_reserved = self.state.pad_used = 0
        self._sequence = self._bytes_under_key = self._messages_under_key = 0
        self._persist()
        self._keys = [TelemetryKey(self.state.device_id, made.key_id, made.key), *self._keys[:1]]
        self.figures.keys += 1
        self.figures.session_ms.append(milliseconds)

    # ---- readings

    def publish(self, reading: bytes, now_ns: int) -> Outgoing:
        """Seal a reading and return it to be sent; empty when there is no key, no pad, or no room."""
        if not self._keys or len(self._waiting) >= UNANSWERED_MAX or self._sequence >= READINGS_PER_KEY_MAX:
            return []
        key = self._keys[0]
        if self._sequence >= self.state.sequences_reserved:
            self.state.sequences_reserved = self._sequence + SEQUENCES_RESERVED
            self._persist()
        mode = PAD if self._one_time_pad else GCM
        try:
            frame = key.seal(self._sequence + 1, now_ns // 1_000_000, reading, mode)
        except PadExhausted:
            return []
        self._sequence += 1
        self._bytes_under_key += len(reading)
        self._messages_under_key += 1
        self.battery.spend("readings", reading_energy_j(self.battery.profile, len(frame)))
        self._waiting[key.key_id, self._sequence] = _Waiting(frame, now_ns, now_ns)
        self.figures.readings += 1
        return [("data", frame)]

    def _acknowledged(self, payload: bytes, now_ns: int) -> None:
        if len(payload) != 32:
            return
        place = (payload[:16], int.from_bytes(payload[16:24], "big"))
        waiting = self._waiting.get(place)
        key = next((each for each in self._keys if each.key_id == place[0]), None)
        if waiting is None or key is None or key.acknowledgement(place[1]) != payload:
            return
        del self._waiting[place]
        self.figures.receipts += 1
        self.figures.receipt_ms.append((now_ns - waiting.sealed_ns) / 1e6)
        if len(self._keys) > 1 and not any(key_id == self._keys[1].key_id for key_id, _ in self._waiting):
            self._keys.pop()  # its last reading is through: forget it

    # ---- time

    def tick(self, now_ns: int) -> Outgoing:
        """Say again what was not answered, and begin a session when one is due."""
        out: Outgoing = []
        session = self._session
        if session is not None and now_ns - self._session_said_ns >= RETRY_NS:
            self._session_said_ns = now_ns
            self._session_retries += 1
            if self._session_retries > SESSION_RETRIES:
                session.failure = "the node does not answer"
                self._session_ended(session, now_ns)
            else:
                out.append(("session", session.frame))
        for waiting in self._waiting.values():
            if now_ns - waiting.said_ns >= 2 * RETRY_NS << min(waiting.repeats, REPEAT_DOUBLINGS_MAX):
                waiting.said_ns = now_ns
                waiting.repeats += 1
                self.figures.repeated += 1
                out.append(("data", waiting.frame))
        if self.wants_key(now_ns):
            out += self.begin_session(now_ns)
        return out

    def reconnected(self, now_ns: int) -> Outgoing:
        """Say again everything unanswered: the broker was away, or another one is there."""
        self._session_said_ns = min(self._session_said_ns, now_ns - RETRY_NS)
        for waiting in self._waiting.values():
            waiting.said_ns = waiting.repeats = 0
        return self.tick(now_ns)
