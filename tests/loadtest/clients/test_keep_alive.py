"""The bench's own HTTP client, byte by byte: what it understands, and what it refuses."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.clients import keep_alive
from loadtest.clients.keep_alive import KeepAliveClient, Refused


class FakeTransport(asyncio.Transport):
    """Keeps what was written; knows whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def connected() -> tuple[KeepAliveClient, FakeTransport]:
    client, transport = KeepAliveClient("host:1"), FakeTransport()
    client.connection_made(transport)
    return client, transport


def answer(status: int, document: Any, name: str = "Content-Length") -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} Some Reason\r\nServer: x\r\n{name}: {len(body)}\r\nContent-Type: a/b\r\n\r\n"
    return head.encode() + body


async def exchange(client: KeepAliveClient, feed: Callable[[], None], document: Any = None) -> dict[str, Any]:
    """Post, let the request leave, then let `feed` happen."""
    posted = asyncio.ensure_future(client.post("/path", document or {}))
    await asyncio.sleep(0)
    feed()
    return await posted


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_an_answer_may_come_in_any_pieces(document: dict[str, str], data: st.DataObject) -> None:
    whole = answer(200, document, data.draw(st.sampled_from(["Content-Length", "content-length"])))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6)))

    async def run() -> None:
        client, transport = connected()

        def feed() -> None:
            for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                client.data_received(whole[begin:end])

        for _ in range(2):  # and the connection goes on
            assert await exchange(client, feed, document) == document
        head, _, body = transport.written[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /path HTTP/1.1\r\nHost: host:1\r\n") and json.loads(body) == document
        assert f"Content-Length: {len(body)}".encode() in head
        assert not transport.closed

    asyncio.run(run())


@pytest.mark.parametrize(
    ("happen", "error", "text"),
    [
        (lambda client: client.data_received(answer(503, {"message": "no key"})), Refused, "503 no key"),
        (lambda client: client.data_received(b"HTTP/1.1 200 OK\r\n\r\n"), ConnectionError, "not asked for"),
        (lambda client: client.connection_lost(None), ConnectionError, "closed by the daemon"),
        (lambda client: client.connection_lost(OSError("reset")), ConnectionError, "reset"),
    ],
)
async def test_what_is_no_good_answer_is_an_error(
    happen: Callable[[KeepAliveClient], None], error: type[Exception], text: str
) -> None:
    client, _ = connected()
    with pytest.raises(error, match=text):
        await exchange(client, lambda: happen(client))
    if error is not Refused:
        with pytest.raises(ConnectionError, match="closed"):
            await client.post("/path", {})


async def test_no_answer_in_time_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alive, "ANSWER_TIMEOUT_S", 0.01)
    client, transport = connected()
    with pytest.raises(TimeoutError):
        await client.post("/path", {})
    assert transport.closed


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    client, transport = connected()
    client.data_received(answer(200, {}))
    assert transport.closed
