"""Snapshots of the state: what certifies one, how a node writes its own beside its work, and how one is read back.

A snapshot is the trie after some height, which stays whole while the chain goes on: taking it costs nothing, and it is
written to the disk in slices (SPEC 10.1 to 10.3). Its root is in the next header, whose commit certificate proves
it. Decides nothing about whom to trust with a snapshot of other nodes: that is `snapshot_sync`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ledger.block import Header
from ledger.chain import BLOCK_TABLE, CorruptLedger
from ledger.core import FLOOR_TABLE, SNAPSHOT_HEAD_TABLE, SNAPSHOT_TABLE, Core
from ledger.encoding import MalformedEncoding, as_array, as_bytes, integer_key, pack, unpack_array
from ledger.genesis import Genesis
from ledger.merkle import Node
from ledger.outputs import Erase
from ledger.restoration import MalformedEntry, Restoration
from ledger.signatures import Verifier
from ledger.snapshot_head import SnapshotHead
from ledger.state import State
from ledger.trie_range import ENTRIES_MAX, FIRST_PATH, LAST_PATH, Entry, entries_from
from ledger.votes import Certificate

FLOOR_KEY = b"floor"
OFFERS_MAX = 2
"""Snapshots kept for peers: one that is being fetched stays while the next is taken."""
ERASED_ROWS_MAX = 64
"""Rows erased per slice: the disk overwrites each, a few milliseconds together."""
SLICE_INTERVAL_NS = 20_000_000
"""A slice of some 3 ms this often takes about a seventh of one core while a snapshot is written."""

Stored = Mapping[str, Sequence[tuple[bytes, bytes]]]
"""What earlier lives stored, per table in key order."""

# ---- rows


def range_key(height: int, last: bytes) -> bytes:
    """Return the key of the row of a snapshot's entries up to the path `last`."""
    return integer_key(height) + last


def range_row(first: bytes, entries: Sequence[Entry]) -> bytes:
    """Return the row: where it begins, and its entries."""
    return pack((first, tuple(entries)))


def decode_range_row(row: bytes) -> tuple[bytes, list[Entry]]:
    """Read a row. Raises MalformedEncoding."""
    first, entries = unpack_array(row, 2)
    pairs = [as_array(entry, 2) for entry in as_array(entries)]
    return as_bytes(first), [(as_bytes(key), as_bytes(value)) for key, value in pairs]


def height_of(key: bytes) -> int:
    """Return the height at the start of a row's key."""
    return int.from_bytes(key[:8], "big")


def following_path(path: bytes) -> bytes | None:
    """Return the path right after `path`, or None after the last."""
    return None if path == LAST_PATH else (int.from_bytes(path, "big") + 1).to_bytes(len(path), "big")


def newest_head(rows: Iterable[tuple[bytes, bytes]]) -> SnapshotHead | None:
    """Return the newest complete snapshot of the stored heads, or None. Raises CorruptLedger."""
    newest = max(rows, default=None)
    if newest is None:
        return None
    try:
        return SnapshotHead.decode(newest[1])
    except MalformedEncoding as error:
        raise CorruptLedger(_unusable(height_of(newest[0]), str(error))) from None


