"""SPEC 3 to 7 on whole replicas with real signatures: commits, faults of peers, restarts, clocks, catch-up."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.bundle import make_bundle
from ledger.chain import CorruptLedger
from ledger.encoding import integer_key, pack
from ledger.identity import OwnKeys
from ledger.inputs import (
    EncodedTransactionsSubmitted,
    MessageReceived,
    PeerDown,
    PeerUp,
    TransactionsSubmitted,
)
from ledger.messages import BundleMessage, BundlesWanted, Committed, ProposalMessage, StatementMessage, decode, encode
from ledger.outputs import (
    Noted,
    PeerFaulted,
    SendMessage,
    Store,
    TransactionsAdmitted,
    TransactionsRefused,
)
from ledger.replica import Replica, ReplicaSettings
from ledger.signatures import Ed25519Verifier
from ledger.state import State
from ledger.transactions import EquivocationProven, SaeRegistered
from ledger.transactions import encode as encode_transaction
from ledger.votes import FRESH, NO_DIGEST, Kind, Statement, statement_bytes
from tests.ledger.cluster import MS, NODES, WALL_NS, Net, make_genesis, make_key_block, signer_of


@pytest.fixture
def net() -> Net:
    return Net(make_genesis())


def register(net: Net, node: str, name: str, token: int = 1) -> None:
    net.give(node, TransactionsSubmitted(token, (SaeRegistered(name, node),)))


def statement(net: Net, kind: Kind, signer: str, block: bytes = NO_DIGEST, view: int = 0, height: int = 0) -> Statement:
    replica = net.replicas["alpha"]
    height = height or replica.height + 1
    says = (kind, height, view, block, FRESH)
    message = statement_bytes(net.genesis.digest, replica.state.validators().digest, *says)
    return Statement(*says, signer, signer_of(signer).sign(message))


def test_a_transaction_is_committed_by_all_at_once(net: Net) -> None:
    register(net, "alpha", "new")
    assert {replica.height for replica in net.replicas.values()} == {1}
    assert len({replica.state.root for replica in net.replicas.values()}) == 1
    for name in NODES:
        (commit,) = net.commits(name)
        assert [receipt.ok for receipt in commit.receipts] == [True] and commit.certificate.view == 0
    assert net.seen(TransactionsAdmitted, "alpha") == [TransactionsAdmitted(1)]
    assert not net.seen(PeerFaulted)


def test_each_sender_keeps_its_order_under_load(net: Net) -> None:
    for round_number in range(20):
        for name in NODES:
            register(net, name, f"{name}-{round_number}", round_number)
        net.pass_time(1 * MS)
    net.pass_time(50 * MS)
    assert net.replicas["alpha"].state.counts()["saes"] == 4 + 80
    assert not net.seen(PeerFaulted)


def test_an_idle_chain_beats_once_per_heartbeat(net: Net) -> None:
    net.pass_time(16_000 * MS)
    assert net.replicas["alpha"].height == 3


def test_a_dead_leader_is_passed_over(net: Net) -> None:
    leader = net.replicas["alpha"].status()["leader"]
    net.stop(leader)
    sender = next(name for name in NODES if name != leader)
    register(net, sender, "new")
    assert net.replicas[sender].height == 0
    net.pass_time(400 * MS)
    assert net.replicas[sender].height == 1 and net.commits(sender)[0].certificate.view == 1


def test_a_leader_whose_connection_broke_is_passed_over_sooner(net: Net) -> None:
    leader = net.replicas["alpha"].status()["leader"]
    net.stop(leader)
    for name in list(net.replicas):
        net.give(name, PeerDown(leader))
    sender = next(iter(net.replicas))
    register(net, sender, "new")
    net.pass_time(70 * MS)
    assert net.replicas[sender].height == 1


def test_nothing_commits_without_a_quorum(net: Net) -> None:
    net.stop("gamma")
    net.stop("delta")
    register(net, "alpha", "new")
    net.pass_time(60_000 * MS)
    assert net.replicas["alpha"].height == 0


def test_a_restarted_node_resumes_and_catches_up(net: Net) -> None:
    for count in range(3):
        register(net, "alpha", f"before-{count}", count)
        net.pass_time(5 * MS)
    net.stop("delta")
    for name in list(net.replicas):
        net.give(name, PeerDown("delta"))
    for count in range(8):
        register(net, "alpha", f"during-{count}", count)
        net.pass_time(500 * MS)
    height = net.replicas["alpha"].height
    again = net.start("delta")
    net.pass_time(2_000 * MS)
    assert again.height >= height
    assert again.state.root == net.replicas["alpha"].state.root
    assert not net.seen(PeerFaulted)


def test_admitted_transactions_survive_a_crash_of_their_node(net: Net) -> None:
    net.filter = lambda source, target, payload: source != "alpha"
    register(net, "alpha", "new")
    assert net.seen(TransactionsAdmitted, "alpha")
    net.stop("alpha")
    net.filter = lambda source, target, payload: True
    net.start("alpha")
    net.pass_time(2_000 * MS)
    assert net.replicas["beta"].state.sae("new") is not None


def test_a_wiped_validator_does_not_contradict_what_it_said(net: Net) -> None:
    silenced = {"beta", "gamma", "delta"}  # their votes are lost, so that no block of this height is ever notarized

    def passes(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        vote = isinstance(message, StatementMessage) and message.statement.kind is Kind.VOTE
        return not (isinstance(message, StatementMessage) and vote and message.statement.signer in silenced)

    net.filter = passes
    register(net, "alpha", "new")
    net.pass_time(1_000 * MS)
    said = dict(net.disks["alpha"]["ledger.statement"])
    assert said and net.replicas["alpha"].height == 0
    net.stop("alpha")
    net.disks["alpha"] = {}
    net.start("alpha")
    net.pass_time(1_000 * MS)
    again = net.disks["alpha"]["ledger.statement"]
    assert any(isinstance(note, Noted) and note.event == "statement_recalled" for note in net.seen(Noted, "alpha"))
    assert all(again[key] == value for key, value in said.items() if key in again)
    silenced.clear()
    net.pass_time(10_000 * MS)
    assert net.replicas["alpha"].height >= 1
    assert not any(replica.evidence for replica in net.replicas.values())


def test_who_voted_for_a_block_can_give_its_bundles_after_a_restart(net: Net) -> None:
    """The body is in the journal before the vote; the bundles are nowhere else, and a neighbour may lack just them."""
    sender, voter, late, _ = NODES
    net.filter = lambda source, target, payload: not isinstance(decode(payload), StatementMessage)
    register(net, sender, "new")
    (body,) = net.replicas[voter].consensus.bodies.values()
    (bundle,) = body.bundles
    for name in NODES:
        net.stop(name)
    net.start(voter)
    net.give(voter, PeerUp(late))
    net.outputs.clear()
    net.give(voter, MessageReceived(late, encode(BundlesWanted((bundle.digest, bytes(32))))))
    sent = [decode(output.payload) for output in net.seen(SendMessage, voter) if isinstance(output, SendMessage)]
    assert sent == [BundleMessage(bundle.encoded)]


def test_certificates_that_came_with_a_proposal_are_passed_on_only_if_proven(net: Net) -> None:
    """Who makes a proposal can put anything beside it: its bearers answer for what they checked themselves."""
    leaders = [net.replicas["alpha"].consensus.leader(view) for view in (0, 1)]
    first, second = (name for name in NODES if name not in leaders)
    net.stop(leaders[0])
    sent: list[ProposalMessage] = []

    def passes(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        if isinstance(message, ProposalMessage) and source == leaders[1]:
            sent.append(message)
            return False
        return True

    net.filter = passes
    register(net, first, "new")
    net.pass_time(400 * MS)
    proposal = sent[0]
    assert proposal.certificates, "a proposal of view 1 travels with the nullification of view 0"
    (good,) = proposal.certificates
    spoiled = replace(good, signatures=(bytes(64),) * len(good.signatures))
    relayed: list[ProposalMessage] = []

    def listens(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        if isinstance(message, ProposalMessage) and source == first:
            relayed.append(message)
        return True

    net.filter = listens
    net.give(first, PeerDown(second))
    net.give(first, PeerUp(second))
    net.inject(first, leaders[1], encode(replace(proposal, certificates=(spoiled,))))
    net.settle()
    assert relayed and all(certificate == good for message in relayed for certificate in message.certificates)
    assert not net.seen(PeerFaulted, second)


def test_a_wiped_node_gets_new_numbers_for_its_bundles(net: Net) -> None:
    register(net, "alpha", "first")
    net.pass_time(5 * MS)
    net.stop("alpha")
    net.disks["alpha"] = {}
    heard = net.filter
    net.filter = lambda source, target, payload: target != "alpha"
    net.start("alpha")
    register(net, "alpha", "second", 2)
    net.filter = heard
    net.pass_time(3_000 * MS)
    assert net.replicas["beta"].state.sae("second") is not None
    node = net.replicas["beta"].state.node("alpha")
    assert node is not None and node.sequence == 2


@pytest.mark.parametrize("at", [-1, 0, 1, 40])
def test_a_damaged_store_is_a_clear_refusal(net: Net, at: int) -> None:
    register(net, "alpha", "new")
    row = bytearray(net.disks["alpha"]["ledger.block"][integer_key(1)])
    row[at] ^= 1
    net.disks["alpha"]["ledger.block"][integer_key(1)] = bytes(row)
    net.stop("alpha")
    with pytest.raises(CorruptLedger, match="move the node's data directory away"):
        net.start("alpha")


def test_a_hole_in_the_store_is_a_clear_refusal(net: Net) -> None:
    for count in range(3):
        register(net, "alpha", f"new-{count}", count)
        net.pass_time(5 * MS)
    del net.disks["alpha"]["ledger.block"][integer_key(2)]
    net.stop("alpha")
    with pytest.raises(CorruptLedger, match="height 2"):
        net.start("alpha")


def test_the_wrong_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="qnode init"):
        Replica(
            genesis=make_genesis(),
            keys=OwnKeys("alpha", (signer_of("beta"),)),
            verifier=Ed25519Verifier(),
            jitter=random.Random(0),
            stored={},
        )


# ---- clocks


def test_a_clock_far_off_is_reported_and_does_not_halt_the_chain() -> None:
    net = Net(make_genesis(), NODES[:3])
    net.start("delta", wall_offset_ns=WALL_NS + 3_600_000 * MS)
    for count in range(8):
        register(net, "alpha", f"new-{count}", count)
        net.pass_time(1_500 * MS)
    assert net.replicas["alpha"].state.counts()["saes"] == 12
    notes = [note for note in net.seen(Noted, "delta") if isinstance(note, Noted) and note.event == "clock_off"]
    assert notes and "NTP" in str(notes[0].fields)
    refused = [note for note in net.seen(Noted, "alpha") if isinstance(note, Noted) and note.event == "block_refused"]
    assert refused, "blocks stamped by the wrong clock are not voted for"


# ---- submissions


def test_submissions_that_cannot_be_taken_say_why(net: Net) -> None:
    net.stop("gamma")
    net.stop("delta")
    net.give("alpha", TransactionsSubmitted(1, ()))
    net.give("alpha", EncodedTransactionsSubmitted(2, (b"\x00",)))
    net.give("alpha", EncodedTransactionsSubmitted(3, (pack((4, "a" * 5000, "b")),)))
    refusals = [output.reason for output in net.seen(TransactionsRefused) if isinstance(output, TransactionsRefused)]
    assert len(refusals) == 3 and "at least one" in refusals[0] and "malformed" in refusals[1]
    for token in range(400):
        register(net, "alpha", f"n{token}", token)
        net.pass_time(3 * MS)
    assert "retry" in str(net.seen(TransactionsRefused)[-1])
    assert len(net.seen(TransactionsAdmitted)) == 256


# ---- peers' faults


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_payloads_never_raise(payload: bytes) -> None:
    net = _SHARED
    net.give("alpha", MessageReceived("beta", payload))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_payloads_never_raise_and_never_split(data: st.DataObject) -> None:
    payloads = _RECORDED
    payload = bytearray(data.draw(st.sampled_from(payloads)))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    _SHARED.give("alpha", MessageReceived("beta", bytes(payload)))
    assert _SHARED.replicas["alpha"].height == 1


def _record() -> tuple[Net, list[bytes]]:
    net = Net(make_genesis())
    payloads: list[bytes] = []
    net.filter = lambda source, target, payload: payloads.append(payload) is None
    register(net, "alpha", "new")
    kept = {decode(payload).__class__: payload for payload in payloads}
    return net, list(kept.values())


_SHARED, _RECORDED = _record()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda net: StatementMessage(statement(net, Kind.PROPOSE, "beta", bytes(32))), "PROPOSE without"),
        (lambda net: StatementMessage(statement(net, Kind.VOTE, "omega", bytes(32))), "not a validator"),
        (
            lambda net: StatementMessage(Statement(Kind.VOTE, 1, 0, bytes(32), FRESH, "gamma", bytes(64))),
            "wrong signature",
        ),
        (
            lambda net: BundleMessage(make_bundle(signer_of("x"), "test", bytes(32), "beta", 1, (b"b",)).encoded),
            "wrong signature",
        ),
        (lambda net: BundleMessage(b"\x90"), "malformed"),
    ],
)
def test_faults_are_charged_to_the_neighbour(net: Net, make: object, reason: str) -> None:
    outputs = net.give("alpha", MessageReceived("beta", encode(make(net))))  # type: ignore[operator]
    faults = [output for output in outputs if isinstance(output, PeerFaulted)]
    assert len(faults) == 1 and faults[0].peer == "beta" and reason in faults[0].reason


def test_equivocation_is_kept_as_evidence_across_restarts(net: Net) -> None:
    one, other = (statement(net, Kind.VOTE, "beta", bytes([tag]) * 32) for tag in (1, 2))
    for each in (one, other):
        net.give("alpha", MessageReceived("beta", encode(StatementMessage(each))))
    assert net.replicas["alpha"].status()["evidence"] == 1
    assert any(isinstance(note, Noted) and note.event == "equivocation" for note in net.seen(Noted, "alpha"))
    net.stop("alpha")
    (pair,) = net.start("alpha").evidence.values()
    assert (pair.one, pair.other) == (one, other)


def test_equivocation_is_recorded_on_the_chain_once_and_only_if_it_is_one(net: Net) -> None:
    one, other = (statement(net, Kind.VOTE, "beta", bytes([tag]) * 32) for tag in (1, 2))
    for name in ("alpha", "gamma", "delta"):
        for each in (one, other):
            net.give(name, MessageReceived("beta", encode(StatementMessage(each))))
    net.pass_time(1_000 * MS)
    state = net.replicas["beta"].state
    assert state.equivocation("beta", 1) is not None and state.counts()["equivocations"] == 1
    forged = Statement(Kind.VOTE, 1, 3, bytes(32), FRESH, "gamma", bytes(64))
    set_digest = State(net.genesis).validators().digest

    def proven(one: bytes, other: bytes) -> EquivocationProven:
        return EquivocationProven(one, other, set_digest)

    reports = (
        (proven(one.encoded, one.encoded), "equivocation.statements"),
        (proven(b"x", other.encoded), "equivocation.statements"),
        (proven(one.encoded, other.encoded), "equivocation.known"),
        (proven(forged.encoded, replace(forged, block=b"1" * 32).encoded), "equivocation.signature"),
        (proven(*(replace(s, height=99).encoded for s in (one, other))), "equivocation.signer"),
    )
    for token, (report, rule) in enumerate(reports):
        net.outputs.clear()
        net.give("delta", TransactionsSubmitted(token, (report,)))
        net.pass_time(5 * MS)
        assert net.commits("delta")[-1].receipts[-1].reason.startswith(rule), rule


def test_nullify_with_finalize_is_evidence_and_a_repetition_is_not(net: Net) -> None:
    nullify = statement(net, Kind.NULLIFY, "beta")
    for _ in range(3):
        net.give("alpha", MessageReceived("gamma", encode(StatementMessage(nullify))))
    assert not net.replicas["alpha"].evidence
    finalize = statement(net, Kind.FINALIZE, "beta", bytes(32))
    net.give("alpha", MessageReceived("gamma", encode(StatementMessage(finalize))))
    assert len(net.replicas["alpha"].evidence) == 1


# ---- gossip over sparse overlays


@pytest.mark.parametrize(
    "edges", [[(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3), (3, 0)], [(0, 1), (0, 2), (0, 3)]]
)
def test_a_connected_overlay_is_enough(edges: list[tuple[int, int]]) -> None:
    names = list(NODES)
    joined = {frozenset((names[a], names[b])) for a, b in edges}
    net = Net(make_genesis(), ())
    net.filter = lambda source, target, payload: frozenset((source, target)) in joined
    for name in names:
        net.replicas[name] = Replica(
            genesis=net.genesis,
            keys=OwnKeys(name, (signer_of(name),)),
            verifier=Ed25519Verifier(),
            settings=ReplicaSettings(),
            jitter=random.Random(name),
            stored={},
            wall_offset_ns=WALL_NS,
        )
        net.disks[name] = {}
    for edge in sorted(sorted(edge) for edge in joined):
        net.give(edge[0], PeerUp(edge[1]))
        net.give(edge[1], PeerUp(edge[0]))
    register(net, "alpha", "new")
    register(net, "gamma", "other", 2)
    net.pass_time(10 * MS)
    assert {replica.state.counts()["saes"] for replica in net.replicas.values()} == {6}


def test_a_full_mesh_relays_nothing(net: Net) -> None:
    net.pass_time(2_000 * MS)
    net.outputs.clear()
    register(net, "alpha", "new")
    sent = [output for _, output in net.outputs if isinstance(output, SendMessage)]
    bundles = [message for message in sent if isinstance(decode(message.payload), BundleMessage)]
    assert len(bundles) == 3
    assert len(sent) == 3 + 3 + 4 * 3 + 4 * 3, "a bundle, a proposal, four votes and four finalizes, to three each"


def test_own_statements_wait_for_the_disk_and_relayed_ones_do_not(net: Net) -> None:
    register(net, "alpha", "new")
    own = relayed = 0
    for name, output in net.outputs:
        message = decode(output.payload) if isinstance(output, SendMessage) else None
        if isinstance(output, SendMessage) and isinstance(message, StatementMessage):
            mine = message.statement.signer == name
            own, relayed = own + mine, relayed + (not mine)
            assert output.urgent and output.after_sync == mine
    assert own == 4 * 2 * 3 and relayed > 0
    assert any(isinstance(output, Store) and output.table == "ledger.signer" for _, output in net.outputs)


def test_the_documents_for_operators_are_plain(net: Net) -> None:
    import json

    net.give("alpha", TransactionsSubmitted(1, (make_key_block(net.genesis), SaeRegistered("x", "beta"))))
    (document,) = net.replicas["beta"].blocks(0, 10)
    text = json.dumps(document) + json.dumps(net.replicas["beta"].status())
    assert "sae.sender" in text and '"kind": "KeyBlockRecorded"' in text
    assert [entry["ok"] for entry in document["transactions"]] == [True, False]
    assert net.replicas["beta"].blocks(5, 10) == []
    assert encode_transaction(SaeRegistered("x", "beta"))


def test_clocks_set_back_do_not_halt_the_chain(net: Net) -> None:
    register(net, "alpha", "before")
    for replica in net.replicas.values():
        replica.wall_offset_ns -= 60_000 * MS
    for count in range(3):
        register(net, "alpha", f"after-{count}", count)
        net.pass_time(5 * MS)
    assert net.replicas["alpha"].height == 4
    assert all(commit.certificate.view == 0 for commit in net.commits("alpha"))


def decided_without_delta(net: Net) -> Committed:
    """Let the three others commit a block of which delta heard nothing, and return what they tell of it."""
    net.filter = lambda source, target, payload: "delta" not in (source, target)
    register(net, "alpha", "new")
    (commit,) = net.commits("alpha")
    assert net.replicas["delta"].height == 0
    net.filter = lambda source, target, payload: True
    return Committed(commit.block.header, tuple(x.digest for x in commit.block.bundles), commit.certificate)


def test_a_decision_alone_is_enough_to_commit(net: Net) -> None:
    committed = decided_without_delta(net)
    net.inject("delta", "beta", encode(committed))  # and beta, who told it, has the bundle that delta lacks
    net.settle()
    assert net.replicas["delta"].height == 1 and not net.seen(PeerFaulted)
    assert net.replicas["delta"].state.root == net.replicas["alpha"].state.root


def test_a_decision_that_is_none_is_its_tellers_fault(net: Net) -> None:
    committed = decided_without_delta(net)
    certificate = replace(committed.certificate, signatures=(bytes(64),) * len(committed.certificate.signatures))
    for wrong in (replace(committed, bundle_digests=()), replace(committed, certificate=certificate)):
        net.inject("delta", "beta", encode(wrong))
        net.settle()
    assert [fault.peer for fault in net.seen(PeerFaulted, "delta")] == ["beta", "beta"]  # type: ignore[attr-defined]
    assert net.replicas["delta"].height == 0
