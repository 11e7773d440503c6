"""Keep-alive connections of an open loop: as many as requests are under way, and few when few are.

A pool that hands out the connection which rested longest keeps every one alive that a burst once opened: after a stall
of seconds a node holds a hundred for ever, and its descriptors and memory grow with the worst moment so far. Here a
request takes the lowest free place, so that what a burst opened rests and closes.
"""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
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

    def __init__(self, timeout_s: float = 300.0, context: ssl.SSLContext | None = None) -> None:
        self._make: Callable[[], aiohttp.ClientSession] = lambda: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context if context is not None else True, limit=0, keepalive_timeout=REST_S
            ),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
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
