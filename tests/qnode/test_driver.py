"""The only executor of effects, with a node, a disk and a transport that record the order of everything."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ledger.encoding import pack
from qnode import driver as driver_module
from qnode import wire
from qnode.driver import PEER_INPUTS_MAX, ROUND_INPUTS_MAX, ROUND_RECORDS_MAX, Driver, Stopped, TooManyRequests
from qnode.effects import Delete, Disconnect, Effect, Log, Put, Respond, RunJob, SendTo, TrafficClass
from qnode.inputs import (
    DocumentAnswer,
    FrameReceived,
    GetNodeStatus,
    Input,
    JobDone,
    PeerConnected,
    PeerLost,
    Requested,
    SubmitTransactions,
    Ticked,
)
from qnode.io.jobs import Jobs

PUT = Put("t", b"k", b"v")
ANSWER = DocumentAnswer({})


def send(name: str, *, after_sync: bool = True) -> SendTo:
    return SendTo("peer", TrafficClass.SESSION, name.encode(), after_sync)


class FakeNode:
    """Answers every input with what `script` says; keeps what it was told."""

    def __init__(self, birth: Sequence[Effect] = ()) -> None:
        self.birth = list(birth)
        self.inputs: list[Input] = []
        self.script: Callable[[Input], list[Effect]] = lambda happened: []
        self.deadline_ns = 1 << 62
        self.admissions: list[tuple[int, int]] = []

    def take_birth_effects(self) -> list[Effect]:
        return self.birth

    def step(self, now_ns: int, happened: Input) -> list[Effect]:
        self.inputs.append(happened)
        return self.script(happened)

    def next_deadline_ns(self) -> int:
        return self.deadline_ns


class FakeStorage:
    """A disk whose syncs end when the test says so."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.commits: list[list[Put | Delete]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.failure: Exception | None = None
        self.is_quick = False

    def commit_here(self, writes: list[Put | Delete]) -> bool:
        if self.is_quick:
            self.commits.append(list(writes))
            self.events.append(f"commit {len(writes)} here")
        return self.is_quick

    async def commit(self, writes: list[Put | Delete]) -> None:
        self.begun.set()
        self.events.append(f"commit {len(writes)}")
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.commits.append(list(writes))
        self.events.append("synced")


class FakeTransport:
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def send(self, peer: str, traffic: TrafficClass, frame: bytes) -> bool:
        self.events.append(f"send {frame.decode()}")
        return True

    def disconnect(self, peer: str, reason: str) -> None:
        self.events.append(f"disconnect {peer}")

    def pause_reading(self, peer: str) -> None:
        self.events.append(f"pause {peer}")

    def resume_reading(self, peer: str) -> None:
        self.events.append(f"resume {peer}")


class FakeLog:
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def log(self, level: int, event: str, **fields: object) -> None:
        self.events.append(f"log {level} {event} {fields}")


class Rig:
    """A driver with everything around it faked but the event loop and the job threads."""

    def __init__(self, birth: Sequence[Effect] = ()) -> None:
        self.events: list[str] = []
        self.node = FakeNode(birth)
        self.storage = FakeStorage(self.events)
        self.jobs = Jobs(2)
        self.now_ns = 0
        node: Any = self.node
        storage: Any = self.storage
        self.driver = Driver(node, storage, self.jobs, lambda: self.now_ns, FakeLog(self.events))
        self.driver.attach(FakeTransport(self.events))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until the condition holds; a driver that hangs fails by the time-out."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  turns of the loop are what is waited for
                await asyncio.sleep(0)


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    task = asyncio.ensure_future(rig.driver.run())
    try:
        yield rig
    finally:
        rig.driver.stop()
        rig.storage.gate.set()
        await asyncio.gather(task, return_exceptions=True)
        await rig.jobs.close()


