"""SPEC 3.4 and 3.5: bounds, order, fairness, and this node's own way in."""

from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.block import limits_fault
from ledger.bundle import Bundle, make_bundle
from ledger.execution import bundles_fault
from ledger.genesis import GenesisParameters
from ledger.inputs import TransactionsSubmitted
from ledger.mempool import Mempool, MempoolSettings
from ledger.messages import BundleMessage, decode, encode
from ledger.outputs import PeerFaulted
from ledger.state import State
from ledger.submissions import Submissions
from ledger.transactions import SaeRegistered
from ledger.transactions import encode as encode_transaction
from tests.ledger.cluster import MS, NODES, Net, make_genesis, signer_of

SENDERS = tuple(f"node-{number}" for number in range(7))

LIMITS = GenesisParameters(bundle_transactions_max=4, bundle_size_bytes_max=4096, block_transactions_max=8)


@lru_cache(maxsize=4096)  # bundles never change, and to sign one takes most of a test's time
def bundle(sender: str, sequence: int, *bodies: bytes) -> Bundle:
    return make_bundle(signer_of(sender), "test", bytes(32), sender, sequence, bodies or (b"body",))


def make_pool(own: str = "", **bounds: int) -> Mempool:
    return Mempool(MempoolSettings(**bounds), LIMITS, len(NODES), own)


offers = st.lists(st.tuples(st.sampled_from(NODES), st.integers(1, 6), st.integers(1, 4)), max_size=25)


@given(offers)
def test_a_selection_is_always_a_valid_block_in_order(offered: list[tuple[str, int, int]]) -> None:
    state, pool = State(make_genesis()), make_pool()
    for sender, sequence, count in offered:
        pool.add(bundle(sender, sequence, *([b"body"] * count)), 0, 0)
    chosen = pool.select(state)
    assert bundles_fault(state, chosen) is None
    assert sum(len(each.transactions) for each in chosen) <= LIMITS.block_transactions_max
    assert bool(chosen) == pool.has_work(state)


def test_a_flood_of_one_sender_does_not_starve_another() -> None:
    state, pool = State(make_genesis()), make_pool()
    for sequence in range(1, 100):
        pool.add(bundle("alpha", sequence, b"1", b"2"), 0, 0)
    assert pool.add(bundle("beta", 1), 0, 0) is None
    assert "beta" in {each.sender for each in pool.select(state)}


@given(offers)
def test_no_sender_has_more_than_its_share_of_a_block(offered: list[tuple[str, int, int]]) -> None:
    limits = replace(LIMITS, sender_block_transactions_max=5, sender_block_size_bytes_max=4096)
    state, pool = State(make_genesis()), Mempool(MempoolSettings(), limits, len(NODES))
    for sender, sequence, count in offered:
        pool.add(bundle(sender, sequence, *([b"body"] * count)), 0, 0)
    chosen = pool.select(state)
    assert limits_fault(chosen, limits) is None
    for sender in NODES:
        first = pool.held(sender, 1)
        others = sum(len(each.transactions) for each in chosen if each.sender != sender)
        if first is not None and others + len(first.transactions) <= limits.block_transactions_max:
            assert any(each.sender == sender for each in chosen), "whoever waits has a part of every block with room"


def test_a_block_with_more_than_a_senders_share_is_invalid() -> None:
    limits = replace(LIMITS, sender_block_transactions_max=4)
    two = [bundle("alpha", 1, b"1", b"2"), bundle("alpha", 2, b"1", b"2")]
    assert limits_fault(two, limits) is None
    assert "share" in (limits_fault([*two, bundle("alpha", 3)], limits) or "")
    assert limits_fault([*two, bundle("beta", 1)], limits) is None
    large = replace(LIMITS, sender_block_size_bytes_max=4096)
    heavy = [bundle("alpha", n, bytes(3000)) for n in (1, 2)]
    assert "share" in (limits_fault(heavy, large) or "")


@settings(deadline=None)
@given(offers, st.integers(1, 9))
def test_a_leader_fills_its_block_to_its_own_bound_and_takes_one_bundle_at_least(
    offered: list[tuple[str, int, int]], fill: int
) -> None:
    state, pool = State(make_genesis()), make_pool(block_fill_transactions=fill)
    for sender, sequence, count in offered:
        pool.add(bundle(sender, sequence, *([b"body"] * count)), 0, 0)
    chosen = pool.select(state)
    assert sum(len(each.transactions) for each in chosen) <= max(fill, LIMITS.bundle_transactions_max)
    assert len(chosen) <= 1 or sum(len(each.transactions) for each in chosen) <= fill
    assert bool(chosen) == pool.has_work(state)


