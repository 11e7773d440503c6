"""Senders that offer far more than their part of the blocks, and the others, who must not feel it (invariant 23).

A greedy node is correct: its operator submits maximal batches as fast as they are admitted. A liar's bundles come past
its own bounds: whole windows of numbers at once, two bundles under one number, numbers that nobody can reach,
signatures that do not hold, everything again and again. The modest submit single records; each must be in a block
within a bounded number of heights of the moment in which it was offered, on a network without other faults.
"""

import itertools
import random
from dataclasses import dataclass, replace
from typing import Final

from ledger.block import Block
from ledger.encoding import MalformedEncoding
from ledger.genesis import GenesisParameters
from ledger.inputs import TransactionsSubmitted
from ledger.mempool import MempoolSettings
from ledger.messages import BundleMessage, encode
from ledger.outputs import Output, SendMessage, TransactionsRefused
from ledger.transactions import SaeRegistered
from ledger.transactions import encode as encode_transaction
from loadtest.simulation.byzantine import odd_bundles
from loadtest.simulation.checkers import Checkers, Violation
from loadtest.simulation.members import Members
from loadtest.simulation.network import MS
from loadtest.simulation.run import SETTINGS
from loadtest.simulation.world import SimulatedNode, World

PARAMETERS: Final = GenesisParameters(
    bundle_transactions_max=4,
    bundle_size_bytes_max=2_048,
    transaction_size_bytes_max=512,
    block_transactions_max=16,
    block_size_bytes_max=8_192,
    sender_block_transactions_max=8,
    sender_block_size_bytes_max=4_096,
)
"""Four full bundles fill a block, two of them the part of one sender."""
MEMPOOL: Final = MempoolSettings(sender_bundles_max=16, size_bytes_max=7 * 6_144, age_heights_max=20)
"""The share of one of seven senders is some fourteen full bundles, so that count, bytes and age all come to bear."""
FLOOD_INTERVAL_NS: Final = 5 * MS
MODEST_INTERVAL_NS: Final = 60 * MS


def heights_max(nodes: int) -> int:
    """Return within how many heights whatever is offered must be committed: two rounds of first turns, and the way.

    The way: a record may miss the block in progress, and the two that other leaders make before it has reached them.
    """
    return 2 * nodes + 3


class FloodCheckers(Checkers):
    """All other invariants, and how long the modest wait."""

    def __init__(self, wait_heights_max: int) -> None:
        super().__init__()
        self.offered: dict[bytes, tuple[str, int]] = {}
        """Who offered a record that no block contains yet, and at which height."""
        self.waits_heights: list[int] = []
        self._wait_heights_max = wait_heights_max

    def offer(self, node: SimulatedNode, body: bytes) -> None:
        """A modest node has a record from now on, whether or not its mempool takes it at once."""
        self.offered[body] = (node.node_id, max(self.committed, default=0))

    def _check_order(self, node: SimulatedNode, block: Block) -> None:
        super()._check_order(node, block)
        for body in (body for bundle in block.bundles for body in bundle.transactions):
            if (found := self.offered.pop(body, None)) is not None:
                self.waits_heights.append(block.height - found[1])
        for name, height in self.offered.values():
            good = block.height - height <= self._wait_heights_max
            self._require(good, 23, node, f"a record of {name} waits since height {height}: {block.height}")


@dataclass(frozen=True)
class FloodResult:
    """What a flood did to the modest; `violation` is None if every invariant held."""

    heights: int
    flooded: int
    """Records of flooding nodes in blocks."""
    served: int
    """Records of modest nodes in blocks."""
    wait_heights_max: int
    violation: str | None


class Greedy:
    """The operator of a correct node: offers full batches until one is refused, all the time."""

    def __init__(self, world: World, node: SimulatedNode, first_token: int) -> None:
        self.stopped = False
        self.records: dict[int, tuple[SaeRegistered, ...]] = {}
        """What was submitted, by token; the last was refused."""
        self._world = world
        self._node = node
        self._tokens = itertools.count(first_token)
        self._refused = False
        node.corrupt = self._listen
        world.after(FLOOD_INTERVAL_NS, self._submit)

    def _listen(self, outputs: list[Output]) -> list[Output]:
        self._refused |= any(isinstance(output, TransactionsRefused) for output in outputs)
        return outputs

    def _submit(self) -> None:
        if self.stopped:
            return
        self._refused = False
        while not self._refused:
            token = next(self._tokens)
            names = [f"greedy-{token}-{number}" for number in range(PARAMETERS.bundle_transactions_max)]
            self.records[token] = tuple(SaeRegistered(name, self._node.node_id) for name in names)
            self._node.take(TransactionsSubmitted(token, self.records[token]))
        self._world.after(FLOOD_INTERVAL_NS, self._submit)


