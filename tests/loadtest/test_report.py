"""The page shows what the result says, whole or partial, escapes what it is given, and loads nothing."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from loadtest.__main__ import main
from loadtest.measure.figures import figures
from loadtest.report.comparison import compare_results
from loadtest.report.png import draw
from loadtest.report.points import labels, points, varying
from loadtest.report.report import Report
from loadtest.results import thinning
from loadtest.results.reader import Result
from loadtest.results.records import Profile
from loadtest.results.thinning import ROWS_KEPT, write_thinned
from loadtest.results.writer import ResultError, ResultWriter
from tests.loadtest.synthetic import RUN, Clock, write_result

VOID = {"meta", "line", "circle", "br", "link", "img", "input"}


class Outline(HTMLParser):
    """Checks that elements nest, and keeps what matters."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href"):
                self.sources.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    directory = tmp_path_factory.mktemp("whole")
    write_result(directory, (4, 8, 16), 2)
    return Result(directory)


def test_the_page_is_whole_and_needs_no_network(result: Result) -> None:
    report = Report(result)
    page = report.html()
    found = outline(page)
    names = [chart.name for chart in report.charts]
    assert len(set(names)) == len(names)
    assert {f"chart-{name}" for name in names} <= set(found.ids) and len(found.ids) == len(set(found.ids))
    assert found.sources == [] and "default-src 'none'" in page
    assert not re.search(r"(?i)(url\(|@import|fetch\(|XMLHttpRequest|<link|<iframe)", page)
    assert len(page) < 300_000
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert data is not None and [chart["name"] for chart in json.loads(data[1])] == names
    words = " ".join(found.words)
    for said in (
        "complete",
        "all nodes up",
        "Scaling",
        "exponent",
        "intercept_resend",
        "QBER",
        "a processor",
        "0123456789abcdef",
    ):
        assert said in words


def test_it_has_what_a_reader_looks_for(result: Result) -> None:
    names = {chart.name for chart in Report(result).charts}
    assert {"latency-nodes", "throughput-nodes", "memory-nodes", "start-nodes", "distribution"} <= names
    assert {"paper-6", "paper-7", "paper-8", "paper-9"} <= names
    assert {"commits-time", "memory-time", "qber-time"} <= names


def test_charts_show_the_results_own_numbers(result: Result) -> None:
    by_name = {chart.name: chart for chart in Report(result).charts}
    known = figures(result)
    latency = next(one for one in by_name["latency-nodes"].series if one.label == "key request, median")
    assert latency.x == [4, 8, 16]
    both = [known[0]["key_ms_p50"] or 0, known[1]["key_ms_p50"] or 0]
    assert latency.y[0] == pytest.approx(sum(both) / 2)
    throughput = by_name["paper-7"].series[0]
    assert throughput.y == pytest.approx([known[case]["throughput_mbit_per_s"] for case in range(6)])
    marks = by_name["commits-time"].marks
    assert [(mark.kind, mark.label) for mark in marks] == [
        ("attack", "intercept_resend on link-1-2"),
        ("alarm", "alarm link-1-2"),
        ("fault", "kill node-16"),
    ]
    assert marks[2].end - marks[2].start == pytest.approx(2)
    heights = by_name["commits-time"].series[0]
    assert heights.y and all(value == pytest.approx(5) for value in heights.y)
    for chart in by_name.values():
        for one in chart.series:
            assert len(one.x) == len(one.y) <= 400
            assert one.x == sorted(one.x)


def test_latency_against_load_where_a_rate_varies(tmp_path: Path) -> None:
    write_result(tmp_path / "a", (4,), 1)
    run = tmp_path / "a" / "run.json"
    document = json.loads(run.read_text())
    cases = [document["cases"][0] | {"case": n, "parameters": {"rate_per_s": 10 * 4**n, "kind": "x"}} for n in range(3)]
    run.write_text(json.dumps(document | {"cases": cases}))
    with (tmp_path / "a" / "figures.jsonl").open("a") as file:
        for n in range(3):
            file.write(json.dumps({"case": n, "values": {"key_ms_p50": 1.0 + n, "tx_per_s": 5.0}}) + "\n")
    result = Result(tmp_path / "a")
    found = points(result.cases, figures(result))
    assert varying(found) == "rate_per_s" and labels(found)[0] == "4 nodes, rate_per_s 10"
    chart = next(chart for chart in Report(result).charts if chart.name == "latency-load")
    line = next(one for one in chart.series if one.label == "key request, median")
    assert (line.x, line.y) == ([10, 40, 160], [1, 2, 3])


