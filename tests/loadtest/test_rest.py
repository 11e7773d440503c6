"""What keeps a network from being measured, from what its nodes say."""

from typing import Any

import pytest

from loadtest.rest import unrest


def status(height: int = 5, waiting: int = 0, pending: int = 0, **link: Any) -> dict[str, Any]:
    said = {"link_id": "link-1-2", "blocks": 1, "session_runs": False, "pool_full": True} | link
    ledger = {"height": height, "mempool_transactions": waiting}
    return {"ledger": ledger, "links": [said], "keys": {"pending_blocks": pending}}


def test_full_links_an_empty_mempool_and_one_height_are_rest() -> None:
    found = unrest({"node-1": status(), "node-2": status()})
    assert not found and str(found) == ""


def test_an_idle_chain_may_beat_while_nodes_are_asked() -> None:
    assert not unrest({"node-1": status(5), "node-2": status(7), "node-3": status(9)})


@pytest.mark.parametrize(
    ("other", "words", "counts_without_rest"),
    [
        ({}, "1 nodes do not answer (node-2)", True),
        (status(blocks=0), "1 links have no key yet (link-1-2)", True),
        (status(session_runs=True), "1 links still work (link-1-2)", False),
        (status(pool_full=False), "1 links still work (link-1-2)", False),
        (status(pending=1), "1 links still work (link-1-2)", False),
        (status(waiting=2), "1 nodes hold records that wait for a block (node-2)", False),
        (status(height=10), "nodes stand at heights 5 to 10", False),
    ],
)
def test_what_is_unfinished_at_either_end_is_told(other: dict[str, Any], words: str, counts_without_rest: bool) -> None:
    statuses = {"node-1": status(), "node-2": other}
    assert str(unrest(statuses)) == words
    assert bool(unrest(statuses, rest=False)) == counts_without_rest


def test_of_many_links_some_are_named() -> None:
    many = {f"node-{n}": status(blocks=0, link_id=f"link-{n}-{n + 1}") for n in range(9)}
    assert str(unrest(many)) == "9 links have no key yet (link-0-1, link-1-2, link-2-3, …)"