async def test_what_a_step_admits_is_counted_from_its_arrival() -> None:
    rig = Rig()
    rig.now_ns = 1_000

    def script(happened: Input) -> list[Effect]:
        if isinstance(happened, FrameReceived):
            rig.now_ns = 1_700
            rig.node.admissions = [(3, happened.arrived_ns)]
        return []

    rig.node.script = script
    async with running(rig):
        rig.driver.frame_received("peer", b"bundle")
        await rig.until(lambda: rig.driver.figures.validated_transactions == 3)
    assert rig.driver.figures.validate_ns == 3 * 700 and rig.driver.figures.validate_wait_ns == 3 * 0


async def test_writes_are_synced_between_early_and_late_sends() -> None:
    rig = Rig()
    rig.node.script = lambda happened: [
        send("late one"),
        PUT,
        send("early", after_sync=False),
        Disconnect("bad", "why"),
        Delete("t", b"k"),
        send("late two"),
        Log("warning", "said", (("n", 1),)),
    ]
    async with running(rig):
        rig.driver.peer_connected("peer")
        await rig.until(lambda: "send late two" in rig.events)
    assert rig.events == [
        "send early",
        f"log {logging.WARNING} said {{'n': 1}}",
        "commit 2",
        "synced",
        "send late one",
        "disconnect bad",
        "send late two",
    ]
    assert rig.storage.commits == [[PUT, Delete("t", b"k")]]


async def test_what_need_not_wait_is_with_the_sockets_before_a_quick_disk() -> None:
    rig = Rig()
    rig.storage.is_quick = True

    def script(happened: Input) -> list[Effect]:
        asyncio.get_running_loop().call_soon(rig.events.append, "sockets written")  # as connections do
        return [send("late"), PUT, send("early", after_sync=False)]

    rig.node.script = script
    async with running(rig):
        rig.driver.peer_connected("peer")
        await rig.until(lambda: "send late" in rig.events)
    assert rig.events == ["send early", "sockets written", "commit 1 here", "send late"]


async def test_nothing_that_waits_for_the_disk_leaves_before_it() -> None:
    rig = Rig()
    rig.storage.gate.clear()
    rig.node.script = lambda happened: [PUT, send("late"), *respond(happened)]
    async with running(rig):
        asked = asyncio.ensure_future(rig.driver.ask(GetNodeStatus()))
        await rig.storage.begun.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.events == ["commit 1"] and not asked.done()
        rig.storage.gate.set()
        assert await asked == ANSWER
        assert rig.events == ["commit 1", "synced", "send late"]


def respond(happened: Input) -> list[Effect]:
    return [Respond(happened.request_id, ANSWER)] if isinstance(happened, Requested) else []


async def test_without_writes_there_is_no_sync() -> None:
    rig = Rig()
    rig.node.script = lambda happened: [send("late")]
    async with running(rig):
        rig.driver.peer_connected("peer")
        await rig.until(lambda: "send late" in rig.events)
    assert rig.events == ["send late"] and rig.driver.figures.syncs == 0


async def test_what_the_birth_wants_is_done_first() -> None:
    rig = Rig(birth=[send("hello"), PUT])
    rig.driver.peer_connected("peer")
    rig.node.script = lambda happened: [send("later")]
    async with running(rig):
        await rig.until(lambda: "send later" in rig.events)
    assert rig.events == ["commit 1", "synced", "send hello", "send later"]


async def test_inputs_that_arrive_during_a_sync_share_the_next_one() -> None:
    rig = Rig()
    rig.storage.gate.clear()
    rig.node.script = lambda happened: [Put("t", b"%d" % len(rig.node.inputs), b"")]
    async with running(rig):
        rig.driver.frame_received("a", b"first")
        await rig.storage.begun.wait()
        for index in range(10):
            rig.driver.frame_received("a", b"%d" % index)
        rig.storage.gate.set()
        await rig.until(lambda: len(rig.node.inputs) == 11 and len(rig.storage.commits) == 2)
    assert [len(commit) for commit in rig.storage.commits] == [1, 10]
    assert rig.driver.figures.syncs == 2 and rig.driver.figures.writes == 11 and rig.driver.figures.inputs == 11


