"""How many key-life-cycle records the chain carries, and how soon: real daemons, real sockets, real disks.

Measures; decides nothing. `qnode bench ledger --nodes 4 --seconds 20 --json` keeps every node's mempool supplied;
`--rate 50` sends single records at fixed times and measures from when each was due; `--kill-faulty` kills as many
validators as may fail, starts them again, and measures before, meanwhile and until they have caught up.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from loadtest.ledger_load import (
    RESTING_BLOCKS,
    RESTING_LINKS,
    Feeder,
    Figures,
    Saturation,
    at_rate,
    await_rest,
    committed_height,
    first_blocks,
    make_feeders,
    recorded_key_ids,
)
from loadtest.local import BenchFailed, awaited, local_cluster, percentiles
from qnode import cluster as clusters
from qnode.cluster import Cluster, Member
from qnode.daemon import new_event_loop
from qnode.io import pidfile

CATCH_UP_S_MAX: Final = 120.0
MESH_NODES_MAX: Final = 8
"""More nodes are linked as a ring: a full mesh of 16 would run 120 quantum links beside the chain."""

Statuses = list[dict[str, Any]]
_Load = Callable[[Cluster, list[Feeder], Figures], Any]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One measurement between two looks at all daemons."""

    figures: Figures
    elapsed_s: float
    before: Statuses
    after: Statuses
    extra: dict[str, Any]


def run(
    nodes: int,
    rate: float | None,
    seconds: float,
    *,
    validators: int | None = None,
    topology: str | None = None,
    kill_faulty: bool = False,
) -> dict[str, Any]:
    """Run the bench over `nodes` daemons, of which the first `validators` vote, and return the figures.

    Latency counts from the submission (or from when it was due) until the submitting node has executed the block.
    """
    topology = topology or ("mesh" if nodes <= MESH_NODES_MAX else "ring")
    voting = min(nodes, 31) if validators is None else validators

    async def load(cluster: Cluster, feeders: list[Feeder], figures: Figures) -> dict[str, Any]:
        if kill_faulty:
            return await _with_faults(cluster, feeders, figures, voting, seconds)
        if rate:
            await at_rate(feeders, rate, seconds, figures)
        else:
            saturation = Saturation(feeders, figures)
            await asyncio.sleep(seconds)
            await saturation.stop()
        return {}

    with local_cluster(nodes, topology, tables=RESTING_LINKS, links=RESTING_BLOCKS, validators=validators) as cluster:
        measured = _measure(cluster, load)
        lost = _lost(cluster, measured) if kill_faulty else None
    return _report(nodes, voting, rate, measured, lost)


def _measure(cluster: Cluster, load: _Load) -> _Measured:
    blocks = first_blocks(cluster)
    await_rest(cluster)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        figures, elapsed_s, before, extra = runner.run(_loaded(cluster, blocks, load))
    wanted = before[0]["ledger"]["state_deliveries"] + figures.committed

    def settled() -> Statuses | None:
        """All nodes at one height, with every committed record in their state."""
        seen = clusters.statuses(cluster)
        heights = {status.get("ledger", {}).get("height") for status in seen}
        counts = {status.get("ledger", {}).get("state_deliveries", 0) for status in seen}
        return seen if len(heights) == 1 and len(counts) == 1 and min(counts) >= wanted else None

    try:
        after = awaited("every committed record at every node", settled, timeout_s=30 + len(cluster.members))
    except BenchFailed:
        after = clusters.statuses(cluster)
    return _Measured(figures, elapsed_s, before, after, extra)


async def _loaded(
    cluster: Cluster, blocks: dict[str, int], load: _Load
) -> tuple[Figures, float, Statuses, dict[str, Any]]:
    feeders, figures = make_feeders(cluster, blocks), Figures()
    try:
        warm_up = Figures()
        await asyncio.gather(*(feeder.submit(1, warm_up, time.perf_counter()) for feeder in feeders))
        if warm_up.failures:
            raise BenchFailed(f"the first records were not committed: {warm_up.failures[0]}")

        def executed() -> Statuses | None:
            seen = clusters.statuses(cluster)
            return seen if len({status["ledger"]["state_root"] for status in seen}) == 1 else None

        before = await asyncio.to_thread(awaited, "one state at all nodes", executed)
        begin = time.perf_counter()
        extra = await load(cluster, feeders, figures)
        return figures, time.perf_counter() - begin, before, extra
    finally:
        for feeder in feeders:
            await feeder.session.close()


# ---- faults


