"""Lets the fork server do once, in memory, what every node will do, so that its forks find it done.

Two nodes make key and record it, TLS shakes hands with itself, a database is laid out: modules are imported, libraries
initialised, tables computed, in memory that all nodes then share. Nothing of it lives on: no thread, socket, event
loop or secret survives, and the files are removed.
"""

import asyncio
import contextlib
import datetime
import gc
import io
import logging
import sqlite3
import ssl
import tempfile
from collections import deque
from pathlib import Path
from typing import Final

import structlog

from qnode import daemon, telemetry, topologies
from qnode.assembly import node_setup
from qnode.effects import Effect, RunJob, SendTo
from qnode.initialise import Plan, initialise
from qnode.inputs import FrameReceived, Input, JobDone, PeerConnected, Ticked
from qnode.io import certificates, configuration
from qnode.io.entropy import OperatingSystemEntropy
from qnode.io.storage import prepare
from qnode.node import Node
from qnode.settings import NodeSettings

STEPS_MAX: Final = 5_000
"""Inputs of the rehearsal; a block of each end is recorded after some hundred."""


def rehearse(profile: str = "lab") -> None:
    """Do everything once and forget it; takes about half a second."""
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        directory = Path(scratch) / "cluster"
        now = datetime.datetime.now(datetime.UTC)
        initialise(directory, Plan(topologies.shaped("line", 2), profile=profile), OperatingSystemEntropy(), now)
        settings = [configuration.read_settings(directory / f"node-{n}.toml") for n in (1, 2)]
        for each in settings:
            configuration.check_certificates(each, now)
        _log(settings[0])
        _shake_hands(settings[0])
        _make_key(settings, int(now.timestamp() * 1e9))
    _open_database()
    loop = daemon.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gc.collect()


def _log(settings: NodeSettings) -> None:
    telemetry.configure("warning", settings.node_id, io.StringIO()).warning("rehearsal")
    logging.getLogger().handlers.clear()
    structlog.reset_defaults()


def _shake_hands(settings: NodeSettings) -> None:
    """TLS between the two contexts of one node, in memory."""
    p2p = settings.peer_to_peer
    server, client = certificates.peer_contexts(p2p.certificate, settings.identity_key, p2p.ca)
    certificates.api_context(settings.api.certificate, settings.api.key, settings.api.ca)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepting = server.wrap_bio(to_server, to_client, server_side=True)
    dialling = client.wrap_bio(to_client, to_server)
    for end in (dialling, accepting, dialling, accepting):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    certificates.node_public_key(dialling.getpeercert(binary_form=True))


def _make_key(settings: list[NodeSettings], now_ns: int) -> None:
    """Step two nodes against each other until both have executed a block with a key record of theirs."""
    genesis = configuration.read_genesis(settings[0])
    nodes = {each.node_id: Node(node_setup(each, genesis, OperatingSystemEntropy()), {}, now_ns) for each in settings}
    first, second = nodes
    waiting: deque[tuple[str, Input]] = deque([(first, PeerConnected(second)), (second, PeerConnected(first))])
    for node_id, node in nodes.items():
        _execute(node_id, node.take_birth_effects(), waiting)
    for _ in range(STEPS_MAX):
        if all(node.state.counts()["key_blocks"] for node in nodes.values()):
            return
        if not waiting:
            now_ns = max(now_ns, min(node.next_deadline_ns() for node in nodes.values()))
            waiting.extend((node_id, Ticked()) for node_id in nodes)
        node_id, happened = waiting.popleft()
        _execute(node_id, nodes[node_id].step(now_ns, happened), waiting)
    raise RuntimeError("two nodes in memory made no key; run `qnode demo` to see whether real ones do")


def _execute(node_id: str, effects: list[Effect], waiting: deque[tuple[str, Input]]) -> None:
    for effect in effects:
        match effect:
            case SendTo(peer, _, frame):
                waiting.append((peer, FrameReceived(node_id, frame)))
            case RunJob(job_id, work):
                waiting.append((node_id, JobDone(job_id, work())))
            case _:
                pass  # the disk, the log and callers are not played


def _open_database() -> None:
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        database = sqlite3.connect(Path(scratch) / "database")
        prepare(database)
        database.close()
