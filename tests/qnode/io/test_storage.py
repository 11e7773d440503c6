"""The disk: durability, atomicity, exclusion and what happens to damaged files, on real files."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.effects import Delete, Put
from qnode.io import storage as storage_module
from qnode.io.storage import (
    HERE_PAUSE_COMMITS,
    HERE_SLOW_MAX,
    ChecksumError,
    Storage,
    StorageError,
    StorageLockedError,
    record_checksum,
)

TABLES = st.sampled_from(["keys", "blocks"])
KEYS = st.binary(max_size=3)
WRITES = st.lists(st.one_of(st.builds(Put, TABLES, KEYS, st.binary(max_size=50)), st.builds(Delete, TABLES, KEYS)))


async def contents(directory: Path) -> dict[tuple[str, bytes], bytes]:
    storage = await Storage.open(directory)
    found = {(table, key): value for table in await storage.tables() for key, value in await storage.load(table)}
    await storage.close()
    return found


def model_of(batches: Iterable[list[Put | Delete]]) -> dict[tuple[str, bytes], bytes]:
    """Return what a dictionary holds after all these writes."""
    model: dict[tuple[str, bytes], bytes] = {}
    for batch in batches:
        for write in batch:
            if isinstance(write, Put):
                model[write.table, write.key] = write.value
            else:
                model.pop((write.table, write.key), None)
    return model


@given(st.lists(WRITES, max_size=5))
@settings(max_examples=25, deadline=None)
def test_reopened_storage_holds_what_a_dictionary_would(batches: list[list[Put | Delete]]) -> None:
    model = model_of(batches)

    async def run() -> None:
        with tempfile.TemporaryDirectory() as name:
            storage = await Storage.open(Path(name))
            await asyncio.gather(*(storage.commit(batch) for batch in batches))
            await storage.close()
            assert await contents(Path(name)) == model

    asyncio.run(run())


@given(st.lists(st.tuples(st.sampled_from(["here", "thread", "unawaited"]), WRITES), max_size=8))
@settings(max_examples=25, deadline=None)
def test_both_ways_to_the_disk_keep_the_order_of_commits(batches: list[tuple[str, list[Put | Delete]]]) -> None:
    model = model_of(batch for _, batch in batches)

    async def run() -> None:
        with tempfile.TemporaryDirectory() as name:
            storage = await Storage.open(Path(name))
            running: list[asyncio.Task[None]] = []
            for way, batch in batches:
                if way == "here" and storage.commit_here(batch):
                    continue
                task = asyncio.create_task(storage.commit(batch))
                if way == "thread":
                    await task
                else:
                    running.append(task)
                    await asyncio.sleep(0)
            await asyncio.gather(*running)
            await storage.close()
            assert await contents(Path(name)) == model

    asyncio.run(run())


async def test_what_is_large_or_comes_while_the_thread_works_goes_by_the_thread(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    large, many = [Put("t", b"k", bytes(65_537))], [Put("t", b"%d" % n, b"") for n in range(65)]
    assert not storage.commit_here(large) and not storage.commit_here(many)
    waiting = asyncio.create_task(storage.commit([Put("t", b"k", b"first")]))
    await asyncio.sleep(0)
    assert not storage.commit_here([Put("t", b"k", b"second")])
    waiting.cancel()  # the thread works on; nobody may cut in
    assert not storage.commit_here([Put("t", b"k", b"second")])
    await storage.commit([Put("t", b"k", b"third")])
    assert storage.commit_here([Put("t", b"l", b"fourth")])
    await storage.close()
    assert not storage.commit_here([Put("t", b"k", b"fifth")])
    assert await contents(tmp_path) == {("t", b"k"): b"third", ("t", b"l"): b"fourth"}


async def test_a_slow_disk_is_left_to_the_thread_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await Storage.open(tmp_path)
    monkeypatch.setattr(storage_module, "HERE_NS_MAX", -1)  # every commit is slower than that
    writes = [Put("t", b"k", b"v")]
    took = [storage.commit_here(writes) for _ in range(HERE_SLOW_MAX + HERE_PAUSE_COMMITS + 1)]
    assert took == [True] * HERE_SLOW_MAX + [False] * HERE_PAUSE_COMMITS + [True]
    monkeypatch.setattr(storage_module, "HERE_NS_MAX", 1 << 62)  # and now none is
    assert all(storage.commit_here(writes) for _ in range(3 * HERE_SLOW_MAX)), "a quick disk stays with the loop"
    await storage.close()


async def test_load_is_ordered_by_key_and_knows_only_its_table(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("a", bytes([n]), b"x") for n in (3, 1, 2)] + [Put("b", b"\0", b"y")])
    assert await storage.load("a") == [(bytes([n]), b"x") for n in (1, 2, 3)]
    assert await storage.load("none") == []
    await storage.close()


async def test_commits_that_wait_together_share_a_sync(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    await asyncio.gather(*(storage.commit([Put("t", b"%d" % n, bytes(200))]) for n in range(200)))
    assert storage.commits_count == 200
    assert storage.syncs_count < 100
    await storage.close()


async def test_a_second_user_of_the_directory_is_refused(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    with pytest.raises(StorageLockedError, match="another qnode process"):
        await Storage.open(tmp_path)
    code = (
        "import asyncio, pathlib, sys; from qnode.io.storage import Storage; "
        f"asyncio.run(Storage.open(pathlib.Path({str(tmp_path)!r})))"
    )
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=subprocess.PIPE)
    _, text = await done.communicate()
    assert done.returncode == 1
    assert b"another qnode process" in text
    await storage.close()
    await (await Storage.open(tmp_path)).close()


async def test_files_are_private(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path / "state")
    await storage.commit([Put("t", b"k", b"v")])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    await storage.close()


async def test_deleted_values_are_gone_from_the_closed_file(tmp_path: Path) -> None:
    marker = b"deleted-secret-marker"
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("t", b"k", marker * 400)])
    await storage.commit([Delete("t", b"k")])
    await storage.close()
    assert marker not in (tmp_path / storage_module.FILE_NAME).read_bytes()
    assert not (tmp_path / f"{storage_module.FILE_NAME}-wal").exists()


async def test_a_flipped_bit_in_a_value_is_reported_as_a_checksum_failure(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("t", b"k", b"find-me-find-me"), Put("u", b"k", b"other")])
    await storage.close()
    path = tmp_path / storage_module.FILE_NAME
    content = bytearray(path.read_bytes())
    content[content.index(b"find-me-find-me")] ^= 1
    path.write_bytes(content)
    storage = await Storage.open(tmp_path)
    with pytest.raises(ChecksumError, match="1 record"):
        await storage.load("t")
    assert storage.checksum_failures_count == 1
    assert await storage.load("u") == [(b"k", b"other")]
    await storage.close()


@pytest.mark.parametrize("page", [1, 2])
async def test_a_destroyed_page_is_named_with_the_way_out(tmp_path: Path, page: int) -> None:
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("t", b"%4d" % n, bytes(300)) for n in range(200)])
    await storage.close()
    path = tmp_path / storage_module.FILE_NAME
    content = bytearray(path.read_bytes())
    start = (page - 1) * storage_module.PAGE_SIZE_BYTES
    content[start : start + 200] = os.urandom(200)
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"(corrupt|not a database).*empty state directory"):
        await Storage.open(tmp_path)


@pytest.mark.parametrize("content", [b"hello, this is a text file " * 400, b"SQLite format 3\0" + bytes(5000)])
async def test_a_wrong_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / storage_module.FILE_NAME).write_bytes(content)
    with pytest.raises(StorageError, match=r"not a database|corrupt"):
        await Storage.open(tmp_path)


async def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / storage_module.FILE_NAME
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another program's"):
        await Storage.open(tmp_path)
    assert path.read_bytes() == before


async def test_an_unusable_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="state directory is not usable"):
        await Storage.open(tmp_path / "file" / "state")


async def test_after_a_failure_every_call_fails(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("t", b"k", b"v")])
    storage._database.execute("PRAGMA query_only = ON")  # what a file system remounted read-only does to us
    with pytest.raises(StorageError):
        await storage.commit([Put("t", b"k", b"w")])
    with pytest.raises(StorageError):
        await storage.load("t")
    with pytest.raises(StorageError):
        storage.commit_here([Put("t", b"k", b"w")])
    await storage.close()
    assert await contents(tmp_path) == {("t", b"k"): b"v"}


async def test_a_failure_on_the_callers_thread_fails_every_later_call(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    assert storage.commit_here([Put("t", b"k", b"v")])
    storage._database.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError):
        storage.commit_here([Put("t", b"k", b"w")])
    with pytest.raises(StorageError):
        await storage.commit([Put("t", b"k", b"w")])
    await storage.close()
    assert await contents(tmp_path) == {("t", b"k"): b"v"}


@pytest.mark.integration
@pytest.mark.parametrize("way", ["thread", "here"])
def test_kill_during_commits_leaves_every_acknowledged_commit_whole(tmp_path: Path, way: str) -> None:
    program = textwrap.dedent(
        """
        import asyncio, pathlib, sys
        from qnode.effects import Put
        from qnode.io.storage import Storage
        async def main():
            storage = await Storage.open(pathlib.Path(sys.argv[1]))
            for n in range(100_000):
                writes = [Put("a", b"%08d" % n, bytes(500)), Put("b", b"%08d" % n, bytes(500))]
                if sys.argv[2] == "thread" or not storage.commit_here(writes):
                    await storage.commit(writes)
                print(n, flush=True)
        asyncio.run(main())
        """
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), way], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = -1
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged == 100:
            child.send_signal(signal.SIGKILL)
    child.wait()
    found = asyncio.run(contents(tmp_path))
    first = {key for table, key in found if table == "a"}
    second = {key for table, key in found if table == "b"}
    assert first == second
    assert len(first) in (acknowledged + 1, acknowledged + 2)


@given(st.text(max_size=5), st.binary(max_size=5), st.binary(max_size=5), st.integers(0, 10))
def test_the_checksum_does_not_let_bytes_move_between_fields(table: str, key: bytes, value: bytes, cut: int) -> None:
    joined = key + value
    moved = joined[:cut], joined[cut:]
    if moved != (key, value):
        assert record_checksum(table, *moved) != record_checksum(table, key, value)


async def test_one_value_is_read_at_once(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path)
    await storage.commit([Put("block", b"\x01", b"one"), Put("block", b"\x02", b"two")])
    assert storage.read("block", b"\x02") == b"two"
    assert storage.read("block", b"\x03") is None
    assert storage.read("other", b"\x02") is None
    await storage.close()
    with pytest.raises(StorageError):
        storage.read("block", b"\x02")
