"""Five devices of the paper's table 1 from enrolment to revocation, measured (row S4-T1): a part of `make demo`.

`qnode device demo` shows them alone. Four daemons, a broker with TLS, five devices with other batteries: they enrol,
make keys, send a minute of data at speed, renew their keys; one is eavesdropped on, one is replayed, one is revoked on
the chain. Every claim is checked against what the node says; the demo fails unless all of it happened.
"""

import asyncio
import dataclasses
import datetime
import json
import shutil
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiomqtt
from rich.console import Console
from rich.table import Table

from qnode import cluster as clusters
from qnode.api import broker
from qnode.api.broker import BrokerKind
from qnode.client import CallFailed
from qnode.cluster import OPERATOR, Cluster
from qnode.commands.device import write_enrolment
from qnode.device.dialling import Dialler
from qnode.device.process import DeviceProcess, DeviceRefused, Pace, cycled, end_task
from qnode.device.readings import recorded, shipped
from qnode.device.store import Configuration, DeviceError
from qnode.initialise import Plan, free_ports, initialise, read_topology
from qnode.io.entropy import OperatingSystemEntropy

NODE: Final = "node-1"
HOST: Final = "127.0.0.1"
STEP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
READINGS: Final = 240
"""A minute of the ECG, four readings per second; the others send as many."""
SPEED_UP: Final = 20.0
SESSIONS: Final = 5
"""Keys per device for the table, whose times are medians."""
Tell = Callable[[str, str], object]
"""Who hears of a step that happened: its title, and what was seen."""


@dataclass(frozen=True)
class Row:
    """One device: what the paper's table 1 says of it, and the device that stands for it here."""

    device_id: str
    profile: str
    data: str
    paper_s: float
    paper_j: float
    paper_raw_bits: int
    paper_final_bits: int


ROWS: Final = (
    Row("device-1", "ecg-patch", "ecg.jsonl", 0.45, 0.25, 2048, 1024),
    Row("device-2", "infusion-pump", "vital-signs.csv", 0.55, 0.30, 4096, 2048),
    Row("device-3", "pulse-oximeter", "vital-signs.csv", 0.50, 0.28, 3072, 1536),
    Row("device-4", "vehicle", "vehicle.csv", 0.60, 0.32, 4096, 2048),
    Row("device-5", "thermometer", "vital-signs.csv", 0.40, 0.22, 2048, 1024),
)
EAVESDROPPED, REPLAYED, REVOKED = "device-4", "device-5", "device-3"


class DemoFailed(Exception):
    """A step did not happen; the message says which and what was seen instead."""


