"""How fast applications get keys over ETSI GS QKD 014 with mutual TLS: two daemons, one link, real sockets and disks.

Measures; decides nothing. `qnode bench keys --rate 100 --seconds 10 --json` sends requests at fixed times (open loop:
each latency counts from when its request was due, so a slow answer does not hide the wait of the next);
`qnode bench keys --clients 8 --seconds 10 --json` keeps that many pairs of applications busy (closed loop).
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.clients.keep_alive import KeepAliveClient
from loadtest.local import awaited, local_cluster, percentiles
from qnode import cluster as clusters
from qnode.cluster import Cluster, Member
from qnode.daemon import new_event_loop
from qnode.io.certificates import client_context

MASTER: Final = "sae-1-a"
SLAVE: Final = "sae-2-a"
BYTES_PER_PAIR: Final = 64
"""Key that one delivery uses: a 256-bit key, and 32 bytes of tag key."""
CLOSED_LOOP_PAIRS_PER_S_MAX: Final = 3000
"""What the pool is filled for in a closed loop; a faster machine runs out of key, and the bench says so."""
POOL_BITS_MAX: Final = 1 << 27


@dataclass
class _Figures:
    enc_ms: list[float] = field(default_factory=list)
    pair_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class _Application:
    """One SAE: its connections that wait for a request. One that finds none opens another."""

    host: str
    port: int
    context: ssl.SSLContext
    idle: list[KeepAliveClient] = field(default_factory=list)

    async def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        if self.idle:
            client = self.idle.pop()
        else:
            client = await KeepAliveClient.connect(self.host, self.port, self.context)
        try:
            return await client.post(f"/api/v1/keys/{path}", document)
        finally:
            self.idle.append(client)  # a broken one says so to its next user

    def close(self) -> None:
        for client in self.idle:
            client.close()


async def _pair(master: _Application, slave: _Application, figures: _Figures, due_s: float) -> None:
    """One key, asked for by the master and fetched by the slave; equal, or a failure."""
    try:
        key = (await master.post(f"{SLAVE}/enc_keys", {"number": 1, "size": 256}))["keys"][0]
        got_s = time.perf_counter()
        same = (await slave.post(f"{MASTER}/dec_keys", {"key_IDs": [{"key_ID": key["key_ID"]}]}))["keys"][0]
    except OSError as error:  # of which refusals and time-outs are
        figures.failures.append(str(error)[:200])
        return
    if same["key"] != key["key"]:
        figures.failures.append("the two applications got different keys")
        return
    figures.enc_ms.append(1e3 * (got_s - due_s))
    figures.pair_ms.append(1e3 * (time.perf_counter() - due_s))


Drive = Callable[[list[tuple[_Application, _Application]], _Figures], Awaitable[None]]


def _open_loop(rate: float, seconds: float) -> Drive:
    async def drive(pairs: list[tuple[_Application, _Application]], figures: _Figures) -> None:
        begin = time.perf_counter()
        running: set[asyncio.Task[None]] = set()
        for number in range(int(rate * seconds)):
            due_s = begin + number / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            master, slave = pairs[number % len(pairs)]
            task = asyncio.create_task(_pair(master, slave, figures, due_s))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    return drive


def _closed_loop(seconds: float) -> Drive:
    async def drive(pairs: list[tuple[_Application, _Application]], figures: _Figures) -> None:
        end = time.perf_counter() + seconds

        async def busy(master: _Application, slave: _Application) -> None:
            while time.perf_counter() < end and not figures.failures:
                await _pair(master, slave, figures, time.perf_counter())

        await asyncio.gather(*(busy(master, slave) for master, slave in pairs))

    return drive


async def _measure(cluster: Cluster, clients: int, drive: Drive) -> tuple[_Figures, float]:
    def application(member: Member, sae: str) -> _Application:
        api, stem = member.settings.api, member.directory / "clients"
        context: ssl.SSLContext = client_context(stem / f"{sae}.crt", stem / f"{sae}.key", api.ca)
        return _Application(api.listen_host, api.listen_port, context)

    first, second = cluster.members
    pairs = [(application(first, MASTER), application(second, SLAVE)) for _ in range(clients)]
    figures, warm_up = _Figures(), _Figures()
    try:
        for master, slave in pairs:  # handshakes are not what is measured
            await _pair(master, slave, warm_up, time.perf_counter())
        if warm_up.failures:
            figures.failures += warm_up.failures
            return figures, 1.0
        begin = time.perf_counter()
        await drive(pairs, figures)
        return figures, time.perf_counter() - begin
    finally:
        for pair in pairs:
            for each in pair:
                each.close()


def _spent(cluster: Cluster) -> tuple[float, int]:
    """Return the processor time of both daemons in seconds, and the height of the chain."""
    statuses = clusters.statuses(cluster)
    cpu_s = sum(status["daemon"]["cpu_ms"] for status in statuses) / 1e3
    return cpu_s, statuses[0]["ledger"]["height"]


def run(rate: float | None, clients: int, seconds: float) -> dict[str, Any]:
    """Run the bench: at `rate` requests per second, or with `clients` pairs as fast as they go; return the figures."""
    pairs_expected = seconds * (rate if rate else CLOSED_LOOP_PAIRS_PER_S_MAX) + clients
    # The master's half of a block is half of the pool.
    target_bits = min(POOL_BITS_MAX, int(2.2 * 8 * BYTES_PER_PAIR * pairs_expected) + (1 << 20))
    drive = _open_loop(rate, seconds) if rate else _closed_loop(seconds)
    pool = {"target_bits": target_bits}
    with local_cluster(2, "line", tables={"pool": pool, 'link."link-1-2"': {"block_pulses": 2_000_000}}) as cluster:

        def filled() -> bool:
            status = clusters.statuses(cluster)[0]
            return 8 * status["links"][0]["available_bytes"] * 2 >= target_bits if "links" in status else False

        awaited("the link's pool filled", filled)
        before, own_before_s = _spent(cluster), time.process_time()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            figures, elapsed_s = runner.run(_measure(cluster, clients, drive))
        own_cpu_s = time.process_time() - own_before_s
        cpu_s, heights = (after - first for after, first in zip(_spent(cluster), before, strict=True))
    return {
        "rate": rate,
        "clients": clients,
        "seconds": round(elapsed_s, 3),
        "pairs": len(figures.pair_ms),
        "pairs_per_s": round(len(figures.pair_ms) / elapsed_s, 1),
        **percentiles("p{p}_ms", figures.enc_ms, 3),
        **percentiles("pair_p{p}_ms", figures.pair_ms, 3),
        "cpu_ms_per_pair": round(1e3 * cpu_s / max(1, len(figures.pair_ms)), 3),
        "client_cpu_ms_per_pair": round(1e3 * own_cpu_s / max(1, len(figures.pair_ms)), 3),
        "heights_per_s": round(heights / elapsed_s, 1),
        "failures": len(figures.failures),
        "first_failure": figures.failures[0] if figures.failures else None,
    }
