"""The daemons of one cluster on this machine: start them all, ask them all, stop them all.

A cluster is a directory that `qnode init` wrote. A daemon that is started tells through a pipe when it is ready or why
it cannot start; one that is told to stop is awaited through the lock on its pid file. Nothing here polls.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ledger.genesis import Genesis
from qnode.client import CallFailed, NodeClient
from qnode.io import configuration, pidfile
from qnode.settings import NodeSettings, SettingsError

LOG_NAME: Final = "node.log"
OPERATOR: Final = "operator"
STOP_TIMEOUT_S: Final = 10.0  # a daemon stops in well under a second; one that does not is stuck
STARTING_MAX: Final = 16  # daemons that start at once: more would only make each slower on a few cores


class ClusterError(RuntimeError):
    """The cluster cannot be started or asked; the message names the node and the way out."""


@dataclass(frozen=True)
class Member:
    """One node of a cluster directory."""

    directory: Path
    config: Path

    @cached_property
    def settings(self) -> NodeSettings:
        """The node's settings. Raises SettingsError."""
        return configuration.read_settings(self.config)

    @property
    def log_path(self) -> Path:
        """Where `cluster up` sends the daemon's log."""
        return self.settings.state_directory.parent / LOG_NAME

    @property
    def process(self) -> int | None:
        """The process that runs this node now."""
        return pidfile.running_process(self.settings.state_directory)

    def client(self, name: str) -> NodeClient:
        """Return a client of this node with the certificate clients/<name>. Raises CertificateError."""
        api, stem = self.settings.api, self.directory / "clients" / name
        return NodeClient.for_listener(
            api.listen_host, api.listen_port, stem.with_name(f"{name}.crt"), stem.with_name(f"{name}.key"), api.ca
        )


@dataclass(frozen=True)
class Cluster:
    """A cluster directory."""

    directory: Path
    members: tuple[Member, ...]

    @classmethod
    def open(cls, directory: Path) -> "Cluster":
        """Find the nodes of a directory. Raises ClusterError when it holds no cluster."""
        if not (directory / "genesis.json").is_file():
            raise ClusterError(
                f"{directory} is not a cluster (no genesis.json); write one with `qnode init {directory}`"
            )
        members = [Member(directory, path) for path in directory.glob("*.toml")]
        if not members:
            raise ClusterError(f"{directory} has no node configuration (*.toml); write a cluster with `qnode init DIR`")
        return cls(directory, tuple(sorted(members, key=lambda member: _natural(member.config.stem))))

    @cached_property
    def genesis(self) -> Genesis:
        """The chain's genesis. Raises SettingsError."""
        return configuration.read_genesis(self.members[0].settings)

    def member(self, node_id: str) -> Member:
        """Return one node. Raises ClusterError naming the nodes there are."""
        for member in self.members:
            if member.settings.node_id == node_id:
                return member
        names = ", ".join(member.settings.node_id for member in self.members)
        raise ClusterError(f"{self.directory} has no node {node_id!r}; it has {names}")

    def home(self, sae_id: str) -> Member:
        """Return the node that serves an application. Raises ClusterError."""
        for sae in self.genesis.saes:
            if sae.sae_id == sae_id:
                return self.member(sae.node_id)
        names = ", ".join(sae.sae_id for sae in self.genesis.saes)
        raise ClusterError(f"{sae_id!r} is not an application of this chain; it has {names}")


@dataclass(slots=True)
class _Starting:
    """A daemon that has been started and has not said yet whether it is ready."""

    member: Member
    process: "subprocess.Popen[bytes]"
    pipe: int
    heard: bytearray = field(default_factory=bytearray)


Progress = Callable[[str, dict[str, Any]], None]  # (node ID, what the daemon said)


