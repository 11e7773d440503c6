"""`qnode ledger prove|check`: take the proof of a delivered key from a node, and check one with the genesis alone."""

import datetime
import math
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from qnode.client import CallFailed
from qnode.cluster import OPERATOR, Cluster, Member
from qnode.commands.output import cluster_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from ledger.delivery_proof import Statement

NOT_NOW: Final = 503
"""What a node answers that does not have the blocks which a proof takes."""


@click.command(short_help="Write the proof of a delivered key.")
@click.argument("key_id", metavar="KEY_ID")
@cluster_option
@click.option("--node", "node_id", help="Ask this node alone. Without it, the first that runs and keeps the blocks.")
def prove(key_id: str, directory: Path, node_id: str | None) -> None:
    """Write proof.json of the delivered key KEY_ID to standard output.

    It holds no key material: give it to whoever wants to know where a key comes from. What the node answers is checked
    before it is written; right after a delivery this waits for the block that certifies it, seconds at most.

    \b
    Example:
      qnode ledger prove 2ae3e385-4e51-4458-b1c1-69066a4cb6d7 --cluster demo > proof.json
    """
    from ledger.delivery_proof import CheckFailed, check_delivery

    found = Cluster.open(directory)
    running = [member for member in found.members if member.process] or list(found.members[:1])
    member, document = _asked(running if node_id is None else [found.member(node_id)], key_id)
    try:
        statement = check_delivery(document, found.genesis)
    except CheckFailed as error:
        click.echo(f"qnode: {member.settings.node_id} gave a proof that does not hold: {_plain(str(error))}", err=True)
        sys.exit(1)
    print_json(document)
    if not statement.ok:
        click.echo(f"qnode: {_verdict(statement)}", err=True)


def _asked(members: list[Member], key_id: str) -> tuple[Member, dict[str, Any]]:
    """Ask one node after the other: those that prune, or began at a snapshot, do not have every block. CallFailed."""
    for member in members:
        try:
            return member, member.client(OPERATOR).call("GET", f"/admin/v1/ledger/proofs/{quote(key_id, safe='')}")
        except CallFailed as error:
            if error.status != NOT_NOW or member is members[-1]:
                raise
    raise AssertionError("there is at least one node to ask")


@click.command(short_help="Check the proof of a delivered key, offline.")
@click.argument("proof", type=click.File("rb"))
@click.option(
    "--genesis",
    "genesis_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The chain's genesis.json, from a source that you trust: everything is checked against it.",
)
@click.option(
    "--trusted",
    "trusted_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A trusted.json to start from instead of the genesis: nothing older than its height is believed.",
)
@click.option(
    "--write-trusted",
    "written_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the height that the proof ends in, once it holds, as a trusted.json for later checks.",
)
@json_option
def check(
    proof: IO[bytes], genesis_path: Path, trusted_path: Path | None, written_path: Path | None, as_json: bool
) -> None:
    """Check a PROOF that `qnode ledger prove` wrote. Exit status 0 only when all of it holds.

    Needs no node and no network: each record's block is committed by a quorum of the validators of its height, followed
    from the genesis or from a trusted height through every change, each block of key is signed by both ends of its
    link, the links join the path between the nodes of both applications, the chain accepted every record, and no link
    was under an alarm when the proof was made. PROOF may be - for standard input.

    \b
    Example:
      qnode ledger check proof.json --genesis genesis.json
      qnode ledger check proof.json --genesis genesis.json --trusted trusted.json --write-trusted trusted.json
    """
    from ledger.delivery_proof import CheckFailed, DeliveryProof, check_delivery, read_json
    from ledger.genesis import Genesis
    from ledger.light import LightClient, ProofError, TrustedHeight
    from qnode.device.store import write_private

    genesis = Genesis.from_json(genesis_path.read_text("utf-8", "replace"))
    try:
        trusted = TrustedHeight.from_json(trusted_path.read_text("utf-8", "replace")) if trusted_path else None
        light = LightClient(genesis, trusted=trusted)
    except ProofError as error:
        raise click.UsageError(f"{trusted_path}: {_plain(str(error))}") from None
    try:
        document = read_json(proof.read().decode("utf-8", "replace"))
        statement = check_delivery(document, light)
    except CheckFailed as error:
        if as_json:
            print_json({"ok": False, "failed_check": error.check, "reason": error.reason})
        else:
            click.echo(f"NOT PROVED: the check {_plain(error.check)!r} failed: {_plain(error.reason)}")
        sys.exit(1)
    if as_json:
        print_json({**statement.document(), "genesis": genesis.digest.hex()})
    else:
        _print_statement(statement, genesis.digest)
    if written_path is not None:
        newest = DeliveryProof.from_document(document).anchor.header
        write_private(written_path, light.trusted_at(newest).to_json().encode())
    if not statement.ok:
        sys.exit(1)


