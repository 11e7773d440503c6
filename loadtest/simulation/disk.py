"""A disk in memory: atomic batches that are durable only after a sync, and a crash that loses the unsynced tail."""

import random
from dataclasses import dataclass, field

from ledger.outputs import Erase, Store


@dataclass
class Batch:
    """Writes of one group commit."""

    writes: list[Store | Erase] = field(default_factory=list)


class Disk:
    """The durable tables of one node. A batch is atomic, as a write-ahead log makes it."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {}
        self.batches_synced = 0
        self.dropped_tables: frozenset[str] = frozenset()
        """Tables whose writes are silently lost: a broken disk, for tests that checkers notice."""

    def apply(self, batch: Batch) -> None:
        """Make a batch durable."""
        for write in batch.writes:
            if write.table in self.dropped_tables:
                continue
            table = self.tables.setdefault(write.table, {})
            if isinstance(write, Store):
                table[write.key] = write.value
            else:
                table.pop(write.key, None)
        self.batches_synced += 1

    def crash(self, unsynced: Batch | None, generator: random.Random) -> bool:
        """Lose power while `unsynced` is on its way; returns whether it arrived, whole."""
        arrived = unsynced is not None and generator.random() < 0.5
        if arrived and unsynced is not None:
            self.apply(unsynced)
        return arrived

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return a durable value, or None."""
        return self.tables.get(table, {}).get(key)

    def stored(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """Return all tables in key order, as a starting replica gets them."""
        return {name: sorted(table.items()) for name, table in self.tables.items()}
