"""Looks at every node in turn, and never costs more than a stated share of one core.

The sampler lives in a thread of its own, so that the thread's processor time *is* its cost: it measures what a look
costs and spaces the looks so that the share stays below the bound. With few nodes each is seen every second; with
hundreds twice a minute or less, so the runner has it look at all of them at both ends of a load. One look is one
`GET /admin/v1/status` over a connection that is kept open; a node that does not answer costs its turn and is counted.
"""

import asyncio
import contextlib
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp

from loadtest.measure.status import link_samples, node_sample, records_executed
from loadtest.results.records import Commit, LinkSample, NodeSample, Overhead
from loadtest.results.writer import ResultWriter
from qnode.daemon import new_event_loop

T = TypeVar("T")
CPU_SHARE_MAX: Final = 0.02
INTERVAL_S_MIN: Final = 1.0
"""One node is not seen more often: its own answer costs it about a millisecond."""
ANSWER_TIMEOUT_S: Final = 5.0
IN_FLIGHT_MAX: Final = 64  # looks that wait for an answer; paused nodes must not hold up the others
WAITING_MAX: Final = 100_000
"""Samples that nobody has taken yet: some 100 MiB, and over an hour of looks. The oldest go first."""
COST_FIRST_S: Final = 3e-3  # what a look is taken to cost until it has been measured


@dataclass(frozen=True, slots=True)
class Target:
    """One node to look at: its ID, its group, and `https://host:port` of its API."""

    node_id: str
    group: str
    url: str


@dataclass(slots=True)
class Seen:
    """What is known of the fleet at a glance, for the live view."""

    up: int = 0
    down: int = 0
    height: int = 0
    records: int = 0


