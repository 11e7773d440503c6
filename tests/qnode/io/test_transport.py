"""Peer connections over real sockets and real TLS: who may connect, which connection stays, order, limits, recovery."""

import asyncio
import datetime
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from qnode.effects import TrafficClass, UsePeerKeys
from qnode.io import connection as connection_module
from qnode.io import transport as transport_module
from qnode.io.certificates import Authority, Identity, peer_contexts
from qnode.io.frames import FRAME_SIZE_BYTES_MAX, FrameKind
from qnode.io.transport import NodeIdentity, Transport, TransportError, TransportEvents, listening_place
from qnode.settings import PeerSettings, PeerToPeerSettings

pytestmark = pytest.mark.integration
NOW = datetime.datetime.now(datetime.UTC)
TIMEOUT_S = 10


@dataclass
class Node:
    """One transport and the record of what it told."""

    transport: Transport
    told: list[tuple[str, ...]] = field(default_factory=list)
    frames: list[tuple[str, bytes]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def events(self) -> TransportEvents:
        def tell(*what: str) -> None:
            self.told.append(what)
            asyncio.get_running_loop().create_task(self._notify())

        def frame(peer: str, content: bytes) -> None:
            self.frames.append((peer, content))
            asyncio.get_running_loop().create_task(self._notify())

        return TransportEvents(
            lambda peer: tell("connected", peer),
            lambda peer, reason: tell("lost", peer, reason),
            frame,
            lambda peer, reason: tell("refused", peer, reason),
        )

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S), self.changed:
            await self.changed.wait_for(condition)

    async def until_told(self, *what: str) -> None:
        await self.until(lambda: any(each[: len(what)] == what for each in self.told))

    def refusal(self) -> str:
        return next(each[2] for each in self.told if each[0] == "refused")


class World:
    """A certificate authority, keys and transports on loopback."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.directory = directory
        self.authority = Authority.create("test", NOW)
        self.keys: dict[str, ed25519.Ed25519PrivateKey] = {}
        self.nodes: list[Node] = []
        (directory / "ca.crt").write_bytes(self.authority.certificate.public_bytes(serialization.Encoding.PEM))
        for name in ("a", "b", "c"):
            self.keys[name] = ed25519.Ed25519PrivateKey.generate()

    def contexts(self, name: str, key: object | None = None, authority: Authority | None = None):  # type: ignore[no-untyped-def]
        private = key or self.keys[name]
        certificate = (authority or self.authority).issue(Identity("node", name), private.public_key(), NOW)  # type: ignore[attr-defined]
        stem = self.directory / f"{name}-{len(list(self.directory.iterdir()))}"
        stem.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        stem.with_suffix(".key").write_bytes(
            private.private_bytes(  # type: ignore[attr-defined]
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return peer_contexts(stem.with_suffix(".crt"), stem.with_suffix(".key"), self.directory / "ca.crt")

    async def node(self, name: str, dial: dict[str, int] | None = None, **changes) -> Node:  # type: ignore[no-untyped-def]
        contexts = changes.pop("contexts", None) or self.contexts(name)
        identity = NodeIdentity(
            changes.pop("claims", name),
            changes.pop("genesis", b"g" * 32),
            changes.pop("node_keys", {each: key.public_key().public_bytes_raw() for each, key in self.keys.items()}),
            contexts,
            changes.pop("instance", random.getrandbits(63)),
        )
        settings = PeerToPeerSettings(
            listen_port=changes.pop("port", 0),
            ca=Path(),
            certificate=Path(),
            **{"reconnect_first_s": 0.02, "reconnect_max_s": 0.1, **changes},
        )
        peers = [PeerSettings(node_id=peer, host="127.0.0.1", port=port) for peer, port in (dial or {}).items()]
        node = Node(None)  # type: ignore[arg-type]
        node.transport = Transport(identity, settings, peers, node.events(), random.Random(1))
        await node.transport.start()
        self.nodes.append(node)
        return node


Scenario = Callable[[World], Awaitable[None]]


def on_both_loops(scenario: Scenario) -> Callable[..., None]:
    """Make a test of `scenario` that runs on asyncio's own loop and on uvloop."""

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def play() -> None:
            world = World(tmp_path, monkeypatch)
            try:
                await scenario(world)
            finally:
                monkeypatch.undo()
                await asyncio.gather(*(node.transport.stop() for node in world.nodes))

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(play())

    run.__doc__ = scenario.__doc__
    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@on_both_loops
