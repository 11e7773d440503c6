"""The embedded broker by itself: who is let in, who hears what, sessions, wills, bounds, both versions of MQTT."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from qnode.api import broker
from qnode.api.acl import Acl, AclError
from qnode.api.mqtt import acl
from qnode.device.dialling import Dialler
from qnode.initialise import Plan, free_ports, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy

embedded = pytest.importorskip("qnode.api.embedded", reason="needs amqtt: pip install 'qnode[broker]'")
V311 = aiomqtt.ProtocolVersion.V311
pytestmark = pytest.mark.timeout(120)


class Place:
    """A broker and the certificates of its clients."""

    def __init__(self, cluster: Path) -> None:
        self.cluster = cluster
        (self.port,) = free_ports("127.0.0.1", 1, None)
        self.directory = cluster / "broker"
        broker.write_broker(cluster, self.directory, "127.0.0.1", self.port, (), ["node-1"])
        self.broker = embedded.EmbeddedBroker(self.directory)

    def context(self, user: str | None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
        if user is not None:
            files = self.cluster / f"{user}.crt", self.cluster / f"{user}.key"
            if not files[0].exists():
                broker.write_client(broker.authority_of(self.cluster), "device", user, *files)
            made.load_cert_chain(*files)
        return made

    def client(self, user: str, **options: Any) -> aiomqtt.Client:
        options = {"protocol": V311, "identifier": f"c-{user}", "timeout": 20} | options
        return aiomqtt.Client("127.0.0.1", self.port, tls_context=self.context(user), **options)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("embedded") / "cluster"
    initialise(
        directory,
        Plan(read_topology("ring", 3), profile="lab", log_level="warning"),
        OperatingSystemEntropy(),
        datetime.datetime.now(datetime.UTC),
    )
    return directory


@pytest_asyncio.fixture
async def place(cluster: Path) -> AsyncIterator[Place]:
    made = Place(cluster)
    await made.broker.start()
    yield made
    await made.broker.stop()


def up(device: str) -> str:
    return f"qnode/node-1/device/{device}/up/data"


def down(device: str) -> str:
    return f"qnode/node-1/device/{device}/down/ack"


async def heard(client: aiomqtt.Client, count: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    async with asyncio.timeout(30):
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            found.append((str(message.topic), message.payload))
            if len(found) == count:
                break
    return found


async def test_a_device_reaches_its_node_and_nobody_else(place: Place) -> None:
    async with place.client("node-1") as node, place.client("ecg-1") as one, place.client("ecg-2") as two:
        await node.subscribe("qnode/node-1/device/+/up/+", qos=1)
        await one.subscribe(down("ecg-1"), qos=1)
        for client, device in ((one, "ecg-2"), (two, "ecg-1"), (one, "ecg-1"), (two, "ecg-2")):
            await client.publish(up(device), device.encode(), qos=1)
        assert sorted(await heard(node, 2)) == [(up("ecg-1"), b"ecg-1"), (up("ecg-2"), b"ecg-2")]
        await one.publish(down("ecg-1"), b"forged", qos=1)  # a device may not speak for its node
        await node.publish(down("ecg-1"), b"true", qos=1)
        assert await heard(one, 1) == [(down("ecg-1"), b"true")]


@pytest.mark.parametrize("wanted", ["#", "qnode/#", "qnode/node-1/device/+/down/ack", up("ecg-1")])
async def test_a_subscription_beyond_the_rules_is_refused(place: Place, wanted: str) -> None:
    async with place.client("node-1") as node, place.client("ecg-1") as one:
        await node.publish("qnode/node-1/status", b"online", qos=1, retain=True)
        granted = await one.subscribe(wanted, qos=1)
        assert all(getattr(code, "value", code) >= 0x80 for code in granted), granted
        await one.subscribe(down("ecg-1"), qos=1)
        await node.publish(down("ecg-1"), b"own", qos=1)
        assert await heard(one, 1) == [(down("ecg-1"), b"own")]  # neither the retained message nor another's


async def test_sessions_outlive_connections_and_belong_to_users(place: Place) -> None:
    async with place.client("ecg-1", identifier="same", clean_session=False) as one:
        await one.subscribe(down("ecg-1"), qos=1)
    async with place.client("node-1") as node:
        await node.publish(down("ecg-1"), b"kept", qos=1)
        async with place.client("ecg-2", identifier="same", clean_session=False) as thief:
            await thief.subscribe(down("ecg-2"), qos=1)
            await node.publish(down("ecg-2"), b"thief's own", qos=1)
            assert await heard(thief, 1) == [(down("ecg-2"), b"thief's own")]
    async with place.client("ecg-1", identifier="same", clean_session=False) as one:
        assert await heard(one, 1) == [(down("ecg-1"), b"kept")]


async def test_a_will_speaks_only_where_its_owner_may(place: Place) -> None:
    with pytest.raises(aiomqtt.MqttError):
        async with place.client("ecg-1", will=aiomqtt.Will(up("ecg-2"), b"lies", qos=1)):
            pass
    async with place.client("node-1") as node:
        await node.subscribe("qnode/node-1/device/+/up/+", qos=1)
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=place.context("ecg-1"))
        topic, message = up("ecg-1").encode(), b"lost"
        body = b"\x00\x04MQTT\x04\x0e\x00\x1e\x00\x01d" + b"".join(
            len(each).to_bytes(2, "big") + each for each in (topic, message)
        )
        writer.write(b"\x10" + bytes([len(body)]) + body)
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        writer.transport.abort()
        assert await heard(node, 1) == [(up("ecg-1"), b"lost")]


async def test_strangers_are_not_let_in(place: Place) -> None:
    nameless = place.context(None)
    for tls in (None, nameless):
        with pytest.raises((aiomqtt.MqttError, OSError)):
            async with aiomqtt.Client("127.0.0.1", place.port, protocol=V311, tls_context=tls, timeout=3) as client:
                await client.publish(up("ecg-1"), b"x", qos=1, timeout=3)


@pytest.mark.parametrize(
    "said",
    [
        b"\x30\x02\x00\x00",
        b"\x10\xff\xff\xff\x7f",
        b"\x10\x80\x80\x80\x80\x01",
        b"\x10\x00",
        b"\x10\x08\x00\x04HTTP\x04\x02",
        b"\x10\x0a\x00\x04MQTT\x04\xff\x00\x00",
    ],
)
async def test_a_first_packet_that_is_none_ends_the_connection(place: Place, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=place.context("ecg-1"))
    writer.write(said)
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer == b"" or (answer[:3] == b"\x20\x02\x00" and answer[3] != 0), answer
    writer.close()
    async with place.client("ecg-2"):
        pass  # and the broker serves on


async def test_a_packet_beyond_the_limit_ends_its_connection_only(place: Place) -> None:
    async with place.client("node-1") as node:
        await node.subscribe("qnode/node-1/device/+/up/+", qos=1)
        with pytest.raises(aiomqtt.MqttError):
            async with place.client("ecg-1") as one:
                await one.publish(up("ecg-1"), bytes(broker.MESSAGE_BYTES_MAX + 1000), qos=1, timeout=20)
        async with place.client("ecg-2") as two:
            await two.publish(up("ecg-2"), b"next", qos=1)
        assert await heard(node, 1) == [(up("ecg-2"), b"next")]


async def test_a_dialler_falls_back_to_the_older_version_and_begins_anew_with_the_newer(place: Place) -> None:
    dialler = Dialler("127.0.0.1", place.port, "d", place.context("ecg-1"))
    for _ in range(2):
        async with dialler.connected() as client:
            await client.publish(up("ecg-1"), b"x", qos=1)
        assert dialler.version is V311
    await place.broker.stop()
    with pytest.raises(aiomqtt.MqttError):
        async with dialler.connected():
            pass
    assert dialler.version is aiomqtt.ProtocolVersion.V5
    await place.broker.start()


async def test_a_broker_whose_address_is_taken_says_so(place: Place) -> None:
    with pytest.raises(broker.BrokerError, match="cannot listen"):
        await embedded.EmbeddedBroker(place.directory).start()


def test_a_directory_that_is_no_brokers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(broker.BrokerError, match="mqtt setup"):
        embedded.EmbeddedBroker(tmp_path)


# ---- the rules

names = st.text("abu%-", min_size=1, max_size=3)
levels = st.one_of(names, st.just("+"))
filters = st.tuples(st.lists(levels, min_size=1, max_size=4), st.booleans()).map(
    lambda made: "/".join([*made[0], *(["#"] if made[1] else [])])
)
topics = st.lists(names, min_size=1, max_size=5).map("/".join)


@given(rule=filters, topic=topics, access=st.sampled_from(["read", "write", "readwrite"]))
def test_a_rule_grants_what_the_client_library_matches(rule: str, topic: str, access: str) -> None:
    parsed = Acl.parse(f"user x\ntopic {access} {rule}\n")
    matches = topic_matches_sub(rule, topic)
    if rule.endswith("/#") and topic == rule[:-2]:
        return  # "a/#" also stands for "a": granting less is safe, and nobody of ours speaks there
    for wanted in ("read", "write"):
        assert parsed.allows("x", wanted, topic) == (matches and wanted in access)  # type: ignore[arg-type]
        assert not parsed.allows("y", wanted, topic)  # type: ignore[arg-type]


@given(rule=filters, wanted=filters, topic=topics)
def test_a_covered_filter_hears_nothing_that_is_not_granted(rule: str, wanted: str, topic: str) -> None:
    parsed = Acl.parse(f"user x\ntopic read {rule}\n")
    if parsed.covers("x", "read", wanted) and topic_matches_sub(wanted, topic):
        assert topic_matches_sub(rule, topic)


@pytest.mark.parametrize(
    "text",
    [
        "topic read a",
        "user x\ntopic deny a",
        "user x\ntopic a",
        "user x\ntopic read a/#/b",
        "user x\ntopic read a+",
        "user",
        "pattern readable a",
        "nonsense",
    ],
)
def test_a_line_that_is_not_understood_is_refused_by_its_number(text: str) -> None:
    with pytest.raises(AclError, match=f"line {text.count(chr(10)) + 1}:"):
        Acl.parse(text)


def test_names_with_wildcards_get_no_patterns() -> None:
    rules = Acl.parse(acl(("node-1",), ("ward",)))
    for user in ("+", "#", "a/b"):
        assert not rules.allows(user, "write", up("ecg-1")) and not rules.covers(user, "read", down(user))
    assert rules.covers("ward", "read", "qnode/node-1/readings/+") and not rules.covers("ward", "read", "#")
