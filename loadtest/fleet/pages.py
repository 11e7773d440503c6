"""Nodes give back pages that they wrote to and that are again what the fork server's are.

Two fifths of the pages that a node has copied by counting references up and down are, at any moment, as they were: the
node runs on with the server's. What is used all the time is copied again; what a node did once (its start, a first
handshake, a session) stays shared. Nothing else changes; without the compiled module nodes keep their copies.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

try:
    from loadtest.fleet import _pages
except ImportError:  # not Linux, or it was not compiled
    _pages = None  # type: ignore[assignment]

INTERVAL_S: Final = 120.0
"""Five to twenty milliseconds each, and what is used all the time is copied again: at every 20 s, two hundred nodes
would spend several hundredths of two cores on it."""
AGAIN_S: Final = 0.5
"""When another thread of the node was at work."""
ARENA_SIZE_BYTES: Final = 1 << 20
"""CPython's objects of up to 512 bytes live in pieces of so much; smaller mappings hold little of them."""


def share() -> int:
    """Keep the memory of this process, of which nodes will be forked, for comparison; return its size in bytes."""
    if _pages is not None:
        with contextlib.suppress(OSError):  # a sandbox without files in memory: nodes keep their copies
            return _pages.share(list(_ranges()))
    return 0


def _ranges() -> Iterator[tuple[int, int]]:
    """Yield address and size of the heap and of the arenas of CPython."""
    for line in Path("/proc/self/maps").read_text("ascii", errors="replace").splitlines():
        place, rights, *_, name = (*line.split(None, 5), "")[:6]
        begin, end = (int(each, 16) for each in place.split("-"))
        if rights == "rw-p" and (name.strip() == "[heap]" or (not name and end - begin >= ARENA_SIZE_BYTES)):
            yield begin, end - begin


def keep_giving_back() -> None:
    """From the running event loop, give pages back now and then, each node at its own moments."""
    if _pages is not None:
        asyncio.get_running_loop().call_later(random.uniform(0, INTERVAL_S), _give_back)


def _give_back() -> None:
    """On the event loop's own thread: nothing that it does for the node is under way meanwhile."""
    delay_s = AGAIN_S if _pages.give_back() is None else INTERVAL_S
    asyncio.get_running_loop().call_later(delay_s, _give_back)
