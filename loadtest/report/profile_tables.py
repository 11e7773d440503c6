"""A profile as Markdown, for documents: what each part of a node takes, and the first functions, per size and group."""

from collections.abc import Sequence

from loadtest.measure.figures import APART, figures
from loadtest.measure.profiles import TOP, Spending, spendings
from loadtest.results.reader import Result


def markdown(result: Result, phase: str) -> list[str]:
    """Return a table of parts with a column for every size and group, then one of functions for each of them."""
    found = [each for each in spendings(result.profiles) if each.phase == phase]
    if not found:
        phases = ", ".join(dict.fromkeys(each.phase for each in spendings(result.profiles))) or "none: use --profile"
        return [f"no profile of the phase {phase!r}; there are {phases}"]
    lines = _rooms(result, found)
    for each in found:
        lines += ["", f"| itself | with what it calls | {_named(result, each)}, {phase} |", "|---|---|---|"]
        lines += [
            f"| {100 * own:.1f} % | {100 * total:.1f} % | `{name}` |" for name, own, total in each.functions[:TOP]
        ]
    return lines


def _rooms(result: Result, found: Sequence[Spending]) -> list[str]:
    together: dict[str, float] = {}
    for each in found:
        for room, share in each.rooms:
            together[room] = together.get(room, 0.0) + share
    heading = f"| part of a node | {' | '.join(_named(result, each) for each in found)} |"
    lines = [heading, "|---" * (len(found) + 1) + "|"]
    for room in sorted(together, key=lambda name: -together[name]):
        cells = (f"{100 * dict(each.rooms).get(room, 0.0):.0f} %" for each in found)
        lines.append(f"| {room} | {' | '.join(cells)} |")
    per_s = [_ms_per_s(result, each) for each in found]
    lines.append(f"| processor time per node | {' | '.join(f'{ms:.1f} ms/s' for ms in per_s)} |")
    known = figures(result)
    if all(known[each.case].get("heights_per_s") and each.phase not in APART for each in found):
        heights = [known[each.case]["heights_per_s"] or 1.0 for each in found]
        cells = (f"{ms / rate:.1f} ms" for ms, rate in zip(per_s, heights, strict=True))
        lines.append(f"| the same per height | {' | '.join(cells)} |")
    return lines


def _named(result: Result, spending: Spending) -> str:
    case = next(each for each in result.cases if each.case == spending.case)
    return f"{case.nodes} nodes: {spending.group}"


def _ms_per_s(result: Result, spending: Spending) -> float:
    """Return the milliseconds of processor time that one of the profiled nodes took per second of the phase."""
    seconds = sum(
        (phase.ended_s or phase.started_s) - phase.started_s
        for phase in result.run.phases
        if phase.case == spending.case and phase.name == spending.phase
    )
    return 1e3 * spending.cpu_s / spending.nodes / seconds if seconds > 0 else 0.0
