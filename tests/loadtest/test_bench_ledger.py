"""The bench of the chain against real daemons, as small as it goes: its figures must add up."""

import pytest
from click.testing import CliRunner

from loadtest.bench_ledger import run
from loadtest.commands import bench
from loadtest.ledger_load import Figures


def test_the_rate_of_a_period_counts_what_was_committed_in_it() -> None:
    figures = Figures(commits=[(1.0, 10), (2.0, 20), (3.0, 30), (4.0, 40)])
    assert figures.committed_between(1.0, 3.0) == (20 + 30) / 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--kill-faulty", "--rate", "5"], "leave --rate out"), (["--nodes", "4", "--validators", "5"], "raise --nodes")],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(bench, ["ledger", *arguments])
    assert result.exit_code == 2 and complaint in result.output


@pytest.mark.slow
@pytest.mark.integration
def test_a_validator_that_is_killed_and_comes_back_loses_nothing() -> None:
    figures = run(4, None, 1.0, kill_faulty=True)
    assert figures["killed"] == 1
    assert figures["tx_lost"] == 0 and figures["state_roots_equal"]
    assert figures["tx_per_s_faulty"] > 0 and figures["caught_up_s"] >= figures["restart_s"] > 0
    assert figures["validate_ms_mean"] > 0 and figures["cpu_ms_per_tx"] > 0
