"""What a chart is, apart from how it is drawn: the page draws it with uPlot, the PNG files with matplotlib."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from loadtest.statistics import Interval

POINTS_MAX: Final = 400
"""Points of one line: as many as a screen has columns for it; longer series are averaged in stretches."""
SERIES_MAX: Final = 12
MARKS_MAX: Final = 60


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `low` and `high` are the ends of error bars, None where there is none."""

    label: str
    x: list[float]
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    points: bool = False


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on a chart over time: a band from `start` to `end`."""

    start: float
    end: float
    label: str
    kind: Literal["fault", "attack", "alarm", "phase"]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart. `note` is a sentence under the title that says what to see."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    note: str = ""
    log_x: bool = False
    log_y: bool = False
    marks: list[Mark] = []
    x_values: list[float] | None = None


def from_intervals(label: str, found: Sequence[tuple[float, Interval]]) -> Series:
    """Return medians with their intervals as one line."""
    return Series(
        label=label,
        x=[x for x, _ in found],
        y=[interval.value for _, interval in found],
        low=[interval.low for _, interval in found],
        high=[interval.high for _, interval in found],
        points=True,
    )


def thinned(label: str, points: Iterable[tuple[float, float]]) -> Series:
    """Return a line of at most POINTS_MAX points, by averaging neighbours."""
    ordered = list(points)
    every = max(1, -(-len(ordered) // POINTS_MAX))
    groups = [ordered[at : at + every] for at in range(0, len(ordered), every)]
    return Series(
        label=label,
        x=[_short(sum(x for x, _ in group) / len(group)) for group in groups],
        y=[_short(sum(y for _, y in group) / len(group)) for group in groups],
    )


def _short(value: float) -> float:
    return float(f"{value:.5g}")
