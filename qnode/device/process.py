"""A device's process: one connection to the broker, one agent, one source of readings (row S4-1.1). Shell.

Everything is decided in `agent`; this module carries frames, keeps time, and dials again for ever. It loads neither
numpy nor anything of a node, so that it starts in a fraction of a second and fits into 30 MiB.
"""

import asyncio
import contextlib
import os
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import aiomqtt

from protocol.lightweight import enrolment
from protocol.lightweight.channel import derive
from protocol.lightweight.enrolment import Enrol, Enrolled, EnrolmentRefused
from protocol.lightweight.hybrid import Kem
from protocol.records import MalformedMessage, encode_record
from qnode.device.agent import Agent, DeviceState, Outgoing
from qnode.device.dialling import RECONNECT_S, Dialler
from qnode.device.energy import Battery, Profile
from qnode.device.store import Configuration, DeviceError, Store

TICK_S: Final = 0.25
"""How often unanswered frames are looked at; everything else happens when a frame or a reading comes."""
ENROL_TIMEOUT_S: Final = 30.0
ENROL_AGAIN_S: Final = 2.0
CONNECT_PATIENCE_S: Final = 5.0
UNDER_WAY_MAX: Final = 32
"""Readings without receipt beyond which a connected device waits with the next one, whatever its pace."""
CANCEL_AGAIN_S: Final = 0.5
PUBLISH_TIMEOUT_S: Final = 2.0  # then the agent says it again anyway


class DeviceRefused(Exception):
    """The node refuses this device for good; the message says why."""


class SystemEntropy:
    """Secret bytes of the operating system."""

    def take(self, size_bytes: int) -> bytes:
        """Return fresh bytes."""
        return os.urandom(size_bytes)


@dataclass(slots=True)
class Pace:
    """What to send and how fast: `interval_s` between readings, at most `count`, 0 for all of them."""

    readings: Iterable[bytes]
    interval_s: float
    count: int = 0