async def test_a_round_is_bounded_and_keeps_the_order() -> None:
    rig = Rig()
    count = 2 * ROUND_INPUTS_MAX + 7
    rig.node.script = lambda happened: [PUT]
    for index in range(count):
        rig.driver.frame_received(f"peer {index % 3}", b"%d" % index)
    async with running(rig):
        await rig.until(lambda: sum(map(len, rig.storage.commits)) == count)
    assert [len(commit) for commit in rig.storage.commits] == [ROUND_INPUTS_MAX, ROUND_INPUTS_MAX, 7]
    frames = [int(happened.frame) for happened in rig.node.inputs if isinstance(happened, FrameReceived)]
    assert frames == list(range(count))


async def test_what_fills_the_mempool_goes_before_the_rest_of_its_round() -> None:
    rig = Rig()
    bundle, vote = (wire.encode(wire.LedgerFrame(pack((kind, b"")))) for kind in (3, 1))
    async with running(rig):
        rig.driver.frame_received("a", vote)
        rig.driver.frame_received("b", bundle)
        asked = asyncio.ensure_future(rig.driver.ask(GetNodeStatus()))
        submitted = asyncio.ensure_future(rig.driver.ask(SubmitTransactions((b"",))))
        rig.driver.frame_received("a", bundle)
        await rig.until(lambda: len(rig.node.inputs) == 5)
        asked.cancel()
        submitted.cancel()
    kinds = [each.frame if isinstance(each, FrameReceived) else type(each.request) for each in rig.node.inputs]  # type: ignore[union-attr]
    assert sorted(kinds[:3], key=str) == sorted([bundle, SubmitTransactions, bundle], key=str)
    assert kinds[3:] in ([vote, GetNodeStatus], [GetNodeStatus, vote])
    assert [each.peer for each in rig.node.inputs if isinstance(each, FrameReceived)] == ["b", "a", "a"]


BUNDLE = wire.encode(wire.LedgerFrame(pack((3, b""))))


async def test_records_are_taken_in_during_a_sync_and_what_follows_waits_for_the_next_one() -> None:
    rig = Rig()
    rig.storage.gate.clear()
    rig.node.script = lambda happened: [
        Put("t", b"%d" % len(rig.node.inputs), b""),
        send(f"early {len(rig.node.inputs)}", after_sync=False),
        send(f"late {len(rig.node.inputs)}"),
    ]
    async with running(rig):
        rig.driver.frame_received("a", b"vote")
        await rig.storage.begun.wait()
        rig.driver.frame_received("a", b"another")
        rig.driver.frame_received("b", BUNDLE)
        await rig.until(lambda: len(rig.node.inputs) == 2)
        assert rig.node.inputs[1] == FrameReceived("b", BUNDLE, 0) and rig.events == ["send early 1", "commit 1"]
        rig.storage.gate.set()
        await rig.until(lambda: "send late 3" in rig.events)
    assert rig.events[2:] == [
        *("synced", "send late 1"),
        *("send early 2", "send early 3", "commit 2", "synced", "send late 2", "send late 3"),
    ]
    assert rig.driver.figures.inputs == 3


async def test_what_follows_from_records_during_a_sync_needs_no_other_input() -> None:
    rig = Rig()
    rig.storage.gate.clear()
    rig.node.script = lambda happened: [PUT, send(f"late {len(rig.node.inputs)}")]
    async with running(rig):
        rig.driver.frame_received("a", b"vote")
        await rig.storage.begun.wait()
        rig.driver.frame_received("b", BUNDLE)
        await rig.until(lambda: len(rig.node.inputs) == 2)
        rig.storage.gate.set()
        await rig.until(lambda: "send late 2" in rig.events)


