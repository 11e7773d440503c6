"""A disk in memory: atomic batches, and what goes wrong with disks: torn writes, flipped bits, no space.

Works as `qnode.io.storage` promises: a batch is durable after its sync; a crash leaves a prefix of the bytes on their
way, and what has no end mark with the right checksum is dropped by the next start; a row whose checksum fails is a
refusal.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ledger.encoding import as_array, as_bytes, pack, unpack_array
from ledger.outputs import Erase, Store
from qnode.io.storage import record_checksum

Tables = dict[str, dict[bytes, bytes]]
_LENGTH_BYTES = 4
_END_MARK = bytes(_LENGTH_BYTES)


class DiskRefused(RuntimeError):
    """Nothing starts from this disk; the message says why and what the operator does."""


@dataclass
class Batch:
    """Writes of one group commit."""

    writes: list[Store | Erase] = field(default_factory=list)

    def encoded(self) -> bytes:
        """The bytes in the log: rows with their lengths, then the end mark with a checksum over all of them."""
        rows = b""
        for write in self.writes:
            value = (write.value,) if isinstance(write, Store) else ()
            row = pack((write.table, write.key, value))
            rows += len(row).to_bytes(_LENGTH_BYTES, "big") + row
        return rows + _END_MARK + zlib.crc32(rows).to_bytes(4, "big")


class Disk:
    """The durable tables of one node, and the log of the batch that a crash interrupted."""

    def __init__(self) -> None:
        self.tables: Tables = {}
        self.batches_synced = 0
        self.full = False
        """Whether every write fails for want of space."""
        self.checks = True
        """Whether a start looks at checksums; off, it shows that the checkers would notice."""
        self.dropped_tables: frozenset[str] = frozenset()
        """Tables whose writes are silently lost: a broken disk, for tests that checkers notice."""
        self._checksums: dict[tuple[str, bytes], int] = {}
        self._log = b""

    def apply(self, batch: Batch) -> None:
        """Make a batch durable."""
        for write in batch.writes:
            if write.table in self.dropped_tables:
                continue
            table = self.tables.setdefault(write.table, {})
            if isinstance(write, Store):
                table[write.key] = write.value
                self._checksums[write.table, write.key] = record_checksum(write.table, write.key, write.value)
            else:
                table.pop(write.key, None)
                self._checksums.pop((write.table, write.key), None)
        self.batches_synced += 1

    def replace(self, tables: Tables) -> None:
        """Put another, whole content on the disk: that of a backup, or none."""
        self.tables, self._checksums, self._log = {}, {}, b""
        self.apply(Batch([Store(name, key, value) for name, rows in tables.items() for key, value in rows.items()]))

    # ---- what goes wrong

    def crash(self, unsynced: Batch | None, generator: random.Random) -> bool:
        """Lose power while `unsynced` is on its way; returns whether all of it arrived, so that a start finds it."""
        if unsynced is None:
            return False
        encoded = unsynced.encoded()
        size_bytes = generator.choice((0, len(encoded), len(encoded), generator.randrange(len(encoded))))
        self._log = encoded[:size_bytes]
        return size_bytes == len(encoded)

    def flip_bit(self, generator: random.Random) -> str | None:
        """Change one bit of the key, value or checksum of a stored row; returns its table, None for an empty disk."""
        names = [(table, key) for table, rows in sorted(self.tables.items()) for key in sorted(rows)]
        if not names:
            return None
        table, key = generator.choice(names)
        value, checksum = self.tables[table].pop(key), self._checksums.pop((table, key))
        bits = bytearray(key + value + checksum.to_bytes(4, "big"))
        bits[generator.randrange(len(bits))] ^= 1 << generator.randrange(8)
        end = len(key) + len(value)
        self.tables[table][bytes(bits[: len(key)])] = bytes(bits[len(key) : end])
        self._checksums[table, bytes(bits[: len(key)])] = int.from_bytes(bits[end:], "big")
        return table

    # ---- what a start does

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return a durable value, or None."""
        return self.tables.get(table, {}).get(key)

    def stored(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """Return all tables in key order, as a starting replica gets them. Raises DiskRefused."""
        self._recover()
        if self.full:
            raise DiskRefused("the disk is full; free space and start the node again, nothing committed is lost")
        bad = [name for name in self._rows() if self._checksum(*name) != self._checksums.get(name)]
        if bad and self.checks:
            raise DiskRefused(f"{len(bad)} record(s) of table {bad[0][0]} fail their checksum")
        return {name: sorted(table.items()) for name, table in self.tables.items()}

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        return ((name, key) for name, rows in self.tables.items() for key in rows)

    def _checksum(self, table: str, key: bytes) -> int:
        return record_checksum(table, key, self.tables[table][key])

    def _recover(self) -> None:
        """Take the interrupted batch if all of it is in the log; otherwise what was before it stands."""
        writes, is_whole = _read_log(self._log)
        self._log = b""
        if is_whole or not self.checks:
            self.apply(Batch(writes))


def _read_log(log: bytes) -> tuple[list[Store | Erase], bool]:
    """Return the rows that are whole, and whether the batch is."""
    writes: list[Store | Erase] = []
    position = 0
    while len(log) - position >= _LENGTH_BYTES:
        start = position + _LENGTH_BYTES
        size_bytes = int.from_bytes(log[position:start], "big")
        if size_bytes == 0:
            return writes, log[start:] == zlib.crc32(log[:position]).to_bytes(4, "big")
        row = log[start : start + size_bytes]
        if len(row) < size_bytes:
            break
        table, key, value = unpack_array(row, 3)
        found = as_array(value)
        name, key_bytes = str(table), as_bytes(key)
        writes.append(Store(name, key_bytes, as_bytes(found[0])) if found else Erase(name, key_bytes))
        position = start + size_bytes
    return writes, False
