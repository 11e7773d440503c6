"""`python -m loadtest list` and `run`: scenarios from the command line."""

import asyncio
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import click

from loadtest import runner
from loadtest.live import LiveView
from loadtest.measure.profiles import summary_lines
from loadtest.results.reader import Result
from loadtest.results.records import Run
from loadtest.results.surroundings import machine, versions
from loadtest.results.writer import ResultError, ResultWriter, new_directory
from loadtest.scenarios import load as scenarios
from loadtest.scenarios.model import Scenario, ScenarioError, document
from qnode.daemon import new_event_loop

RESULTS = Path("results")


@click.command("list")
def list_scenarios() -> None:
    """List the shipped scenarios."""
    for name in scenarios.shipped():
        scenario = scenarios.load(name)
        sizes = ", ".join(map(str, scenario.nodes))
        click.echo(f"{name:12} {scenario.title} ({sizes} nodes, {scenario.duration_s:g} s)")


def _sizes(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: write sizes such as 4 or 4,8,16") from None


@click.command("run")
@click.argument("scenario")
@click.option("--nodes", callback=_sizes, help="Sizes to run, such as 4,8,16; overrides the scenario's.")
@click.option("--seconds", type=click.FloatRange(1), help="Length of the load; overrides duration_s.")
@click.option("--repetitions", type=click.IntRange(1), help="How often each size is run.")
@click.option("--seed", type=click.IntRange(0), help="The first seed.")
@click.option(
    "--profile", is_flag=True, help="Two nodes of each group tell what their processor time goes to (profiled_nodes)."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override any key; may be repeated.")
@click.option(
    "--into", type=click.Path(path_type=Path), help="Directory of the result (default: a new one in results/)."
)
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object on standard output.")
def run_scenario(
    scenario: str,
    nodes: list[int] | None,
    seconds: float | None,
    repetitions: int | None,
    seed: int | None,
    profile: bool,
    overrides: tuple[str, ...],
    into: Path | None,
    as_json: bool,
) -> None:
    """Run a scenario: a shipped one by name, or a TOML file.

    \b
    python -m loadtest run smoke
    python -m loadtest run scaling --nodes 4,8,16,32 --json
    python -m loadtest run my-own.toml --set duration_s=60 --set clients.0.rate_per_s=50
    """
    given = {"duration_s": seconds, "repetitions": repetitions, "seed": seed, "profiled_nodes": 2 if profile else None}
    every = [*(f"{key}={value}" for key, value in given.items() if value is not None), *overrides]
    try:
        chosen = scenarios.load(scenario, every, nodes)
        name = Path(scenario).stem
        directory = into or new_directory(RESULTS, name)
        failure = execute(chosen, name, directory, {"set": every, "nodes": nodes})
    except (ScenarioError, ResultError) as error:
        raise click.ClickException(str(error)) from None
    result = Result(directory)
    summary = runner.summary(result)
    _table(summary)
    for line in summary_lines(result.profiles):
        click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(summary))
    if failure is not None:
        click.echo(f"partial: {failure}", err=True)
    sys.exit(1 if failure is not None or summary["checks_failed"] else 0)


def execute(
    scenario: Scenario,
    name: str,
    directory: Path,
    overrides: dict[str, Any] | None = None,
    launch: runner.Launch = runner.local_launch,
) -> str | None:
    """Run a scenario into `directory`; return None, or why the result is partial. Raises ResultError, ScenarioError."""
    started = datetime.datetime.now(datetime.UTC)
    run = Run(
        run_id=f"{name}-{started:%Y%m%dT%H%M%S}",
        scenario=name,
        started_at=started.isoformat(timespec="seconds"),
        versions=versions(),
        machine=machine(),
        scenario_document=document(scenario),
        overrides=overrides or {},
        command=sys.argv,
    )
    try:
        with (
            LiveView(scenario.title) as view,
            ResultWriter(directory, run, on_event=view.happened) as writer,
            asyncio.Runner(loop_factory=new_event_loop) as loop,
        ):
            loop.run(runner.run(scenario, writer, launch, view.event, view.update))
    except runner.RunFailed as failed:
        return str(failed)
    except KeyboardInterrupt:
        return "interrupted"
    return None


def _table(summary: dict[str, Any]) -> None:
    for case in summary["cases"]:
        click.echo(
            f"\n{case['nodes']} nodes, load × {case['load']:g}, repetition {case['repetition']}: {case['status']}",
            err=True,
        )
        for name, value in case.items():
            if isinstance(value, float) and name != "load":
                click.echo(f"  {name:34} {value:,.6g}", err=True)
    verdict = "every check passed" if not summary["checks_failed"] else "failed checks:"
    click.echo(f"\n{summary['checks']} checks; {verdict}", err=True)
    for failed in summary["checks_failed"]:
        click.echo(f"  {failed}", err=True)
    click.echo(f"result: {summary['result']}  (python -m loadtest report {summary['result']})", err=True)
