"""SPEC 7.6: the proof of a delivered key holds with the genesis alone, and no member of it can be changed."""

import copy
import functools
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import execution
from ledger.block import Block
from ledger.contracts.actions import encode_action
from ledger.contracts.document import policy_from_document
from ledger.contracts.policy_actions import RemovePolicy, SetPolicy
from ledger.contracts.revocation import RevokeKey, RevokeKeyBlock, RevokeNode
from ledger.delivery_proof import (
    CheckFailed,
    DeliveryProof,
    NotYetProvable,
    Statement,
    UnknownKey,
    check_delivery,
    prove_delivery,
    read_json,
)
from ledger.execution import Rules
from ledger.inputs import TransactionsSubmitted
from ledger.proofs import prove_entry, prove_transaction
from ledger.state import State
from ledger.state_entries import delivery_key
from ledger.transactions import (
    AlarmRaised,
    GovernanceApproved,
    GovernanceProposed,
    KeyBlockRecorded,
    KeyDelivered,
    SaeRegistered,
    encode,
    transaction_id,
)
from tests.ledger.cluster import MS, Net, make_genesis, make_key_block

KEY_ID = bytes(range(16))
HOPS = (("alpha-beta", 1, 0, 256), ("beta-gamma", 3, 128, 100), ("beta-gamma", 4, 0, 156))
DELIVERED = KeyDelivered(KEY_ID, "app-alpha", "late", 256, ("alpha", "beta", "gamma"), HOPS)
LOCAL = KeyDelivered(bytes(16), "app-alpha", "app-alpha", 256, ("alpha",), ())
REFUSED = replace(DELIVERED, key_id=b"refused".ljust(16), hops=(("alpha-beta", 1, 4000, 256), *HOPS[1:]))
AGAIN = replace(DELIVERED, hops=(("alpha-beta", 1, 256, 256), *HOPS[1:]))


def again(net: Net) -> KeyBlockRecorded:
    """A second record of a number: well signed, and refused by the chain."""
    return make_key_block(net.genesis, qber_ppm=1)


def unsigned(net: Net) -> KeyBlockRecorded:
    """A record that only one end signed."""
    return replace(make_key_block(net.genesis), receiver_signature=bytes(64))


def submit(net: Net, node: str, *transactions: Any) -> None:
    net.give(node, TransactionsSubmitted(len(net.outputs), transactions))
    net.pass_time(20 * MS)


@functools.cache
def chain() -> Net:
    """Three key blocks, an application that registers late, deliveries over two links, over none and a refused one."""
    net = Net(make_genesis())
    blocks = [make_key_block(net.genesis, number, "beta-gamma", qber_ppm=number) for number in (3, 4)]
    submit(net, "alpha", make_key_block(net.genesis))
    submit(net, "gamma", SaeRegistered("late", "gamma"))
    submit(net, "beta", *blocks)
    submit(net, "alpha", REFUSED, DELIVERED, LOCAL)
    submit(net, "alpha", AGAIN, again(net), unsigned(net))
    net.pass_time(6_000 * MS)
    return net


@functools.cache
def text(key_id: bytes = KEY_ID) -> str:
    net = chain()
    return json.dumps(prove_delivery(net.replicas["delta"].chain, key_id).document(net.genesis), indent=1)


def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(text())
    return made


def check(found: Any) -> Statement:
    return check_delivery(found, chain().genesis)


def fails(found: Any, name: str) -> str:
    with pytest.raises(CheckFailed) as failed:
        check(found)
    assert name in failed.value.check, failed.value
    return failed.value.reason


