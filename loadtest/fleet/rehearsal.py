"""Lets the fork server do once what every node will do, so that its forks find it done.

Three real daemons, one of them a follower, run in this process: they shake hands, make key, record it, and answer an
operator and two applications. Modules are imported, libraries initialised, tables computed, in memory that all nodes
then share. Nothing of it lives on: no thread, socket, event loop or secret survives, the interpreter is set as it was
before, and the files are removed.
"""

import asyncio
import base64
import datetime
import gc
import io
import logging
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from ledger.transactions import KeyDelivered, encode
from loadtest.ledger_load import recorded_blocks
from loadtest.local import extend
from qnode import daemon, telemetry, topologies
from qnode.cluster import OPERATOR, Cluster, Member
from qnode.initialise import Plan, initialise
from qnode.io.entropy import OperatingSystemEntropy
from qnode.io.pidfile import PidFile

NODES: Final = 3
VALIDATORS: Final = 2
TIMEOUT_S: Final = 60.0
"""For each thing that is waited for; a second is enough on an idle machine, and hundreds of nodes may run on this."""
LOOK_S: Final = 0.05
"""Between two looks at a node, by its own door: what it has reached is told nowhere else."""
TABLES: Final = {"pool": {"target_bits": "16_384"}, "ledger": {"block_interval_s": "0.1"}}
LINK: Final = {"block_pulses": "250_000"}
"""One block fills a pool: the second costs as much and does nothing else."""


class RehearsalFailed(RuntimeError):
    """Three nodes in one process did not do what nodes do; the message says how far they came."""


def rehearse() -> None:
    """Do everything once and forget it; takes a second or two. Raises RehearsalFailed."""
    with _interpreter_as_before(), tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        cluster = _written(Path(scratch) / "cluster")
        with asyncio.Runner(loop_factory=daemon.new_event_loop) as runner:
            runner.run(_perform(cluster))
    gc.collect()


@contextmanager
def _interpreter_as_before() -> Iterator[None]:
    """Undo at the end what a daemon sets for its whole process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    collecting, thresholds, interval_s = gc.isenabled(), gc.get_threshold(), sys.getswitchinterval()
    try:
        yield
    finally:
        logging.getLogger().handlers.clear()
        structlog.reset_defaults()
        sys.setswitchinterval(interval_s)
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        (gc.enable if collecting else gc.disable)()
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _written(directory: Path) -> Cluster:
    plan = Plan(topologies.shaped("line", NODES), profile="lab", log_level="info", validators=VALIDATORS)
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    of_links = {f'link."{link.link_id}"': LINK for link in cluster.genesis.links}
    for member in cluster.members:
        extend(member.config, {**TABLES, **of_links})
    return cluster


async def _perform(cluster: Cluster) -> None:
    async with _running(cluster):
        await _reached(cluster, "a recorded block of every link", _has_key)
        await asyncio.to_thread(_use, cluster)
        await _reached(cluster, "the record of three deliveries", lambda told: told["ledger"]["state_deliveries"] >= 3)


@asynccontextmanager
async def _running(cluster: Cluster) -> AsyncIterator[None]:
    """Run every node of a cluster on this loop."""
    ready = [asyncio.Event() for _ in cluster.members]
    nodes = [asyncio.create_task(_node(member, up)) for member, up in zip(cluster.members, ready, strict=True)]
    waiting = asyncio.gather(*(up.wait() for up in ready))
    try:
        watched: list[asyncio.Future[Any]] = [waiting, *nodes]
        await asyncio.wait(watched, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        _check(nodes, "open their doors", waiting.done())
        try:
            yield
        finally:
            _check(nodes, "run on", True)  # its end is the cause of whatever failed here
    finally:
        waiting.cancel()
        for node in nodes:
            node.cancel()
        await asyncio.gather(waiting, *nodes, return_exceptions=True)


async def _node(member: Member, ready: asyncio.Event) -> None:
    settings = member.settings
    log = telemetry.configure(settings.log_level, settings.node_id, io.StringIO())
    with PidFile(settings.state_directory):
        await daemon.serve(settings, log, lambda said: ready.set())


def _check(nodes: list["asyncio.Task[None]"], what: str, done: bool) -> None:
    for node in nodes:
        if node.done():
            raise RehearsalFailed(f"a node did not {what}") from node.exception()
    if not done:
        raise RehearsalFailed(f"nodes did not {what} within {TIMEOUT_S:g} s; run `qnode demo` to see whether they can")


async def _reached(cluster: Cluster, what: str, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Look at every node until it meets a condition."""
    deadline_s = time.monotonic() + TIMEOUT_S
    for member in cluster.members:
        client = member.client(OPERATOR)
        while not condition(await asyncio.to_thread(client.call, "GET", "/admin/v1/status")):
            if time.monotonic() > deadline_s:
                raise RehearsalFailed(f"{member.settings.node_id} did not reach {what} within {TIMEOUT_S:g} s")
            await asyncio.sleep(LOOK_S)


def _has_key(told: dict[str, Any]) -> bool:
    return told["ledger"]["state_key_blocks"] >= NODES - 1 and all(link["available_bytes"] for link in told["links"])


def _use(cluster: Cluster) -> None:
    """Fetch a key at both ends, as applications do, and have a delivery recorded, as an operator does."""
    first, second = cluster.members[:2]
    master, slave = first.client("sae-1-a"), second.client("sae-2-a")
    master.status("sae-2-a")
    for _ in range(2):
        key_ids = [key["key_ID"] for key in master.get_keys("sae-2-a", 1, 256)["keys"]]
        slave.get_keys_with_ids("sae-1-a", key_ids)
    link = cluster.genesis.links[0]
    span = (link.link_id, recorded_blocks(cluster)[link.link_id], 0, 512)
    ends = (link.transmitter, link.receiver)
    record = KeyDelivered(secrets.token_bytes(16), "sae-1-a", "sae-2-a", 256, ends, (span,))
    bundle = {"transactions": [base64.b64encode(encode(record)).decode()], "until": "committed"}
    said = first.client(OPERATOR).call("POST", "/admin/v1/ledger/transactions", bundle)
    if not said["ok"]:
        raise RehearsalFailed(f"the record of a delivery was refused: {said.get('reason')}")
