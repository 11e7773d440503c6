"""Devices over Mosquitto and the embedded broker: keys, readings, a broker that restarts, strangers, revocation."""

import asyncio
import dataclasses
import json
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from loadtest.bench_device import Ward, ward
from loadtest.local import awaited
from qnode.cluster import OPERATOR
from qnode.device.dialling import Dialler
from qnode.device.kem import MlKem768
from qnode.device.process import DeviceProcess, DeviceRefused, Pace, end_task
from qnode.device.store import Configuration, DeviceError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
]
has_mosquitto = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is not None
MOSQUITTO = pytest.param(
    "mosquitto",
    marks=pytest.mark.skipif(
        not has_mosquitto, reason="mosquitto is not installed (Debian: apt-get install mosquitto)"
    ),
)


@pytest.fixture(scope="module", params=[MOSQUITTO, "embedded"])
def here(request: pytest.FixtureRequest) -> Iterator[Ward]:
    with ward(
        ["ecg-1", "ecg-2", "ecg-3", "ecg-4", "ecg-5", "ecg-6", "ecg-7", "ecg-8", "ecg-9"], request.param
    ) as found:
        yield found


def stranger(here: Ward, tls: ssl.SSLContext | None, **options: Any) -> aiomqtt.Client:
    """A client of our own making, in the version that the broker speaks."""
    version = aiomqtt.ProtocolVersion.V5 if here.broker.kind == "mosquitto" else aiomqtt.ProtocolVersion.V311
    return aiomqtt.Client("127.0.0.1", here.port, protocol=version, tls_context=tls, timeout=2, **options)


def entry(here: Ward, name: str) -> dict[str, Any]:
    document = here.cluster.member("node-1").client(OPERATOR).call("GET", "/admin/v1/devices")
    return next(each for each in document["devices"] if each["device_id"] == name)


