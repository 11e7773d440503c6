"""MQTT to and from devices: topics, the broker's connection, and nothing else (rows S4-1.1, S4-A1.3–6).

Every message becomes one request to the node and its answer is published, so that devices enter by the same door as
applications. A lost broker is dialled again for ever; its persistent session keeps what devices said meanwhile. What
comes twice is found by the node, which numbers everything.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import IO, Any, Final

import aiomqtt

from protocol.parameters import ParameterError
from protocol.quantum.link import LinkParameters
from qnode.device.dialling import RECONNECT_S, Dialler
from qnode.device.kem import MlKem768
from qnode.device.process import end_task
from qnode.device_plane import DevicePlane
from qnode.device_readings import Retention
from qnode.inputs import Answer, DeviceFrame, DeviceReply, Request, RequestError
from qnode.settings import NAME_PATTERN, DeviceSettings, SettingsError

ROOT: Final = "qnode"
CHANNELS: Final = ("enrol", "session", "data")
PAYLOAD_BYTES_MAX: Final = 64 * 1024
FRAMES_UNDER_WAY_MAX: Final = 1024
"""Frames that the node has not answered; beyond it the broker's messages wait in the client, then in the broker."""


def device_plane(settings: DeviceSettings) -> DevicePlane:
    """Return what the node core must know to serve devices. Raises SettingsError."""
    table = {
        "source": {"model": "single_photon", "basis_z_probability": 0.5, "pulse_rate_hz": 1e6},
        "channel": {"length_km": settings.length_km, "depolarising": settings.depolarising},
        "detector": {
            "basis_z_probability": 0.5,
            "efficiency_0": settings.efficiency,
            "efficiency_1": settings.efficiency,
            "dead_time_ns": 0.0,
            "after_pulse_probability": 0.0,
        },
    }
    try:
        retention = Retention(settings.readings_kept, round(settings.readings_hours * 3_600_000))
        return DevicePlane(LinkParameters.from_mapping(table), MlKem768(), retention)
    except ParameterError as error:
        raise SettingsError(f"[devices] {error}") from None


def up_topic(node_id: str, device_id: str, channel: str) -> str:
    """Return where a device speaks."""
    return f"{ROOT}/{node_id}/device/{device_id}/up/{channel}"


def down_topic(node_id: str, device_id: str, channel: str) -> str:
    """Return where a device listens."""
    return f"{ROOT}/{node_id}/device/{device_id}/down/{channel}"


def readings_topic(node_id: str, device_id: str) -> str:
    """Return where the users' own systems find opened readings."""
    return f"{ROOT}/{node_id}/readings/{device_id}"


def acl(node_ids: tuple[str, ...], readers: tuple[str, ...] = ()) -> str:
    """Return Mosquitto's ACL file; the user is the common name of the client's certificate.

    A device reaches its own topics only, a node its own tree, a reader opened readings.
    """
    lines = [
        "# Written by `qnode mqtt acl`. The user is the certificate's common name (use_identity_as_username true).",
        f"pattern write {ROOT}/+/device/%u/up/#",
        f"pattern read {ROOT}/+/device/%u/down/#",
    ]
    for node_id in node_ids:
        lines += ["", f"user {node_id}", f"topic readwrite {ROOT}/{node_id}/#"]
    for reader in readers:
        lines += ["", f"user {reader}", f"topic read {ROOT}/+/readings/#"]
    return "\n".join(lines) + "\n"


