"""Applications (SAEs) that ask their nodes for keys over ETSI GS QKD 014 with mutual TLS, and talk under them.

Measures what callers see, and remembers what must not happen twice. A latency counts from when the request was due.
"""

import asyncio
import json
import ssl
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Any, Final

import aiohttp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from loadtest.clients.connections import Connections
from loadtest.measure.histograms import LatencyBook, LatencyWindows
from loadtest.scenarios.model import Client
from loadtest.ward import Ward
from qnode.io.certificates import client_context

ONE_TIME_PAD_BITS_MAX: Final = 8_192  # the largest key of the default [pool]
FAILURES_KEPT: Final = 100
ANSWER_TIMEOUT_S: Final = 40.0  # a little more than the node's own limit
GCM_NONCE: Final = bytes(12)  # every message has a key of its own


@dataclass
class Traffic:
    """What the clients of one case have seen so far."""

    book: LatencyBook
    windows: LatencyWindows
    sent: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list)  # the first of them
    failed: int = 0
    key_ids: dict[str, None] = field(default_factory=dict)
    keys_twice: int = 0  # an ID that was given out before, or one key that its two ends do not share
    kinds: dict[str, int] = field(default_factory=dict)

    def fail(self, kind: str, phase: str, group: str, reason: str) -> None:
        """Count a request without a good answer."""
        self.failed += 1
        self.book.of(kind, phase, group).record_failure()
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(f"{kind}: {reason}"[:300])

    def done(self, kind: str, phase: str, group: str, due_ns: int) -> None:
        """Count an answered request."""
        self.answered += 1
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        now_ns = time.monotonic_ns()
        self.book.of(kind, phase, group).record_ns(due_ns, now_ns)
        self.windows.record_ns(kind, phase, due_ns, now_ns)

    def saw_key(self, key_id: str) -> None:
        """Remember a delivered key's ID."""
        if key_id in self.key_ids:
            self.keys_twice += 1
        self.key_ids[key_id] = None


class Applications:
    """All applications of a ward; requests of one application share keep-alive connections."""

    def __init__(self, ward: Ward, traffic: Traffic, phase: Callable[[], str]) -> None:
        self._ward = ward
        self._traffic = traffic
        self._phase = phase
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._connections = Connections(ANSWER_TIMEOUT_S, connected=self._connected)
        links = ward.laid.topology.links
        self._neighbours = [(link.transmitter, link.receiver) for link in links]

    async def prepare(self) -> None:
        """Read all certificates now: milliseconds each, which are no part of a request."""
        for node_id in self._ward.node_ids:
            await asyncio.to_thread(self._context, _sae(node_id))

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def key(self, client: Client, due_ns: int) -> None:
        """One key: asked for by the master, fetched by the slave, the same at both."""
        master, slave = self._pair(client)
        kind, phase, group = client.name or "key", self._phase(), self._ward.group(master)
        self._traffic.sent += 1
        try:
            key_id, _ = await self._shared(
                master, slave, client.size_bits, lambda: self._done(kind, phase, group, due_ns)
            )
        except _Refused as refused:
            self._traffic.fail(kind, phase, group, str(refused))
            return
        self._traffic.saw_key(key_id)

    async def message(self, client: Client, due_ns: int) -> None:
        """One message: a key for it, sealed, opened at the other end with the key fetched there."""
        master, slave = self._pair(client)
        kind, phase, group = client.name or "message", self._phase(), self._ward.group(master)
        self._traffic.sent += 1
        padded = 8 * client.size_bytes <= ONE_TIME_PAD_BITS_MAX and client.size_bytes >= 8
        size_bits = 8 * client.size_bytes if padded else 256
        text = token_bytes(client.size_bytes)
        sealed = b""

        def seal(key: bytes) -> None:
            nonlocal sealed
            sealed = _pad(text, key) if padded else AESGCM(key).encrypt(GCM_NONCE, text, None)

        try:
            key_id, key = await self._shared(master, slave, size_bits, None, seal)
        except _Refused as refused:
            self._traffic.fail(kind, phase, group, str(refused))
            return
        opened = _pad(sealed, key) if padded else AESGCM(key).decrypt(GCM_NONCE, sealed, None)
        assert opened == text, "equal keys open what they sealed"
        self._traffic.saw_key(key_id)
        self._done(kind, phase, group, due_ns)

    def _connected(self, begun_ns: int, ended_ns: int) -> None:
        """Count what a request spent on a new connection: the latency of the request holds it as well."""
        self._traffic.book.of("connect", self._phase()).record_ns(begun_ns, ended_ns)

    def _done(self, kind: str, phase: str, group: str, due_ns: int) -> None:
        self._traffic.done(kind, phase, group, due_ns)

    def _pair(self, client: Client) -> tuple[str, str]:
        rng = self._ward.random
        if client.between == "neighbours":
            pair = rng.choice(self._neighbours)
            return pair if rng.random() < 0.5 else (pair[1], pair[0])
        master, slave = rng.sample(self._ward.node_ids, 2)
        return master, slave

    async def _shared(
        self,
        master: str,
        slave: str,
        size_bits: int,
        got: Callable[[], None] | None,
        use: Callable[[bytes], None] = lambda key: None,
    ) -> tuple[str, bytes]:
        """Have both ends fetch one key; `got` is called when the master has it. Raises _Refused."""
        master_sae, slave_sae = _sae(master), _sae(slave)
        first = await self._post(master, master_sae, f"{slave_sae}/enc_keys", {"number": 1, "size": size_bits})
        if got is not None:
            got()
        use(b64decode(first["key"]))
        wanted = {"key_IDs": [{"key_ID": first["key_ID"]}]}
        second = await self._post(slave, slave_sae, f"{master_sae}/dec_keys", wanted)
        if second["key"] != first["key"]:
            self._traffic.keys_twice += 1
            raise _Refused(f"{master_sae} and {slave_sae} got different keys under one ID")
        return str(first["key_ID"]), b64decode(second["key"])

    async def _post(self, node_id: str, sae: str, path: str, document: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._ward.operator.url(node_id)}/api/v1/keys/{path}"
        try:
            async with self._connections.post(url, document, self._context(sae)) as response:
                answer = json.loads(await response.read())
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _Refused(f"{node_id}: {str(error) or type(error).__name__}") from None
        if response.status != 200:
            raise _Refused(f"{node_id}: {response.status} {answer.get('message', '')}")
        key: dict[str, Any] = answer["keys"][0]
        return key

    def _context(self, sae: str) -> ssl.SSLContext:
        if sae not in self._contexts:
            root = self._ward.cluster.directory
            stem = root / "clients"
            self._contexts[sae] = client_context(stem / f"{sae}.crt", stem / f"{sae}.key", root / "ca" / "ca.crt")
        return self._contexts[sae]


class _Refused(Exception):
    """A request without a good answer; the message says where and why."""


def _sae(node_id: str) -> str:
    return f"sae-{node_id.removeprefix('node-')}-a"


def _pad(text: bytes, key: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(text, key, strict=True))
