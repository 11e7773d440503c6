"""`qnode link list|attack|plan`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from qnode.cluster import OPERATOR, Cluster, ClusterError, statuses
from qnode.commands.output import cluster_option, json_option, print_json, print_table


@click.group(short_help="See, plan and attack quantum links.")
def link() -> None:
    """See, plan and attack quantum links.

    \b
    Examples:
      qnode link list --cluster demo
      qnode link attack link-1-2 --cluster demo --kind intercept_resend --set fraction=1
      qnode link attack link-1-2 --cluster demo --off
      qnode link plan --profile metro --length-km 50 --pulses 1e8
    """


@link.command("list")
@cluster_option
@json_option
def list_links(directory: Path, as_json: bool) -> None:
    """Show every link as its transmitter sees it."""
    documents = statuses(Cluster.open(directory))
    links = [
        {"transmitter": document["node_id"], **entry}
        for document in documents
        for entry in document.get("links", [])
        if entry.get("role") == "transmitter"
    ]
    missing = [document["node_id"] for document in documents if "error" in document]
    if as_json:
        print_json({"links": links, "nodes_without_answer": missing})
    else:
        names = ("link_id", "transmitter", "peer", "blocks", "aborts", "qber", "secret_bits_per_s", "available_bytes")
        print_table(
            ("link", "transmitter", "receiver", "blocks", "aborts", "QBER", "secret bits/s", "pool bytes", "state"),
            [(*(entry.get(name) for name in names), _state(entry)) for entry in links],
        )
        if missing:
            click.echo(f"no answer from {', '.join(missing)}; see `qnode cluster status {directory}`", err=True)
    if missing:
        sys.exit(7)


def _state(entry: dict[str, Any]) -> str:
    if entry.get("attack"):
        return f"attacked: {entry['attack']}"
    if entry.get("alarmed"):
        return "alarmed"
    return "up" if entry.get("connected") else "peer not connected"


@link.command()
@cluster_option
@click.argument("link_id")
@click.option("--kind", help="Kind of eavesdropper, such as intercept_resend; the node names all it knows.")
@click.option("--set", "parameters", multiple=True, metavar="NAME=NUMBER", help="A parameter of it.")
@click.option("--off", is_flag=True, help="Take the eavesdropper off.")
@json_option
def attack(
    directory: Path, link_id: str, kind: str | None, parameters: tuple[str, ...], off: bool, as_json: bool
) -> None:
    """Put an eavesdropper on the emulated fibre of LINK_ID, or take it off."""
    if off == (kind is not None):
        raise click.UsageError("give either --kind, to begin an attack, or --off, to end it")
    found = Cluster.open(directory)
    known = {entry.link_id: entry for entry in found.genesis.links}
    if link_id not in known:
        raise ClusterError(f"{directory} has no link {link_id!r}; it has {', '.join(known)}")
    client = found.member(known[link_id].transmitter).client(OPERATOR)
    path = f"/admin/v1/links/{quote(link_id, safe='')}/attack"
    if off:
        document = client.call("DELETE", path)
    else:
        document = client.call("POST", path, {"kind": kind, "parameters": dict(map(_parameter, parameters))})
    if as_json:
        print_json(document)
    else:
        click.echo(f"{link_id}: {'no eavesdropper' if off else kind}")


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.UsageError(f"--set {text!r} is not NAME=NUMBER") from None


@link.command()
@click.option("--profile", default="metro", show_default=True, help="Link profile, a name of config/profiles.")
@click.option("--length-km", type=click.FloatRange(0, 1000), help="Fibre length; the profile's without it.")
@click.option("--pulses", type=click.FloatRange(1, 1e13), help="Pulses per block; the profile's without it.")
@json_option
def plan(profile: str, length_km: float | None, pulses: float | None, as_json: bool) -> None:
    """Compute what a link will give before it is built: loss, QBER, secret bits per second."""
    from protocol.distill.key_length import SecurityParameters
    from protocol.quantum.link import LinkParameters
    from protocol.quantum.plan import at_distance, plan_link
    from qnode.io.configuration import profiles
    from qnode.settings import LINK_TABLES, SettingsError

    if profile not in profiles():
        raise SettingsError(f"{profile!r} is not a link profile; the profiles are {', '.join(sorted(profiles()))}")
    table = profiles()[profile]
    parameters = LinkParameters.from_mapping({name: table.get(name, {}) for name in LINK_TABLES[:3]})
    if length_km is not None:
        parameters = at_distance(parameters, length_km)
    count = int(pulses if pulses is not None else table.get("block_pulses", 10_000_000))
    epsilons = {k: v for k, v in table.get("distillation", {}).items() if k in SecurityParameters.__slots__}
    planned = plan_link(parameters, count, SecurityParameters(**epsilons))
    if as_json:
        print_json({"profile": profile, **asdict(planned)})
        return
    click.echo(f"loss                 {planned.loss_db:.2f} dB")
    click.echo(f"block                {planned.pulses:,} pulses in {planned.block_time_s:.3f} s of emission")
    click.echo(f"QBER of the key      {planned.key_qber:.2%}")
    click.echo(f"leaked, estimated    {planned.leaked_bits:,} bits per block")
    click.echo(f"secret key           {planned.key_length.bits:,} bits per block")
    click.echo(f"secret key rate      {planned.secret_key_rate_bits_per_s:,.0f} bits/s of emission")
    if planned.key_length.reason:
        click.echo(f"no key: {planned.key_length.reason}")
