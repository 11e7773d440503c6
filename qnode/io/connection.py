"""One TLS connection with one peer: hello, queues, write coalescing, idle checks, and a clean end.

Decides when bytes leave and when a silent connection is dead; which of two connections with a peer stays is the
transport's decision. States: greeting (hello sent) → introduced (hello of the peer is good) → up → closed.
"""

import asyncio
import ssl
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from qnode.effects import TrafficClass
from qnode.io.certificates import identity_of, node_public_key
from qnode.io.frames import (
    PROTOCOL_VERSION,
    FrameChecksumError,
    FrameError,
    FrameKind,
    FrameReader,
    Hello,
    frame_header,
)
from qnode.io.shaping import Shape, Shaper

# One write to the socket carries at most about so much: enough that ten small frames cost one TLS record (29 µs alone,
# 3 µs each together), small enough that a vote does not wait behind megabytes of light.
WRITE_SIZE_BYTES: Final = 256 << 10
HELLO_TIMEOUT_S: Final = 5.0  # a node answers within milliseconds; a port scanner never does
# TLS takes the bytes of a connection in pieces of so much: its buffer grows to the largest piece that it was ever
# given and never shrinks, which took a megabyte of an idle node. A TLS record holds no more anyway.
PIECE_SIZE_BYTES: Final = 16 << 10
_BYE_TEXT_LENGTH_MAX: Final = 300
_TIME = struct.Struct(">d")