def numbers(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def context(home: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(home / "ca.crt"))
    made.load_cert_chain(home / "device.crt", home / "device.key")
    return made


async def test_a_device_enrols_makes_a_key_and_sends(here: Ward) -> None:
    process = DeviceProcess(Configuration.read(here.homes["ecg-1"]))
    await process.run(Pace(numbers(50), 0.01))
    assert process.agent is not None and process.agent.figures.receipts == 50
    seen = entry(here, "ecg-1")
    assert (seen["readings"], seen["missing"], seen["keys"]) == (50, 0, 1)


async def test_a_broker_that_restarts_loses_no_reading_and_no_key(here: Ward) -> None:
    process = DeviceProcess(Configuration.read(here.homes["ecg-2"]))
    process.use_profile(dataclasses.replace(process.profile, refresh_messages=25))
    running = asyncio.create_task(process.run(Pace(numbers(120), 0.03)))
    while process.agent is None or process.agent.figures.receipts < 30:
        await asyncio.sleep(0.02)
        assert not running.done(), running
    here.broker.stop()
    begun, figures = process.agent.figures.readings, process.agent.figures
    await wait_until(lambda: figures.readings >= begun + 10)
    here.broker.start()
    await asyncio.wait_for(running, 60)
    seen = entry(here, "ecg-2")
    assert process.agent.figures.receipts == 120 == seen["readings"] and seen["missing"] == 0
    assert process.agent.figures.keys == seen["keys"] >= 2 and process.connections >= 2


async def test_hybrid_keys_are_made_over_the_broker(here: Ward) -> None:
    process = DeviceProcess(Configuration.read(here.homes["ecg-7"]), kem=MlKem768())
    await process.run(Pace(numbers(10), 0.01))
    assert process.agent is not None and len(process.agent.state.key) == 32
    assert entry(here, "ecg-7")["readings"] == 10 and entry(here, "ecg-7")["key_bits"] == 256


async def test_strangers_and_other_devices_are_kept_out(here: Ward) -> None:
    with pytest.raises(aiomqtt.MqttError):
        async with stranger(here, None):
            pass  # no TLS
    nameless = ssl.create_default_context(cafile=str(here.homes["ecg-3"] / "ca.crt"))
    with pytest.raises((aiomqtt.MqttError, OSError)):
        async with stranger(here, nameless) as client:
            await client.publish("qnode/node-1/device/ecg-3/up/data", b"x", qos=1)  # no certificate
    async with stranger(here, context(here.homes["ecg-3"])) as client:
        before = entry_of_refusals(here)
        await client.publish("qnode/node-1/device/ecg-1/up/data", b"x" * 60, qos=1)  # another's: dropped by the ACL
        await client.publish("qnode/node-1/device/ecg-3/up/data", b"x" * 60, qos=1)  # the way is open, and own
        await wait_until(lambda: entry_of_refusals(here) > before)
    assert entry_of_refusals(here) == before + 1


def entry_of_refusals(here: Ward) -> int:
    document = here.cluster.member("node-1").client(OPERATOR).call("GET", "/admin/v1/devices")
    return sum(document["refusals"].values())


async def wait_until(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("did not happen")


async def test_garbage_and_oversized_payloads_leave_the_node_serving(here: Ward) -> None:
    home = here.homes["ecg-4"]
    process = DeviceProcess(Configuration.read(home))
    await process.run(key_only=True)
    before = entry_of_refusals(here)
    async with stranger(here, context(home)) as client:
        for channel in ("enrol", "session", "data", "status", "nonsense"):
            for size in (0, 1, 26, 40, 5_000, 100_000):
                await client.publish(f"qnode/node-1/device/ecg-4/up/{channel}", b"\xc1" * size, qos=1)
    await wait_until(lambda: entry_of_refusals(here) >= before + 9)
    again = DeviceProcess(Configuration.read(home))
    await again.run(Pace(numbers(20), 0.01))
    assert again.agent is not None and again.agent.figures.receipts == 20
    assert entry(here, "ecg-4")["readings"] == 20


async def test_a_revoked_device_is_cut_off(here: Ward) -> None:
    process = DeviceProcess(Configuration.read(here.homes["ecg-5"]))
    running = asyncio.create_task(process.run(Pace(numbers(10_000), 0.02)))
    while process.agent is None or process.agent.figures.receipts < 5:
        await asyncio.sleep(0.02)
        assert not running.done(), running
    client = here.cluster.member("node-1").client(OPERATOR)
    await asyncio.to_thread(client.call, "DELETE", "/admin/v1/devices/ecg-5")
    with pytest.raises(DeviceRefused, match="revoked"):
        await asyncio.wait_for(running, 10)
    again = DeviceProcess(Configuration.read(here.homes["ecg-5"]))
    with pytest.raises(DeviceRefused, match="revoked"):
        await asyncio.wait_for(again.run(Pace(numbers(500), 0.01)), 30)
    blocks = client.call("GET", "/admin/v1/ledger/blocks?from=1&count=1000")["blocks"]
    kinds = [tx for block in blocks for tx in block["transactions"] if tx.get("device_id") == "ecg-5"]
    assert len(kinds) == 2 and all(tx["ok"] for tx in kinds)


async def test_sessions_outlive_connections_and_a_lost_device_leaves_its_will(here: Ward) -> None:
    home, node = here.homes["ecg-3"], here.cluster.directory / "node-1"
    tls = ssl.create_default_context(cafile=str(home / "ca.crt"))
    tls.load_cert_chain(node / "mqtt.crt", node / "mqtt.key")
    topic, will = "qnode/node-1/device/ecg-3/down/ack", "qnode/node-1/device/ecg-3/up/status"
    ours = Dialler("127.0.0.1", here.port, "kept", context(home))
    async with ours.connected() as device:
        await device.subscribe(topic, qos=1)
    async with asyncio.timeout(60), Dialler("127.0.0.1", here.port, "listener", tls).connected() as client:
        await client.subscribe(will, qos=1)
        await client.publish(topic, b"while you were away", qos=1)
        async with ours.connected() as device:
            assert (await anext(aiter(device.messages))).payload == b"while you were away"
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port, ssl=context(home))
        fields = [each.encode() for each in ("dying", will, "lost")]
        body = b"\x00\x04MQTT\x04\x0e\x00\x1e" + b"".join(len(each).to_bytes(2, "big") + each for each in fields)
        writer.write(b"\x10" + bytes([len(body)]) + body)
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        writer.transport.abort()  # no DISCONNECT: the device is gone
        assert (await anext(aiter(client.messages))).payload == b"lost"


async def test_nothing_is_said_to_a_broker_without_tls(here: Ward, tmp_path: Path) -> None:
    heard = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(65_536))
        writer.write(b"\x20\x02\x00\x00")  # "connected": what a broker without TLS would like to say
        heard.extend(await reader.read(65_536))
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    shutil.copytree(here.homes["ecg-3"], tmp_path / "d")
    table = json.loads((tmp_path / "d" / "device.json").read_text())
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "d" / "device.json").write_text(json.dumps(table | {"broker_port": port}))
    process = DeviceProcess(Configuration.read(tmp_path / "d"))
    running = asyncio.create_task(process.run(key_only=True))
    await wait_until(lambda: heard)
    await end_task(running)
    server.close()
    assert heard[:2] == b"\x16\x03" and b"MQTT" not in heard and process.connections == 0  # a ClientHello, no more


