"""The HTTPS listener with real TLS: who gets in, JSON for every error, bounds, one write, clients of other people."""

import asyncio
import datetime
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from protocol.keys import KeyMaterial
from qnode import client as client_module
from qnode.api.admin import Admin
from qnode.api.etsi014 import Etsi014
from qnode.api.server import ApiServer
from qnode.client import CallFailed, NodeClient
from qnode.initialise import Plan, initialise
from qnode.inputs import (
    Answer,
    DeliveredKey,
    DocumentAnswer,
    GetBlocks,
    GetNodeStatus,
    GetProof,
    KeysAnswer,
    Request,
    SetAttack,
    SubmitTransactions,
)
from qnode.io.certificates import api_context, client_context
from qnode.io.entropy import OperatingSystemEntropy
from qnode.io.transport import TransportError
from qnode.settings import ApiSettings, PoolSettings
from qnode.topologies import shaped

pytestmark = pytest.mark.integration
KEYS = KeysAnswer((DeliveredKey("2ae3e385-4e51-7458-b1c1-69066a4cb6d7", KeyMaterial(bytes(32))),))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster directory of one node."""
    directory = tmp_path_factory.mktemp("api") / "cluster"
    initialise(directory, Plan(shaped("ring", 1)), OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    return directory


@dataclass
class Listener:
    """A running server, what its node was asked, and what it reported."""

    files: Path
    server: ApiServer
    asked: list[Request] = field(default_factory=list)
    answer: Answer | Exception = KEYS
    reported: list[BaseException | None] = field(default_factory=list)

    async def ask(self, request: Request) -> Answer:
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def context(self, name: str | None) -> ssl.SSLContext:
        ca = self.files / "ca" / "ca.crt"
        if name is None:
            return ssl.create_default_context(cafile=str(ca))
        folder = self.files / ("node-1" if name == "peer" else "clients")
        key = folder / ("identity.key" if name == "peer" else f"{name}.key")
        return client_context(folder / f"{name}.crt", key, ca)

    async def call(self, name: str, method: str, path: str, document: Any = None) -> dict[str, Any]:
        client = NodeClient("127.0.0.1", self.server.listen_port, self.context(name))
        return await asyncio.to_thread(client.call, method, path, document)

    async def raw(self, content: bytes, name: str = "sae-1-a") -> bytes:
        """Send bytes and return all that comes until the server closes or is quiet for long."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.listen_port, ssl=self.context(name))
        writer.write(content)
        try:
            async with asyncio.timeout(5):
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture
async def listener(files: Path) -> AsyncIterator[Listener]:
    node = files / "node-1"
    settings = ApiSettings(
        listen_port=0,
        ca=node / "ca.crt",
        certificate=node / "api.crt",
        key=node / "api.key",
        request_size_bytes_max=4096,
    )
    made = Listener(files, None)  # type: ignore[arg-type]
    doors = (Etsi014(made.ask, PoolSettings()), Admin(made.ask))
    context = api_context(settings.certificate, settings.key, settings.ca)
    made.server = ApiServer(settings, context, doors, lambda what, error: made.reported.append(error))
    await made.server.start()
    yield made
    await made.server.stop()


GET = b"GET /api/v1/keys/b/enc_keys HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def parsed(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower()
    document = json.loads(body)
    assert isinstance(document, dict)
    return int(head.split(b" ")[1]), document


async def test_the_caller_is_who_the_certificate_says(listener: Listener) -> None:
    answer = await listener.call("sae-1-b", "GET", "/api/v1/keys/sae-1-a/enc_keys")
    assert len(answer["keys"]) == 1
    assert listener.asked[0].caller_sae == "sae-1-b"  # type: ignore[union-attr]


async def test_without_a_client_certificate_the_handshake_fails(listener: Listener) -> None:
    context = listener.context(None)
    client = NodeClient("127.0.0.1", listener.server.listen_port, context)
    with pytest.raises(CallFailed):
        await asyncio.to_thread(client.call, "GET", "/api/v1/keys/b/status")
    assert listener.asked == []
    assert listener.server.requests_count == 0


