"""The key store at both ends of a link against plain sets of bytes, with crashes that lose what was not synced."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.entropy import SeededEntropy
from protocol.keys import KeyMaterial
from qnode import keystore
from qnode.effects import Delete, Put
from qnode.keystore import (
    CHUNK_BYTES,
    CHUNK_TABLE,
    HELD_TABLE,
    PENDING_TABLE,
    RECEIVER,
    RESERVE_BYTES,
    TABLES,
    TRANSMITTER,
    HeldKey,
    KeyStore,
    PendingBlock,
)
from qnode.vault import Vault, VaultError
from qnode.wire import Region

LINK = "link-1-2"
Writes = list[Put | Delete]


def content(number: int, size_bytes: int) -> bytes:
    return SeededEntropy(b"block%d" % number).take(size_bytes)


def pending(number: int, size_bytes: int = 5000, link: str = LINK) -> PendingBlock:
    refill = KeyMaterial(b"t" * 8), KeyMaterial(b"r" * 8)
    return PendingBlock(link, number, 100, *refill, KeyMaterial(content(number, size_bytes)))


class Machine:
    """A key store, its disk, and what waits for the sync."""

    def __init__(self, role: int, links: tuple[str, ...] = (LINK,)) -> None:
        self.roles = dict.fromkeys(links, role)
        self.disk: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self.waiting: list[tuple[Writes, Callable[[], None]]] = []
        self.vault = Vault(bytes([role]) * 32, SeededEntropy(b"vault%d" % role))
        self.restart()

    def restart(self) -> None:
        self.waiting.clear()
        self.store = self.read()

    def read(self) -> KeyStore:
        return KeyStore(self.vault, self.roles, {table: sorted(rows.items()) for table, rows in self.disk.items()})

    def do(self, writes: Writes, after: Callable[[], None] = lambda: None) -> None:
        self.waiting.append((writes, after))

    def sync(self, batches: int = 10**9) -> None:
        ready, self.waiting = self.waiting[:batches], self.waiting[batches:]
        for writes, after in ready:
            for write in writes:
                if isinstance(write, Put):
                    self.disk[write.table][write.key] = write.value
                else:
                    self.disk[write.table].pop(write.key, None)
            after()

    def now(self, writes: Writes) -> None:
        self.do(writes)
        self.sync()


def ready(role: int = TRANSMITTER, blocks: int = 1, size_bytes: int = 5000) -> Machine:
    machine = Machine(role)
    for number in range(blocks):
        machine.now(machine.store.add_pending(pending(number, size_bytes)))
        machine.now(machine.store.activate(LINK, number)[1])
    return machine


def truth(regions: tuple[Region, ...], size_bytes: int) -> bytes:
    return b"".join(content(number, size_bytes)[offset : offset + size] for _, number, offset, size in regions)


class BothEnds(RuleBasedStateMachine):
    """Transfers from either end, with crashes of either: no bit leaves twice, and both ends see the same bits."""

    sizes = st.sampled_from([1, 2, 33, 1023, 1024, 1025, 2047, 2048, 3001])

    @initialize()
    def begin(self) -> None:
        self.ends = (Machine(TRANSMITTER), Machine(RECEIVER))
        self.size: dict[int, int] = {}
        self.activated: tuple[set[int], set[int]] = (set(), set())
        self.left: dict[tuple[int, int], int] = {}  # (block, offset) → end that let the bit leave
        self.flying: list[tuple[int, tuple[Region, ...], bytes]] = []
        self.marks: dict[tuple[int, int], tuple[int, int]] = {}

    @rule(size=sizes)
    def distil(self, size: int) -> None:
        number = len(self.size)
        self.size[number] = size
        for end in self.ends:
            end.now(end.store.add_pending(pending(number, size)))

    @rule(who=st.sampled_from([0, 1]), data=st.data())
    def commit(self, who: int, data: st.DataObject) -> None:
        """Each end executes the chain at its own pace, and again after a crash that lost the execution."""
        waiting = [number for number in self.size if number not in self.activated[who]]
        if not waiting:
            return
        number, end = data.draw(st.sampled_from(waiting)), self.ends[who]
        block, writes = end.store.activate(LINK, number)
        assert block is not None and len(block.key) == self.size[number]
        end.do(writes, lambda: self.activated[who].add(number))
        end.sync() if data.draw(st.booleans()) else end.restart()

    @rule(who=st.sampled_from([0, 1]), size=st.integers(1, 2500))
    def reserve(self, who: int, size: int) -> None:
        end = self.ends[who]
        available = end.store.available_bytes(LINK)
        reserved = end.store.reserve(LINK, size)
        assert (reserved is None) == (available < size)
        if reserved is None:
            return
        regions, taken, writes = reserved
        assert end.store.available_bytes(LINK) == available - size
        assert taken == b"".join(truth((region,), self.size[region[1]]) for region in regions)

        def leave() -> None:
            for _, number, offset, length in regions:
                half = self.size[number] // 2
                for place in range(offset, offset + length):
                    assert (place >= half) == (who == 1), "each end starts from its own half"
                    assert (number, place) not in self.left, "no bit leaves twice"
                    self.left[number, place] = who
            self.flying.append((who, regions, taken))

        end.do(writes, leave)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A transfer arrives in any order, once, or not at all."""
        if not self.flying:
            return
        who, regions, taken = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        end = self.ends[1 - who]
        if data.draw(st.integers(0, 9)) == 0:
            return
        answer = end.store.take_peers(LINK, regions)
        if isinstance(answer, str):
            return
        assert answer[0] == taken, "both ends see the same bits"
        end.do(answer[1])
        again = end.store.take_peers(LINK, regions)
        assert isinstance(again, str), "and only once"

    @rule(who=st.sampled_from([0, 1]))
    def sync(self, who: int) -> None:
        self.ends[who].sync()

    @rule(who=st.sampled_from([0, 1]), batches=st.integers(0, 3))
    def crash(self, who: int, batches: int) -> None:
        self.ends[who].sync(batches)
        self.ends[who].restart()

    @invariant()
    def marks_only_grow_and_halves_stay_apart(self) -> None:
        for who, end in enumerate(self.ends):
            for number, halves in end.read()._pools[LINK].blocks.items():
                marks = (halves[0].mark, halves[1].mark)
                before = self.marks.get((who, number), (0, halves[1].start))
                assert marks[0] >= before[0] and marks[1] >= before[1]
                assert halves[0].end == halves[1].start == self.size[number] // 2
                self.marks[who, number] = marks

    @invariant()
    def what_left_is_below_the_durable_mark(self) -> None:
        stored = [end.read()._pools[LINK].blocks for end in self.ends]
        for (number, place), who in self.left.items():
            if number in stored[who]:
                assert place < stored[who][number][who].mark
            else:
                assert number in self.activated[who], "a block that is gone was used up"

    @invariant()
    def chunks_on_disk_hold_unused_key_only(self) -> None:
        for end in self.ends:
            blocks = end.read()._pools[LINK].blocks
            for row in end.disk[CHUNK_TABLE]:
                number, start = int.from_bytes(row[-16:-8], "big"), int.from_bytes(row[-8:], "big")
                assert number in blocks
                half = next(half for half in blocks[number] if half.start <= start < half.end)
                assert min(start + CHUNK_BYTES, half.end) > half.mark, "a used chunk is deleted"


