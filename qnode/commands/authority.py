"""`qnode ca sign`: the cluster's authority signs what new nodes ask for."""

import datetime
from pathlib import Path

import click

from qnode.commands.output import cluster_option


@click.group(short_help="The cluster's certificate authority.")
def authority() -> None:
    """The cluster's certificate authority: ca/ca.crt and ca/ca.key of the directory that `qnode init` wrote."""


@authority.command()
@cluster_option
@click.argument("requests", metavar="REQUEST...", nargs=-1, required=True, type=click.Path(path_type=Path))
def sign(directory: Path, requests: tuple[Path, ...]) -> None:
    """Sign each REQUEST of `qnode node new`; the certificate is written beside it, ending in .crt.

    Look at where a request comes from before signing it: it names the node whose identity it will prove. Being signed
    admits nobody to the chain; the validators' quorum does.

    \b
    Example:
      qnode ca sign peer.csr api.csr --cluster demo
    """
    from qnode.joining import sign_request

    for request in requests:
        click.echo(sign_request(request, directory, datetime.datetime.now(datetime.UTC)))
