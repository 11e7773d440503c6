"""Which charts a result gives: latency and throughput against nodes and load, the paper's four figures, memory.

Decides what is shown; a chart without data is left out. `loadtest.report.timelines` has the charts over time.
"""

from collections.abc import Callable, Sequence
from typing import Final

from loadtest.measure.figures import measured_phases
from loadtest.report.charts import SERIES_MAX, Chart, Series, from_intervals
from loadtest.report.points import Point, against, labels, varying
from loadtest.results.figure_names import figure_name
from loadtest.results.reader import Result
from loadtest.statistics import Interval, proportion

LATENCIES: Final = ("key_ms_p50", "key_ms_p95", "commit_ms_p50", "commit_ms_p95", "commit_ms_p99", "message_ms_p95")
RATES: Final = ("tx_per_s", "keys_per_s", "heights_per_s")
PERCENTS: Final = (0, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99)
X = Callable[[Point], float | None]


def scaling(found: Sequence[Point]) -> list[Chart]:
    """Return figures against the number of nodes, if there is more than one size."""
    if len({point.nodes for point in found}) < 2:
        return []
    charts = (
        ("latency-nodes", "Latency against nodes", "ms", LATENCIES),
        ("throughput-nodes", "Throughput against nodes", "per second", RATES),
        ("memory-nodes", "Memory per node against nodes", "MiB", ("pss_mib_per_node", "rss_mib_per_node")),
        ("start-nodes", "Time until all nodes are up", "s", ("start_s",)),
        ("cost-nodes", "Bytes sent per node and height", "B", ("bytes_per_node_and_height",)),
        ("cpu-nodes", "Processor time per node", "cores", ("cpu_share_per_node",)),
    )
    note = "Medians over repetitions with bootstrap intervals of 95 %."
    return [
        chart
        for name, title, unit, names in charts
        if (chart := _against(name, title, "nodes", unit, found, lambda point: float(point.nodes), names, note))
    ]


def load(found: Sequence[Point]) -> list[Chart]:
    """Return figures against whatever load varies, if any does, one line for each number of nodes."""
    name = varying(found)
    if name is None:
        return []

    def place(point: Point) -> float | None:
        value = dict(point.parameters).get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    label = name.replace("_per_s", " per second").replace("_", " ")
    note = "Latency counts from when a request was due, so that waiting in line is part of it."
    charts = (
        _against("latency-load", f"Latency against {label}", label, "ms", found, place, LATENCIES, note),
        _against("throughput-load", f"Throughput against {label}", label, "per second", found, place, RATES, ""),
    )
    return [chart for chart in charts if chart is not None]


def _against(
    name: str, title: str, x_label: str, y_label: str, found: Sequence[Point], x: X, names: Sequence[str], note: str
) -> Chart | None:
    series = [
        from_intervals(figure_name(each).title, values)
        for each in names
        if len(values := against(found, x, each)) > 1 and any(interval.value > 0 for _, interval in values)
    ]
    if not series:
        return None
    places = [place for one in series for place in one.x]
    wide = min(places) > 0 and max(places) / min(places) > 8
    return Chart(
        name=name,
        title=title,
        x_label=x_label,
        y_label=y_label,
        series=series,
        note=note,
        log_x=wide,
        log_y=_spans_decades(series),
        x_values=sorted(set(places)),
    )


def _spans_decades(series: Sequence[Series]) -> bool:
    values = [value for one in series for value in one.y if value is not None]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20


def distributions(result: Result, found: Sequence[Point]) -> list[Chart]:
    """Return the latency of every percentile, by kind, for the largest point."""
    if not found:
        return []
    largest = found[-1]
    lines: list[Series] = []
    for kind in sorted({each.kind for each in result.latencies})[:SERIES_MAX]:
        merged = None
        for case in largest.cases:
            for phase in sorted(measured_phases(result, case)):
                histogram = result.histogram(case.case, kind, phase)
                if merged is None:
                    merged = histogram
                else:
                    merged.merge(histogram)
        if merged is not None and merged.count > 1:
            shown = [p for p in PERCENTS if (100 - p) / 100 * merged.count >= 1]
            x = [100 / (100 - p) for p in shown]
            lines.append(Series(label=kind, x=x, y=[merged.percentile_ms(max(p, 1e-9)) for p in shown], points=True))
    if not lines:
        return []
    note = f"{labels(found)[-1]}. To the right of 10 is the slowest tenth, to the right of 100 the slowest hundredth."
    chart = Chart(
        name="distribution",
        title="Latency by percentile",
        x_label="one request in …",
        y_label="ms",
        series=lines,
        note=note,
        log_x=True,
        log_y=True,
    )
    return [chart]


def paper(found: Sequence[Point]) -> list[Chart]:
    """Return figures 6 to 9 of the paper (S0-E20 … E24): one experiment is one case."""
    cases = sorted(
        ((case, values) for point in found for case, values in zip(point.cases, point.figures, strict=True)),
        key=lambda pair: pair[0].case,
    )
    experiments = [(float(number), values) for number, (_, values) in enumerate(cases, 1)]
    charts = [_detection(experiments)] if any(values.get("attacks") for _, values in experiments) else []
    for name, title, unit, figure in (
        ("paper-7", "Throughput in each experiment (fig. 7)", "Mbit/s", "throughput_mbit_per_s"),
        ("paper-8", "Latency in each experiment (fig. 8)", "ms", "latency_ms_mean"),
        ("paper-9", "Energy efficiency in each experiment (fig. 9)", "Mbit/s/W", "energy_efficiency_mbit_per_s_per_w"),
    ):
        at = [(x, value) for x, values in experiments if (value := values.get(figure)) is not None]
        if at:
            line = Series(label=figure_name(figure).title, x=[x for x, _ in at], y=[y for _, y in at], points=True)
            charts.append(Chart(name=name, title=title, x_label="experiment", y_label=unit, series=[line]))
    return charts


def _detection(experiments: Sequence[tuple[float, dict[str, float | None]]]) -> Chart:
    """Figure 6: detection rate (20) and false alarm rate (21) in per cent, with Wilson's intervals."""
    lines = []
    for label, hits, of in (
        ("detection rate", "attacks_detected", "attacks"),
        ("false alarm rate", "false_alarms", "legitimate_events"),
    ):
        rates: list[tuple[float, Interval]] = []
        for x, values in experiments:
            count, total = int(values.get(hits) or 0), int(values.get(of) or 0)
            if total:
                rates.append((x, _per_cent(proportion(min(count, total), total))))
        lines.append(from_intervals(label, rates))
    return Chart(
        name="paper-6",
        title="Detection rate and false alarm rate in each experiment (fig. 6)",
        x_label="experiment",
        y_label="%",
        series=lines,
        note="Bars are Wilson's intervals of 95 %: with few attacks they are wide.",
    )


def _per_cent(rate: Interval) -> Interval:
    low, high = (None if bound is None else 100 * bound for bound in (rate.low, rate.high))
    return Interval(100 * rate.value, low, high, rate.count)
