"""One daemon from its settings to its end: opens everything in order, runs, and closes everything in reverse.

Wiring only. Each part that cannot start says why in its own error; `qnode.commands.run` turns it into one line.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import gc
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from ledger.chain import BLOCK_TABLE
from ledger.core import SNAPSHOT_HEAD_TABLE
from ledger.genesis import Genesis
from ledger.snapshot import first_block_key
from protocol.kernels import distillation, emulation
from qnode.api.admin import Admin
from qnode.api.devices import DeviceAdmin
from qnode.api.etsi014 import Etsi014
from qnode.api.server import ApiServer
from qnode.api.shaping import ShapingAdmin
from qnode.assembly import node_setup
from qnode.device_plane import DevicePlane
from qnode.driver import Driver, Stopped, TooManyRequests
from qnode.inputs import Answer, DocumentAnswer, GetNodeStatus, Request, RequestError
from qnode.io import certificates, configuration
from qnode.io.clock import SystemClock
from qnode.io.entropy import node_entropy
from qnode.io.identities import load_identities
from qnode.io.jobs import Jobs
from qnode.io.pidfile import PidFile
from qnode.io.process import ProcessFigures
from qnode.io.storage import Storage
from qnode.io.transport import NodeIdentity, Transport, TransportEvents
from qnode.node import Node
from qnode.settings import NodeSettings

Log = structlog.typing.FilteringBoundLogger
Ready = Callable[[dict[str, Any]], None]
# Hosts of one cluster may disagree by so much about the time at which genesis was written.
GENESIS_TOLERANCE_NS: Final = 3_600 * 10**9
SWITCH_INTERVAL_S: Final = 0.0005
"""So long a computing thread keeps the interpreter from the event loop, which needs it back after every system call:
at the usual 5 ms a key request that meets a job of a QKD session waits for tens of them."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed, asyncio's elsewhere."""
    try:
        import uvloop
    except ImportError:  # Windows, or an interpreter that uvloop does not support
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(settings: NodeSettings, log: Log, ready: Ready) -> None:
    """Run one daemon until SIGTERM or SIGINT; `ready` is called once, when both listeners are open."""
    with PidFile(settings.state_directory), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(settings, log, ready))


async def serve(settings: NodeSettings, log: Log, ready: Ready) -> None:
    """Run one daemon on the current event loop.

    Raises SettingsError, CertificateError, ClockError, StorageError, TransportError when it cannot start; StorageError
    or the node's own fault when it cannot go on.
    """
    started_s = time.monotonic()
    stopping = _stop_on_signals()
    clock, entropy = SystemClock(), node_entropy(settings.entropy)
    configuration.check_certificates(settings, datetime.datetime.now(datetime.UTC))
    genesis = configuration.read_genesis(settings)
    clock.require_after(genesis.time_ns - GENESIS_TOLERANCE_NS, "the genesis of this chain was written")
    setup = node_setup(settings, genesis, entropy)
    async with contextlib.AsyncExitStack() as stack:
        storage = await Storage.open(settings.state_directory)
        stack.push_async_callback(storage.close)
        jobs = Jobs()
        stack.push_async_callback(jobs.close)
        gc.disable()  # until all is loaded: collections would walk the growing state again and again, and find nothing
        stored = await _load(storage)
        forgotten = not storage.ended_cleanly
        setup = dataclasses.replace(
            setup, archive=storage, may_have_forgotten=forgotten, devices=_device_plane(settings)
        )
        node = Node(setup, stored, clock.now_ns())
        driver = Driver(node, storage, jobs, clock.now_ns, log)
        del stored
        transport = _transport(settings, genesis, driver, log)
        driver.attach(transport)
        stack.push_async_callback(transport.stop)
        figures = _Figures(settings, driver, storage, transport, jobs, clock)
        api = _api(settings, figures.ask, transport, log)
        running = asyncio.create_task(driver.run(), name="driver")
        stack.push_async_callback(_finish, driver, running)
        await transport.start()
        await api.start()
        stack.push_async_callback(api.stop)
        if settings.devices.broker_host is not None:
            stack.push_async_callback(_mqtt(settings, figures.ask, log))
        gc.collect()
        gc.freeze()  # what lives now lives for ever: later collections need not look at it
        gc.enable()
        # Records are freed by their reference counts; a collection finds hardly anything, yet a full one walks all of
        # the chain's state in the middle of a round. So young ones come rarely, and full ones hardly ever.
        gc.set_threshold(50_000, 20, 100)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        addresses = {"peer_port": transport.listen_port, "api_port": api.listen_port}
        kernels = {"emulation": emulation.IMPLEMENTATION, "distillation": distillation.implementation()}
        log.info("ready", start_ms=round((time.monotonic() - started_s) * 1e3), kernels=kernels, **addresses)
        ready({"ready": True, "node_id": settings.node_id, "pid": os.getpid(), **addresses})
        await _until_stopped(stopping, running, log)
    log.info("stopped")


async def _load(storage: Storage) -> dict[str, list[tuple[bytes, bytes]]]:
    """Load what a node starts from: all but the blocks up to its snapshot, which are read when they are asked for.

    Raises StorageError, CorruptLedger.
    """
    tables = await storage.tables()
    heads = await storage.load(SNAPSHOT_HEAD_TABLE)
    first_keys = {BLOCK_TABLE: first_block_key(heads)}
    return {table: await storage.load(table, first_keys.get(table, b"")) for table in tables}


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def _until_stopped(stopping: asyncio.Event, running: "asyncio.Task[None]", log: Log) -> None:
    """Return on a signal; raise when the driver fails."""
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if running.done():
        await running
    log.info("stopping")


