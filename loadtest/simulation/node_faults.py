"""What goes wrong around whole nodes, drawn from the seed: network, crashes at any sync, false frames, eavesdroppers.

The classical channel belongs to the adversary between two honest nodes: frames are replayed, changed, and made up. That
is more than TLS leaves anybody, and what a hostile neighbour can do. Only frames that a tag or a signature protects are
changed; what an honest trusted node says about a transfer is believed by design.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from loadtest.simulation.network import MS, Conditions
from loadtest.simulation.node_world import Host, NodeWorld
from qnode import wire
from qnode.effects import SendTo
from qnode.inputs import SetAttack

PROTECTED: Final = (wire.SessionFrame, wire.LightFrame, wire.KeyTransfer, wire.LedgerFrame)
REMEMBERED_FRAMES_MAX: Final = 200
LIES: Final = 0.01
LIES_OF_TRANSFERS: Final = 0.1
"""Shares of frames that meet the adversary; a session has a hundred, a transfer one per hop."""


@dataclass(frozen=True)
class NodeFaultPlan:
    """How hostile a run is; `duration_ns` is the length of the safety phase."""

    duration_ns: int = 10_000 * MS
    crash_interval_ns: int = 3_000 * MS
    crashes: bool = True
    partitions: bool = True
    bad_network: bool = True
    clocks: bool = True
    false_frames: bool = True
    eavesdroppers: bool = True

    @classmethod
    def quiet(cls, duration_ns: int) -> Self:
        """Return the plan without any fault."""
        off = dict.fromkeys(("crashes", "partitions", "bad_network", "clocks", "false_frames", "eavesdroppers"), False)
        return cls(duration_ns, **off)


class NodeFaults:
    """Schedules the faults of one run on its world."""

    def __init__(self, world: NodeWorld, plan: NodeFaultPlan) -> None:
        self._world = world
        self._random = random.Random(f"{world.seed}/faults")
        self._healed = False
        self._seen: list[bytes] = []
        self.false_frames = 0
        self.attacks = 0
        if plan.bad_network:
            self._repeat(2_500 * MS, self._change_conditions)
        if plan.partitions:
            self._repeat(2_500 * MS, self._change_partition)
            self._repeat(2_500 * MS, self._flap)
        if plan.crashes:
            self._repeat(plan.crash_interval_ns, self._crash)
            for host in world.hosts.values():
                host.crash_at_syncs = {self._random.randint(1, 300) for _ in range(4)}
        if plan.clocks:
            self._repeat(3_000 * MS, self._jump_clock)
        if plan.eavesdroppers:
            self._repeat(5_000 * MS, self._attack)
        if plan.false_frames:
            world.intercept = self._intercept

    def _repeat(self, mean_ns: int, fault: Callable[[], None]) -> None:
        def happen() -> None:
            if not self._healed:
                fault()
                self._world.after(int(self._random.expovariate(1 / mean_ns)), happen)

        self._world.after(int(self._random.expovariate(1 / mean_ns)), happen)

    # ---- network, processes, clocks

    def _change_conditions(self) -> None:
        """Half of the time a good network; else latency, reordering, duplicates, and now and then a lost frame."""
        draw = self._random.random
        bad = draw() < 0.5
        self._world.keeps_order = not bad or draw() < 0.7
        self._world.network.conditions = Conditions(
            latency_ns=int(draw() ** 2 * 20 * MS) + MS // 10,
            jitter_ns=int(draw() ** 2 * 30 * MS) if bad else 0,
            loss=draw() ** 2 * 0.05 if bad else 0.0,
            duplication=draw() * 0.1 if bad else 0.0,
        )
        self._world.note(f"network: {self._world.network.conditions}")

    def _change_partition(self) -> None:
        """Nobody, one direction of some pairs, or two halves; frames vanish and nobody is told."""
        names, network = self._world.node_ids, self._world.network
        choice = self._random.random()
        network.blocked.clear()
        if choice < 0.25:
            half = set(self._random.sample(names, self._random.randint(1, len(names) - 1)))
            network.blocked |= {(a, b) for a in names for b in names if (a in half) != (b in half)}
        elif choice < 0.5:
            network.blocked |= {(a, b) for a in names for b in names if a != b and self._random.random() < 0.2}
        self._world.note(f"partition: {len(network.blocked)} directions blocked")

    def _flap(self) -> None:
        """Reset a connection in the middle of whatever it carries."""
        one, other = self._random.choice(self._world.network.edges())
        self._world.note(f"the connection {one}-{other} is reset")
        self._world.drop(one, other)

    def _crash(self) -> None:
        """Crash some, now and then all, and start them again."""
        names = self._world.node_ids
        count = len(names) if self._random.random() < 0.15 else self._random.randint(1, 2)
        for name in self._random.sample(names, min(count, len(names))):
            host = self._world.hosts[name]
            if host.is_up:
                self._world.note(f"crash of {name}")
                host.crash()
                self._world.after(self._world.restart_ns(), host.restart)

    def _jump_clock(self) -> None:
        """The next life of a node begins with a clock that is up to half a minute off."""
        host = self._world.hosts[self._random.choice(self._world.node_ids)]
        host.wall_skew_ns = int(self._random.uniform(-30_000, 30_000) * MS)

    def _attack(self) -> None:
        """Put an eavesdropper on a link, for a while."""
        link = self._random.choice(self._world.genesis.links)
        host = self._world.hosts[link.transmitter]
        self._world.note(f"eavesdropper on {link.link_id}")
        self.attacks += 1
        host.ask(SetAttack(link.link_id, "intercept_resend", (("fraction", 1.0),)), lambda answer: None)
        stop_ns = int(self._random.random() * 2_000 * MS)
        self._world.after(stop_ns, host.ask, SetAttack(link.link_id, None), lambda answer: None)

    # ---- frames

    def _intercept(self, source: str, effect: SendTo) -> list[bytes]:
        """Let a frame through, alone or with false ones, or change it."""
        frame = effect.frame
        record = wire.decode(frame)
        if isinstance(record, wire.SessionFrame | wire.KeyTransfer | wire.SessionRefused | wire.LightTaken):
            self._seen = [*self._seen[-REMEMBERED_FRAMES_MAX:], frame]
        probability = LIES_OF_TRANSFERS if isinstance(record, wire.KeyTransfer) else LIES
        if self._healed or self._random.random() >= probability:
            return [frame]
        self.false_frames += 1
        choice = self._random.randrange(4)
        if choice == 0 and self._seen:
            return [frame, self._random.choice(self._seen)]
        if choice == 1:
            return [frame, self._random.randbytes(self._random.randint(0, 200))]
        if choice == 2 and isinstance(record, PROTECTED):
            changed = bytearray(frame)
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
            return [bytes(changed)]
        return [frame, frame]

    def heal(self) -> None:
        """End all faults: the network is good, nobody listens in, everybody runs."""
        self._healed = True
        network = self._world.network
        network.conditions = Conditions()
        network.blocked.clear()
        self._world.keeps_order = True
        self._world.note("healed")
        for host in self._world.hosts.values():
            host.crash_at_syncs = set()
            host.wall_skew_ns = 0
            if host.is_up and host.clock_is_off:  # the operator sets the clock and starts the daemon again
                host.crash()
            host.restart()
        for link in self._world.genesis.links:
            transmitter: Host = self._world.hosts[link.transmitter]
            transmitter.ask(SetAttack(link.link_id, None), lambda answer: None)
