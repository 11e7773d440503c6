"""What a burst opened closes again; requests one after the other share one connection."""

import asyncio

import pytest
from aiohttp import web

from loadtest.clients import connections
from loadtest.clients.connections import Connections

pytestmark = pytest.mark.integration


async def scene(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    """Post one by one, ten at once, one by one; returns the open connections after each, and how many ever were."""
    monkeypatch.setattr(connections, "REST_S", 0.2)
    gate, all_here, open_now, ever = asyncio.Event(), asyncio.Event(), set[object](), set[object]()

    async def answer(request: web.Request) -> web.Response:
        ever.add(request.transport)
        open_now.add(request.transport)
        if len(ever) == 10:
            all_here.set()
        if (await request.json())["wait"]:
            await gate.wait()
        return web.json_response({})

    application = web.Application()
    application.router.add_post("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url, client, seen = f"http://127.0.0.1:{runner.addresses[0][1]}/", Connections(), list[int]()

    async def post(wait: bool) -> None:
        async with client.post(url, {"wait": wait}) as response:
            await response.read()

    def count() -> int:
        return sum(1 for each in open_now if isinstance(each, asyncio.Transport) and not each.is_closing())

    for _ in range(5):
        await post(False)
    seen.append(count())
    burst = [asyncio.ensure_future(post(True)) for _ in range(10)]
    await all_here.wait()
    gate.set()
    await asyncio.gather(*burst)
    seen.append(count())
    async with asyncio.timeout(10):
        while count() > 1:  # one by one, for longer than a connection rests
            await post(False)
            await asyncio.sleep(0.01)
    seen.append(count())
    await client.close()
    await runner.cleanup()
    return seen, len(ever)


def test_a_burst_leaves_no_connections_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, ever = asyncio.run(scene(monkeypatch))
    assert seen == [1, 10, 1] and ever == 10
