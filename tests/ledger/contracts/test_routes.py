"""SPEC 9.7: the number of disjoint ways, against a dumb search over all sets of paths."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.contracts.entries import LinkWatch, Revocation
from ledger.contracts.revocation import node_subject
from ledger.contracts.routes import disjoint_paths
from ledger.genesis import Genesis, GenesisLink, GenesisNode
from ledger.state import State
from tests.ledger.cluster import signer_of

Way = tuple[tuple[int, ...], ...]


def network(edges: list[tuple[int, int]], nodes: int = 6) -> State:
    names = [f"n{number}" for number in range(nodes)]
    links = tuple(GenesisLink(f"l{i}", f"n{a}", f"n{b}") for i, (a, b) in enumerate(edges))
    return State(Genesis("test", 1, tuple(GenesisNode(name, signer_of(name).public_key) for name in names), links))


def ways(
    edges: list[tuple[int, int]], at: int, target: int, seen: tuple[int, ...]
) -> list[tuple[tuple[int, ...], ...]]:
    """Every simple path as (inner nodes, links)."""
    if at == target:
        return [((), ())]
    found = []
    for index, (one, other) in enumerate(edges):
        if at in (one, other):
            following = other if at == one else one
            if following not in seen:
                for nodes, links in ways(edges, following, target, (*seen, following)):
                    inner = nodes if following == target else (following, *nodes)
                    found.append((inner, (index, *links)))
    return found


def dumb(edges: list[tuple[int, int]]) -> int:
    all_ways = [(set(nodes), set(links)) for nodes, links in ways(edges, 0, 1, (0,))]
    best = 0
    for count in range(1, 4):
        for chosen in itertools.combinations(all_ways, count):
            if all(not (a[0] & b[0]) and not (a[1] & b[1]) for a, b in itertools.combinations(chosen, 2)):
                best = count
                break
    return best


EDGE = st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda edge: edge[0] != edge[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(EDGE, max_size=8))
def test_disjoint_ways_against_a_dumb_search(edges: list[tuple[int, int]]) -> None:
    assert disjoint_paths(network(edges), "n0", "n1", (), 3) == min(3, dumb(edges))


@pytest.fixture
def ring() -> State:
    return network([(0, 1), (1, 2), (2, 3), (3, 0)], 4)


def test_a_ring_has_two_ways_until_a_link_or_node_is_gone(ring: State) -> None:
    assert disjoint_paths(ring, "n0", "n2", (), 2) == 2
    assert disjoint_paths(ring, "n0", "n2", ("n1",), 2) == 1
    ring.put_entry(LinkWatch("l0", "test", 5, (5,), 0))
    assert disjoint_paths(ring, "n0", "n2", (), 2) == 1
    ring.put_entry(Revocation(node_subject("n3"), 5, "stolen", "governance"))
    assert disjoint_paths(ring, "n0", "n2", (), 2) == 0


def test_an_alarm_takes_a_way_and_its_end_gives_it_back(ring: State) -> None:
    link = ring.link("l0")
    assert link is not None and disjoint_paths(ring, "n0", "n2", (), 2) == 2
    ring.put_link(replace(link, alarmed=True))
    assert disjoint_paths(ring, "n0", "n2", (), 2) == 1
    ring.put_link(link)
    assert disjoint_paths(ring, "n0", "n2", (), 2) == 2