@dataclass(slots=True)
class ConnectionCounters:
    """What went over all connections of a node since its start; refusals by cause."""

    handshakes: int = 0  # TLS handshakes that succeeded, in either direction
    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    frames_dropped: dict[TrafficClass, int] = field(default_factory=lambda: dict.fromkeys(TrafficClass, 0))
    checksum_failures: int = 0  # accidents (S0-E18), apart from
    security_failures: int = 0  # wrong keys, wrong chain, frames that may not come


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The timing and the bounds of one connection; see `[peer_to_peer]` in the configuration table."""

    send_queue_bytes: int
    ping_interval_s: float
    idle_timeout_s: float


class Owner(Protocol):
    """What a connection asks of and tells to the transport."""

    counters: ConnectionCounters
    limits: ConnectionLimits
    own_hello: Hello

    def opened(self, connection: "Connection") -> None: ...
    def node_with_key(self, public_key: bytes | None, claimed: str | None) -> str | None: ...
    def introduced(self, connection: "Connection") -> None: ...
    def welcomed(self, connection: "Connection") -> None: ...
    def received(self, connection: "Connection", frame: bytes) -> None: ...
    def closed(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """The protocol object of one connection; `dialled` names the peer we meant to reach, None when it came to us."""

    def __init__(self, owner: Owner, dialled: str | None = None) -> None:
        self.peer = ""
        self.peer_key: bytes | None = None
        self.instance = 0
        self.up = False
        self.reason = ""
        self.round_trip_s: float | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.settled = asyncio.Event()  # up or closed
        self._owner = owner
        self._dialled = dialled
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in TrafficClass)
        self._queued_bytes = [0] * len(TrafficClass)
        self._loop = asyncio.get_running_loop()
        self._flush_scheduled = False
        self._write_paused = False
        self._read_paused = False
        self._closing = False
        self._received_at = 0.0
        self._dead_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._shaper: Shaper | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_SIZE_BYTES)
        self._received_at = self._loop.time()
        self._owner.opened(self)
        tls = transport.get_extra_info("ssl_object")
        self.peer_key = node_public_key(tls.getpeercert(binary_form=True)) if tls else None
        named = identity_of(tls.getpeercert()) if tls else None
        claimed = named.name if named is not None and named.kind == "node" else None
        peer = self._owner.node_with_key(self.peer_key, claimed)
        if peer is None:
            self._refuse(
                "the key in its certificate is not a node of our chain; use the same genesis.json on both, or admit it"
            )
        elif self._dialled not in (None, peer):
            self._refuse(f"it is {peer}, we dialled {self._dialled}; correct host and port in [[peers]]")
        else:
            self.peer = peer
            self._write(FrameKind.HELLO, self._owner.own_hello.encode())
            self._timer = self._loop.call_later(HELLO_TIMEOUT_S, self._hello_missing)

    def data_received(self, data: bytes) -> None:
        self._received_at = self._loop.time()
        self._dead_at = None
        self._owner.counters.bytes_received += len(data)
        try:
            for kind, payload in self._reader.feed(data):
                if self._closing:
                    return
                self._take(kind, payload)
        except FrameChecksumError as error:
            self._owner.counters.checksum_failures += 1
            self.close(str(error))
        except FrameError as error:
            self._refuse(str(error))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if isinstance(exc, ssl.SSLError) and self._reader.authenticated:
            self._owner.counters.security_failures += 1  # somebody in between changed, added or repeated bytes
        if not self.reason:
            self.reason = _loss_reason(exc, greeted=self._reader.authenticated)
        if self._timer is not None:
            self._timer.cancel()
        if self._shaper is not None:
            self._shaper.close()
        self._owner.closed(self)
        self.up = False
        self.settled.set()
        if not self.done.done():
            self.done.set_result(None)

    # ---- what the transport does with it

    def welcome(self) -> None:
        """Tell the peer that this connection is the one, and begin to use it."""
        self._write(FrameKind.WELCOME, b"")
        self.begin()

    def enqueue(self, traffic: TrafficClass, frame: bytes) -> bool:
        """Queue one frame; False, and counted, when its class has no room or the connection is not up."""
        queued = self._queued_bytes[traffic] + len(frame)
        if not self.up or self._closing or queued > self._owner.limits.send_queue_bytes:
            self._owner.counters.frames_dropped[traffic] += 1
            return False
        self._queued_bytes[traffic] = queued
        self._queues[traffic].append(frame)
        if not self._flush_scheduled and not self._write_paused:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        return True

    def probe(self, timeout_s: float) -> None:
        """Ask a doubtful connection for a sign of life; without one in `timeout_s` it is closed.

        A probe under way is left alone: a peer that dials again and again must not put its end off.
        """
        if self._dead_at is not None:
            return
        self._ping()
        self._dead_at = self._loop.time() + timeout_s
        self._arm(timeout_s)

    def pause_reading(self) -> None:
        """Stop taking bytes from the peer: TCP makes it wait. Call when its frames pile up."""
        if not self._read_paused and self._transport is not None and not self._closing:
            self._read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self._read_paused and self._transport is not None and not self._closing:
            self._read_paused = False
            self._received_at = self._loop.time()
            self._transport.resume_reading()

    def close(self, reason: str) -> None:
        """End the connection in order: say why, flush, close. Queued frames are dropped."""
        if self._closing or self._transport is None:
            return
        self.reason = reason
        if self._shaper is not None:
            self._shaper.close()
            self._shaper = None
        self._write(FrameKind.BYE, reason[:_BYE_TEXT_LENGTH_MAX].encode())
        self.resume_reading()
        self._closing = True
        self._transport.close()

    def abort(self, reason: str) -> None:
        """End the connection now, whatever is buffered."""
        self.reason = self.reason or reason
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # ---- frames

    def _take(self, kind: FrameKind, payload: bytes) -> None:
        if kind is FrameKind.BYE:
            self._end(f"the peer ended the connection: {payload.decode('utf-8', 'replace')}")
        elif kind is FrameKind.HELLO and not self._reader.authenticated:
            self._meet(Hello.decode(payload))
        elif not self._reader.authenticated:
            raise FrameError(f"it sent a {kind.name} frame before its hello")
        elif kind is FrameKind.WELCOME and not self.up:
            self._owner.welcomed(self)
        elif kind is FrameKind.DATA and self.up:
            self._owner.counters.frames_received += 1
            self._owner.received(self, payload)
        elif kind is FrameKind.PING:
            if not self._write_paused:  # a peer that asks but does not read gets no answers piled up for it
                self._write(FrameKind.PONG, payload[: _TIME.size])
        elif kind is FrameKind.PONG and len(payload) == _TIME.size:
            self.round_trip_s = self._loop.time() - _TIME.unpack(payload)[0]
        else:
            raise FrameError(f"it sent a {kind.name} frame that may not come now")

    def _meet(self, hello: Hello) -> None:
        own = self._owner.own_hello
        if hello.version != own.version:
            self._refuse(
                f"it speaks protocol version {hello.version}, we speak {PROTOCOL_VERSION}; update the older node"
            )
        elif hello.genesis_digest != own.genesis_digest:
            self._refuse(
                f"it belongs to another chain (genesis {hello.genesis_digest[:4].hex()}…, ours is "
                f"{own.genesis_digest[:4].hex()}…); give both nodes the same genesis.json"
            )
        elif hello.node_id != self.peer:
            self._refuse(f"it claims to be {hello.node_id[:64]!r} with the key of {self.peer}")
        else:
            self.instance = hello.instance
            self._reader.authenticated = True
            self._owner.introduced(self)

    def begin(self) -> None:
        """Begin to use a connection that both sides agree on."""
        self.up = True
        self.settled.set()
        self._arm(self._owner.limits.ping_interval_s)

    def _refuse(self, reason: str) -> None:
        self._owner.counters.security_failures += 1
        self.close(reason)

    def _end(self, reason: str) -> None:
        self.reason = reason
        self._closing = True
        assert self._transport is not None
        self._transport.close()

    # ---- writing

    def _write(self, kind: FrameKind, payload: bytes) -> None:
        if self._transport is not None and not self._closing:
            data = frame_header(kind, payload) + payload
            self._owner.counters.bytes_sent += len(data)
            self._let_go(data)

    def shape(self, shape: Shape) -> None:
        """Behave as `shape` says in the direction to the peer, from now on; see `qnode.io.shaping`."""
        if self._shaper is None and self._transport is not None:
            self._shaper = Shaper(self._loop, self._encrypt, self._shaper_drained)
        if self._shaper is not None:
            self._shaper.reshape(shape)

    def _let_go(self, data: bytes) -> None:
        if self._shaper is None:
            self._encrypt(data)
        elif self._shaper.is_idle:
            self._shaper = None
            self._encrypt(data)
        else:
            self._shaper.write(data)

    def _encrypt(self, data: bytes) -> None:
        """Give TLS bytes to send now, piece by piece; what leaves within one turn of the loop is one call still."""
        assert self._transport is not None
        if len(data) <= PIECE_SIZE_BYTES:
            self._transport.write(data)
            return
        whole = memoryview(data)
        for begin in range(0, len(data), PIECE_SIZE_BYTES):
            self._transport.write(whole[begin : begin + PIECE_SIZE_BYTES])

    def _shaper_drained(self) -> None:
        if not self._write_paused:
            self._flush()

    def _flush(self) -> None:
        """Write the next stretch of the queues, lower classes first, as one call to the socket."""
        self._flush_scheduled = False
        if self._closing or self._write_paused or self._transport is None:
            return
        if self._shaper is not None and self._shaper.is_full:
            return  # `_shaper_drained` comes back
        parts: list[bytes] = []
        size_bytes = 0
        for traffic, frames in enumerate(self._queues):
            while frames and size_bytes < WRITE_SIZE_BYTES:
                frame = frames.popleft()
                self._queued_bytes[traffic] -= len(frame)
                header = frame_header(FrameKind.DATA, frame)
                parts += (header, frame)
                size_bytes += len(header) + len(frame)
        if parts:
            self._owner.counters.frames_sent += len(parts) // 2
            self._owner.counters.bytes_sent += size_bytes
            self._let_go(b"".join(parts))
        if any(self._queues) and not self._write_paused and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    # ---- time

    def _hello_missing(self) -> None:
        if not self.up:
            self.abort(f"no hello within {HELLO_TIMEOUT_S:g} s")

    def _ping(self) -> None:
        self._write(FrameKind.PING, _TIME.pack(self._loop.time()))

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._check_life)

    def _check_life(self) -> None:
        limits, now = self._owner.limits, self._loop.time()
        if self._dead_at is not None and now >= self._dead_at:
            self.abort("the peer did not answer a probe")
            return
        if self._read_paused:
            self._received_at = now  # we are the ones who do not listen
        silence_s = now - self._received_at
        if silence_s >= limits.idle_timeout_s:
            self.abort(f"the peer was silent for {silence_s:.1f} s")
            return
        if silence_s >= limits.ping_interval_s * 0.9:
            self._ping()
        self._arm(min(limits.ping_interval_s, limits.idle_timeout_s - silence_s))


def _loss_reason(error: Exception | None, greeted: bool) -> str:
    if not greeted and (error is None or isinstance(error, ConnectionError)):
        # asyncio and uvloop close after a failed handshake without sending its alert, so we cannot be told why
        return (
            "the peer closed the connection before its hello; most likely it refuses our certificate: "
            "both sides need the same `ca`, a certificate in date, and clocks that agree"
        )
    if error is None:
        return "the peer closed the connection"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return f"the connection broke: {error.__class__.__name__}: {error}".rstrip(": ")
