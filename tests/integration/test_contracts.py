"""Real daemons under a policy: governance by commands, a denied delivery, a revoked block (rows S0-B3, S0-B4)."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledger.delivery_proof import Statement, check_delivery
from qnode import cli
from qnode.client import CallFailed
from qnode.cluster import OPERATOR, Cluster
from tests.integration.test_kill import awaited, links_ready

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MASTER, SLAVE, OTHER = "sae-1-a", "sae-2-a", "sae-3-a"


def qnode(cluster: Cluster, *arguments: str) -> dict[str, Any]:
    """Run a command as an operator does, and return its JSON."""
    result = CliRunner().invoke(cli.cli, [*arguments, "--cluster", str(cluster.directory), "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.output)
    return document


def decide(cluster: Cluster, *proposal: str) -> None:
    """Propose at node-1, approve at the next two, and see it executed on every node."""
    name = qnode(cluster, *proposal, "--node", "node-1")["proposal"]
    for node_id in ("node-2", "node-3"):
        answer = qnode(cluster, "governance", "approve", name[:12], "--node", node_id)
    assert answer["status"] == "executed", answer

    def everywhere() -> bool:
        found = [qnode(cluster, "governance", "list", "--node", m.settings.node_id) for m in cluster.members]
        return all(any(e["proposal"] == name and e["status"] == "executed" for e in f["proposals"]) for f in found)

    awaited("the decision at every node", everywhere)


def refused(call: Any, *arguments: Any) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        call(*arguments)
    return failed.value


def test_governance_policies_and_revocation_on_real_daemons(ring: Cluster, tmp_path: Path) -> None:
    awaited("a block on every link", lambda: links_ready(ring), 120)
    master, slave = ring.home(MASTER).client(MASTER), ring.home(SLAVE).client(SLAVE)
    early = awaited("a key", lambda: taken(master))
    key_id = early["keys"][0]["key_ID"]

    file = tmp_path / "policy.json"
    rules = {"key_block": {"qber_max": 0.08}, "delivery": {"pairs_deny": [[MASTER, OTHER]]}}
    file.write_text(json.dumps({"name": "ward", **rules}))
    decide(ring, "policy", "set", str(file))
    assert [each["name"] for each in qnode(ring, "policy", "show")["policies"]] == ["ward"]
    denied = refused(master.get_keys, OTHER, 1, None)
    assert denied.status == 401 and "policy.pair: ward" in str(denied)
    assert taken(master), "the other pair still gets keys"

    first, *others = carriers(ring, key_id)
    assert qnode(ring, "link", "revoke", first["link_id"], str(first["block_number"]), "--reason", "tamper")["ok"]
    for block in others:
        revoke = ("governance", "propose", "revoke-key-block", "--set", f"link_id={block['link_id']}")
        decide(ring, *revoke, "--set", f"block_number={block['block_number']}", "--set", "reason=tamper")
    gone = refused(slave.get_keys_with_ids, MASTER, [key_id])
    assert gone.status == 400 and "not found" in str(gone)

    proof = tmp_path / "proof.json"
    awaited("the block that certifies the revocation", lambda: not statement(ring, key_id).ok)
    proof.write_text(json.dumps(prove(ring, key_id)))
    genesis = str(ring.directory / "genesis.json")
    result = CliRunner().invoke(cli.cli, ["ledger", "check", str(proof), "--genesis", genesis])
    assert result.exit_code == 1 and "NOT PROVED" in result.output and "is revoked (tamper)" in result.output


def taken(master: Any) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = master.get_keys(SLAVE, 1, None)
    except CallFailed as error:
        assert error.status == 503, error
        return None
    return document


def prove(cluster: Cluster, key_id: str) -> dict[str, Any]:
    return cluster.members[0].client(OPERATOR).call("GET", f"/admin/v1/ledger/proofs/{key_id}")


def statement(cluster: Cluster, key_id: str) -> Statement:
    return check_delivery(prove(cluster, key_id), cluster.genesis)


def carriers(cluster: Cluster, key_id: str) -> list[dict[str, Any]]:
    """Return the blocks that carried a key, as its proof says."""
    hops: list[dict[str, Any]] = statement(cluster, key_id).document()["hops"]
    return list({(hop["link_id"], hop["block_number"]): hop for hop in hops}.values())
