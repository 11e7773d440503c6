"""Clock, randomness, worker threads and the pid file: the small hands of the daemon."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qnode.io import clock, entropy, pidfile
from qnode.io.clock import ClockError, SystemClock
from qnode.io.entropy import EntropyFailure, OperatingSystemEntropy, node_entropy
from qnode.io.jobs import Jobs


def test_the_clock_never_goes_backwards_and_starts_at_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SystemClock()
    assert abs(made.now_ns() - time.time_ns()) < 10**9
    before = made.now_ns()
    really = time.time_ns
    monkeypatch.setattr(clock.time, "time_ns", lambda: really() - 3600 * 10**9)
    assert made.now_ns() >= before
    assert -3601e9 < made.drift_ns() < -3599e9


def test_a_clock_that_is_far_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    SystemClock().require_after(0, "x")
    with pytest.raises(ClockError, match="before the genesis of this chain; set it"):
        SystemClock().require_after(time.time_ns() + 10**12, "the genesis of this chain")
    monkeypatch.setattr(clock.time, "time_ns", lambda: 0)
    with pytest.raises(ClockError):
        SystemClock().require_after(0, "anything")


@pytest.mark.parametrize("kind", ["system", "emulated_qrng"])
def test_healthy_randomness_passes_and_sick_randomness_stops(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = node_entropy(kind)
    assert len({source.take(32) for _ in range(300)}) == 300
    assert len(source.take(100_000)) == 100_000
    monkeypatch.setattr(entropy.os, "urandom", lambda size: bytes(size))
    with pytest.raises(EntropyFailure):
        for _ in range(300):  # a stuck source is found across draws, too, once what was drawn before is used up
            source.take(4)
    monkeypatch.undo()
    with pytest.raises(EntropyFailure):  # and stays stopped, however well it looks later
        source.take(4)


async def test_jobs_run_off_the_loop_and_report_on_it() -> None:
    jobs, here = Jobs(threads=2), threading.get_ident()
    reports: asyncio.Queue[tuple[object, BaseException | None, int]] = asyncio.Queue()

    def report(result: object, error: BaseException | None) -> None:
        reports.put_nowait((result, error, threading.get_ident()))

    jobs.start(threading.get_ident, report)
    result, error, reported_on = await reports.get()
    assert (error, reported_on) == (None, here)
    assert result != here
    jobs.start(lambda: 1 // 0, report)
    result, error, _ = await reports.get()
    assert result is None
    assert isinstance(error, ZeroDivisionError)
    assert jobs.running_count == 0
    await jobs.close()


async def test_closing_waits_for_work_under_way_and_reports_nothing() -> None:
    jobs, begun, go = Jobs(threads=1), threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> None:
        begun.set()
        go.wait(10)
        ended.append("first")

    jobs.start(work, lambda result, error: ended.append("reported"))
    jobs.start(lambda: ended.append("second"), lambda result, error: ended.append("reported"))
    await asyncio.to_thread(begun.wait, 10)
    closing = asyncio.create_task(jobs.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert ended == ["first"]


HOLDER = """
import sys, pathlib
from qnode.io.pidfile import PidFile
with PidFile(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.integration
@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_the_pid_file_names_a_living_daemon_only(tmp_path: Path, end: signal.Signals | None) -> None:
    state = tmp_path / "state"
    assert pidfile.running_process(state) is None
    pidfile.wait_until_stopped(state)
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert pidfile.running_process(state) == child.pid
    with pytest.raises(pidfile.AlreadyRunningError, match=str(child.pid)), pidfile.PidFile(state):
        pass
    if end is None:
        child.stdin.close()
    else:
        os.kill(child.pid, end)
    pidfile.wait_until_stopped(state)
    assert pidfile.running_process(state) is None
    child.wait()
    with pidfile.PidFile(state):
        assert pidfile.running_process(state) == os.getpid()


def test_small_draws_share_a_tested_draw_and_no_byte_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    draw = os.urandom

    def counted(size_bytes: int) -> bytes:
        drawn.append(draw(size_bytes))
        return drawn[-1]

    monkeypatch.setattr(entropy.os, "urandom", counted)
    source = OperatingSystemEntropy()
    taken = [source.take(size) for size in (16, 32, 16, 1, 24, 200, 5000) * 20]
    assert [len(each) for each in taken] == [16, 32, 16, 1, 24, 200, 5000] * 20
    assert len(drawn) == 20 + 7, "one for each large one; a pool of 1,024 bytes serves three times 289"
    longer = [each for each in taken if len(each) >= 16]
    assert len(set(longer)) == len(longer)
    assert all(sum(piece in whole for whole in drawn) == 1 for piece in longer)


def test_a_fork_draws_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    source = OperatingSystemEntropy()
    source.take(16)
    pool = bytes(source._pool)
    monkeypatch.setattr(entropy.os, "getpid", lambda: -1)
    assert source.take(16) not in pool
