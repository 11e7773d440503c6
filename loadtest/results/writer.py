"""Writes a result as the run goes: every line reaches the file when it is written, so a killed run keeps what it had.

`run.json` is replaced whole (a reader sees the old one or the new one); everything else is appended, one line at a
time. Not for several threads: the run's own loop writes. Tables have bounds; what is past one is counted, not kept,
and the result says so.
"""

import csv
import datetime
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import msgspec

from loadtest.measure.histograms import LatencyBook
from loadtest.results import records
from loadtest.results.records import (
    Case,
    CaseStatus,
    Check,
    Commit,
    Event,
    EventKind,
    Latency,
    LinkSample,
    NodeSample,
    Overhead,
    Phase,
    Profile,
    Record,
    Run,
    Scalar,
    Topology,
    Window,
)

ROWS_MAX: Final = 2_000_000
"""Rows of one table: some 300 MB of text. An hour of 300 nodes, each seen every 15 s, makes 72,000."""
NOTES_MAX: Final = 200
RUN_FILE: Final = "run.json"
TABLES: Final[Mapping[str, type[Record]]] = {
    "nodes.csv": NodeSample,
    "links.csv": LinkSample,
    "commits.csv": Commit,
    "events.jsonl": Event,
    "latency.jsonl": Latency,
    "figures.jsonl": records.Figures,
    "topology.jsonl": Topology,
    "windows.csv": Window,
    "profiles.csv": Profile,
}


class ResultError(RuntimeError):
    """A result cannot be written or read; the message names the file and the way out."""


def new_directory(root: Path, scenario: str, now: datetime.datetime | None = None) -> Path:
    """Return a directory of its own for a run of `scenario` below `root`, not made yet."""
    stamp = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y%m%dT%H%M%S")
    candidate, number = root / f"{scenario}-{stamp}", 2
    while candidate.exists():
        candidate, number = root / f"{scenario}-{stamp}-{number}", number + 1
    return candidate


class _Table:
    """One file of lines of one type of record."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.name = path.name
        self.rows = self.dropped = 0
        self._kind = kind
        self._file: IO[str] = path.open("x", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n") if path.suffix == ".csv" else None
        if self._csv is not None:
            self._csv.writerow(kind.__struct_fields__)
            self._file.flush()

    def add(self, rows: Iterable[Record]) -> None:
        for row in rows:
            assert type(row) is self._kind, f"{self.name} takes {self._kind.__name__}, not {type(row).__name__}"
            if self.rows >= ROWS_MAX:
                self.dropped += 1
                continue
            self.rows += 1
            if self._csv is not None:
                self._csv.writerow(map(_cell, msgspec.structs.astuple(row)))
            else:
                self._file.write(msgspec.json.encode(row).decode() + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _cell(value: Any) -> Any:
    """Short text of a value: None is empty, and a float has ten significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    return f"{value:.10g}" if isinstance(value, float) else value


