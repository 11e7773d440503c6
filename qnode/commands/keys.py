"""`qnode keys get|retrieve|status`: an ETSI GS QKD 014 client for applications."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qnode.client import NodeClient
from qnode.cluster import Cluster
from qnode.commands.output import cluster_option, json_option, print_json, print_table

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group(short_help="Get keys from a node, as an application (ETSI GS QKD 014).")
def keys() -> None:
    """Get keys from a node, as an application (SAE), over ETSI GS QKD 014.

    The node and the certificate come from a cluster directory and --sae, or are given by --url, --cert, --key and --ca
    for a node anywhere.

    \b
    Examples:
      qnode keys status   --cluster demo --sae sae-1-a --to sae-3-a
      qnode keys get      --cluster demo --sae sae-1-a --to sae-3-a --number 2 --size 256 --json
      qnode keys retrieve --cluster demo --sae sae-3-a --from sae-1-a KEY_ID
      qnode keys get --url https://kme.example:7401 --cert a.crt --key a.key --ca ca.crt --to sae-3-a
    """


def identity_options(command: _Command) -> _Command:
    """Add the options that say who asks whom."""
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--ca", type=path, help="With --url: the authority of the node's certificate."),
        click.option("--key", type=path, help="With --url: the private key of --cert."),
        click.option("--cert", type=path, help="With --url: the application's certificate."),
        click.option("--url", help="A node's API, https://HOST:PORT, instead of --cluster and --sae."),
        click.option("--sae", help="The application that asks; its certificate is in the cluster's clients/."),
    ):
        command = option(command)
    return cluster_option(command)


def client_of(
    directory: Path, sae: str | None, url: str | None, cert: Path | None, key: Path | None, ca: Path | None
) -> NodeClient:
    """Return the client that the options describe. Raises click.UsageError."""
    if url is not None:
        if cert is None or key is None or ca is None:
            raise click.UsageError("--url needs --cert, --key and --ca")
        return NodeClient.from_files(url, cert, key, ca)
    if sae is None:
        raise click.UsageError("say which application asks: --sae with --cluster, or --url with --cert, --key and --ca")
    return Cluster.open(directory).home(sae).client(sae)


@keys.command("get", short_help="Get fresh keys shared with another application.")
@identity_options
@click.option("--to", "slave_sae", required=True, help="The application to share the keys with.")
@click.option("--number", type=click.IntRange(1), default=1, show_default=True, help="How many keys.")
@click.option("--size", "size_bits", type=click.IntRange(8), help="Bits per key; the node's default without it.")
@json_option
def get(slave_sae: str, number: int, size_bits: int | None, as_json: bool, **who: Any) -> None:
    """Get fresh keys as the master. Hand the key IDs, never the keys, to the other application."""
    container = client_of(**who).get_keys(slave_sae, number, size_bits)
    _print_container(container, as_json)


@keys.command("retrieve", short_help="Get the keys that another application's IDs name.")
@identity_options
@click.option("--from", "master_sae", required=True, help="The application that got the keys first.")
@click.argument("key_ids", metavar="KEY_ID...", nargs=-1, required=True)
@json_option
def retrieve(master_sae: str, key_ids: tuple[str, ...], as_json: bool, **who: Any) -> None:
    """Get the keys of KEY_ID... as the slave: each is delivered once, all of them or none."""
    container = client_of(**who).get_keys_with_ids(master_sae, list(key_ids))
    _print_container(container, as_json)


@keys.command("status", short_help="See how many keys are there for a pair of applications.")
@identity_options
@click.option("--to", "slave_sae", required=True, help="The other application.")
@json_option
def key_status(slave_sae: str, as_json: bool, **who: Any) -> None:
    """Show what `keys get` can deliver now, and the limits of one request."""
    document = client_of(**who).status(slave_sae)
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        click.echo(f"{name}: {value}")


def _print_container(container: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(container)
    else:
        print_table(("key_ID", "key (base64)"), [(entry["key_ID"], entry["key"]) for entry in container["keys"]])