async def test_a_flood_of_records_keeps_nothing_else_waiting() -> None:
    rig = Rig()
    rig.storage.gate.clear()
    rig.node.script = lambda happened: [PUT]
    count = 3 * ROUND_RECORDS_MAX
    rig.driver.frame_received("a", b"first")
    async with running(rig):
        await rig.storage.begun.wait()
        for index in range(count):
            rig.driver.frame_received(f"peer {index}", BUNDLE)
        rig.driver.frame_received("a", b"vote")
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(rig.node.inputs) == 1 + ROUND_RECORDS_MAX, "so many during a sync"
        rig.storage.gate.set()
        await rig.until(lambda: len(rig.node.inputs) == 2 + count)
    places = [i for i, each in enumerate(rig.node.inputs) if isinstance(each, FrameReceived) and each.frame == b"vote"]
    assert places == [1 + 2 * ROUND_RECORDS_MAX], "and so many in a round"


async def test_a_disk_that_fails_while_records_are_taken_in_is_fatal() -> None:
    rig = Rig()
    rig.storage.gate.clear()
    rig.node.script = lambda happened: [PUT, send("promise")]
    task = asyncio.ensure_future(rig.driver.run())
    rig.driver.frame_received("a", b"vote")
    await rig.storage.begun.wait()
    rig.driver.frame_received("b", BUNDLE)
    await rig.until(lambda: len(rig.node.inputs) == 2)
    rig.storage.failure = OSError("disk full")
    rig.storage.gate.set()
    with pytest.raises(OSError, match="disk full"):
        await task
    assert rig.events == ["commit 1"]
    await rig.jobs.close()


