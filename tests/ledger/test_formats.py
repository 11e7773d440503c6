"""Pinned bytes of every block, transaction and message format: what is on a chain or a wire stays readable (SPEC 5.5).

After a deliberate change of a format, which is a new kind or a new version: `python -m tests.ledger.test_formats`.
"""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from ledger import messages, transactions
from ledger.block import Block, Header, transaction_root
from ledger.bundle import Bundle, make_bundle
from ledger.consensus import Proposal
from ledger.encoding import pack
from ledger.genesis import Genesis, GenesisParameters
from ledger.light import TrustedHeight
from ledger.merkle import TrieProof
from ledger.set_change import SetChange
from ledger.snapshot_head import SnapshotHead
from ledger.transactions import SaeRegistered
from ledger.trie_range import TrieRange
from ledger.validators import Validators, sets_from_value, sets_value
from ledger.votes import FRESH, Certificate, Evidence, Kind, Statement
from tests.ledger.cluster import make_genesis, make_key_block, signer_of

PINNED = Path(__file__).parents[1] / "data" / "ledger_formats.json"
GENESIS = make_genesis()
LIMITS = GENESIS.parameters
D = bytes(range(32))
NAMED: dict[str, Any] = {
    "link_id": "alpha-beta",
    "node_id": "alpha",
    "sae_id": "app",
    "device_id": "watch",
    "reporter": "alpha",
    "reason": "qber",
    "proposer": "alpha",
    "approver": "beta",
    "revoker": "alpha",
    "proof": "p",
    "method": "m",
    "master_sae": "app-alpha",
    "slave_sae": "app-beta",
    "path": ("alpha", "beta"),
    "qber_ppm": 21_000,
    "hops": (("alpha-beta", 1, 0, 256),),
    "key_id": bytes(range(16)),
    "post_quantum_key": b"",
}


def sample(kind: type[Any]) -> Any:
    """A record with a value for every member, by its name or else its type."""
    if kind is transactions.KeyBlockRecorded:
        return make_key_block(GENESIS)
    values: dict[str, Any] = {}
    for each in fields(kind):
        if each.name in NAMED:
            values[each.name] = NAMED[each.name]
        elif each.type is int:
            values[each.name] = 7
        elif each.type is bytes:
            values[each.name] = bytes(64) if "signature" in each.name else D
        else:
            raise AssertionError(f"give {kind.__name__}.{each.name} a value in NAMED")
    return kind(**values)


def statement(kind: Kind = Kind.VOTE) -> Statement:
    return Statement(kind, 9, 2, bytes(32) if kind is Kind.NULLIFY else D, FRESH, "alpha", bytes(64))


def bundle() -> Bundle:
    body = transactions.encode(SaeRegistered("app", "alpha"))
    return make_bundle(signer_of("alpha"), GENESIS.chain_id, GENESIS.digest, "alpha", 1, (body,))


def block() -> Block:
    root = transaction_root([bundle().digest])
    return Block(Header(GENESIS.digest, 9, D, D, D, root, 1_800_000_000_000_000_000), (bundle(),))


def certificate() -> Certificate:
    return Certificate(Kind.FINALIZE, 9, 2, D, FRESH, b"\x07", (bytes(64),) * 3)


def proposal() -> Proposal:
    header = block().header
    said = Statement(Kind.PROPOSE, 9, 2, header.digest, FRESH, "alpha", bytes(64))
    return Proposal(said, header, (bundle().digest,))


