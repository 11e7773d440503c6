"""The node's side of its devices: enrolment, sessions, keys, telemetry, revocation (rows S4-A1.3–6 to S4-A1.19).

Pure. A device's frame comes in as a request and its answers leave with the response, so after what they rest on is
stored: the number of a session before its first answer, a key before its activation, a reading's place in the replay
window before its receipt. Nothing is sent unasked, so that only the device keeps time. Decides no topics (`api.mqtt`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import msgpack
import numpy as np

from ledger.contracts.device_rules import device_floor
from ledger.execution import Receipt
from ledger.signatures import Verifier
from ledger.state import State
from ledger.state_entries import DeviceState
from ledger.transactions import (
    DeviceAlarmCleared,
    DeviceAlarmRaised,
    DeviceRegistered,
    DeviceRevoked,
    MalformedTransaction,
)
from protocol.lightweight import enrolment
from protocol.lightweight.channel import NODE, Channel, Forged, sequence_of, session_counter
from protocol.lightweight.enrolment import Enrol, EnrolmentRefused
from protocol.lightweight.hybrid import Kem
from protocol.lightweight.length import DevicePolicy
from protocol.lightweight.node import ATTACK_QBER, QBER_LEVELS, NodeSession, described_code, require_device_link
from protocol.lightweight.telemetry import Header, ReplayWindow, TelemetryError, TelemetryKey
from protocol.parameters import ParameterError
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import LinkParameters, Transmitter
from protocol.records import MalformedMessage, encode_record
from qnode.context import Context
from qnode.device_alarms import FORGED, REPLAYED, DeviceAlarms
from qnode.device_readings import READINGS_TABLE, Reading, Readings, Retention
from qnode.effects import Delete, Put, Respond
from qnode.inputs import (
    DeviceFrame,
    DeviceReply,
    DocumentAnswer,
    EnrolmentAnswer,
    GetDevices,
    GetReadings,
    IssueEnrolment,
    RequestError,
    RevokeDevice,
    SetDeviceAttack,
)
from qnode.vault import Vault

DEVICE_TABLE: Final = "device.state"
ENROLMENT_TABLE: Final = "device.enrolment"
WINDOW_TABLE: Final = "device.window"
DEVICES_MAX: Final = 10_000
ENROLMENTS_MAX: Final = 1_000
"""Codes that wait to be used."""
KEYS_KEPT: Final = 2
"""The key in use and the one before it, whose last readings may still be on their way."""
CLOCK_AHEAD_MS_MAX: Final = 300_000
"""A reading from further in the future means a wrong clock. Old ones are welcome: devices keep them while offline."""


@dataclass(frozen=True, slots=True)
class DevicePlane:
    """What a node must know to serve devices: the emulated channel to them."""

    parameters: LinkParameters
    kem: Kem | None = None  # for devices that want hybrid keys
    retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        require_device_link(self.parameters)


@dataclass(slots=True)
class _Figures:
    sessions: int = 0
    keys: int = 0
    aborts: int = 0
    attacked: int = 0
    forged: int = 0
    replayed: int = 0
    repeated: int = 0
    readings: int = 0
    refused: int = 0
    last_qber: float | None = None
    last_secret_bits: int | None = None
    last_failure: str | None = None
    battery_mj: int | None = None


@dataclass(slots=True)
class _Device:
    """One device. The first of `keys` is in use."""

    device_id: str
    authentication_key: bytes = field(repr=False)
    previous_key: bytes = field(repr=False)  # in force again if the device never heard of its last success
    counter: int = 0
    keys: list[TelemetryKey] = field(default_factory=list, repr=False)
    windows: dict[bytes, ReplayWindow] = field(default_factory=dict)
    session: NodeSession | None = field(default=None, repr=False)
    busy: bool = False
    ended: int = 0  # the last session that was accounted for
    attack: str | None = None
    expected_qber: float = QBER_LEVELS[0]
    figures: _Figures = field(default_factory=_Figures)


@dataclass(slots=True)
class _Enrolment:
    """A code that was issued; `request` and `nonce` once it was used, `waiting` who hears when that is recorded."""

    device_id: str
    code: bytes = field(repr=False)
    policy: DevicePolicy
    request: bytes = b""
    nonce: bytes = b""
    waiting: list[int] = field(default_factory=list)


class Devices:
    """All devices of one node."""

    def __init__(
        self,
        context: Context,
        vault: Vault,
        plane: DevicePlane,
        chain: tuple[str, bytes],
        state: Callable[[], State],
        verifier: Verifier,
        physics: Callable[[str], np.random.Generator],
        stored: Mapping[str, list[tuple[bytes, bytes]]],
    ) -> None:
        """`chain` is (chain ID, genesis digest)."""
        self._context = context
        self._vault = vault
        self._plane = plane
        self._chain_id, self._genesis_digest = chain
        self._state = state
        self._verifier = verifier
        self._physics = physics
        self._devices: dict[str, _Device] = {}
        self._enrolments: dict[bytes, _Enrolment] = {}
        self._refusals: dict[str, int] = {}
        self._alarms = DeviceAlarms(context, state)
        self._readings = Readings(context, vault, plane.retention, stored.get(READINGS_TABLE, ()))
        self._restore(stored)
        context.run(_build_codes, lambda _result, _error: None)

    # ---- requests

    def handle(
        self,
        request_id: int,
        request: DeviceFrame | IssueEnrolment | RevokeDevice | GetDevices | GetReadings | SetDeviceAttack,
    ) -> None:
        """Answer a request, now or when the chain or a job has said its part."""
        match request:
            case DeviceFrame():
                self._frame(request_id, request)
            case IssueEnrolment():
                self._respond(request_id, self._issue(request))
            case RevokeDevice():
                self._respond(request_id, self._revoke(request))
            case GetDevices():
                self._respond(request_id, DocumentAnswer(self.status()))
            case GetReadings():
                self._respond(request_id, self._last_readings(request))
            case SetDeviceAttack():
                self._respond(request_id, self._set_attack(request))

    def recorded(self, receipt: Receipt) -> None:
        """Take a committed record about a device."""
        record = receipt.transaction
        if isinstance(record, DeviceRevoked) and receipt.ok:
            self._forget(record.device_id)
        elif isinstance(record, DeviceAlarmRaised | DeviceAlarmCleared):
            self._alarms.recorded(record, receipt)
        elif isinstance(record, DeviceRegistered) and record.node_id == self._context.node_id:
            for name, waiting in list(self._enrolments.items()):
                if waiting.request and waiting.device_id == record.device_id:
                    self._complete(name, waiting, record.public_key, receipt.reason)

    def adopted(self) -> None:
        """The state went on by a snapshot: what it says of this node's devices was recorded in blocks not seen here."""
        for device_id in list(self._devices):
            known = self._state().device(device_id)
            if known is not None and known.revoked:
                self._forget(device_id)
        for name, waiting in list(self._enrolments.items()):
            known = self._state().device(waiting.device_id)
            if waiting.request and known is not None and waiting.device_id not in self._devices:
                is_here = known.node_id == self._context.node_id and not known.revoked
                reason = "" if is_here else "the device is another node's, or revoked"
                self._complete(name, waiting, known.public_key, reason)

    def status(self) -> dict[str, Any]:
        """Return what an operator may know of every device: no key material."""
        entries = []
        for device in self._devices.values():
            figures = {each.name: getattr(device.figures, each.name) for each in fields(device.figures)}
            window = device.windows.get(device.keys[0].key_id) if device.keys else None
            known = self._state().device(device.device_id)
            entries.append(
                {
                    "device_id": device.device_id,
                    "key_id": device.keys[0].key_id.hex() if device.keys else None,
                    "key_bits": 8 * len(device.keys[0].key) if device.keys else 0,
                    "missing": window.missing if window else 0,
                    "attack": device.attack,
                    "floor": self._floor_document(known),
                    "alarm": known.alarm_reason if known is not None and known.alarmed else None,
                    "alarms_raised": known.alarms_raised if known is not None else 0,
                    **figures,
                    "readings_last": self._readings.last(device.device_id, 3),
                }
            )
        return {
            "devices": entries,
            "enrolments_open": sum(1 for each in self._enrolments.values() if not each.request),
            "refusals": dict(self._refusals),
        }

    def _floor_document(self, known: DeviceState | None) -> dict[str, int]:
        if known is None:
            return {}
        bits, millibits = device_floor(self._state(), known.device_id, known.node_id)
        return {
            "key_bits_min": max(known.key_bits_min, bits),
            "security_millibits_min": max(known.security_millibits_min, millibits),
        }

    def alarmed(self) -> list[str]:
        """Return the devices of this node that stand under an alarm on the chain."""
        state = self._state()
        return [name for name in self._devices if (known := state.device(name)) is not None and known.alarmed]

    def _last_readings(self, request: GetReadings) -> DocumentAnswer | RequestError:
        if request.device_id not in self._devices:
            return RequestError(404, f"{request.device_id} is not a device of this node")
        readings = self._readings.last(request.device_id, request.count)
        return DocumentAnswer({"device_id": request.device_id, "readings": readings})

    # ---- frames

    def _frame(self, request_id: int, frame: DeviceFrame) -> None:
        if frame.channel == "enrol":
            self._enrol(request_id, frame)
            return
        known = self._state().device(frame.device_id)
        device = self._devices.get(frame.device_id)
        if reason := _refusal(known, device, self._context.node_id):
            self._refuse(request_id, reason)
            return
        assert device is not None
        if frame.channel == "session":
            self._session_frame(request_id, device, frame.payload)
        else:
            self._data(request_id, device, frame.payload)

    def _session_frame(self, request_id: int, device: _Device, payload: bytes) -> None:
        try:
            counter = session_counter(payload)
        except Forged as error:
            self._forged(device, 1)
            self._refuse(request_id, f"session: {error}")
            return
        if device.busy:
            self._respond(request_id, DeviceReply(()))  # the device says it again
            return
        known = device.session is not None and counter == device.session.channel.counter
        if not known and (reason := self._open_session(device, counter, payload)):
            self._refuse(request_id, reason)
            return
        session = device.session
        assert session is not None
        device.busy = True

        def done(answer: Any, error: BaseException | None) -> None:
            device.busy = False
            if error is not None:
                raise error
            self._session_answered(request_id, device, session, answer)

        self._context.run(lambda: session.receive(payload), done)

    def _open_session(self, device: _Device, counter: int, payload: bytes) -> str | None:
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
        if key != device.authentication_key:
            device.authentication_key = key  # the device never heard that its last session succeeded
            if device.keys:
                self._drop_key(device, device.keys.pop(0))
        device.counter = counter
        device.figures.sessions += 1
        self._store(device)
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
        return self._in_force(device_id, DevicePolicy(known.key_bits_min, known.security_millibits_min))

    def _in_force(self, device_id: str, floor: DevicePolicy) -> DevicePolicy:
        """Raises ParameterError where the policies want more than any session gives."""
        return floor.raised(*device_floor(self._state(), device_id, self._context.node_id))

    def _session_answered(self, request_id: int, device: _Device, session: NodeSession, answer: bytes | None) -> None:
        if self._devices.get(device.device_id) is not device:
            self._refuse(request_id, "device: revoked")  # while the job ran
            return
        self._forged(device, session.forged)
        session.forged = 0
        if session.finished and device.ended < session.channel.counter:
            device.ended = session.channel.counter
            self._session_ended(device, session)
        messages = [("session", answer)] if answer is not None else []
        if session.light and answer is not None:
            messages.append(("light", session.channel.counter.to_bytes(8, "big") + session.light))
        self._respond(request_id, DeviceReply(tuple(messages)))

    def _forged(self, device: _Device, count: int) -> None:
        device.figures.forged += count
        for _ in range(count):
            self._alarms.suspected(device.device_id, FORGED)

    def _session_ended(self, device: _Device, session: NodeSession) -> None:
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
        self._drop_enrolments(device.device_id)  # whoever made a key has heard the answer to its enrolment
        new = TelemetryKey(device.device_id, session.key.key_id, session.key.key)
        device.keys.insert(0, new)
        device.windows[new.key_id] = ReplayWindow()
        while len(device.keys) > KEYS_KEPT:
            self._drop_key(device, device.keys.pop())
        device.previous_key = device.authentication_key
        device.authentication_key = session.key.authentication_key
        figures.keys += 1
        self._alarms.cleared(device.device_id)
        if seen.qber < ATTACK_QBER:
            device.expected_qber = next((q for q in QBER_LEVELS if q > 1.1 * seen.qber), QBER_LEVELS[-1])
        self._store(device)
        self._store_window(device, new)

    def _data(self, request_id: int, device: _Device, payload: bytes) -> None:
        """Take a reading: once, in any order inside the window, sealed with a key in use."""
        try:
            header = Header.read(payload)
            key = next((each for each in device.keys if each.key_id == header.key_id), None)
            if key is None:
                raise TelemetryError("a key that is not in use")
            window = device.windows[key.key_id]
            if not window.is_new(header.sequence):
                device.figures.repeated += 1
                receipt = (("ack", key.acknowledgement(header.sequence)),) if _was_sealed(key, payload) else ()
                self._count("data: repeated")
                self._respond(request_id, DeviceReply(receipt))
                return
            time_ms, reading = key.open(payload)
            if time_ms > self._context.now_ns // 1_000_000 + CLOCK_AHEAD_MS_MAX:
                raise TelemetryError("a reading from the future: set the device's clock")
        except TelemetryError as error:
            device.figures.refused += 1
            self._refuse(request_id, f"data: {error}")
            return
        window.accept(header.sequence)
        device.figures.readings += 1
        self._store_window(device, key)
        kept = Reading(device.device_id, header.key_id, header.sequence, time_ms, reading)
        self._readings.keep(kept)
        self._respond(request_id, DeviceReply((("ack", key.acknowledgement(header.sequence)),), kept.document()))

    # ---- enrolment

    def _issue(self, request: IssueEnrolment) -> EnrolmentAnswer | RequestError:
        if self._state().device(request.device_id) is not None:
            return RequestError(409, f"{request.device_id} is on the chain already, or was; choose another name")
        if len(self._devices) >= DEVICES_MAX or len(self._enrolments) >= ENROLMENTS_MAX:
            return RequestError(409, f"at most {DEVICES_MAX} devices and {ENROLMENTS_MAX} open enrolments; revoke some")
        try:
            asked = DevicePolicy(request.key_bits_min, request.security_millibits_min)
            policy = self._in_force(request.device_id, asked)
        except ParameterError as error:
            return RequestError(400, str(error))
        enrolled = _Enrolment(request.device_id, self._context.entropy.take(enrolment.CODE_BYTES), policy)
        name = enrolment.code_name(enrolled.code)
        self._enrolments[name] = enrolled
        self._store_enrolment(name, enrolled)
        return EnrolmentAnswer(
            request.device_id,
            enrolled.code,
            self._context.node_id,
            *(self._chain_id, self._genesis_digest),
            *(policy.key_bits_min, policy.security_millibits_min),
        )

    def _enrol(self, request_id: int, frame: DeviceFrame) -> None:
        try:
            request = enrolment.decode(frame.payload)
        except MalformedMessage as error:
            self._refuse_enrolment(request_id, f"malformed: {error}")
            return
        waiting = self._enrolments.get(request.code_name) if isinstance(request, Enrol) else None
        if not isinstance(request, Enrol) or waiting is None or not enrolment.has_mac(request, waiting.code):
            self._refuse_enrolment(request_id, "this code is not valid here: unknown, or used by another device")
        elif {frame.device_id, request.device_id} != {waiting.device_id}:
            self._refuse_enrolment(request_id, "this code is for another device")
        elif waiting.request and waiting.request != frame.payload:
            self._refuse_enrolment(request_id, "this code was used")
        elif waiting.request and waiting.device_id in self._devices:
            answer = enrolment.enrolled(request, waiting.nonce, waiting.code)
            self._respond(request_id, DeviceReply((("enrolled", encode_record(answer)),)))
        else:
            self._submit(request_id, waiting, request, frame.payload)

    def _submit(self, request_id: int, waiting: _Enrolment, request: Enrol, payload: bytes) -> None:
        """Put the device on the chain; it hears of it when that is final."""
        policy = waiting.policy
        try:
            record = DeviceRegistered(
                *(request.device_id, self._context.node_id, request.public_key),
                *(policy.key_bits_min, policy.security_millibits_min, request.signature),
            )
        except MalformedTransaction as error:
            self._refuse_enrolment(request_id, str(error))
            return
        message = record.signing_bytes(self._chain_id, self._genesis_digest)
        if not self._verifier.verify(record.public_key, message, record.device_signature):
            self._refuse_enrolment(request_id, "the signature is another key's, or for another chain, node or policy")
            return
        waiting.waiting.append(request_id)
        if not waiting.request:
            waiting.request, waiting.nonce = payload, self._context.entropy.take(enrolment.NONCE_BYTES)
            self._store_enrolment(request.code_name, waiting)
            self._context.submit(record)

    def _complete(self, name: bytes, waiting: _Enrolment, public_key: bytes, reason: str) -> None:
        """The chain knows the device by `public_key`, or refused it for a reason."""
        request = enrolment.decode(waiting.request)
        assert isinstance(request, Enrol), "only an enrolment was stored"
        if not reason and public_key == request.public_key:
            secret = enrolment.initial_secret(request, waiting.nonce, waiting.code)
            device = self._devices[waiting.device_id] = _Device(waiting.device_id, secret, secret)
            self._store(device)
            answer = enrolment.enrolled(request, waiting.nonce, waiting.code)
            for request_id in waiting.waiting:
                self._respond(request_id, DeviceReply((("enrolled", encode_record(answer)),)))
        else:
            for request_id in waiting.waiting:
                self._refuse_enrolment(request_id, f"refused by the chain: {reason}")
            self._enrolments.pop(name)
            self._context.do(Delete(ENROLMENT_TABLE, name))
        waiting.waiting.clear()

    # ---- revocation, attacks

    def _revoke(self, request: RevokeDevice) -> DocumentAnswer | RequestError:
        known = self._state().device(request.device_id)
        if known is None or known.node_id != self._context.node_id:
            return RequestError(404, f"{request.device_id} is not a device of this node")
        if known.revoked:
            return RequestError(409, f"{request.device_id} is revoked already")
        self._context.submit(DeviceRevoked(request.device_id, request.reason))
        return DocumentAnswer({"device_id": request.device_id, "revocation": "submitted"})

    def _forget(self, device_id: str) -> None:
        """Destroy everything of a revoked device."""
        device = self._devices.pop(device_id, None)
        if device is None:
            return
        for key in device.keys:
            self._context.do(Delete(WINDOW_TABLE, key.key_id))
        self._context.do(Delete(DEVICE_TABLE, device_id.encode()))
        self._readings.forget(device_id)
        self._alarms.forget(device_id)
        self._drop_enrolments(device_id)
        self._context.log("warning", "device revoked", device=device_id)

    def _drop_enrolments(self, device_id: str) -> None:
        """Destroy the codes of a device."""
        for name, waiting in list(self._enrolments.items()):
            if waiting.device_id == device_id:
                self._enrolments.pop(name)
                self._context.do(Delete(ENROLMENT_TABLE, name))

    def _set_attack(self, request: SetDeviceAttack) -> DocumentAnswer | RequestError:
        device = self._devices.get(request.device_id)
        if device is None:
            return RequestError(404, f"{request.device_id} is not a device of this node")
        if request.kind is not None:
            try:
                make_eavesdropper(request.kind, {}, self._physics("check"))
            except ParameterError as error:
                return RequestError(400, str(error))
        device.attack = request.kind
        return DocumentAnswer({"device_id": request.device_id, "attack": request.kind})

    # ---- storage

    def _restore(self, stored: Mapping[str, list[tuple[bytes, bytes]]]) -> None:
        windows = dict(stored.get(WINDOW_TABLE, ()))
        for row, sealed in stored.get(DEVICE_TABLE, ()):
            device_id, current, previous, counter, keys = msgpack.unpackb(self._vault.open(DEVICE_TABLE, row, sealed))
            device = self._devices[device_id] = _Device(device_id, current, previous, counter)
            for key_id, secret in keys:
                last, seen, missing = msgpack.unpackb(windows[key_id])
                device.keys.append(TelemetryKey(device_id, key_id, secret))
                device.windows[key_id] = ReplayWindow(last, int.from_bytes(seen, "big"), missing)
        for name, sealed in stored.get(ENROLMENT_TABLE, ()):
            device_id, code, bits, millibits, request, nonce = msgpack.unpackb(
                self._vault.open(ENROLMENT_TABLE, name, sealed)
            )
            self._enrolments[name] = _Enrolment(device_id, code, DevicePolicy(bits, millibits), request, nonce)

    def _store(self, device: _Device) -> None:
        keys = [(key.key_id, key.key) for key in device.keys]
        row = device.device_id.encode()
        values = (device.device_id, device.authentication_key, device.previous_key, device.counter, keys)
        self._context.do(Put(DEVICE_TABLE, row, self._vault.seal(DEVICE_TABLE, row, msgpack.packb(values))))

    def _store_window(self, device: _Device, key: TelemetryKey) -> None:
        window = device.windows[key.key_id]
        seen = window.seen.to_bytes(128, "big")
        packed = msgpack.packb((window.last, seen, window.missing))
        self._context.do(Put(WINDOW_TABLE, key.key_id, packed))

    def _store_enrolment(self, name: bytes, waiting: _Enrolment) -> None:
        policy = waiting.policy
        values = (
            *(waiting.device_id, waiting.code, policy.key_bits_min, policy.security_millibits_min),
            *(waiting.request, waiting.nonce),
        )
        sealed = self._vault.seal(ENROLMENT_TABLE, name, msgpack.packb(values))
        self._context.do(Put(ENROLMENT_TABLE, name, sealed))

    def _drop_key(self, device: _Device, key: TelemetryKey) -> None:
        device.windows.pop(key.key_id, None)
        self._context.do(Delete(WINDOW_TABLE, key.key_id))

    # ---- answers

    def _refuse(self, request_id: int, reason: str) -> None:
        self._count(reason)
        payload = json.dumps({"reason": reason}).encode()
        self._respond(request_id, DeviceReply((("refused", payload),)))

    def _refuse_enrolment(self, request_id: int, reason: str) -> None:
        self._count(f"enrolment: {reason}")
        self._respond(request_id, DeviceReply((("enrolled", encode_record(EnrolmentRefused(reason[:200]))),)))

    def _count(self, reason: str) -> None:
        """Count refusals by their kind: the words before the first colon, so that strangers cannot grow the table."""
        kind = reason.partition(":")[0]
        self._refusals[kind] = self._refusals.get(kind, 0) + 1

    def _respond(self, request_id: int, answer: Any) -> None:
        self._context.do(Respond(request_id, answer))


def _build_codes() -> None:
    """Build the codes that most sessions use before a device waits for one."""
    for frame_bits in (2048, 4096):
        described_code(frame_bits, QBER_LEVELS[0])


def _refusal(known: DeviceState | None, device: _Device | None, node_id: str) -> str | None:
    """Return why a device is not served here, as the chain and the store say."""
    if known is None:
        return "device: not on the chain; enrol it"
    if known.revoked:
        return "device: revoked"
    if known.node_id != node_id:
        return f"device: served by {known.node_id}"
    return None if device is not None else "device: this node has lost its secret; revoke it and enrol another name"


def _was_sealed(key: TelemetryKey, payload: bytes) -> bool:
    """Say whether a repeated frame is the device's: only then is its receipt said again."""
    again = TelemetryKey(key.device_id, key.key_id, key.key)
    try:
        again.open(payload)
    except TelemetryError:
        return False
    return True
