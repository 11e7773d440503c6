"""Operators who send key-life-cycle records to the chain: at a rate, in floods, or as many as it takes.

A record is the delivery of a key that a link of the node made. Latency counts from when a record was due until its
node has executed the block with it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from loadtest import ledger_load
from loadtest.clients.applications import Traffic
from loadtest.ledger_load import Feeder, Figures, Saturation
from loadtest.scenarios.model import Client
from loadtest.ward import NodeSilent, Ward

FLOOD_BUNDLE: Final = 100
"""Records of one submission of a flood."""
FOLLOWED_EVERY_S: Final = 2.0
SATURATING_NODES_MAX: Final = 8
"""Nodes that are fed at saturation, two bundles of 1,000 records each: what a block takes, and the next one."""


class RecordClients:
    """All operators' clients of a ward. `blocks` names a committed block of every link."""

    def __init__(self, ward: Ward, blocks: dict[str, int], traffic: Traffic, phase: Callable[[], str]) -> None:
        self._ward = ward
        self._traffic = traffic
        self._phase = phase
        self._feeders = {feeder.node_id: feeder for feeder in ledger_load.make_feeders(ward.cluster, blocks)}
        self.key_ids: set[bytes] = set()

    async def close(self) -> None:
        """Close the connections."""
        for feeder in self._feeders.values():
            await feeder.session.close()

    async def follow(self) -> None:
        """Let records name blocks of key that are not too old, until cancelled: policies may end a block's life.

        What one look finds is used from the next on: by then every node has it.
        """
        node_id, found = self._ward.node_ids[0], dict[str, int]()
        while True:
            for feeder in self._feeders.values():
                feeder.block_number = found.get(feeder.link_id, feeder.block_number)
            with contextlib.suppress(NodeSilent):
                links = (await self._ward.operator.status(node_id))["chain_links"]
                found = {link["link_id"]: link["last_block_number"] for link in links}
            await asyncio.sleep(FOLLOWED_EVERY_S)

    async def record(self, client: Client, due_ns: int) -> None:
        """One record, at a node drawn by the seed, until it is committed."""
        feeder = self._ward.random.choice(list(self._feeders.values()))
        kind, phase, group = client.name or "commit", self._phase(), self._ward.group(feeder.node_id)
        self._traffic.sent += 1
        figures = Figures()
        await feeder.submit(1, figures, time.perf_counter() - (time.monotonic_ns() - due_ns) / 1e9)
        if figures.committed:
            self.key_ids |= figures.key_ids
            self._traffic.done(kind, phase, group, due_ns)
        else:
            reason = figures.failures[0] if figures.failures else "no answer"
            self._traffic.fail(kind, phase, group, f"{feeder.node_id}: {reason}")

    async def flood(self, node_id: str, rate_per_s: float) -> None:
        """Send records to one node in bundles, at a rate, until cancelled; nobody waits for what becomes of them."""
        feeder, running = self._feeders[node_id], set[asyncio.Task[None]]()
        try:
            while True:
                if len(running) < FLOOD_BUNDLE:
                    task = asyncio.ensure_future(feeder.submit(FLOOD_BUNDLE, Figures(), time.perf_counter()))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.sleep(FLOOD_BUNDLE / rate_per_s)
        finally:
            for task in running:
                task.cancel()

    async def saturate(self, seconds: float) -> float:
        """Keep mempools supplied for some time; return the records committed per second."""
        figures = Figures()
        saturation = Saturation(self._fed(), figures)
        begin_s = time.perf_counter()
        try:
            await asyncio.sleep(seconds)
            end_s = time.perf_counter()
        finally:
            await saturation.stop()
        self.key_ids |= figures.key_ids
        return figures.committed_between(begin_s, end_s)

    def _fed(self) -> list[Feeder]:
        """Nodes spread over the whole network, validators and followers."""
        feeders = list(self._feeders.values())
        step = max(1, len(feeders) // SATURATING_NODES_MAX)
        return feeders[::step][:SATURATING_NODES_MAX]
