"""Attackers on the classical channel: somebody in the middle who repeats bytes, and strangers who knock at peer ports.

They hold what an outsider can hold: no node's key. An application's certificate, which any customer has, is the most.
"""

import asyncio
import contextlib
import datetime
import random
import ssl
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from loadtest.fleet.launcher import Place
from qnode.io.certificates import Authority, Identity
from qnode.io.certificates import client_context as application_context
from qnode.layout import pair_pem

CHUNK_SIZE_BYTES: Final = 65_536
KNOCKING_MAX: Final = 64  # connections of one intruder at once
KNOCK_TIMEOUT_S: Final = 5.0


class Middleman:
    """Forwards TCP connections, and while `share` is above 0 repeats that share of the chunks it forwards."""

    def __init__(self, seed: int) -> None:
        self.share = 0.0
        self.active = False  # stays true a little after the end: what was repeated is noticed later
        self.repeated = 0
        self._random = random.Random(seed)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, host: str, destination: Place) -> int:
        """Listen, and forward to a node's peer port; return the port to dial instead of it."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = await asyncio.open_connection(destination.host, destination.peer_port)
            except OSError:
                writer.close()
                return
            for pair in ((reader, there[1]), (there[0], writer)):
                task = asyncio.ensure_future(self._forward(*pair))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(serve, host, 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_SIZE_BYTES):
                writer.write(data)
                if self.share and self._random.random() < self.share:
                    self.repeated += 1
                    writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        """Stop listening and forwarding."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Intruder:
    """Knocks at one node's peer port, at a rate: with noise, with a stranger's certificate, with an application's."""

    def __init__(self, root: Path, place: Place, rate_per_s: float) -> None:
        """`root` is the cluster's directory, for what an application and any passer-by may know of it."""
        self.knocks = 0
        self._place = place
        self._rate_per_s = rate_per_s
        self._random = random.Random(place.peer_port)
        self._application = application_context(
            root / "clients" / "sae-1-a.crt", root / "clients" / "sae-1-a.key", root / "ca" / "ca.crt"
        )
        self._stranger = _stranger_context(root / "ca" / "ca.crt")
        for context in (self._application, self._stranger):
            context.check_hostname = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Knock until `end`."""
        self._task = asyncio.ensure_future(self._run())

    async def end(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        room = asyncio.Semaphore(KNOCKING_MAX)
        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                group.create_task(self._knock(self.knocks % 3)).add_done_callback(lambda _: room.release())
                self.knocks += 1
                await asyncio.sleep(self._random.expovariate(self._rate_per_s))

    async def _knock(self, manner: int) -> None:
        context: ssl.SSLContext | None = (None, self._stranger, self._application)[manner]
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(KNOCK_TIMEOUT_S):
                place = self._place
                reader, writer = await asyncio.open_connection(place.host, place.peer_port, ssl=context)
                try:
                    writer.write(self._random.randbytes(256))
                    await reader.read(1024)  # until the node hangs up
                finally:
                    writer.close()


def _stranger_context(ca: Path) -> ssl.SSLContext:
    """A certificate that looks right, from an authority of the stranger's own."""
    now = datetime.datetime.now(datetime.UTC)
    authority, key = Authority.create("stranger", now), ec.generate_private_key(ec.SECP256R1())
    certificate = authority.issue(Identity("node", "node-1"), key.public_key(), now)
    with tempfile.TemporaryDirectory(prefix="stranger-") as scratch:
        files = Path(scratch) / "own.crt", Path(scratch) / "own.key"
        for path, content in zip(files, pair_pem(certificate, key), strict=True):
            path.write_bytes(content)
        return application_context(*files, ca)
