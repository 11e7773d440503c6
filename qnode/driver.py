"""The only caller of `Node.step`, and the only executor of its effects.

One loop: take every input that waits, step the node, let what need not wait leave, make all writes durable in one
synced commit, then let everything else leave. Inputs that arrive during a sync join the next round (group commit);
those that bring records to the mempool are stepped at once, and what follows from them waits for the next round.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from qnode import wire
from qnode.effects import Delete, Disconnect, Effect, Log, Put, Respond, RunJob, SendTo, TrafficClass, UsePeerKeys
from qnode.inputs import (
    Answer,
    FrameReceived,
    Input,
    JobDone,
    PeerConnected,
    PeerLost,
    Request,
    Requested,
    SubmitTransactions,
    Ticked,
)
from qnode.io.jobs import Jobs
from qnode.io.storage import Storage
from qnode.node import Node

ROUND_INPUTS_MAX: Final = 512
"""Inputs of one round: bounds how long the first of them waits for its effects to about 20 ms."""

ROUND_RECORDS_MAX: Final = 32
"""Besides them, inputs that bring records and go first, and again as many during a sync: some 30 ms if each is a full
submission; more wait for the next round, so that a flood of records does not keep votes from being taken."""

PEER_INPUTS_MAX: Final = 1024
"""Frames of one peer that wait: then its socket is read no further until half of them are done."""

REQUESTS_MAX: Final = 10_000
"""Requests under way; beyond it callers are told to come back, before any of their work is done."""


class Transport(Protocol):
    """What the driver needs of `qnode.io.transport`."""

    def send(self, peer: str, traffic: TrafficClass, frame: bytes) -> bool: ...
    def disconnect(self, peer: str, reason: str) -> None: ...
    def use_keys(self, keys: UsePeerKeys) -> None: ...
    def pause_reading(self, peer: str) -> None: ...
    def resume_reading(self, peer: str) -> None: ...


class Logger(Protocol):
    """What the driver needs of structlog."""

    def log(self, level: int, event: str, **fields: object) -> object: ...


class TooManyRequests(Exception):
    """The node has as many requests under way as it may."""


class Stopped(Exception):
    """The node stops; the request was not carried out."""


@dataclass(slots=True)
class DriverFigures:
    """Counts since the start; cheap enough to be always on."""

    inputs: int = 0
    rounds: int = 0
    syncs: int = 0
    writes: int = 0
    validated_transactions: int = 0
    """Transactions taken into the mempool: of requests, and of other nodes' bundles."""
    validate_ns: int = 0
    """Sum over them of the time since their frame, or their request, had arrived whole."""
    validate_wait_ns: int = 0
    """Of that, before the step that took them began."""


LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def brings_records(happened: Input) -> bool:
    """Say whether an input fills the mempool, and so goes before others.

    One that decides a height may execute a full block, for which what waits for the mempool would wait as well; for
    votes it is a small detour. Bundles and statements overtake each other on the way between nodes as well.
    """
    match happened:
        case FrameReceived(_, frame):
            return wire.brings_records(frame)
        case Requested(_, SubmitTransactions()):
            return True
    return False


