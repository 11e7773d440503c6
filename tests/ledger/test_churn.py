"""SPEC 3.7, 4.7, 5.4, 5.5, 9.4 on whole replicas: members come and go, keys rotate, versions change."""

from collections.abc import Iterable

import pytest

from ledger.contracts.actions import Action, encode_action
from ledger.contracts.membership import ActivateVersion, AdmitNode, LiftSuspension, RemoveNode, SetValidator
from ledger.inputs import (
    EncodedTransactionsSubmitted,
    MessageReceived,
    PeerDown,
    PeerUp,
    TimePassed,
    TransactionsSubmitted,
)
from ledger.messages import StatementMessage
from ledger.messages import encode as encode_message
from ledger.outputs import Noted, PeerFaulted, TransactionsRefused
from ledger.transactions import (
    GovernanceApproved,
    GovernanceProposed,
    SaeRegistered,
    Transaction,
    encode,
    transaction_id,
)
from ledger.votes import FRESH, Kind, Statement, statement_bytes
from tests.ledger.cluster import MS, NODES, Net, make_genesis, rotation, signer_of


@pytest.fixture
def net() -> Net:
    return Net(make_genesis())


def submit(net: Net, node: str, *transactions: Transaction) -> None:
    net.give(node, TransactionsSubmitted(0, transactions))


def reason_of(net: Net, node: str, transaction: Transaction) -> str:
    wanted = transaction_id(encode(transaction))
    found = [r.reason for commit in net.commits(node) for r in commit.receipts if r.transaction_id == wanted]
    assert len(found) == 1, f"committed {len(found)} times"
    return found[0]


def decide(net: Net, *actions: Action, by: Iterable[str] = ("alpha", "beta", "gamma")) -> None:
    """Let a quorum decide all of it in as few blocks as it takes; every decision must be executed."""
    proposer, *others = by
    records = [GovernanceProposed(proposer, encode_action(action), 100_000) for action in actions]
    submit(net, proposer, *records)
    net.pass_time(1_000 * MS)
    for other in others:
        submit(net, other, *(GovernanceApproved(transaction_id(encode(each)), other) for each in records))
    net.pass_time(1_000 * MS)
    for record in records:
        assert reason_of(net, proposer, record) == ""


def advance(net: Net, heights: int, node: str = "alpha") -> None:
    target = net.replicas[node].height + heights
    for number in range(20 * heights):
        if net.replicas[node].height >= target:
            return
        submit(net, node, SaeRegistered(f"filler-{target}-{number}", node))
        net.pass_time(20 * MS)
    raise AssertionError(f"{node} stays at height {net.replicas[node].height}, {target} was expected")


def roots(net: Net) -> set[bytes]:
    return {replica.state.root for replica in net.replicas.values()}


def voters(net: Net, node: str = "alpha") -> tuple[str, ...]:
    return net.replicas[node].state.validators().node_ids


# ---- members


def test_what_a_node_saw_before_it_was_admitted_is_reported_once_it_is(net: Net) -> None:
    omega = net.start("omega")
    set_digest = omega.state.validators().digest
    for tag in (b"1", b"2"):
        says = (Kind.VOTE, 1, 0, tag * 32, FRESH)
        signature = signer_of("beta").sign(statement_bytes(net.genesis.digest, set_digest, *says))
        message = encode_message(StatementMessage(Statement(*says, "beta", signature)))
        net.filter = lambda source, target, payload: source != "omega"  # what it hears stays with it
        net.give("omega", MessageReceived("beta", message))
    net.filter = lambda source, target, payload: True
    assert omega.status()["evidence"] == 1
    advance(net, 3)
    assert omega.height == 3 and omega.state.equivocation("beta", 1) is None
    decide(net, AdmitNode("omega", signer_of("omega").public_key), by=("alpha", "gamma", "delta"))
    net.pass_time(1_000 * MS)
    assert net.replicas["alpha"].state.equivocation("beta", 1) is not None


def test_a_new_node_follows_is_admitted_and_votes(net: Net) -> None:
    advance(net, 3)
    omega = net.start("omega")
    net.pass_time(2_000 * MS)
    assert omega.height == net.replicas["alpha"].height, "it follows before it is a member"
    refused = net.give("omega", TransactionsSubmitted(7, (SaeRegistered("early", "omega"),)))
    assert any(isinstance(output, TransactionsRefused) for output in refused)
    decide(net, AdmitNode("omega", signer_of("omega").public_key))
    submit(net, "omega", SaeRegistered("of-omega", "omega"))
    net.pass_time(1_000 * MS)
    assert net.replicas["beta"].state.sae("of-omega") is not None
    decide(net, SetValidator("omega", 1))
    advance(net, 2)
    assert voters(net) == (*NODES, "omega")
    net.stop("delta")
    net.pass_time(5_000 * MS)
    advance(net, 5)
    net.pass_time(2_000 * MS)
    assert len(roots(net)) == 1
    assert any(4 in commit.certificate.indices() for commit in net.commits("alpha")), "omega votes"
    assert not net.seen(PeerFaulted)


