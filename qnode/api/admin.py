"""The operator's door: status, links, attacks on emulated links, the chain and proofs from it, transactions of a bench.

Open to operator certificates only. Decides the form of requests; all content comes from the node.
"""

import base64
import binascii
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from qnode.api.http import Ask, Call, CallError, Reply, decimal, document_reply, raise_refusal
from qnode.inputs import (
    DocumentAnswer,
    GetBlocks,
    GetGovernance,
    GetIdentity,
    GetNodeStatus,
    GetProof,
    Request,
    RotateKey,
    SetAttack,
    SubmitTransactions,
)
from qnode.io.identities import HeldIdentity

BLOCKS_PER_CALL_MAX: Final = 1000  # some hundred kilobytes of summaries; a caller pages on with `from`
TRANSACTIONS_PER_CALL_MAX: Final = 4096  # one full bundle


class Admin:
    """`/admin/v1/…`."""

    prefix: tuple[str, ...] = ("admin", "v1")

    def __init__(self, ask: Ask, identities: Callable[[], Sequence[HeldIdentity]] = tuple) -> None:
        """`identities` reads the node's identity keys from its disk."""
        self._ask = ask
        self._identities = identities

    async def handle(self, call: Call) -> Reply:
        """Answer one call of an operator. Raises CallError."""
        if call.caller is None or call.caller.kind != "operator":
            raise CallError(
                403, "an operator's certificate is needed here, such as clients/operator.crt of `qnode init`"
            )
        match call.segments:
            case ("status",):
                call.require_method("GET")
                call.parameters()
                return document_reply(await self._document(GetNodeStatus()))
            case ("links",):
                call.require_method("GET")
                call.parameters()
                status = await self._document(GetNodeStatus())
                return document_reply({"links": status.get("links", [])})
            case ("links", link_id, "attack"):
                call.require_method("POST", "DELETE")
                call.parameters()
                return document_reply(await self._document(await _attack(call, link_id)))
            case ("ledger", "blocks"):
                call.require_method("GET")
                return document_reply(await self._document(_blocks(call)))
            case ("ledger", "proofs", key_id):
                call.require_method("GET")
                call.parameters()
                return document_reply(await self._document(GetProof(key_id)))
            case ("identity",):
                call.require_method("GET", "POST")
                call.parameters()
                request = GetIdentity() if call.method == "GET" else await self._rotation(call)
                return document_reply(await self._document(request))
            case ("governance",):
                call.require_method("GET")
                call.parameters()
                return document_reply(await self._document(GetGovernance()))
            case ("ledger", "transactions"):
                call.require_method("POST")
                call.parameters()
                return document_reply(await self._document(await _transactions(call)))
        raise CallError(
            404,
            "unknown path; here are status, links, links/{id}/attack, ledger/blocks, ledger/proofs/{key_ID}, "
            "ledger/transactions, governance, identity",
        )

    async def _rotation(self, call: Call) -> RotateKey:
        """POST {"public_key": hexadecimal} of a key that lies beside the node's first one."""
        public_key = (await call.members("public_key")).get("public_key")
        held = self._identities()
        if not isinstance(public_key, str) or public_key not in {each.public_key.hex() for each in held}:
            raise CallError(400, "public_key must be the hexadecimal of an identity key that the node has on its disk")
        return RotateKey(bytes.fromhex(public_key), tuple(each.seed for each in held))

    async def _document(self, request: Request) -> dict[str, Any]:
        answer = await self._ask(request)
        raise_refusal(answer)
        assert isinstance(answer, DocumentAnswer), f"{type(request).__name__} was answered by {type(answer).__name__}"
        return answer.document


async def _attack(call: Call, link_id: str) -> SetAttack:
    """POST {"kind": …, "parameters": {name: number}} begins an attack, DELETE ends it."""
    if call.method == "DELETE":
        return SetAttack(link_id, None)
    members = await call.members("kind", "parameters")
    kind, parameters = members.get("kind"), members.get("parameters", {})
    if not isinstance(kind, str) or not kind:
        raise CallError(400, 'kind must name an attack, such as "intercept_resend"')
    if not isinstance(parameters, dict):
        raise CallError(400, "parameters must be an object of numbers")
    for name, value in parameters.items():
        if type(value) not in (int, float) or abs(value) > 1e15 or not math.isfinite(value):
            raise CallError(400, f"parameter {name[:64]!r} must be a number")
    return SetAttack(link_id, kind, tuple(sorted((name, float(value)) for name, value in parameters.items())))


def _blocks(call: Call) -> GetBlocks:
    parameters = call.parameters("from", "count")
    first_height = decimal(parameters.get("from", "1"), "from")
    count = decimal(parameters.get("count", "20"), "count")
    if not 1 <= count <= BLOCKS_PER_CALL_MAX:
        raise CallError(400, f"count must be from 1 to {BLOCKS_PER_CALL_MAX}")
    return GetBlocks(first_height, count)


async def _transactions(call: Call) -> SubmitTransactions:
    """POST {"transactions": [base64 of an encoded transaction, …], "until": "admitted" or "committed"}."""
    members = await call.members("transactions", "until")
    entries, until = members.get("transactions"), members.get("until", "admitted")
    if until not in ("admitted", "committed"):
        raise CallError(400, 'until must be "admitted" or "committed"')
    if not isinstance(entries, list) or not 1 <= len(entries) <= TRANSACTIONS_PER_CALL_MAX:
        raise CallError(400, f"transactions must be an array of 1 to {TRANSACTIONS_PER_CALL_MAX} base64 strings")
    try:
        transactions = tuple(base64.b64decode(entry, validate=True) for entry in entries)
    except (TypeError, ValueError, binascii.Error):
        raise CallError(400, "an entry of transactions is not base64") from None
    return SubmitTransactions(transactions, until == "committed")