def test_a_partial_result_says_so_and_shows_what_there_is(tmp_path: Path) -> None:
    write_result(tmp_path, (4,), 1, finish=False)
    page = Report(Result(tmp_path)).html()
    words = " ".join(outline(page).words)
    assert "This result is partial" in words and "killed" in words and "key request, median" in words


def test_a_result_of_nothing_at_all_has_a_page(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ResultWriter(tmp_path, RUN, Clock()):
        _ = 1 / 0
    report = Report(Result(tmp_path))
    assert report.charts == []
    assert "ZeroDivisionError" in " ".join(outline(report.html()).words)


def test_nothing_of_a_result_becomes_markup(tmp_path: Path) -> None:
    evil = '</script><script>document.title="x"</script><b>"&'
    run = msgspec.structs.replace(
        RUN, scenario=evil, command=[evil], scenario_document={evil: evil}, overrides={evil: 1}
    )
    clock = Clock()
    with ResultWriter(tmp_path, run, clock) as writer:
        case = writer.begin_case(4, 0, 0, {evil: evil})
        writer.phase(case, evil)
        writer.event(case, "attack", evil, attack=evil)
        clock.now_s += 1
        writer.event(case, "failure", evil, reason=evil)
        writer.check(evil, False, evil, evil, evil)
        writer.note(evil)
        writer.end_case(case, evil)
    page = Report(Result(tmp_path)).html()
    outline(page)
    assert "<script>document" not in page and '<b>"' not in page
    assert page.count("<script") == page.count("</script>") == 3


def test_failures_come_before_the_figures(tmp_path: Path) -> None:
    write_result(tmp_path, (4,), 1, slow=3.0)
    page = Report(Result(tmp_path)).html()
    assert page.index("check commit_ms_p95: found 240.0, asked at most 150 ms. too slow") < page.index("<h2>Figures")


def test_a_thinned_copy_says_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(tmp_path / "whole", (4, 8), 2)
    monkeypatch.setattr("loadtest.results.thinning.ROWS_KEPT", 200)
    whole = Result(tmp_path / "whole")
    write_thinned(whole, tmp_path / "small")
    small = Result(tmp_path / "small")
    assert ROWS_KEPT > 200 and len(small.nodes) < len(whole.nodes) and "thinned copy" in small.run.notes[-1]
    assert sum(row.transactions for row in small.commits) == sum(row.transactions for row in whole.commits)
    assert {row.case for row in small.commits} == {0, 1, 2, 3}
    before, after = figures(whole), figures(small)
    for case, values in before.items():
        assert after[case] == {
            name: pytest.approx(value, rel=1e-5) for name, value in values.items() if value is not None
        }
    assert set(small.topologies) == {0, 2}
    with pytest.raises(ResultError, match="never overwritten"):
        write_thinned(whole, tmp_path / "small")


def test_a_thinned_copy_keeps_what_is_large_in_the_profile_of_any_node_of_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thinning, "FUNCTIONS_KEPT", 2)
    shares = {"node-1": {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.1}, "node-2": {"a": 0.5, "b": 0.1, "c": 0.3, "d": 0.1}}
    rows = [
        Profile(
            case=0, phase="load", node_id=node, group="followers", cpu_s=1.0, function=name, own_share=s, total_share=s
        )
        for node, taken in shares.items()
        for name, s in taken.items()
    ]
    part = msgspec.structs.replace(rows[0], function="ledger", own_share=0.01, kind="room")
    assert thinning._largest([*rows, part]) == [*(row for row in rows if row.function != "d"), part]