class Driver:
    """Runs one node. `run` returns after `stop`, and raises when the storage fails or the node has a bug."""

    def __init__(self, node: Node, storage: Storage, jobs: Jobs, now_ns: Callable[[], int], log: Logger) -> None:
        self._node = node
        self._storage = storage
        self._jobs = jobs
        self._now_ns = now_ns
        self._log = log
        self._transport: Transport | None = None
        self._records: deque[Input] = deque()  # what brings records
        self._inputs: deque[Input] = deque()  # everything else
        self._held: list[Effect] = []  # of steps during a sync; for the next round
        self._waiting: dict[str, int] = {}  # peer → its frames in both
        self._paused: set[str] = set()
        self._woken = asyncio.Event()
        self._stopping = False
        self._request_ids = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Answer]] = {}
        self.figures = DriverFigures()

    # ---- inputs from the shell, all on the event loop

    def attach(self, transport: Transport) -> None:
        """Give the driver the way to peers; before `run`."""
        self._transport = transport

    def peer_connected(self, peer: str) -> None:
        self._put(PeerConnected(peer))

    def peer_lost(self, peer: str, reason: str) -> None:
        self._paused.discard(peer)
        self._put(PeerLost(peer, reason))

    def frame_received(self, peer: str, frame: bytes) -> None:
        self._waiting[peer] = self._waiting.get(peer, 0) + 1
        if self._waiting[peer] >= PEER_INPUTS_MAX and peer not in self._paused and self._transport is not None:
            self._paused.add(peer)
            self._transport.pause_reading(peer)
        self._put(FrameReceived(peer, frame, self._now_ns()))

    async def ask(self, request: Request) -> Answer:
        """Have the node answer a request of one of its doors. Raises TooManyRequests, Stopped."""
        if self._stopping:
            raise Stopped
        if len(self._requests) >= REQUESTS_MAX:
            raise TooManyRequests
        request_id = next(self._request_ids)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._requests[request_id] = future
        self._put(Requested(request_id, request, self._now_ns()))
        try:
            return await future
        finally:
            self._requests.pop(request_id, None)

    def stop(self) -> None:
        """Let `run` return after the round under way."""
        self._stopping = True
        self._woken.set()

    def _put(self, happened: Input) -> None:
        (self._records if brings_records(happened) else self._inputs).append(happened)
        self._woken.set()

    # ---- the loop

    async def run(self) -> None:
        """Drive the node until `stop`."""
        try:
            await self._execute(self._node.take_birth_effects())
            while not self._stopping:
                await self._wait()
                await self._execute(self._round())
        finally:
            self._stopping = True
            for future in self._requests.values():
                if not future.done():
                    future.set_exception(Stopped())

    async def _wait(self) -> None:
        """Return when an input waits or the node's deadline has come."""
        if self._inputs or self._records or self._held:
            await asyncio.sleep(0)  # let sockets be read between rounds
            return
        self._woken.clear()
        delay_s = max(0.0, (self._node.next_deadline_ns() - self._now_ns()) / 1e9)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(delay_s, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    def _round(self) -> list[Effect]:
        """Step the node with what waits, and with the time."""
        effects, self._held = self._held, []
        effects += self._step_with(self._records, ROUND_RECORDS_MAX)
        effects += self._step_with(self._inputs, ROUND_INPUTS_MAX)
        if self._node.next_deadline_ns() <= self._now_ns():
            effects += self._step(Ticked())
        self.figures.rounds += 1
        return effects

    def _step_with(self, inputs: deque[Input], count_max: int) -> list[Effect]:
        """Step the node with the first of some inputs."""
        effects: list[Effect] = []
        count = min(len(inputs), count_max)
        for _ in range(count):
            happened = inputs.popleft()
            if isinstance(happened, FrameReceived):
                self._taken(happened.peer)
            effects += self._step(happened)
        self.figures.inputs += count
        return effects

    def _step(self, happened: Input) -> list[Effect]:
        begun_ns = self._now_ns()
        effects = self._node.step(begun_ns, happened)
        for count, arrived_ns in self._node.admissions:
            self.figures.validated_transactions += count
            self.figures.validate_ns += count * (self._now_ns() - arrived_ns)
            self.figures.validate_wait_ns += count * (begun_ns - arrived_ns)
        return effects

    def _taken(self, peer: str) -> None:
        self._waiting[peer] -= 1
        if peer in self._paused and self._waiting[peer] <= PEER_INPUTS_MAX // 2 and self._transport is not None:
            self._paused.discard(peer)
            self._transport.resume_reading(peer)

    async def _execute(self, effects: list[Effect]) -> None:
        """What need not wait, then the synced writes, then the rest, each in order."""
        writes: list[Put | Delete] = []
        after: list[Effect] = []
        early = False
        for effect in effects:
            match effect:
                case Put() | Delete():
                    writes.append(effect)
                case SendTo(after_sync=False):
                    early = True
                    self._send(effect)
                case RunJob(job_id, work):
                    self._run_job(job_id, work)
                case Log(level, event, fields):
                    self._log.log(LEVELS[level], event, **dict(fields))
                case _:
                    after.append(effect)
        if writes:
            self.figures.syncs += 1
            self.figures.writes += len(writes)
            if early:
                await asyncio.sleep(0)  # what need not wait is with the sockets before the disk is waited for
            if not self._storage.commit_here(writes):
                await self._sync(writes)
        for effect in after:
            match effect:
                case SendTo():
                    self._send(effect)
                case UsePeerKeys():
                    if self._transport is not None:
                        self._transport.use_keys(effect)
                case Respond(request_id, answer):
                    future = self._requests.get(request_id)
                    if future is not None and not future.done():
                        future.set_result(answer)
                case Disconnect(peer, reason):
                    if self._transport is not None:
                        self._transport.disconnect(peer, reason)

    async def _sync(self, writes: list[Put | Delete]) -> None:
        """Make writes durable, and meanwhile take in what brings records: nothing of that leaves before its round."""
        syncing = asyncio.ensure_future(self._storage.commit(writes))
        syncing.add_done_callback(lambda _: self._woken.set())
        room = ROUND_RECORDS_MAX
        while not syncing.done():
            self._woken.clear()
            waiting = len(self._records)
            self._held += self._step_with(self._records, room)
            room -= waiting - len(self._records)
            await self._woken.wait()
        await syncing

    def _send(self, effect: SendTo) -> None:
        if self._transport is not None:
            self._transport.send(effect.peer, effect.traffic, effect.frame)

    def _run_job(self, job_id: int, work: Callable[[], object]) -> None:
        self._jobs.start(work, lambda result, error: self._put(JobDone(job_id, result, error)))
