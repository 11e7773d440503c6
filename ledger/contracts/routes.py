"""How many disjoint ways join two nodes over the links that may carry key now (SEED_MAP S0-B3, SPEC 9.7).

Ways are disjoint when they share neither a link nor a node between the ends; two parallel links are two ways. A link
counts unless it stands under an alarm, is suspended by a policy, or one of its ends is revoked. Pure.
"""

from collections import deque
from collections.abc import Collection, Hashable
from typing import Final

from ledger.contracts.entries import LinkWatch, Revocation
from ledger.state import State
from ledger.state_entries import LinkState

CACHED_MAX: Final = 4096
"""Answers kept until a link changes; then, and at this number, all are forgotten."""


def suspended_links(state: State) -> dict[str, str]:
    """Return the links that a policy has suspended, with the policy."""
    return state.derived(LinkWatch, _suspended)


def _suspended(watches: tuple[LinkWatch, ...]) -> dict[str, str]:
    return {watch.link_id: watch.policy for watch in watches if watch.suspended_height}


def revoked_nodes(state: State) -> frozenset[str]:
    """Return the nodes whose keys are revoked."""
    return state.derived(Revocation, _revoked)


def _revoked(revocations: tuple[Revocation, ...]) -> frozenset[str]:
    return frozenset(each.subject[1] for each in revocations if each.subject[0] == "node")


def is_usable(state: State, link: LinkState) -> bool:
    """Say whether the chain lets a link carry key now."""
    if link.alarmed or link.link_id in suspended_links(state):
        return False
    revoked = revoked_nodes(state)
    ends = (link.transmitter, link.receiver)
    return not any(end in revoked or _is_removed(state, end) for end in ends)


def _is_removed(state: State, node_id: str) -> bool:
    node = state.node(node_id)
    return node is not None and node.revoked


def disjoint_paths(state: State, source: str, target: str, avoided: tuple[str, ...], enough: int) -> int:
    """Return how many disjoint ways join two nodes around the avoided ones, counted up to `enough`."""
    key = (source, target, avoided, enough)
    found = state.routes.get(key)
    if found is None:
        if len(state.routes) >= CACHED_MAX:
            state.routes.clear()
        edges = [
            (link.link_id, link.transmitter, link.receiver)
            for link in state.links()
            if is_usable(state, link)
            and not any(end in avoided and end not in (source, target) for end in (link.transmitter, link.receiver))
        ]
        found = state.routes[key] = _flow(edges, source, target, enough)
    return found


def _flow(edges: Collection[tuple[str, str, str]], source: str, target: str, enough: int) -> int:
    """Unit flow over nodes split into an entrance and an exit (Menger): one augmenting path per disjoint way."""
    room: dict[Hashable, dict[Hashable, int]] = {}

    def allow(start: Hashable, end: Hashable, units: int) -> None:
        room.setdefault(start, {})[end] = room.get(start, {}).get(end, 0) + units
        room.setdefault(end, {}).setdefault(start, 0)

    for link_id, one, other in edges:
        for start, end in ((one, other), (other, one)):
            way = ("link", link_id, start)
            allow(("out", start), way, 1)
            allow(way, ("in", end), 1)
    for node_id in {end for _, *ends in edges for end in ends}:
        allow(("in", node_id), ("out", node_id), 1)
    flow = 0
    while flow < enough and _augment(room, ("out", source), ("in", target)):
        flow += 1
    return flow


def _augment(room: dict[Hashable, dict[Hashable, int]], source: Hashable, target: Hashable) -> bool:
    came_from: dict[Hashable, Hashable] = {source: source}
    waiting = deque([source])
    while waiting and target not in came_from:
        at = waiting.popleft()
        for following, units in room.get(at, {}).items():
            if units > 0 and following not in came_from:
                came_from[following] = at
                waiting.append(following)
    if target not in came_from:
        return False
    at = target
    while came_from[at] != at:
        before = came_from[at]
        room[before][at] -= 1
        room[at][before] += 1
        at = before
    return True
