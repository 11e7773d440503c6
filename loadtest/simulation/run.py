"""One run: a safety phase full of faults, healing, a liveness phase, and the checks at the end."""

import random
from dataclasses import dataclass, field, replace

from ledger.inputs import TransactionsSubmitted
from ledger.mempool import MempoolSettings
from ledger.replica import Replica, ReplicaSettings
from ledger.transactions import AlarmRaised, KeyDelivered, SaeRegistered, Transaction, encode
from loadtest.simulation.checkers import Checkers, Violation
from loadtest.simulation.churn import Churn, ChurnDraw
from loadtest.simulation.faults import FaultPlan, Faults, choose_topology
from loadtest.simulation.history import check_history
from loadtest.simulation.members import Members
from loadtest.simulation.network import MS
from loadtest.simulation.world import SimulatedNode, World

SETTINGS = ReplicaSettings(
    view_timeout_min_ns=200 * MS,
    finalize_timeout_ns=80 * MS,
    heartbeat_ns=1_000 * MS,
    anti_entropy_ns=300 * MS,
    catch_up_timeout_ns=500 * MS,
    snapshot_interval=3,
    snapshot_distance=5,
    keep_blocks=4,
    mempool=MempoolSettings(age_heights_max=4),
)
"""Snapshots and pruning come often, so that every run restarts from them and fetches them; bundles grow old soon."""
LIVENESS_BOUND_NS = 300_000 * MS
"""After healing everything must be committed within this: view timers may have grown to 60 · T0 each."""
HEIGHTS_AFTER_HEALING = 3


def settings_of(seed: int) -> ReplicaSettings:
    """Return the settings of a seed: in half of them the leader collects the votes, however few vote."""
    return replace(SETTINGS, direct_votes_max=0) if seed % 4 < 2 else SETTINGS


@dataclass(frozen=True)
class Traffic:
    """What was counted since some moment of the run."""

    heights: int
    events: int
    messages: int
    bytes_sent: int


@dataclass(frozen=True)
class RunResult:
    """What one run did; `violation` is None if every invariant held. `settled`: from the middle of the plan on."""

    seed: int
    nodes: int
    topology: str
    liars: tuple[str, ...]
    events: int
    checks: int
    heights: int
    adoptions: int
    wipes: int
    views_max: int
    crashes: int
    transactions: int
    messages: int
    bytes_sent: int
    settled: Traffic
    set_changes: int
    decisions: int
    rotations: int
    upgraded: bool
    trace_hash: str
    violation: str | None
    trace: tuple[str, ...] = field(default=(), repr=False)


