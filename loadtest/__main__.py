"""The command line of the harness: `python -m loadtest simulate|report|profile|compare …`."""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from loadtest.report.commands import compare, profile, report
from loadtest.run_command import list_scenarios, run_scenario
from loadtest.simulation.faults import FaultPlan
from loadtest.simulation.network import MS, SHAPES
from loadtest.simulation.run import RunResult, run_seed

if TYPE_CHECKING:
    from loadtest.simulation.node_run import NodeRunResult

Result = TypeVar("Result", RunResult, "NodeRunResult")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Simulate, attack and measure networks of qnode nodes."""


main.add_command(list_scenarios)
main.add_command(run_scenario)
main.add_command(report)
main.add_command(compare)
main.add_command(profile)


@main.command()
@click.option("--seeds", default=100, show_default=True, help="How many runs; each seed is one.")
@click.option("--first-seed", default=0, show_default=True, help="The first seed.")
@click.option("--nodes", default=7, show_default=True, help="Nodes in the cluster.")
@click.option("--validators", default=None, type=int, help="How many of them vote (default: all, at most 31).")
@click.option("--topology", type=click.Choice(SHAPES), default=None, help="The overlay (default: by the seed).")
@click.option("--seconds", default=12.0, show_default=True, help="Virtual seconds of faults in each run.")
@click.option("--quiet-network", is_flag=True, help="No faults at all: for measuring events and bytes.")
@click.option(
    "--whole-node", is_flag=True, help="Whole nodes with links, keys, relay and delivery, not the ledger alone."
)
@click.option(
    "--plan", help="Sizes of quiet networks, such as 10,30,100: a table of what each costs per node and height."
)
@click.option("--jobs", default=1, show_default=True, help="Processes to run seeds in; 0 for one per core.")
@click.option("--trace", is_flag=True, help="Print the readable trace of each run (best with --seeds 1).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def simulate(
    seeds: int,
    first_seed: int,
    nodes: int,
    validators: int | None,
    topology: str | None,
    seconds: float,
    quiet_network: bool,
    whole_node: bool,
    plan: str | None,
    jobs: int,
    trace: bool,
    as_json: bool,
) -> None:
    """Run the ledger's cores in virtual time under faults, and check the invariants after every event.

    \b
    python -m loadtest simulate --seeds 1000 --nodes 7 --json
    python -m loadtest simulate --first-seed 7 --seeds 1 --trace
    python -m loadtest simulate --whole-node --seeds 20 --nodes 4
    python -m loadtest simulate --plan 10,30,100,300,1000 --seconds 3
    """
    if plan is not None:
        _print_plan(plan, seconds, as_json)
        return
    duration_ns = int(seconds * 1_000) * MS
    if whole_node:
        _whole_nodes(
            range(first_seed, first_seed + seeds), nodes, topology, duration_ns, quiet_network, jobs, trace, as_json
        )
        return
    faults = FaultPlan.quiet(duration_ns) if quiet_network else FaultPlan(duration_ns)
    run = partial(
        run_seed,
        nodes=nodes,
        validators=min(nodes, 31) if validators is None else validators,
        topology=topology,
        plan=faults,
        keep_trace=trace,
    )
    started = time.perf_counter()
    results = _run_all(run, range(first_seed, first_seed + seeds), jobs or os.cpu_count() or 1)
    _report(results, time.perf_counter() - started, as_json)


def _whole_nodes(
    seeds: range,
    nodes: int,
    topology: str | None,
    duration_ns: int,
    quiet_network: bool,
    jobs: int,
    trace: bool,
    as_json: bool,
) -> None:
    from loadtest.simulation.node_faults import NodeFaultPlan
    from loadtest.simulation.node_run import run_node_seed, summary

    faults = NodeFaultPlan.quiet(duration_ns) if quiet_network else NodeFaultPlan(duration_ns)
    run = partial(run_node_seed, nodes=nodes, topology=topology, plan=faults, keep_trace=trace)
    started = time.perf_counter()
    results = _run_all(run, seeds, jobs or os.cpu_count() or 1, " --whole-node")
    _print(summary(results, time.perf_counter() - started), as_json)


def _print_plan(sizes: str, seconds: float, as_json: bool) -> None:
    from loadtest.simulation.plan import rows

    try:
        counts = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise click.BadParameter(f"--plan {sizes!r} must be numbers with commas between") from None
    document: list[dict[str, Any]] = []
    for row in rows(counts, seconds):
        if not document:
            click.echo("  ".join(name.rjust(12) for name in row), err=True)
        click.echo("  ".join(str(value).rjust(max(12, len(name))) for name, value in row.items()), err=True)
        document.append(row)
    if as_json:
        click.echo(json.dumps(document))


def _run_all(run: "partial[Result]", seeds: range, jobs: int, option: str = "") -> "list[Result]":
    if jobs == 1:
        return [_told(run(seed), option) for seed in seeds]
    with ProcessPoolExecutor(jobs) as pool:
        return [_told(result, option) for result in pool.map(run, seeds, chunksize=4)]


def _told(result: Result, option: str) -> Result:
    """Print a trace or a violation as soon as it is known."""
    for line in result.trace:
        click.echo(line, err=True)
    if result.violation is not None:
        again = (
            f"python -m loadtest simulate{option} --first-seed {result.seed} --seeds 1 --nodes {result.nodes} --trace"
        )
        click.echo(f"seed {result.seed}: {result.violation}\n  again: {again}", err=True)
    return result


def _report(results: list[RunResult], elapsed_s: float, as_json: bool) -> None:
    events = sum(result.events for result in results)
    heights = sum(result.heights * result.nodes for result in results)
    violations = [result for result in results if result.violation is not None]
    document = {
        "runs": len(results),
        "events": events,
        "violations": len(violations),
        "violating_seeds": [result.seed for result in violations],
        "checks": sum(result.checks for result in results),
        "events_per_s": round(events / elapsed_s),
        "heights": sum(result.heights for result in results),
        "views_max": max((result.views_max for result in results), default=0),
        "crashes": sum(result.crashes for result in results),
        "runs_with_liars": sum(1 for result in results if result.liars),
        "transactions": sum(result.transactions for result in results),
        "set_changes": sum(result.set_changes for result in results),
        "decisions": sum(result.decisions for result in results),
        "rotations": sum(result.rotations for result in results),
        "runs_with_upgrade": sum(1 for result in results if result.upgraded),
        "messages_per_node_and_height": round(sum(result.messages for result in results) / max(heights, 1), 1),
        "bytes_per_node_and_height": round(sum(result.bytes_sent for result in results) / max(heights, 1)),
        "seconds": round(elapsed_s, 1),
    }
    _print(document, as_json)


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document))
    else:
        for name, value in document.items():
            click.echo(f"{name:32} {value}")
    sys.exit(1 if document["violations"] else 0)


if __name__ == "__main__":
    main()
