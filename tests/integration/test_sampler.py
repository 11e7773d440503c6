"""The sampler against real daemons: it sees every node, survives one that dies, and costs what it says at most."""

import asyncio
import time
from pathlib import Path

import pytest

from loadtest.local import awaited, local_cluster
from loadtest.measure.figures import figures
from loadtest.measure.sampler import Sampler, Target
from loadtest.results.reader import Result
from loadtest.results.records import Run
from loadtest.results.surroundings import machine, versions
from loadtest.results.writer import ResultWriter
from qnode import cluster as clusters


@pytest.mark.slow
@pytest.mark.integration
def test_nodes_are_seen_within_the_budget(tmp_path: Path) -> None:
    run = Run(run_id="r", scenario="s", started_at="2026-11-22T00:00:00Z", versions=versions(), machine=machine())
    with local_cluster(3, "ring") as cluster, ResultWriter(tmp_path / "run", run) as writer:
        case = writer.begin_case(3, 0, 0)
        writer.phase(case, "measure")
        targets = []
        for member in cluster.members:
            api = member.settings.api
            url = f"https://{api.listen_host}:{api.listen_port}"
            targets.append(Target(member.settings.node_id, "validators", url))
        context = cluster.members[0].client("operator").context
        sampler = Sampler(targets, context, case, writer.now_s, cpu_share_max=0.05)
        sampler.start()
        awaited("two looks at each node", lambda: sampler.overhead().samples >= 9 and sampler.seen().up == 3)
        assert sampler.latest("node-2") is not None
        before = sampler.overhead().samples
        asyncio.run(sampler.look_at_all())
        awaited("a look at each at once", lambda: sampler.overhead().samples >= before + 3)
        clusters.down(clusters.Cluster(cluster.directory, cluster.members[2:]), timeout_s=20)
        awaited("the stopped node is missed", lambda: sampler.seen().down == 1)
        ended_s = time.monotonic() + 3
        awaited("some more looks", lambda: time.monotonic() > ended_s)
        sampler.stop()
        sampler.pour(writer)
        overhead = sampler.overhead()
        writer.overhead(overhead)
        writer.end_case(case)
    result = Result(tmp_path / "run")
    assert {sample.node_id for sample in result.nodes} == {"node-1", "node-2", "node-3"}
    first = result.nodes[0]
    assert (first.pss_mib or 0) > 5 and (first.cpu_s or 0) > 0 and (first.open_files or 0) > 5
    assert (first.handshakes or 0) >= 1 and first.disk_syncs and first.height is not None
    assert {sample.link_id for sample in result.links} >= {"link-1-2", "link-2-3"}
    found = figures(result)[0]
    assert (found["pss_mib_per_node"] or 0) > 5 and (found["throughput_mbit_per_s"] or 0) > 0
    assert overhead.samples >= 9 and 0 < overhead.cpu_share < 0.2
