"""Waits until a scenario's network may be measured, for a bounded time.

First sessions of hundreds of links take minutes of few cores, and a request that waits behind them says nothing about
the network. What "may be measured" means is `loadtest.rest`'s.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from loadtest import ledger_load
from loadtest.fleet.launcher import FleetError
from loadtest.rest import unrest
from loadtest.ward import NodeSilent, Ward

LOOK_S: Final = 0.5


async def ready(ward: Ward, timeout_s: float, *, rest: bool) -> dict[str, int]:
    """Wait until a network may be measured; return a recorded block of every link. Raises FleetError.

    Nodes that have said that they are done are not asked again until all have: answers cost processor time, too.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    found = await _first_blocks_counted(ward, end_s)
    asked: Sequence[str] = ward.node_ids
    while loop.time() < end_s:
        statuses = await _statuses(ward, asked)
        restless = [node_id for node_id in asked if unrest({node_id: statuses[node_id]}, rest=rest)]
        found = str(unrest(statuses, rest=rest))
        if not found and len(asked) == len(ward.node_ids):
            blocks = await asyncio.to_thread(ledger_load.recorded_blocks, ward.cluster)
            if len(blocks) == len(ward.cluster.genesis.links):
                return blocks
        asked = restless or ward.node_ids
        await asyncio.sleep(LOOK_S)
    raise FleetError(
        f"the network is not ready after {timeout_s:g} s: {found}; "
        "give a longer ready_timeout_s, fewer nodes, or links with less to do (block_pulses, pool.target_bits)"
    )


async def _first_blocks_counted(ward: Ward, end_s: float) -> str:
    """Wait until the first node's chain has as many blocks of key as there are links, or for `end_s`; say how many."""
    wanted, recorded = len(ward.cluster.genesis.links), 0
    while asyncio.get_running_loop().time() < end_s:
        [status] = (await _statuses(ward, ward.node_ids[:1])).values()
        recorded = status.get("ledger", {}).get("state_key_blocks", 0)
        if recorded >= wanted:
            break
        await asyncio.sleep(LOOK_S)
    return f"the chain holds {recorded} key blocks and the network has {wanted} links"


async def _statuses(ward: Ward, node_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    said = await ward.operator.statuses(node_ids)
    return {node_id: {} if isinstance(status, NodeSilent) else status for node_id, status in said.items()}
