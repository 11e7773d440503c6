"""Requests that share transfers: the same keys as one by one; nobody waits on an idle link, or long on a busy one."""

import uuid
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import Record
from qnode.gathering import GATHER_NS_MAX, GATHERED_KEYS_MAX, UNDER_WAY_MAX
from qnode.inputs import GetKeys, GetKeysWithIds, KeysAnswer, RequestError
from qnode.relay import TAG_KEY_BYTES, TRANSFER_DEADLINE_NS
from qnode.wire import KeyTransfer, KeyTransferred, decode
from tests.qnode.virtual import Cluster, RelayNet, ring

LINE = [(0, 1), (1, 2)]


class HeldNet(RelayNet):
    """Answers to node-1 stay on their way until the test lets the oldest arrive."""

    def __init__(self, edges: list[tuple[int, int]], **options: Any) -> None:
        super().__init__(edges, **options)
        self.held: deque[tuple[str, Record]] = deque()
        self.filter = self._hold
        self.asked: list[GetKeys] = []

    def _hold(self, source: str, target: str, frame: Record) -> list[Record]:
        if target == "node-1" and isinstance(frame, KeyTransferred):
            self.held.append((source, frame))
            return []
        return [frame]

    def release(self) -> None:
        """Let the oldest answer arrive."""
        source, frame = self.held.popleft()
        self.give(source, "node-1", frame)

    def settle(self) -> None:
        """Let everything arrive."""
        while self.held:
            self.release()

    def fetch(self, slave: int = 3, number: int = 1, size_bits: int = 256) -> None:
        self.asked.append(GetKeys("sae-1", f"sae-{slave}", number, size_bits))
        self.ask("node-1", self.asked[-1])

    @property
    def transfers(self) -> list[KeyTransfer]:
        """What left node-1, in order."""
        return [frame for source, _, frame in self.seen if isinstance(frame, KeyTransfer) and source == "node-1"]

    def check(self) -> list[KeysAnswer]:
        """Compare every answer with its request and with what the slave gets; return those with keys."""
        masters = [self.answers[number] for number in sorted(self.answers)]
        assert len(masters) == len(self.asked), "every request is answered"
        served = []
        for request, answer in zip(self.asked, masters, strict=True):
            if isinstance(answer, RequestError):
                assert answer.status == 503
                continue
            assert isinstance(answer, KeysAnswer) and len(answer.keys) == request.number
            assert all(8 * len(key.key) == request.size_bits for key in answer.keys)
            key_ids = tuple(key.key_id for key in answer.keys)
            slave = request.slave_sae
            copy = self.ask(f"node-{slave[-1]}", GetKeysWithIds(slave, "sae-1", key_ids))
            assert isinstance(copy, KeysAnswer)
            assert [each.key for each in copy.keys] == [each.key for each in answer.keys]
            assert [each.key_id for each in copy.keys] == list(key_ids)
            served.append(answer)
        secrets = [key.key.reveal() for answer in served for key in answer.keys if len(key.key) >= 16]
        assert len(set(secrets)) == len(secrets), "no key twice"
        assert len(self.recorded) == sum(len(answer.keys) for answer in served), "every key is recorded once"
        return served


def test_two_leave_at_once_and_what_comes_meanwhile_goes_together() -> None:
    net = HeldNet(LINE)
    for number in (1, 1, 2, 1, 3):
        net.fetch(number=number)
    assert [len(each.key_ids) for each in net.transfers] == [1, 1], "the first two left at once, and alone"
    net.release()
    assert [len(each.key_ids) for each in net.transfers] == [1, 1, 6], "the others share one transfer"
    assert sum(region[3] for region in net.transfers[2].regions) == TAG_KEY_BYTES + 6 * 32, "and one tag key"
    net.settle()
    assert len(net.check()) == 5


def test_other_sizes_and_other_applications_do_not_wait_for_each_other() -> None:
    net = HeldNet([*LINE, (0, 2)])
    net.fetch(3, 1, 256)
    net.fetch(3, 1, 128)
    net.fetch(2, 1, 256)
    assert len(net.transfers) == 3
    net.settle()
    assert len(net.check()) == 3


def test_a_transfer_has_a_bound_and_large_requests_go_alone() -> None:
    net = HeldNet(LINE, block_bytes=40_000)
    for number in (1, 1, 100, 28, 1, 120, 10):
        net.fetch(number=number, size_bits=64)
    net.settle()
    assert [len(each.key_ids) for each in net.transfers] == [1, 1, GATHERED_KEYS_MAX, 121, 10]
    assert len(net.check()) == 7


def test_behind_a_lost_answer_nobody_waits_for_long() -> None:
    net = HeldNet(LINE)
    for _ in range(UNDER_WAY_MAX):
        net.fetch()
    net.held.clear()
    net.fetch()
    net.fetch()
    gathering = net.nodes["node-1"].gathering
    assert gathering.next_deadline_ns() == net.now_ns + GATHER_NS_MAX
    net.pass_time(GATHER_NS_MAX / 1e9)
    assert gathering.next_deadline_ns() is None
    assert [len(each.key_ids) for each in net.transfers] == [1, 1, 2]
    net.settle()
    assert {number for number, answer in net.answers.items() if isinstance(answer, KeysAnswer)} == {3, 4}
    for _ in range(3):
        net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
    net.settle()
    assert len(net.check()) == 2, "the first two have no other way to go"


