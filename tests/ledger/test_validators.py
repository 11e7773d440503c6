"""SPEC 4.7, 5.4: the committee is a function of the state two heights before; who is suspended, whose key rotates."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.encoding import MalformedEncoding, pack
from ledger.genesis import Genesis, GenesisNode, GenesisParameters
from ledger.membership import EVIDENCE_HEIGHTS_MAX, ROTATION_PAUSE_HEIGHTS, record_keys
from ledger.merkle import trie_check
from ledger.state import State
from ledger.transactions import EquivocationProven, Transaction
from ledger.validators import SETS_KEY, Validators, choose_committee, sets_from_value, sets_value
from ledger.votes import FRESH, Kind, Statement, statement_bytes
from tests.ledger.cluster import NODES, make_genesis, make_key_block, rotation, signer_of
from tests.ledger.test_execution import Table


@dataclass(frozen=True)
class Candidate:
    node_id: str
    index: int
    may_vote: bool = True

    @property
    def vote_key(self) -> bytes:
        return self.node_id.encode().ljust(32, b"\0")


def candidates(count: int) -> list[Candidate]:
    return [Candidate(f"node-{index}", index) for index in range(count)]


# ---- the choice


@given(st.permutations(candidates(9)), st.integers(1, 10_000), st.integers(1, 12), st.integers(1, 50))
def test_the_committee_is_a_function_of_the_set_and_the_epoch_alone(
    nodes: list[Candidate], height: int, committee_max: int, epoch_heights: int
) -> None:
    chosen = choose_committee(nodes, height, bytes(32), committee_max, epoch_heights)
    assert chosen is not None and len(chosen.node_ids) == min(9, committee_max)
    assert list(chosen.node_ids) == sorted(chosen.node_ids, key=lambda name: int(name[5:]))
    epoch_start = (height - 1) // epoch_heights * epoch_heights + 1
    assert chosen == choose_committee(candidates(9), epoch_start, bytes(32), committee_max, epoch_heights)


def test_every_node_has_its_turn_and_about_its_share() -> None:
    turns = dict.fromkeys((each.node_id for each in candidates(10)), 0)
    for epoch in range(1000):
        chosen = choose_committee(candidates(10), epoch * 7 + 1, b"g" * 32, 4, 7)
        assert chosen is not None
        for name in chosen.node_ids:
            turns[name] += 1
    assert all(330 < count < 470 for count in turns.values()), turns  # 400 expected, deviation 15


def test_nobody_eligible_is_no_committee() -> None:
    assert choose_committee([Candidate("a", 0, may_vote=False)], 1, bytes(32), 4, 10) is None


@given(st.binary(max_size=200))
def test_the_entry_decodes_or_is_malformed(data: bytes) -> None:
    try:
        following, after = sets_from_value(data)
    except MalformedEncoding:
        return
    assert sets_value(following, after) == data


def test_malformed_sets() -> None:
    for members in ((("a",), ()), ((), ()), (("a", "a"), (bytes(32), bytes(32)))):
        with pytest.raises(MalformedEncoding):
            Validators.from_members(members)


# ---- the state


def test_the_genesis_sets_are_in_the_state_and_provable() -> None:
    state = State(make_genesis())
    good, value = trie_check(state.root, SETS_KEY, state.prove(SETS_KEY))
    assert good and value is not None
    assert sets_from_value(value) == (state.validators(), state.validators_after())
    assert state.validators().node_ids == NODES


def test_a_larger_network_rotates_its_committee() -> None:
    nodes = tuple(GenesisNode(f"n{i}", signer_of(f"n{i}").public_key) for i in range(12))
    parameters = GenesisParameters(committee_max=4, epoch_heights=3)
    state = State(Genesis("test", 0, nodes, parameters=parameters))
    sets = [state.validators()]
    for height in range(1, 40):
        expected = state.validators_after()
        state.begin(height)
        state.finish(bytes(32), bytes(32))
        assert state.validators() == expected
        sets.append(state.validators())
    assert all(len(each.node_ids) == 4 for each in sets)
    assert all(sets[i] == sets[i - i % 3] for i in range(len(sets))), "within an epoch it stays"
    assert len(set(sets)) > 8


# ---- suspension


def reasons(table: Table, sender: str, *transactions: Transaction) -> list[str]:
    return [receipt.reason for receipt in table.run(sender, *transactions)]


def contradiction(genesis: Genesis, signer: str, height: int = 1, seed: str | None = None) -> EquivocationProven:
    said = []
    for block in (b"1" * 32, b"2" * 32):
        message = statement_bytes(genesis.digest, bytes(32), Kind.VOTE, height, 0, block, FRESH)
        said.append(
            Statement(Kind.VOTE, height, 0, block, FRESH, signer, signer_of(seed or signer).sign(message)).encoded
        )
    return EquivocationProven(*said, bytes(32))


def test_a_contradiction_suspends_two_heights_later() -> None:
    table = Table()
    table.run("alpha", contradiction(table.genesis, "delta"))
    node = table.state.node("delta")
    assert node is not None and node.suspended and not node.revoked
    assert table.state.validators().node_ids == NODES
    assert table.state.validators_after().node_ids == ("alpha", "beta", "gamma")
    table.run("alpha", contradiction(table.genesis, "gamma"))
    assert table.state.validators().node_ids == ("alpha", "beta", "gamma")


def test_the_last_who_may_vote_is_recorded_and_stays() -> None:
    table = Table()
    for name in NODES:
        assert reasons(table, "alpha", contradiction(table.genesis, name)) == [""]
    assert [node.node_id for node in table.state.nodes() if node.may_vote] == ["delta"]
    assert table.state.equivocation("delta", 1) is not None
    table.run("alpha", make_key_block(table.genesis))
    assert table.state.validators().node_ids == ("delta",)


def test_old_contradictions_do_not_count() -> None:
    table = Table()
    table.state.height = EVIDENCE_HEIGHTS_MAX + 1
    (reason,) = reasons(table, "alpha", contradiction(table.genesis, "delta"))
    assert reason.startswith("equivocation.expired")


# ---- rotation of keys


def test_a_rotation_counts_for_bundles_at_once_and_for_votes_two_heights_later() -> None:
    table = Table()
    new_key = signer_of("beta again").public_key
    assert reasons(table, "beta", rotation(table.genesis, "beta", 10)) == [""]
    node, height = table.state.node("beta"), table.state.height
    assert node is not None and node.public_key == new_key and table.state.changed_nodes == ["beta"]
    assert table.state.validators().key_of("beta") == signer_of("beta").public_key
    assert table.state.validators_after().key_of("beta") == new_key
    old, new = table.state.keys_of("beta")
    assert (old.first_height, old.last_height) == (0, height)
    assert (new.first_height, new.last_height) == (height + 1, 0)


@pytest.mark.parametrize(
    ("sender", "change", "rule"),
    [
        ("alpha", {}, "sender"),
        ("beta", {"old_key": bytes(32)}, "old"),
        ("beta", {"expiry_height": 0}, "expired"),
        ("beta", {"new_key": signer_of("gamma").public_key}, "used"),
        ("beta", {"new_key": signer_of("beta").public_key}, "used"),
        ("beta", {"old_signature": bytes(64)}, "signature"),
        ("beta", {"new_signature": bytes(64)}, "signature"),
        ("beta", {"expiry_height": 11}, "signature"),
    ],
)
def test_rotations_that_break_a_rule(sender: str, change: dict[str, object], rule: str) -> None:
    table = Table()
    record = replace(rotation(table.genesis, "beta", 10), **change)  # type: ignore[arg-type]
    (reason,) = reasons(table, sender, record)
    assert reason.startswith(f"key_rotation.{rule}:"), reason
    assert table.state.counts()["keys"] == 0


def test_a_rotation_of_another_chain_and_a_hasty_second_one_are_refused() -> None:
    table = Table()
    other = replace(table.genesis, chain_id="other")
    (reason,) = reasons(table, "beta", rotation(other, "beta", 10))
    assert reason.startswith("key_rotation.signature")
    assert reasons(table, "beta", rotation(table.genesis, "beta", 1000)) == [""]
    second = rotation(table.genesis, "beta", 1000, old="beta again", new="beta once more")
    (reason,) = reasons(table, "beta", second)
    assert reason.startswith("key_rotation.pause")
    table.state.height += ROTATION_PAUSE_HEIGHTS
    assert reasons(table, "beta", second) == [""]
    back = rotation(table.genesis, "beta", 1000, old="beta once more", new="beta")
    table.state.height += ROTATION_PAUSE_HEIGHTS
    (reason,) = reasons(table, "beta", back)
    assert reason.startswith("key_rotation.used")


def test_records_signed_before_a_rotation_stay_good_for_a_while() -> None:
    table = Table()
    record = make_key_block(table.genesis, 1, expiry_height=10_000)
    table.run("beta", rotation(table.genesis, "beta", 10))
    assert reasons(table, "alpha", record) == [""]
    assert len(record_keys(table.state, "beta")) == 2
    table.state.height += 5000
    (reason,) = reasons(table, "alpha", make_key_block(table.genesis, 2, expiry_height=10_000))
    assert reason.startswith("key_block.signature")


def test_evidence_under_a_retired_key_still_counts() -> None:
    table = Table()
    table.run("beta", rotation(table.genesis, "beta", 10))
    assert reasons(table, "alpha", contradiction(table.genesis, "beta")) == [""]
    (reason,) = reasons(table, "alpha", contradiction(table.genesis, "beta", 2, seed="nobody"))
    assert reason.startswith("equivocation.signature")


@settings(max_examples=20)
@given(st.integers(1, 300))
def test_an_entry_is_written_when_it_changes_only(heights: int) -> None:
    state = State(make_genesis())
    _, first = trie_check(state.root, SETS_KEY, state.prove(SETS_KEY))
    for height in range(1, heights + 1):
        state.begin(height)
        state.finish(pack(height), bytes(32))
    _, last = trie_check(state.root, SETS_KEY, state.prove(SETS_KEY))
    assert first == last