def test_a_removed_node_is_out_for_good(net: Net) -> None:
    decide(net, RemoveNode("delta", "stolen"))
    advance(net, 3)
    assert voters(net) == ("alpha", "beta", "gamma")
    before = net.replicas["alpha"].state.counts()["saes"]
    refused = net.give("delta", TransactionsSubmitted(7, (SaeRegistered("late", "delta"),)))
    assert any(isinstance(output, TransactionsRefused) for output in refused)
    net.pass_time(1_000 * MS)
    assert net.replicas["alpha"].state.counts()["saes"] == before
    assert not net.seen(PeerFaulted)


def test_a_removed_node_with_records_in_wait_has_nothing_to_do(net: Net) -> None:
    net.give("delta", TransactionsSubmitted(7, (SaeRegistered("late", "delta"),), patience_ns=5_000 * MS))
    decide(net, RemoveNode("delta", "stolen"))
    assert net.now_ns < 5_000 * MS
    net.now_ns = 6_000 * MS
    net.give("delta", TimePassed())
    deadline_ns = net.replicas["delta"].next_deadline_ns()
    assert deadline_ns is None or deadline_ns > net.now_ns, "it would be woken for ever"


def test_nobody_can_be_left_without_a_voter() -> None:
    net = Net(make_genesis(("alpha", "beta")), ("alpha", "beta"))
    decide(net, SetValidator("beta", 0), by=("alpha", "beta"))
    advance(net, 2)
    assert voters(net) == ("alpha",)
    for action in (SetValidator("alpha", 0), RemoveNode("alpha", "x")):
        record = GovernanceProposed("alpha", encode_action(action), 100_000)
        submit(net, "alpha", record)
        net.pass_time(20 * MS)
        assert "nobody could vote" in reason_of(net, "alpha", record)


def test_a_set_changed_under_partition_is_the_same_after_it(net: Net) -> None:
    cut = {"delta"}
    net.filter = lambda source, target, payload: (source in cut) == (target in cut)
    for name in NODES[:3]:
        net.give(name, PeerDown("delta"))
        net.give("delta", PeerDown(name))
    decide(net, RemoveNode("delta", "lost"), AdmitNode("omega", signer_of("omega").public_key, 1))
    net.start("omega")
    advance(net, 4)
    assert voters(net) == ("alpha", "beta", "gamma", "omega")
    height = net.replicas["delta"].height
    net.filter = lambda source, target, payload: True
    for name in ("alpha", "beta", "gamma"):
        net.give(name, PeerUp("delta"))
        net.give("delta", PeerUp(name))
    net.pass_time(3_000 * MS)
    assert net.replicas["delta"].height > height and len(roots(net)) == 1
    assert not net.seen(PeerFaulted)


def test_more_than_f_members_replaced_at_once(net: Net) -> None:
    for name in ("omega", "psi"):
        decide(net, AdmitNode(name, signer_of(name).public_key))
        net.start(name)
    changes = (SetValidator("omega", 1), SetValidator("alpha", 0), SetValidator("psi", 1), SetValidator("delta", 0))
    decide(net, *changes, by=(*NODES, "omega"))
    advance(net, 3)
    assert voters(net) == ("beta", "gamma", "omega", "psi")
    net.stop("alpha")
    advance(net, 5, "beta")
    net.pass_time(2_000 * MS)
    assert len(roots(net)) == 1 and not net.seen(PeerFaulted)


def test_a_suspension_is_lifted_by_a_quorum(net: Net) -> None:
    from tests.ledger.test_validators import contradiction

    submit(net, "beta", contradiction(net.genesis, "delta"))
    advance(net, 3)
    assert net.replicas["alpha"].status()["suspended"] == ["delta"] and "delta" not in voters(net)
    decide(net, LiftSuspension("delta"))
    advance(net, 3)
    assert net.replicas["alpha"].status()["suspended"] == [] and voters(net) == NODES
    assert len(roots(net)) == 1


# ---- keys


def rotate(net: Net, *names: str) -> None:
    for name in names:
        net.keys[name].add(signer_of(f"{name} again"))
        submit(net, name, rotation(net.genesis, name, 10_000))