@dataclass
class DeviceDemo:
    """The steps, in order; `report` gathers what was seen."""

    directory: Path
    cluster: Cluster
    port: int
    sessions: int = SESSIONS
    report: dict[str, Any] = field(default_factory=dict)
    processes: dict[str, DeviceProcess] = field(default_factory=dict)
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        return [
            ("five devices enrol", self.enrol),
            (f"each makes {self.sessions} keys", self.make_keys),
            (f"each sends {READINGS} readings", self.send),
            (f"an eavesdropper on {EAVESDROPPED}", self.attack),
            (f"a replay of {REPLAYED}", self.replay),
            (f"{REVOKED} is revoked on the chain", self.revoke),
        ]

    def run(self, tell: Tell) -> str | None:
        """Do all steps in an event loop of their own; return what failed, if anything."""
        return asyncio.run(self._run(tell))

    async def _run(self, tell: Tell) -> str | None:
        begun = time.monotonic()
        self.report["sessions_per_device"] = self.sessions
        try:
            for title, step in self.steps():
                try:
                    said = await step()
                except (DemoFailed, DeviceRefused, DeviceError, CallFailed, TimeoutError, aiomqtt.MqttError) as error:
                    return f"{title}: {error!r}"
                self.report.setdefault("step_s", {})[title] = round(time.monotonic() - begun, 2)
                tell(title, said)
            self.report["total_s"] = round(time.monotonic() - begun, 2)
            return None
        finally:
            for task in self.tasks.values():
                await end_task(task)

    # ---- steps

    async def enrol(self) -> str:
        for row in ROWS:
            home = self.directory / "devices" / row.device_id
            await asyncio.to_thread(
                write_enrolment, self.directory, NODE, row.device_id, row.profile, home, 256, 33_219
            )
            process = DeviceProcess(Configuration.read(home))
            profile = dataclasses.replace(process.profile, session_sifted_bits=row.paper_raw_bits)
            process.use_profile(profile)
            self.processes[row.device_id] = process
        await asyncio.gather(*(process.run(key_only=True) for process in self.processes.values()))
        known = {entry["device_id"] for entry in (await self._devices()).values()}
        if known != {row.device_id for row in ROWS}:
            raise DemoFailed(f"the node knows {sorted(known)}")
        shares = ", ".join(f"{process.battery.share:.0%}" for process in self.processes.values())
        return f"recorded on the chain; batteries at {shares}"

    async def make_keys(self) -> str:
        """Renew keys, one device at a time, so that times are those of a session and not of five."""
        for row in ROWS:
            process = self.processes[row.device_id]
            self._begin(row, Pace(self._readings(row), 0.25))
            await self._until(f"{row.device_id} connected", lambda process=process: process.connected.is_set())  # type: ignore[misc]
            sessions: list[dict[str, Any]] = []
            agent = process.agent
            assert agent is not None
            before = await self._device(row.device_id)
            while len(sessions) < self.sessions:
                if await process.renew_key():
                    sessions.append(agent.figures.last_session)
            await self._end(row.device_id)
            after = await self._device(row.device_id)
            if after["keys"] - before["keys"] < self.sessions or after["key_id"] == before["key_id"]:
                raise DemoFailed(f"{row.device_id} made {after['keys'] - before['keys']} keys by the node's count")
            self._tabulate(row, sessions)
        return "every key confirmed by challenge and response at both ends, old ones wiped"

    async def send(self) -> str:
        before = await self._devices()
        for row in ROWS:
            interval_s = {"ecg.jsonl": 0.25, "vital-signs.csv": 0.25, "vehicle.csv": 0.25}[row.data] / SPEED_UP
            self._begin(row, Pace(self._readings(row), interval_s, READINGS))
        await asyncio.wait_for(asyncio.gather(*self.tasks.values()), STEP_TIMEOUT_S)
        after = await self._devices()
        for row in ROWS:
            came = after[row.device_id]["readings"] - before[row.device_id]["readings"]
            if came != READINGS or after[row.device_id]["missing"]:
                raise DemoFailed(f"{came} of {READINGS} readings of {row.device_id} arrived")
        times = [ms for process in self.processes.values() if process.agent for ms in process.agent.figures.receipt_ms]
        self.report["readings"] = {
            "sent": READINGS * len(ROWS),
            "received": READINGS * len(ROWS),
            "receipt_ms_p50": round(statistics.median(times), 2),
        }
        return f"all {READINGS * len(ROWS)} opened at the node, none missing, none twice"

    async def attack(self) -> str:
        await self._call("POST", f"/admin/v1/devices/{EAVESDROPPED}/attack", {"kind": "intercept_resend"})
        row = next(row for row in ROWS if row.device_id == EAVESDROPPED)
        before = await self._device(EAVESDROPPED)
        self._begin(row, Pace(self._readings(row), 0.1))
        process = self.processes[EAVESDROPPED]
        await self._until("the device connected", process.connected.is_set)
        if await process.renew_key():
            raise DemoFailed("a key was made under full intercept-resend")
        seen = await self._device(EAVESDROPPED)
        if seen["attacked"] != before["attacked"] + 1 or seen["keys"] != before["keys"] or seen["last_qber"] < 0.15:
            raise DemoFailed(f"the node says {seen}")
        await self._until("the alarm on the chain", lambda: self._alarm_is("qber"))
        await self._call("DELETE", f"/admin/v1/devices/{EAVESDROPPED}/attack")
        await self._until_key(process)
        await self._until("the alarm cleared on the chain", lambda: self._alarm_is(None))
        await self._end(EAVESDROPPED)
        after = await self._device(EAVESDROPPED)
        self.report["attack"] = {
            "qber": seen["last_qber"],
            "qber_after": after["last_qber"],
            "alarms_on_chain": after["alarms_raised"],
        }
        return (
            f"QBER {seen['last_qber']:.1%}, session aborted, no key, alarm on the chain; "
            f"without her {after['last_qber']:.1%}, a key, alarm cleared"
        )

    async def replay(self) -> str:
        """Say a true frame of a device twice more, under its own certificate: the worst replayer."""
        row = next(row for row in ROWS if row.device_id == REPLAYED)
        before = await self._device(REPLAYED)
        frames: list[bytes] = []
        process = self.processes[REPLAYED]
        process.on_sent = lambda channel, payload: frames.append(payload) if channel == "data" else None
        self._begin(row, Pace(self._readings(row), 0.01, 5))
        await asyncio.wait_for(self.tasks[REPLAYED], STEP_TIMEOUT_S)
        context = ssl.create_default_context(cafile=str(self.directory / "broker" / "ca.crt"))
        home = self.directory / "devices" / REPLAYED
        context.load_cert_chain(home / "device.crt", home / "device.key")
        async with Dialler(HOST, self.port, "replayer", context).connected() as client:
            for frame in (frames[0], frames[0]):
                await client.publish(f"qnode/{NODE}/device/{REPLAYED}/up/data", frame, qos=1)

            async def refused() -> bool:
                return bool((await self._device(REPLAYED))["repeated"] >= before["repeated"] + 2)

            await self._until("both replays refused", refused)
        after = await self._device(REPLAYED)
        if after["readings"] != before["readings"] + 5:
            raise DemoFailed(f"{after['readings'] - before['readings']} readings came of 5")
        self.report["replays_refused"] = after["repeated"] - before["repeated"]
        return "refused twice, counted, the reading stands once"

    async def revoke(self) -> str:
        row = next(row for row in ROWS if row.device_id == REVOKED)
        self._begin(row, Pace(self._readings(row), 0.02))
        process = self.processes[REVOKED]
        agent = process.agent
        assert agent is not None
        receipts, refusals = agent.figures.receipts, agent.figures.refusals
        await self._until("readings before the revocation", lambda: agent.figures.receipts > receipts + 5)
        begun = time.monotonic()
        await self._call("DELETE", f"/admin/v1/devices/{REVOKED}")
        while agent.figures.refusals == refusals and not self.tasks[REVOKED].done():
            await asyncio.wait((self.tasks[REVOKED],), timeout=0.005)
        cut_ms = (time.monotonic() - begun) * 1000
        answered = agent.figures.receipts
        try:
            await asyncio.wait_for(self.tasks[REVOKED], STEP_TIMEOUT_S)
        except DeviceRefused:
            pass
        else:
            raise DemoFailed("the revoked device went on")
        if agent.figures.receipts != answered:
            raise DemoFailed(f"{agent.figures.receipts - answered} readings were taken after the first was refused")
        if REVOKED in await self._devices():
            raise DemoFailed("the node still holds the revoked device's keys")
        height = await self._revoked_at()
        self.report["revocation"] = {"cut_off_ms": round(cut_ms, 1), "height": height}
        return f"in block {height}: its readings are refused {cut_ms:.0f} ms after the order, its keys destroyed"

    # ---- pieces

    async def _alarm_is(self, reason: str | None) -> bool:
        return bool((await self._device(EAVESDROPPED))["alarm"] == reason)

    async def _revoked_at(self) -> int:
        """Return the height of the block that revoked the device."""
        height = 1
        while blocks := (await self._call("GET", f"/admin/v1/ledger/blocks?from={height}&count=200"))["blocks"]:
            for block in blocks:
                if any(
                    tx.get("device_id") == REVOKED and tx["kind"] == "DeviceRevoked" for tx in block["transactions"]
                ):
                    return int(block["height"])
            height = blocks[-1]["height"] + 1
        raise DemoFailed("no block has the revocation")

    def _tabulate(self, row: Row, sessions: list[dict[str, Any]]) -> None:
        """Enter the medians of a device's sessions."""
        medians = {
            name: statistics.median(session[name] for session in sessions)
            for name in ("ms", "energy_j", "qubits", "raw_bits", "secret_bits", "key_bits", "qber")
        }
        entry = {
            "device_id": row.device_id,
            "profile": row.profile,
            **{name: round(value, 4) for name, value in medians.items()},
            "epsilon": sessions[0]["epsilon"],
            "paper": {
                "generation_s": row.paper_s,
                "energy_j": row.paper_j,
                "raw_bits": row.paper_raw_bits,
                "final_bits": row.paper_final_bits,
            },
        }
        self.report.setdefault("table", []).append(entry)

    def _readings(self, row: Row) -> Any:
        return cycled(list(recorded(shipped(row.data))))

    def _begin(self, row: Row, pace: Pace) -> None:
        self.tasks[row.device_id] = asyncio.create_task(self.processes[row.device_id].run(pace))

    async def _end(self, device_id: str) -> None:
        """Stop the device; what is unanswered it says again when it runs again."""
        await end_task(self.tasks.pop(device_id))

    async def _until_key(self, process: DeviceProcess) -> None:
        end_s = time.monotonic() + STEP_TIMEOUT_S
        while not await process.renew_key():
            if time.monotonic() > end_s:
                raise DemoFailed("no key after the eavesdropper left")

    async def _until(self, what: str, condition: Callable[[], Any]) -> None:
        end_s = time.monotonic() + STEP_TIMEOUT_S
        while time.monotonic() < end_s:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            for device_id, task in self.tasks.items():
                if task.done() and (error := task.exception()):
                    raise DemoFailed(f"{what}: {device_id} ended: {error}")
            await asyncio.sleep(POLL_S)
        raise DemoFailed(f"{what}: did not happen within {STEP_TIMEOUT_S:g} s")

    async def _call(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        client = self.cluster.member(NODE).client(OPERATOR)
        return await asyncio.to_thread(client.call, method, path, document)

    async def _devices(self) -> dict[str, dict[str, Any]]:
        document = await self._call("GET", "/admin/v1/devices")
        return {entry["device_id"]: entry for entry in document["devices"]}

    async def _device(self, device_id: str) -> dict[str, Any]:
        return (await self._devices())[device_id]


def run(directory: Path, report_path: Path | None, kind: BrokerKind | None = None) -> bool:
    """Run the demo in `directory` (made anew); say whether everything happened. Raises BrokerError."""
    console = Console(stderr=True)
    kind = kind or broker.available()
    shutil.rmtree(directory, ignore_errors=True)
    plan = Plan(read_topology("ring", 4), profile="lab", log_level="info")
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    (port,) = free_ports(HOST, 1, None)
    nodes = [member.settings.node_id for member in Cluster.open(directory).members]
    home = broker.attach(directory, NODE, nodes, HOST, port, ())
    cluster = Cluster.open(directory)
    with broker.Broker(home, HOST, port, kind):
        try:
            clusters.up(cluster, timeout_s=60)
            demo = DeviceDemo(directory, cluster, port)
            failure = demo.run(lambda title, said: console.print(f"✓ {title} [dim]{said}"))
        finally:
            clusters.down(cluster, timeout_s=20)
    demo.report |= {"broker": kind, "succeeded": failure is None, "failure": failure}
    if report_path is not None:
        report_path.write_text(json.dumps(demo.report, indent=2) + "\n", "utf-8")
    if failure is not None:
        console.print(f"[red]The demo of devices failed: {failure}\nThe nodes' logs are in {directory}")
        return False
    show(demo.report, console)
    return True


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table, the paper's beside it."""
    title = f"Devices: sessions (median of {report['sessions_per_device']}), the paper's table 1 in brackets"
    table = Table(title=title, title_justify="left")
    for heading in ("device", "time, s", "energy, J (model)", "raw bits", "secret bits", "final key", "QBER"):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for row in report["table"]:
        paper = row["paper"]
        table.add_row(
            f"{row['device_id']} {row['profile']}",
            f"{row['ms'] / 1000:.3f} ({paper['generation_s']:.2f})",
            f"{row['energy_j']:.2f} ({paper['energy_j']:.2f})",
            f"{row['raw_bits']:,.0f} ({paper['raw_bits']:,})",
            f"{row['secret_bits']:,.0f}",
            f"{row['key_bits']:,.0f} ({paper['final_bits']:,})",
            f"{row['qber']:.2%}",
        )
    console.print(table)
    console.print(
        f"ε = {report['table'][0]['epsilon']:.0e} per key. The final key is what the device's energy asks for (α·E); "
        "the paper halves the raw key whatever was measured."
    )