def test_a_delivered_key_is_proved() -> None:
    statement = check(read_json(text()))
    said = statement.document()
    assert said["ok"] and said["key_id"] == str(uuid.UUID(bytes=KEY_ID))
    assert (said["master_sae"], said["slave_sae"], said["path"]) == ("app-alpha", "late", ["alpha", "beta", "gamma"])
    hops = [(x["link_id"], x["block_number"], x["offset_bits"], x["size_bits"]) for x in said["hops"]]
    assert tuple(hops) == HOPS
    assert [hop["qber_ppm"] for hop in said["hops"]] == [21_000, 3, 4]
    assert [hop["signed_by"] for hop in said["hops"]] == [["alpha", "beta"], ["beta", "gamma"], ["beta", "gamma"]]
    assert said["as_of"]["height"] >= said["recorded"]["height"]
    # three blocks of ε = 2^-33.219: ε adds up, so log2(3) = 1.585 bits less
    assert said["security_millibits"] == 33_219 - 1_585
    assert {"rules of the chain", "no alarm on alpha-beta", "key block 4 of beta-gamma"} <= set(said["checks"])
    json.dumps(said)


def test_every_node_makes_the_same_statement() -> None:
    net = chain()
    said = [
        check_delivery(prove_delivery(net.replicas[name].chain, KEY_ID).document(net.genesis), net.genesis).document()
        for name in net.replicas
    ]
    assert all(each == said[0] for each in said)


def test_a_key_that_no_link_carried_is_proved() -> None:
    statement = check(read_json(text(bytes(16))))
    assert statement.ok and statement.security_millibits is None and statement.document()["hops"] == []


def test_what_the_chain_does_not_hold_is_not_provable() -> None:
    for key_id in (b"\xff" * 16, REFUSED.key_id):
        with pytest.raises(UnknownKey):
            prove_delivery(chain().replicas["beta"].chain, key_id)


def test_a_delivery_is_provable_one_block_later() -> None:
    net = Net(make_genesis())
    submit(net, "alpha", LOCAL)
    with pytest.raises(NotYetProvable):
        prove_delivery(net.replicas["beta"].chain, LOCAL.key_id)
    submit(net, "gamma", SaeRegistered("x", "gamma"))
    prove_delivery(net.replicas["beta"].chain, LOCAL.key_id)


def test_an_alarm_spoils_the_verdict_and_its_end_restores_it() -> None:
    net = Net(make_genesis())
    submit(net, "alpha", make_key_block(net.genesis))
    submit(net, "alpha", replace(DELIVERED, slave_sae="app-beta", path=("alpha", "beta"), hops=HOPS[:1]))
    submit(net, "beta", AlarmRaised("alpha-beta", 2, "qber", 250_000, "beta"))

    def proved() -> Statement:
        submit(net, "gamma", SaeRegistered("x", "gamma"))
        return check_delivery(prove_delivery(net.replicas["delta"].chain, KEY_ID).document(net.genesis), make_genesis())

    statement = proved()
    assert not statement.ok and statement.alarmed == {"alpha-beta": "qber"}
    assert statement.document()["alarmed"] and not statement.document()["ok"]
    submit(net, "alpha", make_key_block(net.genesis, 5))
    assert proved().ok


def decide(net: Net, action: Any) -> None:
    proposed = GovernanceProposed("alpha", encode_action(action), 10_000)
    submit(net, "alpha", proposed)
    for name in ("beta", "gamma"):
        submit(net, name, GovernanceApproved(transaction_id(encode(proposed)), name))


def simple() -> Net:
    """A key over one link."""
    net = Net(make_genesis())
    submit(net, "alpha", make_key_block(net.genesis))
    submit(net, "alpha", replace(DELIVERED, slave_sae="app-beta", path=("alpha", "beta"), hops=HOPS[:1]))
    return net


def now(net: Net) -> Statement:
    submit(net, "gamma", SaeRegistered("x", "gamma"))
    return check_delivery(prove_delivery(net.replicas["delta"].chain, KEY_ID).document(net.genesis), net.genesis)