class Sampler:
    """Samples of one case, between `start` and `stop`; `pour` brings them into the result.

    `context` is an operator's client context; `now_s` gives the run's time (`ResultWriter.now_s`).
    """

    def __init__(
        self,
        targets: Sequence[Target],
        context: ssl.SSLContext,
        case: int,
        now_s: Callable[[], float],
        cpu_share_max: float = CPU_SHARE_MAX,
    ) -> None:
        self._targets = list(targets)
        self._context = context
        self._case = case
        self._now_s = now_s
        self._share_max = cpu_share_max
        self._nodes: deque[NodeSample] = deque(maxlen=WAITING_MAX)
        self._links: deque[LinkSample] = deque(maxlen=WAITING_MAX)
        self._commits: deque[Commit] = deque(maxlen=WAITING_MAX)
        self._latest: dict[str, dict[str, Any]] = {}
        self._silent: set[str] = set()
        self._height = self._records = 0
        self._looks = 0
        self._cpu_s = self._elapsed_s = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()
        self._begun.wait()

    def stop(self) -> None:
        """Stop looking and wait until it has. Raises what ended the sampler, if anything did."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    async def look_at_all(self) -> None:
        """Look at every node once, now, besides its turns; return when all have answered or not.

        For the two ends of what is measured: hundreds of nodes have no turn in a short phase, and counters gain
        between two looks. Nothing happens when the sampler has ended.
        """
        assert self._loop is not None, "looks begin with `start`"
        if self._thread.is_alive():  # `stop` tells why not
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._look_at_each(), self._loop))

    def pour(self, writer: ResultWriter) -> None:
        """Bring what was seen since the last call into the result. For the writer's thread."""
        writer.nodes(_drained(self._nodes))
        writer.links(_drained(self._links))
        writer.commits(_drained(self._commits))

    def latest(self, node_id: str) -> dict[str, Any] | None:
        """Return the last status document seen of a node; of the chain's links only those that had alarms."""
        return self._latest.get(node_id)

    def seen(self) -> Seen:
        """Return the fleet at a glance."""
        return Seen(len(self._latest.keys() - self._silent), len(self._silent), self._height, self._records)

    @property
    def interval_s(self) -> float:
        """How often one node is seen, by what a look has cost so far."""
        return max(INTERVAL_S_MIN, len(self._targets) * self._cost_s / self._share_max)

    @property
    def _cost_s(self) -> float:
        """What a look costs the thread; what its connections cost at first is spread over all looks."""
        return self._cpu_s / self._looks if self._looks >= 20 else COST_FIRST_S

    def overhead(self) -> Overhead:
        """Return what looking has cost: processor time of the thread, by the clock's time."""
        elapsed_s = max(self._elapsed_s, 1e-9)
        interval_s = elapsed_s * len(self._targets) / self._looks if self._looks else 0.0
        return Overhead(
            cpu_share=round(self._cpu_s / elapsed_s, 6),
            samples=self._looks,
            seconds=round(elapsed_s, 3),
            interval_s_mean=round(interval_s, 3),
        )

    # ---- in the sampler's thread

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner, contextlib.suppress(asyncio.CancelledError):
                runner.run(self._look_around())
        except BaseException as error:
            self._failure = error
        finally:
            self._begun.set()

    async def _look_around(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._loop.set_exception_handler(_about_connections)
        self._begun.set()
        begun_s, cpu_begun_s = time.monotonic(), time.thread_time()
        limits = aiohttp.TCPConnector(ssl=self._context, limit=0, keepalive_timeout=300.0)
        patience = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=limits, timeout=patience) as session, asyncio.TaskGroup() as looks:
            self._session, due_s, turn = session, begun_s, 0
            while self._targets:
                await self._slots.acquire()
                look = looks.create_task(self._look(session, self._targets[turn]))
                look.add_done_callback(lambda _: self._slots.release())
                turn = (turn + 1) % len(self._targets)
                due_s = max(due_s + self.interval_s / len(self._targets), time.monotonic() - INTERVAL_S_MIN)
                await asyncio.sleep(due_s - time.monotonic())
                self._cpu_s, self._elapsed_s = time.thread_time() - cpu_begun_s, time.monotonic() - begun_s

    async def _look_at_each(self) -> None:
        async def look(target: Target) -> None:
            assert self._session is not None, "the session is opened before anything else has its turn"
            async with self._slots:
                await self._look(self._session, target)

        await asyncio.gather(*map(look, self._targets))

    async def _look(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._looks += 1
        try:
            async with session.get(f"{target.url}/admin/v1/status") as response:
                if response.status != 200:
                    raise aiohttp.ClientError(f"HTTP {response.status}")
                status = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            self._silent.add(target.node_id)
            return
        self._silent.discard(target.node_id)
        self._take(status, target)

    def _take(self, status: dict[str, Any], target: Target) -> None:
        time_s = self._now_s()
        sample = node_sample(status, time_s, self._case, target.group)
        # Every node tells all links of the chain; those without an alarm would fill memory at hundreds of nodes.
        status["chain_links"] = [link for link in status.get("chain_links", ()) if link.get("alarms_raised")]
        self._latest[target.node_id] = status
        self._nodes.append(sample)
        self._links.extend(link_samples(status, time_s, self._case))
        if sample.height is not None and sample.height > self._height:
            records = records_executed(status)
            gained = max(0, records - self._records)
            self._commits.append(Commit(time_s=time_s, case=self._case, height=sample.height, transactions=gained))
            self._height, self._records = sample.height, max(records, self._records)


def _about_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leave out what the event loop says of connections given up for their node's silence, which is counted already.

    uvloop tells of each handshake that is cut off, with a traceback: hundreds where hundreds of nodes answer late.
    """
    if not (isinstance(context.get("exception"), RuntimeError | OSError) and "transport" in context):
        loop.default_exception_handler(context)


def _drained(queue: deque[T]) -> list[T]:
    """Take everything out of a queue that another thread fills."""
    taken: list[T] = []
    while queue:
        taken.append(queue.popleft())
    return taken