def up(cluster: Cluster, timeout_s: float, progress: Progress = lambda node_id, said: None) -> list[dict[str, Any]]:
    """Start every node that does not run, detached; return what each said when ready.

    Raises ClusterError when one cannot start or is not ready in time; those that this call started are stopped then.
    """
    waiting = [member for member in cluster.members if member.process is None]
    started: list[_Starting] = []
    ready: list[dict[str, Any]] = []
    deadline_s = time.monotonic() + timeout_s
    try:
        with selectors.DefaultSelector() as selector:
            for member in waiting:
                started.append(_start(member))
                selector.register(started[-1].pipe, selectors.EVENT_READ, started[-1])
                while len(selector.get_map()) >= STARTING_MAX:
                    ready += _hear(selector, deadline_s, progress)
            while selector.get_map():
                ready += _hear(selector, deadline_s, progress)
    except BaseException:
        for each in started:
            _end(each.process)
        raise
    finally:
        for each in started:
            os.close(each.pipe)
            each.process.returncode = each.process.returncode or 0  # detached on purpose: no warning at its deletion
    return ready


def _start(member: Member) -> _Starting:
    member.settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    # BLAS would keep one idle thread and its memory per core in every daemon
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    try:
        with member.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "qnode", "run", "--config", str(member.config), "--ready-fd", str(write_end)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write_end,),
                start_new_session=True,
                env=environment,
            )
    finally:
        os.close(write_end)
    return _Starting(member, process, read_end)


def _hear(selector: selectors.BaseSelector, deadline_s: float, progress: Progress) -> Iterator[dict[str, Any]]:
    """Wait for the next word of any starting daemon; yield those that are ready. Raises ClusterError."""
    events = selector.select(max(0.0, deadline_s - time.monotonic()))
    if not events:
        late = ", ".join(key.data.member.settings.node_id for key in selector.get_map().values())
        raise ClusterError(f"not ready in time: {late}; give --timeout more seconds, or read {LOG_NAME} of the node")
    for key, _ in events:
        starting: _Starting = key.data
        received = os.read(starting.pipe, 65536)
        starting.heard += received
        if received and b"\n" not in starting.heard:
            continue
        selector.unregister(starting.pipe)
        said = _parsed(bytes(starting.heard))
        node_id = starting.member.settings.node_id
        progress(node_id, said)
        if not said.get("ready"):
            reason = said.get("error") or f"it ended without a word; read {starting.member.log_path}"
            starting.process.wait()
            raise ClusterError(f"{node_id}: {reason}")
        yield said


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def down(cluster: Cluster, timeout_s: float) -> dict[str, str]:
    """Stop every running node; return how each ended: "stopped", "killed" after `timeout_s`, or "not running"."""
    return stop(cluster.members, timeout_s)


def stop(members: Sequence[Member], timeout_s: float) -> dict[str, str]:
    """Stop some nodes, as `down` does all."""
    with ThreadPoolExecutor(max_workers=max(1, len(members))) as pool:
        outcomes = list(pool.map(lambda member: _stop_one(member, timeout_s), members))
    return dict(zip((member.settings.node_id for member in members), outcomes, strict=True))


def _stop_one(member: Member, timeout_s: float) -> str:
    process = member.process
    if process is None:
        return "not running"
    released = threading.Thread(target=pidfile.wait_until_stopped, args=(member.settings.state_directory,), daemon=True)
    released.start()
    os.kill(process, signal.SIGTERM)
    released.join(timeout_s)
    if not released.is_alive():
        return "stopped"
    os.kill(process, signal.SIGKILL)  # loses nothing: what was promised is on the disk
    released.join(timeout_s)
    return "killed"


def statuses(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the status document of every node, asked in parallel; one that cannot be asked has `error` instead."""
    with ThreadPoolExecutor(max_workers=min(32, len(cluster.members))) as pool:
        return list(pool.map(_status, cluster.members))


def _status(member: Member) -> dict[str, Any]:
    try:
        node_id = member.settings.node_id
    except SettingsError as error:
        return {"node_id": member.config.stem, "running": False, "error": str(error)}
    process = member.process
    if process is None:
        return {"node_id": node_id, "running": False, "error": "not running"}
    try:
        document = member.client(OPERATOR).call("GET", "/admin/v1/status")
    except CallFailed as error:
        return {"node_id": node_id, "running": True, "pid": process, "error": str(error)}
    return {**document, "running": True, "pid": process}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort node-2 before node-10."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for character in f"{name}\0":
        if character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, character))
    return parts
