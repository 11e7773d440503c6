"""A result reads back as it was written, also when the harness died; and nothing foreign reads at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.measure.histograms import BOOK_KEYS_MAX, LatencyBook, LatencyHistogram
from loadtest.results.reader import Result
from loadtest.results.records import Commit, LinkSample, NodeSample, Overhead, Run, Topology, TopologyLink, TopologyNode
from loadtest.results.surroundings import machine, versions
from loadtest.results.writer import ResultError, ResultWriter, new_directory

MS = 1_000_000


def a_run(**more: object) -> Run:
    known = {"run_id": "r", "scenario": "smoke", "started_at": "2026-11-22T05:00:00+00:00"}
    return Run(**(known | {"versions": versions(), "machine": machine()} | more))  # type: ignore[arg-type]


def write(directory: Path, **more: object) -> ResultWriter:
    writer = ResultWriter(directory, a_run(**more))
    case = writer.begin_case(4, 0, 7, {"rate_per_s": 50.0, "profile": "lab"})
    writer.phase(case, "start")
    writer.phase(case, "measure")
    writer.event(case, "attack", "link-1-2", attack="intercept_resend", intensity=0.5)
    writer.nodes([NodeSample(time_s=1.5, case=case, node_id="node-1", cpu_s=0.25, pss_mib=12.5, height=9)])
    writer.links([LinkSample(time_s=1.5, case=case, link_id="link-1-2", qber=0.021, alarmed=True)])
    writer.commits([Commit(time_s=1.6, case=case, height=9, transactions=3)])
    book = LatencyBook()
    for wait_ms in (1, 2, 3):
        book.of("key", "measure").record_ns(10 * MS, (10 + wait_ms) * MS)
    book.of("key", "measure").record_failure()
    writer.latencies(case, book)
    writer.figures(case, {"start_s": 1.0, "tx_per_s": None})
    writer.figures(case, {"tx_per_s": 12.0})
    nodes = [TopologyNode(node_id="node-1", x=0.0, y=1.0), TopologyNode(node_id="node-2")]
    writer.topology(Topology(case=case, nodes=nodes, links=[TopologyLink(link_id="l", first="a", second="b")]))
    writer.check("nothing lost", True, 0, "0 records", case=case)
    return writer


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    with write(tmp_path / "run", scenario_document={"nodes": [4], "faults": {"kill": 1}}) as writer:
        writer.end_case(0)
    result = Result(tmp_path / "run")
    assert result.run.status == "complete" and not result.is_partial and result.why_partial is None
    assert result.run.scenario_document == {"nodes": [4], "faults": {"kill": 1}}
    (case,) = result.cases
    assert (case.nodes, case.seed, case.status) == (4, 7, "complete")
    assert case.parameters == {"rate_per_s": 50.0, "profile": "lab"}
    assert [phase.name for phase in result.run.phases] == ["start", "measure"]
    assert all(phase.ended_s is not None for phase in result.run.phases)
    (sample,) = result.nodes
    assert (sample.node_id, sample.cpu_s, sample.pss_mib, sample.height, sample.rss_mib) == (
        "node-1",
        0.25,
        12.5,
        9,
        None,
    )
    assert result.links[0].alarmed is True and result.links[0].qber == 0.021
    assert result.commits[0].height == 9
    assert [event.kind for event in result.events] == ["phase", "phase", "attack"]
    assert result.events[2].detail == {"attack": "intercept_resend", "intensity": 0.5}
    assert result.figures == {0: {"start_s": 1.0, "tx_per_s": 12.0}}
    assert result.topologies[0].nodes[1].x is None
    histogram = result.histogram(kind="key")
    assert (histogram.count, histogram.failures) == (3, 1)
    assert histogram.percentile_ms(50) == pytest.approx(2.0, rel=1e-3)
    assert result.histogram(kind="commit").count == 0
    assert result.warnings == []


@pytest.mark.parametrize(("error", "why"), [(ValueError("no fleet"), "no fleet"), (KeyboardInterrupt(), "interrupted")])
def test_an_exception_leaves_a_partial_result_with_its_reason(tmp_path: Path, error: BaseException, why: str) -> None:
    with pytest.raises(type(error)), write(tmp_path / "run"):
        raise error
    result = Result(tmp_path / "run")
    assert result.run.status == "partial" and why in (result.why_partial or "")
    assert result.cases[0].status == "failed" and len(result.nodes) == 1


def test_a_killed_harness_leaves_what_it_wrote(tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_results import write
writer = write(Path({str(tmp_path / "run")!r}))
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()
    result = Result(tmp_path / "run")
    assert result.is_partial and "killed" in (result.why_partial or "")
    assert len(result.nodes) == len(result.links) == len(result.commits) == 1
    assert result.histogram(kind="key").count == 3


@pytest.mark.parametrize("table", ["nodes.csv", "events.jsonl", "latency.jsonl"])
def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path, table: str) -> None:
    write(tmp_path).finish()
    path = tmp_path / table
    whole = path.read_bytes()
    for cut in range(1, 12):
        path.write_bytes(whole + whole[-20 : -cut - 1] if table == "nodes.csv" else whole + b'{"case'[:cut])
        result = Result(tmp_path)
        rows = {
            "nodes.csv": lambda r: r.nodes,
            "events.jsonl": lambda r: r.events,
            "latency.jsonl": lambda r: r.latencies,
        }
        assert len(rows[table](result)) == whole.count(b"\n") - (table == "nodes.csv")
        assert result.warnings and table in result.warnings[0]


def test_foreign_and_broken_files_say_where(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"run\.json is missing"):
        Result(tmp_path)
    write(tmp_path / "run").finish()
    run = tmp_path / "run" / "run.json"
    document = json.loads(run.read_text())

    def refused(change: dict[str, object], match: str) -> None:
        run.write_text(json.dumps(document | change))
        with pytest.raises(ResultError, match=match):
            Result(tmp_path / "run")

    refused({"format": "x"}, "not the result of a load test")
    refused({"format_version": 2}, "version 2")
    refused({"colour": "red"}, "colour")
    refused({"cases": [document["cases"][0] | {"nodes": "four"}]}, r"\$\.cases\[0\]\.nodes")
    run.write_text("{")
    with pytest.raises(ResultError, match="not JSON"):
        Result(tmp_path / "run")


@pytest.mark.parametrize(
    ("table", "line", "match"),
    [
        ("nodes.csv", "x,0,node-1" + "," * 20, "line 3"),
        ("nodes.csv", "1.0,0", "line 3"),
        ("events.jsonl", '{"time_s": 1, "case": 0, "kind": "party", "subject": "x"}', "line 4"),
        ("figures.jsonl", "[]", "line 3"),
    ],
)
def test_a_broken_line_says_which(tmp_path: Path, table: str, line: str, match: str) -> None:
    write(tmp_path).finish()
    with (tmp_path / table).open("a") as file:
        file.write(line + "\n")
    result = Result(tmp_path)
    with pytest.raises(ResultError, match=match):
        _ = (result.nodes, result.events, result.figures)


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path).finish()
    path = tmp_path / "nodes.csv"
    path.write_text(path.read_text().replace("cpu_s", "cpu_seconds"))
    with pytest.raises(ResultError, match="cpu_seconds"):
        _ = Result(tmp_path).nodes


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "run").finish()
    with pytest.raises(ResultError, match="not empty"):
        ResultWriter(tmp_path / "run", a_run())
    assert new_directory(tmp_path, "run").parent == tmp_path
    taken = new_directory(tmp_path, "smoke")
    taken.mkdir()
    assert not new_directory(tmp_path, "smoke").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResultError, match="give another directory"):
        ResultWriter(tmp_path / "run", a_run())


def test_what_is_past_the_bound_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.results.writer.ROWS_MAX", 2)
    with ResultWriter(tmp_path / "run", a_run()) as writer:
        case = writer.begin_case(1, 0, 0)
        writer.commits(Commit(time_s=0.0, case=case, height=h, transactions=0) for h in range(5))
        writer.end_case(case)
    result = Result(tmp_path / "run")
    assert len(result.commits) == 2 and any("3 more" in note for note in result.run.notes)


optional_int = st.none() | st.integers(0, 2**53)
node_samples = st.builds(
    NodeSample,
    time_s=st.floats(0, 1e6),
    case=st.integers(0, 999),
    node_id=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20),
    cpu_s=st.none() | st.floats(0, 1e6),
    height=optional_int,
    bytes_sent=optional_int,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.lists(node_samples, max_size=5))
def test_any_sample_survives_the_table(tmp_path_factory: pytest.TempPathFactory, samples: list[NodeSample]) -> None:
    directory = tmp_path_factory.mktemp("r")
    with ResultWriter(directory, a_run()) as writer:
        writer.nodes(samples)
    back = Result(directory).nodes
    assert [(s.node_id, s.height, s.bytes_sent, s.case) for s in back] == [
        (s.node_id, s.height, s.bytes_sent, s.case) for s in samples
    ]
    for read, written in zip(back, samples, strict=True):
        assert read.time_s == pytest.approx(written.time_s, rel=1e-9)
        assert (read.cpu_s is None) == (written.cpu_s is None)


@settings(max_examples=15, deadline=None)
@given(waits_us=st.lists(st.integers(1, 10**8), min_size=1, max_size=200), percent=st.floats(1, 100))
def test_percentiles_agree_with_sorting(waits_us: list[int], percent: float) -> None:
    histogram = LatencyHistogram()
    for wait_us in waits_us:
        histogram.record_ns(5, 5 + wait_us * 1_000)
    ordered = sorted(waits_us)
    rank = max(1, int(percent / 100 * len(ordered) + 0.5))
    assert histogram.percentile_ms(percent) == pytest.approx(ordered[rank - 1] / 1e3, rel=2e-3)
    assert histogram.mean_ms == pytest.approx(sum(waits_us) / len(waits_us) / 1e3, rel=2e-3)
    again = LatencyHistogram.decode(histogram.encode())
    assert again.counts() == histogram.counts()
    again.merge(histogram)
    assert again.counts() == [(wait_ms, 2 * count) for wait_ms, count in histogram.counts()]


def test_a_stalled_server_is_seen_by_everyone_who_was_due() -> None:
    """No coordinated omission: one stall of a second under 100 requests a second delays a hundred of them."""
    histogram, free_ns = LatencyHistogram(), 0
    for number in range(1_000):
        due_ns = number * 10 * MS
        started_ns = max(due_ns, free_ns)
        free_ns = started_ns + (1_000 * MS if number == 100 else MS)
        histogram.record_ns(due_ns, free_ns)
    assert histogram.percentile_ms(50) == pytest.approx(1.0, rel=0.01)
    assert (histogram.percentile_ms(95) or 0) > 500


def test_waits_out_of_range_are_counted_at_its_ends() -> None:
    histogram = LatencyHistogram()
    histogram.record_ns(1_000, 0)
    histogram.record_ns(0, 2 * 3_600 * 10**9)
    assert histogram.count == 2 and histogram.saturated == 1
    assert histogram.maximum_ms == pytest.approx(3.6e6, rel=1e-3)


def test_a_book_refuses_unbounded_names() -> None:
    book = LatencyBook()
    book._histograms = dict.fromkeys(((str(n), "", "") for n in range(BOOK_KEYS_MAX)), LatencyHistogram())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unbounded"):
        book.of("one", "more")


@pytest.mark.parametrize("text", ["", "x", "HISTFAAA", "H" * 100])
def test_a_broken_histogram_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="HDR"):
        LatencyHistogram.decode(text)


def test_surroundings_name_the_machine_but_not_its_host() -> None:
    here = machine()
    assert here.cores >= 1 and here.memory_mib > 100 and here.cpu_model
    assert versions().python.count(".") == 2


def test_the_cost_of_measuring_adds_up(tmp_path: Path) -> None:
    with ResultWriter(tmp_path / "run", a_run()) as writer:
        writer.overhead(Overhead(cpu_share=0.01, samples=100, seconds=10.0, interval_s_mean=1.0))
        writer.overhead(Overhead(cpu_share=0.02, samples=300, seconds=30.0, interval_s_mean=3.0))
    found = Result(tmp_path / "run").run.overhead
    assert found == Overhead(cpu_share=0.0175, samples=400, seconds=40.0, interval_s_mean=2.5)