TestBothEnds = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---- blocks


def test_a_pending_block_is_not_usable_and_survives_a_restart() -> None:
    machine = Machine(TRANSMITTER)
    machine.now(machine.store.add_pending(pending(3)))
    for _ in range(2):
        assert machine.store.available_bytes(LINK) == 0
        assert machine.store.reserve(LINK, 1) is None
        assert machine.store.pending_blocks() == [(LINK, 3, 100)]
        machine.restart()
    block, writes = machine.store.activate(LINK, 3)
    assert block == pending(3)
    machine.now(writes)
    assert not machine.disk[PENDING_TABLE]
    assert machine.store.activate(LINK, 3) == (None, [])
    assert machine.store.available_bytes(LINK) == machine.store.available_bytes(LINK, own=False) == 2500


def test_a_discarded_block_is_gone() -> None:
    machine = Machine(TRANSMITTER)
    block = pending(3)
    machine.now(machine.store.add_pending(block))
    machine.now(machine.store.discard(LINK, 3))
    assert len(block.key) == len(block.refill_receiver) == 0, "wiped in memory"
    assert not any(machine.disk.values())
    assert machine.store.discard(LINK, 3) == [] and machine.store.activate(LINK, 3) == (None, [])


@pytest.mark.parametrize("size_bytes", [1, 2, 3, 33, 1024, 2048, 2049, 4097])
def test_the_halves_cover_a_block_of_any_size(size_bytes: int) -> None:
    ends = ready(TRANSMITTER, 1, size_bytes), ready(RECEIVER, 1, size_bytes)
    taken = []
    for end in ends:
        size = end.store.available_bytes(LINK)
        if size:
            reserved = end.store.reserve(LINK, size)
            assert reserved is not None
            taken.append(reserved[1])
    assert b"".join(taken) == content(0, size_bytes)


