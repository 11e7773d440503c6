"""The node's disk: one SQLite file in WAL mode, one sync for all that waits (group commit).

Decides nothing about what is stored: records are (table, key) → value, bytes throughout. Promises: when `commit`
returns, its writes are on the disk, all of them; a crash at any moment leaves whole commits, in order. Every record
carries a CRC-32 over table, key and value (row S0-E18), checked on load and reported apart from everything else.

After damage: an interrupted write leaves the boundary before it. A damaged record, page or log is refused at the start
with the way out, never read as something else. Two accidents look like an interrupted write: damage to the very last
synced transactions, and a file cut at a boundary; what is left then is an earlier boundary, and `ended_cleanly` is
False, so that the node does not trust its memory of what it signed (ledger/SPEC.md 7.5).

Two ways lead to the disk: `commit` hands writes to the storage thread, `commit_here` makes small ones durable on the
caller's thread, as long as the disk is quick. To wake a thread, hand the interpreter's lock to it for every statement
and come back costs more than such a commit itself, and many times more while other threads compute.

Measured on a 2-core machine: a commit of one 200-byte record alone takes 0.2 to 0.3 ms by the thread and 0.14 ms here
(medians), 64 that wait together 2.1 ms, one of 300 KB 1.7 ms; opening a file of 100 MB takes 0.04 s and loading its
100,000 records 0.26 s.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from qnode.effects import Delete, Put
from qnode.io.wal import NO_FRAMES, LogFrames, read_frames

FILE_NAME: Final = "node.sqlite3"
APPLICATION_ID: Final = 0x514E4F44  # "QNOD" in the SQLite header, so that another program's file is not taken for ours
SCHEMA_VERSION: Final = 1
# One transaction takes at most so many waiting commits: bounds the delay of the first of them to some 10 ms.
GROUP_COMMITS_MAX: Final = 512
# The write-ahead log is folded into the file at this size, and cut back to it: deleted key records linger in it at most
# that long (they are encrypted as well), and a restart replays at most that much.
WAL_PAGES_MAX: Final = 1000
# A record up to a quarter of a page stays in one page: 1 KB records load three times faster than with 4 KiB pages, and
# commits were not slower.
PAGE_SIZE_BYTES: Final = 16384
# Pages that SQLite keeps in memory: appends touch few, and the system's page cache has the rest. Its own default of
# 2 MiB is a tenth of what a node of a large fleet may use in all.
CACHE_SIZE_KIB: Final = 512

# What is committed on the event loop: some 0.3 ms of work on a disk that syncs in 0.1 ms.
HERE_WRITES_MAX: Final = 64
HERE_SIZE_BYTES_MAX: Final = 64 << 10
# HERE_SLOW_MAX commits in a row on the event loop that take longer each (a slow disk; one may be the log folded into
# the file, or a processor that others use) send the next HERE_PAUSE_COMMITS to the thread: so the loop stands still for
# one commit in seventeen at most, and a disk that is quick again is noticed.
HERE_NS_MAX: Final = 5_000_000
HERE_SLOW_MAX: Final = 4
HERE_PAUSE_COMMITS: Final = 64

Write = Put | Delete


class StorageError(RuntimeError):
    """The disk cannot be relied on; fatal to the daemon. The message says what is wrong and the way out."""


class StorageLockedError(StorageError):
    """Another process uses this state directory."""


class ChecksumError(StorageError):
    """A stored record is not what was written: an accident of the medium, not an attack (row S0-E18)."""


def record_checksum(table: str, key: bytes, value: bytes) -> int:
    """Return the CRC-32 stored beside a record; lengths are mixed in so that bytes cannot move between the fields."""
    prefix = b"%d:%d:" % (len(table), len(key))
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(prefix + table.encode())))


class Storage:
    """The open database of one state directory. Create with `await Storage.open(directory)`; end with `close`."""

    def __init__(self, database: sqlite3.Connection, path: Path, ended_cleanly: bool) -> None:
        self._database = database
        self._path = path
        self.ended_cleanly = ended_cleanly
        """Whether the last life ended with `close`, so that nothing it synced can be missing unnoticed."""
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._failure: StorageError | None = None
        self._closed = False
        self._under_way = 0  # tasks that the thread has not finished
        self._slow_commits = 0  # in a row, on the callers' thread
        self._pause_commits = 0  # commits that go by the thread before one is tried here again
        self.commits_count = 0
        self.syncs_count = 0
        self.syncs_here_count = 0
        self.checksum_failures_count = 0
        self._thread = threading.Thread(target=self._serve, name="qnode-storage", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, directory: Path) -> "Storage":
        """Open or create the database in `directory`, lock it for this process, and check its pages.

        Raises StorageError: locked by another process, not our file, corrupt, or not writable.
        """
        return await asyncio.get_running_loop().run_in_executor(None, cls._open, directory)

    @classmethod
    def _open(cls, directory: Path) -> "Storage":
        path = directory / FILE_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise StorageError(
                f"{directory}: the state directory is not usable: {error.strerror}; "
                "give the daemon's user read and write permission, or choose another state_directory"
            ) from None
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            frames = read_frames(path.with_name(path.name + "-wal"))
            ended_cleanly = prepare(database, frames)
        except (sqlite3.Error, UnicodeError) as error:
            database.close()
            raise _explained(error, path) from None
        except StorageError as error:
            database.close()
            raise type(error)(f"{path}: {error}") from None
        return cls(database, path, ended_cleanly)

    async def commit(self, writes: Sequence[Write]) -> None:
        """Apply `writes` in order as one atomic, durable step.

        Returns when they are on the disk. Commits that arrive during a sync share the next one. Raises StorageError,
        and every later call raises it too: the daemon must stop, and its restart finds the last durable state.
        """
        if writes:
            await self._submit(_Task("commit", tuple(writes)))

    def commit_here(self, writes: Sequence[Write]) -> bool:
        """Apply a few `writes` as `commit` does, at once and on the caller's thread; False, and nothing done, if not.

        That is: while the thread has work (which comes first), for more than HERE_WRITES_MAX writes or
        HERE_SIZE_BYTES_MAX, and for a while after the disk was slow. Raises StorageError as `commit` does.
        """
        if self._failure is not None:
            raise self._failure
        if self._pause_commits:
            self._pause_commits -= 1
            return False
        if self._under_way or self._closed or len(writes) > HERE_WRITES_MAX:
            return False
        if sum(len(write.value) for write in writes if isinstance(write, Put)) > HERE_SIZE_BYTES_MAX:
            return False
        begin_ns = time.monotonic_ns()
        outcome = self._guarded(lambda: self._write([writes]))
        if isinstance(outcome, BaseException):
            raise outcome
        self.syncs_here_count += 1
        self._slow_commits = self._slow_commits + 1 if time.monotonic_ns() - begin_ns > HERE_NS_MAX else 0
        if self._slow_commits == HERE_SLOW_MAX:
            self._slow_commits, self._pause_commits = 0, HERE_PAUSE_COMMITS
        return True

    async def load(self, table: str, first_key: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Return all (key, value) of `table` from `first_key` on, ordered by key.

        Raises ChecksumError when a record fails its CRC-32, naming how many and the first key.
        """
        rows: list[tuple[bytes, bytes]] = await self._submit(_Task("load", (table, first_key)))
        return rows

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return one value at once, on the caller's thread: for rare looks at old records, such as blocks of the chain.

        Waits for a sync under way (SQLite serves one call of a connection at a time), a few milliseconds at most.
        Raises StorageError, ChecksumError.
        """
        if self._failure is not None:
            raise self._failure
        try:
            row = self._database.execute(
                "SELECT value, crc32 FROM record WHERE name = ? AND key = ?", (table, key)
            ).fetchone()
        except sqlite3.Error as error:
            raise _explained(error, self._path) from None
        if row is None:
            return None
        if type(row[0]) is not bytes or record_checksum(table, key, row[0]) != row[1]:
            self.checksum_failures_count += 1
            raise ChecksumError(
                f"{self._path}: record {key[:32].hex()} of table {table!r} fails its checksum. {_WAY_OUT}"
            )
        value: bytes = row[0]
        return value

    async def tables(self) -> list[str]:
        """Return the names of all tables that hold a record, sorted."""
        names: list[str] = await self._submit(_Task("tables", None))
        return names

    async def close(self) -> None:
        """Finish what waits, fold the log into the file and release the lock. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def _submit(self, task: "_Task") -> Any:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StorageError(f"{self._path}: the storage is closed")
        task.loop = asyncio.get_running_loop()
        task.done = task.loop.create_future()
        self._under_way += 1
        self._waiting.put(task)
        return await task.done

    # ---- the storage thread

    def _serve(self) -> None:
        running = True
        while running:
            group: list[_Task] = []
            first = self._waiting.get()
            while first is not None:
                group.append(first)
                if len(group) >= GROUP_COMMITS_MAX:
                    break
                try:
                    first = self._waiting.get_nowait()
                except queue.Empty:
                    break
            running = first is not None
            self._answer(group)
        with contextlib.suppress(sqlite3.Error):
            if self._failure is None:
                self._database.execute("UPDATE life SET ended = 1")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._database.close()

    def _answer(self, group: list["_Task"]) -> None:
        commits = [task for task in group if task.kind == "commit"]
        if commits:
            outcome = self._guarded(lambda: self._write([task.argument for task in commits]))
            self._report(commits, outcome)
        for task in group:
            if task.kind == "load":
                self._report([task], self._guarded(lambda argument=task.argument: self._read(*argument)))  # type: ignore[misc]
            elif task.kind == "tables":
                self._report([task], self._guarded(self._table_names))

    def _report(self, tasks: list["_Task"], outcome: Any) -> None:
        def finish(task: _Task) -> None:
            self._under_way -= 1
            if task.done.done():
                return  # its caller was cancelled; the write is durable all the same
            if isinstance(outcome, BaseException):
                task.done.set_exception(outcome)
            else:
                task.done.set_result(outcome)

        for task in tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                task.loop.call_soon_threadsafe(finish, task)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        if self._failure is not None:
            return self._failure
        try:
            return work()
        except ChecksumError as error:
            return error
        except (sqlite3.Error, OSError, UnicodeError) as error:
            self._failure = _explained(error, self._path)
            return self._failure
        except Exception as error:  # a bug: who waits must hear of it, or the node would stand still without a word
            self._failure = StorageError(f"{self._path}: {type(error).__name__}: {error}; this is a bug of qnode")
            return self._failure

    def _write(self, commits: Sequence[Sequence[Write]]) -> None:
        execute = self._database.execute
        execute("BEGIN IMMEDIATE")
        try:
            for writes in commits:
                for kind, rows in _runs(writes):
                    self._database.executemany(_STATEMENTS[kind], rows)
            execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise
        self.commits_count += len(commits)
        self.syncs_count += 1

    def _read(self, table: str, first_key: bytes) -> list[tuple[bytes, bytes]]:
        query = "SELECT key, value, crc32 FROM record WHERE name = ? AND key >= ? ORDER BY key"
        rows = self._database.execute(query, (table, first_key))
        good: list[tuple[bytes, bytes]] = []
        bad: list[bytes] = []
        for key, value, crc32 in rows:
            if type(key) is bytes and type(value) is bytes and record_checksum(table, key, value) == crc32:
                good.append((key, value))
            else:
                bad.append(key if type(key) is bytes else b"")
        if bad:
            self.checksum_failures_count += len(bad)
            raise ChecksumError(
                f"{self._path}: {len(bad)} record(s) of table {table!r} fail their checksum (the first key is "
                f"{bad[0][:32].hex()}): the medium changed them. {_WAY_OUT}"
            )
        return good

    def _table_names(self) -> list[str]:
        names = [name for (name,) in self._database.execute("SELECT DISTINCT name FROM record ORDER BY name")]
        if not all(isinstance(name, str) for name in names):
            raise ChecksumError(f"{self._path}: the name of a table is damaged. {_WAY_OUT}")
        return names


