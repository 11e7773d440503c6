"""`python -m loadtest report DIR`: from a result to one page and PNG figures. Decides their order and their words."""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from loadtest.measure.figures import detection_of, figures, recoveries_s
from loadtest.measure.growth import growth, growth_allowed
from loadtest.report import contents
from loadtest.report.charts import Chart
from loadtest.report.page import chart_cards, number, page, table, tile
from loadtest.report.points import Point, labels, points
from loadtest.report.profiles import profile_tables
from loadtest.report.timelines import detailed_case, timelines
from loadtest.report.topology import picture
from loadtest.results.figure_names import figure_name
from loadtest.results.reader import Result
from loadtest.results.records import Case
from loadtest.statistics import Interval, exponent, proportion

FAILURES_SHOWN_MAX: Final = 50
FAILURE_CHARACTERS_MAX: Final = 160  # the whole text is in events.jsonl
TABLE: Final = (
    *("start_s", "pss_mib_per_node", "cpu_share_per_node", "heights_per_s", "tx_per_s", "commit_ms_p50"),
    *("commit_ms_p95", "commit_ms_p99", "keys_per_s", "key_ms_p50", "key_ms_p95", "bytes_per_node_and_height"),
    *("throughput_mbit_per_s", "latency_ms_mean", "energy_efficiency_mbit_per_s_per_w", "requests_failed"),
    *("recovery_s_p50", "recovery_s_max"),
)