async def test_frames_arrive_whole_and_in_order_both_ways(world: World) -> None:
    a = await world.node("a")
    b = await world.node("b", {"a": a.transport.listen_port})
    await a.until_told("connected", "b")
    await b.until_told("connected", "a")
    sizes = [0, 1, 100, 70_000, FRAME_SIZE_BYTES_MAX]
    for size in sizes:
        assert a.transport.send("b", TrafficClass.GOSSIP, bytes([size % 251]) * size)
        assert b.transport.send("a", TrafficClass.GOSSIP, bytes([size % 241]) * size)
    await a.until(lambda: len(a.frames) == len(sizes))
    await b.until(lambda: len(b.frames) == len(sizes))
    assert [(peer, len(frame), set(frame) <= {len(frame) % 251}) for peer, frame in b.frames] == [
        ("a", size, True) for size in sizes
    ]
    assert [len(frame) for _, frame in a.frames] == sizes


@on_both_loops
async def test_when_both_dial_exactly_one_connection_stays(world: World) -> None:
    ports = {"a": free_port(), "b": free_port()}
    a, b = await asyncio.gather(
        world.node("a", {"b": ports["b"]}, port=ports["a"]), world.node("b", {"a": ports["a"]}, port=ports["b"])
    )
    await asyncio.gather(a.until_told("connected", "b"), b.until_told("connected", "a"))
    for n in range(100):
        a.transport.send("b", TrafficClass.GOSSIP, b"%d" % n)
        b.transport.send("a", TrafficClass.GOSSIP, b"%d" % n)
    await asyncio.gather(a.until(lambda: len(a.frames) == 100), b.until(lambda: len(b.frames) == 100))
    assert [told for told in a.told if told[0] != "refused"] == [("connected", "b")]
    assert [told for told in b.told if told[0] != "refused"] == [("connected", "a")]


@on_both_loops
async def test_a_restarted_peer_replaces_its_old_connection(world: World) -> None:
    a = await world.node("a")
    await world.node("b", {"a": a.transport.listen_port}, instance=1)
    await a.until_told("connected", "b")
    again = await world.node("b", {"a": a.transport.listen_port}, instance=2)
    await again.until_told("connected", "a")
    await a.until(lambda: len(a.told) >= 3)
    assert [each[0] for each in a.told[:3]] == ["connected", "lost", "connected"]


@on_both_loops
async def test_a_peer_that_comes_back_is_found(world: World) -> None:
    port = free_port()
    a = await world.node("a", {"b": port})
    await a.until_told("refused", "b")
    b = await world.node("b", port=port)
    await a.until_told("connected", "b")
    await b.transport.stop()
    await a.until_told("lost", "b", "the peer ended the connection: the node is stopping")
    a.told.clear()
    await world.node("b", port=port)
    await a.until_told("connected", "b")


@on_both_loops
async def test_another_chain_is_refused_with_the_reason_on_both_sides(world: World) -> None:
    a = await world.node("a")
    b = await world.node("b", {"a": a.transport.listen_port}, genesis=b"h" * 32)
    await asyncio.gather(a.until_told("refused"), b.until_told("refused"))
    assert "another chain" in a.refusal()
    assert "another chain" in b.refusal()
    assert a.transport.connected_peers == b.transport.connected_peers == []
    assert a.transport.counters.security_failures > 0
    assert a.transport.counters.checksum_failures == 0


@on_both_loops
async def test_a_key_outside_genesis_is_refused(world: World) -> None:
    a = await world.node("a")
    foreign = world.contexts("b", ed25519.Ed25519PrivateKey.generate())
    b = await world.node("b", {"a": a.transport.listen_port}, contexts=foreign)
    await asyncio.gather(a.until_told("refused"), b.until_told("refused"))
    assert "not a node of our chain" in a.refusal()


