"""SPEC 6.8: the leader collects a large committee's votes; nothing rests on him."""

from collections import Counter

import pytest

import ledger.reception
from ledger.genesis import Genesis
from ledger.inputs import MessageReceived, PeerDown, TransactionsSubmitted
from ledger.mempool import MempoolSettings
from ledger.messages import CertificatesMessage, Committed, StatementMessage, decode, encode
from ledger.outputs import PeerFaulted, SendMessage
from ledger.replica import ReplicaSettings
from ledger.transactions import SaeRegistered
from ledger.votes import FRESH, Kind, Statement, statement_bytes
from tests.ledger.cluster import MS, Net, make_genesis, signer_of

NAMES = tuple(f"n{i}" for i in range(9))
T0_NS = ReplicaSettings().view_timeout_min_ns


@pytest.fixture
def net() -> Net:
    """Nine that vote, a full mesh, and know of each other who is connected to whom."""
    net = Net(make_genesis(NAMES), NAMES)
    net.pass_time(5_000 * MS)
    record(net)
    net.pass_time(100 * MS)
    net.outputs.clear()
    return net


def record(net: Net, node: str = "n0") -> None:
    net.give(node, TransactionsSubmitted(1, (SaeRegistered(f"sae-{net.now_ns}", node),)))


def leader_of(net: Net) -> str:
    return net.replicas["n0"].consensus.leader(0)


def votes_sent(net: Net) -> Counter[tuple[str, Kind]]:
    """How often each node sent each kind of statement."""
    found: Counter[tuple[str, Kind]] = Counter()
    for node, output in net.outputs:
        if isinstance(output, SendMessage):
            message = decode(output.payload)
            if isinstance(message, StatementMessage):
                found[node, message.statement.kind] += 1
    return found


def heights(net: Net) -> set[int]:
    return {replica.height for replica in net.replicas.values()}


def test_each_vote_travels_once_and_only_to_the_leader(net: Net) -> None:
    leader, before = leader_of(net), net.replicas["n0"].height
    record(net)
    assert heights(net) == {before + 1}, "and nothing waited for a timer"
    others = [name for name in NAMES if name != leader]
    assert votes_sent(net) == {(name, kind): 1 for name in others for kind in (Kind.VOTE, Kind.FINALIZE)}
    told = Counter(node for node, output in net.outputs if isinstance(output, SendMessage) and _is_certified(output))
    assert told == {leader: 2 * len(others)}


def _is_certified(output: SendMessage) -> bool:
    return isinstance(decode(output.payload), CertificatesMessage | Committed)


def test_a_small_committee_tells_votes_to_all() -> None:
    net = Net(make_genesis())
    net.pass_time(5_000 * MS)
    net.outputs.clear()
    record(net, "alpha")
    assert votes_sent(net) == {(name, kind): 3 for name in net.replicas for kind in (Kind.VOTE, Kind.FINALIZE)}


