"""Open loop: requests are due by the arrival process, and late answers do not put the next ones off."""

import asyncio
import itertools
import math
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.clients import schedule
from loadtest.clients.schedule import arrivals, keep_to, long_enough_s


@pytest.mark.parametrize("arrival", ["constant", "poisson", "bursts"])
def test_arrivals_have_the_rate_and_stay_inside(arrival: Any) -> None:
    due = list(arrivals(arrival, 50.0, 200.0, 5, random.Random(7)))
    assert due == sorted(due) and due[0] >= 0 and due[-1] < 200.0
    assert len(due) == pytest.approx(10_000, rel=0.05)


def test_poisson_gaps_vary_as_much_as_they_last_and_bursts_come_together() -> None:
    due = list(arrivals("poisson", 100.0, 100.0, 5, random.Random(7)))
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    bursts = list(arrivals("bursts", 100.0, 10.0, 4, random.Random(7)))
    assert all(len(set(bursts[n : n + 4])) == 1 for n in range(0, len(bursts), 4))


@pytest.mark.parametrize("arrival", ["constant", "poisson", "bursts"])
@pytest.mark.parametrize("count_min", [0, 1, 100])
def test_a_load_lasts_until_there_are_enough_requests(arrival: Any, count_min: int) -> None:
    def due(seconds: float) -> Iterator[float]:
        return arrivals(arrival, 2.0, seconds, 5, random.Random(3))

    seconds = long_enough_s(due(math.inf), 10.0, count_min)
    sent = list(due(seconds))
    assert seconds >= 10.0 and len(sent) >= count_min
    assert seconds == 10.0 or (len(set(sent)) - 1) * (5 if arrival == "bursts" else 1) < count_min, "and no longer"


async def test_a_slow_answer_does_not_delay_the_next_request() -> None:
    released, sent = asyncio.Event(), []

    async def send(due_ns: int) -> None:
        sent.append(time.monotonic_ns() - due_ns)
        if len(sent) == 3:
            released.set()
        await released.wait()

    await asyncio.wait_for(keep_to(iter([0.0, 0.001, 0.002]), send, pytest.fail), 10)
    assert len(sent) == 3 and min(sent) >= 0


async def test_what_is_beyond_the_bound_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "UNDER_WAY_MAX", 2)
    released, refused = asyncio.Event(), []

    def overflow() -> None:
        refused.append(1)
        released.set()

    async def send(due_ns: int) -> None:
        await released.wait()

    await asyncio.wait_for(keep_to(iter([0.0, 0.0, 0.0]), send, overflow), 10)
    assert len(refused) == 1


async def test_cancelling_leaves_no_request_behind() -> None:
    begun = asyncio.Event()

    async def send(due_ns: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(keep_to(iter([0.0]), send, pytest.fail))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