class DeviceProcess:
    """One device; `run` returns when its readings are sent and answered, or when it is cancelled."""

    def __init__(self, configuration: Configuration, *, one_time_pad: bool = False, kem: Kem | None = None) -> None:
        """Raises DeviceError."""
        self.configuration = configuration
        self.agent: Agent | None = None
        self.connections = 0
        self._store = Store(configuration.directory)
        self.profile = configuration.read_profile()
        self.battery = Battery.fresh(self.profile)
        self._one_time_pad = one_time_pad
        self._kem = kem
        self._prefix = f"qnode/{configuration.node_id}/device/{configuration.device_id}"
        self._dialler = Dialler(
            *(configuration.broker_host, configuration.broker_port),
            f"device-{configuration.device_id}",
            tls_context(configuration),
            aiomqtt.Will(f"{self._prefix}/up/status", b"lost", qos=1),
        )
        self._client: aiomqtt.Client | None = None
        self._enrolled: asyncio.Future[Enrolled] | None = None
        self._enrolling: Enrol | None = None
        self._news = asyncio.Event()
        self.connected = asyncio.Event()
        self.on_sent: Callable[[str, bytes], object] | None = None  # who else hears what the device says

    # ---- running

    async def run(self, pace: Pace | None = None, *, key_only: bool = False) -> None:
        """Enrol if that is due, then make keys and send readings. Raises DeviceRefused, DeviceError."""
        listening = asyncio.create_task(self._listen())
        ticking: asyncio.Task[None] | None = None
        try:
            await self._start_agent(listening)
            ticking = asyncio.create_task(self._tick())
            await self._until(lambda agent: agent.has_key or agent.figures.too_weak is not None, listening, ticking)
            if key_only or pace is None:
                return
            await self._send_all(pace, listening, ticking)
        finally:
            for task in (listening, ticking):
                if task is not None:
                    await end_task(task)

    def use_profile(self, profile: Profile) -> None:
        """Change the device's habits; its battery stays as full as it is."""
        self.profile = self.battery.profile = profile

    async def renew_key(self) -> bool:
        """Make a new key now, when the readings under the old one are through; say whether there is one."""
        agent = self.agent
        assert agent is not None, "a device renews its key while it runs"
        while agent.in_session or agent.unanswered:
            await self._next_news()
        made = agent.figures.keys
        await self._send(agent.begin_session(time.time_ns()))
        while self._is_in_session():
            await self._next_news()
        return agent.figures.keys > made

    def _is_in_session(self) -> bool:
        return self.agent is not None and self.agent.in_session

    async def _next_news(self) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), TICK_S)

    async def _start_agent(self, listening: "asyncio.Task[None]") -> None:
        if self.agent is not None:
            return  # run again: what waits for its receipt is still known
        state = self._store.load()
        if state is None:
            state = await self._enrol(listening)
            self._store.save(state)
        self.agent = Agent(
            state,
            self.configuration.policy,
            self.battery,
            SystemEntropy(),
            random.Random(os.urandom(16)),
            self._store.save,
            self._one_time_pad,
            self._kem,
        )

    async def _until(self, condition: Any, *tasks: "asyncio.Task[None]") -> None:
        """Wait for news until the condition holds; what fails meanwhile is raised."""
        while not condition(self.agent):
            self._news.clear()
            waiting = asyncio.create_task(self._news.wait())
            await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            for task in tasks:
                if task.done():
                    task.result()

    async def _send_all(self, pace: Pace, *tasks: "asyncio.Task[None]") -> None:
        agent = self.agent
        assert agent is not None
        with contextlib.suppress(TimeoutError):  # without a broker readings wait in the agent
            await asyncio.wait_for(self.connected.wait(), CONNECT_PATIENCE_S)
        due_s = time.monotonic()
        for number, reading in enumerate(pace.readings, 1):
            while self.connected.is_set() and agent.unanswered >= UNDER_WAY_MAX:
                await self._until_room(agent, *tasks)
            while not (out := agent.publish(reading, time.time_ns())):
                await self._until_room(agent, *tasks)
            await self._send(out)
            if number == pace.count:
                break
            if agent.wants_key(time.time_ns()):
                await self._send(agent.begin_session(time.time_ns()))
            due_s += pace.interval_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            for task in tasks:
                if task.done():
                    task.result()
        await self._until(lambda agent: agent.unanswered == 0, *tasks)

    async def _until_room(self, agent: Agent, *tasks: "asyncio.Task[None]") -> None:
        """Wait for receipts, or for a new key."""
        self._news.clear()
        waiting = asyncio.create_task(self._news.wait())
        await asyncio.wait((waiting, *tasks), timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in tasks:
            if task.done():
                task.result()

    async def _tick(self) -> None:
        assert self.agent is not None
        last_s = time.monotonic()
        while True:
            await self._send(self.agent.tick(time.time_ns()))
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self.battery.pass_time(now_s - last_s)
            last_s = now_s
            if self.agent.figures.too_weak is not None:
                self._news.set()

    # ---- the broker

    async def _listen(self) -> None:
        delay_s = RECONNECT_S[0]
        while True:
            try:
                async with self._dialler.connected() as client:
                    delay_s = RECONNECT_S[0]
                    await self._hear(client)
            except (aiomqtt.MqttError, OSError):
                pass  # the broker is away; nothing is lost, all of it is said again
            finally:
                self._client = None
                self.connected.clear()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RECONNECT_S[1])

    async def _hear(self, client: aiomqtt.Client) -> None:
        await client.subscribe(f"{self._prefix}/down/+", qos=1)
        self._client = client
        self.connections += 1
        self.connected.set()
        if self.agent is not None:
            await self._send(self.agent.reconnected(time.time_ns()))
        async for message in client.messages:
            if isinstance(message.payload, bytes):
                await self._take(str(message.topic).rpartition("/")[2], message.payload)

    async def _take(self, channel: str, payload: bytes) -> None:
        if channel == "enrolled":
            self._take_enrolled(payload)
        elif self.agent is not None:
            await self._send(self.agent.received(channel, payload, time.time_ns()))
            if channel == "refused" and b"device: revoked" in payload:
                raise DeviceRefused("the node says that this device is revoked")
            self._news.set()

    async def _send(self, frames: Outgoing) -> None:
        """Publish; what the broker does not take is said again later by the agent."""
        client = self._client
        if client is None:
            return
        for channel, payload in frames:
            if self.on_sent is not None:
                self.on_sent(channel, payload)
            with contextlib.suppress(aiomqtt.MqttError):
                await client.publish(f"{self._prefix}/up/{channel}", payload, qos=1, timeout=PUBLISH_TIMEOUT_S)

    # ---- enrolment

    async def _enrol(self, listening: "asyncio.Task[None]") -> DeviceState:
        """Use the code once: sign the chain's record and agree on the initial secret (rows S4-A1.3–6)."""
        configuration = self.configuration
        identity = configuration.identity()
        public = identity.public_key().public_bytes_raw()
        floor = (configuration.policy.key_bits_min, configuration.policy.security_millibits_min)
        signed = enrolment.statement(
            configuration.chain_id,
            configuration.genesis,
            configuration.device_id,
            configuration.node_id,
            public,
            floor,
        )
        # The nonce is a function of the identity, so that a device that was stopped meanwhile asks the same again.
        nonce = derive(identity.private_bytes_raw(), "enrolment nonce", configuration.code)[:16]
        name = enrolment.code_name(configuration.code)
        request = Enrol(name, configuration.device_id, public, identity.sign(signed), nonce, b"")
        self._enrolling = enrolment.with_mac(request, configuration.code)
        self._enrolled = asyncio.get_running_loop().create_future()
        answer = await self._ask_until_answered(listening, encode_record(self._enrolling))
        secret = enrolment.initial_secret(self._enrolling, answer.nonce, configuration.code)
        return DeviceState(configuration.device_id, secret)

    async def _ask_until_answered(self, listening: "asyncio.Task[None]", frame: bytes) -> Enrolled:
        assert self._enrolled is not None
        end_s = time.monotonic() + ENROL_TIMEOUT_S
        while time.monotonic() < end_s:
            waiting = asyncio.create_task(self.connected.wait())
            await asyncio.wait((waiting, listening), timeout=ENROL_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await self._send([("enrol", frame)])
            done, _ = await asyncio.wait((self._enrolled,), timeout=ENROL_AGAIN_S)
            if done:
                return self._enrolled.result()
        broker = f"{self.configuration.broker_host}:{self.configuration.broker_port}"
        state = "reached, but the node does not answer" if self.connections else "not reached"
        raise DeviceError(f"no answer to the enrolment within {ENROL_TIMEOUT_S:g} s: the broker {broker} is {state}")

    def _take_enrolled(self, payload: bytes) -> None:
        if self._enrolled is None or self._enrolled.done() or self._enrolling is None:
            return
        try:
            answer = enrolment.decode(payload)
        except MalformedMessage:
            return
        if isinstance(answer, EnrolmentRefused):
            self._enrolled.set_exception(DeviceRefused(f"the node refuses the enrolment: {answer.reason}"))
        elif isinstance(answer, Enrolled) and enrolment.is_answer(answer, self._enrolling, self.configuration.code):
            self._enrolled.set_result(answer)


async def end_task(task: "asyncio.Task[None]") -> None:
    """Cancel a task until it has ended, whatever it ends with.

    Once is not enough: before Python 3.12, `asyncio.wait_for` (inside every publish) drops a cancellation that comes in
    the same turn of the loop as its result.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()  # seen: whoever cares waited for it before


def tls_context(configuration: Configuration) -> ssl.SSLContext | None:
    """Return the context towards the broker, whose name is checked. Raises DeviceError."""
    if configuration.tls is None:
        return None
    authority, certificate, key = configuration.tls
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise DeviceError(f"{certificate} or {authority} cannot be used for TLS: {error}") from None
    return context


def cycled(readings: list[bytes]) -> Iterator[bytes]:
    """Yield readings again and again: a recording that never ends."""
    while True:
        yield from readings