@pytest.mark.parametrize(
    ("action", "what"),
    [
        (RevokeKey(KEY_ID, "leaked"), "the key"),
        (RevokeKeyBlock("alpha-beta", 1, "leaked"), "key block 1 of alpha-beta"),
        (RevokeNode("beta", "leaked"), "beta"),
    ],
)
def test_a_revocation_spoils_the_verdict_for_good(action: Any, what: str) -> None:
    net = simple()
    assert "nothing revoked" in now(net).checks
    decide(net, action)
    statement = now(net)
    assert not statement.ok and statement.revoked == {what: "leaked"}
    assert statement.document()["revoked"] == {what: "leaked"}


def test_the_policies_in_force_are_shown_and_judge_the_key() -> None:
    net = simple()
    assert now(net).policies == {}
    decide(net, SetPolicy(policy_from_document({"name": "mild", "key_block": {"qber_max": 0.05}}).encoded))
    statement = now(net)
    assert statement.ok and list(statement.policies) == ["mild"]
    decide(net, SetPolicy(policy_from_document({"name": "strict", "key_block": {"qber_max": 0.02}}).encoded))
    statement = now(net)
    assert not statement.ok and list(statement.policies) == ["mild", "strict"]
    assert statement.against == ("policy.qber: strict: 21000 ppm is above 20000",)
    decide(net, RemovePolicy("strict"))
    assert now(net).ok


def test_an_expired_key_is_no_longer_proved() -> None:
    net = simple()
    decide(net, SetPolicy(policy_from_document({"name": "short", "lifetime": {"blocks": 8}}).encoded))
    assert now(net).ok
    for count in range(8):
        submit(net, "delta", SaeRegistered(f"app-{count}", "delta"))
    assert now(net).against == ("policy.expired: short: block 1 of alpha-beta lived 8 heights",)


def test_no_policy_and_no_revocation_can_be_left_out() -> None:
    net = simple()
    decide(net, SetPolicy(policy_from_document({"name": "strict", "key_block": {"qber_max": 0.02}}).encoded))
    decide(net, RevokeKey(KEY_ID, "leaked"))
    submit(net, "gamma", SaeRegistered("x", "gamma"))
    whole = prove_delivery(net.replicas["delta"].chain, KEY_ID).document(net.genesis)
    for name in whole["contracts"]:
        less = copy.deepcopy(whole)
        del less["contracts"][name]
        with pytest.raises(CheckFailed, match="contracts"):
            check_delivery(less, net.genesis)
        for other in whole["contracts"]:
            if other != name:
                crossed = copy.deepcopy(whole)
                crossed["contracts"][name] = whole["contracts"][other]
                if crossed != whole:
                    with pytest.raises(CheckFailed, match="contracts"):
                        check_delivery(crossed, net.genesis)


# ---- tampering


@pytest.mark.parametrize(
    ("member", "value", "check_name"),
    [
        ("format", "qnode delivery proof 1", "format"),
        ("chain_id", "other", "chain"),
        ("genesis", "00" * 32, "chain"),
        ("key_id", str(uuid.UUID(int=7)), "format"),
        ("key_id", str(uuid.UUID(bytes=KEY_ID)).upper(), "format"),
        ("delivery", "c0", "format"),
        ("delivery", None, "format"),
        ("key_blocks", [], "key blocks"),
        ("key_blocks", 3, "format"),
        ("anchor", "", "format"),
        ("entries", {}, "anchor"),
        ("entries", [], "format"),
        ("surplus", 1, "format"),
    ],
)
def test_each_member_is_bound(member: str, value: Any, check_name: str) -> None:
    fails(document() | {member: value}, check_name)


@pytest.mark.parametrize("member", sorted(document()))
def test_each_member_is_needed(member: str) -> None:
    found = document()
    del found[member]
    fails(found, "format")


def swapped(found: dict[str, Any]) -> None:
    found["key_blocks"][1:] = reversed(found["key_blocks"][1:])


def repeated(found: dict[str, Any]) -> None:
    found["key_blocks"].append(found["key_blocks"][0])


def crossed(found: dict[str, Any]) -> None:
    entries = found["entries"]
    entries["link alpha-beta"], entries["link beta-gamma"] = entries["link beta-gamma"], entries["link alpha-beta"]


