"""Connections with all peers: TLS 1.3 over TCP, exactly one per pair of nodes, re-established for ever.

Decides which connection of a pair stays: of two nodes the one with the smaller ID decides, and its WELCOME frame says
so; the other node uses a connection only once welcomed. So both always agree, without waiting and without a flap. A
node accepts every node of the genesis file and dials those of `[[peers]]`. Node code sees three events: connected,
lost, frame.
"""

import asyncio
import contextlib
import errno
import ipaddress
import math
import random
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qnode.effects import TrafficClass, UsePeerKeys
from qnode.io.connection import Connection, ConnectionCounters, ConnectionLimits
from qnode.io.frames import FRAME_SIZE_BYTES_MAX, PROTOCOL_VERSION, Hello
from qnode.io.shaping import UNSHAPED, Shape
from qnode.settings import PeerSettings, PeerToPeerSettings

DIAL_TIMEOUT_S: Final = 10.0
TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0  # 2–3 ms of work; hundreds of nodes starting on two cores wait for their turn
TLS_SHUTDOWN_TIMEOUT_S: Final = 1.0
STOP_TIMEOUT_S: Final = 3.0
PROBE_TIMEOUT_S: Final = 2.0
FAULT_PAUSE_S: Final = 5.0  # a peer that we disconnected for a fault is not met again before
# Connections that have shown a certificate of ours but not finished their hello; more are dropped at once.
GREETINGS_MAX: Final = 256


ALONE_S: Final = 10.0
"""Without any connection for so long, a node takes the authority's word for keys that it does not know."""


class TransportError(RuntimeError):
    """The listener cannot start; the message says why and the way out."""