class _Task:
    """One request to the storage thread, and the future that its caller awaits."""

    __slots__ = ("argument", "done", "kind", "loop")

    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[Any]"

    def __init__(self, kind: str, argument: Any) -> None:
        self.kind = kind
        self.argument = argument


_STATEMENTS: Final = {
    Put: "INSERT OR REPLACE INTO record (name, key, value, crc32) VALUES (?, ?, ?, ?)",
    Delete: "DELETE FROM record WHERE name = ? AND key = ?",
}
_WAY_OUT: Final = (
    "Stop this node, check the disk, then restore the state directory from a backup made after this node's last vote, "
    "or give the node a new identity and an empty state directory: it catches up from its peers."
)


def prepare(database: sqlite3.Connection, frames: LogFrames = NO_FRAMES) -> bool:
    """Lock, check and lay out an opened file, whose log held `frames`; returns whether its last life closed it.

    Raises sqlite3.Error or StorageError.
    """
    execute = database.execute
    execute("PRAGMA locking_mode = EXCLUSIVE")  # with WAL: no shared-memory file, and no second process, ever
    execute(f"PRAGMA page_size = {PAGE_SIZE_BYTES}")
    _require_ours(database)
    _require_whole_log(database, frames)
    mode = execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageError(
            f"the file system does not support the write-ahead log (journal mode {mode}); use a local one"
        )
    for pragma in (
        "synchronous = FULL",  # NORMAL would lose the last commits in a power cut, and with them votes already sent
        "secure_delete = ON",
        "cell_size_check = ON",
        f"wal_autocheckpoint = {WAL_PAGES_MAX}",
        f"cache_size = -{CACHE_SIZE_KIB}",
        f"journal_size_limit = {WAL_PAGES_MAX * PAGE_SIZE_BYTES}",
    ):
        execute(f"PRAGMA {pragma}")
    execute("BEGIN EXCLUSIVE")
    execute(
        "CREATE TABLE IF NOT EXISTS record (name TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, "
        "crc32 INTEGER NOT NULL, PRIMARY KEY (name, key)) WITHOUT ROWID"
    )
    execute("CREATE TABLE IF NOT EXISTS life (ended INTEGER NOT NULL)")
    lives = execute("SELECT ended FROM life").fetchall()
    execute("DELETE FROM life")
    execute("INSERT INTO life VALUES (0)")
    execute(f"PRAGMA application_id = {APPLICATION_ID}")
    execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    execute("COMMIT")
    found = execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StorageError(f"the database is corrupt ({' '.join(found.split())}). {_WAY_OUT}")
    execute("PRAGMA wal_checkpoint(TRUNCATE)")  # from here on the file itself says that a life has begun
    return lives in ([], [(1,)])


