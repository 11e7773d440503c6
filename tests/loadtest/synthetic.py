"""Results that look like real ones and whose figures are known: networks of several sizes, faults and attacks."""

import math
import random
from pathlib import Path

from loadtest.measure.energy import PROFILES
from loadtest.measure.histograms import LatencyBook
from loadtest.results.records import (
    Commit,
    LinkSample,
    Machine,
    NodeSample,
    Overhead,
    Run,
    Topology,
    TopologyLink,
    TopologyNode,
    Versions,
)
from loadtest.results.writer import ResultWriter

RUN = Run(
    run_id="synthetic",
    scenario="scaling",
    started_at="2026-11-22T05:00:00+00:00",
    versions=Versions(qnode="0.1.0", python="3.11.7", libraries={"numpy": "2.4.6"}, git_commit="0123456789abcdef"),
    machine=Machine(cores=2, memory_mib=24_000, kernel="Linux 6", cpu_model="a processor", platform="x86_64"),
    scenario_document={"scenario": {"name": "scaling", "nodes": [4, 8]}, "clients": {"key_rate_per_s": 50.0}},
    command=["python", "-m", "loadtest", "run", "scaling"],
    energy=PROFILES["server"],
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def write_result(
    directory: Path,
    sizes: tuple[int, ...] = (4, 8, 16),
    repetitions: int = 2,
    *,
    slow: float = 1.0,
    seconds: int = 30,
    finish: bool = True,
    seed: int = 1,
) -> None:
    """Write a result: commit and key latencies grow with the size, times `slow`; one attack and one kill per case."""
    chance, clock = random.Random(seed), Clock()
    writer = ResultWriter(directory, RUN, monotonic=clock)
    for nodes in sizes:
        for repetition in range(repetitions):
            _case(writer, clock, chance, nodes, repetition, slow, seconds)
    writer.check("nothing committed is lost", True, 0, "0 records")
    writer.check("commit_ms_p95", slow < 2, 80.0 * slow, "at most 150 ms", message="" if slow < 2 else "too slow")
    writer.overhead(Overhead(cpu_share=0.012, samples=300, seconds=60.0, interval_s_mean=1.5))
    if finish:
        writer.finish()


def _case(
    writer: ResultWriter, clock: Clock, chance: random.Random, nodes: int, repetition: int, slow: float, seconds: int
) -> None:
    case = writer.begin_case(nodes, repetition, repetition, {"rate_per_s": 50})
    names = [f"node-{n + 1}" for n in range(nodes)]
    links = [f"link-{n + 1}-{(n + 1) % nodes + 1}" for n in range(nodes)]
    _topology(writer, case, names, links)
    writer.phase(case, "start")
    clock.now_s += 0.01 * nodes
    writer.figures(case, {"start_s": 0.01 * nodes})
    writer.phase(case, "measure")
    book = LatencyBook()
    begun_s = clock.now_s
    for second in range(seconds + 1):
        clock.now_s = begun_s + second
        attacked = 10 <= second < 15
        if second == 10:
            writer.event(case, "attack", links[0], attack="intercept_resend", intensity=1.0)
        if second == 12:
            writer.event(case, "alarm", links[0])
        if second == 15:
            writer.event(case, "attack_end", links[0])
            writer.event(case, "fault", names[-1], fault="kill")
        if second == 17:
            writer.event(case, "recovered", names[-1])
        now_s = writer.now_s()
        writer.nodes(_sample(now_s, case, n, name, second, repetition) for n, name in enumerate(names))
        writer.links(_link(now_s, case, n, link, second, attacked and n == 0) for n, link in enumerate(links))
        writer.commits([Commit(time_s=now_s, case=case, height=5 * second + 1, transactions=50)])
        for kind, base_ms in (("key", 2.0), ("commit", 5.0)):
            for _ in range(20):
                wait_ms = slow * base_ms * math.sqrt(nodes) * chance.lognormvariate(0, 0.4)
                book.of(kind, "measure").record_ns(0, int(wait_ms * 1e6))
    book.of("key", "measure").record_failure()
    writer.latencies(case, book)
    writer.end_case(case)


def _topology(writer: ResultWriter, case: int, names: list[str], links: list[str]) -> None:
    ring = [TopologyNode(node_id=name, group="validators" if n < 4 else "followers") for n, name in enumerate(names)]
    edges = [
        TopologyLink(link_id=link, first=names[n], second=names[(n + 1) % len(names)]) for n, link in enumerate(links)
    ]
    writer.topology(Topology(case=case, nodes=ring, links=edges))


def _sample(now_s: float, case: int, number: int, name: str, second: int, repetition: int) -> NodeSample:
    return NodeSample(
        time_s=now_s,
        case=case,
        node_id=name,
        group="validators" if number < 4 else "followers",
        cpu_s=0.05 * second,
        rss_mib=30.0,
        pss_mib=12.0 + repetition,
        open_files=40,
        bytes_sent=10_000 * second,
        bytes_received=10_000 * second,
        disk_syncs=10 * second,
        height=5 * second + 1,
        mempool=3,
        key_bytes=1_000,
    )


def _link(now_s: float, case: int, number: int, link: str, second: int, attacked: bool) -> LinkSample:
    qber = 0.25 if attacked else 0.02 + 0.001 * (number % 5)
    return LinkSample(
        time_s=now_s, case=case, link_id=link, qber=qber, key_bytes=500, blocks=second, aborts=0, alarmed=attacked
    )
