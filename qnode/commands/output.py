"""What commands share: the options for a cluster, tables on the terminal, JSON for scripts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def cluster_option(command: _Command) -> _Command:
    """Add `--cluster DIR`."""
    return click.option(
        "--cluster",
        "directory",
        type=click.Path(path_type=Path),
        envvar="QNODE_CLUSTER",
        default=Path(),
        help="The cluster's directory; $QNODE_CLUSTER, or the current directory, without it.",
    )(command)


def json_option(command: _Command) -> _Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns; numbers to the right."""
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(len(heading), *(len(row[n]) for row in texts), 0) for n, heading in enumerate(headings)]
    click.echo("  ".join(heading.ljust(width) for heading, width in zip(headings, widths, strict=True)).rstrip())
    for values, row in zip(rows, texts, strict=True):
        cells = [
            text.rjust(width) if isinstance(value, int | float) and not isinstance(value, bool) else text.ljust(width)
            for value, text, width in zip(values, row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
