"""The daemon's clock: monotonic, anchored once to wall time, and checked before anything relies on it."""

import time

# Before this moment no genesis of this software can have been written: a clock that shows less was never set.
EARLIEST_TIME_NS = 1_735_689_600 * 10**9  # 2025-01-01T00:00:00Z


class ClockError(RuntimeError):
    """The system clock cannot be right; the message says by what it was compared and what to do."""


class SystemClock:
    """Nanoseconds that never go backwards and start at wall time.

    Core logic takes one `now_ns` for deadlines and for the clock window of fresh blocks. Wall time anchored at start
    and advanced by the monotonic clock serves both: a step of the system clock (NTP, an operator) moves no deadline,
    and the daemon follows it at its next start. `drift_ns` says how far the two have come apart since.
    """

    def __init__(self) -> None:
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return nanoseconds since 1970 as anchored at start; monotonic."""
        return self._anchor_ns + time.monotonic_ns()

    def drift_ns(self) -> int:
        """Return system clock minus this clock: what the system clock was stepped or slewed by since start."""
        return time.time_ns() - self.now_ns()

    def require_after(self, earliest_ns: int, what: str) -> None:
        """Refuse to start with a clock that shows a time before `what`. Raises ClockError."""
        now_ns = self.now_ns()
        bound_ns = max(earliest_ns, EARLIEST_TIME_NS)
        if now_ns < bound_ns:
            late = (bound_ns - now_ns) / 1e9
            raise ClockError(
                f"the system clock is {late:,.0f} s before {what}; "
                "set it (for example `timedatectl set-ntp true`) and start again"
            )
