"""What a process of the fleet may become: the daemon, and later nodes that break its rules.

Misbehaving nodes live here and nowhere in the product.
"""

import gc
import json
import os
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import nacl.utils

from loadtest.fleet import pages
from qnode import daemon
from qnode.settings import NodeSettings

Program = Callable[[NodeSettings, daemon.Log, Callable[[dict[str, Any]], None]], None]


def honest(settings: NodeSettings, log: daemon.Log, ready: Callable[[dict[str, Any]], None]) -> None:
    """Run the daemon as it is."""

    def up(said: dict[str, Any]) -> None:
        pages.keep_giving_back()
        ready(said)

    gc.enable()
    daemon.run(settings, log, up)


def equivocate(settings: NodeSettings, log: daemon.Log, ready: Callable[[dict[str, Any]], None]) -> None:
    """Run the daemon with a replica that says two things at once."""
    from loadtest.fleet import equivocator

    equivocator.take_over()
    honest(settings, log, ready)


def draw(settings: NodeSettings, log: daemon.Log, ready: Callable[[dict[str, Any]], None]) -> None:
    """Write to the log what this fork draws from each generator of its own, and end: for the fleet's own tests."""
    drawn = [random.getrandbits(64), secrets.randbits(64), int.from_bytes(nacl.utils.random(8), "big")]
    print(json.dumps(drawn), flush=True)
    ready({"ready": True, "node_id": settings.node_id, "pid": os.getpid()})


PROGRAMS: Final[Mapping[str, Program]] = {"qnode": honest, "draw": draw, "equivocate": equivocate}
