"""How long a view may take: the timers of a height follow the time that heights with work took before (SPEC 4.4).

Decides nothing about views; `consensus` runs on the timing that is made here at the start of each height.
"""

from ledger.consensus import Timing
from ledger.core import ReplicaSettings


class Pace:
    """The smoothed time from when work waits to when it is committed."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._smoothed_height_ns = 0
        self._work_since_ns: int | None = None

    def work_waits(self, now_ns: int) -> None:
        """Something waits for the height in progress."""
        if self._work_since_ns is None:
            self._work_since_ns = now_ns

    def height_ended(self, now_ns: int, *, had_work: bool) -> None:
        """A height was committed: smooth the time that it took, if it took any work along."""
        if self._work_since_ns is not None and had_work:
            took_ns = now_ns - self._work_since_ns
            self._smoothed_height_ns += (took_ns - self._smoothed_height_ns) // 8
        self._work_since_ns = None

    def timing(self) -> Timing:
        """Return the timers of the next height."""
        settings = self._settings
        adapted_ns = min(4 * self._smoothed_height_ns, settings.view_timeout_max_ns)
        timeout_ns = max(settings.view_timeout_min_ns, adapted_ns)
        return Timing(
            view_timeout_ns=timeout_ns,
            finalize_timeout_ns=max(settings.finalize_timeout_ns, timeout_ns // 2),
            heartbeat_ns=settings.heartbeat_ns,
            block_interval_ns=settings.block_interval_ns,
            lost_leader_timeout_ns=settings.lost_leader_timeout_ns,
        )
