"""SPEC 5.2: every rule, by the refusal that names it."""

import hashlib
from dataclasses import replace

import pytest

from ledger.block import Block, Header
from ledger.bundle import Bundle, make_bundle
from ledger.execution import Receipt, Rules, bundles_fault, execute
from ledger.genesis import Genesis
from ledger.signatures import Ed25519Verifier
from ledger.state import State
from ledger.transactions import AlarmRaised, KeyDelivered, SaeRegistered, Transaction, encode
from tests.ledger.cluster import make_genesis, make_key_block, signer_of


class Table:
    """A state and the blocks that change it, one bundle each."""

    def __init__(self) -> None:
        self.genesis: Genesis = make_genesis()
        self.state = State(self.genesis)
        self.rules = Rules.of(self.genesis, Ed25519Verifier())

    def bundle(self, sender: str, *bodies: bytes) -> Bundle:
        node = self.state.node(sender)
        assert node is not None
        name = (self.genesis.chain_id, self.genesis.digest, sender, node.sequence + 1)
        return make_bundle(signer_of(sender), *name, bodies)

    def run(self, sender: str, *transactions: Transaction | bytes) -> list[Receipt]:
        bodies = tuple(each if isinstance(each, bytes) else encode(each) for each in transactions)
        header = Header(bytes(32), self.state.height + 1, bytes(32), bytes(32), bytes(32), bytes(32), 1)
        return execute(self.state, Block(header, (self.bundle(sender, *bodies),)), self.rules)

    def reason(self, sender: str, transaction: Transaction | bytes) -> str:
        root_entries = self.state.counts()
        (receipt,) = self.run(sender, transaction)
        if not receipt.ok:
            assert self.state.counts() == root_entries, "a refused transaction changes nothing"
        assert receipt.ok == (receipt.reason == "")
        return receipt.reason.split(":")[0]


@pytest.fixture
def table() -> Table:
    return Table()


def delivered(path: tuple[str, ...], hops: tuple[tuple[str, int, int, int], ...], key: int = 1) -> KeyDelivered:
    key_id = hashlib.sha256(str(key).encode()).digest()[:16]
    return KeyDelivered(key_id, f"app-{path[0]}", f"app-{path[-1]}", 256, path, hops)


def test_a_key_block_is_recorded_and_clears_the_alarm(table: Table) -> None:
    assert table.reason("beta", AlarmRaised("alpha-beta", 1, "qber", 250_000, "beta")) == ""
    link = table.state.link("alpha-beta")
    assert link is not None and link.alarmed and link.alarms_raised == 1 and link.alarm_reason == "qber"
    record = make_key_block(table.genesis, 5)
    assert table.reason("alpha", record) == ""
    link = table.state.link("alpha-beta")
    assert link is not None and not link.alarmed and link.alarms_raised == 1
    assert (link.last_block_number, link.secret_bits, link.blocks_recorded) == (5, 4096, 1)
    block = table.state.key_block("alpha-beta", 5)
    assert block is not None and block.commitment == record.commitment and block.height == 2


def test_key_block_rules(table: Table) -> None:
    genesis = table.genesis
    good = make_key_block(genesis, 5)
    assert table.reason("alpha", replace(good, link_id="nowhere")) == "key_block.link"
    assert table.reason("gamma", good) == "key_block.sender"
    assert table.reason("alpha", replace(good, secret_bits=4095)) == "key_block.signature"
    swapped = replace(good, transmitter_signature=good.receiver_signature)
    assert table.reason("alpha", swapped) == "key_block.signature"
    assert table.reason("alpha", make_key_block(genesis, 5, expiry_height=1)) == "key_block.expired"
    assert table.reason("alpha", good) == ""
    assert table.reason("beta", good) == "key_block.number"
    assert table.reason("beta", make_key_block(genesis, 4)) == "key_block.number"
    assert table.reason("beta", make_key_block(genesis, 6, expiry_height=table.state.height + 1)) == ""


def test_a_record_of_another_chain_is_refused(table: Table) -> None:
    foreign = make_key_block(replace(table.genesis, chain_id="other"))
    assert table.reason("alpha", foreign) == "key_block.signature"


