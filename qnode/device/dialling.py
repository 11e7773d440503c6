"""How a broker is dialled: MQTT 5 where it is spoken, 3.1.1 otherwise (row S4-1.1). Shell; nodes and devices alike.

Every dial begins with MQTT 5. A broker that answers "unsupported protocol version" is dialled again at once
in 3.1.1. Of MQTT 5 only the session's expiry is used; under 3.1.1 the broker's own setting takes its place. Everything
else that might be asked of MQTT 5 (reasons of refusals, duplicates, order) is in our own messages, because no broker is
trusted with it.
"""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SESSION_EXPIRY_S: Final = 86_400
"""What was said to a client that is away is kept for a day."""
KEEP_ALIVE_S: Final = 30
RECONNECT_S: Final = (0.1, 5.0)
"""The first pause between dials, and the longest; each is twice the one before."""
CONNECT_TIMEOUT_S: Final = 10.0
IN_FLIGHT_MAX: Final = 1000
"""Messages that the broker has not confirmed; beyond it they wait in the client."""
_UNSUPPORTED_VERSION: Final = 132
"""CONNACK's reason code in MQTT 5; the client library turns 3.1.1's code 1 into it."""


class Dialler:
    """Makes the connections of one client to one broker: `async with dialler.connected() as client`."""

    def __init__(
        self, host: str, port: int, identifier: str, tls: ssl.SSLContext | None, will: aiomqtt.Will | None = None
    ) -> None:
        self._address = host, port
        self._identifier = identifier
        self._tls = tls
        self._will = will
        self.version = aiomqtt.ProtocolVersion.V5

    def client(self) -> aiomqtt.Client:
        """Return a client that has not connected yet; its session outlives its connection."""
        host, port = self._address
        dialect: dict[str, Any] = {"clean_session": False}
        if self.version is aiomqtt.ProtocolVersion.V5:
            dialect = {"clean_start": False, "properties": session_properties()}
        return aiomqtt.Client(
            host,
            port,
            identifier=self._identifier,
            protocol=self.version,
            tls_context=self._tls,
            keepalive=KEEP_ALIVE_S,
            socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),  # a session is many small messages
            timeout=CONNECT_TIMEOUT_S,
            max_inflight_messages=IN_FLIGHT_MAX,
            will=self._will,
            **dialect,
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[aiomqtt.Client]:
        """Connect, in the older version if the broker asks for it. Raises MqttError and OSError."""
        async with AsyncExitStack() as stack:
            self.version = aiomqtt.ProtocolVersion.V5
            try:
                client = await stack.enter_async_context(self.client())
            except aiomqtt.MqttError as error:
                if not is_unsupported_version(error):
                    raise
                self.version = aiomqtt.ProtocolVersion.V311
                client = await stack.enter_async_context(self.client())
            yield client


def is_unsupported_version(error: BaseException) -> bool:
    """Say whether a broker refused a connection because it does not speak this version of MQTT."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return getattr(code, "value", code) == _UNSUPPORTED_VERSION


def session_properties() -> Properties:
    """Return MQTT 5 CONNECT properties of a session that outlives its connection."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    return properties
