"""How many key-life-cycle records the chain carries, and how soon: real daemons, real sockets, real disks.

Measures; decides nothing. Each node submits deliveries of keys that its own links made (some 200 bytes each, every one
attributable by its bundle's signature). `qnode bench ledger --nodes 4 --seconds 20 --json` keeps every node's mempool
supplied; `--rate 50` sends single records at fixed times and measures from when each was due.
"""

import asyncio
import base64
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from ledger.transactions import KeyDelivered, encode
from loadtest.local import BenchFailed, awaited, local_cluster, percentiles
from qnode import cluster as clusters
from qnode.cluster import Cluster, Member
from qnode.daemon import new_event_loop
from qnode.io.certificates import client_context

BATCH: Final = 1000
"""Records of one submission under load: one HTTP request, one bundle."""
FEEDERS: Final = 2
"""Submissions under way per node: one is committed while the next is on its way."""


@dataclass
class _Figures:
    committed: int = 0
    refused: int = 0
    commit_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Feeder:
    """An operator at one node, and what its records say: a link of the node, a block on it, two applications."""

    session: aiohttp.ClientSession
    url: str
    node_id: str
    peer: str
    link_id: str
    block_number: int

    def record(self) -> bytes:
        number, other = self.node_id.removeprefix("node-"), self.peer.removeprefix("node-")
        return encode(
            KeyDelivered(
                secrets.token_bytes(16),
                f"sae-{number}-a",
                f"sae-{other}-a",
                256,
                (self.node_id, self.peer),
                ((self.link_id, self.block_number, 0, 512),),
            )
        )

    async def submit(self, count: int, figures: _Figures, due_s: float) -> None:
        records = [self.record() for _ in range(count)]
        body = {"transactions": [base64.b64encode(record).decode() for record in records], "until": "committed"}
        try:
            async with self.session.post(self.url, json=body) as response:
                answer: dict[str, Any] = await response.json()
        except (OSError, aiohttp.ClientError) as error:
            figures.failures.append(repr(error)[:200])
            return
        if answer.get("ok"):
            figures.committed += count
            figures.commit_ms.append(1e3 * (time.perf_counter() - due_s))
        else:
            figures.refused += count
            figures.failures.append(str(answer.get("reason") or answer.get("message"))[:200])


def _recorded_blocks(cluster: Cluster) -> dict[str, int]:
    """Return a committed block number of every link."""
    client = cluster.members[0].client(clusters.OPERATOR)
    found: dict[str, int] = {}
    height = 1
    while page := client.call("GET", f"/admin/v1/ledger/blocks?from={height}&count=200")["blocks"]:
        for block in page:
            for transaction in block["transactions"]:
                if "commitment" in transaction and transaction["ok"]:
                    found[transaction["link_id"]] = transaction["block_number"]
        height = page[-1]["height"] + 1
    return found


def _feeders(cluster: Cluster, blocks: dict[str, int]) -> list[_Feeder]:
    feeders = []
    for member in cluster.members:
        node_id = member.settings.node_id
        link = next(x for x in cluster.genesis.links if node_id in (x.transmitter, x.receiver))
        peer = link.receiver if link.transmitter == node_id else link.transmitter
        url = (
            f"https://{member.settings.api.listen_host}:{member.settings.api.listen_port}/admin/v1/ledger/transactions"
        )
        feeders.append(_Feeder(_session(member), url, node_id, peer, link.link_id, blocks[link.link_id]))
    return feeders


def _session(member: Member) -> aiohttp.ClientSession:
    stem = member.directory / "clients"
    context = client_context(stem / "operator.crt", stem / "operator.key", member.settings.api.ca)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0))


async def _saturate(feeders: list[_Feeder], seconds: float, figures: _Figures) -> None:
    end = time.perf_counter() + seconds

    async def feed(feeder: _Feeder) -> None:
        while time.perf_counter() < end:
            await feeder.submit(BATCH, figures, time.perf_counter())

    await asyncio.gather(*(feed(feeder) for feeder in feeders for _ in range(FEEDERS)))


async def _at_rate(feeders: list[_Feeder], rate: float, seconds: float, figures: _Figures) -> None:
    begin = time.perf_counter()
    running: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        due_s = begin + number / rate
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        task = asyncio.create_task(feeders[number % len(feeders)].submit(1, figures, due_s))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def _measure(
    cluster: Cluster, blocks: dict[str, int], rate: float | None, seconds: float
) -> tuple[_Figures, float]:
    feeders, figures = _feeders(cluster, blocks), _Figures()
    try:
        warm_up = _Figures()
        await asyncio.gather(*(feeder.submit(1, warm_up, time.perf_counter()) for feeder in feeders))
        if warm_up.failures:
            raise BenchFailed(f"the first records were not committed: {warm_up.failures[0]}")
        begin = time.perf_counter()
        if rate:
            await _at_rate(feeders, rate, seconds, figures)
        else:
            await _saturate(feeders, seconds, figures)
        return figures, time.perf_counter() - begin
    finally:
        for feeder in feeders:
            await feeder.session.close()


def run(nodes: int, rate: float | None, seconds: float, topology: str = "mesh") -> dict[str, Any]:
    """Run the bench over `nodes` daemons and return the figures.

    Latency counts from the submission (or from when it was due) until the submitting node has executed the block.
    """
    # A pool that the first block fills, so that the links rest while the chain is measured.
    with local_cluster(nodes, topology, tables={"pool": {"target_bits": 16_384}}) as cluster:

        def recorded() -> dict[str, int] | None:
            found = _recorded_blocks(cluster)
            return found if len(found) == len(cluster.genesis.links) else None

        blocks = awaited("a block of every link on the chain", recorded)
        before = clusters.statuses(cluster)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            figures, elapsed_s = runner.run(_measure(cluster, blocks, rate, seconds))
        wanted = before[0]["ledger"]["state_deliveries"] + figures.committed + nodes

        def settled() -> list[dict[str, Any]] | None:
            """All nodes at one height, with every committed record in their state."""
            seen = clusters.statuses(cluster)
            heights = {status["ledger"]["height"] for status in seen}
            counts = {status["ledger"]["state_deliveries"] for status in seen}
            return seen if len(heights) == 1 and counts == {wanted} else None

        try:
            after = awaited("every committed record at every node", settled, timeout_s=30)
        except BenchFailed:
            after = clusters.statuses(cluster)
    return _report(nodes, rate, figures, elapsed_s, before, after, wanted)


def _report(
    nodes: int,
    rate: float | None,
    figures: _Figures,
    elapsed_s: float,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    wanted: int,
) -> dict[str, Any]:
    heights = after[0]["ledger"]["height"] - before[0]["ledger"]["height"]
    sent = sum(b["daemon"]["bytes_sent"] - a["daemon"]["bytes_sent"] for a, b in zip(before, after, strict=True))
    return {
        "nodes": nodes,
        "rate": rate,
        "seconds": round(elapsed_s, 3),
        "committed": figures.committed,
        "tx_per_s": round(figures.committed / elapsed_s, 1),
        **percentiles("commit_ms_p{p}", figures.commit_ms, 2),
        "heights_per_s": round(heights / elapsed_s, 2),
        "bytes_per_tx": round(sent / max(1, figures.committed), 1),
        "state_roots_equal": len({status["ledger"]["state_root"] for status in after}) == 1,
        "tx_lost": max(0, wanted - min(status["ledger"]["state_deliveries"] for status in after)),
        "refused": figures.refused,
        "failures": len(figures.failures),
        "first_failure": figures.failures[0] if figures.failures else None,
    }