class Report:
    """Everything that a report shows of one result. Raises ResultError when the result cannot be read."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.points = points(result.cases, figures(result))
        self.detail = detailed_case(result)
        self.overview: list[Chart] = [
            *contents.scaling(self.points),
            *contents.load(self.points),
            *contents.distributions(result, self.points),
        ]
        self.paper: list[Chart] = contents.paper(self.points)
        self.over_time: list[Chart] = timelines(result, self.detail) if self.detail else []

    @property
    def charts(self) -> list[Chart]:
        """Every chart of the page."""
        return [*self.overview, *self.paper, *self.over_time]

    def html(self) -> str:
        """Return the page."""
        run = self.result.run
        sections = [_header(self.result), _tiles(self.result, self.points), _failed(self.result)]
        sections += ["<h2>Figures</h2>", _figures_table(self.points), _exponents(self.points)]
        if self.overview:
            sections += ["<h2>Latency, throughput, size</h2>", chart_cards(self.overview)]
        if self.detail is not None:
            sections += self._over_time(self.detail)
        if self.paper:
            sections += ["<h2>The paper's figures</h2>", _detections(self.result), chart_cards(self.paper)]
        sections += [profile_tables(self.result), _checks(self.result), _surroundings(self.result)]
        return page(f"{run.scenario}: load test of qnode", sections, self.charts)

    def _over_time(self, case: Case) -> list[str]:
        words = f"{case.nodes} nodes, repetition {case.repetition + 1}, seed {case.seed}"
        found = [f"<h2>One run over time</h2><p class='soft'>{escape(words)}; times count from its beginning.</p>"]
        found += [chart_cards(self.over_time), _recoveries(self.result, case), _growth(self.result)]
        drawing = picture(self.result, case)
        if drawing:
            found.append(f'<h2>The network</h2><div class="card">{drawing}</div>')
        return found


def write(report: Report, path: Path) -> None:
    """Write the page. Raises OSError."""
    path.write_text(report.html(), "utf-8")


def _header(result: Result) -> str:
    run = result.run
    tone, said = ("good", "complete") if not result.is_partial else ("warn", "partial")
    rows = [
        f'<header><h1>{escape(run.scenario)}</h1><span class="badge {tone}">{said}</span>',
        f'<span class="soft">load test of qnode {escape(run.versions.qnode)}, {escape(run.started_at)}</span>',
        '<button id="theme" type="button">light / dark</button></header>',
        "<p class='soft'>Every node is a real process with its own sockets, disk and identity. Drag over a chart to "
        "zoom in, double-click to see all of it again.</p>",
    ]
    if result.is_partial:
        rows.append(
            f'<p class="card warn">This result is partial: {escape(result.why_partial or "")}. '
            "What is shown is what was recorded until then.</p>"
        )
    return "".join(rows)


def _tiles(result: Result, found: Sequence[Point]) -> str:
    passed = sum(check.passed for check in result.run.checks)
    total = len(result.run.checks)
    shown = [tile(f"{passed} of {total}", "checks passed", "good" if passed == total else "bad")] if total else []
    if not found:
        return f'<div class="tiles">{"".join(shown)}</div>'
    largest = found[-1]
    shown.append(tile(number(largest.nodes), "nodes at most"))
    for name in ("start_s", "pss_mib_per_node", "tx_per_s", "commit_ms_p95", "key_ms_p95", "detection_rate"):
        if interval := largest.interval(name):
            known = figure_name(name)
            shown.append(tile(f"{number(interval.value)} {known.unit}".strip(), known.title))
    return f'<div class="tiles">{"".join(shown)}</div><p class="note">Figures of {escape(labels(found)[-1])}.</p>'


def _failed(result: Result) -> str:
    items = [
        f"check {check.name}: found {check.found}, asked {check.limit}. {check.message}"
        for check in result.run.checks
        if not check.passed
    ]
    items += [
        f"case {case.case} ({case.nodes} nodes): {case.reason}" for case in result.cases if case.status == "failed"
    ]
    failures = Counter(
        f"{event.subject}: {_detail(event.detail)}"[:FAILURE_CHARACTERS_MAX]
        for event in result.events
        if event.kind == "failure"
    )
    items += [f"{count} × {said}" for said, count in failures.most_common()]
    items += [*result.run.notes, *result.warnings]
    if not items:
        return '<h2>What failed</h2><p class="good">Nothing: every check passed, and no case broke off.</p>'
    more = f"<li>… and {len(items) - FAILURES_SHOWN_MAX} more</li>" if len(items) > FAILURES_SHOWN_MAX else ""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items[:FAILURES_SHOWN_MAX])
    verdict = ""
    if result.run.checks and all(check.passed for check in result.run.checks):
        verdict = '<p class="good">Every check passed; below are requests and nodes that failed, and notes.</p>'
    return f'<h2>What failed, and notes</h2>{verdict}<div class="card"><ul>{lines}{more}</ul></div>'


def _detail(detail: dict[str, object] | dict[str, bool | int | float | str | None]) -> str:
    return ", ".join(str(value) if name == "reason" else f"{name} {value}" for name, value in detail.items())


def _figures_table(found: Sequence[Point]) -> str:
    names = [name for name in TABLE if any(point.values(name) for point in found)]
    if not names:
        return "<p class='soft'>No case was measured.</p>"
    rows = [
        [
            f"<b>{escape(figure_name(name).title)}</b>" + (f" <small>{escape(figure_name(name).unit)}</small>"),
            *(_interval(point.interval(name)) for point in found),
        ]
        for name in names
    ]
    caption = "Medians over repetitions; in small print the bootstrap interval of 95 %."
    return table(["", *(escape(label) for label in labels(found))], rows, caption)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    said, low, high = number(interval.value), number(interval.low), number(interval.high)
    if interval.low is None or low == said == high:
        return said
    return f"{said}<br><small>{low} … {high}</small>"


def _exponents(found: Sequence[Point]) -> str:
    rows = []
    for name in TABLE:
        pairs = [(float(point.nodes), value) for point in found for value in point.values(name)]
        fit = exponent([n for n, _ in pairs], [v for _, v in pairs]) if pairs else None
        if fit is not None:
            robust = f"{fit.exponent:.2f} <small>{fit.low:.2f} … {fit.high:.2f}</small>"
            line = f"{fit.least_squares:.2f} <small>{fit.least_squares_low:.2f} … {fit.least_squares_high:.2f}</small>"
            rows.append([escape(figure_name(name).title), robust, line, f"{fit.r_squared:.3f}", str(fit.sizes)])
    if not rows:
        return ""
    caption = "How each figure grows with the number of nodes n: ∝ n^exponent, with intervals of 95 %."
    return "<h2>Scaling</h2>" + table(["figure", "exponent (Theil-Sen)", "least squares", "R²", "sizes"], rows, caption)


def _detections(result: Result) -> str:
    """The rates over all cases together, and what was detected how soon, by kind of attack."""
    outcomes = [detection_of(result, case) for case in result.cases]
    attacks = [attack for outcome in outcomes for attack in outcome.attacks]
    rows = []
    for kind in sorted({attack.kind for attack in attacks}):
        of_kind = [attack for attack in attacks if attack.kind == kind]
        waits_s = sorted(attack.detected_s for attack in of_kind if attack.detected_s is not None)
        rate = proportion(len(waits_s), len(of_kind))
        wait = f"{waits_s[len(waits_s) // 2]:.1f} s" if waits_s else "–"
        rows.append([escape(kind), f"{len(waits_s)} of {len(of_kind)}", _interval(rate), wait])
    legitimate = sum(outcome.legitimate_events for outcome in outcomes)
    false_alarms = sum(outcome.false_alarms for outcome in outcomes)
    if legitimate:
        rate = proportion(min(false_alarms, legitimate), legitimate)
        rows.append(["false alarms", f"{false_alarms} of {legitimate:,}", _interval(rate), ""])
    if not rows:
        return ""
    caption = "All cases together, with Wilson's intervals of 95 %; the time is the median until the first alarm."
    return table(["attack", "detected", "rate", "after"], rows, caption) + "<p></p>"


def _recoveries(result: Result, case: Case) -> str:
    waits_s = recoveries_s([event for event in result.events if event.case == case.case])
    if not waits_s:
        return ""
    words = ", ".join(f"{wait:.1f} s" for wait in sorted(waits_s)[-20:])
    return f'<p class="note">Recovery after faults, the longest last: {words}.</p>'


def _growth(result: Result) -> str:
    rows = []
    for case in result.cases:
        for name, each in growth(result, case).items():
            tone, said = ("bad", "grows") if each.grows_beyond(growth_allowed(name)) else ("good", "steady")
            slope = f"{each.slope_per_hour:+.3g} <small>{each.low_per_hour:+.3g} … {each.high_per_hour:+.3g}</small>"
            where = f"{case.nodes} nodes, repetition {case.repetition + 1}: {name}"
            over = f"{100 * each.growth:+.2f} %"
            rows.append([escape(where), slope, over, f"{each.p:.2g}", f'<b class="{tone}">{said}</b>'])
    if not rows:
        return ""
    caption = (
        "Growth is significant at 1 % by the Mann-Kendall test and a Newey-West slope, and above 1 % of the level "
        "(10 % of a latency, of which other work on the machine is a part)."
    )
    header = ["", "per hour", "over the run", "p", ""]
    return "<h2>Growth over time</h2>" + table(header, rows, caption)


def _checks(result: Result) -> str:
    rows = []
    for check in result.run.checks:
        tone, said = ("good", "passed") if check.passed else ("bad", "failed")
        where = "" if check.case is None else f" (case {check.case})"
        rows.append(
            [
                f'<b class="{tone}">{said}</b>',
                escape(check.name + where),
                escape(str(check.found)),
                escape(check.limit),
                escape(check.message),
            ]
        )
    return "<h2>Checks</h2>" + table(["", "check", "found", "asked", ""], rows, words=True) if rows else ""


def _surroundings(result: Result) -> str:
    run = result.run
    overhead = "not recorded"
    if run.overhead is not None:
        share, interval_s = 100 * run.overhead.cpu_share, run.overhead.interval_s_mean
        overhead = f"{share:.2f} % of one core, each node seen every {interval_s:.1f} s, {run.overhead.samples:,} looks"
    energy = f"{run.energy.name}: {run.energy.source}" if run.energy else "server (default)"
    rows = [
        ("machine", f"{run.machine.cores} cores, {run.machine.memory_mib:,} MiB, {run.machine.cpu_model}"),
        ("system", f"{run.machine.kernel}, {run.machine.platform}, Python {run.versions.python}"),
        ("commit", run.versions.git_commit or "not from a checkout"),
        ("command", " ".join(run.command) or "not recorded"),
        ("seeds", ", ".join(sorted({str(case.seed) for case in run.cases}))),
        ("duration", f"{number(run.duration_s)} s" if run.duration_s is not None else "not ended"),
        ("cost of measuring", overhead),
        ("energy model", energy),
        ("libraries", ", ".join(f"{name} {version}" for name, version in run.versions.libraries.items())),
    ]
    details = {"scenario": run.scenario_document, "overrides": run.overrides}
    shown = json.dumps(msgspec.to_builtins(details), indent=2, ensure_ascii=False)
    return (
        "<h2>How it was measured</h2>"
        + table(["", ""], [(escape(name), escape(text)) for name, text in rows], words=True)
        + f"<p></p><details class='card'><summary>Parameters</summary><pre>{escape(shown)}</pre></details>"
    )
