"""SPEC 9.11: what is older than the retention leaves the state, everywhere alike; the rest stays."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.ages import Ages
from ledger.contracts import policies as changes
from ledger.contracts import retention
from ledger.contracts.document import PolicyError, policy_from_document
from ledger.contracts.entries import BlockUse
from ledger.restoration import Restoration
from ledger.state import State
from ledger.trie_range import entries_from
from tests.ledger.cluster import make_key_block
from tests.ledger.contracts.test_policies import HOP, in_force
from tests.ledger.test_execution import Table, delivered

RULES: dict[str, Any] = {"lifetime": {"blocks": 5}, "retention": {"blocks": 10}}
PATH = ("alpha", "beta")


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def deliver(table: Table, number: int, block: int) -> None:
    (receipt,) = table.run("alpha", delivered(PATH, (("alpha-beta", block, 0, 256),), number))
    assert receipt.ok, receipt.reason


def entries_of(state: State) -> list[tuple[bytes, bytes]]:
    return [entry for _, entry in entries_from(state.trie, bytes(32))]


def test_blocks_and_deliveries_leave_at_their_age_and_not_before() -> None:
    table = Table()
    in_force(table, **RULES)
    table.run("alpha", make_key_block(table.genesis, 1))
    recorded = table.state.height
    deliver(table, 1, 1)
    for _ in range(9):
        table.run("alpha")
    assert table.state.height == recorded + 10
    assert table.state.key_block("alpha-beta", 1) is not None and table.state.delivery(key(1)) is not None
    table.run("alpha")
    assert table.state.key_block("alpha-beta", 1) is None and table.state.delivery(key(1)) is not None
    table.run("alpha")
    assert table.state.delivery(key(1)) is None
    assert table.state.counts()["deliveries"] == table.state.counts()["key_blocks"] == 0
    assert table.state.retired_count == 2
    link = table.state.link("alpha-beta")
    assert link is not None and (link.blocks_recorded, link.last_block_number) == (1, 1), "what was is still counted"
    assert table.reason("alpha", delivered(PATH, HOP, 2)) == "delivery.hop", (
        "key of a block that left stays undeliverable"
    )
    assert table.reason("alpha", make_key_block(table.genesis, 1)) == "key_block.number", "nor does the block come back"


def test_the_state_levels_off_under_steady_traffic_and_grows_without_the_policy() -> None:
    sizes: dict[bool, list[int]] = {}
    for kept in (True, False):
        table = Table()
        in_force(table, **(RULES if kept else {"lifetime": {"blocks": 5}}))
        sizes[kept] = []
        for number in range(60):
            if number % 5 == 0:
                table.run("alpha", make_key_block(table.genesis, number))
            deliver(table, number, number // 5 * 5)
            sizes[kept].append(len(entries_of(table.state)))
    assert max(sizes[True][20:40]) == max(sizes[True][40:]) <= min(sizes[True][20:]) + 3
    assert sizes[False][-1] - sizes[False][20] == 39 + 7, "deliveries, and key blocks 25 to 55"


def test_a_restored_state_retires_the_same() -> None:
    """A snapshot's entries come in the order of their paths, not of their heights."""
    table = Table()
    table.run("alpha", make_key_block(table.genesis, 1), make_key_block(table.genesis, 2))
    for number in range(30):
        table.run("alpha", *(delivered(PATH, HOP, 100 * number + each) for each in range(number % 3 + 1)))
    restoration = Restoration(table.genesis)
    restoration.add(entries_of(table.state))
    copy, roots = restoration.finish(table.state.height), set[tuple[bytes, bytes]]()
    for state in (table.state, copy):
        state.begin(state.height + 1)
        changes.set_policy(state, policy_from_document({"name": "test", **RULES}))
        state.finish(bytes(32), bytes(32))
    assert copy.root == table.state.root
    for _ in range(40):
        for state in (table.state, copy):
            state.begin(state.height + 1)
            retention.begin_block(state)
            state.finish(bytes(32), bytes(32))
        roots.add((table.state.root, copy.root))
    assert all(one == other for one, other in roots)
    assert copy.counts()["deliveries"] == table.state.counts()["deliveries"] == 0


def test_an_old_chain_lets_go_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "RETIRED_MAX", 4)
    table = Table()
    table.run("alpha", make_key_block(table.genesis, 1))
    for number in range(20):
        table.run("alpha", *(delivered(PATH, HOP, 10 * number + each) for each in range(3)))
    for _ in range(20):
        table.run("alpha")
    in_force(table, **RULES)
    left = []
    for _ in range(11):
        table.run("alpha")
        left.append(table.state.counts()["deliveries"])
    assert left == [54, 48, 42, 36, 30, 24, 18, 12, 6, 0, 0], "whole heights, two of three records a time"


def test_the_longest_of_several_policies_counts_and_uses_of_a_block_go_with_it() -> None:
    table = Table()
    in_force(table, **RULES, delivery={"block_uses_max": 9})
    table.state.begin(table.state.height + 1)
    changes.set_policy(
        table.state, policy_from_document({"name": "other", "lifetime": {"blocks": 9}, "retention": {"blocks": 30}})
    )
    table.state.finish(bytes(32), bytes(32))
    assert retention.retention_blocks(table.state) == 30
    table.run("alpha", make_key_block(table.genesis, 1))
    deliver(table, 1, 1)
    for _ in range(29):
        table.run("alpha")
    assert table.state.entry(BlockUse, "alpha-beta", 1) is not None
    table.run("alpha")
    assert table.state.key_block("alpha-beta", 1) is None
    assert table.state.entry(BlockUse, "alpha-beta", 1) is None


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"retention": {"blocks": 10}}, "retention.blocks needs lifetime.blocks"),
        ({"lifetime": {"seconds": 5}, "retention": {"blocks": 10}}, "retention.blocks needs lifetime.blocks"),
        ({"lifetime": {"blocks": 6}, "retention": {"blocks": 11}}, "it must be 2 lifetimes \\(12\\) at least"),
        ({**RULES, "select": {"links": ["link-1-*"]}}, "a policy without \\[select\\]"),
    ],
)
def test_policies_that_cannot_be(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        policy_from_document({"name": "test", **tables})


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 255)), max_size=40),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=8),
)
def test_ages_are_a_plain_sorted_list(added: list[tuple[int, int]], taken: list[tuple[int, int]]) -> None:
    ages, plain = Ages(1), sorted((height, bytes([name])) for height, name in added)
    for height, name in added:
        ages.add(height, bytes([name]))
    ages.sort()
    for below, count_max in taken:
        expected: list[bytes] = []
        while plain and plain[0][0] < below and len(expected) < count_max:
            height = plain[0][0]
            expected += [name for each, name in plain if each == height]
            plain = [each for each in plain if each[0] != height]
        assert ages.take(below, count_max) == expected
        assert len(ages) == len(plain)