def test_alarm_rules(table: Table) -> None:
    assert table.reason("alpha", AlarmRaised("nowhere", 1, "qber", 1, "alpha")) == "alarm.link"
    assert table.reason("alpha", AlarmRaised("alpha-beta", 1, "qber", 1, "beta")) == "alarm.reporter"
    assert table.reason("gamma", AlarmRaised("alpha-beta", 1, "qber", 1, "gamma")) == "alarm.sender"
    for count in (1, 2):
        assert table.reason("alpha", AlarmRaised("alpha-beta", count, "qber", 1, "alpha")) == ""
        link = table.state.link("alpha-beta")
        assert link is not None and link.alarms_raised == count


def test_delivery_rules(table: Table) -> None:
    table.run("alpha", make_key_block(table.genesis, 1), make_key_block(table.genesis, 2))
    table.run("beta", make_key_block(table.genesis, 1, "beta-gamma"))
    path, hops = ("alpha", "beta", "gamma"), (("alpha-beta", 1, 0, 256), ("beta-gamma", 1, 3840, 256))
    good = delivered(path, hops)
    assert table.reason("beta", good) == "delivery.sender"
    assert table.reason("alpha", replace(good, master_sae="app-beta")) == "delivery.master"
    assert table.reason("alpha", replace(good, slave_sae="app-beta")) == "delivery.slave"
    assert table.reason("alpha", replace(good, slave_sae="nobody")) == "delivery.slave"
    for bad, rule in (
        (hops[:1], "delivery.path"),
        ((), "delivery.path"),
        (hops[::-1], "delivery.path"),
        ((hops[0], ("beta-gamma", 2, 0, 256)), "delivery.hop"),
        ((hops[0], ("beta-gamma", 1, 3841, 256)), "delivery.hop"),
        ((hops[0], ("beta-gamma", 1, 0, 255)), "delivery.path"),
        ((("alpha-beta", 1, 0, 128), hops[1]), "delivery.path"),
        ((*hops, ("gamma-delta", 1, 0, 256)), "delivery.hop"),
        ((*hops, ("alpha-beta", 2, 0, 256)), "delivery.path"),
    ):
        assert table.reason("alpha", replace(good, hops=bad)) == rule, bad
    split = (("alpha-beta", 1, 0, 100), ("alpha-beta", 2, 0, 156), hops[1])
    assert table.reason("alpha", replace(good, hops=split)) == ""
    assert table.reason("alpha", good) == "delivery.key_id"
    assert table.reason("alpha", delivered(path, hops, 2)) == ""
    assert table.reason("alpha", delivered(("alpha",), (), 3)) == ""
    found = table.state.delivery(good.key_id)
    assert found is not None and found[1] == hashlib.sha256(b"\x00" + encode(replace(good, hops=split))).digest()


def test_application_rules(table: Table) -> None:
    assert table.reason("beta", SaeRegistered("new", "alpha")) == "sae.sender"
    assert table.reason("beta", SaeRegistered("new", "beta")) == ""
    assert table.reason("beta", SaeRegistered("new", "beta")) == ""
    assert table.reason("alpha", SaeRegistered("new", "alpha")) == "sae.taken"


def test_malformed_bodies_are_refused_in_their_place(table: Table) -> None:
    good = encode(SaeRegistered("new", "beta"))
    receipts = table.run("beta", b"\x00", good, good + b"\x00")
    assert [receipt.ok for receipt in receipts] == [False, True, False]
    assert receipts[0].transaction is None and receipts[0].reason.startswith("malformed")


def test_refusals_enter_the_state_root() -> None:
    roots = set()
    for body in (b"\x00", encode(SaeRegistered("new", "alpha"))):
        table = Table()
        table.run("beta", body)
        roots.add(table.state.root)
    assert len(roots) == 2


def test_sequences_continue_without_gaps(table: Table) -> None:
    name = (table.genesis.chain_id, table.genesis.digest)
    one, two, three = (make_bundle(signer_of("beta"), *name, "beta", n, (b"x",)) for n in (1, 2, 3))
    stranger = make_bundle(signer_of("omega"), *name, "omega", 1, (b"x",))
    assert bundles_fault(table.state, (one, two)) is None
    for bad in ((two,), (one, one), (one, three), (two, one), (stranger,)):
        assert bundles_fault(table.state, bad) is not None


def test_equal_histories_give_equal_roots() -> None:
    roots = []
    for _ in range(2):
        table = Table()
        table.run("alpha", make_key_block(table.genesis, 1), AlarmRaised("alpha-beta", 2, "qber", 1, "alpha"))
        table.run("delta", delivered(("delta",), ()))
        roots.append(table.state.root)
    assert roots[0] == roots[1]
