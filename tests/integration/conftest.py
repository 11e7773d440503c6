"""Clusters of real daemons for the tests of this folder."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from qnode import cluster as clusters
from qnode.cluster import Cluster
from qnode.initialise import Plan, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Cluster]:
    """Four running nodes in a ring, stopped whatever happens."""
    directory = tmp_path / "ring"
    plan = Plan(read_topology("ring", 4), profile="lab")
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    try:
        clusters.up(cluster, timeout_s=90)
        yield cluster
    finally:
        clusters.down(cluster, timeout_s=20)
