"""A copy of a result that is small enough to keep beside documents: fewer rows, the same figures.

Figures are computed from all rows first and kept as recorded figures, so a report of the copy says the same numbers.
Counters only ever grow, so leaving out looks between others loses detail and no sums; commits that are merged add up.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from loadtest.measure.figures import figures
from loadtest.results.reader import Result
from loadtest.results.records import Commit, Event, Figures, LinkSample, NodeSample, Profile, Record
from loadtest.results.writer import RUN_FILE, TABLES, ResultError, replace_file, write_table

ROWS_KEPT: Final = 2_000
"""Of each table, and the last of each node and link: some 300 kB of text; with the page a copy of seven sizes with
three repetitions stays below a megabyte."""
FUNCTIONS_KEPT: Final = 40
"""Of each node's profile of a phase, by what they themselves took: more than twice what tables show."""
R = TypeVar("R", NodeSample, LinkSample)


def write_thinned(result: Result, directory: Path) -> None:
    """Write the copy into an empty or new directory. Raises ResultError."""
    known = figures(result)
    first_of_size = {nodes: case for case, nodes in reversed([(case.case, case.nodes) for case in result.cases])}
    tables: dict[str, Sequence[Record]] = {
        "nodes.csv": _every(result.nodes, [(s.case, s.node_id) for s in result.nodes]),
        "links.csv": _every(result.links, [(s.case, s.link_id) for s in result.links]),
        "commits.csv": _merged(result.commits),
        "events.jsonl": _weightiest(result.events),
        "latency.jsonl": result.latencies,
        "figures.jsonl": [Figures(case=case, values=_short(values)) for case, values in known.items()],
        "windows.csv": result.windows,
        "profiles.csv": _largest(result.profiles),
        "topology.jsonl": [each for each in result.topologies.values() if each.case in first_of_size.values()],
    }
    left_out = [
        f"{name} {len(tables[name]):,} of {count:,} rows"
        for name, count in (
            ("nodes.csv", len(result.nodes)),
            ("links.csv", len(result.links)),
            ("commits.csv", len(result.commits)),
            ("events.jsonl", len(result.events)),
            ("profiles.csv", len(result.profiles)),
        )
        if len(tables[name]) < count
    ]
    run = result.run
    if left_out:
        run = msgspec.structs.replace(run, notes=[*run.notes, f"a thinned copy: {', '.join(left_out)}"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{directory}: {error.strerror or error}; give another directory") from None
    for name, kind in TABLES.items():
        write_table(directory / name, kind, tables[name])
    replace_file(directory / RUN_FILE, msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def _short(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else float(f"{value:.6g}") for name, value in values.items()}


def _every(rows: Sequence[R], keys: Sequence[Hashable]) -> list[R]:
    """Keep every n-th look at each node or link, and the last."""
    every = max(1, -(-len(rows) // ROWS_KEPT))
    last = {key: at for at, key in enumerate(keys)}
    turns: dict[Hashable, int] = {}
    kept = []
    for at, (row, key) in enumerate(zip(rows, keys, strict=True)):
        turn = turns.get(key, 0)
        turns[key] = turn + 1
        if turn % every == 0 or last[key] == at:
            kept.append(row)
    return kept


def _largest(rows: Sequence[Profile]) -> list[Profile]:
    """Keep all parts, and in each group of nodes whatever is among the largest functions of one of them."""
    nodes: dict[Hashable, list[Profile]] = {}
    for row in rows:
        if row.kind == "function":
            nodes.setdefault((row.case, row.phase, row.node_id), []).append(row)
    kept = {
        (row.case, row.phase, row.group, row.function)
        for profile in nodes.values()
        for row in sorted(profile, key=lambda each: -each.own_share)[:FUNCTIONS_KEPT]
    }
    return [row for row in rows if row.kind == "room" or (row.case, row.phase, row.group, row.function) in kept]


def _merged(rows: Sequence[Commit]) -> list[Commit]:
    """Merge neighbours of one case: the last height, the sum of the records."""
    every = max(1, -(-len(rows) // ROWS_KEPT))
    kept: list[Commit] = []
    inside = 0
    for row in rows:
        if kept and kept[-1].case == row.case and 0 < inside < every:
            together = kept[-1].transactions + row.transactions
            kept[-1] = msgspec.structs.replace(row, transactions=together)
            inside += 1
        else:
            kept.append(row)
            inside = 1
    return kept


def _weightiest(events: Sequence[Event]) -> list[Event]:
    """Keep what the report needs most, in the order of time: phases, faults, attacks, alarms; notes go first."""
    if len(events) <= ROWS_KEPT:
        return list(events)
    order = ("phase", "fault", "heal", "recovered", "attack", "attack_end", "alarm", "failure", "note")
    chosen = sorted(range(len(events)), key=lambda at: (order.index(events[at].kind), at))[:ROWS_KEPT]
    return [events[at] for at in sorted(chosen)]
