"""Real daemons: a node joins a running chain, votes, and outlives others; the same and a rotation with hybrid votes."""

import base64
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from ledger.signatures import Ed25519Signer
from ledger.transactions import EquivocationProven, encode
from ledger.votes import FRESH, Kind, Statement, statement_bytes
from qnode import cluster as daemons
from qnode.cluster import OPERATOR, Cluster
from qnode.initialise import Plan, initialise, read_topology
from qnode.io.certificates import load_private_key
from qnode.io.entropy import OperatingSystemEntropy
from tests.integration.test_kill import awaited, links_ready
from tests.integration.test_rotation import height, qnode, signed_again, status

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def started(directory: Path, plan: Plan) -> Cluster:
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    daemons.up(cluster, timeout_s=90)
    return cluster


def said(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run a command as an operator does, and return its JSON."""
    result = qnode(*arguments, "--cluster", str(directory), "--json")
    assert result.returncode == 0, result.stderr + result.stdout
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def decide(directory: Path, proposal: list[str], *approvers: str) -> None:
    name = said(directory, *proposal, "--node", "node-1")["proposal"]
    for node_id in approvers:
        answer = said(directory, "governance", "approve", name[:12], "--node", node_id)
    assert answer["status"] == "executed", answer


def propose(action: str, **members: Any) -> list[str]:
    named = [part for name, value in members.items() for part in ("--set", f"{name}={value}")]
    return ["governance", "propose", action, *named]


def everywhere(cluster: Cluster, node_ids: list[str], holds: Callable[[dict[str, Any]], bool]) -> bool:
    return all(holds(status(cluster, node_id)["ledger"]) for node_id in node_ids)


def goes_on(cluster: Cluster, node_ids: list[str]) -> None:
    """The chain grows at each of these nodes."""
    goal = max(height(cluster, node_id) for node_id in node_ids) + 2
    awaited("blocks at all of them", lambda: all(height(cluster, each) >= goal for each in node_ids))


def self_contradiction(cluster: Cluster, node_id: str) -> str:
    """Two votes of one validator for one view, as only the holder of its key can make them; base64 of the record."""
    key = load_private_key(cluster.member(node_id).settings.identity_key)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    signer, statements = Ed25519Signer(key.private_bytes_raw()), []
    for block in (b"1" * 32, b"2" * 32):
        message = statement_bytes(cluster.genesis.digest, bytes(32), Kind.VOTE, 1, 0, block, FRESH)
        statements.append(Statement(Kind.VOTE, 1, 0, block, FRESH, node_id, signer.sign(message)).encoded)
    return base64.b64encode(encode(EquivocationProven(statements[0], statements[1], bytes(32)))).decode()


def key_proof(cluster: Cluster, directory: Path, tmp_path: Path) -> Path:
    key_id = cluster.home("sae-1-a").client("sae-1-a").get_keys("sae-2-a", 1, None)["keys"][0]["key_ID"]
    proved = qnode("ledger", "prove", key_id, "--cluster", str(directory))
    assert proved.returncode == 0, proved.stderr
    path = tmp_path / "proof.json"
    path.write_text(proved.stdout)
    return path


def test_a_node_joins_votes_and_outlives_others(tmp_path: Path) -> None:
    directory = tmp_path / "ring"
    cluster = started(directory, Plan(read_topology("ring", 4), profile="lab"))
    try:
        awaited("a block of key on every link", lambda: links_ready(cluster))
        joining = said(directory, "node", "new", "node-5")
        assert joining["requests"] == [], "the authority is at hand"
        cluster = Cluster.open(directory)
        daemons.up(cluster, timeout_s=90)  # waits for its admission
        decide(directory, joining["proposal"], "node-2", "node-3")
        awaited("the new node at the tip", lambda: height(cluster, "node-5") >= height(cluster, "node-1") > 0)
        assert status(cluster, "node-5")["ledger"]["validators"] == ["node-1", "node-2", "node-3", "node-4"]

        decide(directory, propose("set-validator", node_id="node-5", validator=1), "node-2", "node-3")
        five = [f"node-{n}" for n in range(1, 6)]
        awaited("five validators", lambda: everywhere(cluster, five, lambda x: x["validators"] == five))
        decide(directory, propose("remove-node", node_id="node-4", reason="retired"), "node-2", "node-3", "node-5")
        left = ["node-1", "node-2", "node-3", "node-5"]
        awaited("four validators", lambda: everywhere(cluster, left, lambda x: x["validators"] == left))
        goes_on(cluster, left)

        record = {"transactions": [self_contradiction(cluster, "node-2")], "until": "committed"}
        answer = cluster.member("node-1").client(OPERATOR).call("POST", "/admin/v1/ledger/transactions", record)
        assert answer["ok"], answer
        three = ["node-1", "node-3", "node-5"]
        awaited("three validators", lambda: everywhere(cluster, left, lambda x: x["validators"] == three))
        shown = said(directory, "ledger", "validators", "--node", "node-5")
        standings = {each["node_id"]: each["standing"] for each in shown["nodes"]}
        assert standings["node-2"] == "suspended" and standings["node-4"] == "removed"
        assert [standings[each] for each in three] == ["votes"] * 3
        goes_on(cluster, left)  # which takes the new node: three of three decide
        proof = key_proof(cluster, directory, tmp_path)
    finally:
        daemons.down(cluster, timeout_s=20)
    checked = qnode("ledger", "check", str(proof), "--genesis", str(directory / "genesis.json"), "--json")
    assert checked.returncode == 0, checked.stdout
    assert "changes of validators" in json.loads(checked.stdout)["checks"]
    verified = qnode("ledger", "verify", "--cluster", str(directory))
    assert verified.returncode == 0, verified.stdout


def test_a_key_rotates_and_a_node_joins_on_a_chain_of_hybrid_votes(tmp_path: Path) -> None:
    directory = tmp_path / "line"
    cluster = started(directory, Plan(read_topology("line", 3), profile="lab", hybrid_votes=True))
    try:
        awaited("a block of key on every link", lambda: links_ready(cluster))
        answer = said(directory, "node", "rotate-key", "node-2")
        assert answer["ok"] and answer["public_key"] != cluster.genesis.nodes[1].public_key.hex()
        awaited("records and votes under the new keys", lambda: signed_again(cluster, "node-2", answer["height"]))
        joining = said(directory, "node", "new", "node-4", "--validator")
        decide(directory, joining["proposal"], "node-2", "node-3")
        cluster = Cluster.open(directory)
        daemons.up(cluster, timeout_s=90)
        four = [f"node-{n}" for n in range(1, 5)]
        awaited("four at the tip", lambda: everywhere(cluster, four, lambda x: x["validators"] == four))
        goes_on(cluster, four)
        assert [status(cluster, each)["peer_faults"] for each in four] == [0] * 4
        proof = key_proof(cluster, directory, tmp_path)
    finally:
        daemons.down(cluster, timeout_s=20)
    checked = qnode("ledger", "check", str(proof), "--genesis", str(directory / "genesis.json"), "--json")
    assert checked.returncode == 0, checked.stdout
    assert {"changes of validators", "node keys"} <= set(json.loads(checked.stdout)["checks"])