def test_a_block_that_is_used_up_leaves_nothing() -> None:
    machine = ready()
    for own in (True, False):
        while size := min(700, machine.store.available_bytes(LINK, own=own)):
            if own:
                reserved = machine.store.reserve(LINK, size)
                assert reserved is not None
                machine.now(reserved[2])
            else:
                mark = machine.store._pools[LINK].blocks[0][1].mark
                taken = machine.store.take_peers(LINK, ((LINK, 0, mark, size),))
                assert not isinstance(taken, str)
                machine.now(taken[1])
    assert not any(machine.disk.values())
    assert machine.read().available_bytes(LINK) == 0


def test_used_key_is_overwritten_in_memory() -> None:
    machine = ready()
    half = machine.store._pools[LINK].blocks[0][0]
    machine.store.reserve(LINK, 100)
    assert bytes(half.bits[:100]) == bytes(100) and bytes(half.bits[100:]) == content(0, 5000)[100:2500]


def test_a_reservation_spans_blocks_oldest_first() -> None:
    machine = ready(blocks=3, size_bytes=100)
    reserved = machine.store.reserve(LINK, 120)
    assert reserved is not None
    assert reserved[0] == ((LINK, 0, 0, 50), (LINK, 1, 0, 50), (LINK, 2, 0, 20))
    assert reserved[1] == truth(reserved[0], 100)


@pytest.mark.parametrize(
    "regions",
    [
        ((LINK, 0, 0, 10),),
        ((LINK, 0, 2500, 2501),),
        ((LINK, 0, 5000, 1),),
        ((LINK, 0, 2500, 0),),
        ((LINK, 9, 2500, 10),),
        (("link-1-3", 0, 2500, 10),),
        ((LINK, 0, 2500, 10), (LINK, 0, 2509, 10)),
        ((LINK, 0, 2600, 10), (LINK, 0, 2500, 10)),
        ((LINK, 0, 2500, 10), (LINK, 0, 2500, 10)),
        ((LINK, 0, 2500, 2500), (LINK, 0, 2500, 1)),
        ((LINK, 0, 2500, 10), ("link-1-3", 0, 2500, 10)),
        ((LINK, 0, 2**63 - 1, 2**63 - 1),),
    ],
    ids=str,
)
def test_regions_that_the_peer_may_not_use_are_refused_and_cost_nothing(regions: tuple[Region, ...]) -> None:
    machine = ready()
    before = machine.store.available_bytes(LINK), machine.store.available_bytes(LINK, own=False)
    assert isinstance(machine.store.take_peers(LINK, regions), str)
    assert (machine.store.available_bytes(LINK), machine.store.available_bytes(LINK, own=False)) == before


def test_key_that_the_peer_skipped_is_burned() -> None:
    machine = ready()
    taken = machine.store.take_peers(LINK, ((LINK, 0, 3000, 10),))
    assert not isinstance(taken, str) and taken[0] == content(0, 5000)[3000:3010]
    assert machine.store.available_bytes(LINK, own=False) == 5000 - 3010
    assert isinstance(machine.store.take_peers(LINK, ((LINK, 0, 2500, 10),)), str)


