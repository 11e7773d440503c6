"""SPEC 7.3 and 7.4: the audit of a stored chain, and proofs that need nothing but the genesis."""

import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.audit import verify_chain
from ledger.block import Block
from ledger.chain import StoredBlock
from ledger.encoding import integer_key, unpack
from ledger.execution import receipts_root
from ledger.inputs import TransactionsSubmitted
from ledger.light import ProofError
from ledger.proofs import StateProof, TransactionProof, from_json, prove_entry, prove_transaction, to_json
from ledger.state_entries import delivery_key, key_block_key, key_block_value, link_key
from ledger.transactions import KeyDelivered, SaeRegistered, encode, transaction_id
from ledger.votes import Certificate
from tests.ledger.cluster import MS, Net, make_genesis, make_key_block

HOP = ("alpha-beta", 1, 0, 256)
DELIVERED = KeyDelivered(bytes(range(16)), "app-alpha", "app-beta", 256, ("alpha", "beta"), (HOP,))


@functools.cache
def chain() -> Net:
    """Six blocks: a key block, a delivery, some registrations, one refusal, and empty heartbeats."""
    net = Net(make_genesis())
    net.give("alpha", TransactionsSubmitted(1, (make_key_block(net.genesis),)))
    net.pass_time(5 * MS)
    net.give("alpha", TransactionsSubmitted(2, (DELIVERED, SaeRegistered("x", "beta"), SaeRegistered("y", "alpha"))))
    net.give("beta", TransactionsSubmitted(3, tuple(SaeRegistered(f"z{i}", "beta") for i in range(5))))
    net.pass_time(12_000 * MS)
    return net


def rows() -> list[tuple[bytes, bytes]]:
    return sorted(chain().disks["beta"]["ledger.block"].items())


# ---- the audit


def test_a_good_chain_passes() -> None:
    report = verify_chain(chain().genesis, rows())
    assert report.ok and report.height == chain().replicas["beta"].height
    assert report.state_root == chain().replicas["beta"].state.root
    assert (report.transactions, report.refused) == (9, 1)
    assert report.signatures_checked >= 3 * report.height + 3 + 2
    assert report.document()["fault"] is None


def test_another_genesis_fails() -> None:
    report = verify_chain(replace(chain().genesis, chain_id="other"), rows())
    assert not report.ok and report.height == 0 and "chain" in (report.fault or "")


def test_a_missing_block_fails() -> None:
    report = verify_chain(chain().genesis, rows()[:1] + rows()[2:])
    assert report.height == 1 and "missing" in (report.fault or "")


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_damage_fails(data: st.DataObject) -> None:
    damaged = rows()
    number = data.draw(st.integers(0, len(damaged) - 1))
    row = bytearray(damaged[number][1])
    row[data.draw(st.integers(0, len(row) - 1))] ^= data.draw(st.integers(1, 255))
    damaged[number] = (damaged[number][0], bytes(row))
    report = verify_chain(chain().genesis, damaged)
    assert not report.ok and report.height <= number + 1


def test_a_certificate_below_the_quorum_fails() -> None:
    key, row = rows()[0]
    stored = StoredBlock.decode(row)
    certificate = Certificate.decode(stored.certificate)
    few = replace(certificate, signers=b"\x03", signatures=certificate.signatures[:2])
    report = verify_chain(chain().genesis, [(key, stored._replace(certificate=few.encoded).encoded())])
    assert "quorum" in (report.fault or "")


def test_hidden_refusals_fail() -> None:
    damaged = [(key, StoredBlock.decode(row)._replace(refused=()).encoded()) for key, row in rows()]
    assert "receipts" in (verify_chain(chain().genesis, damaged).fault or "")
    assert receipts_root([]) != b""


# ---- proofs


def delivered_height() -> int:
    found = chain().replicas["beta"].state.delivery(DELIVERED.key_id)
    assert found is not None
    return found[0]


