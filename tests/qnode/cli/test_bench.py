"""`qnode bench`: plugged in by an entry point, JSON on standard output, a table on standard error."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.commands import bench

ROOT = Path(__file__).parents[3]


def test_the_entry_point_names_the_group() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["qnode.commands"] == {"bench": f"{bench.callback.__module__}:bench"}


def test_figures_and_table_go_their_own_ways() -> None:
    result = CliRunner().invoke(bench, ["amplify", "--bits", "1e4", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["input_bits_per_s"] > 0
    assert "input_bits_per_s" in result.stderr


def test_emulation_runs() -> None:
    result = CliRunner().invoke(bench, ["emulate", "--pulses", "1e6", "--json"])
    assert json.loads(result.stdout)["pulses"] == 1_000_000


@pytest.mark.parametrize("bits", ["0", "-1", "1.5", "many", "inf", "nan"])
def test_a_count_that_is_none_is_refused(bits: str) -> None:
    result = CliRunner().invoke(bench, ["amplify", "--bits", bits])
    assert result.exit_code == 2
