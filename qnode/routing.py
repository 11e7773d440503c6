"""Which way a key takes over trusted nodes: shortest first, around links with an alarm.

A pure function of the chain's links and of what the caller excludes; it decides nothing about key that is left.
"""

from collections import deque
from collections.abc import Collection, Iterable

from ledger.state_entries import LinkState


def shortest_path(
    links: Iterable[LinkState],
    source: str,
    target: str,
    excluded_links: Collection[str] = (),
    avoided_relays: Collection[str] = (),
) -> tuple[str, ...] | None:
    """Return the nodes of a shortest path without alarmed or excluded links, ends included; None if there is none.

    No avoided node stands between the ends.

    Equal lengths are decided by the order of the links, which is the same at every node.
    """
    neighbours: dict[str, list[str]] = {}
    for link in links:
        if not link.alarmed and link.link_id not in excluded_links:
            neighbours.setdefault(link.transmitter, []).append(link.receiver)
            neighbours.setdefault(link.receiver, []).append(link.transmitter)
    came_from = {source: source}
    waiting = deque([source])
    while waiting:
        node = waiting.popleft()
        if node == target:
            return _path(came_from, target)
        if node in avoided_relays and node != source:
            continue
        for neighbour in neighbours.get(node, ()):
            if neighbour not in came_from:
                came_from[neighbour] = node
                waiting.append(neighbour)
    return None


def _path(came_from: dict[str, str], target: str) -> tuple[str, ...]:
    path = [target]
    while came_from[path[-1]] != path[-1]:
        path.append(came_from[path[-1]])
    return tuple(reversed(path))
