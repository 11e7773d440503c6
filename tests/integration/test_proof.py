"""A key through real daemons, proved to somebody who has the genesis and no network."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qnode import cluster as daemons
from qnode.cluster import Cluster
from qnode.initialise import Plan, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy
from tests.integration.test_kill import awaited, links_ready

pytestmark = [pytest.mark.integration, pytest.mark.slow]

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def qnode(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "qnode", *arguments], capture_output=True, text=True, timeout=90)


def test_a_relayed_key_is_proved_offline(tmp_path: Path) -> None:
    directory = tmp_path / "line"
    plan = Plan(read_topology("line", 3), profile="lab")
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    try:
        daemons.up(cluster, timeout_s=60)
        awaited("a block of key on every link", lambda: links_ready(cluster))
        key_id = cluster.home("sae-1-a").client("sae-1-a").get_keys("sae-3-a", 1, None)["keys"][0]["key_ID"]
        proved = qnode("ledger", "prove", key_id, "--cluster", str(directory))
        assert proved.returncode == 0, proved.stderr
        unknown = qnode("ledger", "prove", UNKNOWN, "--cluster", str(directory))
        assert unknown.returncode == 6 and "no delivery of this key" in unknown.stderr
    finally:
        daemons.down(cluster, timeout_s=20)
    proof = tmp_path / "proof.json"
    proof.write_text(proved.stdout)
    checked = qnode("ledger", "check", str(proof), "--genesis", str(directory / "genesis.json"), "--json")
    assert checked.returncode == 0, checked.stdout
    document = json.loads(checked.stdout)
    assert document["key_id"] == key_id and document["path"] == ["node-1", "node-2", "node-3"]
    assert {tuple(hop["signed_by"]) for hop in document["hops"]} == {("node-1", "node-2"), ("node-2", "node-3")}
    assert all(0 < hop["qber_ppm"] < 110_000 and hop["secret_bits"] > 0 for hop in document["hops"])
