"""The command line without daemons: help, exit codes, messages, JSON, completion."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qnode import cli

GROUPS = ["init", "run", "cluster", "status", "keys", "ledger", "governance", "policy", "link", "version", "completion"]


def invoke(*arguments: str) -> Result:
    """Run the command line in this process, as `main` does."""
    return CliRunner().invoke(cli.cli, list(arguments), prog_name="qnode")


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "qnode", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


def commands(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    import click

    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found += commands(command.get_command(context, name), (*path, name))
    return found


@pytest.mark.parametrize("path", [path for path in commands(cli.cli) if "bench" not in path])
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert "Usage: qnode" in result.output
    assert len(result.output.splitlines()) > 5


def test_the_commands_are_all_there() -> None:
    assert set(GROUPS) <= {path[0] for path in commands(cli.cli) if path}


@pytest.mark.parametrize(
    "group", ["", "cluster", "keys", "ledger", "governance", "policy", "link", "init", "run", "status", "completion"]
)
def test_help_has_examples(group: str) -> None:
    output = invoke(*group.split(), "--help").output
    assert re.search(r"^ +qnode |\"\$\(qnode", output, re.MULTILINE), output


def test_version_says_what_it_runs_on() -> None:
    result = invoke("version", "--json")
    document = json.loads(result.output)
    assert document["emulation"].startswith(("C kernel", "numpy twin"))
    assert document["openssl"].startswith("OpenSSL")
    assert "qnode" in invoke("version").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    output = invoke("completion", shell).output
    assert "_QNODE_COMPLETE" in output


def test_completion_completes() -> None:
    result = run(_QNODE_COMPLETE="bash_complete", COMP_WORDS="qnode cl", COMP_CWORD="1")
    assert "cluster" in result.stdout


def test_init_writes_and_refuses_to_overwrite(tmp_path: Path) -> None:
    directory = str(tmp_path / "new")
    result = invoke("init", directory, "--nodes", "3", "--topology", "line", "--json")
    document = json.loads(result.output)
    assert document["nodes"] == ["node-1", "node-2", "node-3"]
    assert document["chain_id"] == "new"
    again = run("init", directory)
    assert again.returncode == 3
    assert "exists and is not empty" in again.stderr
    assert len(again.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "city"
    assert invoke("init", str(directory), "--nodes", "2").exit_code == 0
    return directory


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run",), 2, "Missing option '--config'"),
        (("run", "--config", "none.toml"), 3, "no such file; `qnode init DIR`"),
        (("cluster", "up", "nowhere"), 3, "is not a cluster"),
        (("status", "--cluster", "nowhere"), 3, "is not a cluster"),
        (("init", "x", "--topology", "knot"), 3, "not a topology"),
        (("init", "x", "--profile", "moon"), 3, "not a link profile"),
        (("link", "plan", "--profile", "moon"), 3, "not a link profile"),
        (("link", "plan", "--profile", "rooftop", "--fibre-km", "5"), 3, "only a fibre has a length"),
        (("keys", "get", "--to", "x"), 2, "say which application asks"),
        (("keys", "get", "--to", "x", "--url", "https://127.0.0.1:1"), 2, "--url needs --cert"),
        (("link", "attack", "l"), 2, "either --kind"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_failures_are_one_clear_line_and_their_code(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    text = capsys.readouterr().err
    assert ended.value.code == code
    assert message in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("keys", "get", "--sae", "nobody", "--to", "x"), 3, "'nobody' is not an application of this chain"),
        (("keys", "get", "--sae", "sae-1-a", "--to", "x"), 5, "nobody listens there; start the node"),
        (("keys", "retrieve", "--sae", "sae-1-a", "--from", "x", "y"), 5, "nobody listens there"),
        (("keys", "status", "--sae", "sae-1-a", "--to", "x"), 5, "nobody listens there"),
        (("status", "--node", "node-9"), 3, "no node 'node-9'; it has node-1, node-2"),
        (("link", "attack", "l", "--off"), 3, "no link 'l'; it has link-1-2"),
        (("link", "attack", "link-1-2", "--kind", "x", "--set", "y"), 2, "not NAME=NUMBER"),
        (("ledger", "show"), 5, "nobody listens there"),
        (("link", "list"), 7, "no answer from node-1, node-2"),
    ],
)
def test_failures_with_a_cluster(
    cluster: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--cluster", str(cluster)])
    text = capsys.readouterr().err
    assert (ended.value.code, message in text) == (code, True), text


def test_a_stopped_cluster_shows_and_stops(cluster: Path) -> None:
    shown = invoke("cluster", "status", str(cluster), "--json")
    assert shown.exit_code == 7
    assert [(x["node_id"], x["running"]) for x in json.loads(shown.output)] == [("node-1", False), ("node-2", False)]
    stopped = invoke("cluster", "down", str(cluster), "--json")
    assert json.loads(stopped.output) == {"node-1": "not running", "node-2": "not running"}


def test_an_empty_chain_holds(cluster: Path) -> None:
    result = invoke("ledger", "verify", "--cluster", str(cluster), "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)["ok"] is True


def test_a_plan_is_computed() -> None:
    near = json.loads(invoke("link", "plan", "--fibre-km", "10", "--json").output)
    far = json.loads(invoke("link", "plan", "--fibre-km", "60", "--json").output)
    assert near["secret_key_rate_bits_per_s"] > far["secret_key_rate_bits_per_s"] > 0
    assert "secret key rate" in invoke("link", "plan").output


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.cli, "main", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["version"])
