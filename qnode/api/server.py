"""The HTTPS listener: TLS with client certificates, one dispatch to the doors, JSON for every error.

Uses aiohttp's low-level server: no routing table, middleware or access log between the socket and a door, since a key
request should cost little more than its TLS record. Without a client certificate the handshake itself fails.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from qnode.api.http import JSON_HEADERS, Call, CallError, Door, Reply, split_target
from qnode.io.certificates import Identity, identity_of
from qnode.io.transport import TransportError, listen_failure, listening_place
from qnode.settings import ApiSettings

ASK_TIMEOUT_S: Final = 30.0  # a key over many hops takes well under a second; a caller should not wait for ever
BODY_TIMEOUT_S: Final = 10.0
KEEP_ALIVE_S: Final = 75.0
STOP_TIMEOUT_S: Final = 2.0

Buffer = TypeVar("Buffer", bytes, bytearray)
Report = Callable[[str, BaseException | None], None]  # (what, error): for the log


class ApiServer:
    """One listener with its doors. `await start()`, `await stop()`."""

    def __init__(self, settings: ApiSettings, context: ssl.SSLContext, doors: Sequence[Door], report: Report) -> None:
        self.listen_port = settings.listen_port
        self.requests_count = 0
        self._settings = settings
        self._context = context
        self._doors = sorted(doors, key=lambda door: -len(door.prefix))
        self._report = report
        self._http: _JsonServer | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises TransportError when the port cannot be used."""
        loop = asyncio.get_running_loop()
        host, port = self._settings.listen_host, self._settings.listen_port
        self._http = _JsonServer(self._serve, self._report)
        try:
            self._listener = await loop.create_server(
                self._http, **listening_place(host, port), ssl=self._context, backlog=1024
            )
        except OSError as error:
            raise TransportError(listen_failure(error, host, port, "[api]")) from None
        self.listen_port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, let the requests under way finish, close the connections."""
        if self._listener is not None and self._http is not None:
            self._listener.close()
            self._http.pre_shutdown()
            await self._http.shutdown(STOP_TIMEOUT_S)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests_count += 1
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                reply = await self._dispatch(request)
        except CallError as error:
            reply = error.reply()
        except TimeoutError:
            reply = CallError(503, "the node did not answer in time; try again later").reply()
        return _response(reply)

    async def _dispatch(self, request: web.BaseRequest) -> Reply:
        segments, query = split_target(request.raw_path)
        connection = request.protocol
        assert isinstance(connection, _JsonHandler), "the server makes no other handlers"
        for door in self._doors:
            length = len(door.prefix)
            if segments[:length] == door.prefix:
                call = Call(request.method, segments[length:], query, connection.caller, lambda: self._body(request))
                return await door.handle(call)
        raise CallError(404, "unknown path; key delivery is at /api/v1/keys/{SAE_ID}/status, enc_keys and dec_keys")

    async def _body(self, request: web.BaseRequest) -> bytes:
        """Read the body, bounded in size and time. Raises CallError 400, 408 or 413."""
        limit = self._settings.request_size_bytes_max
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise CallError(415, "send the body without Content-Encoding")
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if request.content.is_eof():  # the body came with its headers, as that of a key request does
                return _bounded(request.content.read_nowait(), limit)
            body = bytearray()
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.content.iter_any():
                    body += part
                    _bounded(body, limit)
            return bytes(body)
        except TimeoutError:
            raise CallError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        except web.RequestPayloadError:
            raise CallError(400, "the body is not what its headers announce") from None


def _bounded(body: Buffer, size_bytes_max: int) -> Buffer:
    if len(body) > size_bytes_max:
        raise _too_large(size_bytes_max)
    return body


def _too_large(size_bytes_max: int) -> CallError:
    return CallError(413, f"the body exceeds {size_bytes_max} bytes; ask for less in one request")


def _response(reply: Reply) -> web.Response:
    headers = dict(JSON_HEADERS)
    headers.update(reply.headers)
    response = web.Response(status=reply.status, body=reply.body, headers=headers)
    if reply.status == 413 or reply.status == 408:
        response.force_close()  # the rest of that body is not worth reading
    return response


class _JsonHandler(RequestHandler):
    """aiohttp's connection handler, with JSON also for what is not even HTTP, and no framework text in any answer.

    Knows once and for all its requests who calls: the certificate was checked in the handshake.
    """

    __slots__ = ("caller",)
    caller: Identity | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.caller = identity_of(transport.get_extra_info("peercert"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the JSON form of an error that no door raised; only our own faults reach the log."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is already under way")
        if status >= 500:
            server = self._manager
            assert isinstance(server, _JsonServer)
            server.report("a request failed inside the node", exc)
            text = "the node failed to answer; the operator finds the reason in its log"
        else:
            text = "the request is not valid HTTP"
        response = _response(CallError(status, text).reply())
        response.force_close()
        return response


class _JsonServer(web.Server):
    """Makes one `_JsonHandler` per connection."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], report: Report) -> None:
        super().__init__(handler)
        self.report = report

    def __call__(self) -> RequestHandler:
        return _JsonHandler(
            self,
            loop=self._loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to switch it off
            keepalive_timeout=KEEP_ALIVE_S,
            auto_decompress=False,  # a few kilobytes must not become gigabytes
            lingering_time=1.0,
        )
