"""Which process runs a node: a locked file in its state directory.

The operating system releases the lock when the process ends, however it ends; so a locked file names a living daemon
and a number in an unlocked one means nothing, even if some other process has that number by now.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

FILE_NAME: Final = "daemon.pid"


class AlreadyRunningError(RuntimeError):
    """Another daemon runs this node; the message names its process."""


class PidFile:
    """The lock that a daemon holds while it lives; a context manager."""

    def __init__(self, state_directory: Path) -> None:
        self._path = state_directory / FILE_NAME
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise AlreadyRunningError(
                f"this node is already running as process {number or '(starting)'}; "
                "stop it with `qnode cluster down DIR` or SIGTERM first"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)  # releases the lock


def running_process(state_directory: Path) -> int | None:
    """Return the process that runs the node of this state directory; None when no daemon does."""
    try:
        descriptor = os.open(state_directory / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def wait_until_stopped(state_directory: Path) -> None:
    """Block until no daemon runs the node; the kernel wakes us, no polling."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(state_directory / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
