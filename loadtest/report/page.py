"""The page itself: one HTML file with everything in it, which needs no network and no server.

Charts are drawn in the browser by uPlot (MIT licence, 50 KiB, vendored in `assets/` with its licence): the smallest
well-kept library that zooms, and a twentieth of the size of the others. Everything that comes from a result is
escaped; the page loads nothing, and a content policy in it forbids that it ever does.
"""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Final

import msgspec

from loadtest.report.charts import Chart

_ASSETS: Final = resources.files("loadtest.report") / "assets"
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def asset(name: str) -> str:
    """Return one of the files that the page is made of."""
    return (_ASSETS / name).read_text("utf-8")


def page(title: str, sections: Iterable[str], charts: Sequence[Chart]) -> str:
    """Return the document: sections of HTML, and the data of the charts that their placeholders name."""
    data = msgspec.json.encode(list(charts)).decode().replace("<", "\\u003c")
    licence = asset("uPlot-LICENSE.txt").replace("--", "- -")
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title>",
            f"<style>{asset('uPlot.min.css')}</style><style>{asset('report.css')}</style></head><body>\n",
            "\n".join(sections),
            f'\n<script type="application/json" id="charts">{data}</script>',
            f"\n<!-- uPlot:\n{licence}-->\n<script>{asset('uPlot.iife.min.js')}</script>",
            f"<script>{asset('report.js')}</script></body></html>\n",
        )
    )


def chart_cards(charts: Sequence[Chart]) -> str:
    """Return the placeholders of charts, side by side where there is room."""
    return f'<div class="charts">{"".join(map(_chart_card, charts))}</div>'


def _chart_card(chart: Chart) -> str:
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    marks = '<p class="note marks">&nbsp;</p>' if chart.marks else ""
    holder = f'<div class="chart" id="chart-{escape(chart.name)}"></div>'
    return f'<div class="card"><h3>{escape(chart.title)}</h3>{note}{holder}{marks}</div>'


def tile(value: str, label: str, tone: str = "") -> str:
    """Return one figure that a reader sees first."""
    return f'<div class="tile"><b class="{tone}">{escape(value)}</b><span>{escape(label)}</span></div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", words: bool = False) -> str:
    """Return a table; cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = ' class="words"' if words else ""
    return (
        f'<div class="card scroll"><table{kind}>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def number(value: float | None) -> str:
    """Return a figure as people read it: four significant digits, thousands apart."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"
