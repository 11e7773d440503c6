"""`qnode init`."""

import datetime
import json
from pathlib import Path

import click

from qnode import initialise
from qnode.io.configuration import profiles
from qnode.io.entropy import OperatingSystemEntropy
from qnode.topologies import SHAPES


@click.command(short_help="Write the configuration of a new cluster.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--nodes", type=click.IntRange(1, 10_000), help="How many nodes; 4 unless a topology file says.")
@click.option(
    "--topology", default="ring", show_default=True, help=f"{'|'.join(SHAPES)}, or a .toml file with [[links]]."
)
@click.option("--profile", default="metro", show_default=True, help="Link profile, a name of config/profiles.")
@click.option("--chain-id", default=None, help="Name of the chain; the directory's name by default.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that every node listens on.")
@click.option("--base-port", type=int, help="First of 2 ports per node; free ports are chosen without it.")
@click.option("--server-name", "server_names", multiple=True, help="Another name or address in the API certificates.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--seed", type=click.IntRange(0), help="Makes the emulated physics reproducible; keys never depend on it."
)
@click.option(
    "--hybrid-votes", is_flag=True, help="Validators sign every vote with ML-DSA-65 besides Ed25519 (50 times larger)."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def init(
    directory: Path,
    nodes: int | None,
    topology: str,
    profile: str,
    chain_id: str | None,
    host: str,
    base_port: int | None,
    server_names: tuple[str, ...],
    log_level: str,
    seed: int | None,
    hybrid_votes: bool,
    as_json: bool,
) -> None:
    """Write identities, certificates, genesis and one TOML file per node into DIRECTORY, which must be new.

    \b
    Examples:
      qnode init demo                              four nodes in a ring
      qnode init city --nodes 9 --topology grid
      qnode init campus --topology config/topologies/campus.toml --base-port 7400
    """
    plan = initialise.Plan(
        topology=initialise.read_topology(topology, nodes),
        chain_id=chain_id or directory.resolve().name,
        profile=profile,
        host=host,
        base_port=base_port,
        server_names=server_names,
        log_level=log_level,
        seed=seed,
        hybrid_votes=hybrid_votes,
    )
    genesis = initialise.initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    assert plan.profile in profiles()
    if as_json:
        document = {
            "directory": str(directory),
            "chain_id": genesis.chain_id,
            "genesis": genesis.digest.hex(),
            "nodes": [node.node_id for node in genesis.nodes],
            "links": [link.link_id for link in genesis.links],
            "saes": {sae.sae_id: sae.node_id for sae in genesis.saes},
        }
        click.echo(json.dumps(document))
        return
    click.echo(f"{directory}: {len(genesis.nodes)} nodes, {len(genesis.links)} links, {len(genesis.saes)} applications")
    click.echo(f"start them with: qnode cluster up {directory}")
