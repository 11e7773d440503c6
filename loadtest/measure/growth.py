"""Whether anything grows over a long run: nodes' memory and descriptors, clients' latencies, by their slope (S0-P4).

All nodes of a case are taken together: each node's values relative to its own median, so that nodes of different size
seen in turn do not look like a trend.
"""

import statistics
from collections.abc import Callable, Iterable
from typing import Final

from loadtest.measure.figures import measured_phases, window_s
from loadtest.results.reader import Result
from loadtest.results.records import Case, NodeSample
from loadtest.statistics import Trend, trend

SECONDS_MIN: Final = 300.0
"""A shorter window has a node's start in it, and no slope worth a test."""
WATCHED: Final[dict[str, Callable[[NodeSample], float | None]]] = {
    "memory (PSS), MiB": lambda sample: sample.pss_mib,
    "memory (RSS), MiB": lambda sample: sample.rss_mib,
    "open descriptors": lambda sample: sample.open_files,
    "records waiting": lambda sample: sample.mempool,
}
LATENCY: Final = "latency of "
GROWTH_ALLOWED: Final = 0.01
LATENCY_GROWTH_ALLOWED: Final = 0.1
"""Over a whole run. Latencies on a shared machine drift by a few per cent with whatever else it does."""


def growth(result: Result, case: Case) -> dict[str, Trend]:
    """Return the trend of what is watched, for a case whose measured window is long enough; else nothing."""
    begin_s, end_s = window_s(result, case)
    if end_s - begin_s < SECONDS_MIN:
        return {}
    samples = [s for s in result.nodes if s.case == case.case and begin_s <= s.time_s <= end_s]
    found = {name: series_trend(samples, pick) for name, pick in WATCHED.items()}
    found |= _latencies(result, case)
    return {name: each for name, each in found.items() if each is not None}


def growth_allowed(name: str) -> float:
    """Return the share of its level that a series may grow over a run before it counts as growing."""
    return LATENCY_GROWTH_ALLOWED if name.startswith(LATENCY) else GROWTH_ALLOWED


def _latencies(result: Result, case: Case) -> dict[str, Trend | None]:
    """Return the trends of each kind's percentiles from window to window."""
    phases = measured_phases(result, case)
    series: dict[str, list[tuple[float, float]]] = {}
    for each in result.windows:
        if each.case == case.case and each.phase in phases:
            series.setdefault(f"{LATENCY}{each.kind}, median, ms", []).append((each.time_s, each.ms_p50))
            series.setdefault(f"{LATENCY}{each.kind}, p95, ms", []).append((each.time_s, each.ms_p95))
    return {name: trend([t for t, _ in points], [value for _, value in points]) for name, points in series.items()}


def series_trend(samples: Iterable[NodeSample], pick: Callable[[NodeSample], float | None]) -> Trend | None:
    """Return the trend of one value over all nodes; None where there is too little."""
    by_node: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        if (value := pick(sample)) is not None:
            by_node.setdefault(sample.node_id, []).append((sample.time_s, float(value)))
    if not by_node:
        return None
    medians = {node: statistics.median(value for _, value in seen) for node, seen in by_node.items()}
    level = statistics.median(medians.values())
    points = sorted((t, value - medians[node] + level) for node, seen in by_node.items() for t, value in seen)
    return trend([t for t, _ in points], [value for _, value in points])
