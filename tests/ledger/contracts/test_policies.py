"""SPEC 9.5–9.9: every rule of key policies, refused and accepted, and that equal histories give equal roots."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.contracts import policies as changes
from ledger.contracts.delivery_rules import delivery_fault
from ledger.contracts.device_rules import device_floor
from ledger.contracts.document import PolicyDocument, PolicyError, decode_policy, policy_from_document
from ledger.contracts.entries import BlockUse, LinkWatch, PolicyEntry, QuotaUse
from ledger.contracts.policy_actions import LiftLinkSuspension, RemovePolicy, SetPolicy
from ledger.contracts.routes import suspended_links
from ledger.contracts.selection import POLICIES_MAX
from ledger.encoding import pack
from ledger.state import State
from ledger.transactions import AlarmRaised, DeviceRegistered, KeyBlockRecorded
from tests.ledger.cluster import make_key_block, signer_of
from tests.ledger.contracts.test_governance import decide
from tests.ledger.test_execution import Table, delivered

HOP = (("alpha-beta", 1, 0, 256),)
TWO_HOPS = (("alpha-beta", 1, 0, 256), ("beta-gamma", 1, 0, 256))


@pytest.fixture
def table() -> Table:
    table = Table()
    table.run("alpha", make_key_block(table.genesis, 1))
    table.run("beta", make_key_block(table.genesis, 1, "beta-gamma"))
    return table


def in_force(table: Table, **tables: Any) -> None:
    """Put a policy in force as its action does, in a block of its own."""
    table.state.begin(table.state.height + 1, table.state.time_ns)
    changes.set_policy(table.state, policy_from_document({"name": "test", **tables}))
    table.state.finish(bytes(32), bytes(32))


def block(table: Table, number: int, **members: Any) -> KeyBlockRecorded:
    return make_key_block(table.genesis, number, **members)


def deliver(table: Table, key: int = 1, path: tuple[str, ...] = ("alpha", "beta"), hops: Any = HOP) -> str:
    return table.reason("alpha", delivered(path, hops, key))


def test_a_policy_comes_into_force_by_governance_and_leaves_by_it(table: Table) -> None:
    policy = policy_from_document({"name": "strict", "key_block": {"qber_max": 0.02}})
    decide(table, SetPolicy(policy.encoded))
    refused = table.run("alpha", block(table, 2))[0].reason
    assert refused == "policy.qber: strict: 21000 ppm is above 20000"
    decide(table, SetPolicy(replace(policy, values=(("key_block.qber_max", 30_000),)).encoded), 1001)
    assert table.reason("alpha", block(table, 2)) == ""
    decide(table, RemovePolicy("strict"), 1002)
    assert table.reason("alpha", block(table, 3, qber_ppm=99_000)) == ""
    assert table.state.entries(PolicyEntry) == ()


@pytest.mark.parametrize(
    ("rules", "members", "rule"),
    [
        ({"qber_max": 0.021}, {"qber_ppm": 21_001}, "policy.qber"),
        ({"secret_bits_min": 4096}, {"secret_bits": 4095}, "policy.secret_bits"),
        ({"security_bits_min": 33.219}, {"security_millibits": 33_218}, "policy.security"),
        ({"pulses_min": 1_000_000}, {"pulses": 999_999}, "policy.pulses"),
    ],
)
def test_figures_of_blocks(table: Table, rules: dict[str, Any], members: dict[str, int], rule: str) -> None:
    in_force(table, key_block=rules)
    assert table.reason("alpha", block(table, 2, **members)) == rule
    assert table.reason("alpha", block(table, 2)) == ""


def test_blocks_of_before_are_judged_again_at_delivery(table: Table) -> None:
    in_force(table, key_block={"qber_max": 0.02})
    assert deliver(table) == "policy.qber"
    in_force(table, key_block={"qber_max": 0.03})
    assert deliver(table) == ""


def test_selectors_of_links_and_nodes(table: Table) -> None:
    in_force(table, select={"links": ["beta-*"]}, key_block={"qber_max": 0.01})
    assert table.reason("alpha", block(table, 2)) == "" and deliver(table) == ""
    assert table.reason("beta", make_key_block(table.genesis, 2, "beta-gamma")) == "policy.qber"
    in_force(table, select={"nodes": ["gamma"]}, key_block={"qber_max": 0.01})
    assert table.reason("alpha", block(table, 3)) == ""
    assert table.reason("beta", make_key_block(table.genesis, 2, "beta-gamma")) == "policy.qber"
    assert deliver(table, 2, ("alpha", "beta", "gamma"), TWO_HOPS) == "policy.qber"


def test_a_policy_for_a_pair_judges_the_blocks_of_its_keys_alone(table: Table) -> None:
    in_force(table, select={"pairs": [["app-alpha", "app-gamma"]]}, key_block={"qber_max": 0.01})
    assert table.reason("alpha", block(table, 2)) == ""
    assert deliver(table, 1) == ""
    assert deliver(table, 2, ("alpha", "beta", "gamma"), TWO_HOPS) == "policy.qber"


def test_lifetime_by_height_and_by_time(table: Table) -> None:
    in_force(table, lifetime={"blocks": 3})
    assert table.state.height == 3
    assert deliver(table) == ""  # at height 4, three after the block's
    assert deliver(table, 2) == "policy.expired"
    in_force(table, lifetime={"seconds": 10})
    assert deliver(table, 3) == ""
    table.state.begin(table.state.height + 1, 11_000_000_000)  # the time of the header decides, not a clock
    refused = delivery_fault(table.state, delivered(("alpha", "beta"), HOP, 4))
    assert refused is not None and refused.startswith("policy.expired")


def test_quota_counts_per_pair_and_window(table: Table) -> None:
    in_force(table, delivery={"quota_keys": 2, "quota_window_blocks": 10})
    assert [deliver(table, key) for key in (1, 2, 3)] == ["", "", "policy.quota"]
    assert deliver(table, 4, ("alpha", "beta", "gamma"), TWO_HOPS) == "", "another pair has its own"
    while table.state.height % 10:
        table.run("delta", b"x")
    assert deliver(table, 5) == "", "a new window"
    assert [use.keys for use in table.state.entries(QuotaUse) if use.slave_sae == "app-beta"] == [1]


def test_uses_of_a_block(table: Table) -> None:
    in_force(table, delivery={"block_uses_max": 2})
    assert [deliver(table, key) for key in (1, 2, 3)] == ["", "", "policy.uses"]
    table.run("alpha", block(table, 2))
    assert deliver(table, 4, hops=(("alpha-beta", 2, 0, 256),)) == ""
    changes.remove_policy(table.state, "test")
    assert table.state.entries(BlockUse) == ()


def test_pairs_allowed_and_denied(table: Table) -> None:
    in_force(table, delivery={"pairs_deny": [["app-beta", "app-al*"]]})
    assert deliver(table) == "policy.pair"
    assert deliver(table, 2, ("alpha", "beta", "gamma"), TWO_HOPS) == ""
    in_force(table, delivery={"pairs_allow": [["app-alpha", "app-beta"]]})
    assert deliver(table, 3) == ""
    assert deliver(table, 4, ("alpha", "beta", "gamma"), TWO_HOPS) == "policy.pair"


def test_routes(table: Table) -> None:
    way = ("alpha", "beta", "gamma")
    in_force(table, route={"avoid_nodes": ["beta"]})
    assert deliver(table, 1, way, TWO_HOPS) == "policy.avoid"
    assert deliver(table, 1) == "", "an end of the way is no relay"
    in_force(table, route={"hops_max": 1})
    assert deliver(table, 2, way, TWO_HOPS) == "policy.hops"
    assert deliver(table, 2) == ""
    in_force(table, route={"disjoint_paths_min": 2})
    assert deliver(table, 3, way, TWO_HOPS) == "policy.disjoint", "a line has one way"


def abort(table: Table, number: int) -> str:
    return table.reason("alpha", AlarmRaised("alpha-beta", number, "qber", 250_000, "alpha"))


def test_a_link_is_suspended_after_aborts_and_lifted_by_clean_blocks(table: Table) -> None:
    in_force(table, suspension={"aborts": 2, "window_blocks": 5, "clean_blocks": 2})
    abort(table, 2)
    for _ in range(5):
        table.run("delta", b"x")
    abort(table, 3)
    assert not suspended_links(table.state), "the first abort is out of the window"
    abort(table, 4)
    assert suspended_links(table.state) == {"alpha-beta": "test"}
    assert deliver(table) == "policy.suspended"
    assert table.reason("alpha", block(table, 5)) == "", "a suspended link goes on making key"
    assert deliver(table) == "policy.suspended"
    abort(table, 6)
    table.run("alpha", block(table, 7))
    assert suspended_links(table.state), "the abort began the count anew"
    table.run("alpha", block(table, 8))
    assert not suspended_links(table.state) and table.state.entries(LinkWatch) == ()
    assert deliver(table) == ""


def test_governance_lifts_a_suspension(table: Table) -> None:
    in_force(table, suspension={"aborts": 1, "window_blocks": 5})
    abort(table, 2)
    table.run("alpha", *(block(table, number) for number in range(3, 9)))
    assert deliver(table) == "policy.suspended", "without clean_blocks only governance lifts it"
    decide(table, LiftLinkSuspension("alpha-beta"))
    assert deliver(table) == ""
    assert LiftLinkSuspension("alpha-beta").fault(table.state) is not None


def test_replacing_a_policy_keeps_its_suspensions_and_removing_lifts_them(table: Table) -> None:
    in_force(table, suspension={"aborts": 1, "window_blocks": 5})
    abort(table, 2)
    in_force(table, suspension={"aborts": 3, "window_blocks": 5})
    assert suspended_links(table.state)
    decide(table, RemovePolicy("test"))
    assert not suspended_links(table.state)


def device(table: Table, name: str, bits: int, millibits: int) -> DeviceRegistered:
    signer = signer_of(name)
    record = DeviceRegistered(name, "beta", signer.public_key, bits, millibits, bytes(64))
    message = record.signing_bytes(table.genesis.chain_id, table.genesis.digest)
    return replace(record, device_signature=signer.sign(message))


def test_the_floor_of_devices(table: Table) -> None:
    in_force(table, select={"devices": ["ecg-*"]}, device={"key_bits_min": 256, "security_bits_min": 33.0})
    assert table.reason("beta", device(table, "ecg-1", 255, 33_000)) == "policy.device"
    assert table.reason("beta", device(table, "ecg-1", 256, 32_999)) == "policy.device"
    assert table.reason("beta", device(table, "ecg-1", 256, 33_000)) == ""
    assert table.reason("beta", device(table, "car-1", 128, 13_000)) == ""
    assert device_floor(table.state, "ecg-1", "beta") == (256, 33_000)
    assert device_floor(table.state, "car-1", "beta") == (0, 0)


def test_predicates_of_every_subject(table: Table) -> None:
    predicates = [
        {"name": "few leaked", "on": "key_block", "expression": "leaked_bits * 100 / sifted_bits <= 16"},
        {"name": "long keys", "on": "delivery", "expression": "size_bits >= 256 && path.all(item, item != 'gamma')"},
        {"name": "names", "on": "device", "expression": "device.startsWith('ecg-') || key_bits_min >= 512"},
    ]
    in_force(table, predicate=predicates)
    assert table.reason("alpha", block(table, 2, leaked_bits=1_701)) == "policy.predicate"
    assert table.reason("alpha", block(table, 2)) == ""
    assert deliver(table) == ""
    assert deliver(table, 2, ("alpha", "beta", "gamma"), TWO_HOPS) == "policy.predicate"
    assert table.reason("beta", device(table, "car-1", 256, 33_000)) == "policy.predicate"
    assert table.reason("beta", device(table, "ecg-1", 256, 33_000)) == ""


def test_an_expression_that_fails_refuses(table: Table) -> None:
    in_force(table, predicate=[{"name": "x", "on": "key_block", "expression": "1 / (qber_ppm - 21000) >= 0"}])
    refused = table.run("alpha", block(table, 2))[0].reason
    assert refused == "policy.predicate: test: x: the expression fails: ZeroDivisionError"
    in_force(table, predicate=[{"name": "x", "on": "key_block", "expression": "qber_ppm > 1 ? qber_ppm : true"}])
    assert table.run("alpha", block(table, 2))[0].reason.endswith("neither true nor false")


def test_policies_are_bounded(table: Table) -> None:
    for count in range(POLICIES_MAX):
        in_force(table, name=f"policy-{count}", key_block={"qber_max": 0.5})
    another = SetPolicy(policy_from_document({"name": "another", "route": {"hops_max": 3}}).encoded)
    assert another.fault(table.state) is not None
    replaced = SetPolicy(policy_from_document({"name": "policy-0", "route": {"hops_max": 3}}).encoded)
    assert replaced.fault(table.state) is None


# ---- documents


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "rules nothing"),
        ({"select": {"links": ["x"]}}, "rules nothing"),
        ({"nothing": {}}, "the tables are"),
        ({"key_block": {"qber": 1}}, "has qber_max"),
        ({"key_block": {"qber_max": 1.5}}, "from 0 to 1"),
        ({"key_block": {"qber_max": "5 %"}}, "must be a number"),
        ({"key_block": {"pulses_min": 1.5}}, "whole number"),
        ({"key_block": {"qber_max": True}}, "must be a number"),
        ({"delivery": {"quota_keys": 5}}, "needs delivery.quota_window_blocks"),
        ({"suspension": {"aborts": 5}}, "needs suspension.window_blocks"),
        ({"suspension": {"clean_blocks": 5}}, "needs suspension.aborts"),
        ({"route": {"avoid_nodes": "node-1"}}, "must be a list"),
        ({"route": {"avoid_nodes": []}}, "list 1 to"),
        ({"route": {"avoid_nodes": ["a", "a"]}}, "different"),
        ({"route": {"avoid_nodes": [""]}}, "printable text"),
        ({"delivery": {"pairs_deny": [["a"]]}}, "master SAE"),
        ({"route": {"disjoint_paths_min": 9}}, "from 2 to 8"),
        ({"predicate": {}}, "array of tables"),
        ({"predicate": [{"name": "x"}]}, "has name, on and expression"),
        ({"predicate": [{"name": "x", "on": "moon", "expression": "true"}]}, "on is one of"),
        ({"route": {"avoid_nodes": [f"{n:064}" for n in range(64)]}}, "longer than"),
    ],
)
def test_documents_that_cannot_be(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        policy_from_document({"name": "test", **tables})


def test_a_policy_has_a_name() -> None:
    with pytest.raises(PolicyError, match="name must be"):
        policy_from_document({"route": {"hops_max": 2}})


PINNED = "9501a0a4746573749292b26b65795f626c6f636b2e716265725f6d6178cdc35092ae726f7574652e686f70735f6d61780390"


def test_policy_bytes_are_pinned() -> None:
    """A change here is a new format: chains hold these bytes."""
    policy = policy_from_document({"name": "test", "key_block": {"qber_max": 0.05}, "route": {"hops_max": 3}})
    assert policy.encoded.hex() == PINNED
    assert decode_policy(policy.encoded) == policy
    assert policy_from_document(policy.described()) == policy


def test_bytes_of_another_version_are_refused() -> None:
    predicate = {"name": "x", "on": "device", "expression": "true"}
    encoded = policy_from_document({"name": "test", "predicate": [predicate]}).encoded
    assert b"cel 0.10.0" in encoded
    with pytest.raises(PolicyError, match="another version"):
        decode_policy(encoded.replace(b"cel 0.10.0", b"cel 0.11.0"))


@given(st.binary(max_size=120))
def test_random_bytes_are_policies_or_refused(data: bytes) -> None:
    try:
        policy = decode_policy(data)
    except PolicyError:
        return
    assert policy.encoded == data


@given(st.recursive(st.integers() | st.text(max_size=5) | st.binary(max_size=5), st.lists, max_leaves=12))
def test_any_values_are_policies_or_refused(value: Any) -> None:
    for data in (pack(value), pack((1, "", "test", value, ()))) if _packs(value) else ():
        try:
            decode_policy(data)
        except PolicyError:
            continue


def _packs(value: Any) -> bool:
    try:
        pack(value)
    except (OverflowError, UnicodeEncodeError):
        return False
    return True


# ---- determinism


def chain(seed: int, shuffled: bool) -> State:
    """The same transactions and policies; only the order in which a user wrote a policy's tables differs."""
    table, draw = Table(), random.Random(seed)
    table.run("alpha", *(make_key_block(table.genesis, number) for number in range(1, 5)))
    tables: dict[str, Any] = {
        "delivery": {"quota_keys": 3, "quota_window_blocks": 4, "block_uses_max": 5},
        "suspension": {"aborts": 2, "window_blocks": 9, "clean_blocks": 1},
        "route": {"hops_max": 3, "avoid_nodes": ["gamma", "delta"]},
    }
    if shuffled:
        tables = {name: dict(reversed(tables[name].items())) for name in reversed(tables)}
        tables["route"]["avoid_nodes"] = tables["route"]["avoid_nodes"][::-1]
    in_force(table, **tables)
    for count in range(12):
        kind = draw.randrange(3)
        if kind == 0:
            table.run("alpha", make_key_block(table.genesis, 5 + count))
        elif kind == 1:
            table.run("alpha", AlarmRaised("alpha-beta", 5 + count, "qber", 1, "alpha"))
        else:
            deliver(table, count, hops=(("alpha-beta", draw.randint(1, 4), 0, 256),))
    return table.state


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_equal_histories_give_equal_roots_however_policies_are_written(seed: int) -> None:
    assert chain(seed, False).root == chain(seed, True).root


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_root_does_not_depend_on_the_seed_of_hashes(hash_seed: str) -> None:
    code = "from tests.ledger.contracts.test_policies import chain; print(chain(7, True).root.hex())"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[3])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.strip() == chain(7, True).root.hex()


def test_documents_are_equal_whatever_the_order() -> None:
    one = PolicyDocument("x", (("route.hops_max", 2),))
    with pytest.raises(PolicyError, match="sorted"):
        replace(one, values=(("route.hops_max", 2), ("key_block.qber_max", 2)))
