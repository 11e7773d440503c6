"""SPEC 6.9: bundles go to the validators; who does not vote is told whole blocks, once each."""

from collections import Counter
from dataclasses import replace

import pytest

from ledger.catch_up import CatchUp
from ledger.genesis import GenesisParameters
from ledger.inputs import MessageReceived, TransactionsSubmitted
from ledger.messages import BlocksMessage, BlocksWanted, BundleMessage, decode, encode
from ledger.outputs import PeerFaulted, SendMessage
from ledger.transactions import SaeRegistered
from tests.ledger.cluster import MS, Net, make_genesis

NAMES = tuple(f"n{i:02}" for i in range(14))
VOTERS = 9
SPREAD_NS = 400 * MS


def make_net(**settings: int) -> Net:
    """Fourteen in a full mesh, of whom nine vote, and who know of each other who is connected to whom."""
    genesis = replace(make_genesis(NAMES), parameters=GenesisParameters(committee_max=VOTERS, epoch_heights=1_000))
    net = Net(genesis, NAMES, anti_entropy_ns=10_000 * MS, **settings)
    net.pass_time(30_000 * MS)
    record(net, NAMES[0])
    net.pass_time(1_000 * MS)
    assert len(heights(net)) == 1
    net.outputs.clear()
    return net


def record(net: Net, node: str) -> None:
    net.give(node, TransactionsSubmitted(1, (SaeRegistered(f"sae-{net.now_ns}", node),)))


def heights(net: Net) -> set[int]:
    return {replica.height for replica in net.replicas.values()}


def voters(net: Net) -> list[str]:
    return list(net.replicas[NAMES[0]].state.validators().node_ids)


def followers(net: Net) -> list[str]:
    return [name for name in NAMES if name not in voters(net)]


def sent(net: Net, kind: type) -> Counter[tuple[str, str]]:
    """How many messages of a kind each sent to each."""
    return Counter(
        (node, output.peer)
        for node, output in net.outputs
        if isinstance(output, SendMessage) and isinstance(decode(output.payload), kind)
    )


def test_a_followers_bundle_goes_to_two_hubs_and_every_follower_is_told_one_whole_block() -> None:
    net = make_net()
    voting, following, before = voters(net), followers(net), max(heights(net))
    record(net, following[0])
    assert heights(net) == {before + 1}, "no timer passed"
    bundles = sent(net, BundleMessage)
    assert sum(source == following[0] for source, _ in bundles) == 2
    assert all(target in voting for _, target in bundles)
    assert max(bundles.values()) == 1
    assert Counter(target for _, target in bundles.elements()).most_common(1)[0][1] <= 2
    told = sent(net, BlocksMessage)
    assert Counter(target for _, target in told.elements()) == dict.fromkeys(following, 1)
    assert {source for source, _ in told} <= set(voting)


def test_a_bundle_whose_two_hubs_keep_it_to_themselves_is_committed_all_the_same() -> None:
    net = make_net()
    source, silent = followers(net)[0], set[str]()

    def passes(sender: str, target: str, payload: bytes) -> bool:
        if isinstance(decode(payload), BundleMessage) and sender == source and len(silent) < 2:
            silent.add(target)
        return not (isinstance(decode(payload), BundleMessage) and silent & {sender, target})

    sequence = net.replicas[source].state.node(source)
    net.filter = passes
    record(net, source)
    assert len(silent) == 2
    net.pass_time(60_000 * MS)
    committed = net.replicas[source].state.node(source)
    assert sequence is not None and committed is not None
    assert committed.sequence == sequence.sequence + 1


def test_followers_take_turns_with_their_tellers_and_the_leader_tells_none() -> None:
    net = make_net()
    tellers = set()
    for _ in range(4):
        net.outputs.clear()
        leader = net.replicas[NAMES[0]].consensus.leader(0)
        record(net, voters(net)[0])
        sources = {source for source, _ in sent(net, BlocksMessage)}
        assert leader not in sources
        tellers |= sources
    assert len(tellers) > 4


def test_a_follower_whose_teller_is_silent_learns_the_block_from_statuses() -> None:
    net = make_net()
    victim, before = followers(net)[0], max(heights(net))
    net.filter = lambda source, target, payload: target != victim or not isinstance(decode(payload), BlocksMessage)
    record(net, voters(net)[0])
    assert net.replicas[victim].height == before
    net.filter = lambda source, target, payload: True
    net.pass_time(15_000 * MS)
    assert net.replicas[victim].height > before
    assert not net.seen(PeerFaulted)


def test_a_follower_asks_for_the_newest_block_only_when_its_neighbours_had_time_to_tell_it() -> None:
    net = make_net(decision_spread_ns=SPREAD_NS)
    victim, before = followers(net)[0], max(heights(net))
    leader = net.replicas[victim].consensus.leader(0)
    net.filter = lambda source, target, payload: target != victim or not isinstance(decode(payload), BlocksMessage)
    record(net, leader)
    assert net.replicas[leader].height == before + 1
    net.outputs.clear()
    net.give(victim, MessageReceived(leader, encode(net.replicas[leader]._sync.status())))
    assert not sent(net, BlocksWanted)
    net.pass_time(SPREAD_NS - 10 * MS)
    assert not sent(net, BlocksWanted)
    net.pass_time(20 * MS)
    assert sent(net, BlocksWanted)[victim, leader] == 1
    assert net.replicas[victim].height == before


def test_a_told_block_is_no_answer_to_a_question_for_others() -> None:
    net = make_net()
    victim, before = followers(net)[0], max(heights(net))
    net.filter = lambda source, target, payload: victim not in (source, target)
    blocks = []
    for height in range(before + 1, before + 5):
        record(net, voters(net)[0])
        net.pass_time(50 * MS)
        row = net.replicas[voters(net)[0]]._core.chain.stored_block(height)
        assert row is not None
        blocks.append((row.block, row.certificate))
    teller = voters(net)[1]
    net.outputs.clear()
    for block in blocks[2:]:
        net.give(victim, MessageReceived(teller, encode(BlocksMessage((block,)))))
        assert sent(net, BlocksWanted)[victim, teller] == 1, "it is asked for what is missing, once"
    net.give(victim, MessageReceived(teller, encode(BlocksMessage(tuple(blocks[:3])))))
    assert net.replicas[victim].height == before + 3
    assert sent(net, BlocksWanted)[victim, teller] == 2


@pytest.mark.parametrize(("height", "expected"), [(6, True), (7, True), (8, False)])
def test_the_next_two_blocks_may_come_from_anybody(height: int, expected: bool) -> None:
    assert CatchUp(1_000).expects("a", height, 5) == expected
