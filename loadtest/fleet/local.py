"""A fleet on this machine: nodes forked from one preloaded server, each with its own state, sockets and session."""

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal as signals
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from loadtest.fleet import limits, profiling
from loadtest.fleet.launcher import Ended, FleetError, NodeEnded, NodeReady, NodeSpec, Place, Progress, Signal
from loadtest.fleet.server import PACKET_SIZE_BYTES_MAX
from qnode.initialise import InitialiseError, free_ports

STARTING_MAX: Final = 8
"""Nodes between fork and ready: enough to keep the cores busy, few enough that each is ready soon."""
STOP_TIMEOUT_S: Final = 10.0
PREFIX: Final = "qnode-fleet-"
LOCK_NAME: Final = ".lock"
SUMMARIES_NAME: Final = "profiles.sock"
SUMMARY_TIMEOUT_S: Final = 15.0  # hundreds of nodes share few cores, and the signal waits for its node's turn


@dataclass(slots=True)
class _Node:
    spec: NodeSpec
    asked_s: float
    ready: "asyncio.Future[NodeReady]"
    gone: asyncio.Event
    process: int = 0
    ending: bool = False


class LocalFleet:
    """The launcher for one machine; an asynchronous context manager. `directory` is removed when it ends."""

    def __init__(self, host: str = "127.0.0.1", on_ended: Ended = lambda ended: None) -> None:
        self._host = host
        self._on_ended = on_ended
        self._nodes: dict[str, _Node] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._serving: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._summaries: asyncio.Server | None = None
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.directory = Path()

    async def __aenter__(self) -> Self:
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        lock = os.open(self.directory / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            self._server = _start_server(theirs, lock, self.directory)
        finally:
            os.close(lock)
            theirs.close()
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)
        await self._serving
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ---- loadtest.fleet.launcher.Launcher

    async def reserve(self, count: int) -> Sequence[Place]:
        """Return ports on this machine. Raises FleetError when its limits do not allow so many nodes."""
        limits.require(count)
        try:
            ports = free_ports(self._host, 2 * count, None)
        except InitialiseError as error:
            raise FleetError(str(error)) from None
        return [Place(self._host, ports[2 * n], ports[2 * n + 1]) for n in range(count)]

    async def start(
        self, specs: Sequence[NodeSpec], timeout_s: float, progress: Progress | None = None
    ) -> list[NodeReady]:
        """Start nodes, a few at a time. Raises FleetError naming those that are not ready in time, and why."""
        room = asyncio.Semaphore(STARTING_MAX)

        async def one(spec: NodeSpec) -> NodeReady:
            async with room:
                ready = await self._launch(spec)
            if progress is not None:
                progress(ready)
            return ready

        tasks = [asyncio.ensure_future(one(spec)) for spec in specs]
        done, late = await asyncio.wait(tasks, timeout=timeout_s) if tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        failures = [str(task.exception()) for task in done if task.exception() is not None]
        if late:
            names = [spec.node_id for spec, task in zip(specs, tasks, strict=True) if task in late]
            failures.append(f"not ready within {timeout_s:g} s: {', '.join(names)}; give a longer time or fewer nodes")
        if failures:
            raise FleetError("; ".join(failures[:5]) + (f"; and {len(failures) - 5} more" if failures[5:] else ""))
        return [task.result() for task in tasks]

    async def signal(self, node_id: str, signal: Signal) -> None:
        """Signal a node's process through its parent, which alone knows that the number is still its own."""
        node = self._node(node_id)
        if signal in (Signal.STOP, Signal.KILL):
            node.ending = True
        self._tell({"node_id": node_id, "signal": getattr(signals, f"SIG{signal.value}")})
        if signal is Signal.KILL:
            await node.gone.wait()
        elif signal is Signal.STOP:
            try:
                await asyncio.wait_for(node.gone.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                await self.signal(node_id, Signal.KILL)

    def expect_end(self, node_id: str) -> None:
        """Let the node's end count as asked for."""
        self._node(node_id).ending = True

    async def fill_disk(self, node_id: str, full: bool) -> None:
        """Limit the size of files that the node may write to nothing (RLIMIT_FSIZE): every write fails from then on.

        The file system itself cannot be filled without the other nodes and the machine's owner feeling it.
        """
        process = self._node(node_id).process
        if process:
            _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0 if full else hard, hard))

    async def profile(self, node_id: str) -> dict[str, Any]:
        """Ask by a signal; the node answers on a socket of the fleet. Raises FleetError."""
        node = self._node(node_id)
        if not node.spec.profiled or not node.process:
            raise FleetError(f"{node_id} {'does not run' if node.spec.profiled else 'is not profiled'}")
        if node_id in self._asked:
            return await asyncio.shield(self._asked[node_id])
        self._asked[node_id] = asyncio.get_running_loop().create_future()
        try:
            self._tell({"node_id": node_id, "signal": profiling.REQUEST})
            return await asyncio.wait_for(asyncio.shield(self._asked[node_id]), SUMMARY_TIMEOUT_S)
        except TimeoutError:
            raise FleetError(f"{node_id} did not tell its profile within {SUMMARY_TIMEOUT_S:g} s") from None
        finally:
            del self._asked[node_id]

    def running(self) -> Mapping[str, int]:
        """Return node → process."""
        return {node_id: node.process for node_id, node in self._nodes.items() if node.process}

    async def log_tail(self, node_id: str, lines: int) -> list[str]:
        """Return the end of node.log."""
        path = _log_path(self._node(node_id).spec)
        if not path.exists():
            return []
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=lines)]

    async def close(self) -> None:
        """Kill every node at once (they promise nothing to a harness that ends) and wait for the server to clean up."""
        if self._server is None or self._control is None:
            return
        server, self._server = self._server, None
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        if self._summaries is not None:
            self._summaries.close()
        for node in self._nodes.values():
            node.gone.set()
        await asyncio.to_thread(server.wait)
        shutil.rmtree(self.directory, ignore_errors=True)  # the server was killed before it could

    # ---- profiles

    async def _summaries_socket(self) -> Path:
        """Listen for the summaries of profiled nodes, from the first such node on."""
        path = self.directory / SUMMARIES_NAME
        if self._summaries is None:
            self._summaries = await asyncio.start_unix_server(self._summary, path)
        return path

    async def _summary(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said = json.loads(await reader.read(profiling.SUMMARY_SIZE_BYTES_MAX))
        finally:
            writer.close()
        asked = self._asked.get(said["node_id"])
        if asked is not None and not asked.done():
            asked.set_result(said)

    # ---- the server's words

    async def _launch(self, spec: NodeSpec) -> NodeReady:
        current = self._nodes.get(spec.node_id)
        if current is not None and current.process:
            raise FleetError(f"{spec.node_id} runs already; stop it before starting it again")
        node = _Node(spec, time.monotonic(), asyncio.get_running_loop().create_future(), asyncio.Event())
        self._nodes[spec.node_id] = node
        log = _log_path(spec)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        profile = str(await self._summaries_socket()) if spec.profiled else None
        command = {"node_id": spec.node_id, "config": str(spec.config), "log": str(log), "program": spec.program}
        self._tell({**command, "profile": profile})
        return await node.ready

    def _node(self, node_id: str) -> _Node:
        if node_id not in self._nodes:
            raise FleetError(f"the fleet has no node {node_id!r}")
        return self._nodes[node_id]

    def _tell(self, command: dict[str, Any]) -> None:
        if self._server is None or self._control is None:
            raise FleetError("the fleet is closed")
        packet = json.dumps(command).encode()
        assert len(packet) <= PACKET_SIZE_BYTES_MAX, "a command is a few hundred bytes"
        try:
            self._control.send(packet)
        except OSError as error:
            raise FleetError(f"the fork server is gone ({error.strerror}); run the scenario again") from None

    def _hear(self) -> None:
        assert self._control is not None
        while self._server is not None:
            try:
                packet = self._control.recv(PACKET_SIZE_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._server_gone()
                return
            self._heard(json.loads(packet))

    def _heard(self, said: dict[str, Any]) -> None:
        if "serving" in said:
            self._serving.set_result(said["serving"])
            return
        node = self._nodes[said["node_id"]]
        if "started" in said:
            node.process = said["started"]
        elif "ended" in said:
            self._ended(node, said["ended"])
        elif said.get("ready"):
            start_ms = 1e3 * (time.monotonic() - node.asked_s)
            _settle(node.ready, NodeReady(node.spec.node_id, said["pid"], start_ms))
        else:
            _fail(node.ready, f"{node.spec.node_id}: {said.get('error')}")

    def _ended(self, node: _Node, exit_code: int) -> None:
        node.process = 0
        node.gone.set()
        how = f"with exit code {exit_code}" if exit_code >= 0 else f"by {signals.Signals(-exit_code).name}"
        _fail(node.ready, f"{node.spec.node_id} ended {how} before it was ready; read {_log_path(node.spec)}")
        self._on_ended(NodeEnded(node.spec.node_id, exit_code, node.ending))

    def _server_gone(self) -> None:
        """Somebody killed the fork server: the kernel has killed the nodes with it."""
        assert self._control is not None
        asyncio.get_running_loop().remove_reader(self._control)
        if not self._serving.done():
            self._serving.set_exception(FleetError("the fork server did not start; its message is above"))
        for node in self._nodes.values():
            if node.process:
                self._ended(node, -signals.SIGKILL)


def _start_server(control: socket.socket, lock: int, directory: Path) -> "subprocess.Popen[bytes]":
    """Start the fork server; the lock on the directory is its own from now on and marks it as in use."""
    environment = {
        "OPENBLAS_NUM_THREADS": "1",  # a fork of a process with threads is not whole
        "MALLOC_ARENA_MAX": "1",
        # Pulses of a block go back to the system when they are measured, instead of making holes in every node's heap.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest.fleet.server", str(control.fileno()), str(directory)],
        pass_fds=(control.fileno(), lock),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def sweep() -> None:
    """Remove directories of fleets whose harness and server were both killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(directory / LOCK_NAME, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            finally:
                os.close(lock)
            shutil.rmtree(directory, ignore_errors=True)


def _log_path(spec: NodeSpec) -> Path:
    return spec.config.parent / spec.node_id / "node.log"


def _settle(future: "asyncio.Future[NodeReady]", ready: NodeReady) -> None:
    if not future.done():
        future.set_result(ready)


def _fail(future: "asyncio.Future[NodeReady]", reason: str) -> None:
    if not future.done():
        future.set_exception(FleetError(reason))
