"""Which part of a node (its *room*) a function of a profile belongs to, by where its code lies.

What serves many rooms (cryptography, MessagePack, JSON, numpy, threads) has none: its time belongs to the nearest
caller that has one. TLS and sockets of HTTP cannot be told from those of peers, since uvloop calls both from C.
"""

from typing import Final

OTHER: Final = "other"
ROOMS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("quantum", ("protocol/quantum/", "protocol/kernels/emulation")),
    (
        "distill",
        (
            "protocol/distill/",
            "protocol/kernels/distillation",
            "protocol/session/",
            "protocol/authentication.py",
            "protocol/assessment.py",
        ),
    ),
    ("devices", ("protocol/lightweight/", "qnode/device")),
    ("ledger", ("ledger/",)),
    (
        "transport, TLS",
        (
            "qnode/io/transport.py",
            "qnode/io/connection.py",
            "qnode/io/frames.py",
            "qnode/io/shaping.py",
            "qnode/io/certificates.py",
            "qnode/wire.py",
            "ssl.py",
            "asyncio/sslproto.py",
        ),
    ),
    ("storage", ("qnode/io/storage.py", "qnode/io/wal.py", "sqlite3/")),
    ("http", ("qnode/api/", "aiohttp/", "yarl/", "multidict/")),
    ("event loop", ("asyncio/", "uvloop/", "qnode/io/jobs.py", "qnode/io/clock.py", "qnode/daemon.py")),
    ("node", ("qnode/",)),
    ("jobs, ended", ("concurrent/futures/thread.py:_worker",)),
)
"""In the order in which they are tried: the first that fits. The event loop's share holds uvloop's own C code, and so
the reading and writing of sockets; that of "node" is keys, links, relaying and the driver. A job thread that is found
at rest has spent its time on jobs of quantum and distill that ended since the last sample."""


def room_of(place: str) -> str | None:
    """Return the room of a function named `package/module.py:function`; None of what serves its callers."""
    return next((room for room, prefixes in ROOMS if place.startswith(prefixes)), None)
