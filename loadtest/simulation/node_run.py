"""One run of whole nodes: applications fetch keys through a safety phase full of faults; then healing, and the end."""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ledger.genesis import GenesisLink
from loadtest.simulation.checkers import Violation
from loadtest.simulation.network import MS
from loadtest.simulation.node_checkers import NodeCheckers
from loadtest.simulation.node_faults import NodeFaultPlan, NodeFaults
from loadtest.simulation.node_world import NodeWorld
from qnode.inputs import Answer, GetKeys, GetKeysWithIds, KeysAnswer, RequestError

LIVENESS_BOUND_NS: Final = 180_000 * MS
"""After healing everything must work within this: a session that lost a frame is given up after 60 s, and clocks that
were set back by up to 30 s let blocks wait for as long."""


@dataclass(frozen=True)
class NodeRunResult:
    """What one run did; `violation` is None if everything held."""

    seed: int
    nodes: int
    topology: str
    events: int
    checks: int
    heights: int
    crashes: int
    sessions: int
    key_blocks: int
    keys_delivered: int
    keys_retrieved: int
    transfers: int
    false_frames: int
    attacks: int
    alarms: int
    messages: int
    bytes_sent: int
    trace_hash: str
    violation: str | None
    trace: tuple[str, ...] = field(default=(), repr=False)


def summary(results: Sequence[NodeRunResult], elapsed_s: float) -> dict[str, Any]:
    """Return the figures of many runs."""
    violations = [result for result in results if result.violation is not None]
    summed = ("checks", "heights", "crashes", "sessions", "key_blocks", "keys_delivered", "keys_retrieved", "transfers")
    events = sum(result.events for result in results)
    return {
        "runs": len(results),
        "events": events,
        "violations": len(violations),
        "violating_seeds": [result.seed for result in violations],
        "events_per_s": round(events / elapsed_s),
        **{
            name: sum(getattr(result, name) for result in results)
            for name in (*summed, "false_frames", "attacks", "alarms")
        },
        "seconds": round(elapsed_s, 1),
    }


class Applications:
    """Masters ask for keys at random moments and pass the IDs on; slaves fetch them, and try it twice."""

    def __init__(self, world: NodeWorld, checkers: NodeCheckers) -> None:
        self._world = world
        self._checkers = checkers
        self._random = random.Random(f"{world.seed}/applications")
        self.stopped = False
        self.unanswered: dict[bytes, int] = {}  # how often a slave asked for a key and heard nothing: it may be gone
        world.after(200 * MS, self._ask)

    def _ask(self) -> None:
        if self.stopped:
            return
        master, slave = self._random.sample(self._world.node_ids, 2)
        size_bits = self._random.choice((128, 256, 1024))
        for _ in range(self._random.choice((1, 1, 1, 5))):  # what comes at once shares transfers
            self._world.after(int(self._random.random() * 3 * MS), self._fetch, master, slave, size_bits)
        self._world.after(int(self._random.expovariate(1 / (100 * MS))), self._ask)

    def _fetch(self, master: str, slave: str, size_bits: int) -> None:
        self.fetch_key(master, slave, self._random.randint(1, 3), size_bits)

    def fetch_key(self, master: str, slave: str, number: int = 1, size_bits: int = 256) -> None:
        """Let the application at `master` ask for keys shared with the one at `slave`."""

        def done(answer: Answer) -> None:
            if isinstance(answer, KeysAnswer):
                key_ids = tuple(key.key_id for key in answer.keys)
                self._world.after(int(self._random.random() * 500 * MS), self._retrieve, master, slave, key_ids)
                if self._random.random() < 0.5:
                    self._world.after(int(self._random.random() * 5_000 * MS), self._retrieve, master, slave, key_ids)

        request = GetKeys(f"sae-{master}", f"sae-{slave}", number, size_bits)
        self._world.hosts[master].ask(request, done)

    def drain(self, link: GenesisLink, recorded: int) -> None:
        """Use up the key of a link, from both ends, until it has made a block more than `recorded`."""
        if _recorded(self._world, link.link_id) > recorded:
            return
        for one, other in ((link.transmitter, link.receiver), (link.receiver, link.transmitter)):
            self._world.hosts[one].ask(GetKeys(f"sae-{one}", f"sae-{other}", 1, 8192), lambda answer: None)
        self._world.after(1_000 * MS, self.drain, link, recorded)

    def _retrieve(self, master: str, slave: str, names: tuple[str, ...]) -> None:
        host = self._world.hosts[slave]
        if not host.is_up:
            return
        key_ids = [uuid.UUID(name).bytes for name in names]
        for key_id in key_ids:
            self.unanswered[key_id] = self.unanswered.get(key_id, 0) + 1

        def done(answer: Answer) -> None:
            for key_id in key_ids:
                self.unanswered[key_id] -= 1
                there = isinstance(answer, KeysAnswer) or key_id in self._checkers.retrieved
                if not there and self.unanswered[key_id] == 0:
                    raise Violation(f"K9: {slave} does not hold the key {uuid.UUID(bytes=key_id)} that {master} has")

        host.ask(GetKeysWithIds(f"sae-{slave}", f"sae-{master}", names), done)


