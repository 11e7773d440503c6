"""`qnode bench …`: plugged into the command line through the entry-point group `qnode.commands`.

Each command prints a readable table on standard error and, with `--json`, one JSON object on standard output. The
benches themselves are imported when called.
"""

import json
from typing import Any, Literal

import click


def count(text: str) -> int:
    """Read a whole number that may be written 1e6. Raises click.BadParameter."""
    try:
        number = float(text)
        whole = int(number)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a number") from None
    if whole < 1 or whole != number:
        raise click.BadParameter(f"{text!r} is not a whole number above 0")
    return whole


def _emit(figures: dict[str, Any], as_json: bool) -> None:
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        text = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
        click.echo(f"{name.ljust(width)}  {text}", err=True)
    if as_json:
        click.echo(json.dumps(figures))


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
seed_option = click.option("--seed", default=1, show_default=True, help="Same seed, same work.")


@click.group(short_help="Measure this machine.")
def bench() -> None:
    """Measure this machine: a table on standard error; with --json, the figures on standard output.

    \b
    Examples:
      qnode bench emulate --pulses 1e10 --loss-db 20 --json
      qnode bench distill --sifted-bits 1e6 --qber 0.02 --method auto --json
      qnode bench amplify --bits 1e6 --ratio 0.5 --json
      qnode bench keys --rate 100 --seconds 10 --json
      qnode bench ledger --nodes 4 --seconds 20 --json
      qnode bench restart --records 1e5 --json
    """


@bench.command()
@click.option("--pulses", type=count, default=10_000_000_000, show_default=True, help="Pulses to emulate.")
@click.option("--loss-db", type=click.FloatRange(0, 60), default=20.0, show_default=True, help="Loss of the channel.")
@seed_option
@json_option
def emulate(pulses: int, loss_db: float, seed: int, as_json: bool) -> None:
    """Emulated pulses per second of a decoy BB84 link, on one core."""
    from loadtest.bench_emulate import run

    _emit(run(pulses, loss_db, seed), as_json)


@bench.command()
@click.option("--sifted-bits", type=count, default=1_000_000, show_default=True, help="Bits per block.")
@click.option("--qber", type=click.FloatRange(0, 0.25), default=0.02, show_default=True, help="Error rate.")
@click.option("--method", default="auto", show_default=True, help="Reconciliation method.")
@click.option("--max-efficiency", type=click.FloatRange(1), help="With auto: a method that leaks no more than this.")
@seed_option
@json_option
def distill(sifted_bits: int, qber: float, method: str, max_efficiency: float | None, seed: int, as_json: bool) -> None:
    """Distillation, sifted bits in, secret bits out: both sides' work on one core."""
    from loadtest.bench_distill import run_distill

    _emit(run_distill(sifted_bits, qber, method, max_efficiency, seed), as_json)


@bench.command()
@click.option("--bits", type=count, default=1_000_000, show_default=True, help="Input bits of one hash.")
@click.option("--ratio", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True, help="Kept share.")
@seed_option
@json_option
def amplify(bits: int, ratio: float, seed: int, as_json: bool) -> None:
    """Toeplitz hashing, input bits per second of one side."""
    from loadtest.bench_distill import run_amplify

    _emit(run_amplify(bits, ratio, seed), as_json)


@bench.command()
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Requests per second; as fast as they go without."
)
@click.option("--clients", type=count, default=8, show_default=True, help="Pairs of applications.")
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="How long.")
@json_option
def keys(rate: float | None, clients: int, seconds: float, as_json: bool) -> None:
    """Key requests over ETSI 014 with mutual TLS, against two real daemons."""
    from loadtest.bench_keys import run

    _emit(run(rate, clients, seconds), as_json)


@bench.command()
@click.option("--nodes", type=click.IntRange(2, 300), default=4, show_default=True, help="Daemons.")
@click.option("--validators", type=click.IntRange(1, 300), help="How many of them vote (default: all, up to 31).")
@click.option("--topology", help="Quantum links, as of `qnode init` (default: mesh up to 8 nodes, ring above).")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Records per second; as many as go without.")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=20.0, show_default=True, help="How long.")
@click.option("--kill-faulty", is_flag=True, help="Kill f validators after --seconds, start them after as many again.")
@json_option
def ledger(
    nodes: int,
    validators: int | None,
    topology: str | None,
    rate: float | None,
    seconds: float,
    kill_faulty: bool,
    as_json: bool,
) -> None:
    """Key-life-cycle records that real daemons commit, and how soon.

    \b
    validate_ms_mean  from a request's, or another node's bundle's, last byte decoded until it is in the mempool
    validate_wait_ms_mean  of that, until the node began to look at it
    cpu_ms_per_tx     processor time of all daemons together, per record
    With --kill-faulty: tx_per_s_before, tx_per_s_faulty while f validators are dead, ratio, restart_s until they
    run again, caught_up_s until they are at the tip, counted from their start, while the load goes on.
    """
    from loadtest.bench_ledger import run

    if kill_faulty and rate is not None:
        raise click.UsageError("--kill-faulty measures under full load; leave --rate out")
    if validators is not None and validators > nodes:
        raise click.UsageError(f"{validators} of {nodes} nodes cannot vote; raise --nodes")
    figures = run(nodes, rate, seconds, validators=validators, topology=topology, kill_faulty=kill_faulty)
    _emit(figures, as_json)


@bench.command()
@click.option("--nodes", type=click.IntRange(4, 31), default=4, show_default=True, help="Daemons; all vote.")
@click.option(
    "--records", type=count, default=100_000, show_default=True, help="Records on the chain, up to 2,000,000."
)
@json_option
def restart(nodes: int, records: int, as_json: bool) -> None:
    """Restart a node of real daemons, wipe others, and time how they catch up.

    \b
    restart_s         from the start of a node until it is ready, with a snapshot just below the tip of its chain
    …_cpu_ms          processor time of the daemon until it is ready
    restart_replay_s  the same without any snapshot: it executes every block of its own disk
    replay_…          a wiped node fetches every block from its peers and executes it; from when it is ready
    snapshot_…        a wiped node fetches a snapshot of the state and the blocks after it; from when it is ready
    """
    from loadtest.bench_restart import RECORDS_MAX, run

    if records > RECORDS_MAX:
        raise click.BadParameter(
            f"at most {RECORDS_MAX:,}: every daemon holds its state in memory", param_hint="--records"
        )
    _emit(run(nodes, records), as_json)


@bench.command()
@click.option("--sessions", type=count, default=30, show_default=True, help="Sessions of 2,048 raw bits.")
@click.option("--devices", type=count, default=200, show_default=True, help="Devices at one reading per second each.")
@click.option("--seconds", type=click.FloatRange(2, 3600), default=20.0, show_default=True, help="For how long.")
@click.option("--broker", type=click.Choice(["mosquitto", "embedded"]), help="Mosquitto without it, if installed.")
@json_option
def device(
    sessions: int, devices: int, seconds: float, broker: Literal["mosquitto", "embedded"] | None, as_json: bool
) -> None:
    """Devices over a broker: session time, round trip of a reading, many devices, a device's memory."""
    from loadtest.bench_device import run

    _emit(run(sessions, devices, seconds, broker), as_json)