class Workload:
    """Honest nodes submit records at random moments; remembers what was admitted under which token."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.submitted: dict[int, tuple[Transaction, ...]] = {}
        self.submitters: dict[int, str] = {}
        self._world = world
        self._faults = faults
        self._random = random.Random(f"{world.seed}/workload")
        self.stopped = False
        world.after(10 * MS, self._submit)

    def _submit(self) -> None:
        if self.stopped:
            return
        node = self._random.choice(self._faults.honest)
        if node.is_up:
            token = len(self.submitted) + 1
            count = self._random.randint(1, 3)
            self.submit(node, tuple(self._transaction(node.node_id, token, i) for i in range(count)))
        self._world.after(int(self._random.expovariate(1 / (120 * MS))), self._submit)

    def submit(self, node: SimulatedNode, transactions: tuple[Transaction, ...]) -> None:
        """Give a node records of its own, and remember them."""
        token = len(self.submitted) + 1
        self.submitted[token] = transactions
        self.submitters[token] = node.node_id
        node.take(TransactionsSubmitted(token, transactions))

    def _transaction(self, node_id: str, token: int, index: int) -> Transaction:
        choice = self._random.random()
        sae = f"sae-{node_id}"
        if choice < 0.3:
            return SaeRegistered(f"sae-{token}-{index}", node_id)
        if choice < 0.5:
            names = self._world.node_ids
            link = f"{node_id}-{names[(names.index(node_id) + 1) % len(names)]}"
            return AlarmRaised(link, token, "qber", 110_000 + index, node_id)
        key_id = (token * 16 + index).to_bytes(16, "big")
        return KeyDelivered(key_id, sae, sae, 256, (node_id,), ())


def run_seed(
    seed: int,
    nodes: int = 7,
    *,
    validators: int | None = None,
    topology: str | None = None,
    plan: FaultPlan | None = None,
    keep_trace: bool = False,
    settings: ReplicaSettings | None = None,
    dropped_tables: frozenset[str] = frozenset(),
    disk_checks: bool = True,
) -> RunResult:
    """Run one seed to its end or to its first violation.

    `settings` are those of the seed where none are given. `dropped_tables` breaks every disk, and without
    `disk_checks` none looks at its checksums (for tests).
    """
    plan = plan or FaultPlan()
    settings = settings or settings_of(seed)
    voting = nodes if validators is None else validators
    checkers = Checkers()
    chosen = topology or choose_topology(seed)
    draw = ChurnDraw.of(seed, plan, voting)
    world = World(seed, nodes, chosen, settings, checkers, voting, draw.spares, draw.parameters)
    checkers.world, checkers.members = world, Members(world.genesis)
    world.trace_lines = [] if keep_trace else None
    faults = Faults(world, plan, min(voting, draw.parameters.committee_max))
    for node in world.nodes.values():
        node.disk.dropped_tables = dropped_tables
        node.disk.checks = disk_checks
        if node.node_id not in world.spare_ids:
            world.at(0, node.start)
    workload = Workload(world, faults)
    middle: list[Traffic] = []
    world.at(plan.duration_ns // 2, lambda: middle.append(_traffic(world, checkers)))
    churn = Churn(world, plan, faults, checkers.members, draw, workload.submit)
    violation = None
    try:
        world.run_until(plan.duration_ns)
        _heal_and_check(world, faults, churn, workload, checkers)
    except Exception as error:  # whatever the cores raise is a finding of this seed
        violation = f"{type(error).__name__}: {error}"
    end, start = _traffic(world, checkers), middle[0] if middle else Traffic(0, 0, 0, 0)
    return RunResult(
        seed=seed,
        nodes=nodes,
        topology=chosen,
        liars=tuple(name for name, node in world.nodes.items() if node.byzantine),
        events=world.events,
        checks=checkers.checks,
        heights=max(checkers.committed, default=0),
        adoptions=checkers.adoptions,
        wipes=checkers.wipes,
        views_max=max((view for _, view in checkers.notarized), default=0),
        crashes=sum(node.lives - 1 for node in world.nodes.values()),
        transactions=len(checkers.executed),
        messages=world.network.messages_sent,
        bytes_sent=world.network.bytes_sent,
        settled=Traffic(
            end.heights - start.heights,
            end.events - start.events,
            end.messages - start.messages,
            end.bytes_sent - start.bytes_sent,
        ),
        set_changes=checkers.members.changes,
        decisions=sum(1 for ballot in checkers.members.ballots.values() if ballot.decided),
        rotations=churn.rotations,
        upgraded=(checkers.members.activation_height or checkers.members.height + 1) <= checkers.members.height,
        trace_hash=world.trace_hash(),
        violation=violation,
        trace=tuple(world.trace_lines or ()),
    )


def _traffic(world: World, checkers: Checkers) -> Traffic:
    network, height = world.network, max(checkers.committed, default=0)
    return Traffic(height, world.events, network.messages_sent, network.bytes_sent)


def _heal_and_check(world: World, faults: Faults, churn: Churn, workload: Workload, checkers: Checkers) -> None:
    faults.heal()
    churn.heal()
    end_ns = world.now_ns + LIVENESS_BOUND_NS
    _check_versions(world, faults, churn, checkers, end_ns)
    churn.upgrade()
    goal = max(checkers.committed, default=0) + HEIGHTS_AFTER_HEALING

    def all_reached() -> bool:
        replicas = [node.replica for node in faults.honest]
        return all(replica is not None and replica.height >= goal for replica in replicas)

    if not world.run_until(end_ns, all_reached):
        heights = [node.replica.height if node.replica else None for node in faults.honest]
        raise Violation(f"invariant 16: heights {heights} do not reach {goal} within the bound after healing")
    workload.stopped = True

    def all_executed() -> bool:
        return not _missing(workload, checkers)

    if not world.run_until(end_ns, all_executed):
        missing = _missing(workload, checkers)
        raise Violation(f"invariant 16: {len(missing)} admitted transactions are not committed, such as {missing[0]}")
    _check_evidence(world, faults, end_ns)
    for node in faults.honest:
        _check_replay(world, node.node_id)
    check_history(world, checkers, faults.honest)


def _check_versions(world: World, faults: Faults, churn: Churn, checkers: Checkers, end_ns: int) -> None:
    """Old programs stop right before a version that they do not know, and the others go on, if they are a quorum."""
    activation_height = checkers.members.activation_height
    if activation_height is None or not churn.goes_on_without_old_programs():
        return
    old = {node.node_id for node in churn.old_programs}

    def all_arrived() -> bool:
        if not churn.goes_on_without_old_programs():
            return True  # a decision that was under way took their quorum
        wanted = [
            (node.replica, activation_height - 1 if node.node_id in old else activation_height + 1)
            for node in faults.honest
        ]
        return all(replica is not None and replica.height >= height for replica, height in wanted)

    if not world.run_until(end_ns, all_arrived):
        heights = {node.node_id: node.replica.height if node.replica else None for node in faults.honest}
        raise Violation(f"invariant 16: heights {heights} do not pass the activation at {activation_height}")
    for node in churn.old_programs:
        replica = node.replica
        if replica is not None and replica.height == activation_height - 1 and not replica.upgrade_needed:
            raise Violation(f"invariant 16: {node.node_id} does not say that it needs a newer program")


def _check_evidence(world: World, faults: Faults, end_ns: int) -> None:
    """Invariant 14: every equivocation that an honest node of the chain saw is recorded on the chain.

    One that is not admitted, or revoked, has no name under which it could report what it saw.
    """
    seen = sorted(
        {
            (evidence.one.signer, evidence.one.height)
            for node in faults.honest
            if node.replica and (entry := node.replica.state.node(node.node_id)) and not entry.revoked
            for evidence in node.replica.evidence.values()
        }
    )

    def unrecorded() -> list[tuple[str, int]]:
        replicas = [node.replica for node in faults.honest if node.replica is not None]
        return [each for each in seen if any(replica.state.equivocation(*each) is None for replica in replicas)]

    if not world.run_until(end_ns, lambda: not unrecorded()):
        raise Violation(f"invariant 14: equivocations that are not on the chain: {unrecorded()[:3]}")


def _missing(workload: Workload, checkers: Checkers) -> list[Transaction]:
    """What was admitted and is on no chain; a node that was removed can send nothing any more."""
    removed = {member.node_id for member in checkers.members.now.values() if member.removed}
    admitted = sorted(token for token in checkers.admitted if workload.submitters[token] not in removed)
    return [each for token in admitted for each in workload.submitted[token] if encode(each) not in checkers.executed]


def _check_replay(world: World, node_id: str) -> None:
    """Invariant 18: what the disk holds replays to the state in memory (or to an earlier one, if a sync is on)."""
    node = world.nodes[node_id]
    again = Replica(
        genesis=world.genesis,
        keys=node.keys,
        verifier=world.verifier,
        settings=world.settings,
        jitter=random.Random(0),
        stored=node.disk.stored(),
        versions=node.versions,
    )
    assert node.replica is not None
    same = again.height != node.replica.height or again.state.root == node.replica.state.root
    if not same:
        raise Violation(f"invariant 18: the disk of {node_id} replays to another state at height {again.height}")