def fewer(found: dict[str, Any]) -> None:
    del found["entries"]["link alpha-beta"]


def more(found: dict[str, Any]) -> None:
    found["entries"]["link gamma-delta"] = found["entries"]["link alpha-beta"]


def capital(found: dict[str, Any]) -> None:
    found["anchor"] = found["anchor"].upper()


@pytest.mark.parametrize(
    ("change", "check_name"),
    [
        (swapped, "key block 3 of beta-gamma"),
        (repeated, "key blocks"),
        (crossed, "state entry: link alpha-beta"),
        (fewer, "anchor"),
        (more, "anchor"),
        (capital, "format"),
    ],
)
def test_members_cannot_change_places(change: Callable[[dict[str, Any]], None], check_name: str) -> None:
    found = document()
    change(found)
    fails(found, check_name)


def made(**changes: Any) -> Any:
    net = chain()
    return replace(prove_delivery(net.replicas["beta"].chain, KEY_ID), **changes).document(net.genesis)


def test_a_record_that_the_chain_refused_proves_nothing() -> None:
    """A block holds refused records too: inclusion alone must not convince."""
    net = chain()
    found = net.replicas["beta"].state.delivery(KEY_ID)
    assert found is not None
    refused = prove_transaction(net.replicas["beta"].chain, found[0], transaction_id(encode(REFUSED)))
    refused.check(net.genesis)
    assert "no such entry" in fails(
        made(
            delivery=refused,
            entries={
                **prove_delivery(net.replicas["beta"].chain, KEY_ID).entries,
                "delivery": prove_entry(net.replicas["beta"].chain, delivery_key(REFUSED.key_id)).trie,
            },
        ),
        "state entry: delivery",
    )


def height_of(body: bytes) -> int:
    """Return the height of the only block with this transaction."""
    replica = chain().replicas["beta"]
    for height in range(1, replica.height + 1):
        stored = replica.chain.stored_block(height)
        assert stored is not None
        block = Block.decode(stored.block, replica.genesis.parameters)
        if any(body in bundle.transactions for bundle in block.bundles):
            return height
    raise AssertionError("not on the chain")


@pytest.mark.parametrize(
    ("make", "reason"),
    [(again, "not the one that the chain accepted"), (unsigned, "key_block.signature: not signed by beta")],
)
def test_a_refused_record_of_a_block_does_not_pass_for_the_accepted_one(
    make: Callable[[Net], KeyBlockRecorded], reason: str
) -> None:
    net, body = chain(), encode(make(chain()))
    refused = prove_transaction(net.replicas["beta"].chain, height_of(body), transaction_id(body))
    refused.check(net.genesis)
    honest = prove_delivery(net.replicas["beta"].chain, KEY_ID).key_blocks
    assert reason in fails(made(key_blocks=(refused, *honest[1:])), "rules of the chain")


def test_a_refused_second_delivery_does_not_pass_for_the_first() -> None:
    net, body = chain(), encode(AGAIN)
    refused = prove_transaction(net.replicas["beta"].chain, height_of(body), transaction_id(body))
    assert "not the one that the chain accepted" in fails(made(delivery=refused), "rules of the chain")


