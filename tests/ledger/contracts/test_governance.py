"""SPEC 9.1 and 9.2: every rule of governance and of revocation, by the refusal that names it."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.contracts.actions import (
    ACTION_SIZE_BYTES_MAX,
    ACTIONS,
    NAMES,
    Action,
    MalformedAction,
    action_from_document,
    decode_action,
    encode_action,
)
from ledger.contracts.entries import Proposal, Revocation
from ledger.contracts.governance import OPEN_PER_PROPOSER_MAX, RESULTS_KEPT, electorate
from ledger.contracts.revocation import RevokeKey, RevokeKeyBlock, RevokeNode, block_subject, node_subject
from ledger.encoding import pack
from ledger.merkle import trie_check
from ledger.state import State
from ledger.transactions import (
    GovernanceApproved,
    GovernanceProposed,
    GovernanceWithdrawn,
    KeyBlockRevoked,
    encode,
    transaction_id,
)
from tests.ledger.cluster import make_key_block
from tests.ledger.test_execution import Table, delivered

REVOKE = RevokeKeyBlock("alpha-beta", 1, "tamper")


@pytest.fixture
def table() -> Table:
    return Table()


def propose(table: Table, sender: str, action: Action, expiry: int = 1000) -> bytes:
    record = GovernanceProposed(sender, encode_action(action), expiry)
    assert table.run(sender, record)[0].reason == ""
    return transaction_id(encode(record))


def approve(table: Table, proposal: bytes, *senders: str) -> None:
    for sender in senders:
        assert table.run(sender, GovernanceApproved(proposal, sender))[0].reason == ""


def decide(table: Table, action: Action, expiry: int = 1000) -> None:
    approve(table, propose(table, "alpha", action, expiry), "beta", "gamma")


def demote(table: Table, *node_ids: str) -> None:
    """Take validators out of the electorate in a block of its own, as an action would."""
    table.state.begin(table.state.height + 1)
    for node_id in node_ids:
        node = table.state.node(node_id)
        assert node is not None
        table.state.put_node(replace(node, validator=False))
    table.state.finish(bytes(32), bytes(32))


def status(state: State, proposal: bytes) -> str:
    found = state.entry(Proposal, proposal)
    assert found is not None
    return found.status


def test_a_quorum_executes_in_the_block_that_reaches_it(table: Table) -> None:
    proposal = propose(table, "alpha", REVOKE)
    assert electorate(table.state).quorum == 3
    approve(table, proposal, "beta")
    assert status(table.state, proposal) == "open"
    assert table.state.entry(Revocation, block_subject("alpha-beta", 1)) is None
    approve(table, proposal, "delta")
    found = table.state.entry(Proposal, proposal)
    assert found is not None and (found.status, found.decided_height) == ("executed", table.state.height)
    assert found.approvals == ("alpha", "beta", "delta")
    revoked = table.state.entry(Revocation, block_subject("alpha-beta", 1))
    assert revoked is not None and (revoked.height, revoked.decided_by) == (table.state.height, "governance")
    good, value = trie_check(table.state.root, revoked.key, table.state.prove(revoked.key))
    assert good and value is not None and Revocation.from_value(value) == revoked


def test_proposal_rules(table: Table) -> None:
    good = GovernanceProposed("alpha", encode_action(REVOKE), 50)
    assert table.reason("beta", good) == "governance.proposer"
    assert table.reason("alpha", replace(good, expiry_height=0)) == "governance.expiry"
    assert table.reason("alpha", replace(good, expiry_height=2_000_000)) == "governance.expiry"
    assert table.reason("alpha", replace(good, action=b"\x00")) == "governance.action"
    assert table.reason("alpha", replace(good, action=pack((99, 1)))) == "governance.action"
    assert table.reason("alpha", replace(good, action=bytes(ACTION_SIZE_BYTES_MAX + 1))) == "governance.action"
    nowhere = encode_action(RevokeKeyBlock("nowhere", 1, "x"))
    assert table.reason("alpha", replace(good, action=nowhere)) == "governance.action"
    assert table.reason("alpha", good) == ""
    assert table.reason("alpha", good) == "governance.known"
    for count in range(1, OPEN_PER_PROPOSER_MAX):
        assert table.reason("alpha", replace(good, expiry_height=50 + count)) == ""
    assert table.reason("alpha", replace(good, expiry_height=99)) == "governance.open"
    assert table.reason("beta", replace(good, proposer="beta")) == "", "one validator never keeps another from it"


def test_approval_and_withdrawal_rules(table: Table) -> None:
    proposal = propose(table, "alpha", REVOKE)
    assert table.reason("beta", GovernanceApproved(proposal, "gamma")) == "governance.approver"
    assert table.reason("beta", GovernanceApproved(bytes(32), "beta")) == "governance.unknown"
    assert table.reason("alpha", GovernanceApproved(proposal, "alpha")) == "governance.approved"
    assert table.reason("beta", GovernanceWithdrawn(proposal, "beta")) == "governance.proposer"
    assert table.reason("beta", GovernanceWithdrawn(bytes(32), "beta")) == "governance.unknown"
    assert table.reason("alpha", GovernanceWithdrawn(proposal, "alpha")) == ""
    assert status(table.state, proposal) == "withdrawn"
    assert table.reason("beta", GovernanceApproved(proposal, "beta")) == "governance.closed"
    assert table.reason("alpha", GovernanceWithdrawn(proposal, "alpha")) == "governance.closed"


def test_only_validators_decide_and_those_of_the_moment_count(table: Table) -> None:
    proposal = propose(table, "alpha", REVOKE)
    approve(table, proposal, "beta")
    demote(table, "beta", "gamma")
    assert table.reason("beta", GovernanceApproved(proposal, "beta")) == "governance.validator"
    again = GovernanceProposed("gamma", encode_action(REVOKE), 50)
    assert table.reason("gamma", again) == "governance.validator"
    assert electorate(table.state).node_ids == ("alpha", "delta")
    approve(table, proposal, "delta")
    assert status(table.state, proposal) == "executed"


def test_a_smaller_electorate_lets_a_repeated_approval_count(table: Table) -> None:
    proposal = propose(table, "alpha", REVOKE)
    demote(table, "beta", "gamma", "delta")
    approve(table, proposal, "alpha")
    assert status(table.state, proposal) == "executed"


def test_proposals_expire(table: Table) -> None:
    proposal = propose(table, "alpha", REVOKE, expiry=3)
    approve(table, proposal, "beta")
    table.run("gamma", b"x")
    assert table.reason("gamma", GovernanceApproved(proposal, "gamma")) == "governance.closed"
    assert status(table.state, proposal) == "expired"


def test_what_can_no_longer_be_done_fails_and_says_why(table: Table) -> None:
    one, two = propose(table, "alpha", REVOKE), propose(table, "beta", REVOKE, 60)
    approve(table, one, "beta", "gamma")
    approve(table, two, "gamma", "delta")
    found = table.state.entry(Proposal, two)
    assert found is not None and found.status == "failed" and "revoked already" in found.reason


def test_results_are_bounded_and_the_oldest_go_first(table: Table) -> None:
    first = propose(table, "alpha", REVOKE)
    table.run("alpha", GovernanceWithdrawn(first, "alpha"))
    for count in range(RESULTS_KEPT):
        record = GovernanceProposed("alpha", encode_action(REVOKE), 2000 + count)
        table.run("alpha", record, GovernanceWithdrawn(transaction_id(encode(record)), "alpha"))
    assert len(table.state.entries(Proposal)) == RESULTS_KEPT
    assert table.state.entry(Proposal, first) is None


def test_an_end_revokes_its_own_block(table: Table) -> None:
    record = KeyBlockRevoked("alpha-beta", 1, "lost", "beta")
    assert table.reason("alpha", record) == "revocation.sender"
    assert table.reason("gamma", replace(record, revoker="gamma")) == "revocation.sender"
    assert table.reason("beta", replace(record, link_id="nowhere")) == "revocation.link"
    table.run("alpha", make_key_block(table.genesis, 1))
    hops = (("alpha-beta", 1, 0, 256),)
    assert table.reason("alpha", delivered(("alpha", "beta"), hops, 1)) == ""
    assert table.reason("beta", record) == ""
    assert table.reason("beta", record) == "revocation.known"
    assert table.reason("alpha", delivered(("alpha", "beta"), hops, 2)) == "revocation.block"


def test_a_revoked_block_is_never_recorded(table: Table) -> None:
    decide(table, REVOKE)
    assert table.reason("alpha", make_key_block(table.genesis, 1)) == "revocation.block"
    assert table.reason("alpha", make_key_block(table.genesis, 2)) == ""


def test_a_revoked_node_carries_no_key(table: Table) -> None:
    table.run("alpha", make_key_block(table.genesis, 1))
    decide(table, RevokeNode("beta", "stolen"))
    assert table.reason("alpha", make_key_block(table.genesis, 2)) == "revocation.node"
    assert table.reason("alpha", delivered(("alpha", "beta"), (("alpha-beta", 1, 0, 256),))) == "revocation.node"
    assert table.state.entry(Revocation, node_subject("beta")) is not None


def test_a_revoked_key_is_never_delivered(table: Table) -> None:
    key = delivered(("alpha",), ())
    decide(table, RevokeKey(key.key_id, "leaked"))
    assert table.reason("alpha", key) == "revocation.key"


# ---- actions


def test_action_bytes_are_pinned() -> None:
    """A change here is a new kind: chains hold these bytes."""
    assert encode_action(REVOKE).hex() == "9401aa616c7068612d6265746101a674616d706572"
    assert encode_action(RevokeKey(bytes(16), "x")).hex() == "9302c41000000000000000000000000000000000a178"
    assert encode_action(RevokeNode("beta", "x")).hex() == "9303a462657461a178"


@given(st.binary(max_size=80))
def test_random_bytes_are_actions_or_refused(data: bytes) -> None:
    try:
        action = decode_action(data)
    except MalformedAction:
        return
    assert encode_action(action) == data


def test_kinds_and_names_are_unique() -> None:
    assert len(ACTIONS) == len(NAMES) == len(set(ACTIONS.values()))


def test_documents_of_actions() -> None:
    given = {"link_id": "alpha-beta", "block_number": "1", "reason": "tamper"}
    assert action_from_document("revoke-key-block", given) == REVOKE
    assert action_from_document("revoke-key-block", REVOKE.document()) == REVOKE
    key = RevokeKey(hashlib.sha256(b"").digest()[:16], "x")
    assert action_from_document("revoke-key", key.document()) == key
    for name, document, message in (
        ("nothing", {}, "the actions are"),
        ("revoke-key-block", {**given, "more": "1"}, "the members are"),
        ("revoke-key-block", {"link_id": "a"}, "block_number is missing"),
        ("revoke-key-block", {**given, "block_number": "one"}, "whole number"),
        ("revoke-key", {"key_id": "xyz", "reason": "x"}, "hexadecimal"),
        ("revoke-key", {"key_id": "00", "reason": "x"}, "16 bytes"),
        ("revoke-key-block", {**given, "reason": ""}, "text of 1 to"),
    ):
        with pytest.raises(MalformedAction, match=message):
            action_from_document(name, document)
