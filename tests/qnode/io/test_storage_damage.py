"""The disk after accidents: cut files, flipped bits, no space. Recovery or refusal, never a silent difference."""

import asyncio
import contextlib
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.effects import Delete, Put
from qnode.io import storage as storage_module
from qnode.io.storage import FILE_NAME, Storage, StorageError
from qnode.io.wal import FRAME_HEADER_BYTES, HEADER_BYTES

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of openings: a real sync each would take minutes
Contents = dict[tuple[str, bytes], bytes]
LOG_NAME = f"{FILE_NAME}-wal"


async def contents(storage: Storage) -> Contents:
    return {(table, key): value for table in await storage.tables() for key, value in await storage.load(table)}


@dataclass(frozen=True)
class Recorded:
    """The files of a node that lost power, what it had after each commit, and how long its log was then."""

    file: bytes = field(repr=False)
    log: bytes = field(repr=False)
    states: list[Contents] = field(repr=False)
    log_sizes: list[int]

    def reopen(self, file: bytes | None = None, log: bytes | None = None) -> tuple[Contents, bool] | str:
        """Open the (damaged) files: what is in them and whether they were closed, or the reason of the refusal."""

        async def run() -> tuple[Contents, bool] | str:
            try:
                storage = await Storage.open(Path(name))
            except StorageError as error:
                return str(error)
            try:
                return await contents(storage), storage.ended_cleanly
            except StorageError as error:
                return str(error)
            finally:
                await storage.close()

        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            (Path(name) / FILE_NAME).write_bytes(self.file if file is None else file)
            (Path(name) / LOG_NAME).write_bytes(self.log if log is None else log)
            return asyncio.run(run())


async def record(directory: Path, commits: int) -> Recorded:
    """Commit one by one, with deletions, and take the files away before the storage is closed."""
    storage = await Storage.open(directory)
    await storage.commit([Put("signer", b"record", b"0"), Put("block", b"\0", bytes(700))])
    storage._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the first commit is in the file, the rest in the log
    states, sizes = [await contents(storage)], [0]
    for number in range(1, commits + 1):
        writes: list[Put | Delete] = [
            Put("signer", b"record", b"%d" % number),
            Put("block", bytes([number]), bytes(90)),
        ]
        if number > 2:
            writes.append(Delete("block", bytes([number - 2])))
        await storage.commit(writes)
        states.append(await contents(storage))
        sizes.append((directory / LOG_NAME).stat().st_size)
    found = Recorded((directory / FILE_NAME).read_bytes(), (directory / LOG_NAME).read_bytes(), states, sizes)
    await storage.close()
    return found


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        return asyncio.run(record(Path(name), 8))


@pytest.fixture(scope="module")
def small() -> Recorded:
    """The same with the smallest pages, so that every byte can be tried."""
    before = storage_module.PAGE_SIZE_BYTES
    storage_module.PAGE_SIZE_BYTES = 512  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            return asyncio.run(record(Path(name), 4))
    finally:
        storage_module.PAGE_SIZE_BYTES = before  # type: ignore[misc]


def boundary(found: Recorded, size_bytes: int) -> Contents:
    """What the commits that lie wholly below `size_bytes` of the log have left."""
    return found.states[max(i for i, size in enumerate(found.log_sizes) if size <= size_bytes)]


