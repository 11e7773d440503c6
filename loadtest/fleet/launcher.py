"""What the harness asks of whatever runs its nodes; the fleet on this machine is one implementation.

Nothing above this interface may assume one machine: nodes are named by their ID, reached by their addresses, and what
lies on their disks or in their process table is fetched through the launcher.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

PROGRAM: str = "qnode"
"""The daemon itself; the other programs are misbehaving nodes, see `loadtest.fleet.programs`."""


class FleetError(RuntimeError):
    """The fleet cannot be started or kept; the message says what happened, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node will listen; chosen before its configuration is written."""

    host: str
    peer_port: int
    api_port: int


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node to run: its configuration file (with what that names beside it), and the program to run."""

    node_id: str
    config: Path
    program: str = PROGRAM
    profiled: bool = False  # it can be asked what it spends its processor time on


@dataclass(frozen=True, slots=True)
class NodeReady:
    """A node whose listeners are open. `start_ms` counts from the request to start it."""

    node_id: str
    process_id: int
    start_ms: float


@dataclass(frozen=True, slots=True)
class NodeEnded:
    """A node's process is gone: `exit_code` as of `subprocess` (negative: the signal), and whether we asked for it."""

    node_id: str
    exit_code: int
    asked: bool


class Signal(Enum):
    """What may be done to a node's process."""

    STOP = "TERM"  # in order
    KILL = "KILL"
    PAUSE = "STOP"
    CONTINUE = "CONT"


Progress = Callable[[NodeReady], None]
Ended = Callable[[NodeEnded], None]


class Launcher(Protocol):
    """Starts, signals and ends nodes, wherever they run. All methods are called on one event loop.

    The files of a network are written below `directory` at the harness; a launcher for other machines brings each node
    its own, and the paths in a node's file are relative to it.
    """

    directory: Path

    async def reserve(self, count: int) -> Sequence[Place]:
        """Check that `count` nodes can run, and say where each will listen. Raises FleetError with the remedy."""
        ...

    async def start(
        self, specs: Sequence[NodeSpec], timeout_s: float, progress: Progress | None = None
    ) -> list[NodeReady]:
        """Start nodes and wait until all are ready. Raises FleetError naming those that are not; the rest run on."""
        ...

    async def signal(self, node_id: str, signal: Signal) -> None:
        """Signal a node; returns when it has been delivered, and for STOP and KILL when the process is gone."""
        ...

    def expect_end(self, node_id: str) -> None:
        """Expect that a node ends by itself: its end will count as asked for."""
        ...

    async def fill_disk(self, node_id: str, full: bool) -> None:
        """Make a node's disk full, or no longer so: the node can write nothing more until then."""
        ...

    async def profile(self, node_id: str) -> dict[str, Any]:
        """Return what a profiled node has spent its processor time on since it was last asked.

        The document is that of `loadtest.fleet.profiling.CpuProfile.summary`. Raises FleetError when the node is not
        profiled, does not run or does not answer.
        """
        ...

    def running(self) -> Mapping[str, int]:
        """Return the process of every node that runs now, in order of start; paused ones count."""
        ...

    async def log_tail(self, node_id: str, lines: int) -> list[str]:
        """Return the last lines of a node's log."""
        ...

    async def close(self) -> None:
        """End every node and remove what they left. Safe to call twice."""
        ...