def test_bounds_and_their_reasons() -> None:
    pool = make_pool(sender_bundles_max=3)
    assert "committed" in (pool.add(bundle("alpha", 5), 5, 0) or "")
    assert "wait" in (pool.add(bundle("alpha", 9), 5, 0) or "")
    assert pool.add(bundle("alpha", 8), 5, 0) is None
    assert "waits already" in (pool.add(bundle("alpha", 8, b"other"), 5, 0) or "")
    small = make_pool(size_bytes_max=1)  # the share is never below one bundle's limit
    assert small.add(bundle("alpha", 1, *([bytes(1000)] * 3)), 0, 0) is None
    assert "share" in (small.add(bundle("alpha", 2, *([bytes(1000)] * 3)), 0, 0) or "")
    assert small.add(bundle("beta", 1, *([bytes(1000)] * 3)), 0, 0) is None


@settings(deadline=None)
@given(
    st.sets(st.sampled_from(SENDERS), min_size=1).map(sorted),
    st.integers(0, 500),
    st.data(),
)
def test_everybody_who_waits_is_in_a_block_within_two_rounds(
    waiting: list[str], height: int, data: st.DataObject
) -> None:
    """Whatever the others offer meanwhile, and though every height has another leader with a mempool of its own."""
    state = State(make_genesis(SENDERS))
    victim = data.draw(st.sampled_from(waiting))
    waited = 0
    for state.height in range(height, height + 2 * len(SENDERS)):
        pool = Mempool(MempoolSettings(), LIMITS, len(SENDERS))
        for sender in waiting:
            for sequence in range(1, 2 if sender == victim else 1 + data.draw(st.integers(1, 4))):
                pool.add(bundle(sender, sequence, *[b"body"] * 4), 0, 0)
        if victim in {each.sender for each in pool.select(state)}:
            break
        waited += 1
    assert waited < 2 * len(SENDERS)


def test_nobody_is_always_first_under_the_same_leader() -> None:
    state = State(make_genesis(SENDERS))
    first_under: dict[str, set[int]] = {}
    pool = Mempool(MempoolSettings(), LIMITS, len(SENDERS))
    for sender in SENDERS:
        pool.add(bundle(sender, 1, *[b"body"] * 4), 0, 0)
    for state.height in range(100):
        first_under.setdefault(pool.select(state)[0].sender, set()).add((state.height + 1) % len(SENDERS))
    assert all(len(leaders) == len(SENDERS) for leaders in first_under.values()) and len(first_under) == len(SENDERS)


# ---- age

arrivals = st.lists(st.tuples(st.sampled_from(NODES), st.integers(1, 6), st.integers(0, 3)), max_size=30)


@settings(deadline=None)
@given(arrivals, st.integers(1, 6))
def test_what_is_let_go_is_what_came_too_long_ago_and_never_an_own(
    offered: list[tuple[str, int, int]], age_max: int
) -> None:
    """Against a list of who came when, asked after every arrival."""
    pool, height = make_pool("alpha", age_heights_max=age_max), 0
    waiting: dict[tuple[str, int], int] = {}
    for sender, sequence, blocks in offered:
        height += blocks
        gone = [key for key, came in waiting.items() if key[0] != "alpha" and height - came > age_max]
        assert pool.let_go(height) == len(gone)
        for key in gone:
            del waiting[key]
        if pool.add(bundle(sender, sequence), 0, height) is None:
            assert (sender, sequence) not in waiting
            waiting[sender, sequence] = height
        held = {(s, n) for s in NODES for n in range(1, 7) if pool.held(s, n) is not None}
        assert held == set(waiting) and len(pool) == len(waiting)
        others = [height - came for (of, _), came in waiting.items() if of != "alpha"]
        assert pool.age_heights(height) == max(others, default=0) <= age_max
        for (of, number), came in waiting.items():
            offers = pool.to_offer(of, number, height) is not None
            assert offers == (of == "alpha" or height - came <= age_max / 2)
    assert pool.size_bytes == sum(each.size_bytes for s, n in waiting if (each := pool.held(s, n)) is not None)


