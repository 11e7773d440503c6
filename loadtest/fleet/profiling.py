"""What a node spends its processor time on: a sample of its stack for every 10 ms of processor time that it used.

The system's timer of processor time (ITIMER_PROF) interrupts the main thread between two instructions of Python, also
under uvloop, and needs no thread; an idle node costs nothing. A deterministic profiler (cProfile, yappi) would slow
every call and so distort the shares; one that samples by the clock on the wall (pyinstrument) would count waiting for
a core; py-spy may not look at another user's or, on many systems, at its cousin's process. A sample weighs the
processor time that each thread (the loop, the disk, jobs) used since the last one, and gives it to what the thread does
just then, so shares add up; a job that ended in between leaves its time to its thread. Taking the samples costs some
20 µs each and is told in the summary, which also has one sum per part of the node (`loadtest.fleet.rooms`).

A summary is asked for by SIGUSR2 and goes to a socket of the harness; the next one begins anew.
"""

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from loadtest.fleet.rooms import OTHER, room_of

INTERVAL_S: Final = 0.01
"""Of processor time: at 20 µs a sample, a 500th of what the node does."""
FUNCTIONS_MAX: Final = 20_000
"""Functions that are told apart, twice what a node runs; more are counted as one."""
FUNCTIONS_TOLD: Final = 60
"""Of each order, by own and by total time: what a reader looks at, in some 10 kB."""
ANSWER_TIMEOUT_S: Final = 2.0
OTHERS: Final = "(functions beyond the profiler's bound)"
CLOCK_OF_THREAD: Final = getattr(time, "pthread_getcpuclockid", None)
"""Not on every system; where it is missing, all other threads are one sum."""
REQUEST: Final = signal.SIGUSR2
SUMMARY_SIZE_BYTES_MAX: Final = 1 << 20


@dataclass(slots=True)
class _Spent:
    own_ns: int = 0
    total_ns: int = 0