def test_every_chart_can_be_drawn_as_a_file(result: Result, tmp_path: Path) -> None:
    for chart in Report(result).charts[:3]:
        draw(chart).savefig(tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def invoke(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(main, list(arguments))
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended.exit_code, ended.output


def test_the_report_command(tmp_path: Path) -> None:
    write_result(tmp_path / "run", (4,), 1)
    code, said = invoke("report", str(tmp_path / "run"))
    assert code == 0 and (tmp_path / "run" / "report.html").is_file() and "report.html" in said
    code, said = invoke(
        "report", str(tmp_path / "run"), "--into", str(tmp_path / "kept"), "--png", str(tmp_path / "png")
    )
    assert code == 0 and (tmp_path / "kept" / "report.html").is_file() and len(list((tmp_path / "png").iterdir())) > 5
    assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) < 1_000_000
    (tmp_path / "empty").mkdir()
    code, said = invoke("report", str(tmp_path / "empty"))
    assert code == 1 and "holds no result" in said
    code, said = invoke("report", str(tmp_path / "run"), "--out", str(tmp_path / "no" / "page.html"))
    assert code == 1 and "another path" in said


def test_comparison_finds_what_changed_and_nothing_else(tmp_path: Path) -> None:
    write_result(tmp_path / "a", (4, 8), 4, seconds=12)
    write_result(tmp_path / "b", (4, 8), 4, slow=1.5, seed=2, seconds=12)
    write_result(tmp_path / "c", (4, 8), 4, seed=3, seconds=12)
    slower = compare_results(Result(tmp_path / "a"), Result(tmp_path / "b"))
    verdicts = {(row.point, row.name): row.verdict for row in slower}
    assert verdicts["4 nodes", "key_ms_p50"] == verdicts["8 nodes", "commit_ms_p50"] == "worse"
    assert verdicts["4 nodes", "tx_per_s"] == "no difference seen"
    faster = compare_results(Result(tmp_path / "b"), Result(tmp_path / "a"))
    assert {row.verdict for row in faster if row.name == "key_ms_p50"} == {"better"}
    same = compare_results(Result(tmp_path / "a"), Result(tmp_path / "c"))
    assert not [row for row in same if row.verdict in ("better", "worse")]
    page = str(tmp_path / "page.html")
    code, said = invoke("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", page, "--fail-on-worse")
    assert code == 1 and "worse" in said and "key request, median ms" in said
    assert "A against B" in " ".join(outline(Path(page).read_text()).words)
    code, said = invoke("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    assert code == 0 and {row["verdict"] for row in json.loads(said)} >= {"worse"}


def test_results_of_other_sizes_do_not_compare(tmp_path: Path) -> None:
    write_result(tmp_path / "a", (4,), 1, seconds=2)
    write_result(tmp_path / "b", (8,), 1, seconds=2)
    code, said = invoke("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 1 and "no size and parameters in common: 4 nodes against 8 nodes" in said
    code, said = invoke("compare", str(tmp_path / "a"), str(tmp_path / "a"))
    assert code == 0 and "too few repetitions" in said


def test_tables_as_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra `parquet`)")
    write_result(tmp_path, (4,), 1, seconds=2)
    code, _ = invoke("report", str(tmp_path), "--parquet")
    assert code == 0
    table = parquet.read_table(tmp_path / "nodes.parquet")
    assert table.num_rows == len(Result(tmp_path).nodes) and table.column("pss_mib")[0].as_py() == 12.0


def test_a_missing_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write_result(tmp_path, (4,), 1, seconds=2)
    monkeypatch.setitem(sys.modules, "loadtest.report.report", None)
    code, said = invoke("report", str(tmp_path))
    assert code == 1 and "qnode[loadtest]" in said


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium: apt-get install chromium")
def test_a_browser_draws_every_chart(result: Result, tmp_path: Path) -> None:
    report = Report(result)
    page = tmp_path / "report.html"
    page.write_text(report.html(), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    ended = subprocess.run(
        [str(BROWSER), *flags, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    drawn = re.search(r'<html[^>]*data-charts="(\d+)"', ended.stdout)
    assert drawn is not None and int(drawn[1]) == len(report.charts), ended.stderr[-2000:]
    assert ended.stdout.count("<canvas") == len(report.charts)