def test_room_and_number_of_what_was_let_go_are_free_again() -> None:
    pool = make_pool(sender_bundles_max=4, age_heights_max=10)
    for sequence in (2, 3, 4):
        assert pool.add(bundle("beta", sequence, bytes(1000)), 0, 5) is None
    assert pool.let_go(15) == 0 and pool.let_go(16) == 3
    assert (len(pool), pool.size_bytes, pool.contiguous("beta", 0)) == (0, 0, 0)
    for sequence in (1, 2, 3, 4):
        assert pool.add(bundle("beta", sequence, bytes(1000)), 0, 16) is None


def test_forgetting_gives_the_room_back() -> None:
    pool = make_pool()
    for sequence in (1, 2, 3):
        pool.add(bundle("alpha", sequence), 0, 0)
    assert pool.contiguous("alpha", 0) == 3
    pool.forget("alpha", 2)
    assert (len(pool), pool.contiguous("alpha", 2)) == (1, 3)
    pool.forget("alpha", 3)
    assert (len(pool), pool.size_bytes, list(pool.senders())) == (0, 0, [])


# ---- own submissions


def test_the_first_goes_at_once_and_the_rest_share() -> None:
    submissions = Submissions(LIMITS, 100)
    submissions.enqueue(1, (b"a",))
    batch = submissions.take(1_000)
    assert batch is not None and (batch.transactions, batch.tokens) == ((b"a",), (1,))
    submissions.enqueue(2, (b"b",))
    submissions.enqueue(3, (b"c", b"d"))
    assert submissions.take(1_050) is None and submissions.deadline_ns() == 1_100
    batch = submissions.take(1_100)
    assert batch is not None and (batch.transactions, batch.tokens) == ((b"b", b"c", b"d"), (2, 3))
    assert submissions.deadline_ns() is None


def test_the_patient_wait_for_each_other_and_go_with_whom_has_no_patience() -> None:
    submissions = Submissions(LIMITS, 100)
    submissions.enqueue(1, (b"a",), due_ns=5_000)
    submissions.enqueue(2, (b"b",), due_ns=9_000)
    assert submissions.deadline_ns() == 5_000 and submissions.take(4_999) is None
    batch = submissions.take(5_000)
    assert batch is not None and batch.tokens == (1, 2)
    submissions.enqueue(3, (b"c",), due_ns=20_000)
    submissions.enqueue(4, (b"d",), due_ns=6_000)
    assert submissions.deadline_ns() == 6_000
    batch = submissions.take(6_000)
    assert batch is not None and batch.tokens == (3, 4)
    submissions.enqueue(5, (b"e",), due_ns=6_010)
    assert submissions.deadline_ns() == 6_100, "the interval between bundles holds for all"
    assert submissions.take(6_100) is not None and submissions.deadline_ns() is None


def test_what_a_full_bundle_left_does_not_wait_again() -> None:
    submissions = Submissions(LIMITS, 100)
    submissions.enqueue(1, tuple(bytes([i]) for i in range(6)), due_ns=50_000)
    assert submissions.take(1_000) is not None and submissions.deadline_ns() == 1_100


def test_a_full_bundle_does_not_wait_and_the_token_comes_with_the_last_part() -> None:
    submissions = Submissions(LIMITS, 100)
    submissions.enqueue(1, (b"x",))
    submissions.take(0)
    submissions.enqueue(2, tuple(bytes([i]) for i in range(6)))
    first = submissions.take(1)
    assert first is not None and (len(first.transactions), first.tokens) == (4, ())
    last = submissions.take(200)
    assert last is not None and (len(last.transactions), last.tokens) == (2, (2,))


def test_bundles_respect_the_size_limit() -> None:
    submissions = Submissions(replace(LIMITS, bundle_size_bytes_max=1200), 0)
    submissions.enqueue(1, (bytes(300), bytes(300), bytes(300)))
    sizes = []
    while (batch := submissions.take(10)) is not None:
        sizes.append(len(batch.transactions))
        assert bundle("alpha", 1, *batch.transactions).size_bytes <= 1200
    assert sum(sizes) == 3 and submissions.queued_size_bytes == 0


def test_a_snapshot_may_hold_an_earlier_lifes_bundles_under_the_same_numbers() -> None:
    for numbers_were_used, expected in ((True, (b"a", b"b")), (False, None)):
        submissions = Submissions(LIMITS, 0)
        for sequence, body in ((1, b"a"), (2, b"b"), (3, b"c")):
            submissions.pending[sequence] = bundle("alpha", sequence, body)
        assert submissions.skip_to(2, numbers_were_used) == [1, 2]
        batch = submissions.take(10)
        assert (batch.transactions if batch else None) == expected
        assert list(submissions.pending) == [3]


