"""ETSI GS QKD 014 V1.1.1, REST key delivery: status, enc_keys and dec_keys, with GET and POST.

Decides what a well-formed request is and how answers and errors read; who may get which key is the node's decision
(`qnode.delivery`). The caller is the SAE of the client certificate and nothing else. Messages fixed by the standard are
constants here.
"""

import base64
import re
from typing import Any, Final

from qnode.api.http import Ask, Call, CallError, Reply, decimal, document_reply, integer, raise_refusal
from qnode.inputs import Answer, GetKeys, GetKeysWithIds, GetStatus, KeysAnswer, StatusAnswer
from qnode.settings import PoolSettings

SIZE_NOT_MULTIPLE: Final = "size shall be a multiple of 8"
MANDATORY_NOT_SUPPORTED: Final = "not all extension_mandatory parameters are supported"
KEYS_NOT_FOUND: Final = "one or more keys specified are not found on KME"
SAE_ID_LENGTH_MAX: Final = 255  # longer than any the chain can register; bounds what a message repeats
# How many of them the node allows (max_SAE_ID_count) it says itself; this bounds what it is asked.
ADDITIONAL_SLAVES_MAX: Final = 64
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# `size` and `number` above this are refused as malformed before they are compared with the node's limits.
_INTEGER_MAX: Final = 2**31 - 1


