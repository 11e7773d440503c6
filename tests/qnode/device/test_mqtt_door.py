"""The MQTT shell without a broker: topics, the ACL, settings, commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from qnode import settings_tables
from qnode.api.mqtt import MqttDoor, acl, device_plane, down_topic, up_topic
from qnode.cli import cli
from qnode.settings import DeviceSettings, SettingsError
from tests.qnode.test_settings import DOCUMENT, PROFILES

PLAIN = DeviceSettings(broker_host="127.0.0.1", security="none")


async def nobody(request: object) -> Any:
    raise AssertionError(request)


@pytest.mark.parametrize(
    ("topic", "payload", "counter"),
    [
        ("qnode/node-1/device/ecg-1/up/nonsense", b"x", "unknown_topic"),
        ("qnode/node-1/device/ecg 1/up/data", b"x", "unknown_topic"),
        ("qnode/node-1/device/ecg-1/up", b"x", "unknown_topic"),
        ("qnode", b"x", "unknown_topic"),
        ("qnode/node-1/device/ecg-1/up/data", b"", "oversized"),
        ("qnode/node-1/device/ecg-1/up/data", bytes(65_537), "oversized"),
        ("qnode/node-1/device/ecg-1/up/data", None, "oversized"),
        ("qnode/node-1/device/ecg-1/up/data", b"x", "frames"),
    ],
)
def test_only_frames_of_devices_reach_the_node(topic: str, payload: object, counter: str) -> None:
    door = MqttDoor("node-1", PLAIN, nobody, structlog.get_logger())
    frame = door._frame(topic, payload)
    assert (frame is not None) == (counter == "frames")
    assert {name for name, count in door.counters.items() if count} == {counter}


def allowed(text: str, user: str, access: str, topic: str) -> bool:
    """A dumb reading of Mosquitto's ACL file."""
    section, found = "", False
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0] == "user":
            section = words[1]
        elif words[0] == "pattern" or section == user:
            pattern = words[2].replace("%u", user).split("/")
            levels = topic.split("/")
            same = all(p == "#" or p in ("+", x) for p, x in zip(pattern, levels, strict=False))
            ends = pattern[-1] == "#" or len(pattern) == len(levels)
            found |= same and ends and (access in words[1])
    return found


def test_the_acl_keeps_every_device_to_itself() -> None:
    text = acl(("node-1", "node-2"), ("ward",))
    assert allowed(text, "ecg-1", "write", up_topic("node-1", "ecg-1", "data"))
    assert allowed(text, "ecg-1", "read", down_topic("node-1", "ecg-1", "ack"))
    for user, access, topic in (
        ("ecg-1", "write", up_topic("node-1", "ecg-2", "data")),
        ("ecg-1", "read", down_topic("node-1", "ecg-2", "light")),
        ("ecg-1", "write", down_topic("node-1", "ecg-1", "ack")),
        ("ecg-1", "read", "qnode/node-1/readings/ecg-1"),
        ("node-2", "write", down_topic("node-1", "ecg-1", "ack")),
        ("ward", "read", up_topic("node-1", "ecg-1", "data")),
    ):
        assert not allowed(text, user, access, topic), (user, access, topic)
    assert allowed(text, "node-1", "write", down_topic("node-1", "ecg-1", "ack"))
    assert allowed(text, "ward", "read", "qnode/node-1/readings/ecg-1")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"broker_host": "example.org", "security": "none"}, "in the clear"),
        ({"broker_host": "127.0.0.1"}, "needs ca, certificate and key"),
        ({"broker_host": "127.0.0.1", "security": "ssl"}, "security"),
        ({"broker": "127.0.0.1"}, "unknown key"),
        ({"efficiency": 0.0}, "efficiency"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(table: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings_tables.from_mapping({**DOCUMENT, "devices": table}, Path("/x"), PROFILES)


def test_the_channel_of_the_settings_is_one_that_the_proof_covers() -> None:
    plane = device_plane(DeviceSettings(broker_host="127.0.0.1", security="none", length_km=1.0, efficiency=0.3))
    assert plane.parameters.detector.efficiency_0 == 0.3


def test_commands_write_what_a_broker_needs(tmp_path: Path) -> None:
    run = CliRunner().invoke
    directory = str(tmp_path / "c")
    assert run(cli, ["init", directory, "--nodes", "2", "--topology", "line"]).exit_code == 0
    refused = run(cli, ["device", "enrol", "--cluster", directory, "ecg-1"])
    assert "serves no devices" in str(refused.exception)
    assert run(cli, ["mqtt", "setup", "--cluster", directory, "--port", "28999"]).exit_code == 0
    again = run(cli, ["mqtt", "setup", "--cluster", directory])
    assert "already" in str(again.exception)
    configuration = (tmp_path / "c" / "broker" / "mosquitto.conf").read_text()
    for line in (
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        "listener 28999",
    ):
        assert line in configuration
    printed = run(cli, ["mqtt", "acl", "--cluster", directory])
    assert printed.output == (tmp_path / "c" / "broker" / "acl").read_text()
    taken = run(cli, ["device", "enrol", "--cluster", directory, "node-2"])
    assert "a node's name" in str(taken.exception)
    unknown = run(cli, ["device", "enrol", "--cluster", directory, "--profile", "toaster", "x"])
    assert "not a device profile" in str(unknown.exception)
    for name in ("broker/broker.key", "node-1/mqtt.key"):
        assert (tmp_path / "c" / name).stat().st_mode & 0o077 == 0


def test_a_devices_certificate_opens_nothing_at_the_https_door(tmp_path: Path) -> None:
    from qnode.api import broker
    from qnode.io.certificates import identity_of, load_certificate

    directory = str(tmp_path / "c")
    CliRunner().invoke(cli, ["init", directory, "--nodes", "2", "--topology", "line"])
    authority = broker.authority_of(tmp_path / "c")
    broker.write_client(authority, "device", "sae-1-a", tmp_path / "d.crt", tmp_path / "d.key")
    name = load_certificate(tmp_path / "d.crt").subject.rfc4514_string()
    seen = {
        "subject": ((("commonName", "sae-1-a"),),),
        "subjectAltName": (("URI", "urn:qnode:device:sae-1-a"),),
    }
    assert name == "CN=sae-1-a" and identity_of(seen) is None
    assert json.dumps(seen)
