"""A cluster of node cores in virtual time: no sockets, no threads, no sleeping; crashes and restarts at will."""

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ledger.genesis import Genesis, GenesisLink, GenesisNode, GenesisSae
from ledger.identity import OwnKeys
from ledger.signatures import Ed25519Signer, Ed25519Verifier
from ledger.state_entries import LinkState, SaeState
from protocol.entropy import SeededEntropy
from protocol.keys import KeyMaterial
from protocol.messages import Record
from protocol.quantum.link import LinkParameters
from protocol.session import SessionParameters
from qnode.context import Context
from qnode.delivery import Delivery, DeliveryLimits
from qnode.effects import Delete, Disconnect, Effect, Log, Put, Respond, RunJob, SendTo
from qnode.gathering import Gathering
from qnode.inputs import FrameReceived, Input, JobDone, PeerConnected, PeerLost, Request, Requested, Ticked
from qnode.keystore import KeyStore, PendingBlock
from qnode.link_setup import LinkConfiguration
from qnode.node import Node, NodeSetup
from qnode.relay import Relay
from qnode.rules import ChainRules
from qnode.vault import Vault
from qnode.wire import KeyTransfer, KeyTransferred, PathProbe, PathProbed, PeerFault, decode

LATENCY_NS = 1_000_000
SYNC_NS = 300_000
JOB_NS = 2_000_000
BACK_OFF_NS = 1_000_000_000
IDLE_TICKS_MAX = 1_000
START_NS = 1_800_000_000_000_000_000

PARAMETERS = LinkParameters.from_mapping(
    {
        "source": {"model": "single_photon", "pulse_rate_hz": 1e7},
        "channel": {"length_km": 5},
        "detector": {"efficiency_0": 0.9, "efficiency_1": 0.9, "dead_time_ns": 0.0, "misalignment": 0.01},
    }
)
LIMITS = DeliveryLimits(256, 64, 8192, 128, 4096)


def ring(count: int) -> list[tuple[int, int]]:
    return [(index, (index + 1) % count) for index in range(count)]


def node_name(index: int) -> str:
    return f"node-{index + 1}"


@dataclass
class Host:
    """A machine: its disk survives, its node does not."""

    setup: NodeSetup
    disk: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    node: Node | None = None
    life: int = 0
    busy_until_ns: int = 0


