"""The fork server: a process with everything imported that becomes a node in milliseconds, and that cleans up.

It holds no thread, event loop or socket of a node, so that a fork of it is whole; what it has imported is shared by all
nodes, packed so that they write to few of its pages, and frozen out of their collections. It lives as long as the other
end of its control socket: when the harness ends, however it ends, the kernel closes that end, and the server kills
every node and removes their directory. When the server itself dies, the kernel kills its nodes (PR_SET_PDEATHSIG).

Control socket: one JSON object per packet. In: `start` {node_id, config, log, program, profile}, `signal` {node_id,
number}. Out: what a node says when it is ready or why not (sent by the node itself), {node_id, ended: exit code}.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from loadtest.fleet import packing, pages

PACKET_SIZE_BYTES_MAX: Final = 65_536
REASON_LENGTH_MAX: Final = 2_000  # of a node that cannot start; its log has the rest
PR_SET_PDEATHSIG: Final = 1
PRELOADED: Final = (
    "loadtest.fleet.programs",
    "loadtest.fleet.profiling",
    "qnode.daemon",
    "qnode.telemetry",
    "qnode.commands.run",
    "encodings.idna",  # what asyncio's name resolution and JSON lines would import in every node
    "asyncio.sslproto",
    "encodings.ascii",  # and what the first look at a certificate and at a file of the package would
    "cryptography.hazmat.backends.openssl.backend",
    "importlib.resources.readers",
)


class Server:
    """The loop of the fork server."""

    def __init__(self, control: socket.socket, root: Path) -> None:
        self._control = control
        self._root = root
        self._nodes: dict[int, str] = {}  # process → node
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake)
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serve until the harness is gone, then leave nothing behind."""
        try:
            self._tell({"serving": os.getpid()})
            while self._take_ready():
                pass
        finally:
            self._end_all()
            shutil.rmtree(self._root, ignore_errors=True)

    def _take_ready(self) -> bool:
        for key, _ in self._selector.select():
            if key.fd == self._woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            elif not self._command():
                return False
        return True

    def _command(self) -> bool:
        packet = self._control.recv(PACKET_SIZE_BYTES_MAX)
        if not packet:
            return False
        command = json.loads(packet)
        if "signal" in command:
            for process, node_id in self._nodes.items():
                if node_id == command["node_id"]:
                    os.kill(process, command["signal"])
        else:
            self._start(command)
        return True

    def _start(self, command: dict[str, Any]) -> None:
        process = os.fork()
        if process == 0:
            self._become(command)
        self._nodes[process] = command["node_id"]
        self._tell({"node_id": command["node_id"], "started": process})

    def _become(self, command: dict[str, Any]) -> NoReturn:
        """Turn this fork into a node; never returns."""
        code = 1
        try:
            _die_with(os.getppid())
            self._leave_behind()
            _redirect(Path(command["log"]))
            run_node(command, self._tell_once)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            self._tell_once({"ready": False, "node_id": command["node_id"], "error": _reason(error)})
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(code)

    def _leave_behind(self) -> None:
        """Drop what belongs to the server only, and everything that two processes must not share."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        os.close(self._woken)
        os.close(self._wake)
        self._nodes.clear()
        os.setsid()
        random.seed()

    def _tell_once(self, said: dict[str, Any]) -> None:
        if self._control.fileno() >= 0:
            self._tell(said)
            self._control.close()

    def _tell(self, said: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the harness is gone: the next read says so
            self._control.send(json.dumps(said).encode())

    def _reap(self) -> None:
        for process in list(self._nodes):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                node_id = self._nodes.pop(process)
                self._tell({"node_id": node_id, "process": process, "ended": os.waitstatus_to_exitcode(status)})

    def _end_all(self) -> None:
        signal.set_wakeup_fd(-1)
        for process in self._nodes:
            os.kill(process, signal.SIGKILL)
        for process in self._nodes:
            os.waitpid(process, 0)


def run_node(command: dict[str, Any], ready: Callable[[dict[str, Any]], None]) -> None:
    """Run one node in this process, as `qnode run` does."""
    from loadtest.fleet import profiling, programs
    from qnode import telemetry
    from qnode.io.configuration import read_settings

    settings = read_settings(Path(command["config"]))
    log = telemetry.configure(settings.log_level, settings.node_id)
    if command["profile"] is not None:
        profiling.serve(command["node_id"], Path(command["profile"]))
    programs.PROGRAMS[command["program"]](settings, log, ready)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:REASON_LENGTH_MAX]


def _die_with(server: int) -> None:
    """Have the kernel kill this process when the server ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it ended between the fork and the call
        os._exit(1)


def _redirect(log: Path) -> None:
    """Send standard output and error to the node's log, and read nothing."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)


def prepare() -> None:
    """Become what nodes are forked from: everything imported and rehearsed, what they write to packed together."""
    kept = packing.share(_scouted())
    rehearse = _import()
    with packing.running_code() as run:
        rehearse()
    gc.collect()
    packing.fill_holes()
    packing.pack(run)
    del run, kept  # the code that is in use no longer, the words that nothing uses
    rehearse()  # the interpreter specialises the copies
    gc.collect()
    gc.disable()  # `qnode.daemon` sets its own thresholds; see there
    packing.fill_holes()
    gc.freeze()
    pages.share()


def _import() -> Callable[[], None]:
    for name in PRELOADED:
        importlib.import_module(name)
    from loadtest.fleet.rehearsal import rehearse
    from qnode.daemon import new_event_loop

    new_event_loop().close()  # which imports uvloop, where it is
    return rehearse


def _scouted() -> list[str]:
    """Rehearse in a process of its own, and return the words that the code uses which runs."""
    reading, writing = os.pipe()
    scout = os.fork()
    if scout == 0:
        try:
            os.close(reading)
            _scout(writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(scout, 0)
    words: list[str] = json.loads(said or "[]")  # without them nodes are larger, and no worse; the cause shows below
    return words


def _scout(writing: int) -> None:
    rehearse = _import()
    with packing.running_code() as run:
        rehearse()
    with os.fdopen(writing, "w") as pipe:
        json.dump(packing.words(run), pipe)


def main(arguments: list[str]) -> None:
    """`python -m loadtest.fleet.server CONTROL_FD ROOT`; started by `loadtest.fleet.local` only."""
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness; it closes the socket when it is done
    prepare()
    Server(control, Path(arguments[1])).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
