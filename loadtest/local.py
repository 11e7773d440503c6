"""A short-lived cluster of real daemons on this machine, for benches and scenarios.

Writes the configuration, raises what a bench needs (pool size, block size), starts the daemons, and stops them
whatever happens.
"""

import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qnode import cluster as clusters
from qnode.cluster import Cluster
from qnode.initialise import Plan, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy


class BenchFailed(RuntimeError):
    """The cluster did not reach the state that the bench needs; the message says which."""


@contextmanager
def local_cluster(
    nodes: int,
    topology: str,
    *,
    profile: str = "lab",
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    own_tables: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    links: Mapping[str, Any] | None = None,
    validators: int | None = None,
) -> Iterator[Cluster]:
    """Yield a running cluster in a temporary directory. `tables` adds keys to every node's TOML, by table.

    `links` are keys of every link's table. `own_tables` are those of single nodes, by node ID; they take the place of
    common ones of the same name. The first `validators` nodes vote (by default all, up to 31).

    Raises InitialiseError, ClusterError.
    """
    with tempfile.TemporaryDirectory(prefix="qnode-bench-") as scratch:
        directory = Path(scratch) / "cluster"
        laid = read_topology(topology, nodes)
        of_links = {f"link.{json.dumps(link.link_id)}": links or {} for link in laid.links}
        plan = Plan(laid, profile=profile, log_level="warning", validators=validators)
        initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
        cluster = Cluster.open(directory)
        for member in cluster.members:
            extend(member.config, {**(tables or {}), **of_links, **(own_tables or {}).get(member.config.stem, {})})
        try:
            clusters.up(cluster, timeout_s=120 + 2 * nodes)
            yield cluster
        finally:
            clusters.down(cluster, timeout_s=20)


def extend(config: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Add keys to tables of a node's file: below the table's header if it is there, as a new table otherwise.

    A link's table (`link."ID"` and what is below it) goes to the two nodes that have the link.
    """
    lines = config.read_text("utf-8").splitlines()
    links = {line.partition("]")[0].removeprefix("[") for line in lines if line.startswith("[link.")}
    for table, keys in tables.items():
        if table.startswith("link.") and not any(table.startswith(link) for link in links):
            continue
        header = f"[{table}]"
        at = next((number for number, line in enumerate(lines) if line.startswith(header)), None)
        if at is None:
            lines += ["", header]
            at = len(lines) - 1
        lines[at + 1 : at + 1] = [f"{key} = {value}" for key, value in keys.items()]
    config.write_text("\n".join(lines) + "\n", "utf-8")


def awaited(what: str, condition: Callable[[], Any], timeout_s: float = 120.0, pause_s: float = 0.1) -> Any:
    """Look at the daemons from outside, ten times a second, until a condition holds. Raises BenchFailed."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(pause_s)
    raise BenchFailed(f"{what}: not within {timeout_s:g} s")


def percentiles(name: str, values_ms: list[float], digits: int) -> dict[str, float | None]:
    """Return the 50th, 95th and 99th percentile under `name` with its {p} filled in; None of fewer than two values."""
    if len(values_ms) < 2:
        return {name.format(p=p): None for p in (50, 95, 99)}
    cuts = statistics.quantiles(values_ms, n=100)
    return {name.format(p=p): round(cuts[p - 1], digits) for p in (50, 95, 99)}
