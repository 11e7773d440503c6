"""Real daemons: a node's identity key is rotated while it distils, it restarts, votes and proves under the new one."""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qnode import cluster as daemons
from qnode.cluster import OPERATOR, Cluster
from qnode.initialise import Plan, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy
from tests.integration.test_kill import awaited, links_ready

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def qnode(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "qnode", *arguments], capture_output=True, text=True, timeout=90)


def status(cluster: Cluster, node_id: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.member(node_id).client(OPERATOR).call("GET", "/admin/v1/status")
    return found


def connected(cluster: Cluster, count: int) -> bool:
    return all(len(status(cluster, member.settings.node_id)["peers"]) == count for member in cluster.members)


def height(cluster: Cluster, node_id: str) -> int:
    return int(status(cluster, node_id)["ledger"]["height"])


def signed_again(cluster: Cluster, node_id: str, since: int) -> bool:
    """Whether a block after `since` that the node sent a record to, and a certificate that it signed, are there."""
    client = cluster.member("node-1").client(OPERATOR)
    blocks = client.call("GET", f"/admin/v1/ledger/blocks?from={since + 1}&count=1000")["blocks"]
    index = [member.settings.node_id for member in cluster.members].index(node_id)
    sent = any(bundle["sender"] == node_id for block in blocks for bundle in block["bundles"])
    return sent and any(index in block["signers"] for block in blocks[3:])


def test_a_node_rotates_its_key_while_the_network_runs(tmp_path: Path) -> None:
    directory = tmp_path / "line"
    plan = Plan(read_topology("line", 3), profile="lab")
    genesis = initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    try:
        daemons.up(cluster, timeout_s=60)
        awaited("a block of key on every link", lambda: links_ready(cluster))
        rotated = qnode("node", "rotate-key", "node-2", "--cluster", str(directory), "--json")
        assert rotated.returncode == 0, rotated.stderr
        answer = json.loads(rotated.stdout)
        assert answer["public_key"] != genesis.nodes[1].public_key.hex() and Path(answer["key"]).exists()
        awaited("records and votes under the new key", lambda: signed_again(cluster, "node-2", answer["height"]))
        again = qnode("node", "rotate-key", "node-2", "--cluster", str(directory))
        assert again.returncode == 1 and "key_rotation.pause" in again.stderr, again.stderr
        daemons.down(cluster, timeout_s=20)
        daemons.up(cluster, timeout_s=60)
        awaited("all connections under the present keys", lambda: connected(cluster, 2))
        before = height(cluster, "node-1")
        awaited("the chain goes on, which takes all three", lambda: height(cluster, "node-1") > before)
        faults = [status(cluster, member.settings.node_id)["peer_faults"] for member in cluster.members]
        assert faults == [0, 0, 0]
        key_id = cluster.home("sae-1-a").client("sae-1-a").get_keys("sae-3-a", 1, None)["keys"][0]["key_ID"]
        proved = qnode("ledger", "prove", key_id, "--cluster", str(directory))
        assert proved.returncode == 0, proved.stderr
    finally:
        daemons.down(cluster, timeout_s=20)
    (tmp_path / "proof.json").write_text(proved.stdout)
    genesis_path = str(directory / "genesis.json")
    checked = qnode("ledger", "check", str(tmp_path / "proof.json"), "--genesis", genesis_path, "--json")
    assert checked.returncode == 0, checked.stdout
    assert {"changes of validators", "node keys"} <= set(json.loads(checked.stdout)["checks"])
    verified = qnode("ledger", "verify", "--cluster", str(directory))
    assert verified.returncode == 0, verified.stdout
