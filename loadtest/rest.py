"""What keeps a network from being measured: links without key, and where that is asked for, links that do not rest.

A link rests when its pool is full, no session of it runs and no block of it waits for the chain: it takes no
processor time until key is asked for. Decides from what nodes say (`qnode status`); asking them is the callers', of
benches (`loadtest.ledger_load.await_rest`) and of scenarios (`loadtest.readiness`) alike.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

NAMES_TOLD: Final = 3
HEIGHTS_APART_MAX: Final = 4
"""Idle chains beat, and hundreds of nodes are not asked in one moment: so much apart they are at one height."""


@dataclass(frozen=True, slots=True)
class Unrest:
    """What keeps a network from being measured: links and nodes by name."""

    silent: tuple[str, ...] = ()
    keyless: tuple[str, ...] = ()  # links without a recorded block, at either end
    busy: tuple[str, ...] = ()  # links that run a session, wait for the chain, or have room in their pool
    waiting: tuple[str, ...] = ()  # nodes that hold records which are not in a block yet
    heights: tuple[int, ...] = ()  # at which nodes stand, if some are behind

    def __bool__(self) -> bool:
        return bool(self.silent or self.keyless or self.busy or self.waiting or self.heights)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {words} ({', '.join(names[:NAMES_TOLD])}{', …' if names[NAMES_TOLD:] else ''})"
            for names, words in (
                (self.silent, "nodes do not answer"),
                (self.keyless, "links have no key yet"),
                (self.busy, "links still work"),
                (self.waiting, "nodes hold records that wait for a block"),
            )
            if names
        ]
        if self.heights:
            parts.append(f"nodes stand at heights {self.heights[0]} to {self.heights[-1]}")
        return "; ".join(parts)


def unrest(statuses: Mapping[str, Mapping[str, Any]], *, rest: bool = True) -> Unrest:
    """Return what the status documents of nodes show to be unfinished; a document without a chain is of a silent node.

    Without `rest` only silent nodes and links without key count.
    """
    silent = tuple(node_id for node_id, status in statuses.items() if "ledger" not in status)
    heard = {node_id: status for node_id, status in statuses.items() if "ledger" in status}
    links = [(link, status) for status in heard.values() for link in status["links"]]
    keyless = _names(link for link, _ in links if not link["blocks"])
    if not rest:
        return Unrest(silent, keyless)
    busy = _names(link for link, status in links if link["blocks"] and not _rests(link, status))
    waiting = tuple(n for n, status in heard.items() if status["ledger"]["mempool_transactions"])
    heights = sorted({status["ledger"]["height"] for status in heard.values()})
    apart = heights[-1] - heights[0] > HEIGHTS_APART_MAX if heights else False
    return Unrest(silent, keyless, busy, waiting, tuple(heights) if apart else ())


def _rests(link: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    return bool(link["pool_full"]) and not link["session_runs"] and not status["keys"]["pending_blocks"]


def _names(links: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(link["link_id"]) for link in links))
