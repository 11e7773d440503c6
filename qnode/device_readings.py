"""The last readings of every device, kept beyond a restart: a ring of rows per device, sealed, bounded, aged (S4-5.10).

Pure. A reading's row takes the place of the one `per_device` before it, so that the table is bounded without a count.
What is older than `age_ms_max` by the node's clock is destroyed when any device is next heard, or when somebody asks.
"""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from qnode.context import Context
from qnode.effects import Delete, Put
from qnode.vault import Vault

READINGS_TABLE: Final = "device.readings"
SWEEP_NS: Final = 60_000_000_000
"""How often old readings are looked for, at most."""
NESTING_MAX: Final = 64
"""Deeper JSON is shown as text: whoever writes it out again would run out of stack."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How many readings per device, and how long: `readings_kept` and `readings_hours` of `[devices]`."""

    per_device: int = 256
    age_ms_max: int = 7 * 24 * 3_600_000


class Reading(NamedTuple):
    """One opened reading, its content as the device sent it."""

    device_id: str
    key_id: bytes
    sequence: int
    time_ms: int
    content: bytes

    def document(self) -> dict[str, Any]:
        """Return it as users see it."""
        return {
            "device_id": self.device_id,
            "key_id": self.key_id.hex(),
            "sequence": self.sequence,
            "time_ms": self.time_ms,
            "reading": readable(self.content),
        }


class _Kept(NamedTuple):
    number: int
    arrived_ms: int
    reading: Reading


@dataclass(slots=True)
class _Ring:
    count: int = 0  # readings ever kept; the next one's number
    kept: deque[_Kept] = field(default_factory=deque)


class Readings:
    """The readings of one node's devices."""

    def __init__(
        self, context: Context, vault: Vault, retention: Retention, stored: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self._context = context
        self._vault = vault
        self._retention = retention
        self._rings: dict[str, _Ring] = {}
        self._swept_ns = 0
        self._restore(stored)

    def keep(self, reading: Reading) -> None:
        """Keep a reading in place of the oldest."""
        self._sweep()
        if self._retention.per_device == 0:
            return
        ring = self._rings.setdefault(reading.device_id, _Ring())
        kept = _Kept(ring.count, self._context.now_ns // 1_000_000, reading)
        ring.count += 1
        ring.kept.append(kept)
        while len(ring.kept) > self._retention.per_device:
            ring.kept.popleft()
        self._store(kept)

    def last(self, device_id: str, count: int) -> list[dict[str, Any]]:
        """Return the last `count` readings, oldest first."""
        self._sweep(now=True)
        ring = self._rings.get(device_id)
        found = list(ring.kept)[max(0, len(ring.kept) - count) :] if ring is not None else []
        return [kept.reading.document() for kept in found]

    def forget(self, device_id: str) -> None:
        """Destroy the readings of a device."""
        ring = self._rings.pop(device_id, None)
        for kept in ring.kept if ring is not None else ():
            self._context.do(Delete(READINGS_TABLE, self._row(kept)))

    def _sweep(self, *, now: bool = False) -> None:
        """Destroy what is too old."""
        if not now and self._context.now_ns - self._swept_ns < SWEEP_NS:
            return
        self._swept_ns = self._context.now_ns
        oldest_ms = self._context.now_ns // 1_000_000 - self._retention.age_ms_max
        for ring in self._rings.values():
            while ring.kept and ring.kept[0].arrived_ms < oldest_ms:
                self._context.do(Delete(READINGS_TABLE, self._row(ring.kept.popleft())))

    def _store(self, kept: _Kept) -> None:
        row = self._row(kept)
        packed = msgpack.packb((kept.number, kept.arrived_ms, *kept.reading))
        self._context.do(Put(READINGS_TABLE, row, self._vault.seal(READINGS_TABLE, row, packed)))

    def _row(self, kept: _Kept) -> bytes:
        place = kept.number % self._retention.per_device
        return kept.reading.device_id.encode() + b"\0" + place.to_bytes(4, "big")

    def _restore(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        found: dict[str, list[tuple[_Kept, bytes]]] = {}
        for row, sealed in stored:
            number, arrived_ms, *reading = msgpack.unpackb(self._vault.open(READINGS_TABLE, row, sealed))
            kept = _Kept(number, arrived_ms, Reading(*reading))
            found.setdefault(kept.reading.device_id, []).append((kept, row))
        for device_id, rows in found.items():
            rows.sort(key=lambda each: each[0].number)
            size = self._retention.per_device
            ring = self._rings[device_id] = _Ring(rows[-1][0].number + 1)
            ring.kept.extend(kept for kept, _ in rows[len(rows) - min(size, len(rows)) :])
            if len(ring.kept) < len(rows) or any(self._row(kept) != row for kept, row in rows):
                self._lay_out_anew(ring, [row for _, row in rows])

    def _lay_out_anew(self, ring: _Ring, rows: list[bytes]) -> None:
        """Give every reading its place under another retention than before."""
        for row in rows:
            self._context.do(Delete(READINGS_TABLE, row))
        for kept in ring.kept:
            self._store(kept)


def readable(content: bytes) -> Any:
    """Return a reading as JSON if it is, as text otherwise, as hexadecimal at last."""
    if _nesting(content) <= NESTING_MAX:
        try:
            return json.loads(content, parse_constant=_refuse)
        except ValueError:
            pass
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.hex()


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")  # NaN and the infinities: strict readers behind us would choke on them


def _nesting(content: bytes) -> int:
    """Return how deep the brackets of JSON go, at most; brackets inside strings count as well."""
    if content.count(b"[") + content.count(b"{") <= NESTING_MAX:
        return 0
    depth = deepest = 0
    for byte in content:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
