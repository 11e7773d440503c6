"""The operator's door to devices: enrolment codes, revocation, status, attacks on emulated channels.

Open to operator certificates only (row S4-A1.3–6). The one answer with a secret is that of an enrolment: the code that
the operator carries to the device, over this mutually authenticated connection, once.
"""

import base64
from typing import Any, Final

from qnode.api.http import Ask, Call, CallError, Reply, document_reply, raise_refusal
from qnode.inputs import (
    DocumentAnswer,
    EnrolmentAnswer,
    GetDevices,
    GetReadings,
    IssueEnrolment,
    Request,
    RevokeDevice,
    SetDeviceAttack,
)
from qnode.settings import NAME_PATTERN

READINGS_PER_CALL_MAX: Final = 10_000
"""As many as a node may be told to keep."""
DEFAULT_FLOOR: Final = (256, 33_219)
"""An AES-256 key, and ε = 10⁻¹⁰ per key."""


class DeviceAdmin:
    """`/admin/v1/devices…`."""

    prefix: tuple[str, ...] = ("admin", "v1", "devices")

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def handle(self, call: Call) -> Reply:
        """Answer one call of an operator. Raises CallError."""
        if call.caller is None or call.caller.kind != "operator":
            raise CallError(403, "an operator's certificate is needed here, such as clients/operator.crt")
        call.parameters(*(("count",) if call.segments[1:] == ("readings",) else ()))
        match call.segments:
            case ():
                call.require_method("GET")
                return document_reply(await self._document(GetDevices()))
            case (device_id,):
                call.require_method("POST", "DELETE")
                if call.method == "DELETE":
                    return document_reply(await self._document(RevokeDevice(_name(device_id), "operator")))
                return document_reply(await self._enrolment(await _issue(call, device_id)))
            case (device_id, "readings"):
                call.require_method("GET")
                return document_reply(await self._document(GetReadings(_name(device_id), _count(call))))
            case (device_id, "attack"):
                call.require_method("POST", "DELETE")
                kind = None if call.method == "DELETE" else await _kind(call)
                return document_reply(await self._document(SetDeviceAttack(_name(device_id), kind)))
        raise CallError(404, "unknown path; here are devices, devices/{id}, devices/{id}/readings, devices/{id}/attack")

    async def _document(self, request: Request) -> dict[str, Any]:
        answer = await self._ask(request)
        raise_refusal(answer)
        assert isinstance(answer, DocumentAnswer), f"{type(request).__name__} was answered by {type(answer).__name__}"
        return answer.document

    async def _enrolment(self, request: IssueEnrolment) -> dict[str, Any]:
        answer = await self._ask(request)
        raise_refusal(answer)
        assert isinstance(answer, EnrolmentAnswer), f"an enrolment was answered by {type(answer).__name__}"
        return {
            "device_id": answer.device_id,
            "node_id": answer.node_id,
            "chain_id": answer.chain_id,
            "genesis": answer.genesis_digest.hex(),
            "code": base64.b64encode(answer.code).decode(),
            "key_bits_min": answer.key_bits_min,
            "security_millibits_min": answer.security_millibits_min,
        }


def _name(text: str) -> str:
    if NAME_PATTERN.fullmatch(text) is None:
        raise CallError(400, "a device's name has 1 to 63 letters, digits, '.', '_' or '-'")
    return text


async def _issue(call: Call, device_id: str) -> IssueEnrolment:
    """POST {"key_bits_min": …, "security_millibits_min": …}, both optional."""
    members = await call.members("key_bits_min", "security_millibits_min")
    floor = [
        members.get(name, default)
        for name, default in zip(("key_bits_min", "security_millibits_min"), DEFAULT_FLOOR, strict=True)
    ]
    if any(type(value) is not int for value in floor):
        raise CallError(400, "key_bits_min and security_millibits_min are whole numbers")
    return IssueEnrolment(_name(device_id), *floor)


def _count(call: Call) -> int:
    text = call.parameters("count").get("count", "20")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= READINGS_PER_CALL_MAX:
        raise CallError(400, f"count must be a whole number from 1 to {READINGS_PER_CALL_MAX}")
    return int(text)


async def _kind(call: Call) -> str:
    kind = (await call.members("kind")).get("kind")
    if not isinstance(kind, str) or not kind:
        raise CallError(400, 'kind must name an attack, such as "intercept_resend"')
    return kind
