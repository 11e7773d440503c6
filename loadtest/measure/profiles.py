"""What the profiled nodes of a case spend their processor time on, phase by phase, and the means over a group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from loadtest.fleet.launcher import FleetError
from loadtest.results.records import Profile
from loadtest.results.writer import ResultWriter
from loadtest.ward import NodeSilent, Ward

Kind = Literal["function", "room"]
TOP: Final = 15
UNSEEN: Final = "(threads that run no Python, or ended)"
PROFILER: Final = "(the profiler itself)"


async def begin(ward: Ward) -> None:
    """Have profiled nodes forget what was before."""
    await _asked(ward)


async def keep(ward: Ward, writer: ResultWriter, case: int, phase: str) -> None:
    """Ask profiled nodes what they spent their processor time on in the phase that ends; a silent one is noted."""
    for node_id, said in (await _asked(ward)).items():
        if isinstance(said, NodeSilent):
            writer.note(f"no profile of {node_id} in {phase}: {said}")
        else:
            writer.profiles(rows(said, case, phase, node_id, ward.group(node_id)))


async def _asked(ward: Ward) -> dict[str, dict[str, Any] | NodeSilent]:
    async def ask(node_id: str) -> dict[str, Any]:
        try:
            return await ward.launcher.profile(node_id)
        except FleetError as error:
            raise NodeSilent(str(error)) from None

    return await ward.operator.each(ward.profiled, ask)


def rows(said: dict[str, Any], case: int, phase: str, node_id: str, group: str) -> list[Profile]:
    """Return a node's summary as rows of the result."""
    found: list[tuple[Kind, str, float, float]] = [
        ("function", each["function"], each["own_share"], each["total_share"]) for each in said["functions"]
    ]
    for name, share in ((UNSEEN, said["unseen_share"]), (PROFILER, said["overhead_share"])):
        found.append(("function", name, share, share))
    found += [("room", room, share, share) for room, share in said["rooms"].items()]
    return [
        Profile(
            case=case,
            phase=phase,
            node_id=node_id,
            group=group,
            cpu_s=said["cpu_s"],
            function=function,
            own_share=own,
            total_share=total,
            kind=kind,
        )
        for kind, function, own, total in found
    ]


@dataclass(frozen=True, slots=True)
class Spending:
    """What the profiled nodes of one group spent in one phase of a case: seconds of all, mean shares by function."""

    case: int
    phase: str
    group: str
    nodes: int
    cpu_s: float
    functions: tuple[tuple[str, float, float], ...]
    """Function, own share, total share; weighted by the nodes' processor time, largest own share first."""
    rooms: tuple[tuple[str, float], ...] = ()
    """Part of the node, share; largest first."""


def spendings(profiles: Iterable[Profile]) -> list[Spending]:
    """Add the nodes of each group up."""
    together: dict[tuple[int, str, str], list[Profile]] = {}
    for each in profiles:
        together.setdefault((each.case, each.phase, each.group), []).append(each)
    return [_spending(key, of_group) for key, of_group in together.items()]


def _spending(key: tuple[int, str, str], of_group: Sequence[Profile]) -> Spending:
    cpu_s = {each.node_id: each.cpu_s for each in of_group}
    whole_s = sum(cpu_s.values()) or 1.0
    shares: dict[tuple[Kind, str], tuple[float, float]] = {}
    for each in of_group:
        own, total = shares.get((each.kind, each.function), (0.0, 0.0))
        weight = each.cpu_s / whole_s
        shares[each.kind, each.function] = own + weight * each.own_share, total + weight * each.total_share
    ordered = sorted(((*name, *pair) for name, pair in shares.items()), key=lambda row: (-row[2], row[1]))
    functions = tuple((name, own, total) for kind, name, own, total in ordered if kind == "function")
    rooms = tuple((name, own) for kind, name, own, _ in ordered if kind == "room")
    return Spending(*key, len(cpu_s), sum(cpu_s.values()), functions, rooms)


def summary_lines(profiles: Iterable[Profile], top: int = TOP) -> list[str]:
    """Return the largest shares as text."""
    lines: list[str] = []
    for each in spendings(profiles):
        lines.append(
            f"\ncase {each.case}, {each.phase}, {each.nodes} {each.group}: {each.cpu_s:.2f} s of processor time"
        )
        if each.rooms:
            lines.append("  " + ", ".join(f"{room} {100 * share:.1f} %" for room, share in each.rooms))
        lines += [f"  {100 * own:5.1f} %  {100 * total:5.1f} %  {name}" for name, own, total in each.functions[:top]]
    return lines
