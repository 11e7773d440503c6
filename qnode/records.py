"""This node's own records on their way to the chain: kept on the disk until the ledger has them on the disk.

A record (a key block, a delivery, an alarm) is handed to the replica at once. Where that admits it in the same step,
nothing is stored here; where it is queued for the next bundle, or refused because the mempool is full while the chain
stands still, its row is written in the same sync as what led to it, and deleted in the same sync that stores its
bundle. So a record is never lost to a crash, and never submitted twice. Decides nothing about what is recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ledger.encoding import as_array, as_bytes, integer_key, pack, unpack
from ledger.transactions import Transaction, decode, encode
from qnode.context import Context
from qnode.effects import Delete, Put

TABLE: Final = "node.record"
RECORDS_MAX: Final = 100_000
"""Records that wait for the chain (about 50 MB); beyond it the newest are lost: a gap in the audit, and no key lost."""

Records = tuple[Transaction, ...]


class OwnRecords:
    """Groups of records by number, which is their order; each is with the replica under a token, or waits."""

    def __init__(self, context: Context, stored: Mapping[str, Sequence[tuple[bytes, bytes]]]) -> None:
        self._context = context
        self._waiting: dict[int, Records] = {}
        self._submitted: dict[int, tuple[int, Records]] = {}  # token → number and records
        self._rows: set[int] = set()
        for key, value in stored.get(TABLE, ()):
            number = int.from_bytes(key, "big")
            self._waiting[number] = tuple(decode(as_bytes(body)) for body in as_array(unpack(value)))
            self._rows.add(number)
        self._next_number = max(self._waiting, default=0) + 1
        self._count = sum(len(records) for records in self._waiting.values())

    @property
    def waiting_count(self) -> int:
        """Records that the replica has not admitted."""
        return self._count

    def submit(self, token: int, records: Records) -> None:
        """New records go to the replica under `token`."""
        self._submitted[token] = (self._next_number, records)
        self._next_number += 1
        self._count += len(records)

    def waiting(self) -> Iterator[int]:
        """Iterate over the numbers of what waits, oldest first."""
        return iter(sorted(self._waiting))

    def is_waiting(self, number: int) -> bool:
        """Say whether a number waits."""
        return number in self._waiting

    def submit_again(self, token: int, number: int) -> Records:
        """Return the records of a waiting number, which go to the replica under `token`."""
        records = self._waiting.pop(number)
        self._submitted[token] = (number, records)
        return records

    def admitted(self, token: int) -> None:
        """The replica has stored the records of `token` in a bundle."""
        number, records = self._submitted.pop(token)
        self._count -= len(records)
        if number in self._rows:
            self._rows.discard(number)
            self._context.do(Delete(TABLE, integer_key(number)))

    def refused(self, token: int, reason: str) -> None:
        """The replica has no room: the records wait here."""
        number, records = self._submitted.pop(token)
        if number not in self._rows and self._count > RECORDS_MAX:
            self._count -= len(records)
            self._context.log("error", "own records dropped: too many wait for the chain", count=len(records))
            return
        if not self._waiting:
            self._context.log("warning", "own records wait for room in the mempool", reason=reason)
        self._waiting[number] = records

    def keep(self) -> None:
        """At the end of a step: store what the replica has not admitted yet."""
        if len(self._rows) == len(self._waiting) + len(self._submitted):
            return
        for number, records in (*self._submitted.values(), *self._waiting.items()):
            if number not in self._rows:
                self._rows.add(number)
                value = pack(tuple(encode(each) for each in records))
                self._context.do(Put(TABLE, integer_key(number), value))
