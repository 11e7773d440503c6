"""A client that costs the machine little: one TLS connection, one HTTP request at a time, JSON in and out.

The key bench shares two cores with the two daemons that it measures; what a general client spends on a request is
taken from them. This one understands what the daemons answer (a status, Content-Length, a JSON body) and nothing else.
"""

import asyncio
import json
import re
import ssl
from typing import Any, Final

ANSWER_TIMEOUT_S: Final = 40.0  # a little more than the node's own limit
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Refused(ConnectionError):
    """The daemon answered, but not with 200."""


class KeepAliveClient(asyncio.Protocol):
    """One connection. `await KeepAliveClient.connect(…)`, then `await post(…)` one after the other; `close` ends it."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""

    @classmethod
    async def connect(cls, host: str, port: int, context: ssl.SSLContext) -> "KeepAliveClient":
        """Return a client on a new connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: cls(f"{host}:{port}"), host, port, ssl=context)
        return client

    async def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """Return the answer. Raises Refused, ConnectionError, TimeoutError; the last two end the connection."""
        assert self._answer is None, "one request at a time"
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        loop = asyncio.get_running_loop()
        body = json.dumps(document)
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._answer = loop.create_future()
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        timer = loop.call_later(ANSWER_TIMEOUT_S, self._fail, TimeoutError("no answer in time"))
        try:
            status, content = await self._answer
        finally:
            timer.cancel()
            self._answer = None
        answer: dict[str, Any] = json.loads(content)
        if status != 200:
            raise Refused(f"{status} {answer.get('message', '')}")
        return answer

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's does not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end + 2)
        if self._answer is None or length is None:
            self._fail(ConnectionError("the daemon sent what was not asked for"))
            return
        if len(self._buffer) >= (whole := end + 4 + int(length[1])):
            answer, self._buffer = self._buffer[:whole], self._buffer[whole:]
            if not self._answer.done():
                self._answer.set_result((int(answer[9:12]), answer[end + 4 :]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionError(f"the connection broke: {exc or 'closed by the daemon'}"))

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
