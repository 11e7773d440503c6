"""Whole nodes in virtual time: `qnode.node.Node` with its links, key store, relay, delivery and ledger, under a seed.

A simulated host keeps the order of `qnode.driver`: inputs that arrive during a sync wait for it (but for those that
bring records, which are stepped at once), a round steps the node with all of them, early messages leave, the writes are
synced, then the rest leaves. Jobs run at once and their results
arrive later, as inputs. What is real: every core. What is simulated: network, disk, clock, processor time, signatures.
"""

import hashlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from ledger.genesis import Genesis, GenesisLink, GenesisNode, GenesisSae
from ledger.identity import OwnKeys
from ledger.outputs import Erase, Store
from ledger.replica import ReplicaSettings
from ledger.signatures import SimulatedSigner, SimulatedVerifier
from loadtest.simulation.disk import Batch, Disk
from loadtest.simulation.network import MS, Network
from loadtest.simulation.timeline import Timeline
from protocol.entropy import SeededEntropy
from protocol.quantum.link import LinkParameters
from protocol.session import SessionParameters
from qnode.delivery import DeliveryLimits
from qnode.driver import brings_records
from qnode.effects import Delete, Disconnect, Effect, Log, Put, Respond, RunJob, SendTo
from qnode.inputs import Answer, FrameReceived, Input, JobDone, PeerConnected, PeerLost, Request, Requested, Ticked
from qnode.link_setup import LinkConfiguration
from qnode.node import Node, NodeSetup

WALL_EPOCH_NS: Final = 1_800_000_000_000_000_000
JOB_NS: Final = 2 * MS
BACK_OFF_NS: Final = 1_000 * MS
RECONNECT_NS: Final = 100 * MS
DETECTION_NS: Final = 20 * MS
IDLE_TICKS_MAX: Final = 100
"""Ticks at one moment after which the node's driver would be seen to spin."""

BLOCK_PULSES: Final = 200_000
POOL_TARGET_BITS: Final = 40_000
PARAMETERS: Final = LinkParameters.from_mapping(
    {
        "source": {"model": "single_photon", "pulse_rate_hz": 1e7},
        "channel": {"length_km": 5},
        "detector": {"efficiency_0": 0.9, "efficiency_1": 0.9, "dead_time_ns": 0.0, "misalignment": 0.01},
    }
)
LIMITS: Final = DeliveryLimits(256, 64, 8192, 128, 4096)


class NodeObserver(Protocol):
    """Sees everything that the checkers need; raises to stop a run."""

    def on_start(self, host: "Host") -> None:
        """After a node was made from its disk."""
        ...

    def on_step(self, host: "Host") -> None:
        """After every step, before anything of it is carried out."""
        ...

    def on_send(self, host: "Host", effect: SendTo) -> None:
        """Right before a frame leaves a node."""
        ...

    def on_arrive(self, host: "Host", peer: str, frame: bytes) -> None:
        """Right before a frame, true or false, reaches a node."""
        ...

    def on_answer(self, host: "Host", request: Request, answer: Answer) -> None:
        """When a caller gets an answer."""
        ...


@dataclass
class Waiting:
    """What waits for the disk: writes, and what leaves after them."""

    batch: Batch = field(default_factory=Batch)
    after: list[Effect] = field(default_factory=list)


