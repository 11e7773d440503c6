"""Devices over a real broker: the session of 2,048 raw bits, a reading's round trip, 200 devices at once, one process.

Mosquitto on loopback with TLS and client certificates, four daemons, `node-1` serving devices. Figures: the time from a
session's first message to its activated key; from sealing a reading to its receipt; the readings of 200 devices at one
per second, none of which may be missing; memory (PSS) and start of a device's own process. The paper's sessions take
400 to 600 ms (S4-T1); a published post-quantum MQTT needs up to 300 ms.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.local import BenchFailed, awaited
from qnode import cluster as clusters
from qnode.api import broker
from qnode.api.broker import BrokerKind
from qnode.client import CallFailed
from qnode.cluster import OPERATOR, Cluster, ClusterError
from qnode.commands.device import write_enrolment
from qnode.device.process import DeviceProcess, Pace, cycled, end_task
from qnode.device.readings import recorded, shipped
from qnode.device.store import Configuration
from qnode.initialise import Plan, free_ports, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy

RAW_BITS: Final = 2048
NODE: Final = "node-1"
WARM_UP: Final = 3


def run(sessions: int, devices: int, seconds: float, kind: BrokerKind | None = None) -> dict[str, Any]:
    """Measure everything; takes about 20 s more than `seconds`. Raises BenchFailed, BrokerError, ClusterError."""
    with ward(["bench", "process"] + [f"d{number}" for number in range(devices)], kind) as here:
        cluster, homes = here.cluster, here.homes
        figures: dict[str, Any] = {"broker": here.broker.kind}
        figures |= asyncio.run(_one(homes["bench"], sessions))
        figures |= _process(homes["process"])
        figures |= asyncio.run(_many([homes[f"d{number}"] for number in range(devices)], seconds))
        document = cluster.member(NODE).client(OPERATOR).call("GET", "/admin/v1/devices")
        entries = [entry for entry in document["devices"] if entry["device_id"].startswith("d")]
        figures["readings_received"] = sum(entry["readings"] for entry in entries)
        figures["readings_lost"] = figures["readings_sent"] - figures["readings_received"]
        figures["readings_missing"] = sum(entry["missing"] for entry in entries)
    return figures


@dataclass(frozen=True)
class Ward:
    """A running cluster with a broker, and the directories of devices that were enrolled and not yet started."""

    cluster: Cluster
    broker: broker.Broker
    port: int
    homes: dict[str, Path]


@contextmanager
def ward(names: list[str], kind: BrokerKind | None = None) -> Iterator[Ward]:
    """Yield a ward in a temporary directory; everything is stopped at the end. Without `kind`, Mosquitto if it can be.

    A port that was free when it was chosen may be taken before it is bound: then all is made anew, at most twice.
    """
    for attempt in range(3):
        with contextlib.ExitStack() as stack:
            try:
                opened = _open_ward(stack, names, kind or broker.available())
            except (broker.BrokerError, ClusterError, CallFailed) as error:
                if attempt == 2:
                    raise
                print(f"the ward did not come up, made anew: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            yield opened
            return


def _open_ward(stack: contextlib.ExitStack, names: list[str], kind: BrokerKind) -> Ward:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qnode-bench-"))) / "cluster"
    plan = Plan(read_topology("ring", 4), profile="lab", log_level="warning")
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    members = Cluster.open(directory).members
    ports = {
        port for each in members for port in (each.settings.api.listen_port, each.settings.peer_to_peer.listen_port)
    }
    port = next(port for port in iter(lambda: free_ports("127.0.0.1", 1, None)[0], 0) if port not in ports)
    broker.attach(directory, NODE, [each.settings.node_id for each in members], "127.0.0.1", port, ())
    # Links between nodes have their own benches: a small pool keeps them from disturbing this one.
    for each in members:
        with each.config.open("a", encoding="utf-8") as file:
            file.write("\n[pool]\ntarget_bits = 16384\n")
    cluster = Cluster.open(directory)
    running = stack.enter_context(broker.Broker(directory / "broker", "127.0.0.1", port, kind))
    stack.callback(clusters.down, cluster, timeout_s=20)
    clusters.up(cluster, timeout_s=60)
    homes = {name: directory / "devices" / name for name in names}
    for name, home in homes.items():
        write_enrolment(directory, NODE, name, "ecg-patch", home, 256, 33_219)
    return Ward(cluster, running, port, homes)


def _prepared(home: Path, **changed: Any) -> DeviceProcess:
    process = DeviceProcess(Configuration.read(home))
    process.use_profile(dataclasses.replace(process.profile, **changed))
    return process


async def _one(home: Path, sessions: int) -> dict[str, Any]:
    """Make keys one after another, then send readings one after another."""
    process = _prepared(home, session_sifted_bits=RAW_BITS)
    task = asyncio.create_task(process.run(Pace(_forever(), 0.05)))
    agent = await _agent_of(process, task)
    while agent.figures.keys < sessions + WARM_UP:
        await process.renew_key()
        _raise(task)
    agent.figures.receipt_ms.clear()
    while len(agent.figures.receipt_ms) < 200:
        await asyncio.sleep(0.05)
        _raise(task)
    session_ms, receipt_ms = agent.figures.session_ms[WARM_UP:], list(agent.figures.receipt_ms)
    last = agent.figures.last_session
    await end_task(task)
    return {
        "sessions": len(session_ms),
        "session_failures": agent.figures.session_failures,
        "session_ms_p50": round(statistics.median(session_ms), 2),
        "session_ms_p95": round(statistics.quantiles(session_ms, n=20)[-1], 2),
        "raw_bits": last["raw_bits"],
        "secret_bits": last["secret_bits"],
        "energy_j": round(last["energy_j"], 4),
        "epsilon": last["epsilon"],
        "telemetry_p50_ms": round(statistics.median(receipt_ms), 2),
        "p95_ms": round(statistics.quantiles(receipt_ms, n=20)[-1], 2),
    }


async def _many(homes: list[Path], seconds: float) -> dict[str, Any]:
    """All devices at one reading per second each; time counts once all of them have a key."""
    processes = [_prepared(home, refresh_messages=1 << 20, refresh_s=3600.0) for home in homes]
    begun = time.monotonic()
    for start in range(0, len(processes), 10):
        await asyncio.gather(*(process.run(key_only=True) for process in processes[start : start + 10]))
    enrolled_s = time.monotonic() - begun
    data = list(recorded(shipped("vital-signs.csv")))
    runs = []
    for number, process in enumerate(processes):
        await asyncio.sleep(1.0 / len(processes))  # devices do not beat in step
        runs.append(asyncio.create_task(process.run(Pace(cycled(data[number:] + data[:number]), 1.0, int(seconds)))))
    await asyncio.gather(*runs)
    agents = [process.agent for process in processes if process.agent is not None]
    receipts = [ms for agent in agents for ms in agent.figures.receipt_ms]
    return {
        "devices": len(agents),
        "devices_enrolled_s": round(enrolled_s, 2),
        "readings_sent": sum(agent.figures.readings for agent in agents),
        "receipts": sum(agent.figures.receipts for agent in agents),
        "said_again": sum(agent.figures.repeated for agent in agents),
        "devices_p50_ms": round(statistics.median(receipts), 2),
        "devices_p95_ms": round(statistics.quantiles(receipts, n=20)[-1], 2),
    }


def _process(home: Path) -> dict[str, Any]:
    """One device as a process of its own: time until it reads its files, everything loaded; memory while it sends."""
    starts = []
    for _ in range(5):
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "qnode", "device", "run", "nowhere"], capture_output=True)
        starts.append(time.monotonic() - begun)
    command = [sys.executable, "-m", "qnode", "device", "run", str(home), "--readings", "ecg.jsonl"]
    with subprocess.Popen([*command, "--interval-s", "0.05"], stdout=subprocess.DEVNULL) as process:
        try:
            state = home / "state.json"
            awaited("the device's key", lambda: state.exists() and json.loads(state.read_text())["key"], 30)
            awaited("its readings", lambda: json.loads(state.read_text())["sequences_reserved"] > 0, 30)
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.terminate()
            process.wait(10)
    loaded = [name for name in ("numpy", "aiohttp", "scipy", "uvloop") if f"/{name}/" in maps]
    if loaded:
        raise BenchFailed(f"the device loads {', '.join(loaded)}")
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return {"device_pss_mib": round(pss_kib / 1024, 1), "device_start_s": round(statistics.median(starts), 3)}


def _forever() -> Iterator[bytes]:
    return cycled(list(recorded(shipped("ecg.jsonl"))))


async def _agent_of(process: DeviceProcess, task: "asyncio.Task[None]") -> Any:
    end_s = time.monotonic() + 30
    while process.agent is None or not process.agent.has_key:
        _raise(task)
        if time.monotonic() > end_s:
            raise BenchFailed("the device has no key within 30 s")
        await asyncio.sleep(0.01)
    return process.agent


def _raise(task: "asyncio.Task[None]") -> None:
    if task.done():
        task.result()
