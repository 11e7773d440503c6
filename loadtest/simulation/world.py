"""A cluster of replicas in virtual time: the nodes, and the drivers that connect a replica to disk and network.

A simulated driver keeps the order of the daemon's: the writes of a batch are synced, then its messages leave; inputs
that arrive during a sync join the next batch. Same seed, same events, same trace hash.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ledger.block import VERSIONS
from ledger.genesis import Genesis, GenesisLink, GenesisNode, GenesisParameters, GenesisSae
from ledger.identity import OwnKeys
from ledger.inputs import Input, MessageReceived, PeerDown, PeerUp, Started, TimePassed
from ledger.messages import decode
from ledger.outputs import BlockCommitted, Erase, Output, SendMessage, Store, TransactionsAdmitted
from ledger.replica import Replica, ReplicaSettings
from ledger.signatures import SimulatedSigner, SimulatedVerifier
from loadtest.simulation.disk import Batch, Disk, DiskRefused
from loadtest.simulation.network import MS, Network
from loadtest.simulation.timeline import Timeline

WALL_EPOCH_NS = 1_800_000_000_000_000_000
GENESIS_TIME_NS = WALL_EPOCH_NS - 1
Stored = dict[str, list[tuple[bytes, bytes]]]


class Observer(Protocol):
    """Sees everything that the checkers need; raises to stop a run."""

    def on_outputs(self, node: "SimulatedNode", outputs: list[Output]) -> None:
        """When what a replica wanted is durable, and before any of it leaves."""
        ...

    def on_send(self, node: "SimulatedNode", message: SendMessage) -> None:
        """Right before a message leaves a node."""
        ...

    def on_admitted(self, node: "SimulatedNode", token: int) -> None:
        """When a submitter is told that its transactions are safe."""
        ...

    def on_load(self, node: "SimulatedNode", stored: Stored) -> None:
        """What a start read from its disk, before a replica is made from it."""
        ...

    def on_start(self, node: "SimulatedNode") -> None:
        """After a replica was made from its disk."""
        ...

    def on_wiped(self, node: "SimulatedNode") -> None:
        """After the operator replaced a damaged disk by an empty one."""
        ...


@dataclass
class Tail:
    """What waits for the disk: writes, and what leaves after them."""

    batch: Batch = field(default_factory=Batch)
    outputs: list[Output] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    messages: list[SendMessage] = field(default_factory=list)


class SimulatedNode:
    """A replica, its disk and its driver. `corrupt` may rewrite the outputs of a Byzantine node."""

    def __init__(self, world: "World", node_id: str, signer: SimulatedSigner) -> None:
        self.node_id = node_id
        self.signer = signer
        self.keys = OwnKeys(node_id, (signer,))
        """The keys that its disk holds; the first is that of the genesis."""
        self.versions = VERSIONS
        """The versions that its program knows."""
        self.disk = Disk()
        self.replica: Replica | None = None
        self.byzantine = False
        self.corrupt: Callable[[list[Output]], list[Output]] | None = None
        self.overhear: Callable[[MessageReceived], list[Output]] | None = None
        self.wall_skew_ns = 0
        self.crash_at_syncs: set[int] = set()
        self.lives = 0
        self.peers: frozenset[str] | None = None
        """Of two machines with one key: the neighbours that this one is connected with; None for all."""
        self._stopped_until_ns = 0
        self._world = world
        self._next = Tail()
        self._current: Tail | None = None
        self._syncs = 0
        self._wake_ns: int | None = None

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.replica is not None

    def start(self) -> None:
        """Start (again) from what the disk holds, or refuse; then the operator acts."""
        world = self._world
        try:
            stored = self.disk.stored()
        except DiskRefused as refusal:
            world.note(f"{self.node_id} refuses to start: {refusal}")
            if not self.disk.full:
                world.after(world.restart_ns(), self._wipe)
            return
        world.observer.on_load(self, stored)
        self.lives += 1
        self._stopped_until_ns = 0
        self.replica = Replica(
            genesis=world.genesis,
            keys=self.keys,
            verifier=world.verifier,
            settings=world.settings,
            jitter=random.Random(f"{world.seed}/{self.node_id}/{self.lives}/jitter"),
            stored=stored,
            wall_offset_ns=WALL_EPOCH_NS + self.wall_skew_ns,
            versions=self.versions,
        )
        world.observer.on_start(self)
        self.take(Started())
        for peer in world.network.neighbours(self.node_id):
            if self.speaks_to(peer):
                world.connect(self.node_id, peer)

    def _wipe(self) -> None:
        """The operator gives a node that refused its disk an empty one."""
        if self.replica is None:
            self.disk.replace({})
            self._world.observer.on_wiped(self)
            self._world.note(f"{self.node_id} starts from an empty disk")
            self.start()

    def crash(self) -> None:
        """Lose power: memory is gone, and of the batch on its way to the disk a prefix arrived."""
        assert self.replica is not None
        current = self._current
        if current is not None and self.disk.crash(current.batch, self._world.random):
            self._world.observer.on_outputs(self, current.outputs)
        self.replica, self._current, self._next, self._wake_ns = None, None, Tail(), None
        for peer in self._world.network.neighbours(self.node_id):
            if self.speaks_to(peer):
                self._world.after(self._world.detection_ns, self._world.lose, peer, self.node_id)

    def speaks_to(self, peer: str) -> bool:
        """Whether it is this machine that `peer` is connected with."""
        return self.peers is None or peer in self.peers

    def stop(self, duration_ns: int) -> None:
        """Stop the process, as SIGSTOP does: it hears nothing until it goes on, and then everything at once."""
        self._stopped_until_ns = max(self._stopped_until_ns, self._world.now_ns + duration_ns)

    def _later(self, input: Input, life: int) -> None:
        if life == self.lives:
            self.take(input)

    def set_wall_skew(self, skew_ns: int) -> None:
        """Let the wall clock jump."""
        self.wall_skew_ns = skew_ns
        if self.replica is not None:
            self.replica.wall_offset_ns = WALL_EPOCH_NS + skew_ns

    def take(self, input: Input) -> None:
        """Give the replica an input and carry out what it wants."""
        if self.replica is None:
            return
        if self._world.now_ns < self._stopped_until_ns:
            self._world.at(self._stopped_until_ns, self._later, input, self.lives)
            return
        self._world.trace(self.node_id, input)
        outputs = self.replica.step(self._world.now_ns, input)
        if self.overhear is not None and isinstance(input, MessageReceived):
            outputs = outputs + self.overhear(input)
        if self.corrupt is not None:
            outputs = self.corrupt(outputs)
        deadline_ns = self.replica.next_deadline_ns()
        late = deadline_ns is not None and deadline_ns <= self._world.now_ns
        assert not late, f"{self.node_id} wants to be woken in the past: its driver would spin"
        self._carry_out(outputs)
        self._schedule_wake()

    def _carry_out(self, outputs: list[Output]) -> None:
        self._next.outputs += outputs
        for output in outputs:
            if isinstance(output, Store | Erase):
                self._next.batch.writes.append(output)
            elif isinstance(output, SendMessage):
                if output.after_sync:
                    self._next.messages.append(output)
                else:
                    self._send(output)
            elif isinstance(output, TransactionsAdmitted):
                self._next.admitted.append(output.token)
        if self._current is None:
            self._sync()

    def _sync(self) -> None:
        """Write the collected batch; one that writes nothing is done at once."""
        if self._next == Tail():
            return
        self._current, self._next = self._next, Tail()
        if not self._current.batch.writes:
            self._synced(self.lives)
            return
        self._world.after(self._world.sync_ns(), self._synced, self.lives)

    def _synced(self, life: int) -> None:
        if self.replica is None or life != self.lives or self._current is None:
            return
        tail, self._current = self._current, None
        if tail.batch.writes:
            if self.disk.full:
                self._world.note(f"{self.node_id} stops: the disk is full")
                self.crash()
                return
            self._syncs += 1
            if self._syncs in self.crash_at_syncs:
                self._crash_at_sync(tail)
                return
            self.disk.apply(tail.batch)
        self._world.observer.on_outputs(self, tail.outputs)
        for token in tail.admitted:
            self._world.observer.on_admitted(self, token)
        for message in tail.messages:
            self._send(message)
        self._sync()

    def _crash_at_sync(self, tail: Tail) -> None:
        """Crash right before the sync (half of the time), or right after it and before anything leaves."""
        if self._world.random.random() < 0.5:
            self.disk.apply(tail.batch)
            self._world.observer.on_outputs(self, tail.outputs)
        self.crash()
        self._world.after(self._world.restart_ns(), self._restart)

    def _restart(self) -> None:
        if self.replica is None and not self.disk.full:
            self.start()

    def _send(self, message: SendMessage) -> None:
        if not self.speaks_to(message.peer):
            return
        self._world.observer.on_send(self, message)
        self._world.send(self.node_id, message)

    def _schedule_wake(self) -> None:
        assert self.replica is not None
        deadline_ns = self.replica.next_deadline_ns()
        if deadline_ns is None or (self._wake_ns is not None and self._wake_ns <= deadline_ns):
            return
        self._wake_ns = max(deadline_ns, self._world.now_ns)
        self._world.at(self._wake_ns, self._wake, self.lives, self._wake_ns)

    def _wake(self, life: int, wake_ns: int) -> None:
        if self.replica is None or life != self.lives or wake_ns != self._wake_ns:
            return
        self._wake_ns = None
        deadline_ns = self.replica.next_deadline_ns()
        if deadline_ns is not None and deadline_ns <= self._world.now_ns:
            self.take(TimePassed())
        else:
            self._schedule_wake()


class World(Timeline):
    """A cluster of replicas under a seed. `spare_count` machines more are on the network, and not in the genesis."""

    def __init__(
        self,
        seed: int,
        node_count: int,
        topology: str,
        settings: ReplicaSettings,
        observer: Observer,
        validators: int,
        spare_count: int = 0,
        parameters: GenesisParameters | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(f"{seed}/world")
        self.observer = observer
        self.settings = settings
        self.detection_ns = 20 * MS
        self.node_ids = [f"n{i:03}" for i in range(node_count + spare_count)]
        self.spare_ids = self.node_ids[node_count:]
        self.network = Network(self.node_ids, topology, random.Random(f"{seed}/network"), validators)
        signers = [_signer(f"{seed}/{name}") for name in self.node_ids]
        self.next_signers = {name: _signer(f"{seed}/{name}/next") for name in self.node_ids}
        """The keys that nodes rotate to, if they do."""
        everybody = (*signers, *self.next_signers.values())
        self.signers = {signer.public_key: signer for signer in everybody}
        self.verifier = SimulatedVerifier(everybody)
        self.genesis = _make_genesis(seed, self.node_ids[:node_count], signers[:node_count], validators, parameters)
        self.twins: dict[str, SimulatedNode] = {}
        pairs = zip(self.node_ids, signers, strict=True)
        self.nodes = {name: SimulatedNode(self, name, signer) for name, signer in pairs}

    # ---- time

    def sync_ns(self) -> int:
        """Draw how long a sync takes."""
        return int(self.random.random() ** 3 * 5 * MS)

    def restart_ns(self) -> int:
        """Draw how long a crashed node stays away."""
        return int(self.random.random() * 2_000 * MS)

    # ---- messages and connections

    def send(self, source: str, message: SendMessage) -> None:
        """Put a message on the network."""
        for delay_ns in self.network.arrivals_ns(source, message.peer, len(message.payload)):
            self.after(delay_ns, self._arrive, message.peer, MessageReceived(source, message.payload))

    def _arrive(self, target: str, received: MessageReceived) -> None:
        if self.network.is_connected(target, received.peer):
            self.machine(target, received.peer).take(received)

    def connect(self, one: str, other: str) -> None:
        """Tell both ends that their connection is up, if both run and it is not broken."""
        ends = self.machine(one, other), self.machine(other, one)
        if all(end.is_up for end in ends) and self.network.is_connected(one, other):
            ends[0].take(PeerUp(other))
            ends[1].take(PeerUp(one))

    def lose(self, node: str, peer: str) -> None:
        """Tell a node that its connection with `peer` is gone, unless it came back."""
        if not (self.machine(peer, node).is_up and self.network.is_connected(node, peer)):
            self.machine(node, peer).take(PeerDown(peer))

    def machine(self, name: str, peer: str) -> SimulatedNode:
        """Return the machine of a node that `peer` is connected with; two share a key if it was copied."""
        twin = self.twins.get(name)
        return twin if twin is not None and twin.speaks_to(peer) else self.nodes[name]

    def copy_key(self, name: str) -> SimulatedNode:
        """Let a second machine run with the key of a node, an empty disk, and half of its neighbours."""
        node = self.nodes[name]
        neighbours = self.network.neighbours(name)
        twin = SimulatedNode(self, name, node.signer)
        twin.peers = frozenset(self.random.sample(neighbours, len(neighbours) // 2))
        node.peers = frozenset(neighbours) - twin.peers
        node.byzantine = twin.byzantine = True
        self.twins[name] = twin
        return twin

    # ---- the trace

    def trace(self, node_id: str, input: Input) -> None:
        """Add an input to the trace hash (and to the readable trace, if one is kept)."""
        name = type(input).__name__
        detail = input.payload if isinstance(input, MessageReceived) else b""
        self.remember(node_id, name, detail)
        if self.trace_lines is not None:
            self.line(f"{node_id}  {describe(input)}")


def describe(event: Input | Output) -> str:
    """Return one readable line for an input or output, without payload bytes."""
    match event:
        case MessageReceived(peer, payload):
            try:
                return f"from {peer}: {type(decode(payload)).__name__} {len(payload)} B"
            except ValueError:
                return f"from {peer}: {len(payload)} malformed bytes"
        case BlockCommitted(height, block, certificate, receipts):
            return f"committed {height} {block.digest.hex()[:8]} in view {certificate.view}: {len(receipts)} records"
        case PeerUp(peer) | PeerDown(peer):
            return f"{type(event).__name__} {peer}"
        case _:
            return type(event).__name__


def _signer(name: str) -> SimulatedSigner:
    return SimulatedSigner(hashlib.sha256(name.encode()).digest())


def _make_genesis(
    seed: int,
    node_ids: list[str],
    signers: list[SimulatedSigner],
    validators: int,
    parameters: GenesisParameters | None,
) -> Genesis:
    pairs = list(zip(node_ids, signers, strict=True))
    return Genesis(
        chain_id=f"simulation-{seed}",
        time_ns=GENESIS_TIME_NS,
        nodes=tuple(GenesisNode(name, s.public_key, i < validators) for i, (name, s) in enumerate(pairs)),
        links=tuple(
            GenesisLink(f"{a}-{b}", a, b) for a, b in zip(node_ids, node_ids[1:] + node_ids[:1], strict=True) if a != b
        ),
        saes=tuple(GenesisSae(f"sae-{name}", name) for name in node_ids),
        parameters=parameters or GenesisParameters(),
    )
