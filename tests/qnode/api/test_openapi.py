"""The OpenAPI file says what the door does: paths, methods, members, limits, error codes."""

import json
from importlib import resources
from typing import Any

import pytest

from qnode.api.etsi014 import Etsi014
from qnode.api.http import Call, CallError
from qnode.inputs import Answer, DeliveredKey, KeysAnswer, Request
from qnode.io.certificates import Identity
from qnode.settings import PoolSettings

DOCUMENT: dict[str, Any] = json.loads(resources.files("qnode.api").joinpath("etsi014.openapi.json").read_text("utf-8"))
SCHEMAS = DOCUMENT["components"]["schemas"]
KEY_ID = "2ae3e385-4e51-7458-b1c1-69066a4cb6d7"
OPERATIONS = [
    (path, method) for path, item in DOCUMENT["paths"].items() for method in ("get", "post", "put") if method in item
]


class Key:
    """Stands for key material that is none."""

    def reveal(self) -> bytes:
        return bytes(8)


async def ask(request: Request) -> Answer:
    return KeysAnswer((DeliveredKey(KEY_ID, Key()),))


async def status_of(method: str, path: str, body: Any = None, query: tuple[tuple[str, str], ...] = ()) -> int:
    async def read() -> bytes:
        return b"" if body is None else json.dumps(body).encode()

    segments = tuple(part for part in path.split("/") if part)
    call = Call(method, segments[len(Etsi014.prefix) :], query, Identity("sae", "a"), read)
    try:
        return (await Etsi014(ask, PoolSettings()).handle(call)).status
    except CallError as error:
        return error.status


def test_every_reference_resolves() -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [each for value in node.values() for each in references(value)]
        return [each for value in node for each in references(value)] if isinstance(node, list) else []

    found = references(DOCUMENT)
    assert found
    assert {name.removeprefix("#/components/schemas/") for name in found} == set(SCHEMAS)


def test_exactly_the_methods_of_the_standard() -> None:
    assert {(path.rsplit("/", 1)[1], method) for path, method in OPERATIONS} == {
        ("status", "get"),
        ("enc_keys", "get"),
        ("enc_keys", "post"),
        ("dec_keys", "get"),
        ("dec_keys", "post"),
    }


async def test_methods_that_are_not_listed_are_refused() -> None:
    for path in DOCUMENT["paths"]:
        for method in ("get", "post", "put", "delete", "patch"):
            if (path, method) not in OPERATIONS:
                assert await status_of(method.upper(), path.replace("{", "").replace("}", "")) == 405


@pytest.mark.parametrize("schema", ["KeyRequest"])
async def test_members_and_limits_of_a_key_request(schema: str) -> None:
    path, pool = "/api/v1/keys/b/enc_keys", PoolSettings()
    properties = SCHEMAS[schema]["properties"]
    assert properties["number"]["maximum"] == pool.max_key_per_request
    assert (properties["size"]["minimum"], properties["size"]["maximum"]) == (
        pool.min_key_size_bits,
        pool.max_key_size_bits,
    )
    assert properties["size"]["default"] == pool.default_key_size_bits
    good = {
        "number": 1,
        "size": 64,
        "additional_slave_SAE_IDs": [],
        "extension_mandatory": [],
        "extension_optional": [],
    }
    assert set(good) == set(properties)
    assert await status_of("POST", path, good) == 200
    for name in ("number", "size"):
        for value in (properties[name]["minimum"] - 1, properties[name]["maximum"] + 8):
            assert await status_of("POST", path, {name: value}) == 400
            assert await status_of("GET", path, query=((name, str(value)),)) == 400
    assert await status_of("POST", path, {"unlisted": 1}) == 400


async def test_members_and_limits_of_key_ids() -> None:
    path = "/api/v1/keys/b/dec_keys"
    listed = SCHEMAS["KeyIds"]["properties"]["key_IDs"]
    assert listed["maxItems"] == PoolSettings().max_key_per_request
    ids = [{"key_ID": f"00000000-0000-4000-8000-{n:012x}"} for n in range(listed["maxItems"] + 1)]
    assert await status_of("POST", path, {"key_IDs": ids[:-1], "key_IDs_extension": {}}) == 200
    assert await status_of("POST", path, {"key_IDs": ids}) == 400
    assert await status_of("POST", path, {"key_IDs": []}) == 400
    assert await status_of("GET", path, query=(("key_ID", KEY_ID),)) == 200
