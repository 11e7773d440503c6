"""`qnode policy` without a node: shipped examples, and errors that say what to do."""

import json
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ledger.contracts.document import decode_policy
from qnode import cli
from qnode.commands.policy import read_policy
from qnode.settings import SettingsError

SHIPPED = sorted(
    each.name.removesuffix(".toml")
    for each in resources.files("config").joinpath("policies").iterdir()
    if each.name.endswith(".toml")
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, list(arguments), prog_name="qnode")


def test_examples_ship() -> None:
    assert SHIPPED == ["baseline", "hospital", "long-running", "sensors", "separation"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_policy_is_good(name: str) -> None:
    result = invoke("policy", "check", name)
    assert result.exit_code == 0 and result.output.endswith("good\n")
    policy = read_policy(name)
    assert policy.name == name and decode_policy(policy.encoded) == policy


def test_json_files_are_read_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "mine", "route": {"hops_max": 2}}))
    document = json.loads(invoke("policy", "check", str(file), "--json").output)
    assert document["policy"] == {"name": "mine", "route": {"hops_max": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "mine.toml: "),
        ("[route]\nhops_max = 2", "name must be"),
        ('name = "x"\n[route]\nhops = 2', "has avoid_nodes, hops_max"),
        (
            'name = "x"\n[[predicate]]\nname = "y"\non = "delivery"\nexpression = "now() > 1"',
            "the variables are master",
        ),
    ],
)
def test_bad_files_say_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_policy(str(file))


def test_a_missing_file_names_those_that_ship() -> None:
    with pytest.raises(SettingsError, match="baseline, hospital, long-running, sensors, separation"):
        read_policy("nothing")
