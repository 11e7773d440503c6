"""A broker inside Python, for machines without Mosquitto and for the demo: amqtt behind our own door (row S4-1.1).

The door does what amqtt leaves open: TLS with a client certificate is required, the certificate's common name is the
user, sessions belong to users (nobody takes over another's by its name), wills obey the ACL, packets and queues have
bounds, and a client that falls silent is dropped. amqtt speaks MQTT 3.1.1; whoever dials with MQTT 5 is told so.
Nothing is kept beyond the process: devices and nodes say again what was not answered. Needs the extra `qnode[broker]`.
"""

import asyncio
import json
import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amqtt.adapters import BufferReader, ReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, BrokerConfig, ListenerConfig, ListenerType
from amqtt.errors import AMQTTError, NoDataError
from amqtt.mqtt.connect import ConnectPacket
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from qnode.api.acl import Acl, AclError
from qnode.api.broker import BROKER_FILE, MESSAGE_BYTES_MAX, QUEUED_MESSAGES_MAX, BrokerError
from qnode.device.dialling import SESSION_EXPIRY_S

LISTENER: Final = "default"
CONNECTIONS_MAX: Final = 1000
CONNECT_BYTES_MAX: Final = 4096
"""Of a first packet: a client's name and its will."""
CONNECT_PATIENCE_S: Final = 10.0
BACKLOG_MAX: Final = 4096
"""Messages that the broker has taken and not passed on; at it no socket is read until half of them are gone."""
TOPICS_RETAINED_MAX: Final = 10_000
_LEVEL: Final = 4
"""Of MQTT 3.1.1 in CONNECT."""
_V5_UNSUPPORTED: Final = b"\x20\x03\x00\x84\x00"
_UNSUPPORTED: Final = b"\x20\x02\x00\x01"
_NAMELESS: Final = b"\x20\x02\x00\x02"
_FORBIDDEN: Final = b"\x20\x02\x00\x05"


