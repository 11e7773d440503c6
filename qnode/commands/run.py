"""`qnode run`: one daemon in the foreground."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click


@click.command(short_help="Run one node in the foreground.")
@click.option("--config", "config", type=click.Path(path_type=Path), required=True, help="The node's TOML file.")
@click.option("--log-file", type=click.Path(path_type=Path), help="Append the log here instead of standard error.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Overrides the configuration."
)
@click.option("--ready-fd", type=int, hidden=True, help="Write one JSON line here when ready, or why not.")
def run(config: Path, log_file: Path | None, log_level: str | None, ready_fd: int | None) -> None:
    """Run one node until SIGTERM or Ctrl-C. The log is one JSON object per line.

    \b
    Examples:
      qnode run --config demo/node-1.toml
      qnode run --config demo/node-1.toml --log-file node-1.log --log-level debug
    """
    with _readiness(ready_fd) as ready:
        from qnode import daemon, telemetry
        from qnode.io.configuration import read_settings

        settings = read_settings(config)
        with _log_stream(log_file) as stream:
            log = telemetry.configure(log_level or settings.log_level, settings.node_id, stream)
            daemon.run(settings, log, ready.tell)


class _Readiness:
    """Tells the process that started us, once, how the start went."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def tell(self, said: dict[str, Any]) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.write(descriptor, json.dumps(said).encode() + b"\n")
            except OSError:
                pass  # whoever started us has gone; the daemon goes on
            finally:
                os.close(descriptor)


@contextmanager
def _readiness(descriptor: int | None) -> Iterator[_Readiness]:
    ready = _Readiness(descriptor)
    if descriptor is not None:
        os.set_inheritable(descriptor, False)
    try:
        yield ready
    except Exception as error:
        ready.tell({"ready": False, "error": str(error) or type(error).__name__})
        raise


@contextmanager
def _log_stream(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stderr
        return
    try:
        stream = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise click.UsageError(f"--log-file {path}: {error.strerror}") from None
    with stream:
        yield stream
