"""The report's section on what nodes spend their processor time on."""

from html import escape

from loadtest.measure.profiles import TOP, spendings
from loadtest.report.page import table
from loadtest.results.reader import Result


def profile_tables(result: Result) -> str:
    """Return a table per case, phase and group of nodes; nothing when no node was profiled."""
    sizes = {case.case: case for case in result.cases}
    parts = []
    for each in spendings(result.profiles):
        case = sizes[each.case]
        where = f"{case.nodes} nodes, repetition {case.repetition + 1}, {each.phase}: {each.nodes} {each.group}"
        if each.rooms:
            shares = [f"{100 * share:.1f} %" for _, share in each.rooms]
            parts.append(table([escape(where), *(escape(room) for room, _ in each.rooms)], [["", *shares]]))
        rows = [
            [f"{100 * own:.1f} %", f"{100 * total:.1f} %", f"<code>{escape(name)}</code>"]
            for name, own, total in each.functions[:TOP]
        ]
        parts.append(table(["itself", "with what it calls", escape(where)], rows, f"{each.cpu_s:.2f} s in all."))
    if not parts:
        return ""
    said = "<p class='soft'>Shares of processor time, sampled every 10 ms of it.</p>"
    return f"<h2>Where processor time goes</h2>{said}" + "<p></p>".join(parts)
