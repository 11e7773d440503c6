"""Groups the cases of a run: repetitions of one size and one set of parameters are one point with an interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.measure.figures import Values
from loadtest.results.records import Case, Scalar
from loadtest.statistics import Interval, median_interval

Parameters = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """The repetitions of one size and one set of parameters, with the figures of each."""

    nodes: int
    parameters: Parameters
    cases: tuple[Case, ...]
    figures: tuple[Values, ...]

    def values(self, name: str) -> list[float]:
        """Return one figure of every repetition that has it."""
        return [value for figures in self.figures if (value := figures.get(name)) is not None]

    def interval(self, name: str) -> Interval | None:
        """Return the median of a figure and its interval; None if no repetition has it."""
        values = self.values(name)
        return median_interval(values) if values else None


def points(cases: Sequence[Case], figures: dict[int, Values]) -> list[Point]:
    """Group the cases; smaller sizes first, then by their parameters."""
    groups: dict[tuple[int, Parameters], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.nodes, tuple(sorted(case.parameters.items()))), []).append(case)
    found = [
        Point(nodes, parameters, tuple(group), tuple(figures.get(case.case, {}) for case in group))
        for (nodes, parameters), group in groups.items()
    ]
    return sorted(found, key=lambda point: (point.nodes, [(name, _order(value)) for name, value in point.parameters]))


def labels(found: Sequence[Point]) -> list[str]:
    """Return what tells each point from the others, in words: its size, and the parameters that differ."""
    same = set.intersection(*(set(point.parameters) for point in found)) if found else set()
    rests = [
        ", ".join(f"{name} {value}" for name, value in point.parameters if (name, value) not in same) for point in found
    ]
    return [f"{point.nodes} nodes" + (f", {rest}" if rest else "") for point, rest in zip(found, rests, strict=True)]


def _order(value: Scalar) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, bool | int | float) else (1, 0.0, str(value))


def varying(found: Sequence[Point]) -> str | None:
    """Return the numeric parameter that varies between points of one size, such as a rate; None if none does."""
    names = {name for point in found for name, value in point.parameters if _is_number(value)}
    for name in sorted(names, key=lambda each: ("rate" not in each, each)):
        if len({dict(point.parameters).get(name) for point in found}) > 1:
            return name
    return None


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def against(found: Sequence[Point], x: Callable[[Point], float | None], name: str) -> list[tuple[float, Interval]]:
    """Return a figure with its interval against `x`, over the points that have both; one point per x."""
    at: dict[float, list[float]] = {}
    for point in found:
        if (place := x(point)) is not None and (values := point.values(name)):
            at.setdefault(place, []).extend(values)
    return [(place, median_interval(values)) for place, values in sorted(at.items())]
