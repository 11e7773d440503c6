"""What a node spends its processor time on: a sample of its stack for every 10 ms of processor time that it used.

The system's timer of processor time (ITIMER_PROF) interrupts the main thread between two instructions of Python, also
under uvloop, and needs no thread; an idle node costs nothing. A deterministic profiler (cProfile, yappi) would slow
every call and so distort the shares; one that samples by the clock on the wall (pyinstrument) would count waiting for
a core; py-spy may not look at another user's or, on many systems, at its cousin's process. A sample weighs the
processor time of the main thread since the last one, so shares add up; what other threads used (the disk, jobs) is one
sum. Taking the samples costs some 20 µs each and is told in the summary.

A summary is asked for by SIGUSR2 and goes to a socket of the harness; the next one begins anew.
"""

import json
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

INTERVAL_S: Final = 0.01
"""Of processor time: at 20 µs a sample, a 500th of what the node does."""
FUNCTIONS_MAX: Final = 20_000
"""Functions that are told apart, twice what a node runs; more are counted as one."""
FUNCTIONS_TOLD: Final = 60
"""Of each order, by own and by total time: what a reader looks at, in some 10 kB."""
ANSWER_TIMEOUT_S: Final = 2.0
OTHERS: Final = "(functions beyond the profiler's bound)"
REQUEST: Final = signal.SIGUSR2
SUMMARY_SIZE_BYTES_MAX: Final = 1 << 20


@dataclass(slots=True)
class _Spent:
    own_ns: int = 0
    total_ns: int = 0


@dataclass(slots=True)
class CpuProfile:
    """Samples since the last summary; `_main_ns` and `_process_ns` are the clocks as the last sample left them."""

    _spent: dict[CodeType | None, _Spent] = field(default_factory=dict)
    _main_ns: int = 0
    _process_ns: int = 0
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
        self._sampled_ns = self._others_ns = self._cost_ns = self._samples = 0
        self._main_ns, self._process_ns = time.thread_time_ns(), time.process_time_ns()

    def sample(self, number: int, frame: FrameType | None) -> None:
        """Give the processor time since the last sample to the functions that run now."""
        if self._summing:  # the signal came in the middle of a summary: the next sample counts this time too
            return
        begun_ns = time.thread_time_ns()
        main_ns = begun_ns - self._main_ns
        self._others_ns += max(0, time.process_time_ns() - self._process_ns - main_ns)
        self._sampled_ns += main_ns
        self._samples += 1
        seen: set[CodeType | None] = set()
        own = True
        while frame is not None:
            code = self._known(frame.f_code)
            spent = self._spent[code]
            if own:
                spent.own_ns += main_ns
                own = False
            if code not in seen:  # a function that calls itself spends its time once
                seen.add(code)
                spent.total_ns += main_ns
            frame = frame.f_back
        self._main_ns, self._process_ns = time.thread_time_ns(), time.process_time_ns()
        self._cost_ns += self._main_ns - begun_ns

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
        whole_ns = max(1, self._sampled_ns + self._others_ns + self._cost_ns)
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
            "other_threads_share": round(self._others_ns / whole_ns, 6),
            "overhead_share": round(self._cost_ns / whole_ns, 6),
            "functions": functions,
        }


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