class Cluster:
    """Nodes joined by links with latency; `run` advances virtual time until a condition holds."""

    def __init__(
        self,
        count: int = 4,
        edges: list[tuple[int, int]] | None = None,
        block_pulses: int = 600_000,
        pool_target_bits: int = 1 << 20,
    ) -> None:
        edges = ring(count) if edges is None else edges
        seeds = [bytes([index + 1]) * 32 for index in range(count)]
        signers = [Ed25519Signer(seed) for seed in seeds]
        links = tuple(GenesisLink(f"link-{a + 1}-{b + 1}", node_name(a), node_name(b)) for a, b in edges)
        self.genesis = Genesis(
            chain_id="virtual",
            time_ns=START_NS,
            nodes=tuple(GenesisNode(node_name(i), signers[i].public_key, True) for i in range(count)),
            links=links,
            saes=tuple(GenesisSae(f"sae-{i + 1}", node_name(i)) for i in range(count)),
        )
        self.now_ns = START_NS
        self.logs: list[tuple[str, Log]] = []
        self.answers: dict[int, Any] = {}
        self.filter: Callable[[str, str, bytes], bytes | list[bytes] | None] = lambda source, target, frame: frame
        self.trace = hashlib.sha256()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._request_ids = itertools.count(1)
        self._cut: set[frozenset[str]] = set()
        self._up: set[frozenset[str]] = set()
        self._deadlines: dict[str, int] = {}
        self._idle_ticks = 0
        self.hosts: dict[str, Host] = {}
        session = SessionParameters.from_mapping({})
        for index in range(count):
            name = node_name(index)
            configurations = tuple(
                LinkConfiguration(
                    link.link_id,
                    link.transmitter,
                    link.receiver,
                    PARAMETERS,
                    session,
                    block_pulses,
                    pool_target_bits,
                    SeededEntropy(link.link_id.encode()).take(65_536),
                )
                for link in links
                if name in (link.transmitter, link.receiver)
            )
            setup = NodeSetup(
                node_id=name,
                genesis=self.genesis,
                identity_seed=seeds[index],
                keys=OwnKeys(name, (signers[index],)),
                verifier=Ed25519Verifier(),
                entropy=SeededEntropy(name.encode()),
                jitter=random.Random(index),
                physics=lambda purpose, name=name: np.random.default_rng(sum(f"{name}/{purpose}".encode())),
                links=configurations,
                limits=LIMITS,
            )
            self.hosts[name] = Host(setup)
        self.neighbours = {frozenset((link.transmitter, link.receiver)) for link in links}
        for name in self.hosts:
            self.start(name)

    # ---- faults

    def start(self, name: str) -> None:
        host = self.hosts[name]
        host.life += 1
        host.setup = replace(host.setup, entropy=SeededEntropy(f"{name}#{host.life}".encode()))
        stored = {table: sorted(rows.items()) for table, rows in host.disk.items()}
        host.node = Node(host.setup, stored, self.now_ns)
        self._execute(name, host.node.take_birth_effects())
        for pair in sorted(self.neighbours, key=sorted):
            if name in pair:
                self._connect(pair)

    def crash(self, name: str) -> None:
        """kill -9: what was not synced is gone, and so is everything in flight."""
        host = self.hosts[name]
        host.node = None
        host.life += 1
        host.busy_until_ns = 0
        self._deadlines.pop(name, None)
        for pair in sorted((pair for pair in self._up if name in pair), key=sorted):
            self._disconnect(pair)

    def cut(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        self._cut.add(pair)
        self._disconnect(pair)

    def mend(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        self._cut.discard(pair)
        self._connect(pair)

    def _connect(self, pair: frozenset[str]) -> None:
        if (
            pair in self._cut
            or pair in self._up
            or any(self.hosts[name].node is None for name in pair if name in self.hosts)
        ):
            return
        if any(name not in self.hosts for name in pair):
            return
        self._up.add(pair)
        one, other = sorted(pair)
        self._at(LATENCY_NS, lambda: self._input(one, PeerConnected(other)))
        self._at(LATENCY_NS, lambda: self._input(other, PeerConnected(one)))

    def _disconnect(self, pair: frozenset[str]) -> None:
        if pair not in self._up:
            return
        self._up.discard(pair)
        one, other = sorted(pair)
        for name, peer in ((one, other), (other, one)):
            if self.hosts[name].node is not None:
                self._at(0, lambda name=name, peer=peer: self._input(name, PeerLost(peer, "cut")))

    # ---- use

    def ask(self, name: str, request: Request) -> int:
        """Put a request to a node; its answer will be in `answers`."""
        request_id = next(self._request_ids)
        self._input(name, Requested(request_id, request))
        return request_id

    def answer(self, name: str, request: Request, seconds: float = 30.0) -> Any:
        """Put a request and run until it is answered."""
        request_id = self.ask(name, request)
        assert self.run(lambda: request_id in self.answers, seconds), f"no answer to {request}"
        return self.answers[request_id]

    def run(self, until: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Advance virtual time until the condition holds; False when `seconds` have passed first."""
        end_ns = self.now_ns + int(seconds * 1e9)
        while not until():
            due = min((deadline for deadline in self._deadlines.values()), default=end_ns)
            event_ns = self._events[0][0] if self._events else end_ns
            if min(due, event_ns) >= end_ns:
                self.now_ns = end_ns
                return until()
            if event_ns <= due:
                self.now_ns, _, action = heapq.heappop(self._events)
                action()
            else:
                self._idle_ticks = self._idle_ticks + 1 if due <= self.now_ns else 0
                assert self._idle_ticks < IDLE_TICKS_MAX, (
                    "a deadline in the past that no tick moves: the daemon would spin"
                )
                self.now_ns = max(self.now_ns, due)
                name = min(name for name, deadline in self._deadlines.items() if deadline == due)
                self._input(name, Ticked())
        return True

    def nodes(self) -> list[Node]:
        return [host.node for host in self.hosts.values() if host.node is not None]

    # ---- machinery

    def _at(self, delay_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_ns + delay_ns, next(self._order), action))

    def _input(self, name: str, happened: Input) -> None:
        host = self.hosts[name]
        if host.node is not None:
            self._execute(name, host.node.step(self.now_ns, happened))

    def _execute(self, name: str, effects: list[Effect]) -> None:
        """Writes and what waits for them happen one sync later, unless the machine crashes before."""
        host = self.hosts[name]
        assert host.node is not None
        life = host.life
        self._note(name, effects)
        writes = [effect for effect in effects if isinstance(effect, Put | Delete)]
        later: list[Effect] = []
        for effect in effects:
            match effect:
                case SendTo(after_sync=False):
                    self._send(name, effect)
                case RunJob(job_id, work):
                    result = work()
                    self._at(
                        JOB_NS,
                        lambda job_id=job_id, result=result: (
                            self._input(name, JobDone(job_id, result)) if host.life == life else None
                        ),
                    )
                case Log():
                    self.logs.append((name, effect))
                case Put() | Delete():
                    pass
                case _:
                    later.append(effect)

        def synced() -> None:
            if host.life != life:
                return
            for write in writes:
                rows = host.disk.setdefault(write.table, {})
                if isinstance(write, Put):
                    rows[write.key] = write.value
                else:
                    rows.pop(write.key, None)
            for effect in later:
                match effect:
                    case SendTo():
                        self._send(name, effect)
                    case Respond(request_id, answer):
                        self.answers[request_id] = answer
                    case Disconnect(peer, _):
                        pair = frozenset((name, peer))
                        self._disconnect(pair)
                        self._at(BACK_OFF_NS, lambda pair=pair: self._connect(pair))

        # Syncs of one machine end in order.
        done_ns = max(host.busy_until_ns, self.now_ns + (SYNC_NS if writes else 0))
        host.busy_until_ns = done_ns
        self._at(done_ns - self.now_ns, synced)
        self._deadlines[name] = host.node.next_deadline_ns()

    def _note(self, name: str, effects: list[Effect]) -> None:
        """Add everything a node wants done to the trace hash: equal seeds, equal hash."""
        self.trace.update(f"{self.now_ns} {name}\n".encode())
        for effect in effects:
            match effect:
                case RunJob(job_id):
                    said: tuple[Any, ...] = (job_id,)
                case Respond(request_id, answer):
                    said = (request_id, answer)
                case _:
                    said = (effect,)
            self.trace.update(f"{type(effect).__name__} {said!r}\n".encode())

    def inject(self, source: str, target: str, frame: bytes) -> None:
        """Let a frame arrive that `source` may never have sent."""
        self._input(target, FrameReceived(source, frame))

    def link_status(self, name: str, link_id: str) -> dict[str, Any]:
        node = self.hosts[name].node
        assert node is not None
        return next(link for link in node._status()["links"] if link["link_id"] == link_id)

    def _send(self, source: str, effect: SendTo) -> None:
        pair = frozenset((source, effect.peer))
        if pair not in self._up:
            return
        filtered = self.filter(source, effect.peer, effect.frame)
        lives = tuple(self.hosts[name].life for name in sorted(pair))

        def arrive(frame: bytes) -> None:
            if pair in self._up and lives == tuple(self.hosts[name].life for name in sorted(pair)):
                self._input(effect.peer, FrameReceived(source, frame))

        for frame in [filtered] if isinstance(filtered, bytes) else filtered or []:
            self._at(LATENCY_NS, lambda frame=frame: arrive(frame))


class ChainView:
    """What relay and delivery read of the chain's state."""

    def __init__(self, links: list[LinkState], saes: dict[str, SaeState]) -> None:
        self._links = {link.link_id: link for link in links}
        self._saes = saes

    def links(self) -> list[LinkState]:
        return list(self._links.values())

    def link(self, link_id: str) -> LinkState | None:
        return self._links.get(link_id)

    def sae(self, sae_id: str) -> SaeState | None:
        return self._saes.get(sae_id)

    def entry(self, kind: type, *name: Any) -> None:
        """No contract is in force on this chain."""

    def entries(self, kind: type) -> tuple[Any, ...]:
        return ()

    def derived(self, kind: type, build: Callable[[tuple[Any, ...]], Any]) -> Any:
        return build(())

    def node(self, node_id: str) -> None:
        """Nobody was removed."""

    def set_alarm(self, link_id: str, alarmed: bool) -> None:
        self._links[link_id] = replace(self._links[link_id], alarmed=alarmed)


@dataclass
class RelayNode:
    """Key store, relay and delivery of one node, without chain and links."""

    context: Context
    keys: KeyStore
    relay: Relay
    gathering: Gathering
    delivery: Delivery
    disk: dict[str, dict[bytes, bytes]]


class RelayNet:
    """Relays joined by links that hold given key: transfers in microseconds, every frame open to a `filter`."""

    def __init__(self, edges: list[tuple[int, int]], block_bytes: int = 4000, blocks: int = 1) -> None:
        count = 1 + max(max(edge) for edge in edges)
        names = [node_name(index) for index in range(count)]
        links = [LinkState(f"link-{a + 1}-{b + 1}", node_name(a), node_name(b)) for a, b in edges]
        self.chain = ChainView(links, {f"sae-{i + 1}": SaeState(f"sae-{i + 1}", name) for i, name in enumerate(names)})
        self.filter: Callable[[str, str, Record], list[Record]] = lambda source, target, frame: [frame]
        self.answers: dict[int, Any] = {}
        self.faults: list[tuple[str, str]] = []
        self.recorded: list[Any] = []
        self.seen: list[tuple[str, str, Record]] = []
        self.now_ns = START_NS
        self._flying: deque[tuple[str, str, bytes]] = deque()
        self._request_ids = itertools.count(1)
        self.nodes: dict[str, RelayNode] = {}
        for name in names:
            own = [link for link in links if name in (link.transmitter, link.receiver)]
            self.nodes[name] = self._node(name, own)
        for link in links:
            for number in range(blocks):
                key = SeededEntropy(f"{link.link_id}/{number}".encode()).take(block_bytes)
                for name in (link.transmitter, link.receiver):
                    store = self.nodes[name].keys
                    empty = KeyMaterial(b""), KeyMaterial(b"")
                    store.add_pending(PendingBlock(link.link_id, number, 100, *empty, KeyMaterial(key)))
                    self._store(name, store.activate(link.link_id, number)[1])
            self.nodes[link.transmitter].context.connected[link.receiver] = None
            self.nodes[link.receiver].context.connected[link.transmitter] = None

    def _node(self, name: str, links: list[LinkState]) -> RelayNode:
        context = Context(name, SeededEntropy(name.encode()), random.Random(0))
        context.begin(self.now_ns)
        vault = Vault(name.encode().ljust(32), SeededEntropy(b"vault" + name.encode()))
        keys = KeyStore(vault, {link.link_id: 0 if link.transmitter == name else 1 for link in links}, {})
        by_neighbour: dict[str, tuple[str, ...]] = {}
        for link in links:
            peer = link.receiver if link.transmitter == name else link.transmitter
            by_neighbour[peer] = (*by_neighbour.get(peer, ()), link.link_id)
        chain: Any = self.chain
        rules = ChainRules(lambda: chain)
        relay = Relay(context, keys, lambda: chain, rules, by_neighbour)
        gathering = Gathering(context, relay)
        delivery = Delivery(context, keys, relay, gathering, lambda: chain, rules, LIMITS, lambda key_id: ())
        return RelayNode(context, keys, relay, gathering, delivery, {})

    def ask(self, name: str, request: Any) -> Any:
        """Put a request to a node and carry messages until none is left; None if it is not answered by then."""
        request_id = next(self._request_ids)
        self.nodes[name].delivery.handle(request_id, request)
        self.pump()
        return self.answers.get(request_id)

    def give(self, source: str, target: str, frame: Record) -> None:
        """Let a frame arrive that its `source` may never have sent."""
        node = self.nodes[target]
        fault: PeerFault | None = None
        match frame:
            case KeyTransfer():
                fault = node.relay.transfer_received(source, frame)
            case KeyTransferred():
                fault = node.relay.transferred(source, frame)  # type: ignore[func-returns-value]
            case PathProbe():
                fault = node.relay.probe_received(source, frame)
            case PathProbed():
                node.relay.probed(frame)
        if fault is not None:
            self.faults.append((source, fault.reason))
        self.pump()

    def pass_time(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        for node in self.nodes.values():
            node.context.begin(self.now_ns)
            node.relay.tick()
            node.gathering.tick()
        self.pump()

    def lose(self, name: str) -> None:
        """A node is gone: its neighbours notice."""
        for other, node in self.nodes.items():
            if other != name and name in node.context.connected:
                del node.context.connected[name]
                node.relay.peer_lost(name)
        self.nodes[name].context.connected.clear()
        self.pump()

    def pump(self) -> None:
        while True:
            for name, node in self.nodes.items():
                self.recorded += node.context.take_transactions()
                for effect in node.context.take():
                    self._execute(name, effect)
            if not self._flying:
                return
            source, target, frame = self._flying.popleft()
            if target not in self.nodes[source].context.connected:
                continue
            record = decode(frame)
            assert not isinstance(record, PeerFault), record
            for arrives in self.filter(source, target, record):
                self.seen.append((source, target, arrives))
                self.give(source, target, arrives)

    def _execute(self, name: str, effect: Effect) -> None:
        match effect:
            case Put() | Delete():
                self._store(name, [effect])
            case SendTo(peer, _, frame):
                self._flying.append((name, peer, frame))
            case Respond(request_id, answer):
                assert request_id not in self.answers, "a request is answered once"
                self.answers[request_id] = answer

    def _store(self, name: str, writes: list[Put | Delete]) -> None:
        for write in writes:
            rows = self.nodes[name].disk.setdefault(write.table, {})
            if isinstance(write, Put):
                rows[write.key] = write.value
            else:
                rows.pop(write.key, None)
