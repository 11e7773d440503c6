"""A whole cluster in virtual time under policies: what a node refuses, destroys, and routes around (SPEC 9)."""

import uuid
from typing import Any

import pytest

from ledger.contracts.actions import Action, encode_action
from ledger.contracts.document import policy_from_document
from ledger.contracts.policy_actions import RemovePolicy, SetPolicy
from ledger.contracts.revocation import RevokeKey, RevokeKeyBlock, RevokeNode
from ledger.contracts.routes import suspended_links
from ledger.transactions import (
    GovernanceApproved,
    GovernanceProposed,
    KeyDelivered,
    Transaction,
    decode,
    encode,
    transaction_id,
)
from qnode.inputs import (
    DocumentAnswer,
    GetKeys,
    GetKeysWithIds,
    GetProof,
    GetStatus,
    KeysAnswer,
    RequestError,
    SetAttack,
    StatusAnswer,
    SubmitTransactions,
)
from qnode.rules import ChainRules
from tests.ledger.cluster import make_key_block
from tests.ledger.test_execution import Table, delivered
from tests.qnode.test_cluster import made
from tests.qnode.virtual import Cluster, node_name, ring

EXPIRY = 100_000


def submit(net: Cluster, name: str, record: Transaction) -> None:
    answer = net.answer(name, SubmitTransactions((encode(record),), until_committed=True))
    assert isinstance(answer, DocumentAnswer) and answer.document["ok"], answer


def decide(net: Cluster, action: Action) -> None:
    """Let three of the four nodes decide, and wait until every node has executed it."""
    proposed = GovernanceProposed(node_name(0), encode_action(action), EXPIRY)
    submit(net, node_name(0), proposed)
    name = transaction_id(encode(proposed))
    for index in (1, 2):
        submit(net, node_name(index), GovernanceApproved(name, node_name(index)))
    height = max(node.state.height for node in net.nodes())
    assert net.run(lambda: min(node.state.height for node in net.nodes()) >= height, 30)


def policy(**tables: Any) -> SetPolicy:
    return SetPolicy(policy_from_document({"name": "test", **tables}).encoded)


def fetch(net: Cluster, number: int = 1, slave: str = "sae-3") -> Any:
    return net.answer("node-1", GetKeys("sae-1", slave, number))


def copy(net: Cluster, answer: KeysAnswer, slave: str = "sae-3") -> Any:
    ids = tuple(key.key_id for key in answer.keys)
    return net.answer(f"node-{slave[4:]}", GetKeysWithIds(slave, "sae-1", ids))


@pytest.fixture
def net() -> Cluster:
    net = Cluster(4, ring(4), 300_000, 100_000)
    assert made(net)
    return net


def refused(answer: Any, status: int, words: str) -> bool:
    assert isinstance(answer, RequestError), answer
    return answer.status == status and words in answer.message


def test_a_denied_pair_gets_nothing_and_is_told_the_rule(net: Cluster) -> None:
    early = fetch(net)
    assert isinstance(early, KeysAnswer)
    decide(net, policy(delivery={"pairs_deny": [["sae-1", "sae-3"]]}))
    assert refused(fetch(net), 401, "policy.pair: test")
    assert refused(net.answer("node-1", GetStatus("sae-1", "sae-3")), 401, "policy.pair: test")
    assert refused(copy(net, early), 401, "policy.pair: test")
    assert isinstance(fetch(net, slave="sae-2"), KeysAnswer)
    decide(net, RemovePolicy("test"))
    assert isinstance(fetch(net), KeysAnswer)


def test_quotas_count_what_the_chain_does_not_know_yet(net: Cluster) -> None:
    decide(net, policy(delivery={"quota_keys": 3, "quota_window_blocks": 1_000_000}))
    requests = [net.ask("node-1", GetKeys("sae-1", "sae-2")) for _ in range(5)]
    assert net.run(lambda: all(request in net.answers for request in requests), 30)
    answers = [net.answers[request] for request in requests]
    assert [isinstance(answer, KeysAnswer) for answer in answers] == [True, True, True, False, False]
    assert refused(answers[3], 503, "policy.quota: test")
    status = net.answer("node-1", GetStatus("sae-1", "sae-2"))
    assert isinstance(status, StatusAnswer) and status.stored_key_count == 0
    assert isinstance(fetch(net), KeysAnswer), "another pair has its own"


def test_keys_take_the_way_that_is_left_or_none(net: Cluster) -> None:
    decide(net, policy(route={"avoid_nodes": ["node-2"]}))
    for _ in range(3):
        assert path_of(net, fetch(net)) == ("node-1", "node-4", "node-3")
    decide(net, policy(route={"avoid_nodes": ["node-2", "node-4"]}))
    assert refused(fetch(net), 503, "no link leads there")
    decide(net, policy(route={"hops_max": 1}))
    assert refused(fetch(net), 503, "policy.hops: test")
    assert isinstance(fetch(net, slave="sae-2"), KeysAnswer)


