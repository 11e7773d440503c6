"""`python -m loadtest report`, `profile`, `compare`. Reads arguments, says what was written; imports the work late."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

Directory = click.Path(exists=True, file_okay=False, path_type=Path)
HTML_NAME = "report.html"


@contextmanager
def told() -> Iterator[None]:
    """Turn what a person can mend into one line: a missing library, an unreadable result, a full disk."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the library {error.name!r} is not installed; the harness needs more than the daemon: `make setup` in a "
            "checkout, or `pip install 'qnode[loadtest]'`"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or ''}: {error.strerror or error}; give another path") from None
    except RuntimeError as error:
        if type(error).__name__ != "ResultError":  # its module may be what is missing
            raise
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("directory", type=Directory)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The page (default: DIRECTORY/report.html)."
)
@click.option(
    "--png", type=click.Path(file_okay=False, path_type=Path), help="Also write every chart into this folder."
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a thinned copy of the result and its page into a new folder, such as docs/results/scaling.",
)
@click.option("--parquet", is_flag=True, help="Also write the tables as Parquet beside the CSV (needs pyarrow).")
def report(directory: Path, out: Path | None, png: Path | None, into: Path | None, parquet: bool) -> None:
    """Make one self-contained HTML page of a result, complete or partial.

    \b
    python -m loadtest report results/scaling-20261122T050000
    python -m loadtest report results/scaling-20261122T050000 --into docs/results/scaling --png docs/images/scaling
    """
    with told():
        from loadtest.report.report import Report, write
        from loadtest.results.reader import Result

        result = Result(directory)
        made = Report(result)
        if into is not None:
            from loadtest.results.thinning import write_thinned

            write_thinned(result, into)
            out = out or into / HTML_NAME
            made = Report(Result(into))
        page = out or directory / HTML_NAME
        write(made, page)
        click.echo(f"{page}  {page.stat().st_size:,} bytes")
        if png is not None:
            from loadtest.report.png import write_all

            click.echo(f"{png}  {len(write_all(made.charts, png))} PNG files")
        if parquet:
            from loadtest.results.parquet import write_parquet

            click.echo("\n".join(map(str, write_parquet(result))))
        if result.is_partial:
            click.echo(f"the result is partial: {result.why_partial}", err=True)


@click.command()
@click.argument("directory", type=Directory)
@click.option("--phase", default="load", show_default=True, help="settle, warm-up, load or saturate.")
def profile(directory: Path, phase: str) -> None:
    """Print what profiled nodes (`run … --profile`) spent their processor time on, as Markdown tables.

    \b
    python -m loadtest profile results/scaling-20261122T050000 --phase saturate
    """
    with told():
        from loadtest.report.profile_tables import markdown
        from loadtest.results.reader import Result

        click.echo("\n".join(markdown(Result(directory), phase)))


@click.command()
@click.argument("first", type=Directory)
@click.argument("second", type=Directory)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the comparison as a page.")
@click.option("--all", "everything", is_flag=True, help="Show also figures without a difference.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--fail-on-worse", is_flag=True, help="End with status 1 if anything is worse.")
def compare(first: Path, second: Path, out: Path | None, everything: bool, as_json: bool, fail_on_worse: bool) -> None:
    """Compare two results: which figures differ beyond chance, by how much, and which way.

    \b
    python -m loadtest compare results/before results/after --out comparison.html
    """
    with told():
        from loadtest.report.comparison import HEADER, cells, compare_results, comparison_page
        from loadtest.results.reader import Result

        a, b = Result(first), Result(second)
        rows = compare_results(a, b)
        if out is not None:
            out.write_text(comparison_page(a, b, rows), "utf-8")
        shown = [row for row in rows if everything or row.verdict in ("better", "worse", "differs")]
        if as_json:
            click.echo(json.dumps([dict(zip(HEADER, cells(row), strict=True)) for row in rows]))
        else:
            _table(HEADER, [cells(row) for row in shown])
            verdicts = [row.verdict for row in rows]
            counts = ", ".join(f"{verdicts.count(each)} {each}" for each in dict.fromkeys(verdicts))
            click.echo(f"{len(rows)} comparisons: {counts}")
        if fail_on_worse and any(row.verdict == "worse" for row in rows):
            sys.exit(1)


def _table(header: tuple[str, ...], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (list(header), *rows):
        padded = (
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(padded).rstrip())