async def test_tls_below_1_2_is_refused_and_1_2_works(listener: Listener) -> None:
    context = listener.context("sae-1-a")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = NodeClient("localhost", listener.server.listen_port, context)
    await asyncio.to_thread(client.call, "GET", "/api/v1/keys/b/enc_keys")
    assert listener.server._context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("peer", "/api/v1/keys/b/status", 401),
        ("operator", "/api/v1/keys/b/status", 401),
        ("sae-1-a", "/admin/v1/status", 403),
        ("peer", "/admin/v1/status", 403),
        ("sae-1-a", "/", 404),
        ("sae-1-a", "/api/v2/keys/b/status", 404),
        ("operator", "/admin/v1/nothing", 404),
    ],
)
async def test_the_wrong_certificate_or_path(listener: Listener, name: str, path: str, status: int) -> None:
    with pytest.raises(CallFailed) as caught:
        await listener.call(name, "GET", path)
    assert caught.value.status == status
    assert listener.asked == []


async def test_the_server_certificate_is_no_client_certificate(listener: Listener) -> None:
    node = listener.files / "node-1"
    context = client_context(node / "api.crt", node / "api.key", node / "ca.crt")
    client = NodeClient("127.0.0.1", listener.server.listen_port, context)
    with pytest.raises(CallFailed) as caught:
        await asyncio.to_thread(client.call, "GET", "/api/v1/keys/b/status")
    assert caught.value.status == 0


async def test_what_is_not_http_is_answered_in_json(listener: Listener) -> None:
    status, document = parsed(await listener.raw(b"nonsense\r\n\r\n"))
    assert (status, document) == (400, {"message": "the request is not valid HTTP"})


async def test_a_fault_of_ours_is_500_in_json_and_reported_without_detail(listener: Listener) -> None:
    listener.answer = RuntimeError("internal detail")
    answer = await listener.raw(GET)
    status, _ = parsed(answer)
    assert status == 500
    assert b"internal detail" not in answer
    assert isinstance(listener.reported[0], RuntimeError)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Content-Length: 4097\r\n", b"", 413),
        (b"Transfer-Encoding: chunked\r\n", b"1100\r\n" + b" " * 0x1100 + b"\r\n0\r\n\r\n", 413),
        (b"Content-Length: 2\r\nContent-Encoding: gzip\r\n", b"{}", 415),
        (b"Content-Length: 2\r\n", b"[]", 400),
    ],
)
async def test_bodies_are_bounded(listener: Listener, headers: bytes, body: bytes, status: int) -> None:
    head = b"POST /api/v1/keys/b/enc_keys HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers + b"\r\n"
    assert parsed(await listener.raw(head + body))[0] == status
    assert listener.asked == []


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(listener: Listener) -> None:
    head = b"POST /api/v1/keys/b/enc_keys HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    context = listener.context("sae-1-a")
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.server.listen_port, ssl=context)
    writer.write(head)
    async with asyncio.timeout(5):
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_a_get_with_a_body_works_and_the_connection_goes_on(listener: Listener) -> None:
    one = b"GET /api/v1/keys/b/enc_keys HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nsome body"
    answer = await listener.raw(one + GET)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_headers_and_body_leave_in_one_write(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    context = listener.context("sae-1-a")
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.server.listen_port, ssl=context)
    writes: list[bytes] = []
    writer.write(GET.replace(b"Connection: close\r\n", b""))
    async with asyncio.timeout(5):
        await reader.readuntil(b"}]}")
    assert listener.server._http is not None
    transport = next(iter(listener.server._http._connections.values()))
    for name in ("write", "writelines"):
        original = getattr(transport, name)
        monkeypatch.setattr(
            transport,
            name,
            lambda data, original=original: (
                writes.append(data if isinstance(data, bytes) else b"".join(data)),
                original(data),
            )[1],
            raising=False,
        )
    writer.write(GET)
    async with asyncio.timeout(5):
        await reader.readuntil(b"}]}")
    writer.close()
    assert len(writes) == 1
    assert writes[0].startswith(b"HTTP/1.1 200 OK")
    assert writes[0].endswith(b"}]}")


