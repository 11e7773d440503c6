"""Figures from known samples are the known figures; detection matches by hand-counted cases."""

from pathlib import Path

import pytest

from loadtest.measure.detection import GRACE_S, detection
from loadtest.measure.energy import PROFILES, energy_j
from loadtest.measure.figures import figures, gained, recoveries_s
from loadtest.results.figure_names import FIGURES, figure_name
from loadtest.results.reader import Result
from loadtest.results.records import Commit, Event, EventKind, LinkSample, NodeSample
from loadtest.results.writer import ResultWriter
from tests.loadtest.synthetic import RUN, Clock, write_result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    directory = tmp_path_factory.mktemp("synthetic")
    write_result(directory, (4, 8), 1)
    return Result(directory)


def test_the_figures_of_a_known_run(result: Result) -> None:
    found = figures(result)
    first = found[0]
    assert first["start_s"] == 0.04
    assert first["pss_mib_per_node"] == 12.0 and first["open_files_per_node"] == 40
    assert first["heights_per_s"] == pytest.approx(5.0)
    assert first["tx_per_s"] == pytest.approx(50.0)
    assert first["cpu_share_per_node"] == pytest.approx(0.05)
    assert first["bytes_per_node_and_height"] == pytest.approx(2_000)
    assert first["syncs_per_node_and_height"] == pytest.approx(2)
    assert first["keys_per_s"] == pytest.approx(31 * 20 / 30, rel=1e-3)
    assert first["key_ms_p50"] == pytest.approx(4.0, rel=0.15)
    assert found[1]["key_ms_p50"] == pytest.approx(2 * 8**0.5, rel=0.15)
    assert first["key_requests"] == first["commit_samples"] == 31 * 20
    assert first["requests_failed"] == 1
    assert first["recovery_s_max"] == pytest.approx(2.0)
    assert set().union(*found.values()) <= set(FIGURES)


def test_the_papers_formulas(result: Result) -> None:
    first = figures(result)[0]
    assert (first["attacks"], first["attacks_detected"], first["false_alarms"]) == (1, 1, 0)
    assert first["detection_rate"] == 1.0  # (20)
    # 4 links of 30 blocks; the attacked one is not legitimate from the step into second 10 to that out of 15 + grace
    untouched = 30 - len([s for s in range(30) if s + 1 >= 10 and s <= 15 + GRACE_S])
    assert first["legitimate_events"] == 3 * 30 + untouched
    assert first["false_alarm_rate"] == 0.0  # (21)
    throughput = first["throughput_mbit_per_s"]
    assert throughput == pytest.approx(4 * 10_000 * 8 / 1e6)  # (22)
    mean_ms = result.histogram(case=0).mean_ms
    assert first["latency_ms_mean"] == pytest.approx(mean_ms)  # (23)
    power_w = 4 * energy_j(PROFILES["server"], 0.05, 10_000, 10_000)
    assert first["power_w"] == pytest.approx(power_w) and power_w == pytest.approx(4 * (0.25 + 1e-4))
    assert first["energy_efficiency_mbit_per_s_per_w"] == pytest.approx((throughput or 0) / power_w)  # (24)


def test_what_the_run_recorded_stands(tmp_path: Path) -> None:
    write_result(tmp_path, (4,), 1)
    line = '{"case":0,"values":{"tx_per_s":7.5,"key_ms_p50":null,"own_figure":1}}\n'
    with (tmp_path / "figures.jsonl").open("a") as file:
        file.write(line)
    found = figures(Result(tmp_path))[0]
    assert found["tx_per_s"] == 7.5 and found["own_figure"] == 1 and (found["key_ms_p50"] or 0) > 0
    assert figure_name("own_figure").better == "neither"


def node(time_s: float, cpu_s: float | None) -> NodeSample:
    return NodeSample(time_s=time_s, case=0, node_id="n", cpu_s=cpu_s)


