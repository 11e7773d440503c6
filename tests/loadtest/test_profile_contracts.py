"""The table of what contracts cost: every case executes, and rules are seen to cost something."""

from loadtest.profile_contracts import CASES, run


def test_every_case_is_executed_and_timed() -> None:
    figures = run(records=200, rounds=2)
    assert list(figures) == list(CASES)
    assert all(value > 0 for value in figures.values())
    assert figures["32 policies of limits"] > figures["no policy"]
