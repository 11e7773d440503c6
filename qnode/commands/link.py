"""`qnode link list|attack|revoke|plan`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from qnode.cluster import OPERATOR, Cluster, ClusterError, statuses
from qnode.commands.governance import commit
from qnode.commands.output import cluster_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from protocol.distill.key_length import SecurityParameters
    from protocol.quantum.link import LinkParameters


@click.group(short_help="See, plan and attack quantum links.")
def link() -> None:
    """See, plan and attack quantum links.

    \b
    Examples:
      qnode link list --cluster demo
      qnode link attack link-1-2 --cluster demo --kind intercept_resend --set fraction=1
      qnode link attack link-1-2 --cluster demo --off
      qnode link revoke link-1-2 7 --cluster demo --reason tamper
      qnode link plan --profile metro --fibre-km 50 --pulses 1e8 --plot rate.svg
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
    if entry.get("suspended_by"):
        return f"suspended by {entry['suspended_by']}"
    if entry.get("alarmed"):
        return "alarmed"
    return "up" if entry.get("connected") else "peer not connected"


@link.command()
@cluster_option
@click.argument("link_id")
@click.option(
    "--kind",
    help="Kind of eavesdropper, such as intercept_resend; the node names all it knows. Several are joined by '+'.",
)
@click.option(
    "--set", "parameters", multiple=True, metavar="NAME=NUMBER", help="A parameter of it; of several, KIND.NAME=NUMBER."
)
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
@cluster_option
@click.argument("link_id")
@click.argument("block_number", type=click.IntRange(0))
@click.option("--reason", required=True, help="Why, in a word or two; it stands on the chain.")
@click.option("--node", "node_id", help="The end of the link that revokes; the transmitter without it.")
@json_option
def revoke(directory: Path, link_id: str, block_number: int, reason: str, node_id: str | None, as_json: bool) -> None:
    """End the trust in block BLOCK_NUMBER of LINK_ID, for good. An end of a link may; others need `qnode governance`.

    No key of the block is delivered any more, both ends destroy what is left of it, and the proofs of its keys fail.
    """
    from ledger.transactions import KeyBlockRevoked, MalformedTransaction

    found = Cluster.open(directory)
    known = {entry.link_id: entry for entry in found.genesis.links}
    if link_id not in known:
        raise ClusterError(f"{directory} has no link {link_id!r}; it has {', '.join(known)}")
    member = found.member(node_id or known[link_id].transmitter)
    try:
        record = KeyBlockRevoked(link_id, block_number, reason, member.settings.node_id)
    except MalformedTransaction as error:
        raise click.UsageError(str(error)) from None
    answer = commit(member, record, as_json)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"block {block_number} of {link_id} is revoked since height {answer['height']:,}")


@link.command()
@click.option("--profile", default="metro", show_default=True, help="Link profile, a name of config/profiles.")
@click.option("--fibre-km", type=click.FloatRange(0, 1000), help="Length of the fibre; the profile's without it.")
@click.option("--pulses", type=click.FloatRange(1, 1e13), help="Pulses per block; the profile's without it.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the rate against the fibre's length (SVG)."
)
@json_option
def plan(profile: str, fibre_km: float | None, pulses: float | None, plot: Path | None, as_json: bool) -> None:
    """Compute what a link will give before it is built: loss, gains, QBER, secret bits per second."""
    from protocol.quantum.plan import at_distance, plan_link

    parameters, security, block_pulses = _profile(profile)
    if fibre_km is not None:
        parameters = at_distance(parameters, fibre_km)
    count = block_pulses if pulses is None else int(pulses)
    planned = plan_link(parameters, count, security)
    if plot is not None:
        _plot(plot, parameters, count, security)
    if as_json:
        print_json({"profile": profile, **asdict(planned)})
        return
    signature, length = planned.signature, planned.key_length
    gains = ", ".join(f"{gain:.3g}" for gain in signature.gain)
    click.echo(f"loss                 {planned.loss_db:.2f} dB")
    click.echo(f"block                {planned.pulses:,} pulses in {planned.block_time_s:.3f} s of emission")
    click.echo(f"gain                 {gains} detections per pulse, by intensity")
    click.echo(f"QBER                 {planned.key_qber:.2%} of the key basis")
    click.echo(f"leaked, estimated    {planned.leaked_bits:,} bits per block")
    click.echo(
        f"secret key           {length.bits:,} bits per block, except with probability {length.epsilon_total:.1e}"
    )
    click.echo(f"secret key rate      {planned.secret_key_rate_bits_per_s:,.0f} bits/s of emission")
    click.echo(f"proof                {length.proof}")
    if length.reason:
        click.echo(f"no key: {length.reason}")
    if plot is not None:
        click.echo(f"drawn in {plot}")


def _profile(name: str) -> "tuple[LinkParameters, SecurityParameters, int]":
    """Return a profile's physics, its ε's and its block size. Raises SettingsError for a name there is not."""
    from protocol.distill.key_length import SecurityParameters
    from protocol.quantum.link import LinkParameters
    from qnode.io.configuration import profiles
    from qnode.settings import LINK_TABLES, SettingsError

    if name not in profiles():
        raise SettingsError(f"{name!r} is not a link profile; the profiles are {', '.join(sorted(profiles()))}")
    table = profiles()[name]
    parameters = LinkParameters.from_mapping({each: table.get(each, {}) for each in LINK_TABLES[:3]})
    epsilons = {k: v for k, v in table.get("distillation", {}).items() if k in SecurityParameters.__slots__}
    return parameters, SecurityParameters(**epsilons), int(table.get("block_pulses", 10_000_000))


def _plot(path: Path, parameters: "LinkParameters", pulses: int, security: "SecurityParameters") -> None:
    """Draw the rate against distance for blocks of this size, and ten and a hundred times it."""
    from protocol.quantum.figure import rate_chart
    from protocol.quantum.plan import rate_against_distance

    lengths = [2.0 * step for step in range(126)]
    lines = [
        (f"blocks of {size:.0e} pulses", lengths, rate_against_distance(parameters, lengths, size, security))
        for size in (pulses, 10 * pulses, 100 * pulses)
    ]
    path.write_text(rate_chart(lines), "utf-8")
