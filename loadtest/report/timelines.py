"""Charts over the time of one case: commits under faults, memory, key, error rates of links, what happened when."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from loadtest.measure.figures import case_end_s, detection_of
from loadtest.report.charts import MARKS_MAX, SERIES_MAX, Chart, Mark, Series, thinned
from loadtest.results.reader import Result
from loadtest.results.records import Case, Event, LinkSample, NodeSample

BINS_MAX: Final = 120
BIN_S_MIN: Final = 1.0


def detailed_case(result: Result) -> Case | None:
    """Return the case worth a close look: the one with the most faults and attacks, else the largest that ran."""
    counts: dict[int, int] = {}
    for event in result.events:
        if event.kind in ("fault", "attack", "failure"):
            counts[event.case] = counts.get(event.case, 0) + 1
    return max(result.cases, key=lambda case: (counts.get(case.case, 0), case.nodes, -case.case), default=None)


def timelines(result: Result, case: Case) -> list[Chart]:
    """Return the charts of one case; times count from its beginning."""
    nodes = [sample for sample in result.nodes if sample.case == case.case]
    links = [sample for sample in result.links if sample.case == case.case]
    marks = _marks(result, case)
    charts = [
        _commits(result, case, marks),
        _over_nodes("memory-time", "Memory per node", "MiB", nodes, case, lambda s: s.pss_mib or s.rss_mib, marks),
        _over_nodes("files-time", "Open descriptors per node", "", nodes, case, lambda s: s.open_files, marks),
        _over_nodes("mempool-time", "Records waiting at a node", "records", nodes, case, lambda s: s.mempool, marks),
        _error_rates(links, case, marks),
        _over_links("keys-time", "Key in store per link", "kB", links, case, marks),
    ]
    return [chart for chart in charts if chart is not None]


def _marks(result: Result, case: Case) -> list[Mark]:
    """Return bands for faults until they recovered, for attacks, and for alarms."""
    end_s = case_end_s(result, case)
    found: list[Mark] = []
    pending: dict[str, Event] = {}
    events = [event for event in result.events if event.case == case.case]

    def close(subject: str, time_s: float) -> None:
        if fault := pending.pop(subject, None):
            label = f"{fault.detail.get('fault', 'fault')} {subject}"
            found.append(_mark(case, fault.time_s, time_s, label, "fault"))

    for event in events:
        if event.kind == "fault":
            close(event.subject, event.time_s)
            pending[event.subject] = event
        elif event.kind == "recovered" or (event.kind == "heal" and not _recovers(events, event)):
            close(event.subject, event.time_s)
        elif event.kind == "alarm":
            found.append(_mark(case, event.time_s, event.time_s, f"alarm {event.subject}", "alarm"))
    for subject in list(pending):
        close(subject, end_s)
    attacks = detection_of(result, case).attacks
    found += [_mark(case, a.begun_s, a.ended_s, f"{a.kind} on {a.subject}", "attack") for a in attacks]
    return sorted(found, key=lambda mark: mark.start)[:MARKS_MAX]


def _recovers(events: Iterable[Event], healed: Event) -> bool:
    return any(e.kind == "recovered" and e.subject == healed.subject and e.time_s >= healed.time_s for e in events)


def _mark(case: Case, start_s: float, end_s: float, label: str, kind: str) -> Mark:
    assert kind in ("fault", "attack", "alarm")
    begun = case.started_s
    return Mark(start=round(start_s - begun, 2), end=round(end_s - begun, 2), label=label, kind=kind)  # type: ignore[arg-type]


def _binned(points: Sequence[tuple[float, float]], case: Case, end_s: float) -> tuple[list[float], list[list[float]]]:
    """Sort values into equal stretches of the case's time; return the stretches' beginnings and their values."""
    seconds = max(end_s - case.started_s, BIN_S_MIN)
    width_s = max(BIN_S_MIN, seconds / BINS_MAX)
    count = int(seconds / width_s) + 1
    bins: list[list[float]] = [[] for _ in range(count)]
    for time_s, value in points:
        at = int((time_s - case.started_s) / width_s)
        if 0 <= at < count:
            bins[at].append(value)
    return [round(number * width_s, 3) for number in range(count)], bins


def _commits(result: Result, case: Case, marks: list[Mark]) -> Chart | None:
    rows = [row for row in result.commits if row.case == case.case]
    if len(rows) < 3:
        return None
    gains = [(after.time_s, float(after.height - before.height)) for before, after in itertools.pairwise(rows)]
    records = [(row.time_s, float(row.transactions)) for row in rows[1:]]
    first_s, last_s = rows[0].time_s - case.started_s, rows[-1].time_s - case.started_s
    lines = []
    for label, values in (("heights per second", gains), ("records per second", records)):
        x, bins = _binned(values, case, case_end_s(result, case))
        width_s = x[1] - x[0] if len(x) > 1 else BIN_S_MIN
        kept = [(at, sum(held) / width_s) for at, held in zip(x, bins, strict=True) if first_s <= at <= last_s]
        lines.append(Series(label=label, x=[at for at, _ in kept], y=[value for _, value in kept]))
    note = "What the chain commits while faults (grey) and attacks (red) last; a hole is a stall."
    return Chart(
        name="commits-time",
        title="Commits over time",
        x_label="s",
        y_label="per second",
        series=lines,
        note=note,
        marks=marks,
    )


def _over_nodes(
    name: str,
    title: str,
    unit: str,
    samples: Sequence[NodeSample],
    case: Case,
    pick: Callable[[NodeSample], float | None],
    marks: list[Mark],
) -> Chart | None:
    """The middle and the largest of all nodes, by group."""
    lines: list[Series] = []
    for group in sorted({sample.group for sample in samples})[: SERIES_MAX // 2]:
        values = [(s.time_s, float(v)) for s in samples if s.group == group and (v := pick(s)) is not None]
        if values:
            x, bins = _binned(values, case, max(time_s for time_s, _ in values))
            held = [(at, sorted(each)) for at, each in zip(x, bins, strict=True) if each]
            lines.append(thinned(f"{group}, median", ((at, each[len(each) // 2]) for at, each in held)))
            lines.append(thinned(f"{group}, largest", ((at, each[-1]) for at, each in held)))
    if not lines or all(len(line.x) < 2 for line in lines):
        return None
    return Chart(name=name, title=title, x_label="s", y_label=unit, series=lines, marks=marks)


def _by_link(links: Iterable[LinkSample]) -> dict[str, list[LinkSample]]:
    found: dict[str, list[LinkSample]] = {}
    for sample in links:
        found.setdefault(sample.link_id, []).append(sample)
    return found


def _error_rates(links: Sequence[LinkSample], case: Case, marks: list[Mark]) -> Chart | None:
    """The links whose error rate changed most; a block that aborts has none of its own, its last stays."""
    series = {
        link_id: [(s.time_s - case.started_s, 100 * s.qber) for s in samples if s.qber is not None]
        for link_id, samples in _by_link(links).items()
    }
    spread = {link_id: max(y for _, y in seen) - min(y for _, y in seen) for link_id, seen in series.items() if seen}
    shown = sorted(spread, key=lambda link_id: (-spread[link_id], link_id))[:SERIES_MAX]
    lines = [thinned(link_id, series[link_id]) for link_id in shown if len(series[link_id]) > 1]
    if not lines:
        return None
    note = f"The {len(lines)} links that changed most of {len(series)}."
    return Chart(
        name="qber-time", title="QBER over time", x_label="s", y_label="%", series=lines, note=note, marks=marks
    )


def _over_links(
    name: str, title: str, unit: str, links: Sequence[LinkSample], case: Case, marks: list[Mark]
) -> Chart | None:
    values = [(s.time_s, s.key_bytes / 1e3) for s in links if s.key_bytes is not None]
    if len(values) < 2:
        return None
    x, bins = _binned(values, case, max(time_s for time_s, _ in values))
    held = [(at, sorted(each)) for at, each in zip(x, bins, strict=True) if each]
    lines = [
        thinned("smallest", ((at, each[0]) for at, each in held)),
        thinned("median", ((at, each[len(each) // 2]) for at, each in held)),
    ]
    if len(lines[0].x) < 2:
        return None
    return Chart(name=name, title=title, x_label="s", y_label=unit, series=lines, marks=marks)
