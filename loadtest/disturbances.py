"""Faults and attacks: what each does to a running network, how it ends, and when the network has recovered.

One `Disturbance` is one occurrence. `schedule` draws when and where from the scenario and the seed; nothing here reads
a clock but the event loop's.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from loadtest.fleet.launcher import FleetError, Signal
from loadtest.intruders import Intruder, Middleman
from loadtest.results.records import EventKind
from loadtest.results.writer import ResultWriter
from loadtest.scenarios.model import Attack, Fault, Scenario, ScenarioError
from loadtest.ward import NodeSilent, Ward
from protocol.quantum.eavesdropper import parameter_names

LOOK_S: Final = 0.25
"""How often a healed node is asked whether it has caught up: the resolution of recovery times."""
RECOVERY_TIMEOUT_S: Final = 120.0
JAMMING_HZ_MAX: Final = 1e7
"""Light of a jammer at intensity 1, in counts per second: blinds a detector of any profile."""


@dataclass(frozen=True, slots=True)
class Due:
    """One occurrence: when it begins, after the load does, and what it is."""

    at_s: float
    event: Fault | Attack
    targets: tuple[str, ...]


class Disturbance(ABC):
    """One fault or attack while it lasts. `subjects` are nodes or links; `begin` and `end` may raise NodeSilent."""

    begun_as: EventKind = "fault"
    ended_as: EventKind = "heal"
    recovers = True

    def __init__(self, ward: Ward, event: Fault | Attack, targets: tuple[str, ...]) -> None:
        self.ward = ward
        self.event: Any = event
        self.subjects = targets

    @abstractmethod
    async def begin(self) -> None:
        """Do the harm."""

    @abstractmethod
    async def end(self) -> None:
        """Undo it."""

    def touched(self) -> tuple[str, ...]:
        """Return the nodes that must catch up afterwards."""
        return self.subjects

    def detail(self) -> dict[str, float | str]:
        """Return what the event in the result tells."""
        return {}


class Kill(Disturbance):
    """SIGKILL, and a new start later."""

    async def begin(self) -> None:
        await asyncio.gather(*(self.ward.launcher.signal(each, Signal.KILL) for each in self.subjects))

    async def end(self) -> None:
        for each in self.subjects:
            await self.ward.restart(each)


class Pause(Disturbance):
    """SIGSTOP: the node's connections stand, and nothing comes out of them."""

    async def begin(self) -> None:
        for each in self.subjects:
            await self.ward.launcher.signal(each, Signal.PAUSE)

    async def end(self) -> None:
        for each in self.subjects:
            await self.ward.launcher.signal(each, Signal.CONTINUE)


class DiskFull(Disturbance):
    """Every write fails: the node must end by itself, with the reason, and go on where it was after a restart."""

    async def begin(self) -> None:
        for each in self.subjects:
            self.ward.launcher.expect_end(each)
            await self.ward.launcher.fill_disk(each, full=True)

    async def end(self) -> None:
        for each in self.subjects:
            if each in self.ward.launcher.running():  # it had nothing to write
                await self.ward.launcher.fill_disk(each, full=False)
            else:
                await self.ward.restart(each)


class Partition(Disturbance):
    """Nodes are cut off from all others, and the others from them; within each side all is well."""

    def _sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        inside = set(self.subjects)
        return self.subjects, tuple(each for each in self.ward.node_ids if each not in inside)

    async def begin(self) -> None:
        await self._set({"cut": True})

    async def end(self) -> None:
        await self._set(None)

    async def _set(self, values: dict[str, Any] | None) -> None:
        small, large = self._sides()
        for ours, theirs in ((small, large), (large, small)):
            for node_id in ours:
                table = self.ward.shapes.setdefault(node_id, {})
                for peer in theirs:
                    if values is None:
                        table.pop(peer, None)
                    else:
                        table[peer] = {**self.ward.base_shape(), **values}
        await self.ward.operator.each(list(self.ward.node_ids), self.ward.push_shapes)


class SlowLink(Disturbance):
    """The classical connection of a link becomes slow and lossy, both ways."""

    async def begin(self) -> None:
        await self._set({"delay_ms": self.event.delay_ms, "loss": self.event.loss})

    async def end(self) -> None:
        await self._set(None)

    async def _set(self, values: dict[str, Any] | None) -> None:
        for one, other in self._ends():
            await self.ward.shape(one, other, values)
            await self.ward.shape(other, one, values)

    def _ends(self) -> list[tuple[str, str]]:
        links = self.ward.laid.topology.links
        return [(link.transmitter, link.receiver) for link in links if link.link_id in self.subjects]

    def touched(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(end for pair in self._ends() for end in pair))