async def test_the_operators_door(listener: Listener) -> None:
    listener.answer = DocumentAnswer({"node_id": "node-1", "links": [{"link_id": "l"}]})
    assert (await listener.call("operator", "GET", "/admin/v1/status"))["node_id"] == "node-1"
    assert await listener.call("operator", "GET", "/admin/v1/links") == {"links": [{"link_id": "l"}]}
    attack = {"kind": "intercept_resend", "parameters": {"fraction": 1, "a": 0.5}}
    await listener.call("operator", "POST", "/admin/v1/links/l%2F1/attack", attack)
    await listener.call("operator", "DELETE", "/admin/v1/links/l/attack")
    await listener.call("operator", "GET", "/admin/v1/ledger/blocks?from=5&count=7")
    await listener.call("operator", "GET", "/admin/v1/ledger/proofs/an%20ID")
    await listener.call("operator", "POST", "/admin/v1/ledger/transactions", {"transactions": ["AAE=", ""]})
    assert listener.asked == [
        GetNodeStatus(),
        GetNodeStatus(),
        SetAttack("l/1", "intercept_resend", (("a", 0.5), ("fraction", 1.0))),
        SetAttack("l", None),
        GetBlocks(5, 7),
        GetProof("an ID"),
        SubmitTransactions((b"\x00\x01", b"")),
    ]


@pytest.mark.parametrize(
    ("method", "path", "document", "status"),
    [
        ("POST", "/admin/v1/links/l/attack", {}, 400),
        ("POST", "/admin/v1/links/l/attack", {"kind": "x", "parameters": {"a": "1"}}, 400),
        ("POST", "/admin/v1/links/l/attack", {"kind": "x", "parameters": {"a": True}}, 400),
        ("POST", "/admin/v1/links/l/attack", {"kind": "x", "parameters": {"a": 10**400}}, 400),
        ("GET", "/admin/v1/ledger/blocks?count=0", None, 400),
        ("GET", "/admin/v1/ledger/blocks?from=x", None, 400),
        ("GET", "/admin/v1/ledger/proofs/x?y=z", None, 400),
        ("GET", "/admin/v1/ledger/proofs", None, 404),
        ("POST", "/admin/v1/ledger/proofs/x", None, 405),
        ("POST", "/admin/v1/ledger/transactions", {"transactions": ["?"]}, 400),
        ("POST", "/admin/v1/ledger/transactions", {"transactions": [1]}, 400),
        ("DELETE", "/admin/v1/status", None, 405),
    ],
)
async def test_a_malformed_operators_call(
    listener: Listener, method: str, path: str, document: Any, status: int
) -> None:
    with pytest.raises(CallFailed) as caught:
        await listener.call("operator", method, path, document)
    assert caught.value.status == status
    assert listener.asked == []


async def test_a_node_that_does_not_answer_is_503(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode.api.server.ASK_TIMEOUT_S", 0.05)
    never: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def ask(request: Request) -> Answer:
        return await never

    door = next(door for door in listener.server._doors if isinstance(door, Etsi014))
    monkeypatch.setattr(door, "_ask", ask)
    assert parsed(await listener.raw(GET))[0] == 503


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_strangers_curl_works(listener: Listener) -> None:
    clients, port = listener.files / "clients", listener.server.listen_port
    for host in ("localhost", "127.0.0.1"):
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--fail", "--cacert", str(listener.files / "ca" / "ca.crt")),
            *("--cert", str(clients / "sae-1-a.crt"), "--key", str(clients / "sae-1-a.key")),
            *("--data", '{"number": 1}', f"https://{host}:{port}/api/v1/keys/sae-1-b/enc_keys"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert json.loads(output)["keys"][0]["key"] == "A" * 43 + "="


async def test_a_port_in_use_is_explained(listener: Listener) -> None:
    taken = ApiSettings(listen_port=listener.server.listen_port, ca=Path(), certificate=Path(), key=Path())
    second = ApiServer(taken, listener.server._context, (), lambda what, error: None)
    with pytest.raises(TransportError, match=r"in use.*listen_port in \[api\]"):
        await second.start()


@pytest.mark.parametrize("url", ["http://x:1", "ftp://x", "https://", "https://x:notaport"])
def test_a_url_that_is_no_nodes_is_refused(url: str) -> None:
    with pytest.raises(CallFailed):
        client_module.NodeClient.from_files(url, Path(), Path(), Path())
