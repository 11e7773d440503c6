"""Reads a result back, strictly: an unknown key, a wrong type or a foreign file is an error that says where.

A run that was killed leaves a last line cut short; that line is left out and the reader says so in `warnings`. A
result whose run.json still says "running" is partial: either it runs right now, or its harness was killed.
"""

import csv
import io
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadtest.measure.histograms import LatencyHistogram
from loadtest.results.records import (
    FORMAT,
    FORMAT_VERSION,
    Case,
    Commit,
    Event,
    Figures,
    Latency,
    LinkSample,
    NodeSample,
    Profile,
    Record,
    Run,
    Topology,
    Window,
)
from loadtest.results.writer import RUN_FILE, TABLES, ResultError

R = TypeVar("R", bound=Record)


class Result:
    """One result directory. Tables are read when they are first asked for, and kept."""

    def __init__(self, directory: Path) -> None:
        """Read run.json. Raises ResultError."""
        self.directory = directory
        self.warnings: list[str] = []
        self.run = _read_run(directory)

    @property
    def is_partial(self) -> bool:
        """Whether something is missing."""
        return self.run.status != "complete"

    @property
    def why_partial(self) -> str | None:
        """Why something is missing, in words; None for a complete result."""
        if self.run.status == "running":
            return "the run has not ended, or its harness was killed"
        return self.run.reason if self.is_partial else None

    @cached_property
    def nodes(self) -> list[NodeSample]:
        """Looks at nodes, in the order of time."""
        return self._table("nodes.csv", NodeSample)

    @cached_property
    def links(self) -> list[LinkSample]:
        """Looks at links."""
        return self._table("links.csv", LinkSample)

    @cached_property
    def commits(self) -> list[Commit]:
        """Commits of heights."""
        return self._table("commits.csv", Commit)

    @cached_property
    def events(self) -> list[Event]:
        """Faults, attacks, alarms, phases, failures."""
        return self._table("events.jsonl", Event)

    @cached_property
    def latencies(self) -> list[Latency]:
        """Histograms, still encoded."""
        return self._table("latency.jsonl", Latency)

    @cached_property
    def windows(self) -> list[Window]:
        """Latencies over time; none in a result from before they were kept."""
        return self._table("windows.csv", Window) if (self.directory / "windows.csv").exists() else []

    @cached_property
    def profiles(self) -> list[Profile]:
        """What nodes spent their processor time on; none in a result from before it was kept."""
        return self._table("profiles.csv", Profile) if (self.directory / "profiles.csv").exists() else []

    @cached_property
    def topologies(self) -> dict[int, Topology]:
        """Networks, by case."""
        return {each.case: each for each in self._table("topology.jsonl", Topology)}

    @cached_property
    def figures(self) -> dict[int, dict[str, float | None]]:
        """Figures, by case."""
        found: dict[int, dict[str, float | None]] = {}
        for each in self._table("figures.jsonl", Figures):
            found.setdefault(each.case, {}).update(each.values)
        return found

    @property
    def cases(self) -> list[Case]:
        """The points of the run."""
        return self.run.cases

    def histogram(
        self, case: int | None = None, kind: str | None = None, phase: str | None = None, group: str | None = None
    ) -> LatencyHistogram:
        """Return the merged histogram of all that match; None matches everything. Raises ResultError."""
        merged = LatencyHistogram()
        for each in self.latencies:
            wanted = ((case, each.case), (kind, each.kind), (phase, each.phase), (group, each.group))
            if all(asked is None or asked == is_ for asked, is_ in wanted):
                merged.merge(decoded(each, self.directory))
        return merged

    def _table(self, name: str, kind: type[R]) -> list[R]:
        assert TABLES[name] is kind, f"{name} holds {TABLES[name].__name__}"
        path = self.directory / name
        text = _read(path)
        if text and not text.endswith("\n"):
            self.warnings.append(f"{name}: its last line is cut short and was left out")
            text = text[: text.rfind("\n") + 1]
        return _csv_rows(path, text, kind) if path.suffix == ".csv" else _json_rows(path, text, kind)


def decoded(latency: Latency, directory: Path) -> LatencyHistogram:
    """Return the histogram of a record. Raises ResultError."""
    try:
        return LatencyHistogram.decode(latency.histogram, latency.failures, latency.saturated)
    except ValueError as error:
        raise ResultError(f"{directory / 'latency.jsonl'}: {latency.kind} of case {latency.case}: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; a result has run.json and {', '.join(TABLES)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from None


def _read_run(directory: Path) -> Run:
    path = directory / RUN_FILE
    if not path.is_file():
        raise ResultError(f"{directory} holds no result ({RUN_FILE} is missing); give a directory that `run` wrote")
    text = _read(path)
    try:
        outline = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ResultError(f"{path} is not JSON: {error}") from None
    if not isinstance(outline, dict) or outline.get("format") != FORMAT:
        raise ResultError(f"{path} is not the result of a load test (its format is not {FORMAT!r})")
    if outline.get("format_version") != FORMAT_VERSION:
        found = outline.get("format_version")
        raise ResultError(
            f"{path} has format version {found}; this program reads {FORMAT_VERSION}: use the one that wrote it"
        )
    try:
        return msgspec.convert(outline, Run)
    except msgspec.ValidationError as error:
        raise ResultError(f"{path}: {error}") from None


def _json_rows(path: Path, text: str, kind: type[R]) -> list[R]:
    decoder = msgspec.json.Decoder(kind)
    rows: list[R] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows.append(decoder.decode(line))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ResultError(f"{path}, line {number}: {error}") from None
    return rows


def _csv_rows(path: Path, text: str, kind: type[R]) -> list[R]:
    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines, [])
    if (unknown := set(header) - set(kind.__struct_fields__)) or not header:
        wrong = f"unknown columns {', '.join(sorted(unknown))}" if unknown else "no header line"
        raise ResultError(f"{path}: {wrong}; the columns are {', '.join(kind.__struct_fields__)}")
    rows: list[R] = []
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise ResultError(f"{path}, line {number}: {len(cells)} cells under {len(header)} columns")
        row: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        try:
            rows.append(msgspec.convert(row, kind, strict=False))
        except msgspec.ValidationError as error:
            raise ResultError(f"{path}, line {number}: {error}") from None
    return rows
