"""The network between simulated nodes: latency, loss, duplication, reordering, one-way blocks, broken connections."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from qnode.initialise import VALIDATORS_MAX
from qnode.topologies import Topology, contacts

MS = 1_000_000
TOPOLOGIES = ("mesh", "ring", "line", "random")
SHAPES = (*TOPOLOGIES, "chords", "core", "outpost", "bridged")
"""Chords are the connections that `qnode init` makes among many nodes; small networks of it are a mesh. The last three
tell voters from followers: voters that form a mesh with followers around it; the same, but one voter hangs on a
follower; and voters that are joined by followers alone."""


@dataclass
class Conditions:
    """How bad the network is at present; probabilities are per message."""

    latency_ns: int = 1 * MS
    jitter_ns: int = 2 * MS
    loss: float = 0.0
    duplication: float = 0.0


class Network:
    """Which nodes are connected, which directions are blocked, and when a message arrives, if it does.

    Jitter is drawn per message, so that messages overtake each other: harsher than TCP, and the cores must bear it.
    """

    def __init__(
        self, nodes: Sequence[str], topology: str, generator: random.Random, validators: int | None = None
    ) -> None:
        """Connect `nodes`, of which the first `validators` vote (all without)."""
        self.conditions = Conditions()
        self.blocked: set[tuple[str, str]] = set()
        self.broken: set[frozenset[str]] = set()
        self.messages_sent = 0
        self.bytes_sent = 0
        self._random = generator
        voting = len(nodes) if validators is None else validators
        self._edges = _edges(nodes, topology, generator, voting)
        self._neighbours: dict[str, list[str]] = {node: [] for node in nodes}
        for one, other in self.edges():
            self._neighbours[one].append(other)
            self._neighbours[other].append(one)

    def neighbours(self, node: str) -> list[str]:
        """Return the overlay's neighbours of a node, connected at present or not, in a fixed order."""
        return sorted(self._neighbours[node])

    def edges(self) -> list[tuple[str, str]]:
        """Return the overlay's edges in a fixed order."""
        return sorted((min(edge), max(edge)) for edge in self._edges)

    def is_connected(self, one: str, other: str) -> bool:
        """Say whether the connection of two neighbours is up (whatever is blocked on it)."""
        edge = frozenset((one, other))
        return edge in self._edges and edge not in self.broken

    def arrivals_ns(self, source: str, target: str, size_bytes: int) -> list[int]:
        """Return the delays after which copies of a message arrive: none if lost, two if duplicated."""
        self.messages_sent += 1
        self.bytes_sent += size_bytes
        if (source, target) in self.blocked or not self.is_connected(source, target):
            return []
        if self._random.random() < self.conditions.loss:
            return []
        copies = 2 if self._random.random() < self.conditions.duplication else 1
        return [self._delay_ns() for _ in range(copies)]

    def _delay_ns(self) -> int:
        return self.conditions.latency_ns + int(self._random.random() * self.conditions.jitter_ns)


def _edges(nodes: Sequence[str], topology: str, generator: random.Random, voting: int) -> set[frozenset[str]]:
    count = len(nodes)
    pairs = {
        "mesh": [(a, b) for a in range(count) for b in range(a)],
        "ring": [(a, (a + 1) % count) for a in range(count)],
        "line": [(a, a + 1) for a in range(count - 1)],
        "random": [(a, generator.randrange(a)) for a in range(1, count)],
        "chords": _chords(count),
        "core": _core(voting, count),
        "outpost": [*_core(voting - 1, count, first_follower=voting), (voting - 1, voting % count)],
        "bridged": _bridged(voting, count),
    }[topology]
    if topology == "random":  # a random tree, and as many chords again
        pairs += [(generator.randrange(count), generator.randrange(count)) for _ in range(count)]
    return {frozenset((nodes[a], nodes[b])) for a, b in pairs if a != b}


def _chords(count: int) -> list[tuple[int, int]]:
    """Return the connections of `qnode.topologies.contacts` over nodes without links."""
    ids = tuple(str(node) for node in range(count))
    found = contacts(Topology(ids, ()), VALIDATORS_MAX)
    return [(int(one), int(other)) for one in ids for other in found[one] if int(one) > int(other)]


def _core(meshed: int, count: int, first_follower: int | None = None) -> list[tuple[int, int]]:
    """Join the first nodes with each other, and every follower with two of them and with the next follower."""
    followers = range(meshed if first_follower is None else first_follower, count)
    pairs = [(a, b) for a in range(meshed) for b in range(a)]
    pairs += [(each, (each + step) % meshed) for each in followers for step in range(2) if meshed]
    return pairs + [(each, each + 1) for each in followers[:-1]]


def _bridged(voting: int, count: int) -> list[tuple[int, int]]:
    """Join voters and followers in turn to a line; who is left over follows at its end."""
    couples = zip(range(voting), range(voting, count), strict=False)
    order = [each for couple in couples for each in couple]
    order += [each for each in range(count) if each not in order]
    return list(itertools.pairwise(order))
