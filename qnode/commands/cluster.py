"""`qnode cluster up|status|down` and `qnode status`."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from qnode import cluster as daemons
from qnode.commands.output import cluster_option, json_option, print_json, print_table


@click.group(short_help="Start, see and stop the nodes of a cluster on this machine.")
def cluster() -> None:
    """Start, see and stop the nodes of a cluster directory on this machine.

    \b
    Examples:
      qnode cluster up demo
      qnode cluster status demo --json
      qnode cluster down demo
    """


@cluster.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--timeout", "timeout_s", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds.")
@json_option
def up(directory: Path, timeout_s: float, as_json: bool) -> None:
    """Start every node of DIRECTORY that does not run; return when all are ready."""
    begin_s = time.monotonic()

    def progress(node_id: str, said: dict[str, Any]) -> None:
        if not as_json and said.get("ready"):
            click.echo(f"{node_id} ready: process {said['pid']}, API https://127.0.0.1:{said['api_port']}", err=True)

    found = daemons.Cluster.open(directory)
    ready = daemons.up(found, timeout_s, progress)
    elapsed_s = round(time.monotonic() - begin_s, 3)
    if as_json:
        print_json({"started": ready, "nodes": len(found.members), "seconds": elapsed_s})
    else:
        click.echo(f"{len(ready)} of {len(found.members)} nodes started in {elapsed_s:.1f} s")


@cluster.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds.")
@json_option
def down(directory: Path, timeout_s: float, as_json: bool) -> None:
    """Stop every running node of DIRECTORY; a node that does not stop in time is killed (and loses nothing)."""
    outcome = daemons.down(daemons.Cluster.open(directory), timeout_s)
    if as_json:
        print_json(outcome)
        return
    for node_id, how in outcome.items():
        click.echo(f"{node_id} {how}")


@cluster.command("status")
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def cluster_status(directory: Path, as_json: bool) -> None:
    """Show every node of DIRECTORY. Exit status 0 only when all of them answer."""
    documents = daemons.statuses(daemons.Cluster.open(directory))
    if as_json:
        print_json(documents)
    else:
        print_table(
            ("node", "process", "peers", "height", "state root", "mempool", "keys delivered", "note"),
            [_row(document) for document in documents],
        )
    if any("error" in document for document in documents):
        sys.exit(7)


def _row(document: dict[str, Any]) -> tuple[Any, ...]:
    ledger, keys = document.get("ledger", {}), document.get("keys", {})
    peers = document.get("peers")
    return (
        document["node_id"],
        document.get("pid"),
        len(peers) if peers is not None else None,
        ledger.get("height"),
        str(ledger.get("state_root", "-"))[:12],
        ledger.get("mempool_transactions"),
        keys.get("delivered_as_master"),
        document.get("error", "") or _standing(document["node_id"], ledger),
    )


def _standing(node_id: str, ledger: dict[str, Any]) -> str:
    """Say what keeps a node from voting or from going on."""
    if reason := ledger.get("upgrade_needed"):
        return f"upgrade needed: {reason}"
    return ", ".join(word for word in ("suspended", "revoked") if node_id in ledger.get(word, ()))


@click.command(short_help="Show one node in detail, or all in short.")
@cluster_option
@click.option("--node", "node_id", help="One node in detail; all of them without it.")
@json_option
def status(directory: Path, node_id: str | None, as_json: bool) -> None:
    """Show nodes, links and pools.

    \b
    Examples:
      qnode status --cluster demo
      qnode status --cluster demo --node node-1 --json
    """
    found = daemons.Cluster.open(directory)
    if node_id is None:
        documents = daemons.statuses(found)
        if as_json:
            print_json(documents)
            return
        print_table(
            ("node", "process", "peers", "height", "state root", "mempool", "keys delivered", "note"),
            [_row(document) for document in documents],
        )
        return
    document = found.member(node_id).client(daemons.OPERATOR).call("GET", "/admin/v1/status")
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        if name != "links":
            _show(name, value, 0)
    click.echo("links")
    for link in document.get("links", []):
        _show(link["link_id"], {key: value for key, value in link.items() if key != "link_id"}, 1)


def _show(name: str, value: Any, depth: int) -> None:
    indent = "  " * depth
    if isinstance(value, dict):
        click.echo(f"{indent}{name}")
        for key, each in value.items():
            _show(key, each, depth + 1)
    elif isinstance(value, list):
        click.echo(f"{indent}{name}: {', '.join(str(each) for each in value) or '-'}")
    else:
        click.echo(f"{indent}{name}: {'-' if value is None else value}")
