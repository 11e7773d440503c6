"""The sessions of devices, at the node: begun by a device's first true message, ended with a key or a reason.

Pure. The number of a session is stored before its first answer leaves, its key before the device hears of it, so that
neither is ever used twice. What a session says, `protocol.lightweight` knows; keys are kept by `device_store` (rows
S4-A1.3–6 to S4-A1.19).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ledger.state import State
from protocol.lightweight.channel import NODE, Channel, Forged, sequence_of, session_counter
from protocol.lightweight.length import DevicePolicy
from protocol.lightweight.node import ATTACK_QBER, QBER_LEVELS, NodeSession, described_code
from protocol.lightweight.telemetry import TelemetryKey
from protocol.parameters import ParameterError
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import Transmitter
from protocol.records import MalformedMessage
from qnode.context import Context
from qnode.device_alarms import FORGED, REPLAYED, DeviceAlarms
from qnode.device_answers import DeviceAnswers
from qnode.device_enrolments import Enrolments, policy_in_force
from qnode.device_plane import DevicePlane
from qnode.device_store import Device, DeviceStore


class DeviceSessions:
    """Takes the session frames of devices that the chain knows."""

    def __init__(
        self,
        context: Context,
        plane: DevicePlane,
        state: Callable[[], State],
        physics: Callable[[str], np.random.Generator],
        *,
        store: DeviceStore,
        enrolments: Enrolments,
        alarms: DeviceAlarms,
        answers: DeviceAnswers,
    ) -> None:
        self._context = context
        self._plane = plane
        self._state = state
        self._physics = physics
        self._store = store
        self._enrolments = enrolments
        self._alarms = alarms
        self._answers = answers
        context.run(_build_codes, lambda _result, _error: None)

    def frame(self, request_id: int, device: Device, payload: bytes) -> None:
        """Take a frame: of the session under way, or the first of another."""
        try:
            counter = session_counter(payload)
        except Forged as error:
            self._forged(device, 1)
            self._answers.refuse(request_id, f"session: {error}")
            return
        if device.busy:
            self._answers.frames(request_id)  # the device says it again
            return
        known = device.session is not None and counter == device.session.channel.counter
        if not known and (reason := self._open(device, counter, payload)):
            self._answers.refuse(request_id, reason)
            return
        session = device.session
        assert session is not None
        device.busy = True

        def done(answer: Any, error: BaseException | None) -> None:
            device.busy = False
            if error is not None:
                raise error
            self._answered(request_id, device, session, answer)

        self._context.run(lambda: session.receive(payload), done)

    def _open(self, device: Device, counter: int, payload: bytes) -> str | None:
        """Begin a session whose first frame is truly the device's; return why not otherwise."""
        if counter <= device.counter or sequence_of(payload) != 0:
            device.figures.replayed += 1
            self._alarms.suspected(device.device_id, REPLAYED)
            return f"session: {counter} is not a new session of this device: repeated, or of another state"
        try:
            policy = self._policy(device.device_id)
        except ParameterError as error:
            return f"device: no session keeps the floor of the chain's policies: {error}"
        for key in dict.fromkeys((device.authentication_key, device.previous_key)):
            channel = Channel(device.device_id, counter, NODE, key)
            try:
                channel.open(payload)
            except Forged:
                continue
            except MalformedMessage as error:
                return f"session: {error}"
            break
        else:
            self._forged(device, 1)
            return "session: the first message carries a false tag"
        device.figures.sessions += 1
        self._store.begin_session(device, counter, key)
        physics = self._physics(f"device/{device.device_id}/{counter}")
        transmitter = Transmitter(self._plane.parameters, self._context.entropy, physics)
        if device.attack is not None:
            transmitter.attack = make_eavesdropper(device.attack, {}, physics)
        device.session = NodeSession(
            Channel(device.device_id, counter, NODE, device.authentication_key),
            policy,
            self._plane.parameters,
            transmitter,
            self._context.entropy,
            device.expected_qber,
            self._plane.kem,
        )
        return None

    def _policy(self, device_id: str) -> DevicePolicy:
        """Return the floor in force for a device (S4-6.1): its record's, or what policies have raised it to."""
        known = self._state().device(device_id)
        assert known is not None, "only a device on the chain has sessions"
        floor = DevicePolicy(known.key_bits_min, known.security_millibits_min)
        return policy_in_force(self._state(), device_id, self._context.node_id, floor)

    def _answered(self, request_id: int, device: Device, session: NodeSession, answer: bytes | None) -> None:
        if self._store.get(device.device_id) is not device:
            self._answers.refuse(request_id, "device: revoked")  # while the job ran
            return
        self._forged(device, session.forged)
        session.forged = 0
        if session.finished and device.ended < session.channel.counter:
            device.ended = session.channel.counter
            self._ended(device, session)
        messages = [("session", answer)] if answer is not None else []
        if session.light and answer is not None:
            messages.append(("light", session.channel.counter.to_bytes(8, "big") + session.light))
        self._answers.frames(request_id, *messages)

    def _forged(self, device: Device, count: int) -> None:
        device.figures.forged += count
        for _ in range(count):
            self._alarms.suspected(device.device_id, FORGED)

    def _ended(self, device: Device, session: NodeSession) -> None:
        """Account for a session once; its answers stay for a device that asks again."""
        seen, figures = session.figures, device.figures
        figures.battery_mj = seen.battery_mj
        figures.last_qber, figures.last_secret_bits = seen.qber, seen.secret_bits
        if session.key is None:
            figures.aborts += 1
            figures.attacked += session.attacked
            figures.last_failure = session.failure
            level = "warning" if session.attacked else "info"
            self._context.log(level, "device session failed", device=device.device_id, reason=session.failure)
            if session.attacked:
                self._alarms.attacked(device.device_id, seen.qber)
            if not session.attacked and seen.qber > device.expected_qber:
                device.expected_qber = next((q for q in QBER_LEVELS if q > seen.qber), QBER_LEVELS[-1])
            return
        self._enrolments.drop(device.device_id)  # whoever made a key has heard the answer to its enrolment
        new = TelemetryKey(device.device_id, session.key.key_id, session.key.key)
        self._store.renew(device, new, session.key.authentication_key)
        figures.keys += 1
        self._alarms.cleared(device.device_id)
        if seen.qber < ATTACK_QBER:
            device.expected_qber = next((q for q in QBER_LEVELS if q > 1.1 * seen.qber), QBER_LEVELS[-1])
        self._store.put(device)
        self._store.put_window(device, new)


def _build_codes() -> None:
    """Build the codes that most sessions use before a device waits for one."""
    for frame_bits in (2048, 4096):
        described_code(frame_bits, QBER_LEVELS[0])