class _OnAttack(Disturbance):
    begun_as: EventKind = "attack"
    ended_as: EventKind = "attack_end"
    recovers = False

    def detail(self) -> dict[str, float | str]:
        return {"attack": self.event.kind, "intensity": self.event.intensity}


class Eavesdropper(_OnAttack):
    """Somebody on the fibre, as the emulated channel offers: see `protocol.quantum.eavesdropper`."""

    def _document(self) -> dict[str, Any]:
        parameters = dict(self.event.parameters)
        for name in ("fraction", "tapped"):
            if name in parameter_names(self.event.method):
                parameters.setdefault(name, self.event.intensity)
        return {"kind": self.event.method, "parameters": parameters}

    async def begin(self) -> None:
        await self._set("POST", self._document())

    async def end(self) -> None:
        await self._set("DELETE", None)

    async def _set(self, method: str, document: dict[str, Any] | None) -> None:
        for link in self.ward.laid.topology.links:
            if link.link_id in self.subjects:
                path = f"/admin/v1/links/{link.link_id}/attack"
                await self.ward.operator.call(link.transmitter, method, path, document)

    def touched(self) -> tuple[str, ...]:
        return ()

    def detail(self) -> dict[str, float | str]:
        return {"attack": self.event.method, "intensity": self.event.intensity}


class Jamming(Eavesdropper):
    """Light into the detectors: noise of up to JAMMING_HZ_MAX counts per second."""

    def _document(self) -> dict[str, Any]:
        level_hz = JAMMING_HZ_MAX * self.event.intensity
        return {"kind": "jamming", "parameters": {"level_hz": level_hz, **self.event.parameters}}

    def detail(self) -> dict[str, float | str]:
        return {"attack": "jamming", "intensity": self.event.intensity}


class Injection(_OnAttack):
    """Strangers at the peer port of a node."""

    async def begin(self) -> None:
        rate_per_s = max(1.0, self.event.rate_per_s * self.event.intensity)
        self._intruders = [
            Intruder(self.ward.cluster.directory, self.ward.places[each], rate_per_s) for each in self.subjects
        ]
        for intruder in self._intruders:
            intruder.begin()

    async def end(self) -> None:
        for intruder in self._intruders:
            await intruder.end()


class Replay(_OnAttack):
    """Somebody in the middle of a link's classical connection says things twice."""

    def middlemen(self) -> list[Middleman]:
        return [self.ward.middlemen[each] for each in self.subjects]

    async def begin(self) -> None:
        for middleman in self.middlemen():
            middleman.share, middleman.active = self.event.intensity, True

    async def end(self) -> None:
        for middleman in self.middlemen():
            middleman.share = 0.0


class Equivocation(_OnAttack):
    """Validators are replaced by liars with the same keys; at the end the honest program takes their place again."""

    async def begin(self) -> None:
        self.ward.liars.update(self.subjects)
        await self._become("equivocate")

    async def end(self) -> None:
        await self._become("qnode")
        self.ward.liars.difference_update(self.subjects)

    async def _become(self, program: str) -> None:
        for each in self.subjects:
            await self.ward.launcher.signal(each, Signal.STOP)
            await self.ward.restart(each, program)


class Flood(_OnAttack):
    """An operator's client at a node sends as many records as the rate says, in bundles. Nobody need raise an alarm."""

    begun_as = "note"
    ended_as = "note"

    async def begin(self) -> None:
        rate_per_s = max(1.0, self.event.rate_per_s * self.event.intensity)
        assert self.ward.flood is not None, "floods begin when links have key"
        self._tasks = [asyncio.ensure_future(_flood(self.ward.flood, each, rate_per_s)) for each in self.subjects]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _flood(flood: Callable[[str, float], Awaitable[None]], node_id: str, rate_per_s: float) -> None:
    await flood(node_id, rate_per_s)


KINDS: Final[dict[str, type[Disturbance]]] = {
    "kill": Kill,
    "pause": Pause,
    "partition": Partition,
    "slow_link": SlowLink,
    "disk_full": DiskFull,
    "eavesdropper": Eavesdropper,
    "jamming": Jamming,
    "injection": Injection,
    "replay": Replay,
    "equivocation": Equivocation,
    "flood": Flood,
}
ON_LINKS: Final = ("slow_link", "eavesdropper", "jamming", "replay")


