"""Floods of one sender or of many starve nobody (invariant 23, SPEC 3.4 and 3.8), and the checker would notice it."""

import random
from dataclasses import replace

import pytest

from ledger.bundle import Bundle
from ledger.mempool import Mempool
from ledger.state import State
from loadtest.simulation import flood
from loadtest.simulation.flood import FloodResult, heights_max, run_flood
from loadtest.simulation.network import MS

SHORT_NS = 1_200 * MS


def check(result: FloodResult, nodes: int = 7) -> None:
    assert result.violation is None
    assert result.served > 5 and result.wait_heights_max <= heights_max(nodes)
    assert result.flooded > 10 * result.heights / 4, "the flood was none"


@pytest.mark.parametrize(("greedy", "liars"), [(1, 0), (6, 0), (0, 2), (4, 2)])
def test_a_flood_starves_nobody(greedy: int, liars: int) -> None:
    check(run_flood(1, greedy=greedy, liars=liars, duration_ns=SHORT_NS))


@pytest.mark.parametrize("topology", ["ring", "line"])
def test_nor_where_greedy_nodes_relay_what_the_modest_say(topology: str) -> None:
    check(run_flood(2, greedy=4, duration_ns=SHORT_NS, topology=topology))


@pytest.mark.slow
def test_fresh_seeds() -> None:
    seed = random.SystemRandom().getrandbits(32)
    for greedy, liars in ((5, 1), (3, 0)):
        result = run_flood(seed, greedy=greedy, liars=liars, duration_ns=2_000 * MS)
        assert result.violation is None, f"again: run_flood({seed}, greedy={greedy}, liars={liars}): {result.violation}"


def test_the_same_seed_gives_the_same_flood() -> None:
    one, other = (run_flood(3, 4, liars=1, duration_ns=400 * MS) for _ in range(2))
    assert one == other


# ---- the checker bites


def violation(greedy: int = 0, liars: int = 0) -> str:
    for seed in range(5):
        found = run_flood(seed, greedy=greedy, liars=liars, duration_ns=SHORT_NS).violation
        if found is not None:
            return found
    pytest.fail("5 seeds without a violation: the checkers do not bite")


def test_room_without_a_share_for_every_sender_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bound for all: whoever is fastest has the room, and the others are refused at their own nodes."""

    def refusal(self: Mempool, sender: str, sequence: int, size_bytes: int, committed: int) -> str | None:
        taken = sequence <= committed or self.held(sender, sequence) is not None
        room = self.size_bytes + size_bytes <= self._settings.size_bytes_max
        few = len(self) < 7 * self._settings.sender_bundles_max
        return None if room and few and not taken else "refused"

    monkeypatch.setattr(Mempool, "refusal", refusal)
    assert "invariant 23" in violation(greedy=2)


def test_blocks_without_a_part_for_every_sender_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No quota in a block, and bundles in the order of their coming: a long queue of one is served before the rest."""
    everything = replace(
        flood.PARAMETERS,
        sender_block_transactions_max=flood.PARAMETERS.block_transactions_max,
        sender_block_size_bytes_max=flood.PARAMETERS.block_size_bytes_max,
    )
    monkeypatch.setattr(flood, "PARAMETERS", everything)
    monkeypatch.setattr(Mempool, "select", first_come)
    assert "invariant 23" in violation(greedy=6)


def test_a_fixed_order_of_turns_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always from the first name on: where a block has room for four, the fifth that waits is never reached."""
    monkeypatch.setattr(Mempool, "_in_turn", lambda self, state: sorted(self._by_sender))
    assert "invariant 23" in violation(greedy=6)


def test_own_bundles_that_are_let_go_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Mempool.let_go

    def everything(self: Mempool, height: int) -> int:
        self._own = ""
        return real(self, height)

    monkeypatch.setattr(Mempool, "let_go", everything)
    monkeypatch.setattr(flood, "MEMPOOL", replace(flood.MEMPOOL, age_heights_max=6))
    assert "invariant 16" in violation(greedy=6)


def test_bundles_that_wait_for_ever_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mempool, "let_go", lambda self, height: 0)
    monkeypatch.setattr(flood, "MEMPOOL", replace(flood.MEMPOOL, age_heights_max=4))
    assert "invariant 15" in violation(liars=1)


def first_come(self: Mempool, state: State) -> tuple[Bundle, ...]:
    """`Mempool.select` without turns."""
    chosen: list[Bundle] = []
    following = {node.node_id: node.sequence + 1 for node in state.nodes()}
    for bundle in self._by_digest.values():
        size_bytes, transactions = sum(b.size_bytes for b in chosen), sum(len(b.transactions) for b in chosen)
        if bundle.sequence == following[bundle.sender] and self._fits(chosen, bundle, size_bytes, transactions, (0, 0)):
            following[bundle.sender] += 1
            chosen.append(bundle)
    return tuple(chosen)
