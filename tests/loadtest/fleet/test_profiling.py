"""Processor time goes to the functions that used it, and nowhere twice."""

import asyncio
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from loadtest.fleet import profiling
from loadtest.fleet.rooms import ROOMS, room_of


def _burn(seconds: float) -> int:
    turns, end_s = 0, time.thread_time() + seconds
    while time.thread_time() < end_s:
        turns += 1
    return turns


def _deep(levels: int) -> int:
    return _burn(0.15) if levels == 0 else _deep(levels - 1)


def _shares(summary: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        each["function"].partition(":")[2]: (each["own_share"], each["total_share"]) for each in summary["functions"]
    }


def test_time_goes_to_what_runs_and_to_its_callers_once() -> None:
    profile = profiling.CpuProfile()
    profile.start()
    try:
        _deep(20)
        _burn(0.45)
        summary = profile.summary()
    finally:
        profile.stop()
    shares = _shares(summary)
    assert shares["_burn"][0] > 0.7
    assert 0.02 < shares["_deep"][1] < 0.5
    assert all(0 <= own <= total <= 1 for own, total in shares.values())
    assert sum(own for own, _ in shares.values()) <= 1.001
    assert summary["samples"] >= 10 and summary["cpu_s"] >= 0.15
    assert summary["overhead_share"] < 0.05


def test_other_threads_count_for_what_they_do_and_ended_ones_are_one_sum() -> None:
    profile = profiling.CpuProfile()
    profile.reset()
    burnt, seen = threading.Event(), threading.Event()

    def work() -> None:
        _burn(0.1)
        burnt.set()
        _waits(seen)

    thread = threading.Thread(target=work)
    thread.start()
    assert burnt.wait(10)
    profile.sample(signal.SIGPROF, None)
    seen.set()
    thread.join()
    summary = profile.summary()
    shares = _shares(summary)
    assert shares["_waits"][1] > 0.7, "what the thread did when the sample was taken"
    assert shares["_waits"][0] < 0.1 and summary["unseen_share"] < 0.2

    profile.reset()
    ended = threading.Thread(target=_burn, args=(0.1,))
    ended.start()
    ended.join()
    profile.sample(signal.SIGPROF, None)
    summary = profile.summary()
    assert summary["unseen_share"] > 0.7 and "_burn" not in _shares(summary)


def _waits(event: threading.Event) -> None:
    assert event.wait(10)


def test_time_goes_to_the_nearest_room_of_the_callers(monkeypatch: Any) -> None:
    rooms = {"_outer": "ledger", "_inner": "storage"}
    monkeypatch.setattr(profiling, "room_of", lambda place: rooms.get(place.partition(":")[2]))
    profile = profiling.CpuProfile()
    profile.reset()

    def _sampled() -> None:
        _burn(0.05)
        profile.sample(signal.SIGPROF, sys._getframe())

    _outer(lambda: _inner(_sampled))
    _outer(_sampled)
    _sampled()
    found = profile.summary()["rooms"]
    assert set(found) == {"ledger", "storage", "other"} and sum(found.values()) <= 1.001
    assert all(share == pytest.approx(1 / 3, abs=0.2) for share in found.values())


def _outer(called: Callable[[], None]) -> None:
    called()


def _inner(called: Callable[[], None]) -> None:
    called()


@pytest.mark.parametrize(
    ("place", "room"),
    [
        ("protocol/kernels/emulation.py:emit", "quantum"),
        ("protocol/distill/pipeline.py:run", "distill"),
        ("ledger/merkle.py:_update", "ledger"),
        ("qnode/io/connection.py:Connection._encrypt", "transport, TLS"),
        ("ssl.py:SSLObject.read", "transport, TLS"),
        ("qnode/io/storage.py:Storage._write", "storage"),
        ("aiohttp/web_protocol.py:RequestHandler.start", "http"),
        ("asyncio/runners.py:Runner.run", "event loop"),
        ("qnode/relay.py:Relay.tick", "node"),
        ("nacl/bindings/crypto_sign.py:crypto_sign_open", None),
        ("msgpack/__init__.py:packb", None),
    ],
)
def test_rooms_of_code(place: str, room: str | None) -> None:
    assert room_of(place) == room


def test_every_path_of_a_room_exists() -> None:
    root = Path(profiling.__file__).parents[2]
    own = [path for _, paths in ROOMS for path in paths if path.startswith(("qnode/", "protocol/", "ledger/"))]
    assert all(any(root.glob(f"{path}*")) for path in own)


def test_a_sample_in_the_middle_of_a_summary_waits(monkeypatch: Any) -> None:
    profile = profiling.CpuProfile()
    profile.reset()
    _burn(0.02)
    profile.sample(signal.SIGPROF, sys._getframe())
    real = profiling.place

    def interrupted(code: Any) -> str:
        _burn(0.02)
        profile.sample(signal.SIGPROF, sys._getframe())
        return real(code)

    monkeypatch.setattr(profiling, "place", interrupted)
    summary = profile.summary()
    assert summary["samples"] == 1
    assert all(each["own_share"] <= each["total_share"] <= 1 for each in summary["functions"])


def test_functions_beyond_the_bound_are_one(monkeypatch: Any) -> None:
    monkeypatch.setattr(profiling, "FUNCTIONS_MAX", 1)
    profile = profiling.CpuProfile()
    profile.start()
    try:
        _burn(0.3)  # some kernels count time in steps of 10 ms or more
        names = {each["function"] for each in profile.summary()["functions"]}
    finally:
        profile.stop()
    assert profiling.OTHERS in names and len(names) <= 2


def test_places_leave_directories_out() -> None:
    assert profiling.place(json.dumps.__code__) == "json/__init__.py:dumps"
    assert profiling.place(profiling.place.__code__) == "loadtest/fleet/profiling.py:place"


def test_a_summary_under_uvloop_comes_when_it_is_asked_for_and_begins_anew() -> None:
    async def ask() -> list[dict[str, Any]]:
        told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.put_nowait(json.loads(await reader.read(profiling.SUMMARY_SIZE_BYTES_MAX)))
            writer.close()

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "s"
            async with await asyncio.start_unix_server(hear, path):
                profiling.serve("node-1", path)
                summaries = []
                for _ in range(2):
                    _burn(0.1)
                    signal.raise_signal(profiling.REQUEST)
                    summaries.append(await asyncio.wait_for(told.get(), 10))
                return summaries

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            first, second = runner.run(ask())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(profiling.REQUEST, signal.SIG_DFL)
    assert first["node_id"] == second["node_id"] == "node-1"
    for each in (first, second):
        assert 0.05 < each["cpu_s"] < 0.5 and _shares(each)["_burn"][0] > 0.5