def _require_whole_log(database: sqlite3.Connection, frames: LogFrames) -> None:
    """Refuse a log of which SQLite dropped more than an interrupted write."""
    if not frames.ends and not frames.damaged:
        return
    recovered = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    if fault := frames.loss_fault(max(recovered, 0)):
        raise StorageError(f"the database lost synced writes: {fault}. {_WAY_OUT}")


def _require_ours(database: sqlite3.Connection) -> None:
    application_id = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return  # a new file, or one whose creation was interrupted before its first commit
    if application_id != APPLICATION_ID:
        raise StorageError("this is another program's database; choose a different state_directory")
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"the database has layout {version}, this qnode reads {SCHEMA_VERSION}; install the version that wrote it"
        )


def _runs(writes: Iterable[Write]) -> Iterable[tuple[type, list[tuple[Any, ...]]]]:
    """Group consecutive writes of one kind, so that SQLite sees few long `executemany` calls and order is kept."""
    kind: type | None = None
    rows: list[tuple[Any, ...]] = []
    for write in writes:
        if type(write) is not kind:
            if kind is not None:
                yield kind, rows
            kind, rows = type(write), []
        if isinstance(write, Put):
            rows.append((write.table, write.key, write.value, record_checksum(write.table, write.key, write.value)))
        else:
            rows.append((write.table, write.key))
    if kind is not None:
        yield kind, rows


def _explained(error: Exception, path: Path) -> StorageError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageLockedError(
            f"{path}: another qnode process uses this state directory; "
            "stop it, or give this node its own state_directory"
        )
    if primary == sqlite3.SQLITE_NOTADB:
        return StorageError(f"{path}: not a database, or its first page is destroyed. {_WAY_OUT}")
    if primary == sqlite3.SQLITE_CORRUPT or isinstance(error, UnicodeError):
        return StorageError(f"{path}: the database is corrupt ({error}). {_WAY_OUT}")
    if primary == sqlite3.SQLITE_FULL:
        return StorageError(f"{path}: the disk is full; free space and start the node again, nothing committed is lost")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StorageError(f"{path}: cannot be written ({error}); check its owner and permissions")
    return StorageError(f"{path}: the disk failed ({error}); check the disk, then start the node again")
