"""A scenario waits for its network, and no longer than it may."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest import ledger_load, readiness
from loadtest.fleet.launcher import FleetError
from loadtest.readiness import ready
from loadtest.ward import NodeSilent

NODES = ("node-1", "node-2", "node-3")
LINKS = {"link-1-2": NODES[:2], "link-2-3": NODES[1:]}


class Network:
    """Answers as nodes do whose links get key, and then rest, after so many questions; counts who was asked."""

    def __init__(self, key_after: int, rest_after: dict[str, int]) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.node_ids = NODES
        self.cluster = SimpleNamespace(genesis=SimpleNamespace(links=tuple(LINKS)))
        self.operator = self
        self._key_after = key_after
        self._rest_after = rest_after

    async def statuses(self, node_ids: Sequence[str]) -> dict[str, dict[str, Any] | NodeSilent]:
        self.asked.append(tuple(node_ids))
        return {node_id: self._status(node_id) for node_id in node_ids}

    def _status(self, node_id: str) -> dict[str, Any] | NodeSilent:
        if node_id == "node-3" and len(self.asked) == self._key_after + 1:
            return NodeSilent("node-3: TimeoutError")
        has_key, rests = len(self.asked) >= self._key_after, len(self.asked) >= self._rest_after.get(node_id, 0)
        link = {"blocks": int(has_key), "session_runs": not rests, "pool_full": True}
        return {
            "ledger": {"height": 4, "mempool_transactions": 0, "state_key_blocks": 2 * has_key},
            "links": [{**link, "link_id": link_id} for link_id, ends in LINKS.items() if node_id in ends],
            "keys": {"pending_blocks": 0},
        }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LOOK_S", 0.001)
    monkeypatch.setattr(ledger_load, "recorded_blocks", lambda cluster: dict.fromkeys(LINKS, 0))


def wait(network: Any, timeout_s: float, *, rest: bool) -> dict[str, int]:
    return asyncio.run(ready(network, timeout_s, rest=rest))


def test_only_those_that_still_work_are_asked_again_and_all_at_the_end() -> None:
    network = Network(3, {"node-2": 7})
    assert wait(network, 60.0, rest=True) == dict.fromkeys(LINKS, 0)
    assert network.asked[:3] == [NODES[:1]] * 3, "until the chain has the blocks, one node tells"
    assert network.asked[3:] == [NODES, ("node-2", "node-3"), ("node-2",), ("node-2",), NODES]


def test_without_rest_key_on_every_link_is_enough() -> None:
    network = Network(2, dict.fromkeys(NODES, 10**9))
    wait(network, 60.0, rest=False)
    assert network.asked == [NODES[:1], NODES[:1], NODES, ("node-3",), NODES]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Network(10**9, {}), "the chain holds 0 key blocks and the network has 2 links"),
        (Network(1, {"node-3": 10**9}), r"1 links still work \(link-2-3\)"),
    ],
)
def test_what_is_unfinished_at_the_end_of_the_time_is_told(network: Network, words: str) -> None:
    with pytest.raises(FleetError, match=rf"not ready after 0.3 s: {words}; give a longer ready_timeout_s"):
        wait(network, 0.3, rest=True)
