"""The profile of a record accounts for every stage."""

import pytest

from loadtest import profile_ledger


async def test_every_stage_costs_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_ledger, "ROUNDS", 2)
    monkeypatch.setattr(profile_ledger, "RECORDS", 100)
    figures = await profile_ledger.run()
    assert {name.partition(":")[0] for name in figures} == {"submitting", "others", "all"}
    assert all(value >= 0 for value in figures.values()) and figures["all: execute and encode the row"] > 0
