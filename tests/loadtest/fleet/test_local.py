"""The fleet on this machine: real nodes, real signals, and nothing left behind."""

import asyncio
import dataclasses
import datetime
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from loadtest.fleet.launcher import FleetError, NodeEnded, NodeSpec, Signal
from loadtest.fleet.local import LocalFleet
from loadtest.fleet.rehearsal import rehearse
from qnode import topologies
from qnode.cluster import OPERATOR, Cluster
from qnode.initialise import Plan, initialise
from qnode.io.entropy import OperatingSystemEntropy

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def write_ward(directory: Path, nodes: int) -> tuple[Cluster, list[NodeSpec]]:
    plan = Plan(topologies.shaped("line", nodes), profile="lab", log_level="warning")
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    return cluster, [NodeSpec(member.settings.node_id, member.config) for member in cluster.members]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_nodes_start_answer_die_and_come_back() -> None:
    ended: list[NodeEnded] = []
    async with LocalFleet(on_ended=ended.append) as fleet:
        await fleet.reserve(3)
        cluster, specs = write_ward(fleet.directory / "ward", 3)
        ready = await fleet.start(specs, 60)
        processes = dict(fleet.running())
        assert [each.node_id for each in ready] == ["node-1", "node-2", "node-3"]
        assert len({os.getsid(process) for process in processes.values()}) == 3
        status = await asyncio.to_thread(cluster.members[1].client(OPERATOR).call, "GET", "/admin/v1/status")
        assert status["node_id"] == "node-2" and status["daemon"]["pid"] == processes["node-2"]

        await fleet.signal("node-2", Signal.KILL)
        assert ended == [NodeEnded("node-2", -signal.SIGKILL, True)] and "node-2" not in fleet.running()
        with pytest.raises(FleetError, match="runs already"):
            await fleet.start(specs[:1], 60)
        await fleet.start(specs[1:2], 60)
        assert fleet.running()["node-2"] not in (0, processes["node-2"])

        await fleet.signal("node-3", Signal.STOP)
        assert ended[-1] == NodeEnded("node-3", 0, True)
        directory, left = fleet.directory, dict(fleet.running())
    assert not directory.exists()
    assert not any(alive(process) for process in left.values())


async def test_nodes_differ_in_what_is_random() -> None:
    """A fork that kept its parent's generators would dial, name its instance and make light as its siblings do."""
    async with LocalFleet() as fleet:
        _, specs = write_ward(fleet.directory / "ward", 2)
        await fleet.start([dataclasses.replace(spec, program="draw") for spec in specs], 60)
        one, other = [json.loads((await fleet.log_tail(spec.node_id, 1))[0]) for spec in specs]
        assert not set(one) & set(other)


async def test_a_profiled_node_tells_what_it_spends_its_processor_time_on() -> None:
    async with LocalFleet() as fleet:
        cluster, specs = write_ward(fleet.directory / "ward", 2)
        await fleet.start([dataclasses.replace(specs[0], profiled=True), specs[1]], 60)
        for _ in range(50):
            await asyncio.to_thread(cluster.members[0].client(OPERATOR).call, "GET", "/admin/v1/status")
        told = await fleet.profile("node-1")
        assert told["samples"] > 0 and 0 < told["cpu_s"] < 60 and told["overhead_share"] < 0.05
        assert any(each["function"].startswith("asyncio/runners.py") for each in told["functions"])
        with pytest.raises(FleetError, match="node-2 is not profiled"):
            await fleet.profile("node-2")
        await fleet.signal("node-1", Signal.KILL)
        with pytest.raises(FleetError, match="node-1 does not run"):
            await fleet.profile("node-1")


async def test_a_node_that_cannot_start_is_named_with_its_reason() -> None:
    async with LocalFleet() as fleet:
        _, specs = write_ward(fleet.directory / "ward", 2)
        (fleet.directory / "ward" / "node-2" / "identity.key").unlink()
        with pytest.raises(FleetError, match=r"node-2.*identity\.key") as refused:
            await fleet.start(specs, 60)
        assert "node-1" not in str(refused.value)
        assert list(fleet.running()) == ["node-1"]


HARNESS = """
import asyncio, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_local import LocalFleet, write_ward

async def main():
    async with LocalFleet() as fleet:
        _, specs = write_ward(fleet.directory / "ward", 2)
        await fleet.start(specs, 60)
        server = fleet._server.pid
        print(json.dumps([server, *fleet.running().values(), str(fleet.directory)]), flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["harness", "server"])
def test_nothing_survives_a_killed_harness_or_server(victim: str) -> None:
    """kill -9 of either ends every node and removes the directory; the kernel does it, nobody has to ask."""
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(Path(__file__).parent)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert harness.stdout is not None
    server, *nodes, directory = json.loads(harness.stdout.readline())
    waiting = [os.pidfd_open(process) for process in (server, *nodes)]
    os.kill(harness.pid if victim == "harness" else server, signal.SIGKILL)
    try:
        for descriptor in waiting:
            assert _readable(descriptor, 10), "a process outlived its harness"
    finally:
        harness.kill()
        harness.wait()
        harness.stdout.close()
    if victim == "server":  # both are gone now: the next fleet sweeps
        asyncio.run(_empty_fleet())
    assert not Path(directory).exists()


async def _empty_fleet() -> None:
    async with LocalFleet():
        pass


def _readable(descriptor: int, timeout_s: float) -> bool:
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def _set() -> tuple[object, ...]:
    """What a daemon sets for its whole process, and the threads of Python and of libraries."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    collector = (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count())
    return handlers, collector, sys.getswitchinterval(), sorted(Path("/proc/self/task").iterdir())


def test_the_rehearsal_leaves_no_thread_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _set()
    rehearse()  # libuv keeps one pipe per process, and makes it anew in a fork
    descriptors = list(Path("/proc/self/fd").iterdir())
    rehearse()
    assert _set() == before
    assert len(list(Path("/proc/self/fd").iterdir())) == len(descriptors)
    assert list(tmp_path.iterdir()) == []
