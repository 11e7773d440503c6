"""What it costs to come back: a node that restarts, and one whose disk was wiped and that catches up from its peers.

Measures; decides nothing. `qnode bench restart --records 100000 --json` loads a chain on real daemons and then, with
the chain at rest, restarts a node that has a snapshot and one that has none, wipes the latter, which catches up by a
snapshot, and wipes a third, which catches up by executing every block (SEED_MAP S0-B1).
"""

import asyncio
import shutil
import sqlite3
import time
from dataclasses import dataclass
from typing import Any, Final

from loadtest.ledger_load import (
    RESTING_BLOCKS,
    RESTING_LINKS,
    Feeder,
    Figures,
    committed_height,
    fill,
    first_blocks,
    make_feeders,
    recorded_key_ids,
)
from loadtest.local import BenchFailed, awaited, local_cluster
from qnode import cluster as clusters
from qnode.client import CallFailed
from qnode.cluster import Cluster, Member
from qnode.daemon import new_event_loop
from qnode.io.storage import FILE_NAME

RECORDS_MAX: Final = 2_000_000
"""Every daemon holds 0.8 KB of each in memory: 6 GB together where there are four."""
SNAPSHOT_DISTANCE: Final = 100
"""The least that a node may be set to."""
SNAPSHOT_INTERVAL: Final = 2 * SNAPSHOT_DISTANCE
START_S_MAX: Final = 300.0
CATCH_UP_S_MAX: Final = 600.0
LOOK_S: Final = 0.05
"""Between two looks at a node that catches up: what a time below is exact to. A look takes it some 2 ms."""
MIB: Final = 1 << 20

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Chain:
    """What was loaded."""

    height: int
    transactions: int
    key_ids: set[bytes]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Return:
    """How a node came back: from its start until it was ready, and from then on until it had the chain."""

    start_s: float
    catch_up_s: float
    first: Status
    last: Status

    def spent(self, name: str) -> float:
        """Return how much a counter of the daemon grew while it caught up."""
        return float(self.last["daemon"][name] - self.first["daemon"][name])


def run(nodes: int, records: int) -> dict[str, Any]:
    """Run the bench over `nodes` daemons that share a chain of `records`, and return the figures."""
    names = [f"node-{number}" for number in range(nodes - 2, nodes + 1)]
    own = {names[1]: {"ledger": {"snapshot_interval": 0, "snapshot_distance": SNAPSHOT_DISTANCE}}}
    common = {**RESTING_LINKS, "ledger": {"snapshot_interval": SNAPSHOT_INTERVAL}}
    with local_cluster(nodes, "ring", tables=common, own_tables=own, links=RESTING_BLOCKS) as cluster:
        chain = _loaded(cluster, records)
        with_snapshot, without, by_blocks = (cluster.member(name) for name in names)
        clusters.stop([with_snapshot], 20)
        disk = _disk(with_snapshot)
        restart = _returned(cluster, with_snapshot)
        clusters.stop([without], 20)
        restart_replay = _returned(cluster, without)
        replay = _wiped(cluster, by_blocks)  # while every other node still has every block
        snapshot = _wiped(cluster, without)
        _require(
            snapshot.last["ledger"]["floor"] > 1, "the wiped node executed the blocks instead of taking a snapshot"
        )
        _require(replay.last["ledger"]["floor"] == 1, "the wiped node took a snapshot instead of executing the blocks")
        after = _settled(cluster)
        lost = len(chain.key_ids - recorded_key_ids(by_blocks))
    document = {"nodes": nodes, "records": records, **_loaded_document(chain, disk)}
    document |= _restart_document(chain, restart, restart_replay, start_empty_s=min(snapshot.start_s, replay.start_s))
    document |= _replay_document(chain, replay) | _snapshot_document(snapshot)
    roots = {status["ledger"]["state_root"] for status in after}
    return document | {"state_roots_equal": len(roots) == 1, "tx_lost": lost}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BenchFailed(otherwise)


# ---- the chain


def _loaded(cluster: Cluster, records: int) -> _Chain:
    """Commit the records, and blocks of one record until a snapshot lies right below the tip at whoever takes them."""
    blocks, figures = first_blocks(cluster), Figures()

    async def load() -> float:
        feeders = make_feeders(cluster, blocks)
        try:
            begin_s = time.perf_counter()
            await fill(feeders, records, figures)
            seconds = time.perf_counter() - begin_s
            await _pad(cluster, feeders[0], figures)
            return seconds
        finally:
            for feeder in feeders:
                await feeder.session.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        seconds = runner.run(load())
    status = _settled(cluster)[0]["ledger"]
    newest = status["height"] // SNAPSHOT_INTERVAL * SNAPSHOT_INTERVAL

    def written() -> bool:
        found = [each["ledger"]["snapshot_height"] or 0 for each in clusters.statuses(cluster)]
        return sum(1 for height in found if height >= newest) == len(found) - 1

    awaited("the snapshot of every node that takes one", written, timeout_s=60 + records / 5_000)
    return _Chain(status["height"], status["state_deliveries"], figures.key_ids, seconds)