class Host:
    """A machine: its disk survives, its node does not."""

    def __init__(self, world: "NodeWorld", node_id: str, signer: SimulatedSigner, seed: bytes) -> None:
        self.node_id = node_id
        self.disk = Disk()
        self.node: Node | None = None
        self.lives = 0
        self.crash_at_syncs: set[int] = set()
        self.wall_skew_ns = 0
        """Of the next life: a running daemon's clock is monotonic, whatever is done to the machine's."""
        self._offset_ns = WALL_EPOCH_NS
        self._world = world
        self._signer = signer
        self._seed = seed
        self._records: deque[Input] = deque()
        self._inputs: deque[Input] = deque()
        self._held: list[Effect] = []
        self._syncing: Waiting | None = None
        self._syncs = 0
        self._wake_ns: int | None = None
        self._ticks = 0
        self._request_ids = 0
        self._requests: dict[int, tuple[Request, Callable[[Answer], None]]] = {}

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.node is not None

    @property
    def clock_is_off(self) -> bool:
        """Whether the present life began with a wrong clock."""
        return self._offset_ns != WALL_EPOCH_NS

    def start(self) -> None:
        """Start (again) from what the disk holds."""
        world = self._world
        self.lives += 1
        self._offset_ns = WALL_EPOCH_NS + self.wall_skew_ns
        self.node = Node(self.setup(), self.disk.stored(), self._now_ns())
        world.observer.on_start(self)
        self._execute(self.node.take_birth_effects())

    def setup(self) -> NodeSetup:
        """Return what the node is given in the present life."""
        return self._world.setup(self, self._signer, self._seed)

    def crash(self) -> None:
        """Lose power: memory is gone, and the batch on its way to the disk arrived or did not."""
        assert self.node is not None
        self.disk.crash(None if self._syncing is None else self._syncing.batch, self._world.random)
        self.node, self._syncing, self._wake_ns = None, None, None
        self._records.clear()
        self._inputs.clear()
        self._held = []
        self._requests.clear()
        self._world.host_is_gone(self.node_id)

    def ask(self, request: Request, done: Callable[[Answer], None]) -> None:
        """Put a request at one of the node's doors; `done` is never called if the node crashes first."""
        if self.node is not None:
            self._request_ids += 1
            self._requests[self._request_ids] = request, done
            self.take(Requested(self._request_ids, request))

    def take(self, happened: Input) -> None:
        """Let something happen to the node; during a sync it waits, as it does in the daemon, or what it does waits."""
        if self.node is None:
            return
        if self._syncing is None:
            (self._records if brings_records(happened) else self._inputs).append(happened)
            self._round()
        elif brings_records(happened):
            self._held += self._step(happened)
        else:
            self._inputs.append(happened)

    # ---- the order of the daemon's driver

    def _now_ns(self) -> int:
        return self._world.now_ns + self._offset_ns

    def _step(self, happened: Input) -> list[Effect]:
        assert self.node is not None
        self._world.trace(self.node_id, happened)
        effects = self.node.step(self._now_ns(), happened)
        self._world.observer.on_step(self)
        return effects

    def _round(self) -> None:
        assert self.node is not None
        effects, self._held = self._held, []
        for waiting in (self._records, self._inputs):
            while waiting:
                effects += self._step(waiting.popleft())
        if self.node.next_deadline_ns() <= self._now_ns():
            effects += self._step(Ticked())
        self._execute(effects)

    def _execute(self, effects: list[Effect]) -> None:
        """What need not wait, then the synced writes, then the rest, each in order."""
        waiting = Waiting()
        for effect in effects:
            match effect:
                case Put(table, key, value):
                    waiting.batch.writes.append(Store(table, key, value))
                case Delete(table, key):
                    waiting.batch.writes.append(Erase(table, key))
                case SendTo(after_sync=False):
                    self._send(effect)
                case RunJob(job_id, work):
                    self._run_job(job_id, work)
                case Log(level, event, fields):
                    self._world.line(f"{self.node_id}  {level}: {event} {dict(fields)}")
                case _:
                    waiting.after.append(effect)
        self._syncing = waiting
        if waiting.batch.writes:
            self._world.after(self._world.sync_ns(), self._synced, self.lives)
        else:
            self._synced(self.lives)

    def _synced(self, life: int) -> None:
        if self.node is None or life != self.lives or self._syncing is None:
            return
        waiting = self._syncing
        if waiting.batch.writes:
            self._syncs += 1
            if self._syncs in self.crash_at_syncs:
                self._crash_at_sync(waiting)
                return
            self.disk.apply(waiting.batch)
        self._syncing = None
        for effect in waiting.after:
            self._let_out(effect)
        if self._inputs or self._records or self._held:
            self._round()
        else:
            self._schedule_wake()

    def _crash_at_sync(self, waiting: Waiting) -> None:
        """Crash right before the sync (half of the time), or right after it and before anything leaves."""
        if self._world.random.random() < 0.5:
            self.disk.apply(waiting.batch)
        self._syncing = None
        self._world.note(f"{self.node_id} crashes at sync {self._syncs}")
        self.crash()
        self._world.after(self._world.restart_ns(), self.restart)

    def restart(self) -> None:
        """Start, unless it runs already."""
        if self.node is None:
            self.start()

    def _let_out(self, effect: Effect) -> None:
        match effect:
            case SendTo():
                self._send(effect)
            case Respond(request_id, answer):
                request, done = self._requests.pop(request_id)
                self._world.observer.on_answer(self, request, answer)
                done(answer)
            case Disconnect(peer, reason):
                self._world.note(f"{self.node_id} disconnects {peer}: {reason}")
                self._world.drop(self.node_id, peer, BACK_OFF_NS)

    def _send(self, effect: SendTo) -> None:
        self._world.observer.on_send(self, effect)
        self._world.send(self.node_id, effect)

    def _run_job(self, job_id: int, work: Callable[[], Any]) -> None:
        try:
            done = JobDone(job_id, work())
        except Exception as error:  # the daemon brings any error of a job back as an input, too
            done = JobDone(job_id, None, error)
        life = self.lives
        self._world.after(JOB_NS, lambda: self.take(done) if life == self.lives else None)

    def _schedule_wake(self) -> None:
        assert self.node is not None
        wake_ns = max(self.node.next_deadline_ns() - self._offset_ns, self._world.now_ns)
        self._ticks = self._ticks + 1 if wake_ns == self._world.now_ns else 0
        assert self._ticks < IDLE_TICKS_MAX, f"{self.node_id} wants to be woken in the past: its driver would spin"
        if self._wake_ns is None or wake_ns < self._wake_ns:
            self._wake_ns = wake_ns
            self._world.at(wake_ns, self._wake, self.lives, wake_ns)

    def _wake(self, life: int, wake_ns: int) -> None:
        if self.node is None or life != self.lives or wake_ns != self._wake_ns:
            return
        self._wake_ns = None
        if self._syncing is None:
            self._round()