def transaction_proof() -> TransactionProof:
    return prove_transaction(chain().replicas["gamma"].chain, delivered_height(), transaction_id(encode(DELIVERED)))


def test_every_committed_transaction_is_provable_and_no_other() -> None:
    net = chain()
    for key, row in rows():
        block = Block.decode(StoredBlock.decode(row).block, net.genesis.parameters)
        for body in (body for bundle in block.bundles for body in bundle.transactions):
            proof = prove_transaction(net.replicas["beta"].chain, int.from_bytes(key, "big"), transaction_id(body))
            again = from_json(to_json(proof))
            assert isinstance(again, TransactionProof) and again == proof
            again.check(net.genesis)
            assert again.transaction == body
    with pytest.raises(ProofError, match="does not contain"):
        prove_transaction(net.replicas["beta"].chain, 1, bytes(32))
    with pytest.raises(ProofError, match="no committed block"):
        prove_transaction(net.replicas["beta"].chain, 999, bytes(32))


def test_state_entries_and_their_absence_are_provable() -> None:
    net = chain()
    replica = net.replicas["gamma"]
    block = replica.state.key_block("alpha-beta", 1)
    assert block is not None
    assert prove_entry(replica.chain, key_block_key("alpha-beta", 1)).check(net.genesis) == key_block_value(block)
    assert prove_entry(replica.chain, key_block_key("alpha-beta", 2)).check(net.genesis) is None
    assert prove_entry(replica.chain, delivery_key(bytes(16))).check(net.genesis) is None
    value = prove_entry(replica.chain, delivery_key(DELIVERED.key_id)).check(net.genesis)
    assert value is not None and unpack(value)[1] == transaction_id(encode(DELIVERED))
    again = from_json(to_json(prove_entry(replica.chain, link_key("alpha-beta"))))
    assert isinstance(again, StateProof) and again.check(net.genesis)


def test_proofs_are_bound_to_their_chain() -> None:
    with pytest.raises(ProofError, match="another chain"):
        transaction_proof().check(replace(chain().genesis, chain_id="other"))


def test_a_proof_says_nothing_else() -> None:
    proof, genesis = transaction_proof(), chain().genesis
    entry = prove_entry(chain().replicas["beta"].chain, link_key("alpha-beta"))
    few = replace(proof.anchor.certificate, signers=b"\x03", signatures=proof.anchor.certificate.signatures[:2])
    twice = replace(proof.anchor.certificate, signatures=proof.anchor.certificate.signatures[:1] * 3)
    forged = [
        replace(proof, transaction=encode(SaeRegistered("x", "beta"))),
        replace(proof, index=proof.index + 1),
        replace(proof, sequence=proof.sequence + 1),
        replace(proof, sender="beta"),
        replace(proof, path=proof.path[:-1]),
        replace(proof, anchor=replace(proof.anchor, header=replace(proof.anchor.header, time_ns=1))),
        replace(proof, anchor=entry.anchor),
        replace(proof, anchor=replace(proof.anchor, certificate=few)),
        replace(proof, anchor=replace(proof.anchor, certificate=twice)),
        replace(entry, key=link_key("beta-gamma")),
        replace(entry, trie=replace(entry.trie, leaf=None)),
    ]
    for bad in forged:
        with pytest.raises(ProofError):
            bad.check(genesis)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "state", "proof": "00"}', '{"kind": 1, "proof": 2}'])
def test_text_that_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(ProofError):
        from_json(text)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_proofs_are_refused(data: st.DataObject) -> None:
    text = to_json(transaction_proof())
    start = text.index("9")
    at = data.draw(st.integers(start, len(text) - 4))
    bad = text[:at] + data.draw(st.sampled_from("0123456789abcdef")) + text[at + 1 :]
    if bad == text:
        return
    with pytest.raises(ProofError):
        from_json(bad).check(chain().genesis)


def test_keys_of_rows_are_heights() -> None:
    assert [key for key, _ in rows()] == [integer_key(height) for height in range(1, len(rows()) + 1)]