@on_both_loops
async def test_an_ordinary_certificate_of_the_authority_is_not_a_node(world: World) -> None:
    a = await world.node("a")
    b = await world.node(
        "b", {"a": a.transport.listen_port}, contexts=world.contexts("b", ec.generate_private_key(ec.SECP256R1()))
    )
    await asyncio.gather(a.until_told("refused"), b.until_told("refused"))
    assert "not a node of our chain" in a.refusal()


@on_both_loops
async def test_a_node_cannot_claim_to_be_another(world: World) -> None:
    a = await world.node("a")
    await world.node("c", {"a": a.transport.listen_port}, claims="b")
    await a.until_told("refused")
    assert "claims to be 'b' with the key of c" in a.refusal()


@on_both_loops
async def test_the_wrong_node_at_an_address_is_named(world: World) -> None:
    c = await world.node("c")
    a = await world.node("a", {"b": c.transport.listen_port})
    await a.until_told("refused")
    assert "it is c, we dialled b" in a.refusal()


@on_both_loops
async def test_another_authority_is_refused_in_the_handshake(world: World) -> None:
    a = await world.node("a")
    other = Authority.create("other", NOW)
    b = await world.node("b", {"a": a.transport.listen_port}, contexts=world.contexts("b", authority=other))
    await b.until_told("refused")
    assert "refuses our certificate" in b.refusal()
    assert a.told == []


@on_both_loops
async def test_an_expired_certificate_is_refused(world: World) -> None:
    a = await world.node("a")
    past = NOW - datetime.timedelta(days=3000)
    certificate = world.authority.issue(Identity("node", "b"), world.keys["b"].public_key(), past)
    world.monkeypatch.setattr(Authority, "issue", lambda *_, **__: certificate)
    b = await world.node("b", {"a": a.transport.listen_port})
    await b.until_told("refused")
    assert "a certificate in date" in b.refusal()


@on_both_loops
async def test_lower_classes_leave_first_and_a_full_queue_refuses(world: World) -> None:
    a = await world.node("a", send_queue_mib=9)
    b = await world.node("b", {"a": a.transport.listen_port}, send_queue_mib=9)
    await a.until_told("connected", "b")
    light = bytes(3 << 20)
    taken = [a.transport.send("b", TrafficClass.LIGHT, light) for _ in range(4)]
    assert taken == [True, True, True, False]
    assert a.transport.send("b", TrafficClass.CONSENSUS, b"vote")
    await b.until(lambda: len(b.frames) == 4)
    assert b.frames[0] == ("a", b"vote")
    assert a.transport.counters.frames_dropped[TrafficClass.LIGHT] == 1
    assert not a.transport.send("c", TrafficClass.CONSENSUS, b"nobody there")


@on_both_loops
async def test_small_frames_of_one_tick_share_a_write(world: World) -> None:
    a = await world.node("a")
    b = await world.node("b", {"a": a.transport.listen_port})
    await a.until_told("connected", "b")
    flushes = []
    original = connection_module.Connection._flush
    world.monkeypatch.setattr(
        connection_module.Connection, "_flush", lambda self: (flushes.append(1), original(self))[1]
    )
    for n in range(50):
        a.transport.send("b", TrafficClass.CONSENSUS, bytes([n]))
    await b.until(lambda: len(b.frames) == 50)
    assert len(flushes) == 1


@on_both_loops
async def test_a_peer_that_does_not_read_makes_the_sender_wait(world: World) -> None:
    a = await world.node("a", send_queue_mib=9)
    b = await world.node("b", {"a": a.transport.listen_port})
    await a.until_told("connected", "b")
    await b.until_told("connected", "a")
    b.transport.pause_reading("a")
    frame = bytes(1 << 20)
    sent = 0
    async with asyncio.timeout(TIMEOUT_S):
        while a.transport.send("b", TrafficClass.GOSSIP, frame):
            sent += 1
            await asyncio.sleep(0)
    assert sent < 100
    b.transport.resume_reading("a")
    await b.until(lambda: len(b.frames) == sent)


