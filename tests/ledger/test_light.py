"""SPEC 7.8: a light client follows the validators through every change, and nothing forged, dropped or reordered."""

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.contracts.membership import AdmitNode, RemoveNode, SetValidator
from ledger.delivery_proof import CheckFailed, check_delivery, prove_delivery
from ledger.encoding import MalformedEncoding
from ledger.light import LightClient, ProofError, TrustedHeight
from ledger.proofs import TransactionProof, prove_entry, prove_transaction
from ledger.set_change import SetChange
from ledger.state_entries import link_key
from ledger.transactions import KeyDelivered, SaeRegistered, encode, transaction_id
from tests.ledger.cluster import MS, Net, make_genesis, make_key_block, signer_of
from tests.ledger.test_churn import advance, decide, rotate, submit

HOP = ("alpha-beta", 1, 0, 256)
EARLY = KeyDelivered(bytes(range(16)), "app-alpha", "app-beta", 256, ("alpha", "beta"), (HOP,))
LATE = replace(EARLY, key_id=bytes(range(1, 17)), hops=(("alpha-beta", 2, 0, 256),))


@functools.cache
def net() -> Net:
    """A chain on which nobody who voted at first votes at the end with the same key, and the ends of links rotated."""
    net = Net(make_genesis())
    submit(net, "alpha", make_key_block(net.genesis, 1))
    net.pass_time(20 * MS)
    submit(net, "alpha", EARLY)
    advance(net, 2)
    for name in ("omega", "psi"):
        decide(net, AdmitNode(name, signer_of(name).public_key, 1), by=("alpha", "beta", "gamma", "delta", "omega"))
        net.start(name)
    everybody = ("beta", "gamma", "delta", "omega", "psi")
    decide(net, RemoveNode("delta", "gone"), by=("alpha", *everybody))
    rotate(net, "alpha", "beta", "gamma")
    advance(net, 3)
    decide(net, SetValidator("gamma", 0), by=("alpha", "beta", "omega", "psi"))
    advance(net, 3)
    submit(net, "alpha", make_key_block(net.genesis, 2))  # signed with the old keys
    net.pass_time(20 * MS)
    submit(net, "alpha", LATE)
    advance(net, 3)
    return net


def changes() -> list[SetChange]:
    return net().replicas["beta"].chain.set_changes()


def light(*, follow: bool = True, trusted: TrustedHeight | None = None) -> LightClient:
    found = LightClient(net().genesis, trusted=trusted)
    if follow:
        found.follow(changes())
    return found


def document(record: KeyDelivered = LATE, node: str = "omega") -> dict[str, Any]:
    made = prove_delivery(net().replicas[node].chain, record.key_id).document(net().genesis)
    again: dict[str, Any] = json.loads(json.dumps(made))
    return again


# ---- following


def test_every_node_proves_the_same_changes() -> None:
    assert len(changes()) >= 5
    for replica in net().replicas.values():
        if replica.node_id != "delta":
            found = [(each.header, each.trie) for each in replica.chain.set_changes()]  # certificates may differ
            assert found == [(each.header, each.trie) for each in changes()]


def test_the_changes_survive_a_restart() -> None:
    before = [each.encoded for each in net().replicas["omega"].chain.set_changes()]
    rows = net().disks["omega"]["ledger.set_change"]
    assert sorted(rows.values()) == sorted(before)
    net().stop("omega")
    assert [each.encoded for each in net().start("omega").chain.set_changes()] == before


def test_a_header_of_today_is_believed_after_following_only() -> None:
    proof = prove_entry(net().replicas["beta"].chain, link_key("alpha-beta"))
    assert proof.check(light())
    with pytest.raises(ProofError, match="no proven change"):
        proof.check(light(follow=False))


def test_without_any_of_the_changes_the_rest_does_not_hold() -> None:
    proof = prove_entry(net().replicas["beta"].chain, link_key("alpha-beta"))
    for missing in range(len(changes())):
        client = light(follow=False)
        with pytest.raises(ProofError):
            client.follow(changes()[:missing] + changes()[missing + 1 :])
            proof.check(client)


def test_reordered_and_repeated_changes_are_refused() -> None:
    for bad in ([*reversed(changes())], [changes()[0], changes()[0], *changes()[1:]]):
        with pytest.raises(ProofError, match=r"out of order|no proven change"):
            light(follow=False).follow(bad)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_change_with_any_byte_flipped_is_refused(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(changes()) - 1))
    encoded = bytearray(changes()[index].encoded)
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((ProofError, MalformedEncoding)):
        forged = SetChange.decode(bytes(encoded))
        light(follow=False).follow([*changes()[:index], forged, *changes()[index + 1 :]])


