"""Runs the long computations of a node on threads and brings their results back to the event loop.

Distillation kernels and numpy release the interpreter lock, so threads use every core without copying pulses between
processes.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Finished = Callable[[Any, BaseException | None], None]


class Jobs:
    """A bounded pool of worker threads; `finished` callbacks run on the event loop, one per started job."""

    def __init__(self, threads: int | None = None) -> None:
        """Start lazily with `threads` workers; by default one per core, since jobs are computation and never wait."""
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="qnode-job")
        self._running: set[asyncio.Future[Any]] = set()

    @property
    def running_count(self) -> int:
        """How many jobs have been started and have not reported yet."""
        return len(self._running)

    def start(self, work: Callable[[], Any], finished: Finished) -> None:
        """Run `work()` on a thread, then `finished(result, None)` or `finished(None, error)` on the loop."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._running.add(future)
        future.add_done_callback(lambda done: self._report(done, finished))

    def _report(self, done: "asyncio.Future[Any]", finished: Finished) -> None:
        self._running.discard(done)
        if done.cancelled():
            return  # the daemon stops; nobody waits for the result
        error = done.exception()
        finished(None if error else done.result(), error)

    async def close(self) -> None:
        """Drop the jobs that have not begun, wait for those that have, report none of them."""
        for future in list(self._running):
            future.cancel()
        self._pool.shutdown(
            wait=False, cancel_futures=True
        )  # at once: none may begin before the wait for the others does
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)