@on_both_loops
async def test_idle_connections_live_and_dead_ones_are_found(world: World) -> None:
    a = await world.node("a", ping_interval_s=0.1, idle_timeout_s=0.5)
    b = await world.node("b", {"a": a.transport.listen_port}, ping_interval_s=0.1, idle_timeout_s=0.5)
    await a.until_told("connected", "b")
    measured = asyncio.Event()
    take = connection_module.Connection._take

    def watch(self: connection_module.Connection, kind: FrameKind, payload: bytes) -> None:
        take(self, kind, payload)
        if kind is FrameKind.PONG:
            measured.set()

    world.monkeypatch.setattr(connection_module.Connection, "_take", watch)
    async with asyncio.timeout(TIMEOUT_S):
        await measured.wait()
    assert len(a.told) == 1
    world.monkeypatch.setattr(
        connection_module.Connection, "_write", lambda *_: None
    )  # the network swallows everything
    await a.until_told("lost", "b")
    await b.until_told("lost", "a")


@on_both_loops
async def test_a_faulty_peer_is_kept_away(world: World) -> None:
    a = await world.node("a")
    b = await world.node("b", {"a": a.transport.listen_port})
    await asyncio.gather(a.until_told("connected", "b"), b.until_told("connected", "a"))
    a.transport.disconnect("b", "sent a vote with a bad signature")
    await b.until_told("lost", "a", "the peer ended the connection: sent a vote with a bad signature")
    await b.until_told("refused", "a")
    assert "try again in" in b.refusal()
    assert a.told[1] == ("lost", "b", "sent a vote with a bad signature")


@on_both_loops
async def test_a_port_in_use_is_explained(world: World) -> None:
    a = await world.node("a")
    with pytest.raises(TransportError, match=r"in use.*listen_port in \[peer_to_peer\]"):
        await world.node("b", port=a.transport.listen_port)


@on_both_loops
async def test_a_stranger_without_tls_or_with_garbage_harms_nobody(world: World) -> None:
    a = await world.node("a")
    reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.listen_port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(TIMEOUT_S):
        await reader.read()
    writer.close()
    context = world.contexts("c")[1]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", a.transport.listen_port, ssl=context, server_hostname=""
    )
    writer.write(b"\xff" * 100)
    async with asyncio.timeout(TIMEOUT_S):
        assert b"unknown kind 255" in await reader.read()
    writer.close()
    await a.until_told("refused", "c")
    b = await world.node("b", {"a": a.transport.listen_port})
    await b.until_told("connected", "a")