SETS = (Validators(("alpha", "beta"), (D, bytes(32))), Validators(("beta",), (D,)))
CHANGE = SetChange(block().header, certificate(), TrieProof(((D, *(b"",) * 15),), (D, b"value")))
RANGE = TrieRange(bytes(32), bytes([255]) * 32, ((b"nkey", b"value"),), (), ())
MESSAGES: tuple[Any, ...] = (
    messages.StatementMessage(statement()),
    messages.ProposalMessage(proposal(), (certificate(),)),
    messages.BundleMessage(bundle().encoded),
    messages.CertificatesMessage((certificate(),)),
    messages.Status(8, 2, b"\x01", b"\x02", b"\x04", ((1, 2, b"\x03"),), ((0, 5),), b"\x06"),
    messages.BundlesWanted((D,)),
    messages.BodyWanted(9, D),
    messages.BodyMessage(block().encoded),
    messages.BlocksWanted(3, 5),
    messages.BlocksMessage(((block().encoded, certificate().encoded),)),
    messages.SnapshotWanted(8),
    messages.SnapshotOffer(SnapshotHead(block().header, block().header, certificate()), (CHANGE,)),
    messages.RangeWanted(8, bytes(32), bytes([255]) * 32),
    messages.RangeMessage(8, RANGE),
    messages.Committed(
        proposal().header, proposal().bundle_digests, replace(certificate(), block=proposal().header.digest)
    ),
)
EVIDENCE = Evidence(statement(Kind.FINALIZE), statement(Kind.NULLIFY), D)
OTHERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "block": (block().encoded, lambda data: Block.decode(data, LIMITS).encoded),
    "block digest": (block().digest, lambda data: data),
    "bundle": (bundle().encoded, lambda data: Bundle.decode(data, LIMITS).encoded),
    "bundle digest": (bundle().digest, lambda data: data),
    "statement": (statement().encoded, lambda data: Statement.decode(data).encoded),
    "certificate": (certificate().encoded, lambda data: Certificate.decode(data).encoded),
    "evidence": (EVIDENCE.encoded, lambda data: Evidence.decode(data).encoded),
    "validator sets": (sets_value(*SETS), lambda data: sets_value(*sets_from_value(data))),
    "set change": (CHANGE.encoded, lambda data: SetChange.decode(data).encoded),
    "validators digest": (SETS[0].digest, lambda data: data),
    "genesis digest": (GENESIS.digest, lambda data: data),
    "genesis": (GENESIS.to_json().encode(), lambda data: Genesis.from_json(data.decode()).to_json().encode()),
    "trusted height": (
        TrustedHeight(D, 9, D, SETS[0]).to_json().encode(),
        lambda data: TrustedHeight.from_json(data.decode()).to_json().encode(),
    ),
}


def formats() -> dict[str, bytes]:
    found = {f"transaction {kind.__name__}": transactions.encode(sample(kind)) for kind in transactions.KINDS.values()}
    found |= {f"message {type(each).__name__}": messages.encode(each) for each in MESSAGES}
    return found | {name: data for name, (data, _) in OTHERS.items()}


def test_every_message_has_a_sample() -> None:
    assert {type(each) for each in MESSAGES} == set(get_args(messages.Message))


def pinned() -> dict[str, str]:
    found: dict[str, str] = json.loads(PINNED.read_text())
    return found


def test_every_format_is_pinned() -> None:
    assert sorted(formats()) == sorted(pinned())


@pytest.mark.parametrize("name", sorted(formats()))
def test_the_bytes_are_those_of_every_release(name: str) -> None:
    assert formats()[name].hex() == pinned()[name]


@pytest.mark.parametrize("kind", transactions.KINDS.values(), ids=lambda kind: kind.__name__)
def test_pinned_transactions_read_back(kind: type[Any]) -> None:
    data = bytes.fromhex(pinned()[f"transaction {kind.__name__}"])
    assert transactions.decode(data) == sample(kind)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_pinned_messages_read_back(message: Any) -> None:
    assert messages.decode(bytes.fromhex(pinned()[f"message {type(message).__name__}"])) == message


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_the_rest_reads_back(name: str) -> None:
    data = bytes.fromhex(pinned()[name])
    assert OTHERS[name][1](data) == data


def test_a_genesis_of_the_first_release_keeps_its_name() -> None:
    """Parameters that joined since do not count while they are at their defaults."""
    document = json.loads(GENESIS.to_json())
    assert len(document["parameters"]) == 6
    assert Genesis.from_json(json.dumps(document)).digest == GENESIS.digest
    assert GenesisParameters().members() == tuple(document["parameters"].items())
    assert len(pack(GenesisParameters(committee_max=7).members())) > len(pack(GenesisParameters().members()))


if __name__ == "__main__":
    PINNED.write_text(json.dumps({name: data.hex() for name, data in sorted(formats().items())}, indent=1) + "\n")
