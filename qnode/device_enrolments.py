"""The enrolment of devices: codes issued, used once, and the registration on the chain (rows S4-A1.3–6).

Pure. A code and its use are durable before they are told. The device hears of its registration when that is final.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgpack

from ledger.contracts.device_rules import device_floor
from ledger.signatures import Verifier
from ledger.state import State
from ledger.transactions import DeviceRegistered, MalformedTransaction
from protocol.lightweight import enrolment
from protocol.lightweight.enrolment import Enrol
from protocol.lightweight.length import DevicePolicy
from protocol.parameters import ParameterError
from protocol.records import MalformedMessage, encode_record
from qnode.context import Context
from qnode.device_answers import DeviceAnswers
from qnode.device_store import DeviceStore
from qnode.effects import Delete, Put
from qnode.inputs import DeviceFrame, EnrolmentAnswer, IssueEnrolment, RequestError
from qnode.vault import Vault

ENROLMENT_TABLE: Final = "device.enrolment"
DEVICES_MAX: Final = 10_000
ENROLMENTS_MAX: Final = 1_000
"""Codes that wait to be used."""


@dataclass(slots=True)
class _Enrolment:
    """A code that was issued; `request` and `nonce` once it was used, `waiting` who hears when that is recorded."""

    device_id: str
    code: bytes = field(repr=False)
    policy: DevicePolicy
    request: bytes = b""
    nonce: bytes = b""
    waiting: list[int] = field(default_factory=list)


def policy_in_force(state: State, device_id: str, node_id: str, floor: DevicePolicy) -> DevicePolicy:
    """Return a floor as the chain's policies raise it (S4-6.1).

    Raises ParameterError where they want more than any session gives.
    """
    return floor.raised(*device_floor(state, device_id, node_id))


class Enrolments:
    """The codes of one node, by the name that tells a code without giving it away."""

    def __init__(
        self,
        context: Context,
        vault: Vault,
        chain: tuple[str, bytes],
        state: Callable[[], State],
        verifier: Verifier,
        store: DeviceStore,
        answers: DeviceAnswers,
        stored: Mapping[str, list[tuple[bytes, bytes]]],
    ) -> None:
        """`chain` is (chain ID, genesis digest)."""
        self._context = context
        self._vault = vault
        self._chain_id, self._genesis_digest = chain
        self._state = state
        self._verifier = verifier
        self._store = store
        self._answers = answers
        self._enrolments: dict[bytes, _Enrolment] = {}
        for name, sealed in stored.get(ENROLMENT_TABLE, ()):
            device_id, code, bits, millibits, request, nonce = msgpack.unpackb(
                self._vault.open(ENROLMENT_TABLE, name, sealed)
            )
            self._enrolments[name] = _Enrolment(device_id, code, DevicePolicy(bits, millibits), request, nonce)

    @property
    def open_count(self) -> int:
        """How many codes wait to be used."""
        return sum(1 for each in self._enrolments.values() if not each.request)

    def issue(self, request: IssueEnrolment) -> EnrolmentAnswer | RequestError:
        """Make a code for a new device."""
        if self._state().device(request.device_id) is not None:
            return RequestError(409, f"{request.device_id} is on the chain already, or was; choose another name")
        if len(self._store) >= DEVICES_MAX or len(self._enrolments) >= ENROLMENTS_MAX:
            return RequestError(409, f"at most {DEVICES_MAX} devices and {ENROLMENTS_MAX} open enrolments; revoke some")
        try:
            asked = DevicePolicy(request.key_bits_min, request.security_millibits_min)
            policy = policy_in_force(self._state(), request.device_id, self._context.node_id, asked)
        except ParameterError as error:
            return RequestError(400, str(error))
        enrolled = _Enrolment(request.device_id, self._context.entropy.take(enrolment.CODE_BYTES), policy)
        name = enrolment.code_name(enrolled.code)
        self._enrolments[name] = enrolled
        self._put(name, enrolled)
        return EnrolmentAnswer(
            request.device_id,
            enrolled.code,
            self._context.node_id,
            *(self._chain_id, self._genesis_digest),
            *(policy.key_bits_min, policy.security_millibits_min),
        )

    def frame(self, request_id: int, frame: DeviceFrame) -> None:
        """Take the frame of a device that uses its code."""
        try:
            request = enrolment.decode(frame.payload)
        except MalformedMessage as error:
            self._answers.refuse_enrolment(request_id, f"malformed: {error}")
            return
        waiting = self._enrolments.get(request.code_name) if isinstance(request, Enrol) else None
        if not isinstance(request, Enrol) or waiting is None or not enrolment.has_mac(request, waiting.code):
            self._answers.refuse_enrolment(
                request_id, "this code is not valid here: unknown, or used by another device"
            )
        elif {frame.device_id, request.device_id} != {waiting.device_id}:
            self._answers.refuse_enrolment(request_id, "this code is for another device")
        elif waiting.request and waiting.request != frame.payload:
            self._answers.refuse_enrolment(request_id, "this code was used")
        elif waiting.request and waiting.device_id in self._store:
            answer = enrolment.enrolled(request, waiting.nonce, waiting.code)
            self._answers.frames(request_id, ("enrolled", encode_record(answer)))
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
            self._answers.refuse_enrolment(request_id, str(error))
            return
        message = record.signing_bytes(self._chain_id, self._genesis_digest)
        if not self._verifier.verify(record.public_key, message, record.device_signature):
            self._answers.refuse_enrolment(
                request_id, "the signature is another key's, or for another chain, node or policy"
            )
            return
        waiting.waiting.append(request_id)
        if not waiting.request:
            waiting.request, waiting.nonce = payload, self._context.entropy.take(enrolment.NONCE_BYTES)
            self._put(request.code_name, waiting)
            self._context.submit(record)

    def _complete(self, name: bytes, waiting: _Enrolment, public_key: bytes, reason: str) -> None:
        """The chain knows the device by `public_key`, or refused it for a reason."""
        request = enrolment.decode(waiting.request)
        assert isinstance(request, Enrol), "only an enrolment was stored"
        if not reason and public_key == request.public_key:
            secret = enrolment.initial_secret(request, waiting.nonce, waiting.code)
            self._store.add(waiting.device_id, secret)
            answer = enrolment.enrolled(request, waiting.nonce, waiting.code)
            for request_id in waiting.waiting:
                self._answers.frames(request_id, ("enrolled", encode_record(answer)))
        else:
            for request_id in waiting.waiting:
                self._answers.refuse_enrolment(request_id, f"refused by the chain: {reason}")
            self._enrolments.pop(name)
            self._context.do(Delete(ENROLMENT_TABLE, name))
        waiting.waiting.clear()

    # ---- what the chain says

    def recorded(self, record: DeviceRegistered, reason: str) -> None:
        """The chain committed a registration at this node, or refused it for a reason."""
        for name, waiting in list(self._enrolments.items()):
            if waiting.request and waiting.device_id == record.device_id:
                self._complete(name, waiting, record.public_key, reason)

    def adopted(self) -> None:
        """The state went on by a snapshot: what it says of devices was recorded in blocks not seen here."""
        for name, waiting in list(self._enrolments.items()):
            known = self._state().device(waiting.device_id)
            if waiting.request and known is not None and waiting.device_id not in self._store:
                is_here = known.node_id == self._context.node_id and not known.revoked
                reason = "" if is_here else "the device is another node's, or revoked"
                self._complete(name, waiting, known.public_key, reason)

    def drop(self, device_id: str) -> None:
        """Destroy the codes of a device."""
        for name, waiting in list(self._enrolments.items()):
            if waiting.device_id == device_id:
                self._enrolments.pop(name)
                self._context.do(Delete(ENROLMENT_TABLE, name))

    def _put(self, name: bytes, waiting: _Enrolment) -> None:
        policy = waiting.policy
        values = (
            *(waiting.device_id, waiting.code, policy.key_bits_min, policy.security_millibits_min),
            *(waiting.request, waiting.nonce),
        )
        sealed = self._vault.seal(ENROLMENT_TABLE, name, msgpack.packb(values))
        self._context.do(Put(ENROLMENT_TABLE, name, sealed))