class Proxy:
    """A network path that can be made to swallow everything without closing anything."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.dead: set[asyncio.StreamWriter] = set()
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        self.writers += [writer, far_writer]
        loop = asyncio.get_running_loop()
        self.tasks.append(loop.create_task(self.pump(reader, far_writer)))
        self.tasks.append(loop.create_task(self.pump(far_reader, writer)))

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if writer not in self.dead:
                writer.write(data)
        if writer not in self.dead:
            writer.close()

    def swallow_everything_so_far(self) -> None:
        self.dead.update(self.writers)

    async def stop(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self.writers:
            writer.close()


@on_both_loops
async def test_a_connection_that_died_on_one_side_only_is_probed_and_replaced(world: World) -> None:
    world.monkeypatch.setattr(transport_module, "PROBE_TIMEOUT_S", 0.2)
    a = await world.node("a")  # decides for the pair, and would notice the silence only after 20 s
    proxy = Proxy(a.transport.listen_port)
    b = await world.node("b", {"a": await proxy.start()}, ping_interval_s=0.1, idle_timeout_s=0.3)
    await asyncio.gather(a.until_told("connected", "b"), b.until_told("connected", "a"))
    proxy.swallow_everything_so_far()
    await b.until_told("lost", "a")
    assert "silent" in b.told[-1][2]
    b.told.clear()
    await b.until_told("connected", "a")
    assert [told[0] for told in a.told if told[0] != "refused"] == ["connected", "lost", "connected"]
    assert a.transport.send("b", TrafficClass.CONSENSUS, b"through")
    await b.until(lambda: ("a", b"through") in b.frames)
    await proxy.stop()


@on_both_loops
async def test_after_random_restarts_every_pair_has_one_live_connection(world: World) -> None:
    """Restarts in any order: what a node is told alternates per peer, and in the end all can talk."""
    choice, names = random.Random(7), ("a", "b", "c")
    ports = {name: free_port() for name in names}

    async def begin(name: str) -> Node:
        return await world.node(name, {x: p for x, p in ports.items() if x != name}, port=ports[name])

    nodes = {name: await begin(name) for name in names}
    for _ in range(12):
        name = choice.choice(names)
        if choice.random() < 0.5:
            await nodes[name].until(lambda: True)  # a moment for the others to get on
        await nodes[name].transport.stop()
        nodes[name] = await begin(name)
    pairs = [(one, other) for one in names for other in names if one != other]
    await asyncio.gather(
        *(nodes[one].until(lambda n=nodes[one], o=other: o in n.transport.connected_peers) for one, other in pairs)
    )
    for one, other in pairs:
        frame = f"{one}>{other}".encode()
        assert nodes[one].transport.send(other, TrafficClass.GOSSIP, frame)
        await nodes[other].until(lambda n=nodes[other], wanted=(one, frame): wanted in n.frames)
    for node in world.nodes:
        for peer in names:
            kinds = [told[0] for told in node.told if told[1] == peer and told[0] != "refused"]
            assert kinds == ["connected", "lost"] * (len(kinds) // 2) + ["connected"] * (len(kinds) % 2)


# ---- keys that the chain changes


def raw(world: World, name: str) -> bytes:
    return world.keys[name].public_key().public_bytes_raw()


@on_both_loops
async def test_a_lonely_node_takes_the_authority_s_word_for_an_unknown_key(world: World) -> None:
    rotated = world.contexts("b", ed25519.Ed25519PrivateKey.generate())
    a = await world.node("a")
    a.transport._last_company_s -= transport_module.ALONE_S
    b = await world.node("b", {"a": a.transport.listen_port}, contexts=rotated)
    await asyncio.gather(a.until_told("connected", "b"), b.until_told("connected", "a"))


@on_both_loops
async def test_retired_keys_lose_their_connections_and_new_ones_serve(world: World) -> None:
    a = await world.node("a")
    new_key = ed25519.Ed25519PrivateKey.generate()
    b = await world.node("b", {"a": a.transport.listen_port})
    await asyncio.gather(a.until_told("connected", "b"), b.until_told("connected", "a"))
    keys = ((raw(world, "a"), "a"), (new_key.public_key().public_bytes_raw(), "b"))
    a.transport.use_keys(UsePeerKeys(raw(world, "a"), keys, (raw(world, "b"),)))
    await a.until_told("lost", "b", "its key is retired, or its node was removed")
    again = await world.node("b", {"a": a.transport.listen_port}, contexts=world.contexts("b", new_key))
    await again.until_told("connected", "a")


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_number_is_bound_without_being_looked_up(host: str, family: socket.AddressFamily) -> None:
    with listening_place(host, 0)["sock"] as bound:
        assert bound.family == family and bound.getsockname()[0] == host
        with pytest.raises(OSError, match="in use"):
            listening_place(host, bound.getsockname()[1])


def test_a_name_is_left_to_the_event_loop() -> None:
    assert listening_place("localhost", 7) == {"host": "localhost", "port": 7}


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_dials_a_bound_number_gets_small_frames_at_once(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            told.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async def dial() -> int:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Accepted, **listening_place("127.0.0.1", 0)) as server:
            transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
            try:
                return await asyncio.wait_for(told, TIMEOUT_S)
            finally:
                transport.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        told: asyncio.Future[int] = runner.get_loop().create_future()
        assert runner.run(dial()) != 0