class Flooder:
    """A liar that sends as many odd bundles as there are places, to every neighbour others now and then."""

    def __init__(self, world: World, node: SimulatedNode) -> None:
        self.stopped = False
        self._world = world
        self._node = node
        self._random = random.Random(f"{world.seed}/{node.node_id}/flood")
        node.byzantine = True
        world.after(FLOOD_INTERVAL_NS, self._flood)

    def _flood(self) -> None:
        if self.stopped:
            return
        count = 2 * self._world.settings.mempool.sender_bundles_max
        neighbours = self._world.network.neighbours(self._node.node_id)
        payloads: list[bytes] = []
        for place, peer in enumerate(neighbours):
            if place == 0 or self._random.random() < 0.3:
                made = odd_bundles(self._world, self._node, count, self._random)
                payloads = [encode(BundleMessage(bundle.encoded)) for bundle in made]
            for payload in payloads:
                self._world.send(self._node.node_id, SendMessage(peer, payload, urgent=False, after_sync=False))
        self._world.after(FLOOD_INTERVAL_NS, self._flood)


class Modest:
    """Offers one record of a node at a time, again until it is admitted."""

    def __init__(self, world: World, node: SimulatedNode, checkers: FloodCheckers) -> None:
        self.stopped = False
        self._world = world
        self._node = node
        self._checkers = checkers
        self._random = random.Random(f"{world.seed}/{node.node_id}/modest")
        self._count = 0
        self._later()

    def _later(self) -> None:
        self._world.after(int(self._random.expovariate(1 / MODEST_INTERVAL_NS)), self._offer)

    def _offer(self) -> None:
        if self.stopped:
            return
        self._count += 1
        record = SaeRegistered(f"modest-{self._node.node_id}-{self._count}", self._node.node_id)
        self._checkers.offer(self._node, encode_transaction(record))
        self._insist(record)
        self._later()

    def _insist(self, record: SaeRegistered) -> None:
        """Submit, and again in a while as long as the record neither waits in the mempool nor is in a block."""
        replica, body = self._node.replica, encode_transaction(record)
        assert replica is not None, "nobody crashes here"
        if body in self._checkers.offered and not replica.mempool.contains(self._node.node_id, body):
            self._node.take(TransactionsSubmitted(self._count, (record,)))
            self._world.after(5 * FLOOD_INTERVAL_NS, self._insist, record)


def run_flood(
    seed: int, nodes: int = 7, *, greedy: int = 0, liars: int = 0, duration_ns: int = 3_000 * MS, topology: str = "mesh"
) -> FloodResult:
    """Let the first nodes flood, the liars among them first, until a moment; then all that waits must be committed."""
    checkers = FloodCheckers(heights_max(nodes))
    world = World(seed, nodes, topology, replace(SETTINGS, mempool=MEMPOOL), checkers, nodes, 0, PARAMETERS)
    checkers.world, checkers.members = world, Members(world.genesis)
    hosts = list(world.nodes.values())
    for node in hosts:
        world.at(0, node.start)
    lying = [Flooder(world, node) for node in hosts[:liars]]
    eager = [Greedy(world, node, 10**6 * (1 + n)) for n, node in enumerate(hosts[liars : liars + greedy])]
    modest = [Modest(world, node, checkers) for node in hosts[liars + greedy :]]
    violation = None
    try:
        world.run_until(duration_ns)
        senders: list[Flooder | Greedy | Modest] = [*lying, *eager, *modest]
        for sender in senders:
            sender.stopped = True
        _check_end(world, checkers, eager)
    except (AssertionError, MalformedEncoding) as error:
        violation = f"{type(error).__name__}: {error}"
    served = len(checkers.waits_heights)
    return FloodResult(
        heights=max(checkers.committed, default=0),
        flooded=len(checkers.executed) - served,
        served=served,
        wait_heights_max=max(checkers.waits_heights, default=0),
        violation=violation,
    )


def _check_end(world: World, checkers: FloodCheckers, eager: list[Greedy]) -> None:
    """Whatever a node was told to be admitted is committed in the end, a greedy one's too."""
    promised = [
        encode_transaction(record)
        for greedy in eager
        for token, records in greedy.records.items()
        if token in checkers.admitted
        for record in records
    ]

    def all_done() -> bool:
        return not checkers.offered and checkers.executed.issuperset(promised)

    if not world.run_until(world.now_ns + 30_000 * MS, all_done):
        lost = len(set(promised) - checkers.executed)
        raise Violation(f"invariant 16: {lost} admitted records and {len(checkers.offered)} more are not committed")