@dataclass(frozen=True, slots=True)
class TransportEvents:
    """Whom the transport tells what; called on the event loop, never re-entrantly from `send`."""

    on_connected: Callable[[str], None]
    on_lost: Callable[[str, str], None]
    on_frame: Callable[[str, bytes], None]
    on_refused: Callable[[str, str], None] = lambda peer, reason: (
        None
    )  # an attempt failed: for the log, once per reason


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who we are to our peers: node ID, chain, and the TLS contexts that prove it (server, client)."""

    node_id: str
    genesis_digest: bytes
    node_keys: Mapping[str, bytes]  # node ID → raw Ed25519 public key, from genesis; `use_keys` replaces it
    contexts: tuple[ssl.SSLContext, ssl.SSLContext]
    instance: int  # random per start
    show: Callable[[bytes], None] = lambda own_key: None  # loads the certificate of an own key into the contexts


class Transport:
    """All peer connections of one node. `await start()`, then `send`; `await stop()` ends in order."""

    def __init__(
        self,
        identity: NodeIdentity,
        settings: PeerToPeerSettings,
        peers: Sequence[PeerSettings],
        events: TransportEvents,
        jitter: random.Random,
    ) -> None:
        self.counters = ConnectionCounters()
        self.limits = ConnectionLimits(settings.send_queue_mib << 20, settings.ping_interval_s, settings.idle_timeout_s)
        self.own_hello = Hello(PROTOCOL_VERSION, identity.genesis_digest, identity.node_id, identity.instance)
        self.listen_port = settings.listen_port
        self._identity = identity
        self._settings = settings
        self._peers = peers
        self._events = events
        self._jitter = jitter
        self._node_of_key = {key: node_id for node_id, key in identity.node_keys.items()}
        self._refused_keys: frozenset[bytes] = frozenset()
        self._own_key = b""
        self._last_company_s = math.inf
        self._open: set[Connection] = set()
        self._up: dict[str, Connection] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._pause_until_s: dict[str, float] = {}
        self._last_refusal: dict[str, str] = {}
        self._server: asyncio.Server | None = None
        self._dialling: list[asyncio.Task[None]] = []
        self._stopping = False
        self._shapes: dict[str, Shape] = {}

    async def start(self) -> None:
        """Listen, and begin to dial. Raises TransportError when the port cannot be used."""
        loop = asyncio.get_running_loop()
        self._last_company_s = loop.time()
        host, port = self._settings.listen_host, self._settings.listen_port
        try:
            self._server = await loop.create_server(
                self._accept,
                **listening_place(host, port),
                ssl=self._identity.contexts[0],
                ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S,
                backlog=1024,
            )
        except OSError as error:
            raise TransportError(listen_failure(error, host, port, "[peer_to_peer]")) from None
        self.listen_port = self._server.sockets[0].getsockname()[1]
        for peer in self._peers:
            self._changed[peer.node_id] = asyncio.Event()
            self._dialling.append(loop.create_task(self._keep_connected(peer), name=f"dial {peer.node_id}"))

    async def stop(self) -> None:
        """Stop listening and dialling, tell every peer, flush and close."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        for connection in list(self._open):
            connection.close("the node is stopping")
        if self._open:
            await asyncio.wait([connection.done for connection in self._open], timeout=STOP_TIMEOUT_S)
        for connection in list(self._open):
            connection.abort("the node is stopping")

    @property
    def connected_peers(self) -> list[str]:
        """The IDs of all peers that are connected now, sorted."""
        return sorted(self._up)

    def round_trip_s(self, peer: str) -> float | None:
        """Return the last measured round trip to a peer; None before the first idle ping."""
        connection = self._up.get(peer)
        return connection.round_trip_s if connection else None

    def send(self, peer: str, traffic: TrafficClass, frame: bytes) -> bool:
        """Queue one frame of at most FRAME_SIZE_BYTES_MAX; False when the peer is not connected or has no room."""
        assert len(frame) <= FRAME_SIZE_BYTES_MAX, f"a frame of {len(frame)} bytes for {peer} exceeds the limit"
        connection = self._up.get(peer)
        if connection is None:
            self.counters.frames_dropped[traffic] += 1
            return False
        return connection.enqueue(traffic, frame)

    def disconnect(self, peer: str, reason: str) -> None:
        """End the connection with a peer because of its fault, and keep away from it for FAULT_PAUSE_S."""
        self._pause_until_s[peer] = asyncio.get_running_loop().time() + FAULT_PAUSE_S
        connection = self._up.get(peer)
        if connection is not None:
            self._drop(connection, reason)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """How connections are made worse than they are, by peer; "*" is every other peer."""
        return self._shapes

    def shape(self, shapes: Mapping[str, Shape]) -> None:
        """Shape the connections with peers from now on, and none but those named (or all, by "*")."""
        self._shapes = dict(shapes)
        for peer, connection in self._up.items():
            connection.shape(self._shape_of(peer))

    def _shape_of(self, peer: str) -> Shape:
        return self._shapes.get(peer, self._shapes.get("*", UNSHAPED))

    def pause_reading(self, peer: str) -> None:
        """Take no more frames of a peer until `resume_reading`; its sends back up at its side."""
        connection = self._up.get(peer)
        if connection is not None:
            connection.pause_reading()

    def resume_reading(self, peer: str) -> None:
        """Take frames of a peer again."""
        connection = self._up.get(peer)
        if connection is not None:
            connection.resume_reading()

    # ---- what connections ask and tell (qnode.io.connection.Owner)

    def use_keys(self, keys: UsePeerKeys) -> None:
        """Follow the chain: who holds which key, which keys are out, and which one this node shows."""
        self._node_of_key = dict(keys.accepted)
        self._refused_keys = frozenset(keys.refused)
        if keys.own_key != self._own_key:
            self._own_key = keys.own_key
            self._identity.show(keys.own_key)
        for connection in list(self._open):
            if connection.peer_key in self._refused_keys:
                connection.close("its key is retired, or its node was removed")

    def node_with_key(self, public_key: bytes | None, claimed: str | None) -> str | None:
        """Return the node of this chain that holds a key.

        While this node has been alone for a while, a key that its chain does not know (yet) stands for the node that
        the cluster's authority says it is: who was away while all others rotated their keys could never catch up
        otherwise. A key that the chain has retired never passes.
        """
        if public_key is None or public_key in self._refused_keys:
            return None
        known = self._node_of_key.get(public_key)
        if known is None and self._is_alone() and claimed in self._node_of_key.values():
            return claimed
        return known

    def _is_alone(self) -> bool:
        return not self._up and asyncio.get_running_loop().time() - self._last_company_s >= ALONE_S

    def introduced(self, connection: Connection) -> None:
        """A connection's hello is good: refuse it, or if we decide for this pair, choose."""
        peer = connection.peer
        pause_s = self._pause_until_s.get(peer, 0.0) - asyncio.get_running_loop().time()
        if self._stopping or peer == self._identity.node_id:
            connection.close("the node is stopping" if self._stopping else "this is the node itself")
        elif pause_s > 0:
            connection.close(f"disconnected for a fault; try again in {pause_s:.1f} s")
        elif self._shape_of(peer).cut:
            connection.abort("cut off by the operator")
        elif self._identity.node_id < peer:
            self._choose(connection)

    def _choose(self, connection: Connection) -> None:
        """Keep the connection in use unless the peer restarted; whether it still lives, a probe finds out."""
        current = self._up.get(connection.peer)
        if current is not None and current.instance == connection.instance:
            current.probe(PROBE_TIMEOUT_S)
            connection.close("another connection of this pair is in use")
            return
        connection.welcome()
        self._use(connection)

    def welcomed(self, connection: Connection) -> None:
        """The peer, which decides for this pair, has chosen this connection."""
        if self._identity.node_id < connection.peer:
            connection.close("a welcome from the wrong side")
            return
        connection.begin()
        self._use(connection)

    def _use(self, connection: Connection) -> None:
        current = self._up.get(connection.peer)
        if current is not None:
            self._drop(current, "replaced by a new connection")
        self._up[connection.peer] = connection
        if self._shapes:
            connection.shape(self._shape_of(connection.peer))
        self._last_refusal.pop(connection.peer, None)
        self._notify(connection.peer)
        self._events.on_connected(connection.peer)

    def received(self, connection: Connection, frame: bytes) -> None:
        """A whole frame of a connection in use."""
        if self._up.get(connection.peer) is connection:
            self._events.on_frame(connection.peer, frame)

    def closed(self, connection: Connection) -> None:
        """A connection is gone, whoever ended it."""
        self._open.discard(connection)
        if self._up.get(connection.peer) is connection:
            del self._up[connection.peer]
            self._notify(connection.peer)
            self._events.on_lost(connection.peer, connection.reason)
        elif not (connection.up or connection.peer in self._up or self._stopping):
            self._refused(connection.peer or "a stranger", connection.reason)

    # ---- accepting and dialling

    def _accept(self) -> Connection:
        return Connection(self)

    def opened(self, connection: Connection) -> None:
        """A TLS handshake has succeeded, in either direction."""
        self.counters.handshakes += 1
        greeting = sum(1 for each in self._open if not each.up)
        self._open.add(connection)
        if greeting >= GREETINGS_MAX:
            asyncio.get_running_loop().call_soon(connection.abort, "too many connections at once")

    def _drop(self, connection: Connection, reason: str) -> None:
        """Take a connection out of use at once; its socket closes when it has flushed."""
        del self._up[connection.peer]
        connection.close(reason)
        self._notify(connection.peer)
        self._events.on_lost(connection.peer, reason)

    async def _keep_connected(self, peer: PeerSettings) -> None:
        """Dial one peer whenever no connection with it is up, with exponential back-off and jitter."""
        delay_s = self._settings.reconnect_first_s
        if self._identity.node_id > peer.node_id:
            await self._wait_changed(peer.node_id, delay_s)  # let the node that decides dial first
        while not self._stopping:
            if peer.node_id in self._up:
                await self._wait_changed(peer.node_id, None)
                delay_s = self._settings.reconnect_first_s
                continue
            await self._dial(peer)
            if peer.node_id not in self._up:
                pause_s = self._pause_until_s.get(peer.node_id, 0.0) - asyncio.get_running_loop().time()
                await self._wait_changed(peer.node_id, max(pause_s, delay_s * self._jitter.uniform(0.5, 1.0)))
                delay_s = min(2 * delay_s, self._settings.reconnect_max_s)

    async def _dial(self, peer: PeerSettings) -> None:
        """Try once; returns when the attempt is up or has failed."""
        if self._shape_of(peer.node_id).cut:
            self._refused(peer.node_id, "cut off by the operator")
            return
        made: list[Connection] = []

        def factory() -> Connection:
            made.append(Connection(self, dialled=peer.node_id))
            return made[0]

        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    factory,
                    peer.host,
                    peer.port,
                    ssl=self._identity.contexts[1],
                    server_hostname="",
                    ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S,
                    ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S,
                )
        except (OSError, TimeoutError) as error:
            self._refused(peer.node_id, f"{peer.host}:{peer.port}: {_dial_failure(error)}")
            return
        await made[0].settled.wait()  # its own timer bounds this

    def _refused(self, peer: str, reason: str) -> None:
        if self._last_refusal.get(peer) != reason:
            self._last_refusal[peer] = reason
            self._events.on_refused(peer, reason)

    def _notify(self, peer: str) -> None:
        self._last_company_s = asyncio.get_running_loop().time()
        event = self._changed.get(peer)
        if event is not None:
            event.set()

    async def _wait_changed(self, peer: str, timeout_s: float | None) -> None:
        """Wait until the peer's connection came or went, or until the time is over."""
        event = self._changed[peer]
        event.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()


def listening_place(host: str, port: int) -> dict[str, Any]:
    """Return where `create_server` shall listen: a bound socket for a number, host and port for a name. Raises OSError.

    uvloop starts four threads to look up even a number, and keeps them.
    """
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return {"host": host, "port": port}
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    bound = socket.create_server((host, port), family=family)
    # asyncio sends small frames at once (TCP_NODELAY) only where the socket names its protocol.
    return {"sock": socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, bound.detach())}


def listen_failure(error: OSError, host: str, port: int, table: str) -> str:
    """Say why a listener cannot start, and what to do; `table` is the configuration table of its address."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use by another program; stop that program (perhaps this node already runs: "
            f"`qnode cluster status`), or change listen_port in {table}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose a listen_port above 1023 in {table}"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; check listen_host in {table}"


def _dial_failure(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "no answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