def test_more_than_f_keys_rotated_at_once(net: Net) -> None:
    rotate(net, "alpha", "beta", "gamma")
    advance(net, 6)
    for name in ("alpha", "beta", "gamma"):
        assert net.replicas["delta"].state.validators().key_of(name) == signer_of(f"{name} again").public_key
        submit(net, name, SaeRegistered(f"after-{name}", name))
    advance(net, 6, "delta")
    assert all(net.replicas["delta"].state.sae(f"after-{name}") for name in ("alpha", "beta", "gamma"))
    assert len(roots(net)) == 1 and not net.seen(PeerFaulted)


def test_what_waits_when_a_key_changes_is_signed_again(net: Net) -> None:
    """Bundles behind the rotation go out under the old key, and must not be lost when it ends."""
    net.filter = lambda source, target, payload: False
    rotate(net, "beta")
    for number in range(5):
        submit(net, "beta", SaeRegistered(f"behind-{number}", "beta"))
        net.pass_time(3 * MS)
    net.filter = lambda source, target, payload: True
    net.pass_time(5_000 * MS)
    advance(net, 3)
    assert all(net.replicas["alpha"].state.sae(f"behind-{number}") for number in range(5))
    assert len(roots(net)) == 1 and not net.seen(PeerFaulted)


def test_a_node_that_lacks_its_new_key_watches_until_it_has_it(net: Net) -> None:
    submit(net, "delta", rotation(net.genesis, "delta", 10_000))
    advance(net, 4)
    assert any(isinstance(note, Noted) and note.event == "vote_key_missing" for note in net.seen(Noted, "delta"))
    net.stop("delta")
    again = net.start("delta")
    net.pass_time(1_000 * MS)
    advance(net, 2)
    assert again.height == net.replicas["alpha"].height
    refused = net.give("delta", TransactionsSubmitted(7, (SaeRegistered("x", "delta"),)))
    assert any(isinstance(output, TransactionsRefused) for output in refused)
    net.stop("delta")
    net.keys["delta"].add(signer_of("delta again"))
    net.start("delta")
    net.pass_time(1_000 * MS)
    submit(net, "delta", SaeRegistered("back", "delta"))
    net.stop("gamma")
    for name in net.replicas:
        net.give(name, PeerDown("gamma"))
    net.pass_time(5_000 * MS)
    advance(net, 3)
    assert net.replicas["alpha"].state.sae("back") is not None, "its vote is needed now, and it is there"


def test_a_rotated_node_restarts_in_the_middle(net: Net) -> None:
    rotate(net, "alpha")
    advance(net, 1)
    for _ in range(4):
        net.stop("alpha")
        net.start("alpha")
        net.pass_time(700 * MS)
        advance(net, 1, "beta")
    net.pass_time(2_000 * MS)
    assert len(roots(net)) == 1 and not net.seen(PeerFaulted)


# ---- versions


def test_two_versions_run_together_until_the_activation_and_the_old_one_stops(net: Net) -> None:
    both = frozenset({1, 2})
    for name in ("alpha", "beta", "gamma"):
        net.stop(name)
        net.versions[name] = both
        net.start(name)
    net.pass_time(1_000 * MS)
    activation = net.replicas["alpha"].height + 105
    decide(net, ActivateVersion(2, activation))
    advance(net, 3)
    assert len(roots(net)) == 1, "before the activation both agree"
    (note,) = [n for n in net.seen(Noted, "delta") if isinstance(n, Noted) and n.event == "upgrade_needed"]
    assert dict(note.fields)["height"] == activation
    while net.replicas["alpha"].height < activation + 3:
        advance(net, 1)
    assert net.commits("alpha")[-1].block.header.version == 2
    delta = net.replicas["delta"]
    assert delta.height == activation - 1 and f"height {activation}" in delta.status()["upgrade_needed"]
    net.pass_time(20_000 * MS)
    assert delta.height == activation - 1
    net.stop("delta")
    net.versions["delta"] = both
    net.start("delta")
    net.pass_time(3_000 * MS)
    advance(net, 1)
    assert len(roots(net)) == 1, "the newer program goes on where the older stopped"
    assert not net.seen(PeerFaulted)


def test_a_node_does_not_help_to_activate_what_it_does_not_know(net: Net) -> None:
    record = GovernanceProposed("alpha", encode_action(ActivateVersion(2, 1_000)), 900)
    (refused,) = net.give("alpha", EncodedTransactionsSubmitted(3, (encode(record),)))
    assert isinstance(refused, TransactionsRefused) and "newer qnode" in refused.reason
    submit(net, "beta", record)
