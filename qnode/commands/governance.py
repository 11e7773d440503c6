"""`qnode governance propose|approve|withdraw|list|show`: what the validators decide together (S0-B3)."""

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.client import CallFailed
from qnode.cluster import OPERATOR, Cluster, Member
from qnode.commands.output import cluster_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from ledger.contracts.actions import Action
    from ledger.transactions import Transaction

DEFAULT_LIFETIME_BLOCKS = 10_000
node_option = click.option("--node", "node_id", help="The validator that speaks; the first of the cluster without it.")

expires_option = click.option(
    "--expires-in",
    type=click.IntRange(1, 1_000_000),
    default=DEFAULT_LIFETIME_BLOCKS,
    show_default=True,
    help="Blocks.",
)


@click.group(short_help="Decide together: propose, approve, see.")
def governance() -> None:
    """Decide together what binds every node: a quorum of the validators must approve.

    Every validator's operator approves at his own node, which signs with its identity. Actions and their members are in
    docs/ledger.md; `qnode policy` proposes key policies from files.

    \b
    Examples:
      qnode governance propose revoke-key-block --set link_id=link-1-2 --set block_number=7 --set reason=tamper
      qnode governance approve PROPOSAL --node node-2
      qnode governance list
    """


@governance.command()
@cluster_option
@node_option
@click.argument("action")
@click.option("--set", "members", multiple=True, metavar="NAME=VALUE", help="A member of the action.")
@expires_option
@json_option
def propose(
    directory: Path, node_id: str | None, action: str, members: tuple[str, ...], expires_in: int, as_json: bool
) -> None:
    """Propose ACTION; the proposing validator approves with it."""
    from ledger.contracts.actions import MalformedAction, action_from_document

    document: dict[str, Any] = {}
    for text in members:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError(f"--set {text!r} is not NAME=VALUE")
        document[name] = value
    try:
        built = action_from_document(action, document)
    except MalformedAction as error:
        raise click.UsageError(str(error)) from None
    submit_proposal(Cluster.open(directory), node_id, built, expires_in, as_json)


def submit_proposal(found: Cluster, node_id: str | None, action: "Action", expires_in: int, as_json: bool) -> None:
    """Propose an action at a node and say what became of it."""
    from ledger.contracts.actions import encode_action
    from ledger.transactions import GovernanceProposed, encode, transaction_id

    member = speaker(found, node_id)
    height = member.client(OPERATOR).call("GET", "/admin/v1/governance")["height"]
    record = GovernanceProposed(member.settings.node_id, encode_action(action), height + expires_in)
    _submit(member, record, transaction_id(encode(record)).hex(), as_json)


@governance.command()
@cluster_option
@node_option
@click.argument("proposal")
@json_option
def approve(directory: Path, node_id: str | None, proposal: str, as_json: bool) -> None:
    """Approve PROPOSAL (its first digits suffice). With the quorum's approval it is executed in the same block."""
    from ledger.transactions import GovernanceApproved

    member = speaker(Cluster.open(directory), node_id)
    name = _full_name(member, proposal)
    _submit(member, GovernanceApproved(bytes.fromhex(name), member.settings.node_id), name, as_json)


@governance.command()
@cluster_option
@node_option
@click.argument("proposal")
@json_option
def withdraw(directory: Path, node_id: str | None, proposal: str, as_json: bool) -> None:
    """Take back the open PROPOSAL of this validator."""
    from ledger.transactions import GovernanceWithdrawn

    member = speaker(Cluster.open(directory), node_id)
    name = _full_name(member, proposal)
    _submit(member, GovernanceWithdrawn(bytes.fromhex(name), member.settings.node_id), name, as_json)


@governance.command("list")
@cluster_option
@node_option
@json_option
def list_proposals(directory: Path, node_id: str | None, as_json: bool) -> None:
    """Show open and recent proposals, and what was revoked."""
    document = speaker(Cluster.open(directory), node_id).client(OPERATOR).call("GET", "/admin/v1/governance")
    if as_json:
        print_json(document)
        return
    click.echo(f"{document['quorum']} of {', '.join(document['electorate'])} decide; height {document['height']:,}")
    print_table(
        ("proposal", "action", "proposer", "approvals", "status", "expires"),
        [
            (
                *(each["proposal"][:16], each["action"], each["proposer"]),
                *(len(each["approvals"]), each["status"], each["expiry_height"]),
            )
            for each in document["proposals"]
        ],
    )
    for each in document["revocations"]:
        subject = " ".join(map(str, each["subject"]))
        click.echo(f"revoked: {subject}, at height {each['height']:,} by {each['by']}: {each['reason']}")


@governance.command()
@cluster_option
@node_option
@click.argument("proposal")
def show(directory: Path, node_id: str | None, proposal: str) -> None:
    """Show everything of one PROPOSAL, as JSON."""
    print_json(_proposal(speaker(Cluster.open(directory), node_id), proposal))


def speaker(found: Cluster, node_id: str | None) -> Member:
    """Return the node that speaks."""
    return found.members[0] if node_id is None else found.member(node_id)


def _proposal(member: Member, prefix: str) -> dict[str, Any]:
    known: list[dict[str, Any]] = member.client(OPERATOR).call("GET", "/admin/v1/governance")["proposals"]
    named = [each for each in known if each["proposal"].startswith(prefix.lower())]
    if len(named) != 1:
        problem = "is not a proposal" if not named else "begins several proposals"
        raise CallFailed(404, f"{prefix!r} {problem}; `qnode governance list` shows them")
    return named[0]


def _full_name(member: Member, prefix: str) -> str:
    return str(_proposal(member, prefix)["proposal"])


def _submit(member: Member, record: "Transaction", name: str, as_json: bool) -> None:
    """Commit a record of governance, and say what became of the proposal."""
    answer = commit(member, record, as_json)
    proposal = _proposal(member, name)
    if as_json:
        print_json(proposal)
        return
    click.echo(f"{name}: {proposal['status']}, {len(proposal['approvals'])} approvals, block {answer['height']:,}")
    if proposal["status"] == "failed":
        click.echo(f"the quorum approved it, but it can no longer be done: {proposal['refusal']}", err=True)
        sys.exit(1)


def commit(member: Member, record: "Transaction", as_json: bool) -> dict[str, Any]:
    """Have a node sign and submit a record, and wait for its block; ends the command if the chain refuses it."""
    from ledger.transactions import encode

    client = member.client(OPERATOR)
    body = base64.b64encode(encode(record)).decode()
    answer = client.call("POST", "/admin/v1/ledger/transactions", {"transactions": [body], "until": "committed"})
    if not answer["ok"]:
        click.echo(json.dumps(answer) if as_json else f"refused by the chain: {answer['reason']}", err=not as_json)
        sys.exit(1)
    return answer
