"""ETSI GS QKD 014 at the door, without sockets: what is asked of the node, and how every answer and error reads."""

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.keys import KeyMaterial
from qnode.api.etsi014 import Etsi014
from qnode.api.http import Call, CallError, Reply, split_target
from qnode.inputs import (
    Answer,
    DeliveredKey,
    GetKeys,
    GetKeysWithIds,
    GetStatus,
    KeysAnswer,
    Request,
    RequestError,
    StatusAnswer,
)
from qnode.io.certificates import Identity
from qnode.settings import PoolSettings

KEY_ID = "2ae3e385-4e51-7458-b1c1-69066a4cb6d7"
OTHER_ID = "0b1b3c06-6d83-4a0f-8bd4-7d7e6a4c0e5f"
KEYS = KeysAnswer((DeliveredKey(KEY_ID, KeyMaterial(b"\xff\x00\x10")),))
SAE = Identity("sae", "sae-1-a")


class FakeNode:
    """Records what it is asked and gives one answer."""

    def __init__(self, answer: Answer = KEYS) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    async def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        return self.answer


def body_of(content: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        return content

    return read


async def call(
    node: FakeNode, method: str, target: str, body: Any = b"", caller: Identity | None = SAE
) -> tuple[Reply, Any]:
    """Send one call to the door as the server would; returns the reply and its JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        segments, query = split_target(f"/api/v1/keys/{target}")
        assert segments[:3] == Etsi014.prefix
        reply = await Etsi014(node, PoolSettings()).handle(Call(method, segments[3:], query, caller, body_of(content)))
    except CallError as error:
        reply = error.reply()
    return reply, json.loads(reply.body)


async def refused(method: str, target: str, body: Any = b"", caller: Identity | None = SAE) -> tuple[int, str]:
    """Return status and message of a call that must fail before the node is asked."""
    node = FakeNode()
    reply, document = await call(node, method, target, body, caller)
    assert reply.status >= 400
    assert node.asked == []
    return reply.status, document["message"]


async def test_status() -> None:
    node = FakeNode(StatusAnswer("node-1", "node-3", "sae-1-a", "sae-3-a", 256, 7, 4096, 128, 8192, 64, 0))
    reply, document = await call(node, "GET", "sae-3-a/status")
    assert reply.status == 200
    assert node.asked == [GetStatus("sae-1-a", "sae-3-a")]
    assert document == {
        "source_KME_ID": "node-1",
        "target_KME_ID": "node-3",
        "master_SAE_ID": "sae-1-a",
        "slave_SAE_ID": "sae-3-a",
        "key_size": 256,
        "stored_key_count": 7,
        "max_key_count": 4096,
        "max_key_per_request": 128,
        "max_key_size": 8192,
        "min_key_size": 64,
        "max_SAE_ID_count": 0,
    }


@pytest.mark.parametrize(
    ("method", "target", "body", "asked"),
    [
        ("GET", "b/enc_keys", b"", GetKeys("sae-1-a", "b")),
        ("GET", "b/enc_keys?number=3&size=128", b"", GetKeys("sae-1-a", "b", 3, 128)),
        ("GET", "b/enc_keys?number=3", b"a body on a GET is ignored", GetKeys("sae-1-a", "b", 3)),
        ("POST", "b/enc_keys", b"", GetKeys("sae-1-a", "b")),
        ("POST", "b/enc_keys", b" \r\n", GetKeys("sae-1-a", "b")),
        ("POST", "b/enc_keys", {}, GetKeys("sae-1-a", "b")),
        ("POST", "b/enc_keys", {"number": 128, "size": 8192}, GetKeys("sae-1-a", "b", 128, 8192)),
        ("POST", "b/enc_keys", {"extension_optional": [{"acme_x": 1}]}, GetKeys("sae-1-a", "b")),
        ("POST", "b/enc_keys", {"extension_mandatory": []}, GetKeys("sae-1-a", "b")),
        (
            "POST",
            "b/enc_keys",
            {"additional_slave_SAE_IDs": ["c", "d"]},
            GetKeys("sae-1-a", "b", 1, None, ("c", "d")),
        ),
        ("GET", "urn%3Ax%2Fy%20%C3%A9/enc_keys", b"", GetKeys("sae-1-a", "urn:x/y é")),
        ("GET", f"b/dec_keys?key_ID={KEY_ID}", b"", GetKeysWithIds("sae-1-a", "b", (KEY_ID,))),
        ("GET", f"b/dec_keys?key_ID={KEY_ID.upper()}", b"", GetKeysWithIds("sae-1-a", "b", (KEY_ID,))),
        (
            "POST",
            "b/dec_keys",
            {"key_IDs": [{"key_ID": KEY_ID}, {"key_ID": OTHER_ID, "key_ID_extension": {}}], "key_IDs_extension": {}},
            GetKeysWithIds("sae-1-a", "b", (KEY_ID, OTHER_ID)),
        ),
    ],
)
async def test_what_reaches_the_node(method: str, target: str, body: Any, asked: Request) -> None:
    node = FakeNode()
    reply, document = await call(node, method, target, body)
    assert node.asked == [asked]
    assert reply.status == 200
    assert document == {"keys": [{"key_ID": KEY_ID, "key": "/wAQ"}]}


@pytest.mark.parametrize(
    ("method", "target", "body", "message"),
    [
        ("GET", "b/enc_keys?size=127", b"", "size shall be a multiple of 8"),
        ("POST", "b/enc_keys", {"size": 129}, "size shall be a multiple of 8"),
        ("GET", "b/enc_keys?size=56", b"", "size must be from 64 to 8192"),
        ("GET", "b/enc_keys?size=8200", b"", "size must be from 64 to 8192"),
        ("GET", "b/enc_keys?size=0", b"", "size must be from 1 to"),
        ("GET", "b/enc_keys?size=-8", b"", "size must be an integer"),
        ("GET", "b/enc_keys?size=", b"", "size must be an integer"),
        ("GET", "b/enc_keys?size=٣", b"", "size must be an integer"),
        ("GET", "b/enc_keys?number=0", b"", "number must be from 1 to 128"),
        ("GET", "b/enc_keys?number=129", b"", "number must be from 1 to 128"),
        ("GET", "b/enc_keys?number=1&number=2", b"", "given more than once"),
        ("GET", "b/enc_keys?additional_slave_SAE_IDs=c", b"", "unknown query parameter"),
        ("POST", "b/enc_keys?number=2", b"", "unknown query parameter"),
        ("POST", "b/enc_keys", {"number": "1"}, "number must be an integer"),
        ("POST", "b/enc_keys", {"number": 1.0}, "number must be an integer"),
        ("POST", "b/enc_keys", {"number": True}, "number must be an integer"),
        ("POST", "b/enc_keys", {"number": None}, "number must be an integer"),
        ("POST", "b/enc_keys", {"numbr": 1}, "unknown member 'numbr'"),
        ("POST", "b/enc_keys", [], "the body must be a JSON object"),
        ("POST", "b/enc_keys", b"{", "the body is not JSON"),
        ("POST", "b/enc_keys", b"\xff", "the body is not UTF-8"),
        ("POST", "b/enc_keys", b'{"number":1,"number":2}', "same member twice"),
        ("POST", "b/enc_keys", b'{"number":NaN}', "NaN is not JSON"),
        ("POST", "b/enc_keys", b'{"number":' + b"9" * 5000 + b"}", "beyond all limits"),
        ("POST", "b/enc_keys", b"[" * 100_000, "beyond all limits"),
        (
            "POST",
            "b/enc_keys",
            {"extension_mandatory": [{"acme_x": 1}]},
            "not all extension_mandatory parameters are supported",
        ),
        ("POST", "b/enc_keys", {"extension_mandatory": {}}, "must be an array of objects"),
        ("POST", "b/enc_keys", {"extension_optional": ["x"]}, "must be an array of objects"),
        ("POST", "b/enc_keys", {"additional_slave_SAE_IDs": "c"}, "array of strings"),
        ("POST", "b/enc_keys", {"additional_slave_SAE_IDs": ["c", "c"]}, "names an SAE twice"),
        ("POST", "b/enc_keys", {"additional_slave_SAE_IDs": [str(n) for n in range(65)]}, "more than any KME"),
        ("GET", "b/dec_keys", b"", "key_ID is missing"),
        ("GET", "b/dec_keys?key_ID=1", b"", "not a UUID"),
        ("GET", f"b/dec_keys?key_ID={{{KEY_ID}}}", b"", "not a UUID"),
        ("POST", "b/dec_keys", b"", "non-empty array"),
        ("POST", "b/dec_keys", {"key_IDs": []}, "non-empty array"),
        ("POST", "b/dec_keys", {"key_IDs": [KEY_ID]}, "must be an array of objects"),
        ("POST", "b/dec_keys", {"key_IDs": [{"key_ID": 1}]}, "each entry of key_IDs"),
        ("POST", "b/dec_keys", {"key_IDs": [{"key_ID": KEY_ID, "x": 1}]}, "each entry of key_IDs"),
        ("POST", "b/dec_keys", {"key_IDs": [{"key_ID": KEY_ID, "key_ID_extension": 1}]}, "must be an object"),
        ("POST", "b/dec_keys", {"key_IDs": [{"key_ID": KEY_ID}, {"key_ID": KEY_ID.upper()}]}, "a key twice"),
        ("POST", "b/dec_keys", {"key_IDs": [{"key_ID": KEY_ID}] * 129}, "max_key_per_request is 128"),
        ("GET", "x" * 256 + "/status", b"", "1 to 255 characters"),
        ("GET", "%FF/status", b"", "not percent-encoded UTF-8"),
        ("GET", "b/status?" + "&".join(f"a{n}=1" for n in range(40)), b"", "too many parameters"),
    ],
)
async def test_a_malformed_request_is_400_with_its_reason(method: str, target: str, body: Any, message: str) -> None:
    status, found = await refused(method, target, body)
    assert (status, message in found) == (400, True), found


@pytest.mark.parametrize("target", ["", "b", "b/", "/status", "b/status/", "b/keys", "b/status/x"])
async def test_an_unknown_path_is_404(target: str) -> None:
    assert (await refused("GET", target))[0] == 404


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [("POST", "b/status", "GET"), ("DELETE", "b/enc_keys", "GET, POST"), ("PUT", "b/dec_keys", "GET, POST")],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(method: str, target: str, allow: str) -> None:
    reply, document = await call(FakeNode(), method, target)
    assert reply.status == 405
    assert ("Allow", allow) in reply.headers
    assert document["message"]


@pytest.mark.parametrize("caller", [None, Identity("node", "sae-1-a"), Identity("operator", "sae-1-a")])
@pytest.mark.parametrize("target", ["b/status", "b/enc_keys", f"b/dec_keys?key_ID={KEY_ID}"])
async def test_who_is_not_an_sae_gets_401(caller: Identity | None, target: str) -> None:
    assert (await refused("GET", target, caller=caller))[0] == 401


@pytest.mark.parametrize("status", [400, 401, 503])
async def test_the_nodes_refusals_are_passed_on(status: int) -> None:
    node = FakeNode(RequestError(status, "pool exhausted", (("link", "link-1-2"), ("wait_s", "3"))))
    for target in ("b/status", "b/enc_keys", f"b/dec_keys?key_ID={KEY_ID}"):
        reply, document = await call(node, "GET", target)
        assert reply.status == status
        assert document == {"message": "pool exhausted", "details": [{"link": "link-1-2"}, {"wait_s": "3"}]}


@given(st.lists(st.tuples(st.uuids(), st.binary(min_size=8, max_size=64)), min_size=1, max_size=5))
async def test_keys_arrive_as_standard_padded_base64(keys: list[tuple[Any, bytes]]) -> None:
    answer = KeysAnswer(tuple(DeliveredKey(str(key_id), KeyMaterial(key)) for key_id, key in keys))
    _, document = await call(FakeNode(answer), "GET", "b/enc_keys")
    assert [(entry["key_ID"], base64.b64decode(entry["key"], validate=True)) for entry in document["keys"]] == [
        (str(key_id), key) for key_id, key in keys
    ]


@given(st.binary(max_size=60), st.sampled_from(["b/enc_keys", "b/dec_keys"]))
async def test_any_body_is_an_answer_in_json(body: bytes, target: str) -> None:
    reply, document = await call(FakeNode(), "POST", target, body)
    assert reply.status in (200, 400)
    assert isinstance(document, dict)


@given(st.text(max_size=60))
async def test_any_target_is_split_or_refused(target: str) -> None:
    try:
        segments, query = split_target(target)
    except CallError as error:
        assert error.status == 400
    else:
        assert all(isinstance(part, str) for part in segments)
        assert all(len(pair) == 2 for pair in query)
