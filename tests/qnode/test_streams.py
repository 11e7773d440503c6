"""The authentication streams against a list of bytes, with a crash at every point."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.entropy import SeededEntropy
from qnode.effects import Delete, Put
from qnode.streams import POSITION_TABLE, RESERVE_BYTES, SEGMENT_TABLE, AuthenticationStream
from qnode.vault import Vault, VaultError

Disk = dict[tuple[str, bytes], bytes]
VAULT = Vault(b"\7" * 32, SeededEntropy(b"vault"))
CONTENT = SeededEntropy(b"stream").take(200_000)


def apply(disk: Disk, writes: list[Put | Delete]) -> None:
    for write in writes:
        if isinstance(write, Put):
            disk[write.table, write.key] = write.value
        else:
            disk.pop((write.table, write.key), None)


def restore(disk: Disk, direction: str = "transmitter", reserve: int = RESERVE_BYTES) -> AuthenticationStream:
    stored: dict[str, list[tuple[bytes, bytes]]] = {SEGMENT_TABLE: [], POSITION_TABLE: []}
    for (table, key), value in sorted(disk.items()):
        stored[table].append((key, value))
    return AuthenticationStream.restore("link", direction, VAULT, reserve, stored)


def filled(size_bytes: int, reserve: int = RESERVE_BYTES) -> tuple[AuthenticationStream, Disk]:
    disk: Disk = {}
    stream = restore(disk, reserve=reserve)
    apply(disk, stream.append(CONTENT[:size_bytes]))
    return stream, disk


class SenderOfAStream(RuleBasedStateMachine):
    """One end that sends. The model: the bytes that ever existed, and how far they have left the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.disk = filled(600)
        self.appended = 600
        self.unsynced: list[tuple[list[Put | Delete], Callable[[], None]]] = []
        self.left = 0  # bytes below were used by messages that left
        self.start = 0
        self.used = 0
        self.running = False

    def later(self, writes: list[Put | Delete], after: Callable[[], None] = lambda: None) -> None:
        self.unsynced.append((writes, after))

    @precondition(lambda self: not self.running)
    @rule(skip=st.integers(0, 40))
    def begin(self, skip: int) -> None:
        """A session begins at the position, or later where the other end asks for it."""
        self.start, self.used, self.running = self.stream.position + skip, 0, True
        window = self.stream.window(self.start, 500)
        assert window == CONTENT[: self.appended][self.start : self.start + 500]
        assert self.start >= self.left, "a byte that left is never offered again"

    @precondition(lambda self: self.running)
    @rule(messages=st.integers(1, 20))
    def send(self, messages: int) -> None:
        window = self.stream.window(self.start, 500)
        used = min(self.used + 16 * messages, len(window))
        if used == self.used:
            return
        self.used, end = used, self.start + used

        def leave() -> None:
            self.left = max(self.left, end)

        self.later(self.stream.reserve(end), leave)

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        self.later(self.stream.advance(self.start + self.used))
        self.running = False

    @rule(size=st.integers(0, 700))
    def refill(self, size: int) -> None:
        size = min(size, len(CONTENT) - self.appended)
        self.later(self.stream.append(CONTENT[self.appended : self.appended + size]))
        self.appended += size

    @rule()
    def sync(self) -> None:
        while self.unsynced:
            writes, after = self.unsynced.pop(0)
            apply(self.disk, writes)
            after()

    @rule(batches=st.integers(0, 5))
    def crash(self, batches: int) -> None:
        """Some batches in order reached the disk; the messages of the last of them may or may not have left."""
        for writes, after in self.unsynced[:batches]:
            apply(self.disk, writes)
            after()
        self.unsynced.clear()
        self.running = False
        self.stream = restore(self.disk)
        self.appended = self.stream.end  # the chain repeats what was not stored, in the same order

    @invariant()
    def used_bytes_never_come_back(self) -> None:
        if not self.running:
            assert self.stream.position >= self.left
        assert restore(self.disk).position >= self.left, "durable before use"

    @invariant()
    def content_stays_where_it_was(self) -> None:
        assert self.stream.end == self.appended
        assert (
            self.stream.window(self.stream.position, 10_000)
            == CONTENT[: self.appended][self.stream.position :][:10_000]
        )
        assert self.stream.available_bytes == max(0, self.appended - self.stream.position)

    @invariant()
    def used_segments_are_destroyed(self) -> None:
        rows = [key for table, key in self.disk if table == SEGMENT_TABLE]
        assert rows, "the last segment stays: it says where the stream ends"


