"""Each promise of a node about keys, broken on purpose, makes the checkers of whole-node runs object."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305

from loadtest.simulation.network import MS
from loadtest.simulation.node_faults import NodeFaultPlan
from loadtest.simulation.node_run import NodeRunResult, run_node_seed
from protocol.authentication import Authenticator
from qnode import relay
from qnode.effects import Delete
from qnode.keystore import HELD_TABLE, KeyStore
from qnode.links import Link
from qnode.streams import POSITION_TABLE, AuthenticationStream

SEEDS = range(30)
QUIET = NodeFaultPlan(
    duration_ns=8_000 * MS,
    crashes=False,
    partitions=False,
    bad_network=False,
    clocks=False,
    false_frames=False,
    eavesdroppers=False,
)
CRASHES = NodeFaultPlan(
    duration_ns=8_000 * MS,
    crash_interval_ns=700 * MS,
    partitions=False,
    bad_network=False,
    clocks=False,
    false_frames=False,
    eavesdroppers=False,
)
FALSE_FRAMES = NodeFaultPlan(
    duration_ns=8_000 * MS, crashes=False, partitions=False, bad_network=False, clocks=False, eavesdroppers=False
)


def first_violation(run: Callable[[int], NodeRunResult]) -> str:
    for seed in SEEDS:
        result = run(seed)
        if result.violation is not None:
            return result.violation
    pytest.fail(f"{len(SEEDS)} seeds without a violation: the checkers do not bite")


def test_authentication_key_whose_reservation_is_not_stored_is_noticed() -> None:
    tables = frozenset({POSITION_TABLE})
    assert "K2" in first_violation(lambda seed: run_node_seed(seed, 3, plan=CRASHES, dropped_tables=tables))


def test_a_reservation_that_is_not_made_ahead_of_use_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuthenticationStream, "reserve", lambda *_: [])
    assert "K2" in first_violation(lambda seed: run_node_seed(seed, 3, plan=CRASHES))


def test_used_key_whose_mark_is_not_stored_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mark(*_: object) -> list[Any]:
        return []

    monkeypatch.setattr(KeyStore, "_use", without_mark)
    assert "K3" in first_violation(lambda seed: run_node_seed(seed, 3, plan=CRASHES))


def test_key_that_is_used_before_the_chain_has_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = KeyStore.add_pending

    def at_once(self: KeyStore, block: Any) -> list[Any]:
        writes = real(self, block)
        return writes + self.activate(block.link_id, block.block_number)[1]

    monkeypatch.setattr(KeyStore, "add_pending", at_once)
    assert "K4" in first_violation(lambda seed: run_node_seed(seed, 3, plan=QUIET))


@pytest.mark.slow
def test_transfers_whose_tag_is_not_checked_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anything:
        """A tag that fits every message."""

        def __init__(self, key: bytes) -> None: ...

        def update(self, data: bytes) -> None: ...

        def verify(self, tag: bytes) -> None: ...

        generate_tag = staticmethod(Poly1305.generate_tag)

    monkeypatch.setattr(relay, "Poly1305", Anything)
    violation = first_violation(lambda seed: run_node_seed(seed, 4, topology="ring", plan=FALSE_FRAMES))
    assert any(name in violation for name in ("K5", "K9"))


def test_session_messages_whose_tag_is_not_checked_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: Authenticator, sealed: bytes) -> bytes:
        self._receive.next_key()
        self.opened_messages += 1
        return sealed[16:]

    monkeypatch.setattr(Authenticator, "open", unchecked)
    assert "K10" in first_violation(lambda seed: run_node_seed(seed, 3, plan=FALSE_FRAMES))


@pytest.mark.slow
def test_a_delivered_key_that_stays_on_the_disk_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(self: KeyStore, held: Any) -> Delete:
        del self._held[held.key_id]
        return Delete(HELD_TABLE, b"another")

    monkeypatch.setattr(KeyStore, "_destroy_held", kept)
    assert "K6" in first_violation(lambda seed: run_node_seed(seed, 3, plan=CRASHES))


def test_links_that_never_try_again_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Link._is_free
    monkeypatch.setattr(Link, "_is_free", lambda self: self.authentication.last_block_number < 2 and real(self))
    assert "K9" in first_violation(lambda seed: run_node_seed(seed, 2, plan=QUIET))
