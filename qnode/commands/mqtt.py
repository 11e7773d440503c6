"""`qnode mqtt acl|setup|broker`: what a broker needs to serve devices, and an embedded one."""

from pathlib import Path

import click

from qnode.commands.output import cluster_option


@click.group(short_help="Set up the devices' broker.")
def mqtt() -> None:
    """Set up the MQTT broker between devices and nodes.

    \b
    Examples:
      qnode mqtt setup --cluster demo --node node-1    certificates, ACL, mosquitto.conf; [devices] of node-1
      mosquitto -c demo/broker/mosquitto.conf
      qnode mqtt broker --cluster demo                 the embedded broker instead, where there is no Mosquitto
      qnode mqtt acl --cluster demo > acl
    """


@mqtt.command("acl")
@cluster_option
@click.option("--reader", "readers", multiple=True, help="A user who may read opened readings.")
def print_acl(directory: Path, readers: tuple[str, ...]) -> None:
    """Print the ACL file: every device to its own topics, every node to its own tree."""
    from qnode.api.mqtt import acl
    from qnode.cluster import Cluster

    members = Cluster.open(directory).members
    click.echo(acl(tuple(member.settings.node_id for member in members), readers), nl=False)


@mqtt.command()
@cluster_option
@click.option("--node", "node_id", default="node-1", show_default=True, help="The node that serves devices.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the broker listens on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="Its port.")
@click.option("--server-name", "names", multiple=True, help="Another name or address in the broker's certificate.")
def setup(directory: Path, node_id: str, host: str, port: int, names: tuple[str, ...]) -> None:
    """Write DIR/broker (mosquitto.conf, certificates, ACL), and the [devices] table of a node that stands still."""
    from qnode.api import broker
    from qnode.cluster import Cluster, ClusterError

    cluster = Cluster.open(directory)
    member = cluster.member(node_id)
    if member.settings.devices.broker_host is not None:
        raise ClusterError(f"{member.config} has a [devices] table already; remove it first")
    nodes = [each.settings.node_id for each in cluster.members]
    target = broker.attach(directory, node_id, nodes, host, port, names)
    click.echo(f"start the broker: mosquitto -c {target / 'mosquitto.conf'}")
    click.echo(f"   or, without Mosquitto: qnode mqtt broker --cluster {directory}")
    click.echo(f"then (re)start {node_id}; enrol devices with `qnode device enrol --cluster {directory} DEVICE_ID`")


@mqtt.command("broker")
@cluster_option
@click.option("--directory", "target", type=click.Path(path_type=Path), help="What `mqtt setup` wrote; DIR/broker.")
def run_broker(directory: Path, target: Path | None) -> None:
    """Run the embedded broker until it is interrupted: MQTT 3.1.1 over TLS with client certificates, and the same ACL.

    It is for one machine and for trying things out; it keeps nothing when it stops. Needs the extra qnode[broker].
    """
    import asyncio

    from qnode.api import broker

    broker.require_embedded()
    from qnode.api.embedded import serve

    asyncio.run(serve(target or directory / "broker", lambda address: click.echo(f"the broker listens on {address}")))