def path_of(net: Cluster, answer: Any) -> tuple[str, ...]:
    """Return the way of a key as the chain records it."""
    assert isinstance(answer, KeysAnswer), answer
    key_id, node = uuid.UUID(answer.keys[0].key_id).bytes, net.nodes()[0]
    assert net.run(lambda: node.state.delivery(key_id) is not None, 30)
    found = node.state.delivery(key_id)
    assert found is not None
    record = node._replica.chain.transaction(*found)
    assert record is not None
    delivered = decode(record)
    assert isinstance(delivered, KeyDelivered)
    return delivered.path


def test_key_of_a_revoked_block_never_leaves(net: Cluster) -> None:
    held = fetch(net, slave="sae-2")
    assert isinstance(held, KeysAnswer)
    store = net.nodes()[0]._keys
    for link_id, number in store.available_blocks():
        if link_id == link_between(net, 0, 1):
            decide(net, RevokeKeyBlock(link_id, number, "tamper"))
            assert (link_id, number) not in store.available_blocks()
    assert refused(copy(net, held, "sae-2"), 400, "not found")
    assert all(node._status()["keys"]["held"] == 0 for node in net.nodes())


def link_between(net: Cluster, one: int, other: int) -> str:
    state = net.nodes()[0].state
    return next(link.link_id for link in state.links() if link.joins(node_name(one), node_name(other)))


def test_a_revoked_key_and_node(net: Cluster) -> None:
    held = fetch(net)
    assert isinstance(held, KeysAnswer)
    decide(net, RevokeKey(uuid.UUID(held.keys[0].key_id).bytes, "leaked"))
    assert refused(copy(net, held), 400, "not found")
    decide(net, RevokeNode("node-3", "stolen"))
    assert isinstance(fetch(net), RequestError)
    assert isinstance(fetch(net, slave="sae-2"), KeysAnswer)


def test_blocks_below_the_policy_abort_and_stored_ones_are_destroyed(net: Cluster) -> None:
    decide(net, policy(key_block={"secret_bits_min": 10_000_000}))
    assert net.nodes()[0]._keys.available_blocks() == []
    assert net.nodes()[0]._status()["keys"]["destroyed_bytes"] > 0
    links = [link for node in net.nodes() for link in node._links.values()]
    assert net.run(lambda: all("policy.secret_bits" in (link.figures.last_abort or "") for link in links), 60)
    assert isinstance(fetch(net), RequestError)


def test_repeated_aborts_suspend_a_link_and_clean_blocks_lift_it(net: Cluster) -> None:
    decide(net, policy(suspension={"aborts": 2, "window_blocks": 10_000, "clean_blocks": 1}))
    link_id = link_between(net, 0, 1)
    link = net.nodes()[0].state.link(link_id)
    assert link is not None
    attack = ("intercept_resend", (("fraction", 1.0),))
    net.answer(link.transmitter, SetAttack(link_id, *attack))
    state = net.nodes()[0].state
    assert net.run(lambda: link_id in suspended_links(state), 120)
    assert net.link_status(link.transmitter, link_id)["suspended_by"] == "test"
    net.answer(link.transmitter, SetAttack(link_id, None))
    assert net.run(lambda: not suspended_links(state), 120)


@pytest.mark.slow
def test_old_key_leaves_node_and_state_and_new_key_is_there_before(net: Cluster) -> None:
    """With retention the chain forgets what nobody may have any more; applications notice nothing (SPEC 9.11)."""
    early = fetch(net, slave="sae-2")
    assert isinstance(early, KeysAnswer)
    decide(net, policy(lifetime={"blocks": 60}, retention={"blocks": 120}))
    first, nodes = net.nodes()[0].state.height, net.nodes()
    known = set(nodes[0]._keys.available_blocks())
    key_id, served = uuid.UUID(early.keys[0].key_id).bytes, 0
    while nodes[0].state.height < first + 220:
        assert isinstance(fetch(net, slave="sae-2"), KeysAnswer), "there is always younger key before the old one ends"
        served += 1
        net.run(lambda: False, 1)
    assert not known & set(nodes[0]._keys.available_blocks()), "what was too old is destroyed"
    for node in nodes:
        assert node.state.delivery(key_id) is None and all(node.state.key_block(*name) is None for name in known)
        assert all(node.state.key_block(*name) is not None for name in node._keys.available_blocks())
        assert node.state.counts()["deliveries"] < served + 1
        assert node._replica.status()["retired"] >= served + 1 - node.state.counts()["deliveries"]
    answer = net.answer("node-1", GetProof(early.keys[0].key_id))
    assert refused(answer, 404, "older than the 120 heights of the retention policy")


def test_what_a_snapshot_shows_as_gone_is_not_waited_for() -> None:
    table = Table()
    table.run("alpha", make_key_block(table.genesis, 1))
    rules = ChainRules(lambda: table.state)
    kept, gone = (delivered(("alpha", "beta"), (("alpha-beta", block, 0, 256),), block) for block in (1, 0))
    for record in (kept, gone):
        rules.delivered(record)
    rules.adopted()
    assert list(rules._unrecorded) == [kept.key_id]
    table.run("alpha", kept)
    rules.adopted()
    assert not rules._unrecorded and not rules._pair_counts and not rules._block_counts
