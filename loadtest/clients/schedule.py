"""When requests are due: arrival processes of open-loop clients, and the loop that keeps to them."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from loadtest.scenarios.model import Arrival

UNDER_WAY_MAX: Final = 5_000
"""Requests that wait for their answers: beyond it a due request counts as failed, at once. A network that far behind is
past saturation, and a harness without this bound would run out of memory instead of saying so."""


def arrivals(arrival: Arrival, rate_per_s: float, seconds: float, burst: int, rng: random.Random) -> Iterator[float]:
    """Yield the times (s from the start, ascending, below `seconds`) at which requests are due."""
    match arrival:
        case "constant":
            yield from itertools.takewhile(
                lambda at_s: at_s < seconds, (number / rate_per_s for number in itertools.count())
            )
        case "poisson":
            at_s = rng.expovariate(rate_per_s)
            while at_s < seconds:
                yield at_s
                at_s += rng.expovariate(rate_per_s)
        case "bursts":
            at_s = rng.expovariate(rate_per_s / burst)
            while at_s < seconds:
                yield from (at_s for _ in range(burst))
                at_s += rng.expovariate(rate_per_s / burst)


def long_enough_s(due_s: Iterator[float], seconds: float, count_min: int) -> float:
    """Return how long requests must be sent so that `count_min` are due: `seconds`, or until just after the last one.

    `due_s` must go on for as long as that takes.
    """
    last_s = max(itertools.islice(due_s, count_min), default=0.0)
    return seconds if last_s < seconds else math.nextafter(last_s, math.inf)


async def keep_to(due_s: Iterator[float], send: Callable[[int], Awaitable[None]], overflow: Callable[[], None]) -> None:
    """Call `send(due_ns)` at each due time, by the monotonic clock, whatever became of the earlier ones.

    A request that cannot leave in time because the loop is late leaves at once, and its latency counts from when it
    was due. Returns when all are answered; when cancelled, it cancels what is under way.
    """
    begin_ns = time.monotonic_ns()
    running: set[asyncio.Task[None]] = set()
    try:
        for at_s in due_s:
            due_ns = begin_ns + int(at_s * 1e9)
            wait_s = (due_ns - time.monotonic_ns()) / 1e9
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if len(running) >= UNDER_WAY_MAX:
                overflow()
                continue
            task = asyncio.ensure_future(send(due_ns))
            running.add(task)
            task.add_done_callback(running.discard)
        while running:
            await asyncio.wait(running)
    finally:
        for task in running:
            task.cancel()
