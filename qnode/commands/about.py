"""`qnode version` and `qnode completion`."""

import importlib.metadata
import platform
import ssl
from typing import Any

import click
from click.shell_completion import get_completion_class

from qnode.commands.output import json_option, print_json


@click.command(short_help="Show versions, and which fast paths are in use.")
@json_option
def version(as_json: bool) -> None:
    """Show the version of qnode and what it runs on: interpreter, event loop, TLS, C kernels or their twins."""
    document = describe()
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        click.echo(f"{name.replace('_', ' '):14} {value}")


def describe() -> dict[str, Any]:
    """Return the versions; missing parts say so."""
    from protocol.kernels import distillation, emulation

    try:
        event_loop = f"uvloop {importlib.metadata.version('uvloop')}"
    except importlib.metadata.PackageNotFoundError:
        event_loop = "asyncio (uvloop is not installed)"
    return {
        "qnode": importlib.metadata.version("qnode"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "event_loop": event_loop,
        "cryptography": importlib.metadata.version("cryptography"),
        "emulation": _kernel(emulation.IMPLEMENTATION),
        "distillation": _kernel(distillation.implementation()),
    }


def _kernel(implementation: str) -> str:
    if implementation == "numpy":
        return "numpy twin (no C kernel was built)"
    return f"C kernel{implementation[1:]}"


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes `qnode` commands and options in SHELL.

    \b
    Examples:
      eval "$(qnode completion bash)"                       in ~/.bashrc
      qnode completion fish > ~/.config/fish/completions/qnode.fish
    """
    made = get_completion_class(shell)
    assert made is not None, f"click knows no completion for {shell}"
    click.echo(made(context.find_root().command, {}, "qnode", "_QNODE_COMPLETE").source())
