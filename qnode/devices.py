"""The node's side of its devices: who is served, readings taken, revocation (rows S4-A1.3–6 to S4-A1.19).

Pure. A device's frame comes in as a request and its answers leave with the response, so after what they rest on is
stored: the number of a session before its first answer, a key before its activation, a reading's place in the replay
window before its receipt. Nothing is sent unasked, so that only the device keeps time. Enrolments, sessions and what
is kept have files of their own (`device_enrolments`, `device_sessions`, `device_store`). Decides no topics
(`api.mqtt`).
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np

from ledger.contracts.device_rules import device_floor
from ledger.execution import Receipt
from ledger.signatures import Verifier
from ledger.state import State
from ledger.state_entries import DeviceState
from ledger.transactions import DeviceAlarmCleared, DeviceAlarmRaised, DeviceRegistered, DeviceRevoked
from protocol.lightweight.telemetry import Header, TelemetryError, TelemetryKey
from protocol.parameters import ParameterError
from protocol.quantum.eavesdropper import make_eavesdropper
from qnode.context import Context
from qnode.device_alarms import DeviceAlarms
from qnode.device_answers import DeviceAnswers
from qnode.device_enrolments import Enrolments
from qnode.device_plane import DevicePlane
from qnode.device_readings import READINGS_TABLE, Reading, Readings
from qnode.device_sessions import DeviceSessions
from qnode.device_store import Device, DeviceStore
from qnode.inputs import (
    DeviceFrame,
    DocumentAnswer,
    GetDevices,
    GetReadings,
    IssueEnrolment,
    RequestError,
    RevokeDevice,
    SetDeviceAttack,
)
from qnode.vault import Vault

CLOCK_AHEAD_MS_MAX: Final = 300_000
"""A reading from further in the future means a wrong clock. Old ones are welcome: devices keep them while offline."""


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
        self._state = state
        self._physics = physics
        self._answers = DeviceAnswers(context)
        self._store = DeviceStore(context, vault, stored)
        self._enrolments = Enrolments(context, vault, chain, state, verifier, self._store, self._answers, stored)
        self._alarms = DeviceAlarms(context, state)
        self._readings = Readings(context, vault, plane.retention, stored.get(READINGS_TABLE, ()))
        self._sessions = DeviceSessions(
            context,
            plane,
            state,
            physics,
            store=self._store,
            enrolments=self._enrolments,
            alarms=self._alarms,
            answers=self._answers,
        )

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
                self._answers.respond(request_id, self._enrolments.issue(request))
            case RevokeDevice():
                self._answers.respond(request_id, self._revoke(request))
            case GetDevices():
                self._answers.respond(request_id, DocumentAnswer(self.status()))
            case GetReadings():
                self._answers.respond(request_id, self._last_readings(request))
            case SetDeviceAttack():
                self._answers.respond(request_id, self._set_attack(request))

    def recorded(self, receipt: Receipt) -> None:
        """Take a committed record about a device."""
        record = receipt.transaction
        if isinstance(record, DeviceRevoked) and receipt.ok:
            self._forget(record.device_id)
        elif isinstance(record, DeviceAlarmRaised | DeviceAlarmCleared):
            self._alarms.recorded(record, receipt)
        elif isinstance(record, DeviceRegistered) and record.node_id == self._context.node_id:
            self._enrolments.recorded(record, receipt.reason)

    def adopted(self) -> None:
        """The state went on by a snapshot: what it says of this node's devices was recorded in blocks not seen here."""
        for device in list(self._store):
            known = self._state().device(device.device_id)
            if known is not None and known.revoked:
                self._forget(device.device_id)
        self._enrolments.adopted()

    def status(self) -> dict[str, Any]:
        """Return what an operator may know of every device: no key material."""
        entries = []
        for device in self._store:
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
            "enrolments_open": self._enrolments.open_count,
            "refusals": dict(self._answers.refusals),
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
        return [
            device.device_id
            for device in self._store
            if (known := state.device(device.device_id)) is not None and known.alarmed
        ]

    def _last_readings(self, request: GetReadings) -> DocumentAnswer | RequestError:
        if request.device_id not in self._store:
            return RequestError(404, f"{request.device_id} is not a device of this node")
        readings = self._readings.last(request.device_id, request.count)
        return DocumentAnswer({"device_id": request.device_id, "readings": readings})

    # ---- frames

    def _frame(self, request_id: int, frame: DeviceFrame) -> None:
        if frame.channel == "enrol":
            self._enrolments.frame(request_id, frame)
            return
        known = self._state().device(frame.device_id)
        device = self._store.get(frame.device_id)
        if reason := _refusal(known, device, self._context.node_id):
            self._answers.refuse(request_id, reason)
            return
        assert device is not None
        if frame.channel == "session":
            self._sessions.frame(request_id, device, frame.payload)
        else:
            self._data(request_id, device, frame.payload)

    def _data(self, request_id: int, device: Device, payload: bytes) -> None:
        """Take a reading: once, in any order inside the window, sealed with a key in use."""
        try:
            header = Header.read(payload)
            key = next((each for each in device.keys if each.key_id == header.key_id), None)
            if key is None:
                raise TelemetryError("a key that is not in use")
            window = device.windows[key.key_id]
            if not window.is_new(header.sequence):
                device.figures.repeated += 1
                again = (("ack", key.acknowledgement(header.sequence)),) if _was_sealed(key, payload) else ()
                self._answers.count("data: repeated")
                self._answers.frames(request_id, *again)
                return
            time_ms, reading = key.open(payload)
            if time_ms > self._context.now_ns // 1_000_000 + CLOCK_AHEAD_MS_MAX:
                raise TelemetryError("a reading from the future: set the device's clock")
        except TelemetryError as error:
            device.figures.refused += 1
            self._answers.refuse(request_id, f"data: {error}")
            return
        window.accept(header.sequence)
        device.figures.readings += 1
        self._store.put_window(device, key)
        kept = Reading(device.device_id, header.key_id, header.sequence, time_ms, reading)
        self._readings.keep(kept)
        receipt = ("ack", key.acknowledgement(header.sequence))
        self._answers.frames(request_id, receipt, reading=kept.document())

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
        if not self._store.forget(device_id):
            return
        self._readings.forget(device_id)
        self._alarms.forget(device_id)
        self._enrolments.drop(device_id)
        self._context.log("warning", "device revoked", device=device_id)

    def _set_attack(self, request: SetDeviceAttack) -> DocumentAnswer | RequestError:
        device = self._store.get(request.device_id)
        if device is None:
            return RequestError(404, f"{request.device_id} is not a device of this node")
        if request.kind is not None:
            try:
                make_eavesdropper(request.kind, {}, self._physics("check"))
            except ParameterError as error:
                return RequestError(400, str(error))
        device.attack = request.kind
        return DocumentAnswer({"device_id": request.device_id, "attack": request.kind})


def _refusal(known: DeviceState | None, device: Device | None, node_id: str) -> str | None:
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