class _Refused(Exception):
    """A client is not let in; `answer` is its CONNACK."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.answer = answer


class _Broker(Broker):
    """amqtt with bounds on what it keeps."""

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config)
        self._room = asyncio.Event()
        self._room.set()

    async def until_room(self) -> None:
        """Return when the broker may take another message."""
        if self._broadcast_queue.qsize() >= BACKLOG_MAX:
            self._room.clear()
        await self._room.wait()

    async def _run_broadcast(self, running_tasks: Any) -> None:
        await super()._run_broadcast(running_tasks)
        if self._broadcast_queue.qsize() <= BACKLOG_MAX // 2:
            self._room.set()

    async def _retain_broadcast_message(self, broadcast: Any, qos: int, target_session: Session) -> None:
        if target_session.retained_messages.qsize() < QUEUED_MESSAGES_MAX:  # what is beyond is said again
            await super()._retain_broadcast_message(broadcast, qos, target_session)

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        if topic_name in self.retained_messages or len(self.retained_messages) < TOPICS_RETAINED_MAX:
            await super().retain_message(source_session, topic_name, data, qos)


class Gatekeeper(BaseAuthPlugin, BaseTopicPlugin):
    """amqtt's plug-in that asks the ACL. Who comes so far was let in by the door, which set the user."""

    @dataclass
    class Config:
        """The ACL file, as amqtt's configuration carries it."""

        acl: str = ""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._acl = Acl.parse(context.config.acl)

    async def authenticate(self, *, session: Session) -> bool:
        """Admit whom the door has named."""
        return bool(session.username)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Answer for one topic, or for one filter of a subscription."""
        if session is None or not session.username or not topic:
            return False
        if action is Action.SUBSCRIBE:
            return self._acl.covers(session.username, "read", topic)
        return self._acl.allows(session.username, "write" if action is Action.PUBLISH else "read", topic)


class _Reader(ReaderAdapter):
    """What amqtt reads of one client: the first packet as the door made it, then the socket, within bounds."""

    def __init__(self, first: bytes, reader: asyncio.StreamReader, broker: _Broker, silence_s: float | None) -> None:
        self._first = BufferReader(first)
        self._left = len(first)
        self._reader = reader
        self._broker = broker
        self._silence_s = silence_s

    async def read(self, n: int = -1) -> bytes:
        """Return exactly `n` bytes. A ConnectionResetError ends the connection at amqtt."""
        if self._left:
            data: bytes = await self._first.read(n)
            self._left -= len(data)
            return data
        if not 0 <= n <= MESSAGE_BYTES_MAX:
            raise ConnectionResetError("a packet beyond the limit")
        await self._broker.until_room()
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._reader.readexactly(n)
        except TimeoutError:
            raise ConnectionResetError("silent for too long") from None

    def feed_eof(self) -> None:
        """Say that nothing more will come."""
        self._reader.feed_eof()


class EmbeddedBroker:
    """The broker of one directory that `qnode mqtt setup` wrote: `await start()`, `await stop()`."""

    def __init__(self, directory: Path) -> None:
        """Raises BrokerError when the directory is not what a broker needs."""
        try:
            table = json.loads((directory / BROKER_FILE).read_text("utf-8"))
            self.host, self.port = str(table["host"]), int(table["port"])
            text = (directory / "acl").read_text("utf-8")
            self._acl = Acl.parse(text)
            self._tls = _server_context(directory)
        except AclError as error:
            raise BrokerError(f"{directory / 'acl'}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, ssl.SSLError) as error:
            raise BrokerError(f"{directory}: not what `qnode mqtt setup` writes: {error}") from None
        listener = ListenerConfig(type=ListenerType.EXTERNAL, bind=f"{self.host}:{self.port}")
        self._config = BrokerConfig(
            listeners={LISTENER: listener},
            timeout_disconnect_delay=SESSION_EXPIRY_S,  # the door itself drops who is silent
            session_expiry_interval=SESSION_EXPIRY_S,
            plugins={f"{Gatekeeper.__module__}.{Gatekeeper.__qualname__}": {"acl": text}},
        )
        self._broker: _Broker | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. Raises BrokerError when the address is taken."""
        self._broker = _Broker(self._config)
        await self._broker.start()
        try:
            self._server = await asyncio.start_server(
                self._connected, self.host, self.port, ssl=self._tls, ssl_handshake_timeout=CONNECT_PATIENCE_S
            )
        except OSError as error:
            await self._broker.shutdown()
            raise BrokerError(f"the broker cannot listen on {self.host}:{self.port}: {error.strerror}") from None

    async def stop(self) -> None:
        """Let everybody go and close."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.close()
        if self._broker is not None:
            await self._broker.shutdown()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker = self._broker
        assert broker is not None, "nobody connects before the start"
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        self._connections.add(writer)
        try:
            async with asyncio.timeout(CONNECT_PATIENCE_S):
                packet = await self._admitted(reader, _user(writer))
            silence_s = 1.5 * packet.keep_alive or None  # MQTT-3.1.2-24; 0 is no limit
            inner = _Reader(bytes(packet.to_bytes()), reader, broker, silence_s)
            await broker.external_connected(inner, StreamWriterAdapter(writer), LISTENER)
        except _Refused as refused:
            logging.getLogger(__name__).warning("client refused: %s", refused)
            writer.write(refused.answer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # a stranger that speaks nothing, or is gone again
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _admitted(self, reader: asyncio.StreamReader, user: str) -> ConnectPacket:
        """Return the client's first packet, its name made the user's own. Raises _Refused."""
        raw = await _first_packet(reader)
        level = raw[1][6] if raw[1][:6] == b"\x00\x04MQTT" and len(raw[1]) > 6 else 0
        if level != _LEVEL:
            answer = _V5_UNSUPPORTED if level > _LEVEL else _UNSUPPORTED
            raise _Refused(f"{user}: not MQTT 3.1.1", answer)
        try:
            packet = await ConnectPacket.from_stream(BufferReader(raw[0] + raw[1]))
        except (AMQTTError, NoDataError, ValueError, UnicodeDecodeError) as error:
            raise _Refused(f"{user}: not a CONNECT: {error}") from None
        if packet.client_id_is_random and not packet.clean_session_flag:
            raise _Refused(f"{user}: a session that is kept needs a name", _NAMELESS)
        if packet.will_flag and not self._acl.allows(user, "write", packet.will_topic or ""):
            raise _Refused(f"{user}: may not leave a will on {packet.will_topic!r}", _FORBIDDEN)
        packet.client_id = f"{user}/{packet.client_id}"
        packet.username_flag, packet.username = True, user
        packet.password_flag = False
        return packet


async def _first_packet(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return fixed header and body. Raises _Refused for what is no CONNECT or too long for one."""
    head = await reader.readexactly(1)
    if head != b"\x10":
        raise _Refused("a first packet that is no CONNECT")
    length = shift = 0
    while True:
        byte = await reader.readexactly(1)
        head += byte
        length |= (byte[0] & 127) << shift
        shift += 7
        if length > CONNECT_BYTES_MAX or shift > 14:
            raise _Refused(f"a CONNECT of more than {CONNECT_BYTES_MAX} bytes")
        if byte[0] < 128:
            return head, await reader.readexactly(length)


def _user(writer: asyncio.StreamWriter) -> str:
    """Return the common name of the client's certificate, which TLS has checked. Raises _Refused."""
    subject = (writer.get_extra_info("peercert") or {}).get("subject", ())
    names = [value for part in subject for name, value in part if name == "commonName"]
    if len(names) != 1 or "/" in names[0]:
        raise _Refused("a certificate without one common name")
    return str(names[0])


def _server_context(directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(directory / "broker.crt", directory / "broker.key")
    return context


async def serve(directory: Path, ready: Callable[[str], object]) -> None:
    """Run a broker until SIGTERM or SIGINT; `ready` hears where it listens. Raises BrokerError."""
    broker = EmbeddedBroker(directory)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await broker.start()
    ready(f"{broker.host}:{broker.port}")
    await stopped.wait()
    await broker.stop()
