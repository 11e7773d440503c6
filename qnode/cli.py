"""The `qnode` command: its groups, its exit codes, and one line for every expected failure.

Commands are imported when they are called, so that `qnode --help` and a daemon's start pay for nothing they do not use.
Other packages add commands through the entry-point group `qnode.commands` (name → click command).

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 configuration or certificate · 4 disk · 5 network: a port in use, a
node that cannot be reached · 6 the node refused (a 4xx answer) · 7 not possible now (a 5xx answer).
"""

import importlib
import importlib.metadata
import os
import sys
from typing import Any, Final

import click

EXTENSIONS: Final = "qnode.commands"
COMMANDS: Final = {
    "init": "qnode.commands.setup:init",
    "run": "qnode.commands.run:run",
    "cluster": "qnode.commands.cluster:cluster",
    "status": "qnode.commands.cluster:status",
    "keys": "qnode.commands.keys:keys",
    "ledger": "qnode.commands.ledger:ledger",
    "governance": "qnode.commands.governance:governance",
    "policy": "qnode.commands.policy:policy",
    "node": "qnode.commands.node:node",
    "ca": "qnode.commands.authority:authority",
    "link": "qnode.commands.link:link",
    "device": "qnode.commands.device:device",
    "mqtt": "qnode.commands.mqtt:mqtt",
    "version": "qnode.commands.about:version",
    "completion": "qnode.commands.about:completion",
}
# By class name, so that naming an exception here does not import its module.
EXIT_CODES: Final = {
    "SettingsError": 3,
    "CertificateError": 3,
    "InitialiseError": 3,
    "GenesisError": 3,
    "ParameterError": 3,
    "ClusterError": 3,
    "AlreadyRunningError": 3,
    "ClockError": 3,
    "StorageError": 4,
    "CorruptLedger": 4,
    "TransportError": 5,
    "DeviceError": 3,
    "DeviceRefused": 6,
    "BrokerError": 5,
    "EntropyFailure": 1,
}


class Commands(click.Group):
    """A group whose members are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        extensions = [entry.name for entry in importlib.metadata.entry_points(group=EXTENSIONS)]
        return [*COMMANDS, *sorted(set(extensions) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, name = COMMANDS[cmd_name].partition(":")
            found = getattr(importlib.import_module(module), name)
        else:
            entries = importlib.metadata.entry_points(group=EXTENSIONS, name=cmd_name)
            found = next(iter(entries)).load() if entries else None
        assert found is None or isinstance(found, click.Command)
        return found


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 configuration or certificate, 4 disk, 5 network, 6 refused by the "
    "node, 7 not possible now.",
)
def cli() -> None:
    """A node of a quantum-key-distribution network, and the tools around it.

    \b
    First steps:
      qnode init demo --nodes 4                    write a cluster of four nodes
      qnode cluster up demo                        start them
      qnode status --cluster demo                  see links, pools and the chain
      qnode keys get --cluster demo --sae sae-1-a --to sae-3-a
      qnode cluster down demo
    """


def exit_code(error: BaseException) -> int | None:
    """Return the exit code of an expected failure; None for a bug."""
    status = getattr(error, "status", None)
    if type(error).__name__ == "CallFailed" and isinstance(status, int):
        return 5 if status == 0 else 7 if status >= 500 else 6
    for cls in type(error).__mro__:
        if cls.__name__ in EXIT_CODES:
            return EXIT_CODES[cls.__name__]
    return None


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; expected failures become one line on standard error and their exit code."""
    try:
        cli.main(arguments, prog_name="qnode", standalone_mode=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone; so may we
        sys.exit(1)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        click.echo(f"qnode: {error}", err=True)
        sys.exit(code)
