"""A leak at every node is seen; nodes of different size that are seen in turn are not one."""

import random
from pathlib import Path

import msgspec
import pytest

from loadtest.measure.growth import WATCHED, growth, growth_allowed, series_trend
from loadtest.measure.histograms import LatencyWindows
from loadtest.report.report import Report
from loadtest.results.reader import Result
from loadtest.results.records import NodeSample
from loadtest.results.writer import ResultWriter
from tests.loadtest.synthetic import RUN, Clock


def sample(time_s: float, node: int, mib: float) -> NodeSample:
    return NodeSample(time_s=time_s, case=0, node_id=f"node-{node}", pss_mib=mib, open_files=40)


def test_sizes_seen_in_turn_are_no_growth_and_a_leak_is() -> None:
    chance = random.Random(3)
    sizes = [10.0 + node for node in range(20)]
    # first the small nodes are looked at, later the large ones
    steady = [sample(t, n, sizes[n] + chance.gauss(0, 0.2)) for t in range(600) for n in [min(19, t // 30)]]
    found = series_trend(steady, lambda s: s.pss_mib)
    assert found is not None and not found.grows
    leaking = [sample(t, t % 20, sizes[t % 20] + t / 200 + chance.gauss(0, 0.2)) for t in range(600)]
    found = series_trend(leaking, lambda s: s.pss_mib)
    assert found is not None and found.grows and found.low_per_hour <= 18 <= found.high_per_hour
    assert series_trend([], lambda s: s.pss_mib) is None


def test_the_report_of_a_long_run_tells_growth(tmp_path: Path) -> None:
    clock = Clock()
    with ResultWriter(tmp_path, RUN, clock) as writer:
        case = writer.begin_case(1, 0, 0)
        writer.phase(case, "load")
        for second in range(0, 1200, 5):
            clock.now_s = 100.0 + second
            writer.nodes([sample(writer.now_s(), 1, 20 + second / 300 + (second % 7) / 50)])
        writer.end_case(case)
    result = Result(tmp_path)
    assert growth(result, result.cases[0])["memory (PSS), MiB"].grows
    page = Report(result).html()
    assert "Growth over time" in page and ">grows<" in page and ">steady<" in page


def test_latencies_that_creep_up_grow_and_steady_ones_do_not(tmp_path: Path) -> None:
    clock, chance = Clock(), random.Random(5)
    with ResultWriter(tmp_path, RUN, clock) as writer:
        case = writer.begin_case(1, 0, 0)
        windows = LatencyWindows(case, writer.now_s, writer.windows)
        for phase, seconds in (("warm-up", 60), ("load", 900)):
            writer.phase(case, phase)
            for second in range(seconds):
                clock.now_s += 1
                for kind, mean_ms in (("key", 5.0), ("commit", 20.0 + second / 50)):
                    took_ms = mean_ms * chance.uniform(0.8, 1.2)
                    windows.record_ns(kind, phase, 0, int(took_ms * 1e6))
        windows.close()
        writer.end_case(case)
    result = Result(tmp_path)
    assert sum(window.count for window in result.windows) == 2 * 960
    assert {window.phase for window in result.windows if window.time_s < 60} == {"warm-up"}
    found = growth(result, result.cases[0])
    grown = {name for name, each in found.items() if each.grows_beyond(growth_allowed(name))}
    assert grown == {"latency of commit, median, ms", "latency of commit, p95, ms"}
    assert "latency of key, median, ms" in found


def soak(rate_mib_per_h: float, files_per_h: float, seed: int) -> list[NodeSample]:
    """Half an hour of eight nodes as a soak under retention shows them: a saw of old entries, and sessions."""
    chance = random.Random(seed)
    samples = []
    for second in range(1800):
        node, hours = second % 8, second / 3600
        saw_mib = 1.5 * ((second + 7 * node) % 60) / 60
        session_mib = chance.choice((0.0, 0.0, 0.0, 3.0))
        mib = 35.0 + 0.2 * node + saw_mib + session_mib + rate_mib_per_h * hours
        files = 34 + chance.choice((0, 0, 1, 2)) + int(files_per_h * hours)
        found = sample(float(second), node, mib)
        samples.append(msgspec.structs.replace(found, open_files=files))
    return samples


@pytest.mark.parametrize("seed", range(5))
def test_the_saw_of_retention_is_steady_and_a_leak_in_it_is_found(seed: int) -> None:
    def grown(rate_mib_per_h: float, files_per_h: float) -> set[str]:
        samples = soak(rate_mib_per_h, files_per_h, seed)
        found = {name: series_trend(samples, pick) for name, pick in WATCHED.items()}
        return {name for name, each in found.items() if each is not None and each.grows_beyond(growth_allowed(name))}

    assert grown(0, 0) == set()
    # twenty records a second of 25 bytes that nothing ever takes away, or one descriptor in fifteen minutes
    assert grown(20 * 25 * 3600 / 2**20, 0) == {"memory (PSS), MiB"}
    assert grown(0, 4) == {"open descriptors"}
