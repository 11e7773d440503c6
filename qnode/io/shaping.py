"""Makes a connection with a peer slower or worse than the network under it, for load tests: off by default.

Decides when bytes that are about to be written leave: delay, jitter, bandwidth, loss, and a cut. It works on the stream
above TLS, at the sender, one direction at a time; shape both ends for both directions. A stream loses nothing, so
*loss* is what TCP makes of it: with probability `loss` per segment of 1,460 bytes, the segment and all that is behind
it wait for a retransmission. A *cut* holds everything: what was written leaves when the cut is healed, unless the
connection was given up for its silence before, as on a real network.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SEGMENT_SIZE_BYTES: Final = 1460
RETRANSMISSION_S_MIN: Final = 0.2  # Linux's least retransmission time-out
HELD_BYTES_MAX: Final = 4 << 20
"""Bytes on their way in one direction: 100 Mbit/s over 300 ms. Beyond it the connection writes no more, its queues fill
and drop, and the drops are counted."""
DELAY_MS_MAX: Final = 60_000.0
BANDWIDTH_MBIT_PER_S_MIN: Final = 0.001


class ShapeError(ValueError):
    """A shape that cannot be; the message names the key and its range."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How one direction of a connection behaves; all zero is a connection as it is. Bandwidth 0 means unlimited."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    bandwidth_mbit_per_s: float = 0.0
    cut: bool = False

    def __post_init__(self) -> None:
        for name, value, high in (
            ("delay_ms", self.delay_ms, DELAY_MS_MAX),
            ("jitter_ms", self.jitter_ms, DELAY_MS_MAX),
            ("loss", self.loss, 0.9),
        ):
            if not 0 <= value <= high:
                raise ShapeError(f"{name} is {value:g}; it must be from 0 to {high:g}")
        if self.bandwidth_mbit_per_s and not BANDWIDTH_MBIT_PER_S_MIN <= self.bandwidth_mbit_per_s <= 1e6:
            raise ShapeError(
                f"bandwidth_mbit_per_s is {self.bandwidth_mbit_per_s:g}; it must be 0 (unlimited) or from "
                f"{BANDWIDTH_MBIT_PER_S_MIN:g} to 1e+06"
            )


UNSHAPED: Final = Shape()


class Shaper:
    """Holds the writes of one connection back until they are due, in order."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, write: Callable[[bytes], None], drained: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._write = write
        self._drained = drained
        self._shape = UNSHAPED
        self._random = random.Random()
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._free_at = 0.0  # when the last byte before has gone over the line
        self._due_at = 0.0  # when the last byte before arrives: a stream keeps its order
        self._timer: asyncio.TimerHandle | None = None
        self._was_full = False

    @property
    def is_full(self) -> bool:
        """Whether no more should be written until `drained` is called."""
        return self._held_bytes >= HELD_BYTES_MAX

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing shaped."""
        return not self._held and self._shape == UNSHAPED

    def reshape(self, shape: Shape) -> None:
        """Behave differently from now on; what is held already keeps its time, except that a cut holds everything."""
        self._shape = shape
        self._arm()

    def write(self, data: bytes) -> None:
        """Let `data` leave when it is due."""
        shape, now = self._shape, self._loop.time()
        if shape.bandwidth_mbit_per_s:
            self._free_at = max(now, self._free_at) + 8e-6 * len(data) / shape.bandwidth_mbit_per_s
        else:
            self._free_at = now
        wait_s = 1e-3 * max(0.0, shape.delay_ms + self._random.uniform(-shape.jitter_ms, shape.jitter_ms))
        if shape.loss:
            segments = -(-len(data) // SEGMENT_SIZE_BYTES)
            if self._random.random() > (1 - shape.loss) ** segments:
                wait_s += max(RETRANSMISSION_S_MIN, 2e-3 * (shape.delay_ms + shape.jitter_ms))
        self._due_at = max(self._due_at, self._free_at + wait_s)
        self._held.append((self._due_at, data))
        self._held_bytes += len(data)
        self._was_full = self._was_full or self.is_full
        self._arm()

    def close(self) -> None:
        """Forget what is held."""
        self._held.clear()
        self._held_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held and not self._shape.cut:
            self._timer = self._loop.call_later(max(0.0, self._held[0][0] - self._loop.time()), self._release)

    def _release(self) -> None:
        self._timer = None
        due: list[bytes] = []
        now = self._loop.time()
        while self._held and self._held[0][0] <= now:
            due.append(self._held.popleft()[1])
        data = b"".join(due)
        self._held_bytes -= len(data)
        if data:
            self._write(data)
        self._arm()
        if self._was_full and self._held_bytes <= HELD_BYTES_MAX // 2:
            self._was_full = False
            self._drained()
