"""Churn in virtual time: sets, keys and programs change under faults, and the checkers notice a missing rule."""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest

import ledger.replica
from ledger import restoration
from ledger.chain import Chain
from ledger.consensus import Consensus
from ledger.contracts.actions import encode_action
from ledger.contracts.entries import Proposal
from ledger.contracts.membership import SetValidator
from ledger.encoding import digest
from ledger.execution import Receipt
from ledger.heights import Heights
from ledger.identity import OwnKeys
from ledger.light import LightClient
from ledger.signatures import Signer
from ledger.state import State
from ledger.transactions import GovernanceApproved, GovernanceProposed, KeyRotated, encode, transaction_id
from ledger.validators import Validators
from loadtest.simulation import world as simulated_world
from loadtest.simulation.faults import FaultPlan
from loadtest.simulation.members import Members
from loadtest.simulation.network import MS
from loadtest.simulation.run import RunResult, run_seed

CALM = replace(FaultPlan.quiet(8_000 * MS), churn=True)
"""Nothing but churn."""
ROUGH = FaultPlan(duration_ns=8_000 * MS, lies=())
UPGRADED_SEED = 11
"""Of four nodes: some have the old program when the version changes."""


def violation_of(run: Callable[[int], RunResult], seeds: range = range(12)) -> str:
    for seed in seeds:
        result = run(seed)
        if result.violation is not None:
            return result.violation
    pytest.fail(f"{len(seeds)} seeds without a violation: the checkers do not bite")


def calm(seed: int) -> RunResult:
    return run_seed(seed, 4, topology="mesh", plan=CALM)


# ---- what must hold


def test_without_other_faults_everything_that_is_asked_for_happens() -> None:
    results = [run_seed(seed, 5, topology="mesh", plan=CALM) for seed in range(3)]
    assert [result.violation for result in results] == [None] * 3
    assert sum(result.set_changes for result in results) > 12
    assert sum(result.rotations for result in results) > 3


def test_churn_under_all_faults() -> None:
    results = [run_seed(seed, 7) for seed in range(2, 4)]
    assert [result.violation for result in results] == [None] * 2
    assert sum(result.set_changes for result in results) > 2


def test_old_programs_stop_and_the_others_go_on() -> None:
    result = run_seed(UPGRADED_SEED, 4)
    assert result.violation is None and result.upgraded


def test_a_block_that_waits_is_appended_after_the_snapshot_below_it() -> None:
    """It had come early, was not asked for again, and nothing else brought its turn: the node stayed behind."""
    result = run_seed(15, 1)
    assert result.violation is None and result.adoptions > 0


def test_the_plain_account_of_members_counts_as_the_rules_say() -> None:
    world = simulated_world.World(1, 4, "mesh", simulated_world.ReplicaSettings(), None, 4, 1)  # type: ignore[arg-type]
    members = Members(world.genesis)
    proposed = GovernanceProposed("n000", encode_action(SetValidator("n003", 0)), 50)
    name = transaction_id(encode(proposed))
    members.take(1, [Receipt(proposed, name, "n000", True, "")])
    for height, approver in enumerate(("n001", "n001", "n002"), 2):
        assert len(members.voting(height + 1)) == 4
        members.take(height, [Receipt(GovernanceApproved(name, approver), bytes(32), approver, True, "")])
    assert [len(members.voting(height)) for height in (4, 5, 6)] == [4, 4, 3]
    rotated = KeyRotated("n001", bytes(32), bytes(range(32)), b"", 9, bytes(64), bytes(64))
    members.take(5, [Receipt(rotated, bytes(32), "n001", False, "refused")])
    members.take(6, [Receipt(rotated, bytes(32), "n001", True, "")])
    assert [members.voting(height)[1].public_key == bytes(range(32)) for height in (7, 8)] == [False, True]
    assert members.set_digest(8) == digest(
        "qnode/validators/1",
        tuple(m.node_id for m in members.voting(8)),
        tuple(m.public_key for m in members.voting(8)),
    )


# ---- the checkers bite


def test_a_set_that_counts_a_height_early_at_one_node_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hasty(Heights):
        def _consensus(self) -> Consensus:
            state = self._core.state
            if self._core.node_id != "n001":
                return super()._consensus()
            with patch.object(state, "validators", state.validators_after):
                return super()._consensus()

    monkeypatch.setattr(ledger.replica, "Heights", Hasty)
    assert "invariant 11" in violation_of(calm)


def test_certificates_under_the_old_set_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "validators", lambda self: State(self._genesis)._following)
    assert "invariant 11" in violation_of(calm)


def test_a_committee_that_never_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "_advance_validators", lambda self: None)
    assert "invariant 11" in violation_of(calm)


def test_a_statement_under_a_retired_key_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(self: OwnKeys, validators: Validators) -> Signer | None:
        return self.first if self.node_id in validators.indices else None

    monkeypatch.setattr(OwnKeys, "voter", first)
    violation = violation_of(calm)
    assert "invariant 21" in violation or "invariant 16" in violation or "invariant 10" in violation


def test_an_old_program_that_goes_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chain, "upgrade_needed", lambda self: None)
    assert "rules that it does not know" in violation_of(lambda seed: run_seed(seed, 4), range(UPGRADED_SEED, 12))


def test_a_snapshot_without_open_proposals_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(state: State, key: bytes, value: bytes) -> None:
        state._changes[key] = value

    monkeypatch.setitem(restoration._RESTORERS, Proposal.PREFIX, forget)
    violation = violation_of(lambda seed: run_seed(seed, 4, topology="mesh", plan=ROUGH))
    assert "executes differently" in violation or "invariant" in violation


def test_a_light_client_that_believes_everything_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LightClient, "check", lambda *_: None)
    assert "invariant 19" in violation_of(calm)


def test_a_light_client_that_knows_the_first_set_only_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LightClient._know
    monkeypatch.setattr(LightClient, "_know", lambda self, height, sets: real(self, height, sets) if height < 3 else 0)
    assert "invariant 19" in violation_of(calm)