def test_transfers_that_got_no_answer_are_not_tried_again_one_by_one() -> None:
    net = HeldNet(LINE)
    for _ in range(UNDER_WAY_MAX + 3):
        net.fetch()
    net.release()
    for _ in range(3):
        net.held.clear()
        net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
    assert [len(each.key_ids) for each in net.transfers] == [1, 1, 3], "the only way was tried once"
    assert len(net.check()) == 1


@pytest.mark.parametrize("number", [5, 6, 7])
def test_too_little_key_for_all_is_key_for_some(number: int) -> None:
    net = HeldNet([(0, 1)], block_bytes=2 * 6 * 64)  # six requests of one key, each with its tag key
    for _ in range(number + 5):
        net.fetch(2)
    net.settle()
    served = net.check()
    assert len(served) >= 6
    refusals = [answer for answer in net.answers.values() if isinstance(answer, RequestError)]
    assert len(served) + len(refusals) >= number + 5
    assert all("not enough key" in answer.message for answer in refusals)
    assert net.nodes["node-1"].keys.available_bytes("link-1-2") < 64, "no key is left for one more"


REQUEST = st.tuples(st.sampled_from([2, 3]), st.integers(1, 4), st.sampled_from([64, 128, 256]))
ACTIONS = st.lists(REQUEST | st.sampled_from(["answer", "time", "lose", "drop"]), max_size=30)


@settings(max_examples=120, deadline=None)
@given(ACTIONS, st.sampled_from([300, 2_000, 40_000]))
def test_any_requests_at_any_moments_get_what_they_would_get_alone(actions: list[Any], block_bytes: int) -> None:
    """Equal at both ends or at none, whatever is late, lost or short; with enough key, everything that is answered."""
    net = HeldNet(ring(3), block_bytes=block_bytes)
    whole = True
    for action in actions:
        match action:
            case (slave, number, size_bits):
                net.fetch(slave, number, size_bits)
            case "answer" if net.held:
                net.release()
            case "time":
                net.pass_time(GATHER_NS_MAX / 1e9)
            case "drop" if net.held:
                net.held.popleft()
                whole = False
            case "lose" if "node-2" in net.nodes["node-1"].context.connected:
                net.lose("node-2")
                whole = False
    for _ in range(4):
        net.settle()
        net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
    net.settle()
    served = net.check()
    if whole and block_bytes == 40_000:
        assert len(served) == len(net.asked), "with enough key everybody is served"
    assert net.nodes["node-1"].gathering.next_deadline_ns() is None
    used: set[tuple[str, int, int]] = set()
    for transfer in net.transfers:
        for link_id, block, offset, size in transfer.regions:
            places = {(link_id, block, place) for place in range(offset, offset + size)}
            assert not places & used, "no bit of key carries two transfers"
            used |= places


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["node-1", "node-2"])
def test_a_crash_at_any_moment_loses_or_burns_and_never_repeats(victim: str) -> None:
    """Bursts of requests, a crash between any two events of them, and every key that was handed out is at both ends."""
    net = Cluster(2, [(0, 1)], 1_000_000, 60_000)
    used: dict[tuple[int, int], bytes] = {}

    def note(source: str, target: str, frame: bytes) -> bytes:
        record = decode(frame)
        if isinstance(record, KeyTransfer):
            for _, block, offset, size in record.regions:
                for place in range(offset, offset + size):
                    assert used.setdefault((block, place), record.transfer_id) == record.transfer_id, "used twice"
        return frame

    net.filter = note
    delivered: dict[str, bytes] = {}
    requests: list[int] = []
    for step in range(24):
        enough = 14 * (32 + TAG_KEY_BYTES)
        assert net.run(lambda: net.link_status("node-1", "link-1-2")["available_bytes"] > enough, 30)  # noqa: B023
        requests = [net.ask("node-1", GetKeys("sae-1", "sae-2", 1 + each % 3)) for each in range(6)]
        net.run(lambda: False, 0.0004 * step)
        net.crash(victim)
        net.start(victim)
        net.run(lambda: False, 1.0)
        for number in requests:
            answer = net.answers.get(number)
            for key in answer.keys if isinstance(answer, KeysAnswer) else ():
                assert key.key_id not in delivered and key.key.reveal() not in delivered.values()
                delivered[key.key_id] = key.key.reveal()
                copy = net.answer("node-2", GetKeysWithIds("sae-2", "sae-1", (key.key_id,)))
                assert isinstance(copy, KeysAnswer) and copy.keys[0].key == key.key
    assert len(delivered) > 24, "most bursts are served in part"
    recorded = [uuid.UUID(key_id).bytes for key_id in delivered]
    assert net.run(lambda: all(node.state.delivery(key) for node in net.nodes() for key in recorded), 20)