class ResultWriter:
    """One run's result while it is made; leave it by `with`, and an exception makes the result partial."""

    def __init__(
        self,
        directory: Path,
        run: Run,
        monotonic: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Make the directory and its files; `on_event` hears every event. Raises ResultError if a result is there."""
        self._on_event = on_event
        self.directory = directory
        self._monotonic = monotonic
        self._origin_s = monotonic()
        self._run = run
        self._cases: dict[int, Case] = {}
        self._phases: list[Phase] = []
        self._checks: list[Check] = []
        self._notes: list[str] = []
        self._overhead: Overhead | None = None
        self._closed = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise ResultError(f"{directory} is not empty; give a new directory, results are never overwritten")
            self._tables = {name: _Table(directory / name, kind) for name, kind in TABLES.items()}
            self._write_run()
        except OSError as error:
            raise ResultError(f"{directory}: {error.strerror or error}; free space or give another directory") from None

    def now_s(self) -> float:
        """Seconds since the run began, by the monotonic clock."""
        return round(self._monotonic() - self._origin_s, 6)

    def at_s(self, monotonic_s: float) -> float:
        """Turn a reading of the monotonic clock into seconds since the run began."""
        return round(monotonic_s - self._origin_s, 6)

    def begin_case(self, nodes: int, repetition: int, seed: int, parameters: Mapping[str, Scalar] | None = None) -> int:
        """Begin one point of the run; return its number."""
        number = len(self._cases)
        self._cases[number] = Case(
            case=number,
            nodes=nodes,
            repetition=repetition,
            seed=seed,
            parameters=dict(parameters or {}),
            started_s=self.now_s(),
        )
        self._write_run()
        return number

    def end_case(self, case: int, reason: str | None = None) -> None:
        """End a case: complete, or failed for a reason."""
        status: CaseStatus = "complete" if reason is None else "failed"
        self._end_phase(case)
        self._cases[case] = msgspec.structs.replace(
            self._cases[case], ended_s=self.now_s(), status=status, reason=reason
        )
        self._write_run()

    def phase(self, case: int, name: str) -> None:
        """Begin a phase of a case; the one before it ends."""
        self._end_phase(case)
        self._phases.append(Phase(case=case, name=name, started_s=self.now_s()))
        self.event(case, "phase", name)
        self._write_run()

    def _end_phase(self, case: int) -> None:
        for at, phase in enumerate(self._phases):
            if phase.case == case and phase.ended_s is None:
                self._phases[at] = msgspec.structs.replace(phase, ended_s=self.now_s())

    def event(self, case: int, kind: EventKind, subject: str, **detail: Scalar) -> None:
        """Note something that happens now."""
        happened = Event(time_s=self.now_s(), case=case, kind=kind, subject=subject, detail=dict(detail))
        self._add("events.jsonl", [happened])
        self._on_event(happened)

    def nodes(self, samples: Iterable[NodeSample]) -> None:
        """Keep looks at nodes."""
        self._add("nodes.csv", samples)

    def links(self, samples: Iterable[LinkSample]) -> None:
        """Keep looks at links."""
        self._add("links.csv", samples)

    def commits(self, commits: Iterable[Commit]) -> None:
        """Keep commits of heights."""
        self._add("commits.csv", commits)

    def latencies(self, case: int, book: LatencyBook) -> None:
        """Keep every histogram of a book; call it once per case, or once per book."""
        self._add(
            "latency.jsonl",
            [
                Latency(
                    case=case,
                    kind=key.kind,
                    phase=key.phase,
                    group=key.group,
                    count=histogram.count,
                    failures=histogram.failures,
                    saturated=histogram.saturated,
                    histogram=histogram.encode(),
                )
                for key, histogram in book
            ],
        )

    def windows(self, windows: Iterable[Window]) -> None:
        """Keep latencies of stretches of time."""
        self._add("windows.csv", windows)

    def profiles(self, profiles: Iterable[Profile]) -> None:
        """Keep what nodes spent their processor time on."""
        self._add("profiles.csv", profiles)

    def figures(self, case: int, values: Mapping[str, float | None]) -> None:
        """Keep figures of a case; a later call adds to them or corrects them."""
        self._add("figures.jsonl", [records.Figures(case=case, values=dict(values))])

    def topology(self, topology: Topology) -> None:
        """Keep the network of a case."""
        self._add("topology.jsonl", [topology])

    def check(
        self, name: str, passed: bool, found: Scalar, limit: str, message: str = "", case: int | None = None
    ) -> None:
        """Keep the verdict on one promise."""
        self._checks.append(Check(name=name, passed=passed, found=found, limit=limit, message=message, case=case))
        self._write_run()

    def note(self, text: str) -> None:
        """Keep a sentence about the run that its reader should know."""
        if len(self._notes) < NOTES_MAX:
            self._notes.append(text)
            self._write_run()

    def overhead(self, overhead: Overhead) -> None:
        """Keep what measuring cost; several calls (one per case) add up."""
        before = self._overhead
        if before is None or before.seconds + overhead.seconds <= 0:
            self._overhead = overhead
            return
        seconds = before.seconds + overhead.seconds
        cpu_s = before.cpu_share * before.seconds + overhead.cpu_share * overhead.seconds
        interval_s = before.interval_s_mean * before.seconds + overhead.interval_s_mean * overhead.seconds
        self._overhead = Overhead(
            cpu_share=round(cpu_s / seconds, 6),
            samples=before.samples + overhead.samples,
            seconds=round(seconds, 3),
            interval_s_mean=round(interval_s / seconds, 3),
        )

    def finish(self, reason: str | None = None) -> None:
        """Close the result: complete, or partial for a reason. A second call changes nothing."""
        if self._closed:
            return
        self._closed = True
        for name, table in self._tables.items():
            if table.dropped:
                self._notes.append(f"{name} is full at {ROWS_MAX:,} rows; {table.dropped:,} more were not kept")
            table.close()
        for case in self._cases.values():
            if case.status == "running":
                self._end_phase(case.case)
                ended = msgspec.structs.replace(case, ended_s=self.now_s(), status="failed", reason=reason or "cut off")
                self._cases[case.case] = ended
        self._run = msgspec.structs.replace(
            self._run,
            status="complete" if reason is None else "partial",
            reason=reason,
            ended_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            duration_s=self.now_s(),
        )
        self._write_run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, KeyboardInterrupt):
            self.finish("interrupted")
        else:
            self.finish(f"{kind.__name__}: {error}"[:500])

    def _add(self, table: str, rows: Iterable[Record]) -> None:
        try:
            self._tables[table].add(rows)
        except OSError as error:
            raise ResultError(f"{self.directory / table}: {error.strerror or error}; free some space") from None

    def _write_run(self) -> None:
        run = msgspec.structs.replace(
            self._run,
            cases=list(self._cases.values()),
            phases=list(self._phases),
            checks=list(self._checks),
            notes=list(self._notes),
            overhead=self._overhead,
        )
        replace_file(self.directory / RUN_FILE, msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def write_table(path: Path, kind: type[Record], rows: Iterable[Record]) -> None:
    """Write one table whole. Raises ResultError, also when the file is there already."""
    try:
        table = _Table(path, kind)
        try:
            table.add(rows)
        finally:
            table.close()
    except FileExistsError:
        raise ResultError(f"{path} is there already; give a new directory, results are never overwritten") from None
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}; free some space") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one. Raises ResultError."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}; free some space") from None
