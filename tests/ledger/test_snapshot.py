"""SPEC 10: snapshots are written beside the work, restarts begin there, and latecomers fetch them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ledger.audit import verify_chain
from ledger.chain import BLOCK_TABLE, SET_CHANGE_TABLE, CorruptLedger
from ledger.core import FLOOR_TABLE, SNAPSHOT_FETCH_TABLE, SNAPSHOT_HEAD_TABLE, SNAPSHOT_TABLE
from ledger.encoding import integer_key
from ledger.inputs import TransactionsSubmitted
from ledger.messages import BlocksMessage, RangeMessage, SnapshotOffer, Status, decode, encode
from ledger.outputs import PeerFaulted, SnapshotAdopted, Store
from ledger.snapshot import newest_head
from ledger.snapshot_head import SnapshotHead
from ledger.transactions import SaeRegistered
from ledger.trie_range import FIRST_PATH, cut_range
from tests.ledger.cluster import MS, NODES, Net, make_genesis

SETTINGS = {"snapshot_interval": 5, "heartbeat_ns": 1_000 * MS}


def grow(net: Net, blocks: int, start: int = 0) -> None:
    """Commit so many blocks of a few records each."""
    for i in range(start, start + blocks):
        name = sorted(net.replicas)[i % len(net.replicas)]
        records = tuple(SaeRegistered(f"app-{i}-{j}", name) for j in range(4))
        net.give(name, TransactionsSubmitted(i + 1, records))
        net.pass_time(40 * MS)
        while net.replicas[name].height < i - start + 1:
            net.pass_time(100 * MS)


@pytest.fixture
def net() -> Net:
    return Net(make_genesis(), **SETTINGS)


def test_a_restart_begins_at_the_snapshot_and_agrees_with_a_full_replay(net: Net) -> None:
    grow(net, 13)
    before = net.replicas["beta"]
    root, height = before.state.root, before.height
    assert before.status()["snapshot_height"] == 10
    snapshots = (SNAPSHOT_TABLE, SNAPSHOT_HEAD_TABLE)
    assert len(net.disks["beta"][SNAPSHOT_HEAD_TABLE]) == 1, "the former one is erased"
    assert {key[:8] for key in net.disks["beta"][SNAPSHOT_TABLE]} == set(net.disks["beta"][SNAPSHOT_HEAD_TABLE])
    net.stop("beta")
    again = net.start("beta")
    assert (again.state.root, again.height) == (root, height)
    assert [b["height"] for b in again.blocks(1, 100)] == list(range(1, height + 1)), "older blocks are still served"
    net.stop("beta")
    for table in snapshots:
        net.disks["beta"][table].clear()
    replayed = net.start("beta")
    assert replayed.height >= height and (replayed.state.root == root or replayed.height > height)


def test_a_restart_needs_no_block_below_the_snapshot(net: Net) -> None:
    grow(net, 12)
    root = net.replicas["gamma"].state.root
    net.stop("gamma")
    blocks = net.disks["gamma"]["ledger.block"]
    for height in range(1, 11):
        del blocks[height.to_bytes(8, "big")]
    assert net.start("gamma").state.root == root


@pytest.mark.parametrize("table", [SNAPSHOT_TABLE, SNAPSHOT_HEAD_TABLE])
def test_a_damaged_snapshot_is_a_clear_refusal(net: Net, table: str) -> None:
    grow(net, 7)
    net.stop("alpha")
    rows = net.disks["alpha"][table]
    key = next(iter(rows))
    rows[key] = rows[key][:-1] + bytes([rows[key][-1] ^ 1])
    with pytest.raises(CorruptLedger, match="snapshot of height 5"):
        net.start("alpha")


def wipe(net: Net, name: str) -> None:
    net.stop(name)
    net.disks[name] = {}


def adopted(net: Net) -> list[tuple[str, int]]:
    return [(name, output.height) for name, output in net.outputs if isinstance(output, SnapshotAdopted)]


def faults(net: Net) -> list[str]:
    return [output.reason for _, output in net.outputs if isinstance(output, PeerFaulted)]


def test_a_latecomer_below_the_floor_fetches_a_snapshot_and_then_the_blocks() -> None:
    net = Net(make_genesis(), keep_blocks=2, **SETTINGS)
    grow(net, 14)
    net.pass_time(2_000 * MS)
    assert net.replicas["alpha"].status()["floor"] > 5
    wipe(net, "delta")
    net.start("delta")
    net.pass_time(5_000 * MS)
    assert adopted(net) and adopted(net)[-1][0] == "delta"
    assert net.replicas["delta"].height == net.replicas["alpha"].height
    assert net.replicas["delta"].state.root == net.replicas["alpha"].state.root
    assert not faults(net)
    assert not net.disks["delta"].get(SNAPSHOT_FETCH_TABLE)
    grow(net, 8, start=100)
    net.pass_time(2_000 * MS)
    root = net.replicas["delta"].state.root
    net.stop("delta")
    again = net.start("delta")
    assert again.state.root == root, "the fetched snapshot is its own now"
    assert again.status()["floor"] > 1
    assert FLOOR_TABLE in net.disks["delta"]


def test_far_behind_means_a_snapshot_although_all_blocks_are_there() -> None:
    net = Net(make_genesis(), snapshot_distance=8, **SETTINGS)
    net.stop("delta")
    grow(net, 12)
    net.start("delta")
    net.pass_time(1_000 * MS)
    assert adopted(net) == [("delta", 10)]
    assert net.replicas["delta"].height >= 12, "what lies above is asked for at once, before any question times out"
    net.pass_time(3_000 * MS)
    assert net.replicas["delta"].state.root == net.replicas["alpha"].state.root


def mixed() -> Net:
    """Three neighbours of which gamma alone has all blocks, and delta, whose disk is empty."""
    net = Net(make_genesis(), **SETTINGS)
    grow(net, 14)
    net.settings = replace(net.settings, keep_blocks=2)
    for name in ("alpha", "beta"):
        net.stop(name)
        net.start(name)
    net.pass_time(2_000 * MS)
    assert [net.replicas[name].status()["floor"] > 5 for name in ("alpha", "beta", "gamma")] == [True, True, False]
    net.settings = replace(net.settings, keep_blocks=0)
    wipe(net, "delta")
    return net


def test_blocks_come_before_snapshots_while_a_neighbour_has_them() -> None:
    net = mixed()
    net.start("delta")
    net.pass_time(3_000 * MS)
    assert not adopted(net) and not faults(net)
    assert net.replicas["delta"].status()["floor"] == 1
    assert net.replicas["delta"].height >= 14 and net.replicas["delta"].state.root == net.replicas["alpha"].state.root


@pytest.mark.parametrize("way", ["gone", "silent"])
def test_a_snapshot_is_taken_when_the_one_with_the_blocks_does_not_give_them(way: str) -> None:
    net = mixed()
    if way == "gone":
        net.stop("gamma")
    else:
        net.filter = lambda source, target, payload: source != "gamma" or type(decode(payload)) is not BlocksMessage
    net.start("delta")
    net.pass_time(6_000 * MS)
    assert {name for name, _ in adopted(net)} == {"delta"} and not faults(net)
    assert net.replicas["delta"].height >= 14 and net.replicas["delta"].state.root == net.replicas["alpha"].state.root


def test_a_fetch_goes_on_after_a_restart() -> None:
    net = Net(make_genesis(), snapshot_distance=8, **SETTINGS)
    net.stop("delta")
    grow(net, 12)
    seen: list[bytes] = []

    def few_ranges(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        if isinstance(message, BlocksMessage):
            return target != "delta"
        if isinstance(message, RangeMessage):
            seen.append(message.found.first)
            return len(seen) <= 5
        return True

    net.filter = few_ranges
    net.start("delta")
    net.pass_time(500 * MS)
    assert not adopted(net) and len(net.disks["delta"][SNAPSHOT_TABLE]) == 5
    share = net.replicas["delta"].status()["snapshot_fetch"]["share"]
    net.stop("delta")
    first_asked = len(seen)
    net.filter = lambda source, target, payload: True
    resumed = net.start("delta")
    assert resumed.status()["snapshot_fetch"] is None or resumed.status()["snapshot_fetch"]["share"] >= share
    net.pass_time(6_000 * MS)
    assert adopted(net) == [("delta", 10)]
    assert first_asked >= 5


LIES: dict[str, Callable[[RangeMessage], RangeMessage]] = {
    "an entry changed": lambda m: _with(m, entries=tuple((k, v + b"!") for k, v in m.found.entries)),
    "entries left out": lambda m: _with(m, entries=m.found.entries[1:]),
    "nothing at all": lambda m: _with(m, entries=(), edges=(), outside=()),
}


def _with(message: RangeMessage, **changes: object) -> RangeMessage:
    return RangeMessage(message.height, replace(message.found, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_lying_source_is_charged_and_passed_over(lie: str) -> None:
    net = Net(make_genesis(), snapshot_distance=8, **SETTINGS)
    net.stop("delta")
    grow(net, 12)

    liars: list[str] = []

    def lying(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        if isinstance(message, RangeMessage) and message.found.entries and source in (*liars, source)[:1]:
            liars.append(source)  # the first that gives anything lies from then on
            net.inject(target, source, encode(LIES[lie](message)))
            return False
        return True

    net.filter = lying
    net.start("delta")
    net.pass_time(8_000 * MS)
    assert adopted(net) == [("delta", 10)]
    assert net.replicas["delta"].state.root == net.replicas["alpha"].state.root
    assert faults(net) and all("a part of a snapshot that is none" in reason for reason in faults(net))
    assert len(set(liars)) == 1


def test_a_forged_head_is_charged_and_nothing_is_fetched() -> None:
    net = Net(make_genesis(), snapshot_distance=3, **SETTINGS)
    grow(net, 7)
    row = next(iter(net.disks["alpha"][SNAPSHOT_HEAD_TABLE].values()))
    head = SnapshotHead.decode(row)
    forged = replace(head, certificate=replace(head.certificate, signatures=head.certificate.signatures[:1]))
    wipe(net, "delta")
    net.filter = lambda source, target, payload: type(decode(payload)) is Status
    net.start("delta")  # hears how far behind it is, and asks
    net.inject("delta", "beta", encode(SnapshotOffer(forged, ())))
    net.settle()
    assert net.replicas["delta"].status()["snapshot_fetch"] is None
    assert faults(net)
    other = replace(head, following=replace(head.following, state_root=bytes(32)))
    net.inject("delta", "gamma", encode(SnapshotOffer(other, ())))
    net.settle()
    assert net.replicas["delta"].status()["snapshot_fetch"] is None and len(faults(net)) == 2


def test_a_head_that_nobody_asked_for_is_passed_over(net: Net) -> None:
    grow(net, 7)
    head = SnapshotHead.decode(next(iter(net.disks["alpha"][SNAPSHOT_HEAD_TABLE].values())))
    wipe(net, "delta")
    net.filter = lambda source, target, payload: False
    net.start("delta")
    net.inject("delta", "beta", encode(SnapshotOffer(head, ())))
    net.settle()
    assert net.replicas["delta"].status()["snapshot_fetch"] is None and not faults(net)


def test_pruning_keeps_what_is_needed() -> None:
    net = Net(make_genesis(), keep_blocks=2, **SETTINGS)
    needed = 4
    for replica in net.replicas.values():
        replica.keep_blocks_for(lambda: needed)
    grow(net, 14)
    net.pass_time(2_000 * MS)
    for name in NODES:
        status = net.replicas[name].status()
        assert status["floor"] == 4
        kept = sorted(int.from_bytes(key, "big") for key in net.disks[name]["ledger.block"])
        assert kept == list(range(4, status["height"] + 1))
    needed = 1_000
    net.pass_time(3_000 * MS)
    for name in NODES:
        status = net.replicas[name].status()
        assert status["floor"] == min(status["snapshot_height"] + 1, status["height"] - 1)


def test_everything_is_kept_by_default(net: Net) -> None:
    grow(net, 14)
    net.pass_time(2_000 * MS)
    assert net.replicas["alpha"].status()["floor"] == 1
    assert len(net.disks["alpha"]["ledger.block"]) == net.replicas["alpha"].height


def test_a_slice_of_a_snapshot_is_bounded(net: Net) -> None:
    grow(net, 6)
    stored = [o for _, o in net.outputs if isinstance(o, Store) and o.table == SNAPSHOT_TABLE]
    assert stored
    assert all(len(o.value) < 400_000 for o in stored)
    trie = net.replicas["alpha"].state.trie
    assert len(cut_range(trie, FIRST_PATH, entries_max=3).entries) == 3


def test_an_audit_of_a_pruned_node_begins_at_its_snapshot_and_says_so() -> None:
    net = Net(make_genesis(), keep_blocks=4, **SETTINGS)
    grow(net, 14)
    net.pass_time(2_000 * MS)
    disk = {table: sorted(rows.items()) for table, rows in net.disks["beta"].items()}
    head = newest_head(disk[SNAPSHOT_HEAD_TABLE])
    assert head is not None and disk[BLOCK_TABLE][0][0] != integer_key(1)
    snapshot = (head, disk[SNAPSHOT_TABLE], disk.get(SET_CHANGE_TABLE, []))
    report = verify_chain(net.genesis, disk[BLOCK_TABLE], snapshot=snapshot)
    replica = net.replicas["beta"]
    assert report.ok and report.first_height == head.height + 1
    assert (report.height, report.state_root) == (replica.height, replica.state.root)
    damaged = [(disk[SNAPSHOT_TABLE][0][0], b"\x92\xc4\x00\x90"), *disk[SNAPSHOT_TABLE][1:]]
    assert not verify_chain(net.genesis, disk[BLOCK_TABLE], snapshot=(head, damaged, [])).ok
    few = replace(head, certificate=replace(head.certificate, signatures=head.certificate.signatures[:1]))
    assert not verify_chain(net.genesis, disk[BLOCK_TABLE], snapshot=(few, disk[SNAPSHOT_TABLE], [])).ok
