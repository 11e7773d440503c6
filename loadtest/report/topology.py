"""The network as a picture: nodes by group, quantum links coloured by the worst error rate that was seen on them."""

import math
from html import escape
from typing import Final

from loadtest.results.reader import Result
from loadtest.results.records import Case, Topology

SIZE: Final = 720
MARGIN: Final = 36
QBER_LIMIT: Final = 0.11
"""The colours end here: beyond 11 % BB84 makes no key."""
GROUP_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")


def picture(result: Result, case: Case) -> str | None:
    """Return an SVG element; None if the run kept no network of this case."""
    topology = result.topologies.get(case.case)
    if topology is None or not topology.nodes:
        return None
    places = _places(topology)
    worst: dict[str, float] = {}
    for sample in result.links:
        if sample.case == case.case and sample.qber is not None:
            worst[sample.link_id] = max(worst.get(sample.link_id, 0.0), sample.qber)
    parts = [f'<svg class="topology" viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="the network">']
    for link in topology.links:
        if link.first in places and link.second in places:
            parts.append(_link(places[link.first], places[link.second], link.link_id, worst.get(link.link_id)))
    groups = sorted({node.group for node in topology.nodes})
    radius = max(3.0, min(11.0, 90 / math.sqrt(len(topology.nodes))))
    for node in topology.nodes:
        x, y = places[node.node_id]
        colour = GROUP_COLOURS[groups.index(node.group) % len(GROUP_COLOURS)]
        title = f"<title>{escape(node.node_id)} ({escape(node.group)})</title>"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" class="node">{title}</circle>'
        )
        if len(topology.nodes) <= 40:
            parts.append(f'<text x="{x:.1f}" y="{y - radius - 4:.1f}" class="name">{escape(node.node_id)}</text>')
    return "".join([*parts, "</svg>", _legend(groups)])


def _places(topology: Topology) -> dict[str, tuple[float, float]]:
    """Return where each node is drawn: at its own place, scaled to the picture; on a circle where it has none."""
    known = [(node.x, node.y) for node in topology.nodes if node.x is not None and node.y is not None]
    count = len(topology.nodes)
    if len(known) < count:
        turn = [2 * math.pi * number / count - math.pi / 2 for number in range(count)]
        raw = [(math.cos(angle), math.sin(angle)) for angle in turn]
    else:
        raw = known
    left, top = min(x for x, _ in raw), min(y for _, y in raw)
    span = max(max(x for x, _ in raw) - left, max(y for _, y in raw) - top) or 1.0
    scale = (SIZE - 2 * MARGIN) / span
    return {
        node.node_id: (MARGIN + (x - left) * scale, MARGIN + (y - top) * scale)
        for node, (x, y) in zip(topology.nodes, raw, strict=True)
    }


def qber_colour(qber: float) -> str:
    """Return green for none, over yellow, to red at 11 % and beyond."""
    share = max(0.0, min(1.0, qber / QBER_LIMIT))
    return f"hsl({130 * (1 - share):.0f} 70% 42%)"


def _link(first: tuple[float, float], second: tuple[float, float], link_id: str, qber: float | None) -> str:
    said = "no QBER yet" if qber is None else f"QBER up to {100 * qber:.1f} %"
    style = 'class="quiet"' if qber is None else f'stroke="{qber_colour(qber)}"'
    ends = f'x1="{first[0]:.1f}" y1="{first[1]:.1f}" x2="{second[0]:.1f}" y2="{second[1]:.1f}"'
    return f'<line {ends} {style} stroke-width="2.5"><title>{escape(link_id)}: {said}</title></line>'


def _legend(groups: list[str]) -> str:
    colours = [GROUP_COLOURS[number % len(GROUP_COLOURS)] for number in range(len(groups))]
    dots = "".join(
        f'<span><i class="dot" style="background:{colour}"></i>{escape(group)}</span>'
        for group, colour in zip(groups, colours, strict=True)
    )
    stops = ", ".join(qber_colour(QBER_LIMIT * step / 5) for step in range(6))
    scale = f'<span>worst QBER 0 <i class="scale" style="background:linear-gradient(90deg, {stops})"></i> 11 %</span>'
    return f'<p class="legend">{dots}{scale}</p>'
