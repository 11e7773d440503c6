"""SPEC 3.4 and 3.5: bounds, order, fairness, and this node's own way in."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ledger.block import limits_fault
from ledger.bundle import Bundle, make_bundle
from ledger.execution import bundles_fault
from ledger.genesis import GenesisParameters
from ledger.mempool import Mempool, MempoolSettings
from ledger.state import State
from ledger.submissions import Submissions
from tests.ledger.cluster import NODES, make_genesis, signer_of

LIMITS = GenesisParameters(bundle_transactions_max=4, bundle_size_bytes_max=4096, block_transactions_max=8)


def bundle(sender: str, sequence: int, *bodies: bytes) -> Bundle:
    return make_bundle(signer_of(sender), "test", bytes(32), sender, sequence, bodies or (b"body",))


def make_pool(**settings: int) -> Mempool:
    return Mempool(MempoolSettings(**settings), LIMITS, len(NODES))


offers = st.lists(st.tuples(st.sampled_from(NODES), st.integers(1, 6), st.integers(1, 4)), max_size=25)


@given(offers)
def test_a_selection_is_always_a_valid_block_in_order(offered: list[tuple[str, int, int]]) -> None:
    state, pool = State(make_genesis()), make_pool()
    for sender, sequence, count in offered:
        pool.add(bundle(sender, sequence, *([b"body"] * count)), 0)
    chosen = pool.select(state)
    assert bundles_fault(state, chosen) is None
    assert sum(len(each.transactions) for each in chosen) <= LIMITS.block_transactions_max
    assert bool(chosen) == pool.has_work(state)


def test_a_flood_of_one_sender_does_not_starve_another() -> None:
    state, pool = State(make_genesis()), make_pool()
    for sequence in range(1, 100):
        pool.add(bundle("alpha", sequence, b"1", b"2"), 0)
    assert pool.add(bundle("beta", 1), 0) is None
    assert "beta" in {each.sender for each in pool.select(state)}


@given(offers)
def test_no_sender_has_more_than_its_share_of_a_block(offered: list[tuple[str, int, int]]) -> None:
    limits = replace(LIMITS, sender_block_transactions_max=5, sender_block_size_bytes_max=4096)
    state, pool = State(make_genesis()), Mempool(MempoolSettings(), limits, len(NODES))
    for sender, sequence, count in offered:
        pool.add(bundle(sender, sequence, *([b"body"] * count)), 0)
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


def test_bounds_and_their_reasons() -> None:
    pool = make_pool(sender_bundles_max=3)
    assert "committed" in (pool.add(bundle("alpha", 5), 5) or "")
    assert "wait" in (pool.add(bundle("alpha", 9), 5) or "")
    assert pool.add(bundle("alpha", 8), 5) is None
    assert "waits already" in (pool.add(bundle("alpha", 8, b"other"), 5) or "")
    small = make_pool(size_bytes_max=1)  # the share is never below one bundle's limit
    assert small.add(bundle("alpha", 1, *([bytes(1000)] * 3)), 0) is None
    assert "share" in (small.add(bundle("alpha", 2, *([bytes(1000)] * 3)), 0) or "")
    assert small.add(bundle("beta", 1, *([bytes(1000)] * 3)), 0) is None


def test_forgetting_gives_the_room_back() -> None:
    pool = make_pool()
    for sequence in (1, 2, 3):
        pool.add(bundle("alpha", sequence), 0)
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
