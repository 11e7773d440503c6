"""Which nodes share a quantum link: the named shapes, and the file format for any other.

Pure: returns node IDs and links; ports, keys and files are `qnode.initialise`'s.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qnode.settings import NAME_PATTERN

NODES_MAX: Final = 10_000  # what a port range of one host could hold is far less; bounds a typing error


CHORD_BASE: Final = 4
"""Every node keeps connections with those 1, 4, 16, … places further, in a small network and in one of many validators.
Each connection carries each vote, so with chords of 1, 2, 4, 8, … places a follower gets a third more of them, and is
hardly nearer to anyone."""
FEW_NODES_MAX: Final = 16
"""Up to so many nodes chords cost hardly a connection more than anchors, and no node is special."""
MESHED_VALIDATORS_MAX: Final = 31
"""Validators that all connect to each other: 465 connections. A committee of more votes over chords alone."""
ANCHORS: Final = 2
"""Validators that a node without a vote connects to: with one, its end would leave the node to other followers."""


class TopologyError(ValueError):
    """A topology that cannot be; the message says what to change."""


@dataclass(frozen=True, slots=True)
class TopologyLink:
    """One quantum link; the transmitter is Alice. `profile` None means the cluster's default."""

    link_id: str
    transmitter: str
    receiver: str
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """Nodes in order, and their links."""

    node_ids: tuple[str, ...]
    links: tuple[TopologyLink, ...]


def _line(count: int) -> list[tuple[int, int]]:
    return [(n, n + 1) for n in range(count - 1)]


def _ring(count: int) -> list[tuple[int, int]]:
    return _line(count) + ([(0, count - 1)] if count > 2 else [])


def _star(count: int) -> list[tuple[int, int]]:
    return [(0, n) for n in range(1, count)]


def _mesh(count: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(count), 2))


def _grid(count: int) -> list[tuple[int, int]]:
    """Rows of ⌈√count⌉ nodes, the last perhaps shorter; links to the right and down."""
    columns = math.isqrt(max(count - 1, 0)) + 1
    right = [(n, n + 1) for n in range(count - 1) if (n + 1) % columns]
    down = [(n, n + columns) for n in range(count - columns)]
    return right + down


SHAPES: Final[Mapping[str, Callable[[int], list[tuple[int, int]]]]] = {
    "ring": _ring,
    "line": _line,
    "star": _star,
    "mesh": _mesh,
    "grid": _grid,
}


def shaped(shape: str, count: int) -> Topology:
    """Return the named shape over `count` nodes, node-1 to node-N. Raises TopologyError."""
    if shape not in SHAPES:
        raise TopologyError(
            f"{shape!r} is not a topology; name one of {', '.join(SHAPES)}, or a TOML file with [[links]]"
        )
    if not 1 <= count <= NODES_MAX:
        raise TopologyError(f"{count} nodes cannot be made; choose from 1 to {NODES_MAX}")
    node_ids = tuple(f"node-{n}" for n in range(1, count + 1))
    pairs = SHAPES[shape](count)
    return Topology(
        node_ids, tuple(TopologyLink(f"link-{a + 1}-{b + 1}", node_ids[a], node_ids[b]) for a, b in sorted(pairs))
    )


def from_mapping(document: Mapping[str, Any]) -> Topology:
    """Read a topology file: `nodes = [IDs]` (optional: those the links name, in order) and `[[links]]` tables.

    A link has transmitter, receiver, and optionally link_id and profile. Raises TopologyError.
    """
    _refuse_unknown("the topology", document, ("nodes", "links"))
    tables = document.get("links", [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise TopologyError("links must be [[links]] tables")
    links = tuple(_link(table) for table in tables)
    ends = dict.fromkeys(end for link in links for end in (link.transmitter, link.receiver))
    nodes = document.get("nodes", list(ends))
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) for node in nodes):
        raise TopologyError("nodes must be a list of node IDs, and links or nodes must name at least one")
    for name in (*nodes, *(link.link_id for link in links)):
        if NAME_PATTERN.fullmatch(name) is None:
            raise TopologyError(f"{name!r} is not a name: 1 to 63 letters, digits, '.', '_' or '-'")
    strangers = [end for end in ends if end not in nodes]
    if strangers:
        raise TopologyError(f"links name {', '.join(strangers)}, which nodes does not list")
    for what, names in (("nodes", nodes), ("links", [link.link_id for link in links])):
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise TopologyError(f"{what} has {', '.join(doubled)} more than once; give each link its own link_id")
    return Topology(tuple(nodes), links)


def _link(table: Mapping[str, Any]) -> TopologyLink:
    _refuse_unknown("a link", table, ("transmitter", "receiver", "link_id", "profile"))
    try:
        transmitter, receiver = table["transmitter"], table["receiver"]
    except KeyError as missing:
        raise TopologyError(f"a link lacks {missing.args[0]}") from None
    link_id = table.get("link_id", f"{transmitter}--{receiver}")
    profile = table.get("profile")
    if not all(isinstance(value, str) for value in (transmitter, receiver, link_id, profile or "")):
        raise TopologyError("the values of a link must be text in quotes")
    if transmitter == receiver:
        raise TopologyError(f"link {link_id} joins {transmitter} with itself")
    return TopologyLink(link_id, transmitter, receiver, profile)


def _refuse_unknown(what: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise TopologyError(f"{what} has unknown keys {', '.join(unknown)}; the valid keys are {', '.join(known)}")


def contacts(topology: Topology, validators: int) -> dict[str, list[str]]:
    """Return whom each node keeps connections with, symmetric; the first `validators` nodes vote.

    Neighbours of quantum links always. Up to FEW_NODES_MAX nodes: all pairs of validators, and chords. More: all pairs
    of validators, so that votes take one hop, and from every other node two validators and one follower, so that blocks
    take one hop too and each follower costs three connections however large the network is. Of more than
    MESHED_VALIDATORS_MAX validators: chords alone, so that any two nodes are a logarithmic number of hops apart.
    """
    ids = topology.node_ids
    voting = min(validators, len(ids))
    meshed = voting <= MESHED_VALIDATORS_MAX
    places = set(itertools.combinations(range(voting), 2)) if meshed else set()
    anchored = meshed and voting > 0 and len(ids) > FEW_NODES_MAX
    places |= _anchors(voting, len(ids)) if anchored else _chords(len(ids))
    pairs = {(link.transmitter, link.receiver) for link in topology.links}
    pairs |= {(ids[a], ids[b]) for a, b in places}
    found: dict[str, set[str]] = {node_id: set() for node_id in ids}
    for a, b in pairs:
        if a != b:
            found[a].add(b)
            found[b].add(a)
    order = {node_id: n for n, node_id in enumerate(ids)}
    return {node_id: sorted(found[node_id], key=order.__getitem__) for node_id in ids}


def _chords(count: int) -> set[tuple[int, int]]:
    """Join every place with those 1, 4, 16, … further around the ring."""
    steps = itertools.takewhile(lambda step: step < count, (CHORD_BASE**n for n in itertools.count()))
    return {(n, (n + step) % count) for step in steps for n in range(count)}


def _anchors(voting: int, count: int) -> set[tuple[int, int]]:
    """Join followers with validators taken in turn, so that all have as many, and two by two with each other.

    The two of a couple have different validators where there are four or more.
    """
    followers = range(count - voting)
    anchors = {(voting + n, (ANCHORS * n + each) % voting) for n in followers for each in range(ANCHORS)}
    return anchors | {(voting + n, voting + n + 1) for n in followers[:-1:2]}
