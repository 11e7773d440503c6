"""SPEC 7.7: a state is restorable from its entries alone, after whatever was executed."""

import hashlib
import random

import pytest

from ledger.contracts.actions import encode_action
from ledger.contracts.document import policy_from_document
from ledger.contracts.entries import ENTRIES
from ledger.contracts.policy_actions import SetPolicy
from ledger.contracts.revocation import RevokeKeyBlock
from ledger.merkle import trie_root, trie_update
from ledger.restoration import MalformedEntry, Restoration
from ledger.state import State
from ledger.transactions import (
    AlarmRaised,
    DeviceAlarmRaised,
    DeviceRegistered,
    DeviceRevoked,
    EquivocationProven,
    GovernanceApproved,
    GovernanceProposed,
    KeyBlockRevoked,
    SaeRegistered,
    Transaction,
    encode,
    transaction_id,
)
from ledger.trie_range import entries_from
from ledger.votes import NO_DIGEST, Kind, Statement, statement_bytes
from tests.ledger.cluster import make_key_block, rotation, signer_of
from tests.ledger.test_execution import Table, delivered

REVOKE = RevokeKeyBlock("alpha-beta", 6, "tamper")


def entries_of(state: State) -> list[tuple[bytes, bytes]]:
    return [entry for _, entry in entries_from(state.trie, bytes(32))]


def restored(table: Table, entries: list[tuple[bytes, bytes]], parts: int = 1) -> State:
    restoration = Restoration(table.genesis)
    for i in range(parts):
        restoration.add(entries[i::parts])
    return restoration.finish(table.state.height)


def device(table: Table, name: str, node: str) -> DeviceRegistered:
    signer = signer_of(name)
    record = DeviceRegistered(name, node, signer.public_key, 128, 20_000, bytes(64))
    signature = signer.sign(record.signing_bytes(table.genesis.chain_id, table.genesis.digest))
    return DeviceRegistered(name, node, signer.public_key, 128, 20_000, signature)


def equivocation(table: Table, signer: str) -> EquivocationProven:
    validators = table.state.validators().digest
    said = []
    for block in (hashlib.sha256(b"one").digest(), hashlib.sha256(b"other").digest()):
        message = statement_bytes(table.genesis.digest, validators, Kind.VOTE, 1, 0, block, -1)
        said.append(Statement(Kind.VOTE, 1, 0, block, -1, signer, signer_of(signer).sign(message)).encoded)
    return EquivocationProven(*said, validators)


def everything(table: Table) -> None:
    """At least one entry of every kind."""
    table.run("alpha", make_key_block(table.genesis, 5), AlarmRaised("alpha-beta", 6, "qber", 240_000, "alpha"))
    table.run("alpha", delivered(("alpha", "beta"), (("alpha-beta", 5, 0, 256),)), SaeRegistered("zoo", "alpha"))
    table.run("beta", device(table, "watch", "beta"), device(table, "pump", "beta"), DeviceRevoked("watch", "beta"))
    table.run("beta", DeviceAlarmRaised("pump", "qber", 240_000))
    table.run("gamma", equivocation(table, "delta"), GovernanceProposed("gamma", encode_action(REVOKE), 9))
    table.run("alpha", KeyBlockRevoked("alpha-beta", 5, "lost", "alpha"))
    policy = {
        "name": "all",
        "delivery": {"quota_keys": 9, "quota_window_blocks": 9, "block_uses_max": 9},
        "suspension": {"aborts": 1, "window_blocks": 9},
    }
    proposed = GovernanceProposed("alpha", encode_action(SetPolicy(policy_from_document(policy).encoded)), 99)
    table.run("alpha", proposed)
    for sender in ("beta", "gamma", "delta"):
        table.run(sender, GovernanceApproved(transaction_id(encode(proposed)), sender))
    table.run("beta", make_key_block(table.genesis, 1, "beta-gamma"))
    table.run("beta", delivered(("beta", "gamma"), (("beta-gamma", 1, 0, 256),), key=9))
    table.run("beta", AlarmRaised("beta-gamma", 2, "qber", 240_000, "beta"))
    table.run("beta", rotation(table.genesis, "beta", table.state.height + 10))
    assert all(table.state.entries(kind) for kind in ENTRIES.values()), "cover every kind of entry of contracts"


DERIVED = {"_changes", "_sorted_entries", "_derived", "routes"}
"""What a state finds again from its entries when it is asked."""


def readable(state: State) -> dict[str, object]:
    """Everything that the reading interface tells, kind by kind; collected by name, so that no kind is forgotten."""
    contents: dict[str, object] = {
        name: value for name, value in vars(state).items() if isinstance(value, dict) and name not in DERIVED
    }
    return contents | {"validators": state.validators(), "counts": state.counts(), "height": state.height}


def test_every_kind_of_entry_is_restored() -> None:
    table = Table()
    everything(table)
    assert all(table.state.counts().values()), "this test covers every kind: add the new one to `everything`"
    again = restored(table, entries_of(table.state))
    assert again.root == table.state.root
    assert readable(again) == readable(table.state)


@pytest.mark.parametrize("seed", range(20))
def test_random_chains_are_restored_in_any_order_and_go_on_alike(seed: int) -> None:
    table, draw = Table(), random.Random(seed)
    pool: list[tuple[str, Transaction]] = []
    for number in range(1, 6):
        pool.append(("alpha", make_key_block(table.genesis, number)))
        pool.append(("beta", AlarmRaised("alpha-beta", number, "qber", 240_000, "beta")))
        pool.append(("alpha", delivered(("alpha", "beta"), (("alpha-beta", number, 0, 256),), key=number)))
        pool.append(("gamma", SaeRegistered(f"app-{number}", "gamma")))
        pool.append(("delta", device(table, f"device-{number}", "delta")))
        pool.append(("delta", DeviceRevoked(f"device-{number}", "delta")))
    draw.shuffle(pool)
    for sender, transaction in pool[:20]:
        table.run(sender, transaction)
    entries = entries_of(table.state)
    draw.shuffle(entries)
    again = Table()
    again.state = restored(table, entries, parts=3)
    assert readable(again.state) == readable(table.state)
    for sender, transaction in pool[20:]:
        assert again.run(sender, transaction) == table.run(sender, transaction)
    assert again.state.root == table.state.root


def test_an_entry_of_an_unknown_kind_is_refused_and_none_is_lost() -> None:
    table = Table()
    everything(table)
    with pytest.raises(MalformedEntry):
        restored(table, [(b"?new", b"\x90")])
    for key, value in entries_of(table.state):
        with pytest.raises(MalformedEntry):
            restored(table, [(key, value[:-1])])
        with pytest.raises(MalformedEntry):
            restored(table, [(key + b"\x00", value)])


def test_the_trie_of_a_state_holds_its_keys() -> None:
    table = Table()
    everything(table)
    assert trie_root(trie_update(None, dict(entries_of(table.state)))) == table.state.root
    assert NO_DIGEST not in dict(entries_of(table.state))