TestSenderOfAStream = SenderOfAStream.TestCase
TestSenderOfAStream.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_both_ends_hold_the_same_bytes_at_the_same_offsets() -> None:
    sender, _ = filled(700)
    receiver, _ = filled(700, reserve=0)
    sender.advance(123)
    receiver.advance(77)
    for end in (sender, receiver):
        end.append(CONTENT[700:1500])
    assert sender.end == receiver.end == 1500
    assert sender.window(200, 900) == receiver.window(200, 900) == CONTENT[200:1100]


def test_a_refill_after_a_crash_beyond_the_end_keeps_the_offsets() -> None:
    """The reservation passed the end of the stream: bytes below it are lost, those above keep their places."""
    stream, disk = filled(100)
    apply(disk, stream.reserve(96))
    stream = restore(disk)
    assert stream.position == 96 + RESERVE_BYTES and stream.end == 100
    assert stream.available_bytes == 0 and stream.window(stream.position, 100) == b""
    apply(disk, stream.append(CONTENT[100:600]))
    assert stream.available_bytes == 0
    apply(disk, stream.append(CONTENT[600:2000]))
    for each in (stream, restore(disk)):
        assert each.window(each.position, 50) == CONTENT[each.position : each.position + 50]
        assert each.available_bytes == 2000 - 96 - RESERVE_BYTES


def test_a_crash_wastes_at_most_one_reservation() -> None:
    stream, disk = filled(50_000)
    for end in range(16, 40_000, 16):
        apply(disk, stream.reserve(end))
        assert end <= restore(disk).position <= end + RESERVE_BYTES


def test_one_write_covers_a_reservation() -> None:
    stream, _ = filled(50_000)
    assert len(stream.reserve(16)) == 1
    assert sum(len(stream.reserve(end)) for end in range(32, RESERVE_BYTES + 16, 16)) == 0
    assert len(stream.reserve(RESERVE_BYTES + 32)) == 1


def test_used_bytes_are_refused_by_assertion() -> None:
    stream, _ = filled(1000)
    stream.advance(100)
    with pytest.raises(AssertionError, match="never offered twice"):
        stream.window(99, 1)
    with pytest.raises(AssertionError, match="never goes backwards"):
        stream.advance(99)


def test_segments_that_are_used_up_leave_the_disk() -> None:
    stream, disk = filled(100)
    apply(disk, stream.append(CONTENT[100:300]))
    apply(disk, stream.append(CONTENT[300:400]))
    apply(disk, stream.advance(300))
    assert sum(table == SEGMENT_TABLE for table, _ in disk) == 1
    assert restore(disk).end == 400


def test_streams_of_one_node_do_not_mix() -> None:
    disk: Disk = {}
    names = [("link", "transmitter"), ("link", "receiver"), ("link-1", "transmitter")]
    for index, (link, direction) in enumerate(names):
        stream = AuthenticationStream(link, direction, VAULT, RESERVE_BYTES)
        apply(disk, stream.append(bytes([index]) * 64))
        apply(disk, stream.advance(index + 1))
    stored = {
        table: [(key, value) for (name, key), value in sorted(disk.items()) if name == table]
        for table in (SEGMENT_TABLE, POSITION_TABLE)
    }
    for index, (link, direction) in enumerate(names):
        stream = AuthenticationStream.restore(link, direction, VAULT, RESERVE_BYTES, stored)
        assert stream.end == 64 and stream.position == index + 1 + RESERVE_BYTES


def test_stored_segments_are_sealed() -> None:
    _, disk = filled(64)
    value = disk[next(key for key in disk if key[0] == SEGMENT_TABLE)]
    assert CONTENT[:16] not in value
    other = Vault(b"\10" * 32, SeededEntropy(b"vault"))
    stored = {SEGMENT_TABLE: [(key[1], value) for key, value in disk.items()]}
    with pytest.raises(VaultError):
        AuthenticationStream.restore("link", "transmitter", other, 0, stored)