@pytest.mark.parametrize("kept", [CertificatesMessage, Committed])
def test_a_leader_that_keeps_certificates_to_himself_delays_by_a_third_of_the_view(net: Net, kept: type) -> None:
    leader, before, began_ns = leader_of(net), net.replicas["n0"].height, net.now_ns
    net.filter = lambda source, target, payload: source != leader or not isinstance(decode(payload), kept)
    record(net)
    others = {name: replica for name, replica in net.replicas.items() if name != leader}
    assert {replica.height for replica in others.values()} == {before}
    net.pass_time(T0_NS // 3)
    assert net.now_ns - began_ns < T0_NS
    assert {replica.height for replica in others.values()} == {before + 1}
    assert {commit.certificate.view for name in others for commit in net.commits(name)} == {0}


def test_votes_for_a_leader_that_is_lost_are_spread_at_once(net: Net) -> None:
    leader, before = leader_of(net), net.replicas["n0"].height
    net.filter = lambda source, target, payload: (
        leader not in (source, target)
        or not isinstance(decode(payload), StatementMessage | CertificatesMessage | Committed)
    )
    record(net)
    net.stop(leader)
    for name in net.replicas:
        net.give(name, PeerDown(leader))
    assert heights(net) == {before + 1}, "no timer passed"


def test_who_is_not_connected_to_the_leader_votes_to_all_and_is_told_by_others(net: Net) -> None:
    before = net.replicas["n0"].height
    leader = leader_of(net)
    lonely = next(name for name in NAMES if name not in (leader, "n0"))
    net.filter = lambda source, target, payload: {source, target} != {leader, lonely}
    net.give(leader, PeerDown(lonely))
    net.give(lonely, PeerDown(leader))
    assert leader_of(net) == leader
    for _ in range(2):
        net.pass_time(1_000 * MS)
    record(net)
    assert net.replicas[lonely].height == before + 1, "no timer passed"
    assert len({replica.state.root for replica in net.replicas.values()}) == 1


def test_votes_of_the_next_views_go_to_all(net: Net) -> None:
    leader, before = leader_of(net), net.replicas["n0"].height
    net.stop(leader)
    net.outputs.clear()
    record(net, "n0" if leader != "n0" else "n1")
    net.pass_time(3 * T0_NS)
    assert heights(net) == {before + 1}
    assert min(votes_sent(net)[name, Kind.FINALIZE] for name in net.replicas) >= len(net.replicas) - 1


def test_followers_are_told_at_different_moments_and_of_one_decision_at_a_time() -> None:
    spread_ns = 400 * MS
    genesis = make_genesis()
    followers = [f"f{i}" for i in range(6)]
    net = Net(
        genesis, (*genesis_voters(genesis), *followers), decision_spread_ns=spread_ns, anti_entropy_ns=60_000 * MS
    )
    net.pass_time(90_000 * MS)
    before, moments = net.replicas["alpha"].height, {}
    record(net, "alpha")
    while len(moments) < len(followers) and net.now_ns < 91_000 * MS:
        moments |= {
            name: net.now_ns for name in followers if name not in moments and net.replicas[name].height > before
        }
        net.pass_time(10 * MS)
    assert all(net.replicas[name].height == before + 1 for name in net.replicas)
    assert len(set(moments.values())) > 3, "not all at once"
    record(net, "alpha")
    record(net, "beta")
    net.pass_time(100 * MS)
    assert {replica.height for replica in net.replicas.values()} >= {before + 2}
    assert min(replica.height for replica in net.replicas.values()) >= before + 1


def genesis_voters(genesis: Genesis) -> tuple[str, ...]:
    return tuple(node.node_id for node in genesis.nodes)


def test_a_decision_that_many_tell_is_read_once(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    record(net)
    sent = [output for _, output in net.outputs if isinstance(output, SendMessage) and _is_decision(output.payload)]
    payload, receiver = sent[0].payload, sent[0].peer
    read: list[bytes] = []
    real = ledger.reception.decode

    def counted(data: bytes) -> object:
        read.append(data)
        return real(data)

    monkeypatch.setattr(ledger.reception, "decode", counted)
    for name in NAMES:
        if name != receiver:
            net.give(receiver, MessageReceived(name, payload))
    assert payload not in read and not net.seen(PeerFaulted)


def _is_decision(payload: bytes) -> bool:
    return isinstance(decode(payload), Committed)


def test_a_leader_collects_for_an_interval_unless_a_block_is_full() -> None:
    interval_ns = 2_000 * MS
    small = MempoolSettings(block_fill_transactions=8)
    net = Net(make_genesis(), block_interval_ns=interval_ns, mempool=small)
    record(net, "alpha")
    net.pass_time(interval_ns - 100 * MS)
    assert heights(net) == {0}
    net.pass_time(200 * MS)
    assert heights(net) == {1}
    many = tuple(SaeRegistered(f"sae-{n}", "beta") for n in range(8))
    net.give("beta", TransactionsSubmitted(2, many))
    net.pass_time(10 * MS)
    assert heights(net) == {2}, "a full block waits for nothing"


def test_who_tells_the_leader_one_thing_and_others_another_is_found_by_the_certificate(net: Net) -> None:
    leader, replica = leader_of(net), net.replicas["n0"]
    witness, liar = [name for name in NAMES if name != leader][-2:]
    says = (Kind.VOTE, replica.height + 1, 0, bytes(range(32)), FRESH)
    message = statement_bytes(net.genesis.digest, replica.state.validators().digest, *says)
    lie = Statement(*says, liar, signer_of(liar).sign(message))
    others = {name for name in NAMES if name not in (leader, witness, liar)}
    silent = set(sorted(others)[:2])  # so that the liar's vote is one of the seven that the leader needs
    net.filter = lambda source, target, payload: (
        source not in silent or not isinstance(decode(payload), StatementMessage)
    )
    net.give(witness, MessageReceived(liar, encode(StatementMessage(lie))))
    assert not net.replicas[witness].evidence
    record(net)
    assert [evidence.one.signer for evidence in net.replicas[witness].evidence.values()] == [liar]
    assert not any(net.replicas[name].evidence for name in NAMES if name != witness)