def test_a_device_process_is_small(here: Ward) -> None:
    command = [sys.executable, "-m", "qnode", "device", "run", str(here.homes["ecg-8"]), "--readings", "ecg.jsonl"]
    with subprocess.Popen([*command, "--interval-s", "0.05"], stdout=subprocess.DEVNULL) as process:
        try:
            state = here.homes["ecg-8"] / "state.json"
            awaited(
                "readings under a key",
                lambda: state.exists() and json.loads(state.read_text())["sequences_reserved"] > 0,
                60,
            )
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        finally:
            process.terminate()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kib < 30 * 1024


def qnode(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "qnode", *arguments, "--json"], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_a_floor_that_governance_sets_reaches_the_device(here: Ward, tmp_path: Path) -> None:
    home, cluster = here.homes["ecg-9"], ("--cluster", str(here.cluster.directory))
    first = DeviceProcess(Configuration.read(home))
    await first.run(key_only=True)
    assert entry(here, "ecg-9")["floor"]["key_bits_min"] == 256
    policy = tmp_path / "floor.toml"
    policy.write_text('name = "floor"\n[select]\ndevices = ["ecg-9"]\n[device]\nkey_bits_min = 1000\n')
    proposed = await asyncio.to_thread(qnode, "policy", "set", str(policy), "--node", "node-1", *cluster)
    for node in ("node-2", "node-3"):
        await asyncio.to_thread(qnode, "governance", "approve", proposed["proposal"], "--node", node, *cluster)
    await wait_until(lambda: entry(here, "ecg-9")["floor"]["key_bits_min"] == 1000)
    again = DeviceProcess(Configuration.read(home))
    running = asyncio.create_task(again.run(Pace(numbers(10_000), 0.05)))
    await wait_until(lambda: again.agent is not None and again.connected.is_set())
    assert again.agent is not None
    while not await again.renew_key():  # the first was planned for less, and ends
        assert "this was for less" in str(again.agent.figures.last_failure)
    await end_task(running)
    assert len(again.agent.state.key) * 8 >= 1000 and entry(here, "ecg-9")["key_bits"] >= 1000


def test_the_command_line_runs_a_device_without_the_nodes_imports(here: Ward) -> None:
    home = here.homes["ecg-6"]
    command = ["device", "run", str(home), "--readings", "vital-signs.csv", "--interval-s", "0", "--count", "10"]
    script = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "import atexit\n"
        "heavy = ('numpy', 'aiohttp', 'ledger', 'qnode.node', 'scipy', 'structlog', 'uvloop')\n"
        "atexit.register(lambda: print('loaded', [name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "from qnode.cli import main; main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["receipts"] == 10 and said["keys"] == 1
    assert "loaded []" in done.stderr


async def test_a_device_without_its_broker_says_so(here: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode.device.process.ENROL_TIMEOUT_S", 1.0)
    shutil.copytree(here.homes["ecg-3"], tmp_path / "d")
    table = json.loads((tmp_path / "d" / "device.json").read_text())
    (tmp_path / "d" / "device.json").write_text(json.dumps(table | {"broker_port": 1}))
    with pytest.raises(DeviceError, match="not reached"):
        await DeviceProcess(Configuration.read(tmp_path / "d")).run(key_only=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [MOSQUITTO, "embedded"])
def test_the_demo_of_devices_succeeds(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "qnode", "device", "demo", "--broker", kind]
    options = ["--directory", str(tmp_path / "demo"), "--report", str(tmp_path / "report.json")]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as demo:
        try:
            _, said = demo.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            demo.send_signal(signal.SIGINT)  # so that it stops its broker and its daemons
            pytest.fail(f"the demo does not end: {demo.communicate(timeout=40)[1]}")
    assert demo.returncode == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["succeeded"] and len(report["table"]) == 5 and report["attack"]["qber"] > 0.15
    assert report["broker"] == kind and report["attack"]["alarms_on_chain"] == 1 and report["revocation"]["height"] > 0
    for row in report["table"]:
        assert row["raw_bits"] == row["paper"]["raw_bits"] and 256 <= row["key_bits"] <= row["secret_bits"] - 128
