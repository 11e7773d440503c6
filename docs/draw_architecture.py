"""Draws docs/images/architecture.svg: the way of a key through four nodes, and the rooms of one of them.

Run `make figures` (or `python docs/draw_architecture.py`) after changing it; the picture is committed.
"""

import itertools
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 960, 620
INK, SOFT, QUANTUM, CHAIN, KEY, PAPER = "#1f2933", "#7b8794", "#7c3aed", "#b45309", "#047857", "#ffffff"


def text(
    x: float, y: float, words: str, size: int = 14, color: str = INK, anchor: str = "middle", weight: int = 400
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, title: str, lines: tuple[str, ...], color: str) -> str:
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{PAPER}" '
        f'stroke="{color}" stroke-width="2"/>',
        text(x + width / 2, y + 24, title, 15, color, weight=700),
    ]
    parts += [text(x + width / 2, y + 45 + 18 * n, line, 12) for n, line in enumerate(lines)]
    return "".join(parts)


def arrow(x1: float, y1: float, x2: float, y2: float, color: str, *, dashed: bool = False, both: bool = True) -> str:
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    start = ' marker-start="url(#head)"' if both else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="2"{dash}{start} '
        'marker-end="url(#head)"/>'
    )


def network() -> list[str]:
    """The upper half: four nodes in a ring, two applications at opposite ones."""
    places = {"node-1": (230, 150), "node-2": (480, 70), "node-3": (730, 150), "node-4": (480, 230)}
    ring = ("node-1", "node-2", "node-3", "node-4", "node-1")
    parts = []
    for one, other in itertools.pairwise(ring):
        (x1, y1), (x2, y2) = places[one], places[other]
        parts.append(f'<line x1="{x1}" y1="{y1 - 6}" x2="{x2}" y2="{y2 - 6}" stroke="{QUANTUM}" stroke-width="3"/>')
        parts.append(
            f'<line x1="{x1}" y1="{y1 + 6}" x2="{x2}" y2="{y2 + 6}" stroke="{CHAIN}" stroke-width="2" '
            'stroke-dasharray="6 4"/>'
        )
    for name, (x, y) in places.items():
        parts.append(f'<circle cx="{x}" cy="{y}" r="36" fill="{PAPER}" stroke="{INK}" stroke-width="2"/>')
        parts.append(text(x, y + 5, name, 13, weight=700))
    parts.append(box(30, 118, 110, 64, "SAE A", ("application",), KEY))
    parts.append(box(820, 118, 110, 64, "SAE B", ("application",), KEY))
    parts.append(arrow(140, 150, 192, 150, KEY))
    parts.append(arrow(768, 150, 820, 150, KEY))
    legend = (
        (QUANTUM, "quantum channel (emulated light) and sessions", 190),
        (CHAIN, "gossip and commit of the chain", 545),
        (KEY, "ETSI GS QKD 014, mutual TLS", 800),
    )
    for color, words, x in legend:
        parts.append(text(x, 300, words, 12, color, weight=700))
    return parts


def rooms() -> list[str]:
    """The lower half: the rooms of one node and what passes between them."""
    return [
        f'<rect x="20" y="325" width="920" height="280" rx="12" fill="#f5f7fa" stroke="{SOFT}"/>',
        text(40, 350, "inside each node", 14, SOFT, anchor="start", weight=700),
        box(
            40,
            365,
            200,
            150,
            "shell: qnode.io, .api",
            (
                "TLS 1.3 transport",
                "SQLite, one sync per round",
                "threads for long work",
                "HTTPS: ETSI 014, operator",
                "clock, randomness",
            ),
            INK,
        ),
        box(300, 365, 150, 150, "driver", ("the only caller", "of step()", "", "writes → sync →", "send"), INK),
        box(
            510,
            365,
            190,
            150,
            "node.step()",
            ("links · keystore", "relay · delivery", "deterministic:", "no clock, no socket,", "no file"),
            INK,
        ),
        box(740, 352, 180, 84, "protocol", ("light → sifted → secret key", "tags, proofs of length"), QUANTUM),
        box(740, 448, 180, 84, "ledger", ("records → blocks → state", "commit, proofs"), CHAIN),
        arrow(240, 440, 300, 440, INK),
        arrow(450, 440, 510, 440, INK),
        arrow(700, 410, 740, 395, QUANTUM),
        arrow(700, 470, 740, 488, CHAIN),
        text(270, 430, "frames", 11, SOFT),
        text(480, 425, "inputs", 11, SOFT),
        text(480, 460, "effects", 11, SOFT),
        text(480, 575, "the same cores run in virtual time under a seed: loadtest/simulation", 12, SOFT),
    ]


def main() -> None:
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker></defs>'
    )
    body = "\n".join([*network(), *rooms()])
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif"><title>Architecture of qnode</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>{head}\n{body}\n</svg>\n'
    )
    Path(__file__).with_name("images").joinpath("architecture.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