def test_a_restart_does_not_make_a_counter_negative() -> None:
    samples = [node(0, 5.0), node(1, 6.0), node(2, None), node(3, 0.5), node(4, 1.0)]
    assert gained(samples, lambda s: s.cpu_s) == (pytest.approx(1 + 0.5 + 0.5), 4)
    assert gained(samples[:1], lambda s: s.cpu_s) is None


def event(time_s: float, kind: EventKind, subject: str = "l") -> Event:
    return Event(time_s=time_s, case=0, kind=kind, subject=subject)


@pytest.mark.parametrize("interval_s", [1.0, 7.0, 40.0])
def test_nodes_that_are_seldom_seen_tell_their_bytes_per_height(tmp_path: Path, interval_s: float) -> None:
    """Each node sends 300 bytes per height; it is seen just before the load, at its end, and in its turns."""
    clock = Clock()
    writer = ResultWriter(tmp_path, RUN, monotonic=clock)
    case = writer.begin_case(3, 0, 0)

    def look(number: int) -> NodeSample:
        height = int(writer.now_s())
        sent = 50_000 + 300 * height if height > 10 else 1_000 * height  # links at work send more
        return NodeSample(
            time_s=writer.now_s(), case=case, node_id=f"n{number}", height=height, bytes_sent=sent, disk_syncs=height
        )

    due_s = [interval_s * number / 3 for number in range(3)]
    for second in range(46):
        clock.now_s = 100.0 + second
        if second in (0, 5, 12, 40):
            if second in (12, 40):
                writer.nodes(look(number) for number in range(3))
            clock.now_s += 0.01
            writer.phase(case, {0: "start", 5: "warm-up", 12: "load", 40: "saturate"}[second])
        for number in range(3):
            if second >= due_s[number]:
                due_s[number] += interval_s
                writer.nodes([look(number)])
        writer.commits([Commit(time_s=writer.now_s(), case=case, height=second, transactions=1)])
    writer.end_case(case)
    writer.finish()
    found = figures(Result(tmp_path))[0]
    assert found["heights_per_s"] == pytest.approx(1, rel=0.05)
    assert found["bytes_per_node_and_height"] == pytest.approx(300, rel=0.05)
    assert found["syncs_per_node_and_height"] == pytest.approx(1)


def link(time_s: float, blocks: int, alarmed: bool = False) -> LinkSample:
    return LinkSample(time_s=time_s, case=0, link_id="l", blocks=blocks, aborts=0, alarmed=alarmed)


def test_an_alarm_belongs_to_an_attack_on_its_subject_only() -> None:
    events = [
        event(10, "attack"),
        event(11, "alarm", "other"),
        event(12, "alarm"),
        event(13, "alarm"),
        event(20, "attack_end"),
        event(20 + GRACE_S + 1, "alarm"),
        event(50, "attack", "quiet"),
    ]
    found = detection(events, [], 60.0)
    assert [(a.subject, a.detected_s, a.ended_s) for a in found.attacks] == [("l", 2, 20), ("quiet", None, 60)]
    assert found.false_alarms == 2 and found.detection_rate == 0.5
    assert found.legitimate_events == 0 and found.false_alarm_rate is None
    assert detection([], [], 0).detection_rate is None


def test_alarms_are_read_from_links_where_none_were_noted() -> None:
    links = [link(t, t, alarmed=t in (12, 13, 40)) for t in range(50)]
    found = detection([event(10, "attack"), event(14, "attack_end")], links, 50.0)
    assert found.detected == 1 and found.false_alarms == 1
    touched = [t for t in range(49) if t + 1 >= 10 and t <= 14 + GRACE_S]
    assert found.legitimate_events == 49 - len(touched)


def test_recovery_counts_from_the_healing_if_there_is_one() -> None:
    events = [event(1, "fault"), event(5, "heal"), event(7, "recovered"), event(8, "recovered"), event(9, "fault")]
    assert recoveries_s(events) == [2]