class Credulous:
    """Takes every signature for good."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return True


def lax_key_block(state: State, rules: Rules, *rest: Any) -> str | None:
    return execution._record_key_block(state, replace(rules, verifier=Credulous()), *rest)


@pytest.mark.parametrize(
    ("block", "delivered", "reason"),
    [
        ({"transmitter_signature": bytes(64)}, {}, "key_block.signature: not signed by alpha"),
        ({"receiver_signature": bytes(64)}, {}, "key_block.signature: not signed by beta"),
        ({"secret_bits": 8_000}, {}, "key_block.signature"),
        ({}, {"hops": HOPS[:1]}, "the hops do not carry the key to the last node"),
        ({}, {"path": ("alpha", "gamma"), "hops": HOPS[:1]}, "does not carry the next step"),
        ({}, {"hops": (("alpha-beta", 1, 4_000, 256), *HOPS[1:])}, "has only 4096 bits"),
        ({}, {"slave_sae": "app-beta"}, "delivery.slave: app-beta is not registered at gamma"),
    ],
)
def test_a_whole_network_that_ignores_the_rules_does_not_convince(
    block: dict[str, Any], delivered: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every validator commits what breaks a rule: the checker finds it on its own."""

    def lax_delivery(state: State, rules: Rules, sender: str, record: KeyDelivered, tx_id: bytes) -> None:
        state.put_delivery(record.key_id, tx_id)

    net = Net(make_genesis())
    record = replace(DELIVERED, slave_sae="app-gamma")
    with monkeypatch.context() as lax:
        lax.setitem(execution._RULES, KeyBlockRecorded, lax_key_block)
        lax.setitem(execution._RULES, KeyDelivered, lax_delivery)
        submit(net, "alpha", replace(make_key_block(net.genesis), **block))
        submit(net, "beta", *(make_key_block(net.genesis, number, "beta-gamma") for number in (3, 4)))
        submit(net, "alpha", replace(record, **delivered))
        submit(net, "gamma", SaeRegistered("x", "gamma"))
        found = prove_delivery(net.replicas["delta"].chain, KEY_ID).document(net.genesis)
    with pytest.raises(CheckFailed) as failed:
        check_delivery(found, net.genesis)
    assert failed.value.check == "rules of the chain" and reason in failed.value.reason, failed.value


def test_an_older_state_without_the_delivery_is_refused() -> None:
    net = chain()
    blocks = prove_transaction(net.replicas["beta"].chain, 1, transaction_id(encode(make_key_block(net.genesis))))
    fails(made(anchor=blocks.anchor), "state entry: delivery")


def test_another_genesis_is_refused() -> None:
    with pytest.raises(CheckFailed, match="another chain"):
        check_delivery(document(), replace(chain().genesis, time_ns=1))
    with pytest.raises(CheckFailed, match="another chain"):
        check_delivery(document(), make_genesis(("alpha", "beta", "gamma")))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    raw = bytearray(text().encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read_json(raw.decode(errors="replace"))
        check(found)
    except CheckFailed:
        return
    assert found == document(), "only white space may differ"


def strings(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [each for name in value for each in strings(value[name], (*path, name))]
    if isinstance(value, list):
        return [each for index, entry in enumerate(value) for each in strings(entry, (*path, index))]
    return [path]


@pytest.mark.parametrize(
    "path", [path for path in strings(document()) if len(path) > 1 or path[0] in ("delivery", "anchor")]
)
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_changed_byte_inside_each_proof_is_refused(path: tuple[Any, ...], data: st.DataObject) -> None:
    found = copy.deepcopy(document())
    inside = found
    for step in path[:-1]:
        inside = inside[step]
    raw = bytearray.fromhex(inside[path[-1]])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    inside[path[-1]] = raw.hex()
    with pytest.raises(CheckFailed):
        check(found)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_json_is_refused_with_a_reason(found: Any) -> None:
    with pytest.raises(CheckFailed):
        check(found)
    for member in ("delivery", "key_blocks", "anchor", "entries", "key_id", "format"):
        with pytest.raises(CheckFailed):
            check(document() | {member: found})


@pytest.mark.parametrize("bad", ["", "{", "[" * 100_000, '{"format": 1, "format": 1}', "9" * 5000])
def test_text_that_is_no_json_is_refused(bad: str) -> None:
    with pytest.raises(CheckFailed, match="format"):
        check(read_json(bad))


def test_a_proof_comes_back_from_its_document() -> None:
    proof = prove_delivery(chain().replicas["alpha"].chain, KEY_ID)
    assert DeliveryProof.from_document(proof.document(chain().genesis)) == proof