@dataclass(slots=True)
class CpuProfile:
    """Samples since the last summary; `…_ns` of main, threads and process are clocks as the last sample left them."""

    _spent: dict[CodeType | None, _Spent] = field(default_factory=dict)
    _rooms_ns: dict[str, int] = field(default_factory=dict)
    _room_of: dict[CodeType, str | None] = field(default_factory=dict)
    _main_ns: int = 0
    _threads_ns: dict[int, int] = field(default_factory=dict)
    _process_ns: int = 0
    _beside_ns: int = 0
    _sampled_ns: int = 0
    _others_ns: int = 0
    _cost_ns: int = 0
    _samples: int = 0
    _summing: bool = False

    def start(self) -> None:
        """Sample this process from now on. For the main thread."""
        self.reset()
        signal.signal(signal.SIGPROF, self.sample)
        signal.siginterrupt(signal.SIGPROF, False)  # system calls of other threads go on
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def stop(self) -> None:
        """Take no more samples."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)

    def reset(self) -> None:
        """Begin anew."""
        self._spent.clear()
        self._rooms_ns.clear()
        self._sampled_ns = self._beside_ns = self._others_ns = self._cost_ns = self._samples = 0
        self._threads_ns = {thread: used_ns for thread, _, used_ns in _other_threads()}
        self._main_ns, self._process_ns = time.thread_time_ns(), time.process_time_ns()

    def sample(self, number: int, frame: FrameType | None) -> None:
        """Give the processor time since the last sample to the functions that run now."""
        if self._summing:  # the signal came in the middle of a summary: the next sample counts this time too
            return
        begun_ns = time.thread_time_ns()
        main_ns = begun_ns - self._main_ns
        self._samples += 1
        self._sampled_ns += main_ns
        self._count(frame, main_ns)
        beside_ns = self._count_other_threads()
        self._beside_ns += beside_ns
        self._others_ns += max(0, time.process_time_ns() - self._process_ns - main_ns - beside_ns)
        self._main_ns, self._process_ns = time.thread_time_ns(), time.process_time_ns()
        self._cost_ns += self._main_ns - begun_ns

    def _count_other_threads(self) -> int:
        """Give each other thread's time to what it does; return the sum. A thread that ended keeps its last share."""
        threads_ns, beside_ns = {}, 0
        for thread, frame, used_ns in _other_threads():
            before_ns = self._threads_ns.get(thread, 0)
            gained_ns = used_ns - before_ns if used_ns >= before_ns else used_ns  # another thread with its number
            threads_ns[thread] = used_ns
            beside_ns += gained_ns
            if gained_ns:
                self._count(frame, gained_ns)
        self._threads_ns = threads_ns
        return beside_ns

    def _count(self, frame: FrameType | None, gained_ns: int) -> None:
        """Count time for the innermost function, for all that called it, and for the nearest room."""
        seen: set[CodeType | None] = set()
        room: str | None = None
        while frame is not None:
            room = room or self._room(frame.f_code)
            code = self._known(frame.f_code)
            spent = self._spent[code]
            if not seen:
                spent.own_ns += gained_ns
            if code not in seen:  # a function that calls itself spends its time once
                seen.add(code)
                spent.total_ns += gained_ns
            frame = frame.f_back
        room = room or OTHER
        self._rooms_ns[room] = self._rooms_ns.get(room, 0) + gained_ns

    def _room(self, code: CodeType) -> str | None:
        if code not in self._room_of:
            if len(self._room_of) >= FUNCTIONS_MAX:
                return None
            self._room_of[code] = room_of(place(code))
        return self._room_of[code]

    def _known(self, code: CodeType) -> CodeType | None:
        if code in self._spent:
            return code
        kept = code if len(self._spent) < FUNCTIONS_MAX else None
        self._spent.setdefault(kept, _Spent())
        return kept

    def summary(self) -> dict[str, Any]:
        """Return what was found since the last `reset`, JSON-ready; shares are of all processor time of the process."""
        self._summing = True
        try:
            return self._summary()
        finally:
            self._summing = False

    def _summary(self) -> dict[str, Any]:
        whole_ns = max(1, self._sampled_ns + self._beside_ns + self._others_ns + self._cost_ns)
        by_own = sorted(self._spent, key=lambda code: -self._spent[code].own_ns)[:FUNCTIONS_TOLD]
        by_total = sorted(self._spent, key=lambda code: -self._spent[code].total_ns)[:FUNCTIONS_TOLD]
        functions = [
            {
                "function": place(code),
                "own_share": round(self._spent[code].own_ns / whole_ns, 6),
                "total_share": round(self._spent[code].total_ns / whole_ns, 6),
            }
            for code in dict.fromkeys((*by_own, *by_total))
        ]
        return {
            "cpu_s": round(whole_ns / 1e9, 6),
            "samples": self._samples,
            "unseen_share": round(self._others_ns / whole_ns, 6),
            "overhead_share": round(self._cost_ns / whole_ns, 6),
            "rooms": {room: round(ns / whole_ns, 6) for room, ns in self._rooms_ns.items()},
            "functions": functions,
        }


def _other_threads() -> list[tuple[int, FrameType, int]]:
    """Return (thread, what it does, processor time so far) of all other threads that run Python.

    They cannot end meanwhile: this thread holds the interpreter. Their clocks end with them.
    """
    if CLOCK_OF_THREAD is None:
        return []
    own, found = threading.get_ident(), []
    for thread, frame in sys._current_frames().items():
        if thread != own:
            with contextlib.suppress(OSError):  # a system that keeps no clock for this one
                found.append((thread, frame, time.clock_gettime_ns(CLOCK_OF_THREAD(thread))))
    return found


def place(code: CodeType | None) -> str:
    """Return `package/module.py:function` of code, without the directories above the package."""
    if code is None:
        return OTHERS
    parts = Path(code.co_filename).parts
    roots = [
        at for at, part in enumerate(parts) if part in ("site-packages", "lib-dynload") or part.startswith("python3.")
    ]
    own = [at - 1 for at, part in enumerate(parts) if part in ("qnode", "ledger", "protocol", "loadtest")]
    begin = max(roots, default=max(own[-1:], default=-1)) + 1
    return f"{'/'.join(parts[begin:])}:{code.co_qualname}"


def serve(node_id: str, harness: Path) -> None:
    """Profile this process, and send a summary to the harness' socket whenever it asks."""
    profile = CpuProfile()

    def told(number: int, frame: FrameType | None) -> None:
        tell(harness, {"node_id": node_id, **profile.summary()})
        profile.reset()

    signal.signal(REQUEST, told)
    profile.start()


def tell(harness: Path, summary: Mapping[str, Any]) -> None:
    """Send a summary; a harness that is gone or does not listen misses it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to_harness:
        to_harness.settimeout(ANSWER_TIMEOUT_S)
        try:
            to_harness.connect(str(harness))
            to_harness.sendall(json.dumps(summary).encode())
        except OSError:
            return