def run_node_seed(
    seed: int,
    nodes: int = 4,
    *,
    topology: str | None = None,
    plan: NodeFaultPlan | None = None,
    keep_trace: bool = False,
    dropped_tables: frozenset[str] = frozenset(),
) -> NodeRunResult:
    """Run one seed to its end or to its first violation. `dropped_tables` breaks every disk (for tests)."""
    plan = plan or NodeFaultPlan()
    checkers = NodeCheckers()
    chosen = topology or random.Random(f"{seed}/topology").choice(("mesh", "ring"))
    world = NodeWorld(seed, nodes, chosen, checkers)
    checkers.world = world
    world.trace_lines = [] if keep_trace else None
    faults = NodeFaults(world, plan)
    for host in world.hosts.values():
        host.disk.dropped_tables = dropped_tables
        world.at(0, host.start)
    applications = Applications(world, checkers)
    violation = None
    try:
        world.run_until(plan.duration_ns)
        faults.heal()
        _check_liveness(world, applications, checkers)
        checkers.check_at_the_end(world)
    except (Violation, AssertionError) as error:
        violation = f"{type(error).__name__}: {error}"
    states = [host.node.state for host in world.hosts.values() if host.node is not None]
    links = max((list(state.links()) for state in states), key=lambda found: sum(x.blocks_recorded for x in found))
    return NodeRunResult(
        seed=seed,
        nodes=nodes,
        topology=chosen,
        events=world.events,
        checks=checkers.checks,
        heights=max(state.height for state in states),
        crashes=sum(host.lives - 1 for host in world.hosts.values()),
        sessions=checkers.sessions,
        key_blocks=sum(link.blocks_recorded for link in links),
        keys_delivered=len(checkers.keys),
        keys_retrieved=len(checkers.retrieved),
        transfers=checkers.transfers,
        false_frames=faults.false_frames,
        attacks=faults.attacks,
        alarms=sum(link.alarms_raised for link in links),
        messages=world.network.messages_sent,
        bytes_sent=world.network.bytes_sent,
        trace_hash=world.trace_hash() + checkers.digest(),
        violation=violation,
        trace=tuple(world.trace_lines or ()),
    )


def _check_liveness(world: NodeWorld, applications: Applications, checkers: NodeCheckers) -> None:
    """K9: every link makes key again, every pair of neighbours gets a key, and no key that waits is lost."""
    end_ns = world.now_ns + LIVENESS_BOUND_NS
    before = {link.link_id: _recorded(world, link.link_id) for link in world.genesis.links}

    def all_links_work() -> bool:
        return all(_recorded(world, link_id) > count for link_id, count in before.items())

    applications.stopped = True
    for link in world.genesis.links:  # one whose pool is full would rest
        applications.drain(link, before[link.link_id])
    if not world.run_until(end_ns, all_links_work):
        stuck = [link.link_id for link in world.genesis.links if _recorded(world, link.link_id) == before[link.link_id]]
        raise Violation(f"K9: the links {stuck} do not make key again within the bound after healing")
    pairs = [(link.transmitter, link.receiver) for link in world.genesis.links]
    waiting = [pair for pair in pairs for pair in (pair, pair[::-1])]
    while waiting:
        waiting = [pair for pair in waiting if not _delivers(world, checkers, *pair)]
        if world.now_ns > end_ns:
            raise Violation(f"K9: no key can be had between {waiting} within the bound after healing")
    _fetch_the_rest(world, applications, checkers, end_ns)


def _recorded(world: NodeWorld, link_id: str) -> int:
    found = [host.node.state.link(link_id) for host in world.hosts.values() if host.node is not None]
    return max(link.blocks_recorded for link in found if link is not None)


def _delivers(world: NodeWorld, checkers: NodeCheckers, master: str, slave: str) -> bool:
    """Whether a pair of applications gets a key now, at both ends the same."""
    answers: list[Answer] = []
    world.hosts[master].ask(GetKeys(f"sae-{master}", f"sae-{slave}"), answers.append)
    world.run_until(world.now_ns + 10_000 * MS, lambda: bool(answers))
    if not answers or not isinstance(answers[0], KeysAnswer):
        return False
    key_ids = tuple(key.key_id for key in answers[0].keys)
    world.hosts[slave].ask(GetKeysWithIds(f"sae-{slave}", f"sae-{master}", key_ids), answers.append)
    return world.run_until(world.now_ns + 1_000 * MS, lambda: len(answers) == 2 and isinstance(answers[1], KeysAnswer))


def _fetch_the_rest(world: NodeWorld, applications: Applications, checkers: NodeCheckers, end_ns: int) -> None:
    """A key that a master has and whose slave never asked must still be there; the chain must name every one."""
    for key_id in [each for each in checkers.missing_keys() if not applications.unanswered.get(each)]:
        refusals = 0
        for slave in world.node_ids:
            for master in world.node_ids:
                if slave != master and key_id not in checkers.retrieved:
                    answers: list[Answer] = []
                    request = GetKeysWithIds(f"sae-{slave}", f"sae-{master}", (str(uuid.UUID(bytes=key_id)),))
                    world.hosts[slave].ask(request, answers.append)
                    world.run_until(world.now_ns + 1_000 * MS, lambda answers=answers: bool(answers))  # type: ignore[misc]
                    refusals += isinstance(answers[0], RequestError)
        if key_id not in checkers.retrieved:
            raise Violation(f"K9: no slave can fetch the delivered key {uuid.UUID(bytes=key_id)}, {refusals} refusals")