def test_a_change_whose_certificate_is_of_another_set_is_refused() -> None:
    first, second = changes()[:2]
    for bad in (replace(first, certificate=second.certificate), replace(first, trie=second.trie)):
        with pytest.raises(ProofError):
            light(follow=False).follow([bad])


# ---- exactly the committed transactions (invariant 19)


def test_every_committed_transaction_is_proven_whoever_signed_it() -> None:
    replica = net().replicas["beta"]
    client, count = light(), 0
    header = prove_entry(replica.chain, link_key("alpha-beta")).anchor.header
    for node in replica.state.nodes():
        for key in replica.state.keys_of(node.node_id):
            client.learn_key(key.public_key, replica.state.prove(b"k" + key.public_key, previous=True), header)
    for commit in net().commits("beta"):
        for bundle in commit.block.bundles:
            for body in bundle.transactions:
                proof = prove_transaction(replica.chain, commit.height, transaction_id(body))
                proof.check(client)
                count += 1
                other = encode(SaeRegistered("never", bundle.sender))
                with pytest.raises(ProofError):
                    replace(proof, transaction=other).check(client)
    assert count > 20


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_proof_is_refused(data: st.DataObject) -> None:
    proof = late_record()
    members = {
        "index": st.integers(0, 3),
        "count": st.integers(1, 9),
        "sender": st.sampled_from(("alpha", "beta", "omega", "nobody")),
        "sequence": st.integers(1, 99),
        "signature": st.binary(min_size=64, max_size=64),
        "bundle_index": st.integers(0, 3),
        "bundle_count": st.integers(1, 5),
    }
    name = data.draw(st.sampled_from(sorted(members)))
    bad = replace(proof, **{name: data.draw(members[name])})  # type: ignore[arg-type]
    if bad == proof:
        return
    with pytest.raises(ProofError):
        bad.check(light())


@functools.cache
def late_record() -> TransactionProof:
    """A transaction of a node whose key is that of the genesis, under a late header."""
    replica = net().replicas["beta"]
    height, found = replica.state.delivery(EARLY.key_id) or (0, b"")
    proof = prove_transaction(replica.chain, height, found)
    proof.check(light())
    return proof


# ---- delivered keys


@pytest.mark.parametrize("record", [EARLY, LATE])
def test_keys_of_nodes_that_rotated_are_proven(record: KeyDelivered) -> None:
    for node in ("alpha", "omega"):
        statement = check_delivery(document(record, node), net().genesis)
        assert statement.ok and {"changes of validators", "node keys"} <= set(statement.checks)


@pytest.mark.parametrize("member", ["set_changes", "node_keys"])
def test_what_the_proof_needs_cannot_be_left_out(member: str) -> None:
    found = document()
    found[member] = type(found[member])()
    with pytest.raises(CheckFailed):
        check_delivery(found, net().genesis)


def test_a_stranger_s_key_is_refused() -> None:
    found = document()
    key = next(iter(found["node_keys"]))
    found["node_keys"][signer_of("stranger").public_key.hex()] = found["node_keys"].pop(key)
    with pytest.raises(CheckFailed, match="node keys"):
        check_delivery(found, net().genesis)


# ---- trusted heights


def trusted_today() -> TrustedHeight:
    return light().trusted_at(prove_entry(net().replicas["beta"].chain, link_key("alpha-beta")).anchor.header)


def test_a_trusted_height_replaces_the_genesis_and_believes_nothing_older() -> None:
    trusted = TrustedHeight.from_json(trusted_today().to_json())
    assert trusted == trusted_today()
    proof = prove_entry(net().replicas["beta"].chain, link_key("alpha-beta"))
    assert proof.check(light(follow=False, trusted=trusted))
    assert proof.check(light(trusted=trusted)), "older changes are passed over"
    with pytest.raises(ProofError, match="older than the trusted height"):
        late_record().check(light(trusted=trusted))
    with pytest.raises(ProofError, match="not the trusted block"):
        proof.check(light(trusted=replace(trusted, block=bytes(32))))


def test_a_trusted_height_in_the_middle_is_followed_on() -> None:
    middle = changes()[2]
    client = light(follow=False)
    client.follow(changes()[:2])
    trusted = client.trusted_at(middle.header)
    assert prove_entry(net().replicas["beta"].chain, link_key("alpha-beta")).check(light(trusted=trusted))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": "qnode trusted height 1"}', '{"format": 7, "genesis": "", "validators": []}']
)
def test_what_is_no_trusted_height_is_refused(text: str) -> None:
    with pytest.raises(ProofError, match="--write-trusted"):
        TrustedHeight.from_json(text)


def test_a_trusted_height_of_another_chain_is_refused() -> None:
    with pytest.raises(ProofError, match="another chain"):
        LightClient(make_genesis(("alpha",)), trusted=trusted_today())