def schedule(scenario: Scenario, ward: Ward) -> list[Due]:
    """Return every occurrence of the load phase in order of time; the same for the same seed.

    Raises ScenarioError when a target is not there.
    """
    rng = random.Random(ward.random.random())
    events: list[Fault | Attack] = [*scenario.faults, *scenario.attacks]
    due = [
        Due(at_s, event, _targets(event, ward, rng)) for event in events for at_s in _times(event, scenario.duration_s)
    ]
    return sorted(due, key=lambda each: each.at_s)


def _times(event: Fault | Attack, duration_s: float) -> Iterator[float]:
    at_s = event.at_s
    while at_s < duration_s:
        yield at_s
        if event.every_s is None:
            return
        at_s += event.every_s


def _targets(event: Fault | Attack, ward: Ward, rng: random.Random) -> tuple[str, ...]:
    if event.kind in ON_LINKS:
        candidates = [link.link_id for link in ward.laid.topology.links]
    elif event.kind == "equivocation":
        candidates = list(ward.validators)
    else:
        candidates = list(ward.node_ids)
    if event.kind == "replay":
        candidates = list(ward.middlemen)
    strangers = [target for target in event.targets if target not in candidates]
    if strangers:
        raise ScenarioError(f"{event.kind}: targets names {', '.join(strangers)}, which cannot be one here")
    if event.targets:
        return event.targets
    count = event.count
    if isinstance(event, Fault) and event.kind == "partition":
        count = max(1, round(event.share * len(candidates)))
    return tuple(rng.sample(candidates, min(count, len(candidates))))


class Runner:
    """Carries out a schedule, notes what happens, and leaves nothing behind: what has begun is ended, always."""

    def __init__(self, ward: Ward, writer: ResultWriter, case: int) -> None:
        self._ward = ward
        self._writer = writer
        self._case = case
        self.recoveries_s: list[float] = []
        self.unrecovered: list[str] = []

    async def run(self, due: list[Due]) -> None:
        """Carry out every occurrence; returns when the last has ended and been recovered from."""
        begun_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for each in due:
                group.create_task(self._one(each, begun_s + each.at_s))

    async def _one(self, due: Due, at_s: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, at_s - loop.time()))
        disturbance = KINDS[due.event.kind](self._ward, due.event, due.targets)
        try:
            self._note(disturbance, disturbance.begun_as)
            await disturbance.begin()
            await asyncio.sleep(due.event.duration_s)
        except (NodeSilent, FleetError) as error:
            self._writer.event(self._case, "failure", due.event.kind, reason=str(error)[:300])
        finally:
            await asyncio.shield(self._end(disturbance))
        if disturbance.recovers:
            await self._recovered(disturbance)

    async def _end(self, disturbance: Disturbance) -> None:
        try:
            await disturbance.end()
        except (NodeSilent, FleetError) as error:
            self._writer.event(self._case, "failure", disturbance.event.kind, reason=str(error)[:300])
        self._note(disturbance, disturbance.ended_as)

    def _note(self, disturbance: Disturbance, kind: EventKind) -> None:
        detail = {"what": disturbance.event.kind, **disturbance.detail()}
        for subject in disturbance.subjects:
            self._writer.event(self._case, kind, subject, **detail)

    async def _recovered(self, disturbance: Disturbance) -> None:
        """Wait until every node that was touched answers and has the height that the network had at the healing."""
        loop, touched = asyncio.get_running_loop(), set(disturbance.touched())
        healed_s = loop.time()
        others = [each for each in self._ward.node_ids if each not in touched][:3] or list(touched)[:1]
        answers = await self._ward.operator.statuses(others)
        height = max((a["ledger"]["height"] for a in answers.values() if not isinstance(a, NodeSilent)), default=0)
        while touched and loop.time() < healed_s + RECOVERY_TIMEOUT_S:
            for each, answer in (await self._ward.operator.statuses(sorted(touched))).items():
                if not isinstance(answer, NodeSilent) and answer["ledger"]["height"] >= height:
                    touched.discard(each)
            if touched:
                await asyncio.sleep(LOOK_S)
        if touched:
            self.unrecovered += sorted(touched)
            return
        self.recoveries_s.append(loop.time() - healed_s)
        for subject in disturbance.subjects:
            self._writer.event(self._case, "recovered", subject, seconds=round(loop.time() - healed_s, 3))
