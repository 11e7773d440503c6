"""`qnode policy check|set|remove|show`: key policies as files, proposed to the validators (S0-B3)."""

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.cluster import OPERATOR, Cluster
from qnode.commands.governance import expires_option, node_option, speaker, submit_proposal
from qnode.commands.output import cluster_option, json_option, print_json
from qnode.settings import SettingsError

if TYPE_CHECKING:
    from ledger.contracts.document import PolicyDocument


@click.group(short_help="Rules for keys that the chain enforces.")
def policy() -> None:
    """Rules for keys that the chain enforces: quality, lifetime, quotas, who with whom, over which nodes.

    FILE is a TOML or JSON file, or the name of one that ships with qnode (baseline, hospital, long-running, sensors,
    separation). A policy is in force when a quorum of the validators has approved its proposal: `qnode governance
    approve`.

    \b
    Examples:
      qnode policy check baseline
      qnode policy set baseline --cluster demo
      qnode governance approve PROPOSAL --node node-2 --cluster demo
      qnode policy show --cluster demo
    """


@policy.command()
@click.argument("file")
@json_option
def check(file: str, as_json: bool) -> None:
    """Check a policy FILE without a node: every rule, range and expression; nothing is proposed."""
    document = read_policy(file)
    if as_json:
        print_json({"ok": True, "size_bytes": len(document.encoded), "policy": document.described()})
    else:
        rules = len(document.values) + len(document.predicates)
        click.echo(f"{document.name}: {rules} rules and selectors, {len(document.encoded)} bytes on the chain: good")


@policy.command("set")
@cluster_option
@node_option
@click.argument("file")
@expires_option
@json_option
def set_policy(directory: Path, node_id: str | None, file: str, expires_in: int, as_json: bool) -> None:
    """Propose to put the policy of FILE in force, in place of the one of its name."""
    from ledger.contracts.policy_actions import SetPolicy

    action = SetPolicy(read_policy(file).encoded)
    submit_proposal(Cluster.open(directory), node_id, action, expires_in, as_json)


@policy.command()
@cluster_option
@node_option
@click.argument("name")
@expires_option
@json_option
def remove(directory: Path, node_id: str | None, name: str, expires_in: int, as_json: bool) -> None:
    """Propose to take the policy NAME out of force."""
    from ledger.contracts.policy_actions import RemovePolicy

    submit_proposal(Cluster.open(directory), node_id, RemovePolicy(name), expires_in, as_json)


@policy.command()
@cluster_option
@node_option
@json_option
def show(directory: Path, node_id: str | None, as_json: bool) -> None:
    """Show the policies in force, and the links that they suspend."""
    found = speaker(Cluster.open(directory), node_id).client(OPERATOR).call("GET", "/admin/v1/governance")
    document = {name: found[name] for name in ("height", "policies", "suspended_links")}
    if as_json:
        print_json(document)
        return
    for entry in document["policies"]:
        click.echo(f"{entry['name']}, in force since height {entry['height']:,}")
        for table, members in entry["policy"].items():
            if table != "name":
                click.echo(f"  {table}: {json.dumps(members, ensure_ascii=False)}")
    if not document["policies"]:
        click.echo("no policy is in force")
    for link_id, name in document["suspended_links"].items():
        click.echo(f"suspended: {link_id}, by {name}")


def read_policy(file: str) -> "PolicyDocument":
    """Read a policy from a TOML or JSON file, or one that ships. Raises SettingsError naming file and member."""
    from ledger.contracts.document import PolicyError, policy_from_document

    path, shipped = Path(file), resources.files("config").joinpath("policies", f"{file}.toml")
    try:
        text = shipped.read_text("utf-8") if not path.exists() and shipped.is_file() else path.read_text("utf-8")
        tables: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return policy_from_document(tables)
    except OSError as error:
        names = ", ".join(sorted(each.name.removesuffix(".toml") for each in _shipped()))
        raise SettingsError(f"{file}: {error.strerror}; give a TOML or JSON file, or one of {names}") from None
    except (PolicyError, ValueError) as error:
        raise SettingsError(f"{file}: {error}") from None


def _shipped() -> list[Any]:
    return [each for each in resources.files("config").joinpath("policies").iterdir() if each.name.endswith(".toml")]
