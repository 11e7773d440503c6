"""Runs a scenario: for every size, load and repetition a fresh network, its phases, its disturbances, its checks.

    start → settle (links make key) → warm-up → load (clients, faults, attacks) → saturate → check → stop

Everything measured goes to the result as it comes, so that a run that ends early leaves what it had, marked partial
with the reason.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest import checks, disturbances, governance
from loadtest import ward as wards
from loadtest.clients.applications import Applications, Traffic
from loadtest.clients.records import RecordClients
from loadtest.clients.schedule import arrivals, keep_to, long_enough_s
from loadtest.disturbances import Runner as Disturber
from loadtest.fleet.launcher import Ended, FleetError, Launcher, NodeEnded, Signal
from loadtest.fleet.local import LocalFleet
from loadtest.live import LiveState
from loadtest.measure import profiles
from loadtest.measure.figures import figures as computed_figures
from loadtest.measure.growth import SECONDS_MIN, growth, growth_allowed
from loadtest.measure.histograms import LatencyBook, LatencyWindows
from loadtest.measure.sampler import Sampler, Target
from loadtest.readiness import ready
from loadtest.results.figure_names import FIGURES
from loadtest.results.reader import Result
from loadtest.results.records import Scalar
from loadtest.results.writer import ResultWriter
from loadtest.scenarios.model import Client, Scenario, at_size
from loadtest.statistics import exponent
from loadtest.ward import NodeSilent, Ward
from loadtest.watch import Watch
from qnode.initialise import InitialiseError
from qnode.settings import SettingsError

LOG_LINES_KEPT: Final = 200
LAUNCHES_MAX: Final = 3
"""Attempts at a network whose ports were taken between looking and binding."""

Launch = Callable[[Ended], AbstractAsyncContextManager[Launcher]]
Tell = Callable[[str], None]
Show = Callable[[LiveState], None]
SHOWN_EVERY_S: Final = 0.5


class RunFailed(RuntimeError):
    """A case could not be run; the message says what happened, where, and what to do. What was measured is kept."""


@dataclass(frozen=True, slots=True)
class Point:
    """One case to run."""

    nodes: int
    load: float
    repetition: int
    seed: int


def points(scenario: Scenario) -> list[Point]:
    """Return every case of a scenario in order: repetitions innermost, each with a seed of its own."""
    return [
        Point(nodes, load, repetition, scenario.seed + repetition)
        for nodes in scenario.nodes
        for load in scenario.loads
        for repetition in range(scenario.repetitions)
    ]


def local_launch(ended: Ended) -> LocalFleet:
    """Run nodes on this machine."""
    return LocalFleet(on_ended=ended)


@dataclass
class _Case:
    """One case under way."""

    number: int
    point: Point
    ward: Ward
    traffic: Traffic
    at: tuple[int, int] = (0, 1)  # which case of how many
    phase: str = "start"
    load_begun_s: float | None = None  # with the warm-up; what goes before takes as long as it takes
    died: list[NodeEnded] = field(default_factory=list)


async def run(
    scenario: Scenario,
    writer: ResultWriter,
    launch: Launch = local_launch,
    tell: Tell = print,
    show: Show = lambda state: None,
) -> None:
    """Run every case of a scenario; what is measured is in the result. Raises RunFailed at the end when cases failed.

    `tell` hears sentences, `show` is called twice a second while a case is measured.
    """
    cases = points(scenario)
    failures: list[str] = []
    for at, point in enumerate(cases):
        number = writer.begin_case(point.nodes, point.repetition, point.seed, {"load": point.load})
        tell(f"[{at + 1}/{len(cases)}] {point.nodes} nodes, load × {point.load:g}, seed {point.seed}")
        try:
            await _run_case(at_size(scenario, point.nodes), point, number, writer, launch, tell, show, (at, len(cases)))
        except (FleetError, InitialiseError, SettingsError, NodeSilent) as error:
            writer.event(number, "failure", "harness", reason=str(error)[:500])
            writer.end_case(number, str(error)[:500])
            failures.append(f"{point.nodes} nodes: {error}")
            tell(f"  failed: {error}")
            continue
        except BaseExceptionGroup as group:
            reason = "; ".join(str(each) or type(each).__name__ for each in group.exceptions)
            writer.end_case(number, reason[:500])
            raise
        writer.end_case(number)
    if failures:
        raise RunFailed("; ".join(failures))


async def _run_case(
    scenario: Scenario,
    point: Point,
    number: int,
    writer: ResultWriter,
    launch: Launch,
    tell: Tell,
    show: Show,
    at: tuple[int, int],
) -> None:
    died: list[NodeEnded] = []

    def ended(node: NodeEnded) -> None:
        if not node.asked:
            died.append(node)
            writer.event(number, "failure", node.node_id, reason=f"ended with {node.exit_code}")

    async with launch(ended) as launcher:
        writer.phase(number, "start")
        ward = await _up(scenario, point, number, writer, launcher, tell)
        writer.topology(ward.drawing(number))
        traffic = Traffic(LatencyBook(), LatencyWindows(number, writer.now_s, writer.windows))
        case = _Case(number, point, ward, traffic, at, died=died)
        try:
            async with ward.operator, _sampled(case, scenario, writer, show) as sampler:
                await _phases(case, scenario, writer, sampler, tell)
        finally:
            for middleman in ward.middlemen.values():
                await middleman.close()
            traffic.windows.close()
            writer.latencies(number, traffic.book)
            await _keep_logs(ward, died, writer.directory / "logs")
    _judge(case, scenario, writer)


async def _up(
    scenario: Scenario, point: Point, number: int, writer: ResultWriter, launcher: Launcher, tell: Tell
) -> Ward:
    """Write and start a network; a port that somebody else took meanwhile costs a new attempt."""
    for attempt in range(LAUNCHES_MAX):
        ward = await wards.write(scenario, point.nodes, point.seed, launcher.directory / f"network-{attempt}", launcher)
        begun_s = time.monotonic()
        try:
            await launcher.start(list(ward.specs.values()), scenario.start_timeout_s)
        except FleetError as error:
            if "is in use" not in str(error) or attempt + 1 == LAUNCHES_MAX:
                raise
            tell(f"  {error}; trying other ports")
            for node_id in list(launcher.running()):
                await launcher.signal(node_id, Signal.KILL)
            continue
        start_s = time.monotonic() - begun_s
        writer.figures(number, {"start_s": round(start_s, 3)})
        tell(f"  {point.nodes} nodes up in {start_s:.1f} s")
        return ward
    raise AssertionError("the last attempt returns or raises")


@asynccontextmanager
async def _sampled(case: _Case, scenario: Scenario, writer: ResultWriter, show: Show) -> AsyncIterator[Sampler]:
    ward = case.ward
    targets = [Target(each, ward.group(each), ward.operator.url(each)) for each in ward.node_ids]
    sampler = Sampler(targets, ward.operator.context, case.number, writer.now_s)
    sampler.start()
    watch = Watch(ward, sampler, writer, case.number)
    watching = [asyncio.ensure_future(watch.run()), asyncio.ensure_future(_shown(case, scenario, sampler, show))]
    try:
        yield sampler
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await asyncio.to_thread(sampler.stop)
        watch.look()
        sampler.pour(writer)
        writer.overhead(sampler.overhead())


async def _shown(case: _Case, scenario: Scenario, sampler: Sampler, show: Show) -> None:
    """Tell the live view how it goes, until cancelled."""
    load_s = max([scenario.duration_s, *(client.samples_min / client.rate_per_s for client in scenario.clients)])
    expected_s = scenario.warm_up_s + load_s + scenario.saturate_s + 10.0
    done, cases = case.at
    while True:
        seen, traffic = sampler.seen(), case.traffic
        keys = traffic.book.of("key", case.phase, "validators")
        left_s = None if case.load_begun_s is None else expected_s + case.load_begun_s - time.monotonic()
        share = 0.0 if left_s is None else min(0.99, 1.0 - left_s / expected_s)
        show(
            LiveState(
                case_label=f"{case.point.nodes} nodes, load × {case.point.load:g}",
                phase=case.phase,
                share_done=(done + share) / cases,
                left_s=left_s,
                nodes_up=len(case.ward.launcher.running()),
                nodes_total=case.point.nodes,
                height=seen.height,
                records=traffic.kinds.get("commit", 0),
                requests=traffic.answered,
                key_ms_p50=keys.percentile_ms(50),
                key_ms_p95=keys.percentile_ms(95),
                failures=traffic.failed,
            )
        )
        await asyncio.sleep(SHOWN_EVERY_S)


async def _phases(case: _Case, scenario: Scenario, writer: ResultWriter, sampler: Sampler, tell: Tell) -> None:
    ward, number = case.ward, case.number
    if any(ward.base_shape().values()):
        await ward.operator.each(list(ward.node_ids), ward.push_shapes)
    applications = Applications(ward, case.traffic, lambda: case.phase)
    await applications.prepare()
    blocks = await _settle(case, scenario, writer, tell)
    await governance.put_in_force(ward.operator, ward.node_ids[0], scenario.policies)
    records = RecordClients(ward, blocks, case.traffic, lambda: case.phase)
    ward.flood = records.flood
    following = asyncio.ensure_future(records.follow()) if scenario.policies else None
    try:
        await _load(case, scenario, writer, sampler, applications, records, tell)
        if scenario.saturate_s:
            _enter(case, writer, "saturate")
            tx_per_s = await records.saturate(scenario.saturate_s)
            await profiles.keep(ward, writer, number, "saturate")
            writer.figures(number, {"tx_per_s": round(tx_per_s, 1)})
            tell(f"  {tx_per_s:,.0f} records/s at saturation")
        _enter(case, writer, "check")
        await _check(case, scenario, writer, records)
        _enter(case, writer, "stop")
    finally:
        if following is not None:
            following.cancel()
        await applications.close()
        await records.close()


async def _settle(case: _Case, scenario: Scenario, writer: ResultWriter, tell: Tell) -> dict[str, int]:
    """Wait until every link has key, and rests if the scenario says so; return a block of each. Raises FleetError."""
    begun_s = time.monotonic()
    _enter(case, writer, "settle")
    await profiles.begin(case.ward)
    blocks = await ready(case.ward, scenario.ready_timeout_s, rest=scenario.links_rest)
    links_ready_s = time.monotonic() - begun_s
    writer.figures(case.number, {"links_ready_s": round(links_ready_s, 3)})
    await profiles.keep(case.ward, writer, case.number, "settle")
    tell(f"  every link has key{' and rests' if scenario.links_rest else ''} after {links_ready_s:.1f} s")
    return blocks


def _enter(case: _Case, writer: ResultWriter, phase: str) -> None:
    case.phase = phase
    writer.phase(case.number, phase)


async def _load(
    case: _Case,
    scenario: Scenario,
    writer: ResultWriter,
    sampler: Sampler,
    applications: Applications,
    records: RecordClients,
    tell: Tell,
) -> None:
    disturber = Disturber(case.ward, writer, case.number)
    due = disturbances.schedule(scenario, case.ward)
    case.load_begun_s = time.monotonic()
    for phase, seconds in (("warm-up", scenario.warm_up_s), ("load", scenario.duration_s)):
        if not seconds:
            continue
        seeds = [case.ward.random.getrandbits(64) for _ in scenario.clients]
        if phase == "load":
            each = zip(scenario.clients, seeds, strict=True)
            seconds = max((_long_enough_s(case, *client, seconds) for client in each), default=seconds)
            await sampler.look_at_all()  # where every node's counters stand as the load begins
        _enter(case, writer, phase)
        await profiles.begin(case.ward)
        async with asyncio.TaskGroup() as group:
            for client, seed in zip(scenario.clients, seeds, strict=True):
                group.create_task(_send(case, client, seconds, seed, applications, records))
            if phase == "load":
                group.create_task(disturber.run(due))
            group.create_task(asyncio.sleep(seconds))  # a load without clients lasts as long
        await profiles.keep(case.ward, writer, case.number, phase)
        if phase == "load":
            await sampler.look_at_all()
        seen = case.traffic
        tell(f"  {phase}, {seconds:.0f} s: {seen.answered} answered, {seen.failed} failed of {seen.sent}")
    if scenario.faults:
        found = len(disturber.unrecovered)
        message = ", ".join(disturber.unrecovered[:10])
        writer.check("every fault was recovered from", not found, found, "0 nodes", message, case.number)


def _long_enough_s(case: _Case, client: Client, seed: int, seconds: float) -> float:
    return long_enough_s(_due(case, client, math.inf, seed), seconds, client.samples_min)


def _due(case: _Case, client: Client, seconds: float, seed: int) -> Iterator[float]:
    rate_per_s = client.rate_per_s * case.point.load
    return arrivals(client.arrival, rate_per_s, seconds, client.burst, random.Random(seed))


async def _send(
    case: _Case, client: Client, seconds: float, seed: int, applications: Applications, records: RecordClients
) -> None:
    send = {"keys": applications.key, "messages": applications.message, "records": records.record}[client.kind]
    kind = client.name or {"keys": "key", "messages": "message", "records": "commit"}[client.kind]
    await keep_to(
        _due(case, client, seconds, seed),
        lambda due_ns: send(client, due_ns),
        lambda: case.traffic.fail(kind, case.phase, "all", "the network is too far behind its clients"),
    )


async def _check(case: _Case, scenario: Scenario, writer: ResultWriter, records: RecordClients) -> None:
    def verdict(name: str, passed: bool, found: Scalar, limit: str, message: str) -> None:
        writer.check(name, passed, found, limit, message, case.number)

    traffic = case.traffic
    await checks.agreement(case.ward, scenario.drain_s, verdict)
    if records.key_ids:
        await checks.records_kept(case.ward, records.key_ids, verdict)
    if traffic.key_ids:
        verdict("no key twice", traffic.keys_twice == 0, traffic.keys_twice, f"0 of {len(traffic.key_ids)} keys", "")
    names = ", ".join(f"{each.node_id} ({each.exit_code})" for each in case.died[:10])
    verdict("no node ended by itself", not case.died, len(case.died), "0 nodes", names)
    for reason in traffic.failures[:20]:
        writer.event(case.number, "failure", "client", reason=reason)


def _judge(case: _Case, scenario: Scenario, writer: ResultWriter) -> None:
    """Hold the case's figures to the scenario's limits."""
    values = computed_figures(Result(writer.directory)).get(case.number, {})
    for name in scenario.limits.__struct_fields__:
        limit = getattr(scenario.limits, name)
        if limit is None:
            continue
        value, least = values.get(name), name == "detection_rate"
        passed = value is not None and (value >= limit if least else value <= limit)
        writer.check(name, passed, value, f"{'≥' if least else '≤'} {limit:g}", "", case.number)
    if not scenario.may_grow:
        _judge_growth(case, scenario, writer)


def _judge_growth(case: _Case, scenario: Scenario, writer: ResultWriter) -> None:
    """Hold memory, descriptors and latencies to staying as they are."""
    if scenario.duration_s < SECONDS_MIN:
        writer.note(f"growth was not tested: a load of {scenario.duration_s:g} s is shorter than {SECONDS_MIN:g} s")
        return
    result = Result(writer.directory)
    trends = growth(result, next(each for each in result.cases if each.case == case.number))
    grown = {name: each for name, each in trends.items() if each.grows_beyond(growth_allowed(name))}
    words = ", ".join(f"{name} {100 * each.growth:+.1f} % (p = {each.p:.2g})" for name, each in grown.items())
    limit = f"0 of {len(trends)} series"
    writer.check("nothing grows", bool(trends) and not grown, len(grown), limit, words, case.number)


async def _keep_logs(ward: Ward, died: Sequence[NodeEnded], directory: Path) -> None:
    """Keep the end of the logs of nodes that ended by themselves."""
    for node_id in dict.fromkeys(each.node_id for each in died):
        lines = await ward.launcher.log_tail(node_id, LOG_LINES_KEPT)
        await asyncio.to_thread(_keep_log, directory, node_id, lines)


def _keep_log(directory: Path, node_id: str, lines: list[str]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / f"{node_id}.log").write_text("\n".join(lines) + "\n", "utf-8")


def summary(result: Result) -> dict[str, Any]:
    """Return what a run prints: its figures per case, what it was held to, and where it lies."""
    values = computed_figures(result)
    cases = [
        {
            "nodes": case.nodes,
            **case.parameters,
            "repetition": case.repetition,
            "seed": case.seed,
            "status": case.status,
            **{name: _short(value) for name, value in values.get(case.case, {}).items()},
        }
        for case in result.cases
    ]
    failed = [check for check in result.run.checks if not check.passed]
    return {
        "scenario": result.run.scenario,
        "status": result.run.status,
        "reason": result.why_partial,
        "cases": cases,
        "exponents": _exponents(cases),
        "checks": len(result.run.checks),
        "checks_failed": [f"{c.name}: {c.found} (limit {c.limit}) {c.message}".strip() for c in failed],
        "result": str(result.directory),
    }


def _exponents(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Fit figure ∝ nodes^exponent over the sizes of a run, for every figure that three sizes or more have."""
    names = dict.fromkeys(
        name for case in cases for name in case if name in FIGURES and FIGURES[name].better != "neither"
    )
    found: dict[str, dict[str, float]] = {}
    for name in names:
        known = [(case["nodes"], case[name]) for case in cases if isinstance(case.get(name), float)]
        fitted = exponent([size for size, _ in known], [value for _, value in known])
        if fitted is not None:
            found[name] = {"exponent": fitted.exponent, "low": fitted.low, "high": fitted.high}
    return {name: {key: round(value, 3) for key, value in fit.items()} for name, fit in found.items()}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
