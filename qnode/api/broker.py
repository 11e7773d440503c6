"""Files for the devices' broker and for its clients: configuration, certificates, ACL; and a broker run (row S4-1.1).

The cluster's authority signs the broker's certificate and those of its clients, whose common name is their user: the
node's, or the device's. These identities are unknown to the HTTPS door on purpose: a device's certificate opens nothing
there. Decides no topics (`qnode.api.mqtt`).
"""

import contextlib
import datetime
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qnode.api.mqtt import acl
from qnode.io.certificates import Authority, Identity, Kind

QUEUED_MESSAGES_MAX: Final = 10_000
"""Per client: what the broker keeps for a node or device that is away."""
MESSAGE_BYTES_MAX: Final = 131_072
START_TIMEOUT_S: Final = 60.0
"""A broker listens within a second; a machine under load may take many."""
BROKER_FILE: Final = "broker.json"
"""Where the embedded broker listens; Mosquitto reads its own file."""
BrokerKind = Literal["mosquitto", "embedded"]


def authority_of(cluster: Path) -> Authority:
    """Return the cluster's authority. Raises CertificateError where its key is not at hand."""
    return Authority.load(cluster / "ca" / "ca.crt", cluster / "ca" / "ca.key")


def write_client(authority: Authority, kind: str, name: str, certificate: Path, key: Path) -> None:
    """Write a client certificate with the common name `name`, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    identity = Identity(cast(Kind, kind), name)  # "device" and "mqtt" are no kinds of the HTTPS door
    issued = authority.issue(identity, private.public_key(), datetime.datetime.now(datetime.UTC))
    certificate.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
    _write_key(key, private)


def write_broker(
    cluster: Path, directory: Path, host: str, port: int, names: tuple[str, ...], nodes: list[str]
) -> None:
    """Write mosquitto.conf and everything that it names into `directory`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = authority_of(cluster)
    private = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue(
        Identity("node", "broker"),
        private.public_key(),
        datetime.datetime.now(datetime.UTC),
        server_names=tuple(dict.fromkeys(("localhost", "127.0.0.1", host, *names))),
    )
    (directory / "broker.crt").write_bytes(issued.public_bytes(serialization.Encoding.PEM))
    _write_key(directory / "broker.key", private)
    (directory / "ca.crt").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "acl").write_text(acl(tuple(nodes)), "utf-8")
    (directory / "acl").chmod(0o600)  # Mosquitto warns of files that others may read
    (directory / "data").mkdir(exist_ok=True)
    (directory / "mosquitto.conf").write_text(_configuration(directory.resolve(), host, port), "utf-8")
    (directory / BROKER_FILE).write_text(json.dumps({"host": host, "port": port}) + "\n", "utf-8")


def attach(cluster: Path, node_id: str, node_ids: list[str], host: str, port: int, names: tuple[str, ...]) -> Path:
    """Write CLUSTER/broker, the node's certificate for it, and the [devices] table of the node; return the former."""
    directory = cluster / "broker"
    write_broker(cluster, directory, host, port, names, node_ids)
    certificate, key = (cluster / node_id / f"mqtt.{suffix}" for suffix in ("crt", "key"))
    write_client(authority_of(cluster), "mqtt", node_id, certificate, key)
    table: dict[str, Any] = {
        "broker_host": host,
        "broker_port": port,
        "ca": "broker/ca.crt",
        "certificate": f"{node_id}/mqtt.crt",
        "key": f"{node_id}/mqtt.key",
    }
    with (cluster / f"{node_id}.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(["\n[devices]", *(f"{name} = {json.dumps(value)}" for name, value in table.items()), ""]))
    return directory


class BrokerError(RuntimeError):
    """The broker does not run; the message says why and what to do."""


def find_mosquitto() -> str:
    """Return the path of Mosquitto. Raises BrokerError with how to get it."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BrokerError("mosquitto is not installed: apt-get install mosquitto (or its like) brings it")
    return found


def require_embedded() -> None:
    """Raise BrokerError with how to get the embedded broker, where it is not installed."""
    if find_spec("amqtt") is None:
        raise BrokerError("the embedded broker is not installed: pip install 'qnode[broker]' brings it")


def available() -> BrokerKind:
    """Return the kind of broker this machine can run, Mosquitto first. Raises BrokerError with both ways out."""
    try:
        find_mosquitto()
    except BrokerError as missing:
        try:
            require_embedded()
        except BrokerError as other:
            raise BrokerError(f"{missing}; or {other}") from None
        return "embedded"
    return "mosquitto"


class Broker:
    """A broker of our own, for demos, benches and tests: `start`, `stop`, or a `with` block."""

    def __init__(self, directory: Path, host: str, port: int, kind: BrokerKind = "mosquitto") -> None:
        """`directory`: what `write_broker` wrote."""
        self._directory = directory
        self._address = host, port
        self.kind = kind
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it listens. Raises BrokerError."""
        if self.kind == "mosquitto":
            command = [find_mosquitto(), "-c", str(self._directory / "mosquitto.conf")]
        else:
            require_embedded()
            command = [sys.executable, "-m", "qnode", "mqtt", "broker", "--directory", str(self._directory)]
        path = self._directory / f"{self.kind}.log"
        with path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _await_broker(self._process, path, *self._address)

    def stop(self) -> None:
        """Stop it. Mosquitto's sessions stay on the disk, the embedded broker's are gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _await_broker(process: "subprocess.Popen[bytes]", log: Path, host: str, port: int) -> None:
    """Return when the broker listens. Raises BrokerError with the end of its log."""
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.02)
    said = log.read_text("utf-8", "replace").strip()[-300:]
    raise BrokerError(f"the broker does not listen on {host}:{port}: {said or 'it says nothing'}")


def _configuration(directory: Path, host: str, port: int) -> str:
    lines = [
        "# Written by `qnode mqtt setup`. Start it with: mosquitto -c mosquitto.conf",
        f"user {getpass.getuser()}",
        f"listener {port} {host}",
        "allow_anonymous false",
        "require_certificate true",
        "use_identity_as_username true",
        f"cafile {directory / 'ca.crt'}",
        f"certfile {directory / 'broker.crt'}",
        f"keyfile {directory / 'broker.key'}",
        "tls_version tlsv1.2",
        f"acl_file {directory / 'acl'}",
        "persistence true",
        f"persistence_location {directory / 'data'}/",
        "autosave_interval 30",
        f"max_queued_messages {QUEUED_MESSAGES_MAX}",
        "max_inflight_messages 1000",
        f"message_size_limit {MESSAGE_BYTES_MAX}",
        "set_tcp_nodelay true",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    return "\n".join(lines) + "\n"


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
