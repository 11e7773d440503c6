"""What must hold of a network after a load, whatever was done to it: each promise becomes a `Check` of the result."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from loadtest import ledger_load
from loadtest.results.records import Scalar
from loadtest.ward import NodeSilent, Ward

LOOK_S: Final = 0.5
KEPT_CHECKED_MAX: Final = 200_000
"""Committed records that are looked up one by one: ten seconds of reading. With more, the first so many are."""

Verdict = Callable[[str, bool, Scalar, str, str], None]  # name, passed, found, limit, message


async def agreement(ward: Ward, timeout_s: float, verdict: Verdict) -> None:
    """All nodes reach the height that the network has now, and have the same block there.

    A block names the one before it and the state that they add up to, so equal blocks are equal chains and states.
    """
    node_ids, loop = list(ward.node_ids), asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    statuses = await ward.operator.statuses(node_ids)
    height = max((s["ledger"]["height"] for s in statuses.values() if not isinstance(s, NodeSilent)), default=0)
    behind = {n: _height(s) for n, s in statuses.items() if _height(s) < height}
    while behind and loop.time() < end_s:
        await asyncio.sleep(LOOK_S)
        behind = {n: h for n, s in (await ward.operator.statuses(list(behind))).items() if (h := _height(s)) < height}
    names = ", ".join(f"{node_id} at {at}" for node_id, at in list(behind.items())[:5])
    verdict("every node caught up", not behind, len(behind), "0 nodes behind", names)
    blocks = await ward.operator.each([n for n in node_ids if n not in behind], lambda n: _block(ward, n, height))
    digests = {n: str(b) for n, b in blocks.items()}
    distinct = len(set(digests.values()))
    verdict(
        "one chain", distinct <= 1, distinct, f"1 block at height {height}", "" if distinct <= 1 else str(digests)[:300]
    )


def _height(status: dict[str, Any] | NodeSilent) -> int:
    return -1 if isinstance(status, NodeSilent) else int(status["ledger"]["height"])


async def _block(ward: Ward, node_id: str, height: int) -> tuple[str, str]:
    if height < 1:
        return "genesis", ""
    found = await ward.operator.call(node_id, "GET", f"/admin/v1/ledger/blocks?from={height}&count=1")
    block = found["blocks"][0]
    return block["digest"], block["state_root_before"]


async def records_kept(ward: Ward, key_ids: set[bytes], verdict: Verdict) -> None:
    """Every record that a client was told is committed is on the chain of a node that had no part in telling it."""
    wanted = set(sorted(key_ids)[:KEPT_CHECKED_MAX])
    member = ward.cluster.member(ward.random.choice(ward.node_ids))
    held = await asyncio.to_thread(ledger_load.recorded_key_ids, member)
    lost = len(wanted - held)
    verdict(
        "nothing committed is lost",
        lost == 0,
        lost,
        f"0 of {len(wanted)} records",
        f"looked up at {member.settings.node_id}",
    )
