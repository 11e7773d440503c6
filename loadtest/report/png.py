"""The charts of a report as PNG files, for documents; drawn with matplotlib from the same data as the page."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from loadtest.report.charts import Chart, Series

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
BANDS: Final = {"fault": "#7f7f7f", "attack": "#d55e00", "alarm": "#c4314b", "phase": "#0072b2"}
DOTS_PER_INCH: Final = 110


def write_all(charts: Iterable[Chart], directory: Path) -> list[Path]:
    """Write one file per chart; return their paths. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in charts:
        path = directory / f"{chart.name}.png"
        draw(chart).savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
        written.append(path)
    return written


def draw(chart: Chart) -> Figure:
    """Return one chart as a figure of its own; no global state of matplotlib is touched."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for mark in chart.marks:
        width = 0.8 if mark.end <= mark.start else 0.0
        axes.axvspan(mark.start, mark.end, color=BANDS[mark.kind], alpha=0.25, linewidth=width)
    for number, one in enumerate(chart.series):
        _line(axes, one, COLOURS[number % len(COLOURS)])
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if chart.x_values and len(chart.x_values) <= 12:
        axes.set_xticks(chart.x_values, [f"{value:g}" for value in chart.x_values], minor=False)
        axes.set_xticks([], minor=True)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.3)
    if len(chart.series) > 1:
        axes.legend(fontsize="small")
    return figure


def _line(axes: Any, one: Series, colour: str) -> None:
    shown = [index for index, value in enumerate(one.y) if value is not None]
    x, y = [one.x[index] for index in shown], [one.y[index] for index in shown]
    axes.plot(x, y, color=colour, label=one.label, marker="o" if one.points else None, markersize=4, linewidth=1.5)
    if one.low and one.high:
        bars = [
            (place, value, low, high)
            for place, value, low, high in zip(one.x, one.y, one.low, one.high, strict=True)
            if value is not None and low is not None and high is not None
        ]
        below = [max(0.0, value - low) for _, value, low, _ in bars]
        above = [max(0.0, high - value) for _, value, _, high in bars]
        axes.errorbar(
            [place for place, *_ in bars],
            [value for _, value, *_ in bars],
            yerr=[below, above],
            fmt="none",
            color=colour,
            capsize=3,
            linewidth=1,
        )