class NodeWorld(Timeline):
    """A cluster of whole nodes: a ring of quantum links, and an overlay that contains it."""

    def __init__(self, seed: int, node_count: int, topology: str, observer: NodeObserver) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(f"{seed}/world")
        self.observer = observer
        self.node_ids = [f"n{i:03}" for i in range(node_count)]
        self.network = Network(self.node_ids, topology, random.Random(f"{seed}/network"))
        self.intercept: Callable[[str, SendTo], list[bytes]] = lambda source, effect: [effect.frame]
        """What the classical channel makes of a frame."""
        self._sessions = SessionParameters.from_mapping({})
        seeds = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in self.node_ids]
        signers = [SimulatedSigner(each) for each in seeds]
        self._verifier = SimulatedVerifier(tuple(signers))
        self.genesis = _make_genesis(seed, self.node_ids, signers)
        named = zip(self.node_ids, signers, seeds, strict=True)
        self.hosts = {name: Host(self, name, signer, secret) for name, signer, secret in named}
        self.keeps_order = True
        """As TCP does; without it frames overtake each other by their jitter."""
        self._up: set[frozenset[str]] = set()
        self._last_arrivals_ns: dict[tuple[str, str], int] = {}
        self._epochs: dict[frozenset[str], int] = {}
        for one, other in self.network.edges():
            self.at(1, self._connect, one, other)

    def setup(self, host: Host, signer: SimulatedSigner, identity_seed: bytes) -> NodeSetup:
        """Return what the node of a host is given in its present life."""
        name = f"{self.seed}/{host.node_id}/{host.lives}"

        def physics(purpose: str) -> np.random.Generator:
            return np.random.default_rng([*f"{name}/{purpose}".encode()])

        return NodeSetup(
            node_id=host.node_id,
            genesis=self.genesis,
            identity_seed=identity_seed,
            keys=OwnKeys(host.node_id, (signer,)),
            verifier=self._verifier,
            entropy=SeededEntropy(hashlib.sha256(f"{name}/entropy".encode()).digest()),
            jitter=random.Random(f"{name}/jitter"),
            physics=physics,
            links=tuple(
                self._link(link) for link in self.genesis.links if host.node_id in (link.transmitter, link.receiver)
            ),
            limits=LIMITS,
            replica=ReplicaSettings(heartbeat_ns=1_000 * MS, anti_entropy_ns=300 * MS),
        )

    def reborn(self, host: Host) -> Node:
        """Return what would start from the disk of a host now."""
        return Node(host.setup(), host.disk.stored(), WALL_EPOCH_NS + self.now_ns)

    def _link(self, link: GenesisLink) -> LinkConfiguration:
        secret = SeededEntropy(hashlib.sha256(f"{self.seed}/{link.link_id}".encode()).digest()).take(65_536)
        return LinkConfiguration(
            link.link_id,
            link.transmitter,
            link.receiver,
            PARAMETERS,
            self._sessions,
            BLOCK_PULSES,
            POOL_TARGET_BITS,
            secret,
        )

    def sync_ns(self) -> int:
        """Draw how long a sync takes."""
        return int(self.random.random() ** 3 * 5 * MS)

    def restart_ns(self) -> int:
        """Draw how long a crashed node stays away."""
        return int(self.random.random() * 2_000 * MS)

    # ---- connections: at most one between two nodes, lost at both ends before it comes again

    def _connect(self, one: str, other: str) -> None:
        """Connect two nodes as soon as both run and nothing breaks it."""
        pair = frozenset((one, other))
        hosts = self.hosts[one], self.hosts[other]
        if not all(host.is_up for host in hosts) or not self.network.is_connected(one, other):
            self.after(RECONNECT_NS, self._connect, one, other)
            return
        self._up.add(pair)
        for host, peer in zip(hosts, (other, one), strict=True):
            host.take(PeerConnected(peer))

    def drop(self, one: str, other: str, back_off_ns: int = RECONNECT_NS) -> None:
        """Break a connection that is up, with everything on its way; both ends notice, and it comes again."""
        pair = frozenset((one, other))
        if pair not in self._up:
            return
        self._up.discard(pair)
        self._epochs[pair] = self._epochs.get(pair, 0) + 1
        lives = self.hosts[one].lives, self.hosts[other].lives
        self.after(DETECTION_NS, self._lost, one, other, *lives)
        self.after(DETECTION_NS + back_off_ns, self._connect, one, other)

    def _lost(self, one: str, other: str, life: int, other_life: int) -> None:
        for name, peer, lived in ((one, other, life), (other, one, other_life)):
            if self.hosts[name].lives == lived:
                self.hosts[name].take(PeerLost(peer, "the connection broke"))

    def host_is_gone(self, node_id: str) -> None:
        """Break all connections of a host that crashed."""
        for peer in self.network.neighbours(node_id):
            self.drop(node_id, peer)

    def send(self, source: str, effect: SendTo) -> None:
        """Put a frame on a connection, if there is one."""
        pair = frozenset((source, effect.peer))
        if pair not in self._up:
            return
        for frame in self.intercept(source, effect):
            for delay_ns in self.network.arrivals_ns(source, effect.peer, len(frame)):
                way, arrives_ns = (source, effect.peer), self.now_ns + delay_ns
                if self.keeps_order:
                    arrives_ns = max(arrives_ns, self._last_arrivals_ns.get(way, 0))
                self._last_arrivals_ns[way] = max(arrives_ns, self._last_arrivals_ns.get(way, 0))
                self.at(arrives_ns, self._arrive, source, effect.peer, frame, self._epochs.get(pair, 0))

    def _arrive(self, source: str, target: str, frame: bytes, epoch: int) -> None:
        pair = frozenset((source, target))
        if pair in self._up and self._epochs.get(pair, 0) == epoch:
            self.observer.on_arrive(self.hosts[target], source, frame)
            self.hosts[target].take(FrameReceived(source, frame))

    # ---- the trace

    def trace(self, node_id: str, happened: Input) -> None:
        """Add an input to the trace hash."""
        match happened:
            case FrameReceived(_, frame):
                detail = frame
            case JobDone(job_id):
                detail = job_id.to_bytes(8, "big")
            case Requested(request_id, request):
                detail = f"{request_id} {request}".encode()
            case _:
                detail = b""
        name = type(happened).__name__
        self.remember(node_id, name, detail)
        if self.trace_lines is not None:
            self.line(f"{node_id}  {name} {getattr(happened, 'peer', '')} {len(detail)} B")


def _make_genesis(seed: int, node_ids: list[str], signers: list[SimulatedSigner]) -> Genesis:
    ring = zip(node_ids, node_ids[1:] + node_ids[:1], strict=True)
    pairs = [(a, b) for a, b in ring if a != b][: 1 if len(node_ids) == 2 else None]
    return Genesis(
        chain_id=f"simulation-{seed}",
        time_ns=WALL_EPOCH_NS - 1,
        nodes=tuple(GenesisNode(name, signer.public_key) for name, signer in zip(node_ids, signers, strict=True)),
        links=tuple(GenesisLink(f"{a}-{b}", a, b) for a, b in pairs),
        saes=tuple(GenesisSae(f"sae-{name}", name) for name in node_ids),
    )