async def _with_faults(
    cluster: Cluster, feeders: list[Feeder], figures: Figures, validators: int, seconds: float
) -> dict[str, Any]:
    """Load before, while f validators are dead, and while they catch up; returns the figures of the phases."""
    faulty = (validators - 1) // 3
    if faulty == 0:
        raise BenchFailed(f"of {validators} validators none may fail; take at least 4")
    victims = cluster.members[validators - faulty : validators]
    names = {member.settings.node_id for member in victims}
    saturation = Saturation(feeders, figures)
    await asyncio.sleep(seconds)
    killed_s = time.perf_counter()
    saturation.alive = [feeder for feeder in feeders if feeder.node_id not in names]
    for member in victims:
        await asyncio.to_thread(_kill, member)
    await asyncio.sleep(seconds)
    restarted_s = time.perf_counter()
    await asyncio.to_thread(clusters.up, cluster, 120.0)
    ready_s = time.perf_counter()
    await asyncio.to_thread(_caught_up, cluster.members[0], victims)
    caught_up_s = time.perf_counter()
    await saturation.stop()
    before = figures.committed_between(killed_s - seconds, killed_s)
    faulty_rate = figures.committed_between(killed_s, restarted_s)
    return {
        "killed": len(victims),
        "tx_per_s_before": round(before, 1),
        "tx_per_s_faulty": round(faulty_rate, 1),
        "ratio": round(faulty_rate / before, 3) if before else None,
        "tx_per_s_catching_up": round(figures.committed_between(restarted_s, caught_up_s), 1),
        "restart_s": round(ready_s - restarted_s, 2),
        "caught_up_s": round(caught_up_s - restarted_s, 2),
        "unanswered": figures.unanswered,
    }


def _kill(member: Member) -> None:
    process = member.process
    if process is None:
        raise BenchFailed(f"{member.settings.node_id} does not run")
    os.kill(process, signal.SIGKILL)
    pidfile.wait_until_stopped(member.settings.state_directory)


def _caught_up(witness: Member, victims: tuple[Member, ...]) -> None:
    """Wait until each of the restarted nodes is at a height that the witness had said to be its own before."""
    for member in victims:

        def reached(member: Member = member) -> bool:
            height = committed_height(witness)
            return height > 0 and committed_height(member) >= height

        awaited(f"{member.settings.node_id} at the tip", reached, timeout_s=CATCH_UP_S_MAX)


def _lost(cluster: Cluster, measured: _Measured) -> int:
    """Look up every record that a caller was told to be committed, at the node with the shortest chain."""
    heights = [status.get("ledger", {}).get("height", 0) for status in measured.after]
    member = cluster.members[heights.index(min(heights))]
    return len(measured.figures.key_ids - recorded_key_ids(member))


# ---- what is printed


def _report(nodes: int, validators: int, rate: float | None, measured: _Measured, lost: int | None) -> dict[str, Any]:
    figures, before, after = measured.figures, measured.before, measured.after
    heights = after[0]["ledger"]["height"] - before[0]["ledger"]["height"]
    wanted = before[0]["ledger"]["state_deliveries"] + figures.committed
    executed = min(status.get("ledger", {}).get("state_deliveries", 0) for status in after)
    daemons = [(_since_start(a, b), b.get("daemon", {})) for a, b in zip(before, after, strict=True)]

    def spent(name: str) -> float:
        return float(sum(b.get(name, 0) - a.get(name, 0) for a, b in daemons))

    return {
        "nodes": nodes,
        "validators": validators,
        "rate": rate,
        "seconds": round(measured.elapsed_s, 3),
        "committed": figures.committed,
        "tx_per_s": round(figures.committed / measured.elapsed_s, 1),
        **percentiles("commit_ms_p{p}", figures.commit_ms, 2),
        "validate_ms_mean": round(spent("validate_ms") / max(1.0, spent("validated_transactions")), 3),
        "validate_wait_ms_mean": round(spent("validate_wait_ms") / max(1.0, spent("validated_transactions")), 3),
        "cpu_ms_per_tx": round(spent("cpu_ms") / max(1, figures.committed), 4),
        "heights_per_s": round(heights / measured.elapsed_s, 2),
        "bytes_per_tx": round(spent("bytes_sent") / max(1, figures.committed), 1),
        **measured.extra,
        "state_roots_equal": len({status.get("ledger", {}).get("state_root") for status in after}) == 1,
        "tx_lost": max(0, wanted - executed) if lost is None else lost,
        "refused": figures.refused,
        "failures": len(figures.failures),
        "first_failure": figures.failures[0] if figures.failures else None,
    }


def _since_start(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the counters to subtract: none for a daemon that began anew meanwhile."""
    first: dict[str, Any] = before.get("daemon", {})
    return first if first.get("pid") == after.get("daemon", {}).get("pid") else {}
