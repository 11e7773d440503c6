"""Virtual time: one queue of events, and the hash of everything that happened. Same seed, same events, same hash."""

import hashlib
import heapq
from collections.abc import Callable


class Timeline:
    """`at` and `after` schedule, `run_until` lets time pass."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.events = 0
        self.trace_lines: list[str] | None = None
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def at(self, time_ns: int, call: Callable[..., None], *arguments: object) -> None:
        """Call at a moment; equal moments in the order of scheduling."""
        self._sequence += 1
        heapq.heappush(self._queue, (time_ns, self._sequence, call, arguments))

    def after(self, delay_ns: int, call: Callable[..., None], *arguments: object) -> None:
        """Call after a delay."""
        self.at(self.now_ns + delay_ns, call, *arguments)

    def run_until(self, time_ns: int, done: Callable[[], bool] | None = None) -> bool:
        """Let events happen up to `time_ns`, or until `done` (asked every 64 events) is true; returns `done`."""
        while self._queue and self._queue[0][0] <= time_ns:
            self.now_ns, _, call, arguments = heapq.heappop(self._queue)
            self.events += 1
            call(*arguments)
            if done is not None and self.events % 64 == 0 and done():
                return True
        self.now_ns = max(self.now_ns, time_ns)
        return done is not None and done()

    def remember(self, node_id: str, name: str, detail: bytes) -> None:
        """Add something that happened to the trace hash."""
        self._hash.update(f"{self.now_ns} {node_id} {name} ".encode() + detail)

    def trace_hash(self) -> str:
        """Return the hash of everything that happened."""
        return self._hash.hexdigest()

    def line(self, text: str) -> None:
        """Add a line to the readable trace, if one is kept."""
        if self.trace_lines is not None:
            self.trace_lines.append(f"{self.now_ns / 1e6:12.3f} ms  {text}")

    def note(self, text: str) -> None:
        """Add a line about the world itself."""
        self.line(f"---- {text}")
