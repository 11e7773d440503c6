"""`qnode node new|rotate-key`: a node that joins a running chain; a new identity key under the old one's signature."""

import datetime
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cluster import OPERATOR, Cluster
from qnode.commands.output import cluster_option, json_option, print_json

if TYPE_CHECKING:
    from qnode.layout import Contact


@click.group(short_help="New nodes, and the identities of nodes.")
def node() -> None:
    """Make a node that joins a running chain; change the identity key of one."""


@node.command("new")
@cluster_option
@click.argument("node_id", metavar="NODE")
@click.option("--validator", is_flag=True, help="Propose it as one that votes from its admission on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the node listens on.")
@click.option("--base-port", type=int, help="First of its 2 ports; free ports are chosen without it.")
@click.option("--server-name", "server_names", multiple=True, help="Another name or address in its API certificate.")
@click.option(
    "--peer", "peers", multiple=True, metavar="NODE=HOST:PORT", help="Whom it dials; those of the cluster without it."
)
@json_option
def new(
    directory: Path,
    node_id: str,
    validator: bool,
    host: str,
    base_port: int | None,
    server_names: tuple[str, ...],
    peers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the configuration of NODE, which joins the running chain of a cluster directory.

    Where ca/ca.key is at hand its certificates are issued at once. On another machine the directory needs genesis.json
    and ca/ca.crt only, and --peer: requests are written, which `qnode ca sign` turns into certificates. The quorum
    admits the node by the proposal that is printed; the node may run before, and waits.

    \b
    Examples:
      qnode node new node-5 --cluster demo
      qnode node new node-5 --cluster there --host 10.0.0.5 --peer node-1=10.0.0.1:20000
    """
    from qnode.io.entropy import OperatingSystemEntropy
    from qnode.joining import POST_QUANTUM_KEY_FILE, Newcomer, join

    contacts = tuple(_contact(text) for text in peers)
    newcomer = Newcomer(node_id, host, base_port, server_names, contacts)
    joining = join(directory, newcomer, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    proposal = joining.proposal(validator=validator)
    requests = [str(path) for path in joining.requests]
    if as_json:
        document = {"node_id": node_id, "config": str(joining.config), "public_key": joining.public_key.hex()}
        print_json({**document, "requests": requests, "proposal": proposal})
        return
    if requests:
        click.echo(f"have the authority sign: qnode ca sign {' '.join(requests)} --cluster DIRECTORY-WITH-CA-KEY")
    command = shlex.join(proposal)
    if joining.post_quantum_key:  # 3,904 digits are not for a terminal
        file = shlex.quote(str(joining.config.parent / node_id / POST_QUANTUM_KEY_FILE))
        command = command.replace(joining.post_quantum_key.hex(), f"$(cat {file})")
    click.echo(f"propose at a validator: qnode {command} --cluster {shlex.quote(str(directory))} --node VALIDATOR")
    click.echo(f"start the node:         qnode run --config {joining.config}")


def _contact(text: str) -> "Contact":
    from qnode.layout import Contact

    node_id, _, place = text.partition("=")
    host, _, port = place.rpartition(":")
    if not node_id or not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise click.UsageError(f"--peer {text!r} is not NODE=HOST:PORT")
    return Contact(node_id, host.strip("[]"), int(port))


@node.command("rotate-key")
@cluster_option
@click.argument("node_id", metavar="NODE")
@json_option
def rotate_key(directory: Path, node_id: str, as_json: bool) -> None:
    """Give the running NODE a new identity key.

    Makes the key and its certificate (this needs the cluster's ca/ca.key), keeps both beside the old ones, and has the
    node record the change on the chain, signed by both keys. From the next block on the new key signs its records and
    bundles, two blocks later its votes; connections show it at once. Old files stay: what was sealed or signed under
    them may be needed. After a failure run it again: an unused new key is taken up first.

    \b
    Example:
      qnode node rotate-key node-2 --cluster demo
    """
    from qnode.io.certificates import Authority
    from qnode.io.entropy import node_entropy
    from qnode.io.identities import add_identity, load_identities

    member = Cluster.open(directory).member(node_id)
    client = member.client(OPERATOR)
    known = {key["public_key"] for key in client.call("GET", "/admin/v1/identity")["keys"]}
    unused = [each for each in load_identities(member.settings) if each.public_key.hex() not in known]
    if unused:
        identity = unused[0]
    else:
        authority = Authority.load(directory / "ca" / "ca.crt", directory / "ca" / "ca.key")
        entropy = node_entropy(member.settings.entropy)
        identity = add_identity(member.settings, authority, entropy, datetime.datetime.now(datetime.UTC))
    answer = client.call("POST", "/admin/v1/identity", {"public_key": identity.public_key.hex()})
    if as_json:
        print_json({**answer, "public_key": identity.public_key.hex(), "key": str(identity.key)})
    elif answer["ok"]:
        click.echo(f"{node_id}: block {answer['height']:,} gives it the key {identity.public_key.hex()[:16]}…")
    else:
        click.echo(f"refused by the chain: {answer['reason']}", err=True)
    if not answer["ok"]:
        sys.exit(1)
