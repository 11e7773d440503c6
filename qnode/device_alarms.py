"""When a device's session is attacked, the chain hears of it; when one is clean again, as well (rows S4-A1.15, S0-B1).

Pure. An aborted session above the attack threshold is an alarm at once; forged frames and replayed sessions are one
from the third on, because a node that restarted sees its own past as a replay once. Repeated readings are none: a
device says a reading again until its receipt comes. At most one alarm per device and ALARM_PAUSE_NS, and none while one
stands, so that an attacker cannot fill the chain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ledger.execution import Receipt
from ledger.state import State
from ledger.transactions import DeviceAlarmCleared, DeviceAlarmRaised
from qnode.context import Context

ALARM_PAUSE_NS: Final = 10_000_000_000
SUSPICIONS_MIN: Final = 3
"""Forged or replayed frames since the last clean session."""
QBER, FORGED, REPLAYED = "qber", "forged", "replayed"


@dataclass(slots=True)
class _Watch:
    """What was seen of one device. `under_way` is a record of ours that the chain has not committed."""

    suspicions: int = 0
    raised_ns: int | None = None
    under_way: bool = False
    clean: bool = False  # a clean session came while a record was under way


class DeviceAlarms:
    """The alarms of one node's devices."""

    def __init__(self, context: Context, state: Callable[[], State]) -> None:
        self._context = context
        self._state = state
        self._watched: dict[str, _Watch] = {}  # as many as devices that were attacked; forgotten with them

    def attacked(self, device_id: str, qber: float) -> None:
        """A session ended under attack."""
        self._raise(device_id, QBER, min(round(qber * 1e6), 10**6))

    def suspected(self, device_id: str, reason: str) -> None:
        """A frame of a session was forged or replayed."""
        watch = self._watched.setdefault(device_id, _Watch())
        watch.suspicions += 1
        if watch.suspicions >= SUSPICIONS_MIN:
            self._raise(device_id, reason, 0)

    def cleared(self, device_id: str) -> None:
        """A session made a key: whatever was, is over."""
        watch = self._watched.get(device_id)
        if watch is not None:
            watch.suspicions = 0
            watch.clean = watch.under_way
        if (watch is None or not watch.under_way) and self._is_alarmed(device_id):
            self._watched.setdefault(device_id, _Watch()).under_way = True
            self._context.submit(DeviceAlarmCleared(device_id))

    def recorded(self, record: DeviceAlarmRaised | DeviceAlarmCleared, receipt: Receipt) -> None:
        """Take a committed record; what happened while it was under way is decided now."""
        watch = self._watched.get(record.device_id)
        if watch is None or receipt.sender != self._context.node_id:
            return
        watch.under_way = False
        if watch.clean:
            watch.clean = False
            self.cleared(record.device_id)

    def forget(self, device_id: str) -> None:
        """A device was revoked."""
        self._watched.pop(device_id, None)

    def _raise(self, device_id: str, reason: str, qber_ppm: int) -> None:
        watch, now_ns = self._watched.setdefault(device_id, _Watch()), self._context.now_ns
        watch.clean = False
        paused = watch.raised_ns is not None and now_ns - watch.raised_ns < ALARM_PAUSE_NS
        if watch.under_way or paused or self._is_alarmed(device_id):
            return
        watch.under_way, watch.raised_ns = True, now_ns
        self._context.log("warning", "device alarm", device=device_id, reason=reason)
        self._context.submit(DeviceAlarmRaised(device_id, reason, qber_ppm))

    def _is_alarmed(self, device_id: str) -> bool:
        known = self._state().device(device_id)
        return known is not None and known.alarmed