@pytest.mark.slow
def test_a_log_cut_at_any_byte_of_the_last_commits_is_the_boundary_below(small: Recorded) -> None:
    for size in range(small.log_sizes[-3], len(small.log) + 1):
        assert small.reopen(log=small.log[:size]) == (boundary(small, size), False), size


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_log_cut_anywhere_is_the_boundary_below(recorded: Recorded, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(recorded.log)))
    assert recorded.reopen(log=recorded.log[:size]) == (boundary(recorded, size), False)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_torn_write_is_the_boundary_below(recorded: Recorded, data: st.DataObject) -> None:
    """Power fails in the last write: any of its sectors hold anything."""
    start = recorded.log_sizes[-2]
    log = bytearray(recorded.log)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(start // 512 + 1, (len(log) - 1) // 512)) * 512
        log[at : at + 512] = data.draw(st.sampled_from([bytes(512), b"\xff" * 512, recorded.log[:512]]))
    found = recorded.reopen(log=bytes(log[: len(recorded.log)]))
    assert found in ((recorded.states[-2], False), (recorded.states[-1], False))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_bit_flipped_in_the_log_is_refused_or_looks_like_a_torn_last_write(
    recorded: Recorded, data: st.DataObject
) -> None:
    near = st.sampled_from([0, *recorded.log_sizes[1:-1]]).flatmap(
        lambda start: st.integers(start, start + HEADER_BYTES + FRAME_HEADER_BYTES)
    )
    at = data.draw(near | st.integers(0, len(recorded.log) - 1))
    log = bytearray(recorded.log)
    log[at] ^= 1 << data.draw(st.integers(0, 7))
    found = recorded.reopen(log=bytes(log))
    if isinstance(found, str):
        assert FILE_NAME in found and "Stop this node" in found
    elif at >= recorded.log_sizes[-2]:
        assert found in ((recorded.states[-2], False), (recorded.states[-1], False))
    elif found != (recorded.states[-1], False):
        start = recorded.log_sizes[-3]
        assert at - start in range(4, 8), "only the mark that ends the transaction before the last is as ambiguous"
        assert found == (recorded.states[-3], False)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_bit_flipped_in_the_file_is_refused_or_changes_nothing(recorded: Recorded, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, 199) | st.integers(0, len(recorded.file) - 1))
    file = bytearray(recorded.file)
    file[at] ^= 1 << data.draw(st.integers(0, 7))
    found = recorded.reopen(file=bytes(file))
    if isinstance(found, str):
        assert FILE_NAME in found
    else:
        assert found[0] == recorded.states[-1]


@pytest.mark.slow
def test_every_byte_of_a_small_file_is_watched(small: Recorded) -> None:
    """Also the pages that the log does not cover: the log is gone, as after a checkpoint."""
    whole = small.reopen(log=b"")
    assert whole == (small.states[0], False)
    for at in range(0, len(small.file), 3):
        file = bytearray(small.file)
        file[at] ^= 1 << at % 8
        found = small.reopen(file=bytes(file), log=b"")
        assert isinstance(found, str) or found[0] == small.states[0], at


async def test_a_lost_log_is_noticed_as_an_unclean_end(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    assert storage.ended_cleanly, "a new file has forgotten nothing"
    await storage.commit([Put("t", b"k", b"v")])
    copied = tmp_path / "copy"
    copied.mkdir()
    shutil.copy(tmp_path / FILE_NAME, copied)
    await storage.close()
    for directory, expected in ((tmp_path, True), (copied, False)):
        again = await Storage.open(directory)
        assert again.ended_cleanly is expected
        await again.close()


@pytest.mark.integration
def test_a_full_disk_stops_the_node_with_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, pathlib, resource, signal, sys
        from qnode.effects import Put
        from qnode.io.storage import Storage, StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        async def main():
            storage = await Storage.open(pathlib.Path(sys.argv[1]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            try:
                for n in range(1000):
                    await storage.commit([Put("a", b"%08d" % n, bytes(9000))])
                    print(n, flush=True)
            except StorageError as error:
                print(error, flush=True)
            await storage.close()
        asyncio.run(main())
        """
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    assert FILE_NAME in output[-1] and ("disk" in output[-1])
    acknowledged = len(output) - 1
    assert 0 < acknowledged < 100

    async def count() -> tuple[int, bool]:
        storage = await Storage.open(tmp_path)
        with contextlib.closing(storage._database):
            rows = await storage.load("a")
            await storage.commit([Put("a", b"more", bytes(9000))])
            clean = storage.ended_cleanly
            await storage.close()
        return len(rows), clean

    found, clean = asyncio.run(count())
    assert found in (acknowledged, acknowledged + 1) and not clean
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


async def test_sqlites_own_full_disk_says_what_to_do(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("a", b"k", b"v")])
    storage._database.execute("PRAGMA max_page_count = 5")
    with pytest.raises(StorageError, match="the disk is full; free space and start the node again"):
        await storage.commit([Put("a", b"%d" % n, bytes(9000)) for n in range(50)])
    await storage.close()
    again = await Storage.open(tmp_path)
    assert await contents(again) == {("a", b"k"): b"v"}
    await again.close()
