"""Load on the chain: operators at real daemons who submit key-life-cycle records and wait until they are committed.

Each node submits deliveries of keys that its own links made: some 200 bytes each, attributable by their bundle's
signature. Measures what callers see; `loadtest.bench_ledger` decides what is run and what is reported.
"""

import asyncio
import base64
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from ledger.transactions import KeyDelivered, encode
from loadtest.clients.connections import Connections
from loadtest.local import BenchFailed, awaited
from loadtest.rest import unrest
from qnode import cluster as clusters
from qnode.client import CallFailed
from qnode.cluster import Cluster, Member
from qnode.io.certificates import client_context

BATCH: Final = 500
"""Records of one submission under load: one HTTP request, one bundle."""
FEEDERS: Final = 2
"""Submissions under way per node: one is committed while the next is on its way."""
BLOCKS_PER_PAGE: Final = 20
"""Blocks of one look at the chain: full ones make some megabytes of JSON each."""
RESTING_LINKS: Final = {"pool": {"target_bits": 16_384, "probe_interval_s": 600}}
RESTING_BLOCKS: Final = {"block_pulses": 250_000}
"""A pool that the first block fills, and no probes of full links: they rest while the chain is measured."""


@dataclass
class Figures:
    """What the callers saw. A time is that of `time.perf_counter`."""

    committed: int = 0
    refused: int = 0
    unanswered: int = 0  # records whose node was gone before it answered: committed or not
    commit_ms: list[float] = field(default_factory=list)
    commits: list[tuple[float, int]] = field(default_factory=list)  # (when the caller heard of it, records)
    failures: list[str] = field(default_factory=list)
    key_ids: set[bytes] = field(default_factory=set)  # of the records that were said to be committed

    def committed_between(self, begin_s: float, end_s: float) -> float:
        """Return the records per second of a period."""
        return sum(count for at_s, count in self.commits if begin_s < at_s <= end_s) / (end_s - begin_s)


@dataclass(slots=True)
class Feeder:
    """An operator at one node, and what its records say: a link of the node, a block on it, two applications."""

    session: Connections
    url: str
    node_id: str
    peer: str
    link_id: str
    block_number: int

    def record(self) -> KeyDelivered:
        """Return a delivery of a new key."""
        number, other = self.node_id.removeprefix("node-"), self.peer.removeprefix("node-")
        return KeyDelivered(
            secrets.token_bytes(16),
            f"sae-{number}-a",
            f"sae-{other}-a",
            256,
            (self.node_id, self.peer),
            ((self.link_id, self.block_number, 0, 512),),
        )

    async def submit(self, count: int, figures: Figures, due_s: float) -> None:
        """Submit records and wait for their block; latency counts from `due_s`."""
        records = [self.record() for _ in range(count)]
        encoded = [base64.b64encode(encode(record)).decode() for record in records]
        try:
            async with self.session.post(self.url, {"transactions": encoded, "until": "committed"}) as response:
                answer: dict[str, Any] = await response.json()
        except (OSError, aiohttp.ClientError) as error:
            figures.failures.append(repr(error)[:200])
            figures.unanswered += count
            return
        now_s = time.perf_counter()
        if answer.get("ok"):
            figures.committed += count
            figures.commits.append((now_s, count))
            figures.commit_ms.append(1e3 * (now_s - due_s))
            figures.key_ids.update(record.key_id for record in records)
        else:
            figures.refused += count
            figures.failures.append(str(answer.get("reason") or answer.get("message"))[:200])


def recorded_blocks(cluster: Cluster) -> dict[str, int]:
    """Return a committed block number of every link that has one."""
    found: dict[str, int] = {}
    for transaction in _transactions(cluster.members[0]):
        if "commitment" in transaction and transaction["ok"]:
            found[transaction["link_id"]] = transaction["block_number"]
    return found


def first_blocks(cluster: Cluster) -> dict[str, int]:
    """Wait for a committed block of every link that records will be about, and return their numbers."""
    links = {used_link(cluster, member.settings.node_id).link_id for member in cluster.members}

    def recorded() -> dict[str, int] | None:
        found = recorded_blocks(cluster)
        return found if links <= set(found) else None

    found: dict[str, int] = awaited(
        "a block of every link on the chain", recorded, timeout_s=120 + 3 * len(cluster.members)
    )
    return found


