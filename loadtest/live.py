"""What a person sees in the terminal while a load test runs: progress and time left, nodes, rates, latency, failures.

On a terminal a panel that is redrawn in place; elsewhere (a log, CI) one plain line at every change of phase and at
most every PLAIN_INTERVAL_S. Shows what it is told by `update`; measures nothing but rates between two updates.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.results.records import Event

PLAIN_INTERVAL_S: Final = 10.0
REDRAWS_PER_S: Final = 4  # more costs a processor that is being measured
EVENTS_SHOWN: Final = 6
RATE_WINDOW_S: Final = 10.0
"""Rates are over the last stretch of so long: long enough not to jump, short enough to show a stall."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """One moment of a run. Counters (`height`, `records`, `requests`) are since the case began."""

    case_label: str
    phase: str
    share_done: float
    left_s: float | None
    """Of this case, from its warm-up on: how long links take before is not known."""
    nodes_up: int
    nodes_total: int
    height: int = 0
    records: int = 0
    requests: int = 0
    key_ms_p50: float | None = None
    key_ms_p95: float | None = None
    failures: int = 0


@dataclass(slots=True)
class _Rates:
    """Rates of counters over the last stretch; a counter that falls (a new case) begins anew."""

    seen: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=512))

    def add(self, now_s: float, height: int, records: int) -> None:
        if self.seen and height < self.seen[-1][1]:
            self.seen.clear()
        self.seen.append((now_s, height, records))
        while len(self.seen) > 2 and self.seen[0][0] < now_s - RATE_WINDOW_S:
            self.seen.popleft()

    def per_s(self) -> tuple[float, float]:
        if len(self.seen) < 2 or self.seen[-1][0] <= self.seen[0][0]:
            return 0.0, 0.0
        (from_s, height, records), (to_s, height_now, records_now) = self.seen[0], self.seen[-1]
        seconds = to_s - from_s
        return (height_now - height) / seconds, (records_now - records) / seconds


class LiveView:
    """The view of one run, between entering and leaving `with`."""

    def __init__(
        self,
        title: str,
        stream: IO[str] | None = None,
        interactive: bool | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show on `stream` (standard error by default), as a panel if it is a terminal unless told otherwise."""
        self._title = title
        self._stream = stream or sys.stderr
        self._monotonic = monotonic
        self._begun_s = monotonic()
        self._console = Console(file=self._stream, force_terminal=interactive)
        panel = self._console.is_terminal if interactive is None else interactive
        self._live = Live(console=self._console, refresh_per_second=REDRAWS_PER_S, transient=True) if panel else None
        self._rates = _Rates()
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._lasting: dict[str, str] = {}  # subject → the fault or attack that lasts there
        self._said_s = float("-inf")
        self._said_of = ("", "")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, text: str) -> None:
        """Show something that happened: a fault, an attack, an alarm, a failure."""
        at_s = self._monotonic() - self._begun_s
        self._events.append(f"{_clock(at_s)}  {text}")
        if self._live is None:
            self._say(f"{_clock(at_s)} {text}")

    def happened(self, event: Event) -> None:
        """Show an event of the result, and remember which faults and attacks last."""
        if event.kind in ("fault", "attack"):
            self._lasting[event.subject] = str(event.detail.get(event.kind, event.kind))
        elif event.kind in ("recovered", "heal", "attack_end"):
            self._lasting.pop(event.subject, None)
        if event.kind not in ("phase", "note") and event.subject != "client":
            detail = ", ".join(str(value) for value in event.detail.values())
            self.event(f"{event.kind.replace('_', ' ')} {event.subject} {detail}".strip())

    def update(self, state: LiveState) -> None:
        """Show this moment."""
        now_s = self._monotonic()
        self._rates.add(now_s, state.height, state.records)
        if self._live is not None:
            self._live.update(self._panel(state, now_s))
            return
        of = (state.case_label, state.phase)
        if of != self._said_of or now_s - self._said_s >= PLAIN_INTERVAL_S:
            self._said_s, self._said_of = now_s, of
            self._say(
                " · ".join((_clock(now_s - self._begun_s), f"{state.case_label}, {state.phase}", *self._words(state)))
            )

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _words(self, state: LiveState) -> list[str]:
        heights_per_s, records_per_s = self._rates.per_s()
        words = [f"{100 * state.share_done:.0f} %, {self._left(state)}", f"{state.nodes_up}/{state.nodes_total} nodes"]
        words.append(f"{heights_per_s:.1f} heights/s, {records_per_s:.0f} records/s")
        if state.key_ms_p50 is not None and state.key_ms_p95 is not None:
            words.append(f"keys {state.key_ms_p50:.1f} / {state.key_ms_p95:.1f} ms")
        if state.failures:
            words.append(f"{state.failures} failed")
        if self._lasting:
            words.append(f"now: {self._disturbances()}")
        return words

    def _disturbances(self) -> str:
        shown = [f"{what} {subject}" for subject, what in self._lasting.items()]
        more = f" and {len(shown) - EVENTS_SHOWN} more" if len(shown) > EVENTS_SHOWN else ""
        return ", ".join(shown[:EVENTS_SHOWN]) + more

    def _left(self, state: LiveState) -> str:
        if state.left_s is None:
            return "time left unknown"
        return f"{_clock(max(0.0, state.left_s))} left of this network"

    def _panel(self, state: LiveState, now_s: float) -> Panel:
        heights_per_s, records_per_s = self._rates.per_s()
        table = Table.grid(padding=(0, 3))
        keys = "–" if state.key_ms_p50 is None else f"{state.key_ms_p50:.1f} / {state.key_ms_p95 or 0:.1f} ms"
        nodes = Text(
            f"{state.nodes_up} of {state.nodes_total}", "green" if state.nodes_up == state.nodes_total else "yellow"
        )
        failed = Text(str(state.failures), "red" if state.failures else "green")
        table.add_row("nodes up", nodes, "height", f"{state.height:,}  ({heights_per_s:.1f}/s)")
        table.add_row("keys, p50 / p95", keys, "records", f"{state.records:,}  ({records_per_s:.0f}/s)")
        table.add_row("requests", f"{state.requests:,}", "failed", failed)
        table.add_row("lasting now", self._disturbances() or "nothing")
        head = Text.assemble((state.case_label, "bold"), f"  {state.phase}   ", (self._left(state), "dim"))
        bar = ProgressBar(total=1.0, completed=min(1.0, max(0.0, state.share_done)))
        events = Text("\n".join(self._events), "dim")
        return Panel(
            Group(head, bar, Text(), table, events), title=self._title, subtitle=_clock(now_s - self._begun_s), width=96
        )


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