def test_displaced_transactions_are_queued_again() -> None:
    submissions = Submissions(LIMITS, 0)
    ours, foreign = bundle("alpha", 1, b"ours"), bundle("alpha", 1, b"earlier life")
    submissions.pending[1] = ours
    assert submissions.settle(foreign)
    batch = submissions.take(0)
    assert batch is not None and batch.transactions == (b"ours",) and batch.tokens == ()
    submissions.pending[2] = bundle("alpha", 2)
    assert submissions.settle(submissions.pending[2])
    assert submissions.take(0) is None and not submissions.settle(foreign)


# ---- age, on whole replicas


def signed(net: Net, sender: str, sequence: int, *names: str) -> Bundle:
    bodies = tuple(encode_transaction(SaeRegistered(name, sender)) for name in names)
    return make_bundle(signer_of(sender), net.genesis.chain_id, net.genesis.digest, sender, sequence, bodies)


def make_blocks(net: Net, count: int) -> None:
    goal = net.replicas["beta"].height + count
    while net.replicas["beta"].height < goal:
        name = f"app-{net.replicas['beta'].height}-{net.now_ns}"
        net.give("beta", TransactionsSubmitted(1, (SaeRegistered(name, "beta"),)))
        net.pass_time(500 * MS)


def test_bundles_whose_predecessor_never_comes_are_let_go_and_taken_when_it_does() -> None:
    net = Net(make_genesis(), NODES[1:], mempool=MempoolSettings(age_heights_max=4))
    late = [signed(net, "alpha", sequence, f"late-{sequence}") for sequence in (2, 3)]
    for each in late:
        net.inject("beta", "alpha", encode(BundleMessage(each.encoded)))
    net.settle()
    make_blocks(net, 4)
    assert [net.replicas[name].status()["mempool_bundles"] for name in NODES[1:]] == [2, 2, 2]
    assert net.replicas["beta"].status()["mempool_age_heights"] == 4
    make_blocks(net, 1)
    assert [net.replicas[name].status()["mempool_bundles"] for name in NODES[1:]] == [0, 0, 0]
    for each in (signed(net, "alpha", 1, "late-1"), *late):
        net.inject("beta", "alpha", encode(BundleMessage(each.encoded)))
    net.settle()
    make_blocks(net, 2)
    assert all(net.replicas["delta"].state.sae(f"late-{sequence}") for sequence in (1, 2, 3))
    assert not net.seen(PeerFaulted)


def test_nothing_ages_while_no_block_is_made() -> None:
    net = Net(make_genesis(), NODES[:2], mempool=MempoolSettings(age_heights_max=4))
    net.give("alpha", TransactionsSubmitted(1, (SaeRegistered("waits", "alpha"),)))
    net.pass_time(600_000 * MS)
    assert net.replicas["beta"].status()["mempool_bundles"] == 1 and net.replicas["beta"].height == 0


def test_an_origin_offers_again_what_everybody_else_has_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders leave the bundle out for longer than it may wait: it comes back from its origin, and from nobody else."""
    net = Net(make_genesis(), mempool=MempoolSettings(age_heights_max=4))
    real, sources = Mempool.select, list[str]()

    def without_alpha(self: Mempool, state: State) -> tuple[Bundle, ...]:
        return tuple(each for each in real(self, state) if each.sender != "alpha")

    def watched(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        if isinstance(message, BundleMessage) and Bundle.decode(message.bundle, GenesisParameters()).sender == "alpha":
            sources.append(source)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Mempool, "select", without_alpha)
        patch.setattr(Mempool, "has_work", lambda self, state: bool(without_alpha(self, state)))
        net.give("alpha", TransactionsSubmitted(1, (SaeRegistered("left-out", "alpha"),)))
        make_blocks(net, 4)
        net.filter = lambda source, target, payload: source != "alpha" or not isinstance(decode(payload), BundleMessage)
        make_blocks(net, 2)
        assert [net.replicas[name].status()["mempool_bundles"] for name in NODES] == [1, 0, 0, 0]
        net.filter = watched
        net.pass_time(2_000 * MS)
        assert [net.replicas[name].status()["mempool_bundles"] for name in NODES] == [1, 1, 1, 1]
        assert sources[0] == "alpha"
    make_blocks(net, 1)
    assert net.replicas["delta"].state.sae("left-out") is not None
