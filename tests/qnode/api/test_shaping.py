"""The operator's door to shaping: whole tables, strict, and for operators only."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from qnode.api.http import Call, CallError
from qnode.api.shaping import ShapingAdmin
from qnode.io.certificates import Identity
from qnode.io.shaping import Shape

OPERATOR = Identity("operator", "operator")


class Recorder:
    def __init__(self) -> None:
        self.shapes: Mapping[str, Shape] = {}

    def shape(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes


async def ask(door: ShapingAdmin, method: str, document: Any = None, caller: Identity | None = OPERATOR) -> Any:
    async def body() -> bytes:
        return b"" if document is None else json.dumps(document).encode()

    return json.loads((await door.handle(Call(method, (), (), caller, body))).body)


async def test_a_table_replaces_the_one_before_and_is_shown() -> None:
    transport = Recorder()
    door = ShapingAdmin(transport)
    await ask(door, "PUT", {"peers": {"node-2": {"delay_ms": 20, "cut": True}, "*": {"loss": 0.1}}})
    assert transport.shapes == {"node-2": Shape(delay_ms=20, cut=True), "*": Shape(loss=0.1)}
    shown = await ask(door, "GET")
    assert shown["peers"]["node-2"]["cut"] is True and shown["peers"]["*"]["loss"] == 0.1
    await ask(door, "PUT", {"peers": {}})
    assert transport.shapes == {}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, "peers must be an object"),
        ({"peers": {"node-2": 5}}, "peers.node-2 must be an object"),
        ({"peers": {"node-2": {"lag": 5}}}, "unknown key 'lag'; known here: delay_ms"),
        ({"peers": {"node-2": {"delay_ms": "5"}}}, "peers.node-2.delay_ms must be a number"),
        ({"peers": {"node-2": {"cut": 1}}}, "peers.node-2.cut must be true or false"),
        ({"peers": {"node-2": {"loss": 1.5}}}, "peers.node-2: loss is 1.5; it must be from 0 to 0.9"),
    ],
)
async def test_a_wrong_table_changes_nothing_and_says_why(document: Any, told: str) -> None:
    transport = Recorder()
    with pytest.raises(CallError) as refused:
        await ask(ShapingAdmin(transport), "PUT", document)
    assert refused.value.status == 400 and told in refused.value.message
    assert transport.shapes == {}


@pytest.mark.parametrize("caller", [None, Identity("sae", "sae-1-a"), Identity("node", "node-1")])
async def test_only_operators_may(caller: Identity | None) -> None:
    with pytest.raises(CallError) as refused:
        await ask(ShapingAdmin(Recorder()), "GET", caller=caller)
    assert refused.value.status == 403