def _print_statement(statement: "Statement", genesis_digest: bytes) -> None:
    said = statement.document()
    path = said["path"]
    lines = [
        ("key ID", said["key_id"]),
        ("master", f"{said['master_sae']} at {path[0]}"),
        ("slave", f"{said['slave_sae']} at {path[-1]}"),
        ("size", f"{said['size_bits']} bits"),
        ("path", " - ".join(path)),
        *([("trusted", f"{', '.join(path[1:-1])} relayed the key, and saw it")] if path[1:-1] else []),
        ("recorded", _moment(said["recorded"])),
        ("state of", _moment(said["as_of"])),
        ("policies", ", ".join(f"{name} of height {height}" for name, height in said["policies"].items()) or "none"),
        ("chain", f"{said['chain_id']}, genesis {genesis_digest.hex()}"),
    ]
    for name, text in lines:
        click.echo(f"{name:9} {_plain(text)}")
    click.echo()
    print_table(
        ("link", "block", "bits", "QBER", "secret bits", "epsilon", "proof", "method", "signed by"),
        [_hop_row(hop) for hop in said["hops"]],
    )
    click.echo()
    if said["security_millibits"] is not None:
        click.echo(f"The key as a whole: epsilon {_epsilon(said['security_millibits'])}, the sum over its blocks.")
    click.echo(f"{len(said['checks'])} checks hold: {_plain('; '.join(said['checks']))}.")
    click.echo(_verdict(statement))


def _hop_row(hop: dict[str, Any]) -> tuple[Any, ...]:
    bits = f"{hop['size_bits']} from {hop['offset_bits']}"
    return (
        *(_plain(hop["link_id"]), hop["block_number"], bits, f"{hop['qber_ppm'] / 1e4:.2f} %", hop["secret_bits"]),
        *(_epsilon(hop["security_millibits"]), _plain(hop["proof"]), _plain(hop["method"])),
        _plain(", ".join(hop["signed_by"])),
    )


def _verdict(statement: "Statement") -> str:
    if statement.ok:
        return "PROVED"
    said = [f"{name} is revoked ({reason})" for name, reason in statement.revoked.items()]
    said += statement.against
    alarms = ", ".join(f"{link_id} ({reason})" for link_id, reason in statement.alarmed.items())
    if alarms:
        said.append(f"under an alarm when the proof was made: {alarms}; prove again when the link has recovered")
    return _plain(f"NOT PROVED: {'; '.join(said)}")


def _epsilon(millibits: int) -> str:
    """Return ε in decimal, however small, and as the power of two that the record states."""
    exponent = -millibits / 1000 * math.log10(2)
    whole = math.floor(exponent)
    mantissa = round(10 ** (exponent - whole), 2)
    mantissa, whole = (1.0, whole + 1) if mantissa >= 10 else (mantissa, whole)
    return f"{mantissa:.2f}e{whole} (2^-{millibits / 1000:.1f})"


def _moment(entry: dict[str, int]) -> str:
    when = datetime.datetime.fromtimestamp(entry["time_ns"] / 1e9, datetime.UTC)
    return f"height {entry['height']}, {when:%Y-%m-%d %H:%M:%S} UTC"


def _plain(text: str) -> str:
    """Return the text without what could steer a terminal: some names are chosen by strangers."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
