"""Charts as SVG text: lines and points on linear or logarithmic axes, without a drawing library.

Decides how a chart looks, not what it shows; a pure function from series to text, which the caller writes to a file.
`rate_chart` is the planner's picture of key rate against distance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from protocol.quantum.plan import LinkPlan

WIDTH: Final = 720
HEIGHT: Final = 440
SMALLEST: Final = 1e-300  # what is below counts as zero: subnormal numbers have no usable logarithm
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 48, 60
INK: Final = "#1f2933"
SOFT: Final = "#cbd2d9"
COLOURS: Final = ("#7c3aed", "#b45309", "#047857", "#1d4ed8", "#be123c", "#0e7490", "#4d7c0f", "#6b21a8")


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) of one label. `points` draws markers, with bars of half-length `errors`, instead of a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False
    errors: Sequence[float] = ()
    colour: int = -1


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: data range, pixel range, and whether it is logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        low, high, v = (math.log10(t) if self.log else t for t in (self.low, self.high, value))
        return self.start + (v - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first) / 8))
            return [10.0**k for k in range(first, last + 1, every)]
        rough = (self.high - self.low) / 6
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]

    def label(self, tick: float) -> str:
        if self.log and not 0.01 <= tick <= 1000:
            return f'10<tspan dy="-5" font-size="9">{round(math.log10(tick))}</tspan>'
        return f"{tick:g}"


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> _Axis:
    usable = [v for v in values if math.isfinite(v) and (v > SMALLEST or not log)] or [1.0, 10.0]
    low, high = min(usable), max(usable)
    if log:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
    elif low >= 0.0:
        low = 0.0
    return _Axis(low, high if high - low > SMALLEST else low * 10.0 + 1.0, start, end, log)


def chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], log_x: bool = False, log_y: bool = False
) -> str:
    """Return an SVG document. Values that a logarithmic axis cannot show (zero key) break the line."""
    x_axis = _axis([v for s in series for v in s.x], log_x, LEFT, WIDTH - RIGHT)
    y_axis = _axis([v for s in series for v in s.y], log_y, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif"><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2, 24, escape(title), 15, "middle", 'font-weight="700"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, escape(x_label), 13, "middle"),
        f'<g transform="rotate(-90 18 {HEIGHT / 2})">{_text(18, HEIGHT / 2, escape(y_label), 13, "middle")}</g>',
        *_grid(x_axis, y_axis),
    ]
    for number, one in enumerate(series):
        colour = COLOURS[(number if one.colour < 0 else one.colour) % len(COLOURS)]
        parts += _points(one, x_axis, y_axis, colour) if one.points else _lines(one, x_axis, y_axis, colour)
    return "".join([*parts, *_legend(series, x_axis, y_axis), "</svg>\n"])


def _text(x: float, y: float, words: str, size: int, anchor: str, extra: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{INK}" text-anchor="{anchor}" {extra}>{words}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        parts += [
            _line(x, TOP, x, HEIGHT - BOTTOM, SOFT),
            _text(x, HEIGHT - BOTTOM + 18, x_axis.label(tick), 12, "middle"),
        ]
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, SOFT), _text(LEFT - 8, y + 4, y_axis.label(tick), 12, "end")]
    return parts


def _shown(one: Series, x_axis: _Axis, y_axis: _Axis) -> list[tuple[float, float] | None]:
    return [
        (x_axis.place(x), y_axis.place(y))
        if (y > SMALLEST or not y_axis.log) and (x > SMALLEST or not x_axis.log)
        else None
        for x, y in zip(one.x, one.y, strict=True)
    ]


def _lines(one: Series, x_axis: _Axis, y_axis: _Axis, colour: str) -> list[str]:
    parts, run = [], []
    for spot in [*_shown(one, x_axis, y_axis), None]:
        if spot is not None:
            run.append(f"{spot[0]:.1f},{spot[1]:.1f}")
        elif run:
            parts.append(f'<polyline points="{" ".join(run)}" fill="none" stroke="{colour}" stroke-width="2"/>')
            run = []
    return parts


def _points(one: Series, x_axis: _Axis, y_axis: _Axis, colour: str) -> list[str]:
    parts = []
    errors = one.errors or [0.0] * len(one.y)
    for spot, y, error in zip(_shown(one, x_axis, y_axis), one.y, errors, strict=True):
        if spot is None:
            continue
        parts.append(f'<circle cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="4" fill="{colour}"/>')
        if error > 0.0:
            low = max(y - error, y_axis.low)
            parts.append(_line(spot[0], y_axis.place(low), spot[0], y_axis.place(y + error), colour, 1.5))
    return parts


def _crowd(series: Sequence[Series], x_axis: _Axis, y_axis: _Axis, left: float, width: float, height: float) -> int:
    """Return how many points a legend box at the top would hide."""
    spots = [spot for one in series for spot in _shown(one, x_axis, y_axis) if spot is not None]
    return sum(left <= x <= left + width and y <= TOP + 6 + height for x, y in spots)


def _legend(series: Sequence[Series], x_axis: _Axis, y_axis: _Axis) -> list[str]:
    named = [(n if s.colour < 0 else s.colour, s) for n, s in enumerate(series) if s.label]
    width = 16 + max((7 * len(s.label) for _, s in named), default=0)
    height = 18 * len(named) + 8
    places = (WIDTH - RIGHT - width - 14, LEFT + 16)
    x = min(places, key=lambda left: _crowd(series, x_axis, y_axis, left, width + 18, height))
    parts = []
    box = f'x="{x - 10}" y="{TOP + 6}" width="{width + 18}" height="{height}"'
    parts.append(f'<rect {box} fill="#ffffff" fill-opacity="0.85" stroke="{SOFT}"/>')
    for row, (number, one) in enumerate(named):
        y, colour = TOP + 24 + 18 * row, COLOURS[number % len(COLOURS)]
        mark = f'<circle cx="{x + 4}" cy="{y - 4}" r="4" fill="{colour}"/>'
        parts.append(mark if one.points else _line(x - 4, y - 4, x + 12, y - 4, colour, 3))
        parts.append(_text(x + 18, y, escape(one.label), 12, "start"))
    return parts


def rate_chart(plans: Sequence[tuple[str, Sequence[float], Sequence[LinkPlan]]]) -> str:
    """Return secret key rate against distance, one line per (label, lengths in km, plans)."""
    series = [
        Series(label, lengths, [p.secret_key_rate_bits_per_s for p in planned]) for label, lengths, planned in plans
    ]
    return chart("Secret key rate against distance", "fibre, km", "secret bits per second", series, log_y=True)
