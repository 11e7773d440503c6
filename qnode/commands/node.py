"""`qnode node rotate-key`: give a node a new identity key, under the old one's signature."""

import datetime
import sys
from pathlib import Path

import click

from qnode.cluster import OPERATOR, Cluster
from qnode.commands.output import cluster_option, json_option, print_json


@click.group(short_help="The identity of a node.")
def node() -> None:
    """The identity of a node."""


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
