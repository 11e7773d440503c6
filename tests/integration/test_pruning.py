"""Real daemons that forget old blocks, and a wiped one that has only them to come back from (SPEC 10)."""

import asyncio
import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.transactions import SaeRegistered, encode
from loadtest.ledger_load import make_feeders
from loadtest.local import awaited, local_cluster
from qnode import cluster as clusters
from qnode.client import CallFailed
from qnode.cluster import OPERATOR, Cluster, Member
from qnode.daemon import new_event_loop
from qnode.io import pidfile
from qnode.io.storage import FILE_NAME

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KEEP = 1_000  # the least that a node may be set to
INTERVAL = 100
TABLES = {
    "ledger": {"keep_blocks": KEEP, "snapshot_interval": INTERVAL, "delivery_patience_s": 0},
    "pool": {"target_bits": 16_384},
}


def qnode(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "qnode", *arguments], capture_output=True, text=True, timeout=90)


def ledger(member: Member) -> dict[str, Any]:
    document: dict[str, Any] = member.client(OPERATOR).call("GET", "/admin/v1/status")["ledger"]
    return document


def grow(cluster: Cluster, blocks: int) -> None:
    """Commit so many blocks: the first node registers an application again and again, as it is."""
    goal = ledger(cluster.members[0])["height"] + blocks
    record = base64.b64encode(encode(SaeRegistered("sae-1-a", "node-1"))).decode()

    async def feed() -> None:
        feeders = make_feeders(cluster, dict.fromkeys((link.link_id for link in cluster.genesis.links), 0))
        height = 0
        while height < goal:
            document = {"transactions": [record], "until": "committed"}
            async with feeders[0].session.post(feeders[0].url, document) as response:
                answer = await response.json()
            assert answer["ok"], answer
            height = answer["height"]
        for feeder in feeders:
            await feeder.session.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(feed())


def delivered(cluster: Cluster) -> str:
    """Have a key delivered between the first two nodes; returns its ID."""

    def key_id() -> str | None:
        try:
            keys = cluster.home("sae-1-a").client("sae-1-a").get_keys("sae-2-a", 1, None)["keys"]
        except CallFailed:  # the link is making more
            return None
        return str(keys[0]["key_ID"])

    found: str = awaited("a key", key_id)
    return found


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes in a ring, of which one votes. A policy bounds the age of key, so that old blocks may go."""
    with local_cluster(3, "ring", tables=TABLES, validators=1) as cluster:
        policy = tmp_path_factory.mktemp("policy") / "lifetime.toml"
        policy.write_text(f'name = "lifetime"\n[lifetime]\nblocks = {INTERVAL}\n')
        proposed = qnode("policy", "set", str(policy), "--cluster", str(cluster.directory), "--node", "node-1")
        assert proposed.returncode == 0, proposed.stderr
        grow(cluster, KEEP + 3 * INTERVAL)
        awaited("old blocks are forgotten", lambda: floor(cluster) > INTERVAL)
        yield cluster


def floor(cluster: Cluster) -> int:
    """Return the lowest floor of all nodes."""
    return min(int(ledger(member)["floor"]) for member in cluster.members)


def level(cluster: Cluster) -> list[dict[str, Any]]:
    """Return what all nodes say of their chains at one height."""

    def found() -> list[dict[str, Any]] | None:
        seen = [status["ledger"] for status in clusters.statuses(cluster)]
        return seen if len({each["height"] for each in seen}) == 1 else None

    same: list[dict[str, Any]] = awaited("all nodes at one height", found)
    assert len({each["state_root"] for each in same}) == 1
    return same


def stored_heights(member: Member) -> list[int]:
    """Return the heights of the blocks on the disk of a stopped node."""
    path = member.settings.state_directory / FILE_NAME
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        rows = database.execute("SELECT key FROM record WHERE name = 'ledger.block' ORDER BY key").fetchall()
    finally:
        database.close()
    return [int.from_bytes(key, "big") for (key,) in rows]


def test_the_floor_advances_and_the_disk_stays_bounded(pruned: Cluster) -> None:
    member = pruned.members[1]
    clusters.stop([member], 20)
    before = stored_heights(member)
    clusters.up(pruned, timeout_s=60)
    grow(pruned, 2 * INTERVAL)
    goal = before[0] + INTERVAL
    awaited("the floors advance", lambda: floor(pruned) > goal)
    clusters.stop([member], 20)
    after = stored_heights(member)
    assert after == list(range(after[0], after[-1] + 1)), "what is kept has no gap"
    assert after[0] > goal and after[-1] > before[-1] + INTERVAL
    assert len(after) <= KEEP + 2 * INTERVAL, "between two snapshots, and while one is written, a few more are kept"
    clusters.up(pruned, timeout_s=60)
    assert ledger(member)["floor"] >= after[0], "a restart goes on with the floor"
    level(pruned)

    directory = str(pruned.directory)
    running = qnode("ledger", "verify", "--cluster", directory)
    assert running.returncode == 0, running.stdout
    assert "are not kept and were not compared" in running.stdout
    clusters.down(pruned, timeout_s=20)
    verified = qnode("ledger", "verify", "--cluster", directory, "--json")
    document = json.loads(verified.stdout)
    assert verified.returncode == 0 and document["ok"], verified.stdout
    for node in document["nodes"]:
        assert node["how"] == "on its disk, from its snapshot on"
        assert node["first_height"] % INTERVAL == 1 and node["height"] >= node["first_height"] > KEEP
    clusters.up(pruned, timeout_s=60)


def test_a_wiped_node_comes_back_from_pruned_neighbours_and_proves_keys(pruned: Cluster, tmp_path: Path) -> None:
    member, directory = pruned.members[2], str(pruned.directory)
    former = delivered(pruned)
    assert qnode("ledger", "prove", former, "--cluster", directory, "--node", "node-1").returncode == 0
    process = member.process
    assert process is not None
    os.kill(process, signal.SIGKILL)
    pidfile.wait_until_stopped(member.settings.state_directory)
    shutil.rmtree(member.settings.state_directory)
    grow(pruned, INTERVAL)  # a snapshot above the delivery of that key
    newest = ledger(pruned.members[0])["height"] // INTERVAL * INTERVAL
    awaited("that snapshot", lambda: ledger(pruned.members[0])["snapshot_height"] >= newest)
    clusters.up(pruned, timeout_s=60)

    awaited("the node at the tip", lambda: ledger(member)["height"] >= ledger(pruned.members[0])["height"])
    found = ledger(member)
    assert found["floor"] > 1 and (found["floor"] - 1) % INTERVAL == 0, "it begins after a neighbour's snapshot"
    level(pruned)

    # what it executed itself it proves; what lies below its snapshot it leaves to others, and says so
    lacking = qnode("ledger", "prove", former, "--cluster", directory, "--node", "node-3")
    assert lacking.returncode == 7 and f"keeps blocks from {found['floor']} on" in lacking.stderr
    anybody = qnode("ledger", "prove", former, "--cluster", directory)
    assert anybody.returncode == 0, anybody.stderr

    grow(pruned, INTERVAL)  # key that is older is not delivered any more
    proved = qnode("ledger", "prove", delivered(pruned), "--cluster", directory, "--node", "node-3")
    assert proved.returncode == 0, proved.stderr
    proof = tmp_path / "proof.json"
    proof.write_text(proved.stdout)
    checked = qnode("ledger", "check", str(proof), "--genesis", str(pruned.directory / "genesis.json"))
    assert checked.returncode == 0, checked.stdout
