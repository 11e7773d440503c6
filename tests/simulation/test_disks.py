"""Disks of the simulator: what a start finds after a torn write or a flipped bit, and that its checks are needed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import SIGNER_TABLE
from ledger.outputs import Erase, Store
from loadtest.simulation.disk import Batch, Disk, DiskRefused
from loadtest.simulation.faults import FaultPlan
from loadtest.simulation.network import MS
from loadtest.simulation.run import RunResult, run_seed

tables = st.sampled_from(["blocks", "votes"])
keys = st.binary(min_size=1, max_size=2)
writes = st.one_of(st.builds(Store, tables, keys, st.binary(max_size=20)), st.builds(Erase, tables, keys))
batches = st.lists(st.lists(writes, min_size=1, max_size=5), max_size=6)
ONLY_DISKS = FaultPlan(
    8_000 * MS,
    crashes=False,
    partitions=False,
    bad_network=False,
    clocks=False,
    stops=False,
    churn=False,
    lies=(),
)


def rows(disk: Disk) -> dict[tuple[str, bytes], bytes]:
    return {(table, key): value for table, found in disk.stored().items() for key, value in found}


def after(batches: list[list[Store | Erase]]) -> dict[tuple[str, bytes], bytes]:
    """The plainest disk: a dictionary."""
    found: dict[tuple[str, bytes], bytes] = {}
    for write in (write for batch in batches for write in batch):
        if isinstance(write, Store):
            found[write.table, write.key] = write.value
        else:
            found.pop((write.table, write.key), None)
    return found


@given(batches, st.lists(writes, min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_crash_leaves_the_boundary_before_or_after_the_batch(
    synced: list[list[Store | Erase]], unsynced: list[Store | Erase], seed: int
) -> None:
    disk = Disk()
    for batch in synced:
        disk.apply(Batch(batch))
    arrived = disk.crash(Batch(unsynced), random.Random(seed))
    assert rows(disk) == after([*synced, unsynced] if arrived else synced)
    assert rows(disk) == rows(disk), "the second start finds the same"


@given(batches, st.integers(0, 2**32))
def test_any_flipped_bit_is_refused(synced: list[list[Store | Erase]], seed: int) -> None:
    disk = Disk()
    for batch in synced:
        disk.apply(Batch(batch))
    if disk.flip_bit(random.Random(seed)) is None:
        assert rows(disk) == {}
        return
    with pytest.raises(DiskRefused, match="checksum"):
        disk.stored()


def test_a_full_disk_is_refused_and_keeps_what_it_had() -> None:
    disk = Disk()
    disk.apply(Batch([Store("t", b"k", b"v")]))
    disk.full = True
    with pytest.raises(DiskRefused, match="free space"):
        disk.stored()
    disk.full = False
    assert rows(disk) == {("t", b"k"): b"v"}


@pytest.mark.slow
def test_damaged_disks_of_any_validators_end_in_a_wipe_and_never_in_a_contradiction() -> None:
    # 2: voted right after it had adopted a snapshot · 10: its new bundles had numbers that an earlier life had used
    results = [run_seed(seed, 4, topology="mesh", plan=ONLY_DISKS) for seed in (2, 10, 12, 15)]
    assert [result.violation for result in results] == [None] * 4
    assert all(not result.liars for result in results), "all are held to the invariants"
    assert sum(result.wipes for result in results) >= 4
    assert sum(result.adoptions for result in results) >= 2, "some come back by a snapshot"


def first_violation(**how: bool | frozenset[str]) -> str:
    def run(seed: int) -> RunResult:
        return run_seed(seed, 4, topology="mesh", plan=ONLY_DISKS, **how)  # type: ignore[arg-type]

    return next((found for seed in range(40) if (found := run(seed).violation)), "")


def test_checksums_that_nobody_looks_at_are_noticed() -> None:
    assert "invariant 22" in first_violation(disk_checks=False)


def test_rows_that_a_start_does_not_find_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Disk.apply

    def forget(self: Disk, batch: Batch) -> None:
        real(self, Batch([write for write in batch.writes if write.table != SIGNER_TABLE]))

    monkeypatch.setattr(Disk, "apply", forget)
    violation = first_violation()
    assert "invariant 22" in violation or "invariant 8" in violation