async def _pad(cluster: Cluster, feeder: Feeder, figures: Figures) -> None:
    height = await asyncio.to_thread(committed_height, cluster.members[0])
    goal = (height // SNAPSHOT_INTERVAL + 1) * SNAPSHOT_INTERVAL + 2
    while height < goal:
        for _ in range(goal - height):
            await feeder.submit(1, figures, time.perf_counter())
            if figures.failures:
                raise BenchFailed(f"a record was not committed: {figures.failures[0]}")
        height = await asyncio.to_thread(committed_height, cluster.members[0])


def _settled(cluster: Cluster) -> list[Status]:
    """Return the statuses of all nodes at one height."""

    def level() -> list[Status] | None:
        seen = clusters.statuses(cluster)
        heights = {status.get("ledger", {}).get("height") for status in seen}
        return seen if len(heights) == 1 and None not in heights else None

    found: list[Status] = awaited("all nodes at one height", level)
    return found


def _disk(member: Member) -> tuple[int, int]:
    """Return the rows and bytes on the disk of a stopped node."""
    path = member.settings.state_directory / FILE_NAME
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        rows: int = database.execute("SELECT count(*) FROM record").fetchone()[0]
    finally:
        database.close()
    return rows, path.stat().st_size


# ---- coming back


def _wiped(cluster: Cluster, member: Member) -> _Return:
    clusters.stop([member], 20)
    shutil.rmtree(member.settings.state_directory)
    return _returned(cluster, member)


def _returned(cluster: Cluster, member: Member) -> _Return:
    """Start a stopped node and wait until it is as high as another one was when it was ready."""
    begin_s = time.perf_counter()
    clusters.up(cluster, timeout_s=START_S_MAX)
    ready_s = time.perf_counter()
    client = member.client(clusters.OPERATOR)
    first: Status = client.call("GET", "/admin/v1/status")
    goal = committed_height(cluster.members[0])
    _require(goal > 0, f"{cluster.members[0].settings.node_id} does not answer")

    def caught_up() -> Status | None:
        try:
            status = client.call("GET", "/admin/v1/status")
        except CallFailed:
            return None
        return status if status["ledger"]["height"] >= goal else None

    name = member.settings.node_id
    last: Status = awaited(f"{name} at the tip", caught_up, timeout_s=CATCH_UP_S_MAX, pause_s=LOOK_S)
    return _Return(ready_s - begin_s, time.perf_counter() - ready_s, first, last)


# ---- what is printed


def _loaded_document(chain: _Chain, disk: tuple[int, int]) -> dict[str, Any]:
    return {
        "load_s": round(chain.seconds, 2),
        "chain_blocks": chain.height,
        "chain_tx": chain.transactions,
        "disk_rows": disk[0],
        "disk_bytes": disk[1],
    }


def _restart_document(chain: _Chain, restart: _Return, replay: _Return, start_empty_s: float) -> dict[str, Any]:
    replay_s = max(1e-3, replay.start_s - start_empty_s)
    return {
        "start_empty_s": round(start_empty_s, 3),
        "restart_s": round(restart.start_s, 3),
        "restart_cpu_ms": restart.first["daemon"]["cpu_ms"],
        "restart_replay_s": round(replay.start_s, 3),
        "restart_replay_cpu_ms": replay.first["daemon"]["cpu_ms"],
        "restart_replay_tx_per_s": round(chain.transactions / replay_s),
    }


def _replay_document(chain: _Chain, replay: _Return) -> dict[str, Any]:
    return {
        "replay_s": round(replay.catch_up_s, 3),
        "replay_blocks_per_s": round(chain.height / replay.catch_up_s, 1),
        "replay_tx_per_s": round(chain.transactions / replay.catch_up_s),
        "replay_cpu_us_per_tx": round(replay.spent("cpu_ms") / chain.transactions * 1e3, 1),
        "replay_bytes": int(replay.last["daemon"]["bytes_received"]),
    }


def _snapshot_document(snapshot: _Return) -> dict[str, Any]:
    size_bytes = int(snapshot.last["daemon"]["bytes_received"])
    entries = sum(count for name, count in snapshot.last["ledger"].items() if name in _ENTRIES)
    return {
        "snapshot_s": round(snapshot.catch_up_s, 3),
        "snapshot_height": snapshot.last["ledger"]["snapshot_height"],
        "snapshot_entries": entries,
        "snapshot_bytes": size_bytes,
        "snapshot_mib_per_s": round(size_bytes / MIB / snapshot.catch_up_s, 2),
        "snapshot_cpu_us_per_entry": round(snapshot.spent("cpu_ms") / entries * 1e3, 1),
    }


_ENTRIES: Final = {
    f"state_{kind}"
    for kind in ("nodes", "links", "saes", "devices", "key_blocks", "deliveries", "equivocations", "contract_entries")
}
