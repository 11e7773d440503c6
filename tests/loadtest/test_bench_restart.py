"""The bench of restart and catch-up against real daemons, as small as it goes: its figures must add up."""

import pytest
from click.testing import CliRunner

from loadtest.bench_restart import SNAPSHOT_INTERVAL, run
from loadtest.commands import bench

RECORDS = 3_000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nodes", "3"], "4<=x<=31"),
        (["--records", "0"], "not a whole number above 0"),
        (["--records", "2.5"], "not a whole number above 0"),
        (["--records", "3e6"], "at most 2,000,000"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(bench, ["restart", *arguments])
    assert result.exit_code == 2 and complaint in result.output


@pytest.mark.slow
@pytest.mark.integration
def test_restarts_and_wiped_disks_lose_nothing() -> None:
    figures = run(4, RECORDS)
    assert figures["state_roots_equal"] and figures["tx_lost"] == 0
    assert figures["chain_tx"] >= RECORDS and figures["chain_blocks"] > SNAPSHOT_INTERVAL == figures["snapshot_height"]
    assert figures["snapshot_entries"] > figures["chain_tx"], "the state has one entry for every record, and others"
    assert figures["replay_bytes"] > 0 and figures["snapshot_bytes"] > 32 * figures["snapshot_entries"]
    assert figures["disk_rows"] > figures["chain_blocks"] and figures["disk_bytes"] > figures["replay_bytes"] / 2
    times = ("restart_s", "restart_cpu_ms", "restart_replay_s", "start_empty_s", "replay_s", "snapshot_s")
    assert all(figures[name] > 0 for name in times)
    assert figures["replay_cpu_us_per_tx"] >= 0, "so short a chain may be here before the first look"
