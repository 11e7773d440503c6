"""Each rule of the commit protocol, switched off, makes the checkers object: they would notice its loss."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ledger.anti_entropy import AntiEntropy
from ledger.bodies import Bodies
from ledger.consensus import Consensus
from ledger.core import CERTIFICATE_TABLE, SIGNER_TABLE, STATEMENT_TABLE, Core
from ledger.guard import Guard
from ledger.messages import Committed, Message
from ledger.validators import Validators
from ledger.votes import Kind
from loadtest.simulation.faults import FaultPlan
from loadtest.simulation.network import MS
from loadtest.simulation.run import RunResult, run_seed

SEEDS = range(80)
LIARS = FaultPlan(
    lies=("agree_with_all", "equivocate"), duration_ns=6_000 * MS, stops=False, broken_machines=False, churn=False
)
FORGERS = replace(LIARS, lies=(*LIARS.lies, "propose_fresh"), duration_ns=8_000 * MS)


def first_violation(run: Callable[[int], RunResult]) -> str:
    for seed in SEEDS:
        result = run(seed)
        if result.violation is not None:
            return result.violation
    pytest.fail(f"{len(SEEDS)} seeds without a violation: the checkers do not bite")


def allow_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the guard away, so that the rule under test is the last line."""
    monkeypatch.setattr(Guard, "allows", lambda *_: True)


def test_a_quorum_of_one_less_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Validators.quorum.fget
    monkeypatch.setattr(Validators, "quorum", property(lambda self: real(self) - 1))
    assert "invariant" in first_violation(lambda seed: run_seed(seed, 4, topology="mesh", plan=LIARS))


def test_a_signing_record_that_is_not_stored_is_noticed() -> None:
    tables = frozenset({SIGNER_TABLE, STATEMENT_TABLE})
    violation = first_violation(lambda seed: run_seed(seed, 4, topology="mesh", dropped_tables=tables))
    assert "invariant 8" in violation


def test_forgotten_statements_are_noticed_as_double_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_everything(monkeypatch)
    tables = frozenset({STATEMENT_TABLE})
    violation = first_violation(lambda seed: run_seed(seed, 4, topology="mesh", dropped_tables=tables))
    assert "invariant 2 " in violation or "invariant 8 " in violation  # a step that is said again, or one below it


def test_votes_without_justification_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Consensus, "is_justified", lambda *_: True)
    violation = first_violation(lambda seed: run_seed(seed, 4, topology="mesh", plan=FORGERS))
    assert "invariant 7" in violation or "invariant 5" in violation


def test_finalize_after_nullify_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def may_say(self: Consensus, kind: Kind) -> bool:
        return self._is_validator and self.view not in self._said[kind]

    allow_everything(monkeypatch)
    monkeypatch.setattr(Consensus, "_can_say", may_say)
    violation = first_violation(lambda seed: run_seed(seed, 4, topology="mesh"))
    assert any(f"invariant {number} " in violation for number in (2, 4, 5, 8))


def test_bodies_that_are_not_logged_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bodies, "store", lambda *_: None)
    assert "invariant 7" in first_violation(lambda seed: run_seed(seed, 4, topology="mesh"))


def test_certificates_that_are_not_logged_are_noticed() -> None:
    tables = frozenset({CERTIFICATE_TABLE})
    violation = first_violation(lambda seed: run_seed(seed, 4, topology="mesh", dropped_tables=tables))
    assert "invariant 6" in violation


def test_messages_before_the_sync_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Core.send_to_all

    def send_at_once(self: Core, peers: list[str], message: Message, *, urgent: bool, after_sync: bool) -> None:
        real(self, peers, message, urgent=urgent, after_sync=False)

    monkeypatch.setattr(Core, "send_to_all", send_at_once)
    assert "invariant" in first_violation(lambda seed: run_seed(seed, 4, topology="mesh"))


def test_decisions_with_own_statements_before_the_sync_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Core.send_to_all

    def tell_at_once(self: Core, peers: list[str], message: Message, *, urgent: bool, after_sync: bool) -> None:
        waits = after_sync and not isinstance(message, Committed)
        real(self, peers, message, urgent=urgent, after_sync=waits)

    monkeypatch.setattr(Core, "send_to_all", tell_at_once)
    violation = first_violation(lambda seed: run_seed(seed, 6, validators=4, topology="core"))
    assert "invariant 8" in violation


def test_without_anti_entropy_the_liveness_check_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AntiEntropy, "push_gap", lambda *_: None)
    monkeypatch.setattr(AntiEntropy, "push_bundles", lambda *_: None)
    monkeypatch.setattr(AntiEntropy, "ask_for_blocks", lambda *_: None)
    assert "invariant 16" in first_violation(lambda seed: run_seed(seed, 4, topology="mesh"))
