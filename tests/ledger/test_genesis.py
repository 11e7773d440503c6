"""SPEC 1.3: the agreed beginning, and refusals that say what to do."""

import json
from dataclasses import replace

import pytest

from ledger.genesis import Genesis, GenesisError, GenesisLink, GenesisNode, GenesisParameters, GenesisSae
from tests.ledger.cluster import make_genesis


def test_json_keeps_everything() -> None:
    genesis = make_genesis()
    again = Genesis.from_json(genesis.to_json())
    assert again == genesis and again.digest == genesis.digest


def test_every_member_is_in_the_digest() -> None:
    genesis = make_genesis()
    node = genesis.nodes[0]
    changed = [
        replace(genesis, chain_id="other"),
        replace(genesis, time_ns=1),
        replace(genesis, nodes=(replace(node, validator=False), *genesis.nodes[1:])),
        replace(genesis, nodes=(replace(node, public_key=bytes(32)), *genesis.nodes[1:])),
        replace(genesis, links=genesis.links[1:]),
        replace(genesis, saes=genesis.saes[1:]),
        replace(genesis, parameters=GenesisParameters(bundle_transactions_max=7)),
    ]
    assert len({genesis.digest, *(each.digest for each in changed)}) == len(changed) + 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chain_id": ""}, "chain_id"),
        ({"nodes": ()}, "validator"),
        ({"nodes": (GenesisNode("a", bytes(31)),)}, "public_key"),
        ({"nodes": (GenesisNode("a", bytes(32)), GenesisNode("a", bytes(31) + b"1"))}, "twice"),
        ({"nodes": (GenesisNode("a", bytes(32)), GenesisNode("b", bytes(32)))}, "share"),
        ({"links": (GenesisLink("x", "alpha", "omega"),)}, "omega|not in nodes"),
        ({"links": (GenesisLink("x", "alpha", "alpha"),)}, "itself"),
        ({"saes": (GenesisSae("x", "omega"),)}, "not in nodes"),
    ],
)
def test_impossible_beginnings_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(GenesisError, match=reason):
        replace(make_genesis(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"chain_id": "x"}', "[" * 100_000])
def test_text_that_is_no_genesis_is_refused(text: str) -> None:
    with pytest.raises(GenesisError):
        Genesis.from_json(text)


def test_unknown_and_missing_members_are_named() -> None:
    document = json.loads(make_genesis().to_json())
    with pytest.raises(GenesisError, match="unknown members colour"):
        Genesis.from_json(json.dumps(document | {"colour": 1}))
    del document["nodes"][0]["validator"]
    with pytest.raises(GenesisError, match="lacks validator"):
        Genesis.from_json(json.dumps(document))
    document["nodes"][0]["validator"] = True
    document["nodes"][0]["public_key"] = "xyz"
    with pytest.raises(GenesisError, match="hexadecimal"):
        Genesis.from_json(json.dumps(document))
    for bad in (0, 1.5, "1", True):
        document["parameters"]["block_bundles_max"] = bad
        with pytest.raises(GenesisError):
            Genesis.from_json(json.dumps(document))