def await_rest(cluster: Cluster) -> None:
    """Wait until every link has key and rests, no record waits and all nodes stand at one height."""

    def rests() -> bool:
        return not unrest({status["node_id"]: status for status in clusters.statuses(cluster)})

    awaited("the first blocks of all links", rests, timeout_s=120 + 3 * len(cluster.members), pause_s=0.5)


def committed_height(member: Member) -> int:
    """Return a running node's height, 0 while it does not answer."""
    try:
        document = member.client(clusters.OPERATOR).call("GET", "/admin/v1/status")
    except CallFailed:
        return 0
    return int(document["ledger"]["height"])


def recorded_key_ids(member: Member) -> set[bytes]:
    """Return the IDs of all keys whose delivery a node's chain holds; half a second per 10,000 records."""
    return {
        bytes.fromhex(transaction["key_id"])
        for transaction in _transactions(member)
        if transaction["kind"] == "KeyDelivered" and transaction["ok"]
    }


def _transactions(member: Member) -> Any:
    client = member.client(clusters.OPERATOR)
    height = 1
    while page := client.call("GET", f"/admin/v1/ledger/blocks?from={height}&count={BLOCKS_PER_PAGE}")["blocks"]:
        for block in page:
            yield from block["transactions"]
        height = page[-1]["height"] + 1


def used_link(cluster: Cluster, node_id: str) -> Any:
    """Return the link that the records of a node are about."""
    return next(link for link in cluster.genesis.links if node_id in (link.transmitter, link.receiver))


def make_feeders(cluster: Cluster, blocks: dict[str, int]) -> list[Feeder]:
    """Return one operator per node; close their sessions at the end."""
    feeders = []
    for member in cluster.members:
        node_id, api = member.settings.node_id, member.settings.api
        link = used_link(cluster, node_id)
        peer = link.receiver if link.transmitter == node_id else link.transmitter
        url = f"https://{api.listen_host}:{api.listen_port}/admin/v1/ledger/transactions"
        feeders.append(Feeder(_session(member), url, node_id, peer, link.link_id, blocks[link.link_id]))
    return feeders


def _session(member: Member) -> Connections:
    stem = member.directory / "clients"
    context = client_context(stem / "operator.crt", stem / "operator.key", member.settings.api.ca)
    return Connections(context=context)


class Saturation:
    """Keeps every mempool supplied until `stop`: always the same number of submissions are under way.

    Those of a node that is taken out of `alive` go to the others.
    """

    def __init__(self, feeders: list[Feeder], figures: Figures) -> None:
        self.alive = list(feeders)
        self._figures = figures
        self._stopping = False
        self._tasks = [asyncio.create_task(self._feed(n)) for n in range(FEEDERS * len(feeders))]

    async def _feed(self, number: int) -> None:
        while not self._stopping:
            feeder = self.alive[number % len(self.alive)]
            await feeder.submit(BATCH, self._figures, time.perf_counter())

    async def stop(self) -> None:
        """Submit no more, and wait for what is under way."""
        self._stopping = True
        await asyncio.gather(*self._tasks)


async def fill(feeders: list[Feeder], records: int, figures: Figures) -> None:
    """Submit so many records as fast as they are committed. Raises BenchFailed when some are not."""
    batches = iter([min(BATCH, records - done) for done in range(0, records, BATCH)])

    async def feed(feeder: Feeder) -> None:
        for count in batches:
            await feeder.submit(count, figures, time.perf_counter())
            if figures.failures:
                raise BenchFailed(f"a record was not committed: {figures.failures[0]}")

    await asyncio.gather(*(feed(feeder) for feeder in feeders for _ in range(FEEDERS)))


async def at_rate(feeders: list[Feeder], rate: float, seconds: float, figures: Figures) -> None:
    """Submit single records at fixed times, whatever became of the earlier ones."""
    begin = time.perf_counter()
    running: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        due_s = begin + number / rate
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        task = asyncio.create_task(feeders[number % len(feeders)].submit(1, figures, due_s))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
