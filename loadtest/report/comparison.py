"""`python -m loadtest compare A B`: which figures differ beyond chance, by how much, and which way is better.

Points that both results have (same size, same parameters) are compared figure by figure over their repetitions; the
p-values of all of them together are corrected by Holm's method. A verdict needs both: significance and a difference of
at least CHANGE_MIN, since a certain difference may still be too small to matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from loadtest.measure.figures import figures
from loadtest.report.charts import Chart, from_intervals
from loadtest.report.page import chart_cards, number, page, table
from loadtest.report.points import Point, against, labels, points
from loadtest.results.figure_names import FIGURES, figure_name
from loadtest.results.reader import Result
from loadtest.results.writer import ResultError
from loadtest.statistics import ALPHA, RANKS_FROM, Comparison, compare, holm

Verdict = Literal["better", "worse", "differs", "no difference seen", "too few repetitions"]
CHANGE_MIN: Final = 0.01
CHARTS: Final = ("key_ms_p95", "commit_ms_p95", "tx_per_s", "pss_mib_per_node", "start_s", "bytes_per_node_and_height")
TONES: Final = {"better": "good", "worse": "bad", "differs": "warn"}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure at one point of both results; `p` is corrected."""

    point: str
    name: str
    found: Comparison
    p: float | None
    verdict: Verdict


def compare_results(first: Result, second: Result) -> list[Row]:
    """Compare two results. Raises ResultError when they have no point in common."""
    before = {(point.nodes, point.parameters): point for point in points(first.cases, figures(first))}
    after = {(point.nodes, point.parameters): point for point in points(second.cases, figures(second))}
    common = [key for key in before if key in after]
    if not common:
        raise ResultError(
            f"{first.directory} and {second.directory} have no size and parameters in common: "
            f"{_said(list(before.values()))} against {_said(list(after.values()))}"
        )
    pairs = [(before[key], after[key]) for key in common]
    found = [
        (label, name, compare(a.values(name), b.values(name)))
        for (a, b), label in zip(pairs, labels([a for a, _ in pairs]), strict=True)
        for name in FIGURES
        if a.values(name) and b.values(name)
    ]
    # Figures that are equal in every repetition need no test, and do not count among the tests.
    corrected = iter(holm([each.p for _, _, each in found if each.p is not None and each.is_tested]))
    rows = []
    for label, name, each in found:
        p = next(corrected) if each.p is not None and each.is_tested else each.p
        rows.append(Row(label, name, each, p, _verdict(name, each, p)))
    return rows


def _said(found: Sequence[Point]) -> str:
    return ", ".join(labels(found)) or "nothing"


def _verdict(name: str, found: Comparison, p: float | None) -> Verdict:
    if p is None:
        return "too few repetitions"
    if p >= ALPHA or (found.change is not None and abs(found.change) < CHANGE_MIN):
        return "no difference seen"
    better = figure_name(name).better
    if better == "neither":
        return "differs"
    return "better" if (found.second.value > found.first.value) == (better == "higher") else "worse"


def cells(row: Row) -> list[str]:
    """Return a row as words: point, figure, both medians, change, effect sizes, corrected p, verdict."""
    known, found = figure_name(row.name), row.found
    return [
        row.point,
        f"{known.title} {known.unit}".strip(),
        number(found.first.value),
        number(found.second.value),
        "–" if found.change is None else f"{100 * found.change:+.1f} %",
        f"{found.cliffs_delta:+.2f}",
        "–" if found.hedges_g is None else f"{found.hedges_g:+.2f}",
        "–" if row.p is None else f"{row.p:.3g}",
        row.verdict,
    ]


HEADER: Final = ("point", "figure", "A", "B", "change", "Cliff's δ", "Hedges' g", "p (Holm)", "verdict")


def comparison_page(first: Result, second: Result, rows: Sequence[Row]) -> str:
    """Return the comparison as a page of its own."""
    ordered = sorted(
        rows, key=lambda row: ("worse", "better", "differs").index(row.verdict) if row.verdict in TONES else 3
    )
    shown = []
    for row in ordered:
        said = [escape(cell) for cell in cells(row)]
        said[-1] = f'<b class="{TONES.get(row.verdict, "soft")}">{said[-1]}</b>'
        shown.append(said)
    charts = _charts(first, second)
    head = (
        f"<header><h1>{escape(first.run.scenario)}: A against B</h1>"
        '<button id="theme" type="button">light / dark</button></header>'
        + "".join(_side(label, result) for label, result in (("A", first), ("B", second)))
    )
    method = (
        f"<p class='note'>Welch's test with fewer than {RANKS_FROM} repetitions a side, Mann-Whitney's from there; all "
        f"p-values corrected together by Holm's method. A verdict needs p &lt; {ALPHA:g} and a change of at least "
        f"{100 * CHANGE_MIN:g} %. Cliff's δ: +1 when every B is above every A.</p>"
    )
    sections = [head, "<h2>Figures</h2>", method, table(HEADER, shown), "<h2>Side by side</h2>", chart_cards(charts)]
    return page(f"{first.run.scenario}: A against B", sections, charts)


def _side(label: str, result: Result) -> str:
    run = result.run
    partial = f", partial: {result.why_partial}" if result.is_partial else ""
    words = f"{run.scenario}, {run.started_at}, commit {run.versions.git_commit or 'unknown'}{partial}"
    return f"<p><b>{label}</b> {escape(words)}</p>"


def _charts(first: Result, second: Result) -> list[Chart]:
    sides = [("A", points(first.cases, figures(first))), ("B", points(second.cases, figures(second)))]
    found = []
    for name in CHARTS:
        series = [
            from_intervals(label, values)
            for label, side in sides
            if (values := against(side, lambda point: float(point.nodes), name))
        ]
        known = figure_name(name)
        if len(series) == 2:
            found.append(Chart(name=name, title=known.title, x_label="nodes", y_label=known.unit, series=series))
    return found
