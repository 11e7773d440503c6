"""The network of a case: the daemon's own named shapes, and random ones drawn by the seed with networkx."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, pi, sqrt
from typing import Any, Final

import networkx

from loadtest.scenarios.model import Network
from qnode import topologies
from qnode.topologies import Topology, TopologyLink

STREET_SHARE: Final = 0.8
"""Of the streets of a full grid, those that a road grid keeps: crossroads, but also dead ends and detours."""


@dataclass(frozen=True, slots=True)
class Laid:
    """A topology, and where each node is drawn."""

    topology: Topology
    places: Mapping[str, tuple[float, float]]


def lay(network: Network, nodes: int, seed: int) -> Laid:
    """Return the network of `nodes` nodes: connected, the same for the same seed."""
    if network.shape in topologies.SHAPES:
        topology = topologies.shaped(network.shape, nodes)
        number = {node_id: at for at, node_id in enumerate(topology.node_ids)}
        graph = networkx.Graph([(number[link.transmitter], number[link.receiver]) for link in topology.links])
        graph.add_nodes_from(range(nodes))
        return Laid(topology, _drawn(graph, network.shape, seed))
    graph = _RANDOM[network.shape](nodes, network.degree, seed)
    _connect(graph)
    ids = tuple(f"node-{n + 1}" for n in range(nodes))
    pairs = sorted((min(a, b), max(a, b)) for a, b in graph.edges)
    links = tuple(TopologyLink(f"link-{a + 1}-{b + 1}", ids[a], ids[b]) for a, b in pairs)
    return Laid(Topology(ids, links), _drawn(graph, network.shape, seed))


def _random_geometric(nodes: int, degree: int, seed: int) -> Any:
    """Points in the unit square, joined when nearer than what gives the wished mean degree."""
    return networkx.random_geometric_graph(nodes, sqrt((degree + 1) / (pi * nodes)), seed=seed)


def _scale_free(nodes: int, degree: int, seed: int) -> Any:
    """Barabási and Albert's preferential attachment."""
    return networkx.barabasi_albert_graph(nodes, min(degree, nodes - 1), seed=seed)


def _road_grid(nodes: int, degree: int, seed: int) -> Any:
    """Streets of a city: a square grid from which a fifth of the streets is taken away by the seed."""
    import random

    columns = isqrt(nodes - 1) + 1
    graph = networkx.Graph()
    for n in range(nodes):
        graph.add_node(n, pos=(n % columns, n // columns))
    streets = [(n, n + 1) for n in range(nodes - 1) if (n + 1) % columns]
    streets += [(n, n + columns) for n in range(nodes - columns)]
    kept = random.Random(seed).sample(streets, round(STREET_SHARE * len(streets)))
    graph.add_edges_from(kept)
    return graph


_RANDOM: Final[Mapping[str, Callable[[int, int, int], Any]]] = {
    "random_geometric": _random_geometric,
    "scale_free": _scale_free,
    "road_grid": _road_grid,
}


def _connect(graph: Any) -> None:
    """Join the parts of a graph: each to the part before it, by their nearest nodes where nodes have places."""
    parts = sorted((sorted(part) for part in networkx.connected_components(graph)), key=lambda part: part[0])
    places = networkx.get_node_attributes(graph, "pos")

    def distance(a: int, b: int) -> float:
        if not places:
            return abs(a - b)
        return float((places[a][0] - places[b][0]) ** 2 + (places[a][1] - places[b][1]) ** 2)

    joined = list(parts[0])
    for part in parts[1:]:
        graph.add_edge(*min(((a, b) for a in joined for b in part), key=lambda pair: (distance(*pair), pair)))
        joined += part


def _drawn(graph: Any, shape: str, seed: int) -> dict[str, tuple[float, float]]:
    places = networkx.get_node_attributes(graph, "pos")
    if not places:
        if shape == "grid":
            columns = isqrt(max(graph.number_of_nodes() - 1, 0)) + 1
            places = {n: (n % columns, n // columns) for n in graph.nodes}
        elif shape in ("ring", "mesh", "star"):
            places = networkx.circular_layout(sorted(graph.nodes))
        elif shape == "line":
            places = {n: (n, 0) for n in graph.nodes}
        else:
            places = networkx.spring_layout(graph, seed=seed)
    return {f"node-{n + 1}": (float(x), float(y)) for n, (x, y) in sorted(places.items())}