def first_block_key(head_rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key of the first stored block that a start has to execute. Raises CorruptLedger."""
    head = newest_head(head_rows)
    return integer_key(1 if head is None else head.height + 1)


def restore_state(
    genesis: Genesis, head: SnapshotHead, rows: Iterable[tuple[bytes, bytes]], verifier: Verifier
) -> State:
    """Rebuild the state of a snapshot from its rows and check it against the head. Raises CorruptLedger.

    About 10 µs an entry; that it is the state of this root is checked, not believed.
    """
    prefix = integer_key(head.height)
    restoration = Restoration(genesis)
    try:
        for key, row in rows:
            if key.startswith(prefix):
                restoration.add(decode_range_row(row)[1])
    except (MalformedEncoding, MalformedEntry) as error:
        raise CorruptLedger(_unusable(head.height, str(error))) from None
    if restoration.root != head.state_root:
        raise CorruptLedger(_unusable(head.height, "its entries do not add up to the state root"))
    state = restoration.finish(head.height)
    if fault := head.fault(genesis.digest, state.validators(), verifier):
        raise CorruptLedger(_unusable(head.height, fault))
    return state


def _unusable(height: int, reason: str) -> str:
    return (
        f"the stored snapshot of height {height} cannot be used: {reason}; "
        "move the node's data directory away and start again: it catches up from its peers"
    )


# ---- making


@dataclass(slots=True)
class Offer:
    """A snapshot that peers may fetch; `trie` is its contents."""

    head: SnapshotHead
    trie: Node | None


@dataclass(slots=True)
class _Writing:
    """An own snapshot on its way to the disk; `first` is where the next slice begins, None when all is written."""

    header: Header
    trie: Node | None
    first: bytes | None = FIRST_PATH
    head: SnapshotHead | None = None


class Snapshots:
    """Takes, writes, offers and drops this node's snapshots, and erases blocks below the pruning floor.

    A snapshot is taken at every multiple of `snapshot_interval` heights, unless the one before is still being written.
    """

    def __init__(self, core: Core) -> None:
        self.offers: dict[int, Offer] = {}
        self.needed_height: Callable[[], int | None] = lambda: None
        """The lowest height whose block the node still needs, for proofs of keys that are not used up; None if none."""
        self._core = core
        self._writing: _Writing | None = None
        self._written: int | None = None
        self._rows: dict[int, list[bytes]] = {}
        self._garbage: dict[tuple[str, bytes], None] = {}
        self._next_ns: int | None = None

    @property
    def written_height(self) -> int | None:
        """The height of the newest snapshot on the disk: a restart begins there."""
        return self._written

    @property
    def newest(self) -> Offer | None:
        """The newest snapshot to offer."""
        return self.offers[max(self.offers)] if self.offers else None

    def resume(self, head: SnapshotHead | None, trie: Node | None, stored: Stored, fetched: int | None) -> None:
        """Take up the snapshot that the state was restored from; but for one being fetched, all others are erased."""
        kept = {fetched, None if head is None else head.height}
        for table in (SNAPSHOT_TABLE, SNAPSHOT_HEAD_TABLE):
            stale = [key for key, _ in stored.get(table, ()) if height_of(key) not in kept]
            self.discard((table, key) for key in stale)
        if head is not None:
            keys = [key for key, _ in stored.get(SNAPSHOT_TABLE, ()) if height_of(key) == head.height]
            self._rows[head.height] = keys
            self._written = head.height
            self._offer(Offer(head, trie))

    def adopted(self, head: SnapshotHead, trie: Node | None, keys: list[bytes]) -> None:
        """The state was replaced by a fetched snapshot, stored under `keys`: it is this node's own from now on."""
        if self._writing is not None:
            self._drop_rows(self._writing.header.height)
            self._writing = None
        self._rows[head.height] = keys
        self._complete(head, trie)

    def store(self, key: bytes, row: bytes) -> None:
        """Store a row of a snapshot, which may stand where one was about to be erased."""
        self._garbage.pop((SNAPSHOT_TABLE, key), None)
        self._core.store(SNAPSHOT_TABLE, key, row)

    def give_up(self, height: int, keys: list[bytes]) -> None:
        """Drop what was fetched of a snapshot, unless this node is writing the very same one."""
        if height in self._rows:
            self._rows[height] += keys
        else:
            self.discard((SNAPSHOT_TABLE, key) for key in keys)

    def discard(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Erase rows bit by bit."""
        self._garbage.update((row, None) for row in rows)
        if self._garbage:
            self._hurry()

    def _offer(self, offer: Offer) -> None:
        self.offers[offer.head.height] = offer
        while len(self.offers) > OFFERS_MAX:
            del self.offers[min(self.offers)]

    def on_commit(self, header: Header, certificate: Certificate) -> None:
        """A block was executed: it may be one to take a snapshot after, or the one that certifies the last."""
        writing, interval = self._writing, self._core.settings.snapshot_interval
        if writing is not None and writing.head is None and writing.header.height + 1 == header.height:
            writing.head = SnapshotHead(writing.header, header, certificate)
            self._offer(Offer(writing.head, writing.trie))
            self._finish()
        if self._writing is None and interval and header.height % interval == 0:
            self._writing = _Writing(header, self._core.state.trie)
            self._rows[header.height] = []
            self._hurry()
        elif self._floor_target() > self._core.chain.floor:
            self._hurry()

    # ---- slices

    def _hurry(self) -> None:
        if self._next_ns is None:
            self._next_ns = self._core.now_ns + SLICE_INTERVAL_NS

    def deadline_ns(self) -> int | None:
        """Return when `tick` has something to do."""
        return self._next_ns

    def tick(self) -> None:
        """Write or erase one slice if it is time."""
        if self._next_ns is None or self._core.now_ns < self._next_ns:
            return
        self._next_ns = None
        if self._writing is not None and self._writing.first is not None:
            self._write(self._writing, self._writing.first)
        else:
            self._erase()
        more = self._writing is not None and self._writing.first is not None
        if more or self._garbage or self._floor_target() > self._core.chain.floor:
            self._hurry()

    def _write(self, writing: _Writing, first: bytes) -> None:
        taken = list(islice(entries_from(writing.trie, first), ENTRIES_MAX))
        last = taken[-1][0] if len(taken) == ENTRIES_MAX else LAST_PATH
        key = range_key(writing.header.height, last)
        self.store(key, range_row(first, [entry for _, entry in taken]))
        self._rows[writing.header.height].append(key)
        writing.first = following_path(last)
        self._finish()

    def _finish(self) -> None:
        writing = self._writing
        if writing is not None and writing.first is None and writing.head is not None:
            self._writing = None
            self._complete(writing.head, writing.trie)

    def _complete(self, head: SnapshotHead, trie: Node | None) -> None:
        """The head row makes a snapshot count; only then is the one before erased."""
        core, former = self._core, self._written
        core.store(SNAPSHOT_HEAD_TABLE, integer_key(head.height), head.encoded())
        self._written = head.height
        self._offer(Offer(head, trie))
        if former is not None and former != head.height:
            core.outputs.append(Erase(SNAPSHOT_HEAD_TABLE, integer_key(former)))
            self._drop_rows(former)
        core.note("debug", "snapshot_written", height=head.height)
        self._hurry()

    def _drop_rows(self, height: int) -> None:
        self.discard((SNAPSHOT_TABLE, key) for key in self._rows.pop(height, ()))

    # ---- pruning

    def _floor_target(self) -> int:
        """Return the height below which no block is kept (SPEC 10.6)."""
        core, keep = self._core, self._core.settings.keep_blocks
        if not keep or self._written is None:
            return core.chain.floor
        limits = [self._written + 1, core.height + 1 - keep]
        needed = self.needed_height()
        return max(core.chain.floor, min(limits if needed is None else [*limits, needed]))

    def _erase(self) -> None:
        """Erase a few rows, or a few blocks together with the step of the floor."""
        core = self._core
        for row in list(islice(self._garbage, ERASED_ROWS_MAX)):
            del self._garbage[row]
            core.outputs.append(Erase(*row))
        floor = min(self._floor_target(), core.chain.floor + ERASED_ROWS_MAX)
        if not self._garbage and floor > core.chain.floor:
            core.outputs += [Erase(BLOCK_TABLE, integer_key(height)) for height in range(core.chain.floor, floor)]
            set_floor(core, floor)


def set_floor(core: Core, floor: int) -> None:
    """Record that blocks are kept from `floor` on."""
    core.chain.raise_floor(floor)
    core.store(FLOOR_TABLE, FLOOR_KEY, integer_key(floor))