class Etsi014:
    """The door of applications: `/api/v1/keys/{SAE_ID}/{method}`."""

    prefix: tuple[str, ...] = ("api", "v1", "keys")

    def __init__(self, ask: Ask, limits: PoolSettings) -> None:
        self._ask = ask
        self._limits = limits

    async def handle(self, call: Call) -> Reply:
        """Answer one call of an SAE. Raises CallError."""
        if len(call.segments) != 2 or not call.segments[0]:
            raise CallError(404, "unknown path; the methods are /api/v1/keys/{SAE_ID}/status, enc_keys and dec_keys")
        other_sae, method = call.segments
        if method == "status":
            call.require_method("GET")
            return await self._status(call, _caller(call), _sae_id(other_sae))
        if method == "enc_keys":
            call.require_method("GET", "POST")
            return await self._enc_keys(call, _caller(call), _sae_id(other_sae))
        if method == "dec_keys":
            call.require_method("GET", "POST")
            return await self._dec_keys(call, _caller(call), _sae_id(other_sae))
        raise CallError(404, f"unknown method {method[:64]!r}; use status, enc_keys or dec_keys")

    async def _status(self, call: Call, caller_sae: str, slave_sae: str) -> Reply:
        call.parameters()
        answer = await self._ask(GetStatus(caller_sae, slave_sae))
        raise_refusal(answer)
        assert isinstance(answer, StatusAnswer), f"GetStatus was answered by {type(answer).__name__}"
        return document_reply(
            {
                "source_KME_ID": answer.source_kme_id,
                "target_KME_ID": answer.target_kme_id,
                "master_SAE_ID": answer.master_sae_id,
                "slave_SAE_ID": answer.slave_sae_id,
                "key_size": answer.key_size_bits,
                "stored_key_count": answer.stored_key_count,
                "max_key_count": answer.max_key_count,
                "max_key_per_request": answer.max_key_per_request,
                "max_key_size": answer.max_key_size_bits,
                "min_key_size": answer.min_key_size_bits,
                "max_SAE_ID_count": answer.max_sae_id_count,
            }
        )

    async def _enc_keys(self, call: Call, caller_sae: str, slave_sae: str) -> Reply:
        if call.method == "GET":
            parameters = call.parameters("number", "size")
            wanted: dict[str, Any] = {name: decimal(text, name) for name, text in parameters.items()}
        else:
            call.parameters()
            wanted = await call.members(
                "number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional"
            )
        number = integer(wanted.get("number", 1), "number", 1, self._limits.max_key_per_request)
        size_bits = self._size_bits(wanted["size"]) if "size" in wanted else None
        additional = self._additional_slaves(wanted.get("additional_slave_SAE_IDs", []))
        for name in ("extension_mandatory", "extension_optional"):
            _list_of_objects(wanted.get(name, []), name)
        if wanted.get("extension_mandatory"):
            raise CallError(400, MANDATORY_NOT_SUPPORTED)
        return _key_container(await self._ask(GetKeys(caller_sae, slave_sae, number, size_bits, additional)))

    def _size_bits(self, value: Any) -> int:
        size_bits = integer(value, "size", 1, _INTEGER_MAX)
        if size_bits % 8:
            raise CallError(400, SIZE_NOT_MULTIPLE)
        return integer(size_bits, "size", self._limits.min_key_size_bits, self._limits.max_key_size_bits)

    @staticmethod
    def _additional_slaves(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise CallError(400, "additional_slave_SAE_IDs must be an array of strings")
        if len(value) > ADDITIONAL_SLAVES_MAX:
            raise CallError(400, f"additional_slave_SAE_IDs names {len(value)} SAEs, more than any KME allows")
        if len(set(value)) != len(value):
            raise CallError(400, "additional_slave_SAE_IDs names an SAE twice")
        return tuple(_sae_id(each) for each in value)

    async def _dec_keys(self, call: Call, caller_sae: str, master_sae: str) -> Reply:
        if call.method == "GET":
            parameters = call.parameters("key_ID")
            if "key_ID" not in parameters:
                raise CallError(400, "key_ID is missing; ask for dec_keys?key_ID=<UUID>, or POST key_IDs")
            key_ids = [parameters["key_ID"]]
        else:
            call.parameters()
            key_ids = self._key_ids(await call.members("key_IDs", "key_IDs_extension"))
        for key_id in key_ids:
            if _UUID.fullmatch(key_id) is None:
                raise CallError(400, "a key_ID is not a UUID")
        wanted = tuple(key_id.lower() for key_id in key_ids)
        if len(set(wanted)) != len(wanted):
            raise CallError(400, "key_IDs names a key twice; each is delivered once")
        return _key_container(await self._ask(GetKeysWithIds(caller_sae, master_sae, wanted)))

    def _key_ids(self, members: dict[str, Any]) -> list[str]:
        entries = members.get("key_IDs")
        if not isinstance(entries, list) or not entries:
            raise CallError(400, 'key_IDs must be a non-empty array of objects {"key_ID": "<UUID>"}')
        if len(entries) > self._limits.max_key_per_request:
            raise CallError(
                400, f"key_IDs has {len(entries)} entries; max_key_per_request is {self._limits.max_key_per_request}"
            )
        _extension(members, "key_IDs_extension")
        found = []
        for entry in _list_of_objects(entries, "key_IDs"):
            if set(entry) - {"key_ID", "key_ID_extension"} or not isinstance(entry.get("key_ID"), str):
                raise CallError(400, 'each entry of key_IDs is an object {"key_ID": "<UUID>"}')
            _extension(entry, "key_ID_extension")
            found.append(entry["key_ID"])
        return found


def _caller(call: Call) -> str:
    """Return the SAE of the client certificate. Raises CallError 401 for a certificate of anything else."""
    if call.caller is None or call.caller.kind != "sae":
        raise CallError(401, "the client certificate is not an SAE's; use the certificate issued for your SAE ID")
    return call.caller.name


def _sae_id(text: str) -> str:
    if not text or len(text) > SAE_ID_LENGTH_MAX:
        raise CallError(400, f"an SAE ID has 1 to {SAE_ID_LENGTH_MAX} characters")
    return text


def _list_of_objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise CallError(400, f"{name} must be an array of objects")
    return value


def _extension(members: dict[str, Any], name: str) -> None:
    if not isinstance(members.get(name, {}), dict):
        raise CallError(400, f"{name} must be an object")


def _key_container(answer: Answer) -> Reply:
    """Return a Key container; the only place where key bits become text."""
    raise_refusal(answer)
    assert isinstance(answer, KeysAnswer), f"keys were answered by {type(answer).__name__}"
    entries = [{"key_ID": key.key_id, "key": base64.b64encode(key.key.reveal()).decode("ascii")} for key in answer.keys]
    return document_reply({"keys": entries})