def test_a_missing_or_moved_chunk_is_refused_with_the_way_out() -> None:
    machine = ready()
    rows = dict(machine.disk[CHUNK_TABLE])
    for row in rows:
        machine.disk[CHUNK_TABLE] = {key: value for key, value in rows.items() if key != row}
        with pytest.raises(VaultError, match="restore the state directory"):
            machine.read()
    first, second = list(rows)[:2]
    machine.disk[CHUNK_TABLE] = rows | {first: rows[second], second: rows[first]}
    with pytest.raises(VaultError):
        machine.read()


def test_nothing_on_disk_shows_key() -> None:
    machine = ready()
    machine.now(machine.store.add_pending(pending(7)))
    machine.now(must(machine.store.hold([held(1)])))
    stored = b"".join(key + value for rows in machine.disk.values() for key, value in rows.items())
    for secret in (content(0, 5000), content(7, 5000), content(1001, 32)):
        assert all(secret[start : start + 16] not in stored for start in range(0, len(secret) - 16, 16))


def test_links_do_not_share_key() -> None:
    machine = Machine(TRANSMITTER, ("a", "b"))
    machine.now(machine.store.add_pending(pending(0, 100, "a")))
    machine.now(machine.store.activate("a", 0)[1])
    machine.restart()
    assert machine.store.available_bytes("a") == 50 and machine.store.available_bytes("b") == 0
    assert machine.store.reserve("b", 1) is None


# ---- keys that wait for applications


def held(index: int, waiting: tuple[str, ...] = ("sae-3",), expires_ns: int = 1000) -> HeldKey:
    return HeldKey(bytes([index]) * 16, KeyMaterial(content(1000 + index, 32)), "sae-1", waiting, expires_ns)


def must(writes: Writes | str) -> Writes:
    assert not isinstance(writes, str)
    return writes


class WaitingKeys(RuleBasedStateMachine):
    """Held keys against a dictionary: each is handed out once per application, across crashes."""

    saes = st.sampled_from(["sae-2", "sae-3", "sae-4"])

    @initialize()
    def begin(self) -> None:
        self.machine = Machine(TRANSMITTER)
        self.model: dict[bytes, tuple[set[str], int]] = {}  # durable: who still waits, and until when
        self.answered: set[tuple[bytes, str]] = set()
        self.made = 0

    @rule(waiting=st.sets(saes, min_size=1), expires=st.integers(1, 100))
    def hold(self, waiting: set[str], expires: int) -> None:
        self.made = self.made % 250 + 1
        key = held(self.made, tuple(sorted(waiting)), expires)
        self.machine.do(
            must(self.machine.store.hold([key])), lambda: self.model.__setitem__(key.key_id, (waiting, expires))
        )

    @rule(caller=saes, data=st.data())
    def deliver(self, caller: str, data: st.DataObject) -> None:
        known = sorted(self.model) or [b"\xff" * 16]
        ids = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        answer = self.machine.store.deliver(caller, "sae-1", ids)
        if not self.machine.waiting:
            assert (answer is not None) == all(caller in self.model.get(key, (set(), 0))[0] for key in ids)
        if answer is None:
            return
        keys, writes = answer
        assert [(key, secret.reveal()) for key, secret in keys] == [(key, content(1000 + key[0], 32)) for key in ids]

        def leave() -> None:
            for key in ids:
                assert (key, caller) not in self.answered, "once per application"
                self.answered.add((key, caller))
                self.model[key][0].discard(caller)
                if not self.model[key][0]:
                    del self.model[key]

        self.machine.do(writes, leave)

    @rule(now=st.integers(1, 100))
    def expire(self, now: int) -> None:
        def forget() -> None:
            self.model = {key: value for key, value in self.model.items() if value[1] > now}

        self.machine.sync()
        self.machine.do(self.machine.store.expire_held(now), forget)
        self.machine.sync()

    @rule()
    def sync(self) -> None:
        self.machine.sync()

    @rule(batches=st.integers(0, 3))
    def crash(self, batches: int) -> None:
        self.machine.sync(batches)
        self.machine.restart()

    @invariant()
    def the_disk_is_the_model(self) -> None:
        assert set(self.machine.disk[HELD_TABLE]) == set(self.model)
        stored = self.machine.read()
        assert stored.held_count == len(self.model)


