"""Real daemons as processes: start, readiness, bad starts, clean stop, kill and restart."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qnode import cluster as daemons
from qnode.cluster import Cluster, ClusterError
from qnode.io import pidfile

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def qnode(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "qnode", *arguments], capture_output=True, text=True, timeout=90)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "city"
    # short blocks on a short link keep the processors free for what is tested here
    assert qnode("init", str(made), "--nodes", "2", "--profile", "campus").returncode == 0
    for path in made.glob("*.toml"):
        path.write_text(path.read_text().replace("pre_shared_secret", "block_pulses = 100_000\npre_shared_secret"))
    yield made
    daemons.down(Cluster.open(made), 10.0)


def test_start_ask_kill_restart_stop(directory: Path) -> None:
    up = qnode("cluster", "up", str(directory), "--json")
    assert up.returncode == 0, up.stderr
    assert [each["ready"] for each in json.loads(up.stdout)["started"]] == [True, True]

    statuses = json.loads(qnode("cluster", "status", str(directory), "--json").stdout)
    assert [each["daemon"]["pid"] for each in statuses] == [each["pid"] for each in statuses]
    assert {each["daemon"]["checksum_failures"] for each in statuses} == {0}

    status = qnode("keys", "status", "--cluster", str(directory), "--sae", "sae-1-a", "--to", "sae-2-a", "--json")
    assert json.loads(status.stdout)["max_SAE_ID_count"] == 0
    unknown = "00000000-0000-4000-8000-000000000000"
    refused = qnode("keys", "retrieve", "--cluster", str(directory), "--sae", "sae-2-a", "--from", "sae-1-a", unknown)
    assert refused.returncode == 6
    assert "one or more keys specified are not found on KME" in refused.stderr

    first = Cluster.open(directory).member("node-1")
    process = first.process
    assert process is not None
    os.kill(process, signal.SIGKILL)
    pidfile.wait_until_stopped(first.settings.state_directory)
    again = qnode("cluster", "up", str(directory), "--json")
    assert [each["node_id"] for each in json.loads(again.stdout)["started"]] == ["node-1"]

    down = qnode("cluster", "down", str(directory), "--json")
    assert json.loads(down.stdout) == {"node-1": "stopped", "node-2": "stopped"}
    verified = qnode("ledger", "verify", "--cluster", str(directory), "--json")
    assert verified.returncode == 0, verified.stdout
    log = [json.loads(line) for line in (directory / "node-2" / "node.log").read_text().splitlines()]
    assert log[-1]["event"] == "stopped"
    assert {"ready", "peer connected", "stopping"} <= {line["event"] for line in log}


def fails(directory: Path, code: int, message: str) -> None:
    """Run node-1 in the foreground; it must end at once with one line and the code."""
    result = qnode("run", "--config", str(directory / "node-1.toml"))
    text = result.stderr.splitlines()[-1]
    assert (result.returncode, re.search(message, text) is not None) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


def test_bad_starts_are_explained(directory: Path) -> None:
    config, state = directory / "node-1.toml", directory / "node-1" / "state"
    good = config.read_text()

    config.write_text(good.replace("[api]", "colour = 3\n[api]"))
    fails(directory, 3, r"unknown key 'colour' in \[peer_to_peer\]; the valid keys are")
    config.write_text(good)

    api_port = int(re.findall(r"listen_port = (\d+)", good)[1])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", api_port))
        taken.listen()
        fails(directory, 5, f"port {api_port} on 127.0.0.1 is in use")

    shutil.copy(directory / "node-2" / "api.crt", directory / "node-1" / "api.crt")
    fails(directory, 3, "api.crt: does not belong to the private key")
    shutil.copy(directory / "node-2" / "identity.key", directory / "node-1" / "identity.key")
    fails(directory, 3, "peer.crt: does not belong to the private key")

    directory.joinpath("node-1").rename(directory / "away")
    fails(directory, 3, "cannot be read")
    (directory / "node-1").unlink() if (directory / "node-1").is_symlink() else shutil.rmtree(directory / "node-1")
    directory.joinpath("away").rename(directory / "node-1")
    assert not (state / "node.sqlite3").is_dir()


def test_a_corrupt_database_and_a_second_daemon_are_explained(directory: Path) -> None:
    state = directory / "node-1" / "state"
    with pidfile.PidFile(state):
        fails(directory, 3, f"already running as process {os.getpid()}")
    (state / "node.sqlite3").write_bytes(b"not a database at all " * 1000)
    fails(directory, 4, "not a database, or its first page is destroyed.*empty state directory")


def test_a_cluster_whose_node_cannot_start_is_stopped_again(directory: Path) -> None:
    config = directory / "node-2.toml"
    config.write_text(config.read_text().replace("genesis.json", "none.json"))
    said: list[dict[str, Any]] = []
    with pytest.raises(ClusterError, match=r"node-2: .*none\.json.*cannot be read"):
        daemons.up(Cluster.open(directory), 60.0, lambda node_id, words: said.append(words))
    assert [member.process for member in Cluster.open(directory).members] == [None, None]
    assert any(not words.get("ready") for words in said)
