"""`qnode device enrol|run|list|revoke|attack|demo`. Running a device imports nothing of a node."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from qnode.commands.output import cluster_option, json_option, print_json, print_table

node_option = click.option("--node", "node_id", default="node-1", show_default=True, help="The device's node.")


@click.group(short_help="Enrol, run and revoke devices.")
def device() -> None:
    """Enrol, run and revoke devices: sensors and vehicles that make keys with a node over MQTT.

    \b
    Examples:
      qnode device enrol --cluster demo --profile ecg-patch ecg-1     writes demo/devices/ecg-1
      qnode device run demo/devices/ecg-1 --readings ecg.jsonl --interval-s 0.25
      qnode device list --cluster demo
      qnode device readings --cluster demo ecg-1
      qnode device revoke --cluster demo ecg-1
      qnode device demo
    """


@device.command()
@cluster_option
@node_option
@click.argument("device_id")
@click.option("--profile", default="ecg-patch", show_default=True, help="A name of config/devices, or a .toml file.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write; DIR/devices/DEVICE_ID without it.")
@click.option("--key-bits-min", type=click.IntRange(128, 4096), default=256, show_default=True, help="Floor of keys.")
@click.option(
    "--security-bits-min",
    type=click.FloatRange(13, 120),
    default=33.219,
    show_default=True,
    help="−log2 ε of every key, at least.",
)
def enrol(
    directory: Path,
    node_id: str,
    device_id: str,
    profile: str,
    out: Path | None,
    key_bits_min: int,
    security_bits_min: float,
) -> None:
    """Get a one-time code from the node and write everything that the device DEVICE_ID needs.

    The files go to the device by hand: they hold the code and the key of its certificate. The device makes its identity
    key itself, on its first run.
    """
    target = out or directory / "devices" / device_id
    write_enrolment(directory, node_id, device_id, profile, target, key_bits_min, round(1000 * security_bits_min))
    click.echo(f"{target}: run it with `qnode device run {target}`")


def write_enrolment(
    directory: Path, node_id: str, device_id: str, profile: str, target: Path, key_bits: int, millibits: int
) -> None:
    """Do what `qnode device enrol` does. Raises CallFailed, ClusterError, DeviceError, CertificateError."""
    import json
    import shutil
    from urllib.parse import quote

    from qnode.api import broker
    from qnode.cluster import OPERATOR, Cluster, ClusterError
    from qnode.device.store import CONFIGURATION, read_profile, write_private

    read_profile(profile)
    cluster = Cluster.open(directory)
    settings = cluster.member(node_id).settings.devices
    if settings.broker_host is None:
        raise ClusterError(f"{node_id} serves no devices; set a broker up with `qnode mqtt setup`")
    if device_id in {member.settings.node_id for member in cluster.members}:
        raise ClusterError(f"{device_id} is a node's name; choose another for the device")
    if target.exists():
        raise ClusterError(f"{target} exists; choose another --out, nothing was changed")
    floor = {"key_bits_min": key_bits, "security_millibits_min": millibits}
    path = f"/admin/v1/devices/{quote(device_id, safe='')}"
    answer = cluster.member(node_id).client(OPERATOR).call("POST", path, floor)
    target.mkdir(parents=True, mode=0o700)
    document = {
        **answer,
        "broker_host": settings.broker_host,
        "broker_port": settings.broker_port,
        "security": settings.security,
        "profile": str(Path(profile).resolve()) if profile.endswith(".toml") else profile,
    }
    write_private(target / CONFIGURATION, json.dumps(document, indent=2).encode())
    if settings.security == "tls" and settings.ca is not None:
        authority = broker.authority_of(directory)
        broker.write_client(authority, "device", device_id, target / "device.crt", target / "device.key")
        shutil.copyfile(settings.ca, target / "ca.crt")


@device.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--readings", help="CSV or JSON lines, or a shipped set: ecg.jsonl, vital-signs.csv, vehicle.csv.")
@click.option("--interval-s", type=click.FloatRange(0, 3600), default=1.0, show_default=True, help="Between readings.")
@click.option("--count", type=click.IntRange(0), default=0, help="How many readings; all of the file without it.")
@click.option("--repeat", is_flag=True, help="Play the readings again and again.")
@click.option("--one-time-pad", is_flag=True, help="Seal readings with a one-time pad instead of AES-256-GCM.")
@click.option("--hybrid", is_flag=True, help="Keys from the session and from ML-KEM-768, secret if either holds.")
@json_option
def run(
    directory: Path,
    readings: str | None,
    interval_s: float,
    count: int,
    repeat: bool,
    one_time_pad: bool,
    hybrid: bool,
    as_json: bool,
) -> None:
    """Run the device in DIRECTORY: enrol on the first run, make a key, send readings, renew the key.

    Without --readings it makes one key and stops. Prints its figures at the end.
    """
    import asyncio

    from qnode.device import readings as sources
    from qnode.device.process import DeviceProcess, Pace, cycled
    from qnode.device.store import Configuration, DeviceError

    kem = None
    if hybrid:
        from qnode.device.kem import MlKem768

        if one_time_pad:
            raise click.UsageError("a hybrid key is computational; use --one-time-pad without --hybrid")
        kem = MlKem768()
    process = DeviceProcess(Configuration.read(directory), one_time_pad=one_time_pad, kem=kem)
    pace = None
    if readings is not None:
        path = Path(readings)
        source = sources.recorded(path if path.exists() else sources.shipped(readings))
        pace = Pace(cycled(list(source)) if repeat else source, interval_s, count)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(process.run(pace, key_only=pace is None))
    agent = process.agent
    if agent is None:
        raise DeviceError(f"{directory}: stopped before it was enrolled")
    if as_json:
        print_json(figures(process))
    else:
        for name, value in figures(process).items():
            click.echo(f"{name:<18}{value}")
    if agent.figures.too_weak is not None and not agent.has_key:
        sys.exit(7)


def figures(process: Any) -> dict[str, Any]:
    """Return what a device did, without any key."""
    agent = process.agent
    seen = agent.figures
    return {
        "device_id": process.configuration.device_id,
        "keys": seen.keys,
        "session": seen.last_session,
        "session_failures": seen.session_failures,
        "last_failure": seen.last_failure,
        "readings": seen.readings,
        "receipts": seen.receipts,
        "repeated": seen.repeated,
        "too_weak": seen.too_weak,
        "battery_share": round(agent.battery.share, 4),
        "spent_j": {what: round(joules, 6) for what, joules in agent.battery.spent_j.items()},
        "connections": process.connections,
    }


@device.command("list")
@cluster_option
@node_option
@json_option
def list_devices(directory: Path, node_id: str, as_json: bool) -> None:
    """Show what a node knows of its devices."""
    from qnode.cluster import OPERATOR, Cluster

    document = Cluster.open(directory).member(node_id).client(OPERATOR).call("GET", "/admin/v1/devices")
    if as_json:
        print_json(document)
        return
    names = (
        "device_id",
        "keys",
        "key_bits",
        "last_qber",
        "readings",
        "missing",
        "repeated",
        "aborts",
        "attacked",
        "alarm",
    )
    rows = [tuple(entry.get(name) for name in names) for entry in document["devices"]]
    print_table(
        ("device", "keys", "key bits", "QBER", "readings", "missing", "repeated", "aborts", "attacked", "alarm"),
        [(*row[:3], None if row[3] is None else f"{row[3]:.2%}", *row[4:]) for row in rows],
    )
    for reason, count in document["refusals"].items():
        click.echo(f"refused: {count} × {reason}")


@device.command("readings")
@cluster_option
@node_option
@click.argument("device_id")
@click.option("--count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The last so many.")
def show_readings(directory: Path, node_id: str, device_id: str, count: int) -> None:
    """Print the last readings of DEVICE_ID that its node keeps, oldest first, as JSON lines."""
    import json
    from urllib.parse import quote

    from qnode.cluster import OPERATOR, Cluster

    client = Cluster.open(directory).member(node_id).client(OPERATOR)
    path = f"/admin/v1/devices/{quote(device_id, safe='')}/readings?count={count}"
    for reading in client.call("GET", path)["readings"]:
        click.echo(json.dumps(reading, separators=(",", ":")))


@device.command()
@cluster_option
@node_option
@click.argument("device_id")
def revoke(directory: Path, node_id: str, device_id: str) -> None:
    """End the trust in DEVICE_ID, on the chain and for good."""
    from urllib.parse import quote

    from qnode.cluster import OPERATOR, Cluster

    client = Cluster.open(directory).member(node_id).client(OPERATOR)
    client.call("DELETE", f"/admin/v1/devices/{quote(device_id, safe='')}")
    click.echo(f"{device_id}: the revocation is on its way to the chain")


@device.command()
@cluster_option
@node_option
@click.argument("device_id")
@click.option("--kind", default="intercept_resend", show_default=True, help="Kind of eavesdropper.")
@click.option("--off", is_flag=True, help="Take the eavesdropper off.")
def attack(directory: Path, node_id: str, device_id: str, kind: str, off: bool) -> None:
    """Put an eavesdropper on the emulated quantum channel to DEVICE_ID, or take it off."""
    from urllib.parse import quote

    from qnode.cluster import OPERATOR, Cluster

    client = Cluster.open(directory).member(node_id).client(OPERATOR)
    path = f"/admin/v1/devices/{quote(device_id, safe='')}/attack"
    if off:
        client.call("DELETE", path)
    else:
        client.call("POST", path, {"kind": kind})
    click.echo(f"{device_id}: {'no eavesdropper' if off else kind}")


@device.command()
@click.option("--directory", type=click.Path(path_type=Path), default=Path(".demo/devices"), show_default=True)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write what was seen as JSON.")
@click.option("--broker", type=click.Choice(["mosquitto", "embedded"]), help="Mosquitto without it, if installed.")
def demo(directory: Path, report: Path | None, broker: Any) -> None:
    """Show five devices from enrolment to revocation, and the paper's table 1 measured."""
    from qnode.commands.device_demo import run as run_demo

    sys.exit(0 if run_demo(directory, report, broker) else 1)