async def test_a_peer_that_floods_is_read_no_further_until_half_is_done() -> None:
    rig = Rig()
    for index in range(PEER_INPUTS_MAX + 50):
        rig.driver.frame_received("flood", b"%d" % index)
    rig.driver.frame_received("quiet", b"0")
    assert rig.events == ["pause flood"]
    resumed_at: list[int] = []

    def script(happened: Input) -> list[Effect]:
        if "resume flood" in rig.events and not resumed_at:
            resumed_at.append(len(rig.node.inputs))
        return []

    rig.node.script = script
    async with running(rig):
        await rig.until(lambda: len(rig.node.inputs) == PEER_INPUTS_MAX + 51)
    assert rig.events == ["pause flood", "resume flood"]
    # Seen by the step that follows within the same input: half of the bound still waited then.
    assert resumed_at == [PEER_INPUTS_MAX + 50 - PEER_INPUTS_MAX // 2]


async def test_a_lost_peer_does_not_stay_paused() -> None:
    rig = Rig()
    for _ in range(PEER_INPUTS_MAX):
        rig.driver.frame_received("flood", b"")
    rig.driver.peer_lost("flood", "gone")
    async with running(rig):
        await rig.until(lambda: PeerLost("flood", "gone") in rig.node.inputs)
        for _ in range(PEER_INPUTS_MAX):
            rig.driver.frame_received("flood", b"")
        assert rig.events == ["pause flood", "pause flood"]


async def test_jobs_run_off_the_loop_and_come_back_as_inputs() -> None:
    rig = Rig()
    failure = ValueError("work")

    def fail() -> None:
        raise failure

    rig.storage.gate.clear()  # a job does not wait for the disk
    rig.node.script = lambda happened: (
        [PUT, RunJob(1, lambda: 41 + 1), RunJob(2, fail)] if isinstance(happened, PeerConnected) else []
    )
    async with running(rig):
        rig.driver.peer_connected("peer")
        await rig.storage.begun.wait()
        await rig.until(lambda: rig.jobs.running_count == 0)
        assert not any(isinstance(happened, JobDone) for happened in rig.node.inputs), "one round at a time"
        rig.storage.gate.set()
        await rig.until(lambda: len(rig.node.inputs) == 3)
    done = {happened.job_id: happened for happened in rig.node.inputs if isinstance(happened, JobDone)}
    assert done[1] == JobDone(1, 42) and done[2].error is failure


async def test_the_deadline_wakes_the_node_and_only_then() -> None:
    rig = Rig()
    rig.node.deadline_ns = 1_000_000
    async with running(rig):
        await rig.until(lambda: rig.driver.figures.rounds > 0)
        assert rig.node.inputs == [], "the timer came early: not yet"
        rig.now_ns = 1_000_000

        def script(happened: Input) -> list[Effect]:
            rig.node.deadline_ns = 1 << 62
            return []

        rig.node.script = script
        await rig.until(lambda: rig.node.inputs == [Ticked()])
        rounds = rig.driver.figures.rounds
        for _ in range(50):
            await asyncio.sleep(0)
        assert rig.driver.figures.rounds == rounds, "and then it sleeps"


async def test_requests_are_answered_by_number_and_in_any_order() -> None:
    rig = Rig()
    waiting: list[int] = []

    def script(happened: Input) -> list[Effect]:
        if isinstance(happened, Requested):
            waiting.append(happened.request_id)
        if len(waiting) < 3:
            return []
        return [Respond(each, DocumentAnswer({"id": each})) for each in reversed(waiting)]

    rig.node.script = script
    async with running(rig):
        answers = await asyncio.gather(*(rig.driver.ask(GetNodeStatus()) for _ in range(3)))
    assert [answer.document["id"] for answer in answers if isinstance(answer, DocumentAnswer)] == waiting


async def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    rig = Rig()
    later: list[Effect] = []
    rig.node.script = lambda happened: later
    async with running(rig):
        asked = asyncio.ensure_future(rig.driver.ask(GetNodeStatus()))
        await rig.until(lambda: len(rig.node.inputs) == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        later += [Respond(1, ANSWER), Respond(99, ANSWER), send("on")]
        rig.driver.peer_connected("peer")
        await rig.until(lambda: "send on" in rig.events)


async def test_too_many_requests_are_turned_away_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "REQUESTS_MAX", 2)
    rig = Rig()
    async with running(rig):
        two = [asyncio.ensure_future(rig.driver.ask(GetNodeStatus())) for _ in range(2)]
        await rig.until(lambda: len(rig.node.inputs) == 2)
        with pytest.raises(TooManyRequests):
            await rig.driver.ask(GetNodeStatus())
        assert len(rig.node.inputs) == 2
        two[0].cancel()
        await asyncio.gather(two[0], return_exceptions=True)
        rig.node.script = respond
        assert await rig.driver.ask(GetNodeStatus()) == ANSWER, "and there is room again"
        two[1].cancel()


async def test_a_stop_ends_requests_as_stopped() -> None:
    rig = Rig()
    async with running(rig):
        asked = asyncio.ensure_future(rig.driver.ask(GetNodeStatus()))
        await rig.until(lambda: len(rig.node.inputs) == 1)
        rig.driver.stop()
        with pytest.raises(Stopped):
            await asked
        with pytest.raises(Stopped):
            await rig.driver.ask(GetNodeStatus())


async def test_a_storage_that_fails_is_fatal_and_nothing_leaves() -> None:
    rig = Rig()
    rig.storage.failure = OSError("disk full")
    rig.node.script = lambda happened: [PUT, send("promise"), *respond(happened)]
    task = asyncio.ensure_future(rig.driver.run())
    asked = asyncio.ensure_future(rig.driver.ask(GetNodeStatus()))
    with pytest.raises(OSError, match="disk full"):
        await task
    with pytest.raises(Stopped):
        await asked
    assert rig.events == ["commit 1"]
    await rig.jobs.close()


async def test_a_bug_in_the_node_ends_the_driver() -> None:
    rig = Rig()

    def bug(happened: Input) -> list[Effect]:
        raise AssertionError("our bug")

    rig.node.script = bug
    rig.driver.peer_connected("peer")
    with pytest.raises(AssertionError, match="our bug"):
        await rig.driver.run()
    with pytest.raises(Stopped):
        await rig.driver.ask(GetNodeStatus())
    await rig.jobs.close()
