"""Keep-alive connections of an open loop: as many as requests are under way, and few when few are.

A pool that hands out the connection which rested longest keeps every one alive that a burst once opened: after a stall
of seconds a node holds a hundred for ever, and its descriptors and memory grow with the worst moment so far. Here a
request takes the lowest free place, so that what a burst opened rests and closes.
"""

import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from yarl import URL

REST_S: Final = 15.0
"""So long a connection rests before it closes; well below what servers allow, so that the client is who ends it."""


class Connections:
    """Any number of requests at once, each on the first connection to its server that is free.

    Place n of all servers is one session: it holds at most one connection to each server and certificate. The number of
    places is bounded by the requests that are under way at once.
    """

    def __init__(
        self,
        timeout_s: float = 300.0,
        context: ssl.SSLContext | None = None,
        connected: Callable[[int, int], None] | None = None,
    ) -> None:
        """`connected` is told when a connection was begun and when it was there, TLS and all (monotonic ns)."""
        self._make: Callable[[], aiohttp.ClientSession] = lambda: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context if context is not None else True, limit=0, keepalive_timeout=REST_S
            ),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            trace_configs=[] if connected is None else [_timed(connected)],
        )
        self._places: list[aiohttp.ClientSession] = []
        self._busy: dict[tuple[URL, ssl.SSLContext | None], set[int]] = {}

    @asynccontextmanager
    async def post(
        self, url: str, document: Any, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Post a JSON document, with another certificate than usual if `context` is given."""
        busy = self._busy.setdefault((URL(url).origin(), context), set())
        at = next(place for place in count() if place not in busy)
        if at == len(self._places):
            self._places.append(self._make())
        busy.add(at)
        try:
            async with self._places[at].post(url, json=document, ssl=True if context is None else context) as response:
                yield response
        finally:
            busy.discard(at)

    async def close(self) -> None:
        """Close all connections."""
        for session in self._places:
            await session.close()


def _timed(connected: Callable[[int, int], None]) -> aiohttp.TraceConfig:
    async def begin(session: aiohttp.ClientSession, request: SimpleNamespace, params: object) -> None:
        request.connecting_ns = time.monotonic_ns()

    async def end(session: aiohttp.ClientSession, request: SimpleNamespace, params: object) -> None:
        connected(request.connecting_ns, time.monotonic_ns())

    timed = aiohttp.TraceConfig()
    timed.on_connection_create_start.append(begin)
    timed.on_connection_create_end.append(end)
    return timed