TestWaitingKeys = WaitingKeys.TestCase
TestWaitingKeys.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    ("caller", "master", "ids"),
    [
        ("sae-2", "sae-1", [1]),
        ("sae-3", "sae-2", [1]),
        ("sae-1", "sae-1", [1]),
        ("sae-3", "sae-1", [1, 9]),
        ("sae-3", "sae-1", [1, 1]),
        ("", "sae-1", [1]),
    ],
)
def test_who_may_not_have_a_key_gets_none_and_takes_none_away(caller: str, master: str, ids: list[int]) -> None:
    machine = Machine(TRANSMITTER)
    machine.now(must(machine.store.hold([held(1), held(2)])))
    assert machine.store.deliver(caller, master, [bytes([index]) * 16 for index in ids]) is None
    assert machine.store.deliver("sae-3", "sae-1", [b"\1" * 16, b"\2" * 16]) is not None


def test_no_key_is_replaced_and_none_is_dropped_for_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(TRANSMITTER)
    machine.now(must(machine.store.hold([held(1)])))
    assert machine.store.hold([held(2), held(1)]) == "a key of this ID exists"
    assert machine.store.held_count == 1
    monkeypatch.setattr(keystore, "HELD_KEYS_MAX", 2)
    assert isinstance(machine.store.hold([held(2), held(3)]), str)
    must(machine.store.hold([held(2)]))
    assert isinstance(machine.store.hold([held(3)]), str)


def test_expired_keys_are_destroyed_at_their_time() -> None:
    machine = Machine(TRANSMITTER)
    keys = [held(1, expires_ns=10), held(2, expires_ns=11)]
    machine.now(must(machine.store.hold(keys)))
    machine.now(machine.store.expire_held(10))
    assert list(machine.disk[HELD_TABLE]) == [keys[1].key_id]
    assert len(keys[0].key) == 0, "wiped in memory"
    assert machine.store.deliver("sae-3", "sae-1", [keys[0].key_id]) is None


def test_records_do_not_show_their_key() -> None:
    things: list[Any] = [pending(1), held(1)]
    for thing in things:
        assert "redacted" in repr(thing)
        assert repr(thing.key.reveal())[2:14] not in repr(thing)


def test_the_stored_mark_runs_ahead_so_that_most_requests_wait_for_no_sync() -> None:
    machine = ready()
    syncs = 0
    for _ in range(30):
        reserved = machine.store.reserve(LINK, 64)
        assert reserved is not None
        machine.now(reserved[2])
        syncs += bool(reserved[2])
    assert syncs == 2, "once per 17 keys: the one that asks, and sixteen ahead of it"
    before = machine.store.available_bytes(LINK)
    machine.restart()
    assert before - RESERVE_BYTES <= machine.store.available_bytes(LINK) < before
    reserved = machine.store.reserve(LINK, 64)
    assert reserved is not None and reserved[0][0][2] >= 30 * 64, "nothing comes back"


@pytest.mark.parametrize("size", [1, 500, 1024, 2000, 2499])
def test_a_block_whose_last_key_is_taken_leaves_nothing_on_the_disk(size: int) -> None:
    """Also when the end before was stored as used ahead of use, and after a restart in between."""
    machine = ready()
    for first in (size, None):
        amount = machine.store.available_bytes(LINK) if first is None else first
        reserved = machine.store.reserve(LINK, amount)
        assert reserved is not None
        machine.now(reserved[2])
        taken = machine.store.take_peers(
            LINK, [(LINK, 0, 2500 if first else 2500 + size, size if first else 2500 - size)]
        )
        assert not isinstance(taken, str)
        machine.now(taken[1])
        machine.restart()
    assert not machine.disk[CHUNK_TABLE] and not machine.disk[keystore.MARK_TABLE]
    assert machine.store.available_blocks() == []
