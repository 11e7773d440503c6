"""What this machine allows: checked before a fleet starts, so that it does not fail in the middle, and with the remedy.

Each node needs descriptors in its own process (checked against the limit per process), one process and a few threads
(against the user's and the system's limit), two listening ports (`free_ports` looks for them), and memory.
"""

import math
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.fleet.launcher import FleetError

DESCRIPTORS_PER_NODE: Final = 64
"""Besides its connections: the database and its log, loops, pipes, callers of the API."""
THREADS_PER_NODE: Final = 6
"""The loop, the storage, the default executor and one job thread per core (two cores)."""
MEMORY_PER_NODE_MIB: Final = 20
"""The bound that the fleet is held to; measured figures are in docs/performance.md."""
MEMORY_SPARE_MIB: Final = 1024
"""What the harness itself and the page cache of the nodes' disks need."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine has; `None` where it does not say."""

    descriptors_per_process: int
    processes_per_user: int
    threads_in_system: int | None
    memory_available_mib: int | None
    cores: int

    @classmethod
    def this(cls) -> "Machine":
        """Look at the machine that this process runs on; raises this process's soft limits to its hard ones."""
        for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
            soft, hard = resource.getrlimit(limit)
            if soft != hard:
                resource.setrlimit(limit, (hard, hard))
        return cls(
            _limit(resource.RLIMIT_NOFILE),
            _limit(resource.RLIMIT_NPROC),
            _number(Path("/proc/sys/kernel/threads-max")),
            _memory_available_mib(),
            os.cpu_count() or 1,
        )


def contacts_estimate(nodes: int, validators: int) -> int:
    """Return the most connections that one node keeps: all validators, its followers, links, and chords."""
    followers = math.ceil(2 * max(0, nodes - validators) / max(1, validators))
    return min(nodes - 1, validators + followers + 8 + 2 * math.ceil(math.log2(max(nodes, 2))))


def require(nodes: int, validators: int = 31, machine: Machine | None = None) -> None:
    """Raise FleetError, naming the limit and how to raise it, when the machine cannot run so many nodes."""
    machine = Machine.this() if machine is None else machine
    descriptors = DESCRIPTORS_PER_NODE + 2 * contacts_estimate(nodes, validators)
    if machine.descriptors_per_process < descriptors:
        raise FleetError(
            f"{nodes} nodes need {descriptors} open files each and the limit is {machine.descriptors_per_process}: "
            f"run `ulimit -n {descriptors}` first (as root, or after raising `nofile` in /etc/security/limits.conf)"
        )
    threads = nodes * THREADS_PER_NODE
    if machine.processes_per_user < threads:
        raise FleetError(
            f"{nodes} nodes need {threads} processes and threads and the limit is {machine.processes_per_user}: run "
            f"`ulimit -u {threads + 1000}` first (as root, or after raising `nproc` in /etc/security/limits.conf)"
        )
    if machine.threads_in_system is not None and machine.threads_in_system < 2 * threads:
        raise FleetError(
            f"{nodes} nodes need {threads} threads and the system allows {machine.threads_in_system} in all: run "
            f"`sysctl kernel.threads-max={4 * threads}` as root, or choose fewer nodes"
        )
    wanted_mib = nodes * MEMORY_PER_NODE_MIB + MEMORY_SPARE_MIB
    if machine.memory_available_mib is not None and machine.memory_available_mib < wanted_mib:
        fit = max(0, (machine.memory_available_mib - MEMORY_SPARE_MIB) // MEMORY_PER_NODE_MIB)
        raise FleetError(
            f"{nodes} nodes need about {wanted_mib:,} MiB of memory and {machine.memory_available_mib:,} MiB are free: "
            f"free some, or choose at most {fit} nodes"
        )


def _limit(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _memory_available_mib() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError):
        pass
    return None