class MqttDoor:
    """One node's connection to its broker. `start()`, `await stop()`; `counters` for operators."""

    def __init__(
        self, node_id: str, settings: DeviceSettings, ask: Callable[[Request], Awaitable[Answer]], log: Any
    ) -> None:
        """Raises SettingsError when the files for TLS cannot be used."""
        self._node_id = node_id
        self._settings = settings
        self._ask = ask
        self._log = log
        assert settings.broker_host is not None, "a node without a broker has no door to devices"
        will = aiomqtt.Will(f"{ROOT}/{node_id}/status", b"offline", qos=1, retain=True)
        self._dialler = Dialler(
            settings.broker_host, settings.broker_port, f"qnode-{node_id}", tls_context(settings), will
        )
        self._task: asyncio.Task[None] | None = None
        self._under_way = asyncio.Semaphore(FRAMES_UNDER_WAY_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._file: IO[str] | None = None
        self.counters = {"frames": 0, "oversized": 0, "unknown_topic": 0, "connections": 0}

    def start(self) -> None:
        """Begin to dial. Raises SettingsError for a file of readings that cannot be written."""
        if self._settings.readings_file is not None:
            try:
                self._file = self._settings.readings_file.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise SettingsError(f"[devices] readings_file: {error}") from None
        self._task = asyncio.create_task(self._run(), name="mqtt")

    async def stop(self) -> None:
        """Say that the node goes, and close."""
        if self._task is not None:
            await end_task(self._task)
        if self._file is not None:
            self._file.close()

    async def _run(self) -> None:
        delay_s = RECONNECT_S[0]
        while True:
            try:
                async with self._dialler.connected() as client:
                    delay_s = RECONNECT_S[0]
                    await self._serve(client)
            except (aiomqtt.MqttError, OSError) as error:
                self._log.warning("broker not reached", host=self._settings.broker_host, reason=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RECONNECT_S[1])

    async def _serve(self, client: aiomqtt.Client) -> None:
        await client.subscribe(up_topic(self._node_id, "+", "+"), qos=1)
        await client.publish(f"{ROOT}/{self._node_id}/status", b"online", qos=1, retain=True)
        self.counters["connections"] += 1
        self._log.info(
            "broker connected",
            host=self._settings.broker_host,
            port=self._settings.broker_port,
            mqtt=self._dialler.version.name,
        )
        async for message in client.messages:
            frame = self._frame(str(message.topic), message.payload)
            if frame is None:
                continue
            await self._under_way.acquire()
            task = asyncio.create_task(self._answer(client, frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _frame(self, topic: str, payload: object) -> DeviceFrame | None:
        """Return the request that a message makes; None, and a count, for what no device sends."""
        levels = topic.split("/")
        if len(levels) != 6 or levels[5] not in CHANNELS or NAME_PATTERN.fullmatch(levels[3]) is None:
            if levels[-1] == "status":
                self._log.info("device status", device=levels[3][:64], status=repr(payload)[:200])
                return None
            self.counters["unknown_topic"] += 1
            return None
        if not isinstance(payload, bytes) or not 0 < len(payload) <= PAYLOAD_BYTES_MAX:
            self.counters["oversized"] += 1
            self._log.warning("device frame refused", device=levels[3], reason="empty or oversized")
            return None
        self.counters["frames"] += 1
        return DeviceFrame(levels[3], levels[5], payload)

    async def _answer(self, client: aiomqtt.Client, frame: DeviceFrame) -> None:
        try:
            answer = await self._ask(frame)
            if isinstance(answer, RequestError):
                self._log.warning("device frame refused", device=frame.device_id, reason=answer.message)
                return
            assert isinstance(answer, DeviceReply), f"a frame was answered by {type(answer).__name__}"
            for channel, payload in answer.messages:
                # Receipts may be lost: the device says its reading again. All else is worth the broker's care.
                qos = 0 if channel in ("ack", "refused") else 1
                await client.publish(down_topic(self._node_id, frame.device_id, channel), payload, qos=qos)
            if answer.reading is not None:
                await self._forward(client, frame.device_id, answer.reading)
        except aiomqtt.MqttError as error:
            self._log.info("answer not sent", device=frame.device_id, reason=str(error))
        finally:
            self._under_way.release()

    async def _forward(self, client: aiomqtt.Client, device_id: str, reading: dict[str, Any]) -> None:
        line = json.dumps(reading, separators=(",", ":"))
        if self._file is not None:
            self._file.write(line + "\n")
        await client.publish(readings_topic(self._node_id, device_id), line.encode(), qos=0)


def tls_context(settings: DeviceSettings) -> ssl.SSLContext | None:
    """Return the context towards the broker; None only where the settings say `none`. Raises SettingsError."""
    if settings.security == "none":
        return None
    assert settings.ca is not None and settings.certificate is not None
    try:
        context = ssl.create_default_context(cafile=str(settings.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"[devices] ca, certificate or key cannot be used for TLS: {error}") from None
    return context
