"""What goes wrong during a run, drawn from its seed: crashes, partitions, bad networks, clocks, and who lies."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from loadtest.simulation.byzantine import LIES, Byzantine
from loadtest.simulation.network import MS, TOPOLOGIES, Conditions, Network
from loadtest.simulation.world import SimulatedNode, World


@dataclass(frozen=True)
class FaultPlan:
    """How hostile a run is; `duration_ns` is the length of the safety phase."""

    duration_ns: int = 12_000 * MS
    crashes: bool = True
    partitions: bool = True
    bad_network: bool = True
    clocks: bool = True
    stops: bool = True
    disks: bool = True
    """Bits of stored rows flip, and disks are full for a while."""
    broken_machines: bool = True
    """Some of those that may fail do not lie: their key runs on two machines, or their disk goes back in time."""
    churn: bool = True
    """Members, validators, keys and versions change meanwhile."""
    lies: tuple[str, ...] = LIES
    liars_max: int | None = None
    """At most this many liars; None for ⌊(n−1)/3⌋ of the validators."""

    @classmethod
    def quiet(cls, duration_ns: int) -> Self:
        """Return the plan without any fault."""
        return cls(
            duration_ns,
            crashes=False,
            partitions=False,
            bad_network=False,
            clocks=False,
            stops=False,
            disks=False,
            churn=False,
            lies=(),
        )


def choose_topology(seed: int) -> str:
    """Draw an overlay; half of the runs are a full mesh."""
    return random.Random(f"{seed}/topology").choice(("mesh", *TOPOLOGIES))


class Faults:
    """Schedules the faults of one run on its world."""

    def __init__(self, world: World, plan: FaultPlan, validators: int) -> None:
        self._world = world
        self._plan = plan
        self._random = random.Random(f"{world.seed}/faults")
        self._healed = False
        self._disk_random = random.Random(f"{world.seed}/disks")
        self._may_break = (validators - 1) // 3
        # Where members change, any node may come to vote, and then what it said before its disk was lost counts.
        self._voting = frozenset(world.node_ids if plan.churn else world.node_ids[:validators])
        self._choose_liars(validators)
        if plan.bad_network:
            self._repeat(2_000 * MS, self._change_conditions)
        if plan.partitions and len(world.node_ids) > 1:
            self._repeat(1_500 * MS, self._change_partition)
            self._repeat(1_200 * MS, self._flap)
        if plan.crashes:
            self._repeat(1_500 * MS, self._crash)
            self._choose_sync_crashes()
        if plan.clocks:
            self._repeat(4_000 * MS, self._jump_clock)
        if plan.stops:
            self._repeat(4_000 * MS, self._stop)
        if plan.disks:
            self._repeat(5_000 * MS, self._damage_disk, self._disk_random)
            self._repeat(4_000 * MS, self._fill_disk, self._disk_random)

    @property
    def honest(self) -> list[SimulatedNode]:
        """The nodes that do not lie."""
        return [node for node in self._world.nodes.values() if not node.byzantine]

    def _repeat(self, mean_ns: int, fault: Callable[[], None], generator: random.Random | None = None) -> None:
        chance = generator or self._random

        def happen() -> None:
            if self._healed:
                return
            fault()
            self._world.after(int(chance.expovariate(1 / mean_ns)), happen)

        self._world.after(int(chance.expovariate(1 / mean_ns)), happen)

    def _choose_liars(self, validators: int) -> None:
        faulty_max = (validators - 1) // 3
        limit = faulty_max if self._plan.liars_max is None else min(self._plan.liars_max, faulty_max)
        if not self._plan.lies:
            return
        names = self._random.sample(self._world.node_ids[:validators], self._random.randint(0, limit))
        while names and not connects(self._world.network, set(self._world.node_ids) - set(names)):
            names.pop()
        self._may_break -= len(names)
        for name in names:
            if self._plan.broken_machines and self._random.random() < 0.3:
                self._break_machine(name)
                continue
            count = self._random.randint(1, 4)
            lies = tuple(sorted(self._random.sample(self._plan.lies, min(count, len(self._plan.lies)))))
            self._world.note(f"{name} lies: {', '.join(lies)}")
            generator = random.Random(f"{self._world.seed}/{name}/lies")
            Byzantine(self._world, self._world.nodes[name], lies, generator)

    def _break_machine(self, name: str) -> None:
        """Copy a key to a second machine, or put a disk back to an earlier state, or wipe it, with the key kept."""
        world, node = self._world, self._world.nodes[name]
        node.byzantine = True
        choice = self._random.choice(("twin", "backup", "wipe"))
        world.note(f"{name} is broken: {choice}")
        if choice == "twin":
            world.at(0, world.copy_key(name).start)
            return
        backup_ns = int(self._random.random() * self._plan.duration_ns / 2)
        restore_ns = backup_ns + int(self._random.random() * self._plan.duration_ns / 2)
        if choice == "wipe":
            world.at(restore_ns, self._restore, node, {})
            return

        def back_up() -> None:
            tables = {table: dict(rows) for table, rows in node.disk.tables.items()}
            world.at(restore_ns, self._restore, node, tables)

        world.at(backup_ns, back_up)

    def _restore(self, node: SimulatedNode, tables: dict[str, dict[bytes, bytes]]) -> None:
        """The machine goes down, and comes up with an older disk."""
        if node.is_up:
            node.crash()
        node.disk.replace(tables)
        self._world.note(f"{node.node_id} starts from an older disk")
        self._world.after(self._world.restart_ns(), self._start, node)

    def _stop(self) -> None:
        """Stop a process for up to three seconds; its connections stay up."""
        node = self._world.nodes[self._random.choice(self._world.node_ids)]
        node.stop(int(self._random.random() * 3_000 * MS))

    def _change_conditions(self) -> None:
        draw = self._random.random
        self._world.network.conditions = Conditions(
            latency_ns=int(draw() ** 2 * 40 * MS) + MS // 10,
            jitter_ns=int(draw() ** 2 * 100 * MS),
            loss=draw() ** 2 * 0.4,
            duplication=draw() * 0.2,
        )
        self._world.note(f"network: {self._world.network.conditions}")

    def _change_partition(self) -> None:
        """Nobody, one direction of some pairs, or two halves."""
        names, network = self._world.node_ids, self._world.network
        choice = self._random.random()
        network.blocked.clear()
        if choice < 0.4:
            half = set(self._random.sample(names, self._random.randint(1, len(names) - 1)))
            network.blocked |= {(a, b) for a in names for b in names if (a in half) != (b in half)}
        elif choice < 0.7:
            network.blocked |= {(a, b) for a in names for b in names if a != b and self._random.random() < 0.3}
        self._world.note(f"partition: {len(network.blocked)} directions blocked")

    def _flap(self) -> None:
        """Break a connection, and mend it a little later."""
        edges = self._world.network.edges()
        one, other = edges[self._random.randrange(len(edges))]
        edge = frozenset((one, other))
        self._world.network.broken.add(edge)
        self._world.after(self._world.detection_ns, self._world.lose, one, other)
        self._world.after(self._world.detection_ns, self._world.lose, other, one)
        self._world.after(int(self._random.random() * 1_000 * MS) + 30 * MS, self._mend, one, other)

    def _mend(self, one: str, other: str) -> None:
        self._world.network.broken.discard(frozenset((one, other)))
        self._world.connect(one, other)

    def _crash(self) -> None:
        """Crash some, now and then all, and start them again."""
        count = len(self._world.node_ids) if self._random.random() < 0.1 else self._random.randint(1, 3)
        for name in self._random.sample(self._world.node_ids, min(count, len(self._world.node_ids))):
            node = self._world.nodes[name]
            if node.is_up:
                self._world.note(f"crash of {name}")
                node.crash()
                self._world.after(self._world.restart_ns(), self._start, node)

    def _start(self, node: SimulatedNode) -> None:
        if not node.is_up:
            node.start()

    def _damage_disk(self) -> None:
        """A bit of a stored row flips while the power is off; the node refuses that disk, and comes back with none.

        Where neighbours may be cut off, or forget as well, they cannot be relied on to tell a validator what it said
        (SPEC 7.5): it counts among the f that may do anything then.
        """
        name = self._disk_random.choice(self._world.node_ids)
        node, plan = self._world.nodes[name], self._plan
        if node.byzantine or not all(each.is_up for each in self._world.nodes.values()):
            return
        if name in self._voting and (plan.crashes or plan.partitions or plan.bad_network or plan.stops or plan.lies):
            if self._may_break <= 0:
                return
            self._may_break -= 1
            node.byzantine = True
        node.crash()
        self._world.note(f"{name}: a bit flips in {node.disk.flip_bit(self._disk_random)}")
        self._world.after(self._world.restart_ns(), self._start, node)

    def _fill_disk(self) -> None:
        """No space for up to two seconds: the node stops at its next write, and starts when there is some again."""
        node = self._world.nodes[self._disk_random.choice(self._world.node_ids)]
        node.disk.full = True
        self._world.note(f"{node.node_id}: the disk is full")
        self._world.after(self._world.restart_ns(), self._make_space, node)

    def _make_space(self, node: SimulatedNode) -> None:
        node.disk.full = False
        self._start(node)

    def _choose_sync_crashes(self) -> None:
        for node in self._world.nodes.values():
            if self._random.random() < 0.5:
                node.crash_at_syncs = {self._random.randint(1, 400) for _ in range(6)}

    def _jump_clock(self) -> None:
        name = self._random.choice(self._world.node_ids)
        self._world.nodes[name].set_wall_skew(int(self._random.uniform(-60_000, 60_000) * MS))

    def heal(self) -> None:
        """End all faults but the liars: the network is good, clocks are right, everybody runs."""
        self._healed = True
        network = self._world.network
        network.conditions = Conditions()
        network.blocked.clear()
        self._world.note("healed")
        for one, other in self._world.network.edges():
            if frozenset((one, other)) in network.broken:
                self._mend(one, other)
        for node in self._world.nodes.values():
            node.crash_at_syncs = set()
            node.set_wall_skew(0)
            node.disk.full = False
            self._start(node)


def connects(network: Network, names: set[str]) -> bool:
    """Say whether these nodes reach each other without any other."""
    start = min(names)
    reached, frontier = {start}, [start]
    while frontier:
        for neighbour in network.neighbours(frontier.pop()):
            if neighbour in names and neighbour not in reached:
                reached.add(neighbour)
                frontier.append(neighbour)
    return reached == names