async def _finish(driver: Driver, running: "asyncio.Task[None]") -> None:
    """Let the round under way become durable; a failure of the driver was raised already."""
    driver.stop()
    await asyncio.gather(running, return_exceptions=True)


def _transport(settings: NodeSettings, genesis: Genesis, driver: Driver, log: Log) -> Transport:
    peer_to_peer = settings.peer_to_peer
    contexts = certificates.peer_contexts(peer_to_peer.certificate, settings.identity_key, peer_to_peer.ca)

    def show(own_key: bytes) -> None:
        held = next((each for each in load_identities(settings) if each.public_key == own_key), None)
        if held is not None:
            certificates.show(contexts, held.certificate, held.key)
        elif own_key:  # without one the chain has not admitted this node yet
            log.error("identity key missing", public_key=own_key.hex(), what_to_do="restore it beside identity_key")

    identity = NodeIdentity(
        settings.node_id,
        genesis.digest,
        {node.node_id: node.public_key for node in genesis.nodes},
        contexts,
        secrets.randbits(63),
        show,
    )

    def connected(peer: str) -> None:
        log.info("peer connected", peer=peer)
        driver.peer_connected(peer)

    def lost(peer: str, reason: str) -> None:
        log.info("peer lost", peer=peer, reason=reason)
        driver.peer_lost(peer, reason)

    def refused(peer: str, reason: str) -> None:
        log.warning("no connection", peer=peer, reason=reason)

    events = TransportEvents(connected, lost, driver.frame_received, refused)
    return Transport(identity, peer_to_peer, settings.peers, events, random.Random(secrets.randbits(64)))


def _api(
    settings: NodeSettings, ask: Callable[[Request], Awaitable[Answer]], transport: Transport, log: Log
) -> ApiServer:
    def report(what: str, error: BaseException | None) -> None:
        log.error(what, exc_info=error)

    context = certificates.api_context(settings.api.certificate, settings.api.key, settings.api.ca)
    admin = Admin(ask, lambda: load_identities(settings))
    doors = (Etsi014(ask, settings.pool), admin, DeviceAdmin(ask), ShapingAdmin(transport))
    return ApiServer(settings.api, context, doors, report)


def _device_plane(settings: NodeSettings) -> DevicePlane | None:
    """Return what the node needs for devices; nodes without any do not load MQTT."""
    if settings.devices.broker_host is None:
        return None
    from qnode.api.mqtt import device_plane

    return device_plane(settings.devices)


def _mqtt(
    settings: NodeSettings, ask: Callable[[Request], Awaitable[Answer]], log: Log
) -> Callable[[], Awaitable[None]]:
    """Start the connection to the devices' broker; return what stops it."""
    from qnode.api.mqtt import MqttDoor

    door = MqttDoor(settings.node_id, settings.devices, ask, log)
    door.start()
    return door.stop


class _Figures:
    """Asks the driver for the doors, and adds to a status what only the shell knows."""

    def __init__(
        self,
        settings: NodeSettings,
        driver: Driver,
        storage: Storage,
        transport: Transport,
        jobs: Jobs,
        clock: SystemClock,
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._storage = storage
        self._transport = transport
        self._jobs = jobs
        self._clock = clock
        self._process = ProcessFigures()

    async def ask(self, request: Request) -> Answer:
        """Answer a request; an overload and a stop are 503."""
        try:
            answer = await self._driver.ask(request)
        except TooManyRequests:
            return RequestError(503, "the node has too many requests under way; try again in a moment")
        except Stopped:
            return RequestError(503, "the node is stopping; try again when it runs")
        if isinstance(request, GetNodeStatus) and isinstance(answer, DocumentAnswer):
            return DocumentAnswer({**answer.document, "daemon": self._document()})
        return answer

    def _document(self) -> dict[str, Any]:
        counters, driver = self._transport.counters, self._driver.figures
        return {
            "pid": os.getpid(),
            **self._process.document(),
            "event_loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
            "clock_drift_ms": round(self._clock.drift_ns() / 1e6, 1),
            "inputs": driver.inputs,
            "rounds": driver.rounds,
            "validated_transactions": driver.validated_transactions,
            "validate_ms": round(driver.validate_ns / 1e6, 3),
            "validate_wait_ms": round(driver.validate_wait_ns / 1e6, 3),
            "cpu_ms": round(time.process_time_ns() / 1e6, 1),
            "jobs_running": self._jobs.running_count,
            "disk_commits": self._storage.commits_count,
            "disk_syncs": self._storage.syncs_count,
            "disk_syncs_here": self._storage.syncs_here_count,
            "handshakes": counters.handshakes,
            "frames_sent": counters.frames_sent,
            "frames_received": counters.frames_received,
            "bytes_sent": counters.bytes_sent,
            "bytes_received": counters.bytes_received,
            "frames_dropped": {traffic.name.lower(): count for traffic, count in counters.frames_dropped.items()},
            # accidents and attacks, apart (S0-E18)
            "checksum_failures": counters.checksum_failures + self._storage.checksum_failures_count,
            "security_failures": counters.security_failures,
        }
