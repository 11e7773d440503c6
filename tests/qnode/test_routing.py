"""Shortest ways over the chain's links, against a search that tries every way."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ledger.state_entries import LinkState
from qnode.routing import shortest_path

NODES = "abcdef"
EDGES = list(itertools.combinations(NODES, 2))


def links(edges: list[tuple[str, str]], alarmed: set[int] = frozenset()) -> list[LinkState]:  # type: ignore[assignment]
    return [LinkState(f"{a}{b}", a, b, alarmed=index in alarmed) for index, (a, b) in enumerate(edges)]


def every_way(edges: list[tuple[str, str]], source: str, target: str) -> list[tuple[str, ...]]:
    joined = {frozenset(edge) for edge in edges}
    ways = (
        (source, *middle, target)
        for size in range(len(NODES) - 1)
        for middle in itertools.permutations([node for node in NODES if node not in (source, target)], size)
    )
    return [way for way in ways if all(frozenset(hop) in joined for hop in itertools.pairwise(way))]


@given(
    st.lists(st.sampled_from(EDGES), unique=True),
    st.sets(st.integers(0, 14)),
    st.sets(st.integers(0, 14)),
    st.permutations(NODES),
)
def test_a_way_is_shortest_among_all_usable_ones(
    edges: list[tuple[str, str]], alarmed: set[int], excluded: set[int], names: list[str]
) -> None:
    source, target = names[:2]
    states = links(edges, alarmed)
    banned = {states[index].link_id for index in excluded if index < len(states)}
    usable = [edge for index, edge in enumerate(edges) if index not in alarmed and index not in excluded]
    ways = every_way(usable, source, target)
    found = shortest_path(states, source, target, banned)
    if not ways:
        assert found is None
    else:
        assert found in ways
        assert len(found) == min(map(len, ways))


def test_parallel_links_survive_the_alarm_of_one() -> None:
    pair = [LinkState("one", "a", "b", alarmed=True), LinkState("two", "b", "a")]
    assert shortest_path(pair, "a", "b") == ("a", "b")
    assert shortest_path(pair, "a", "b", {"two"}) is None


def test_equal_ways_are_decided_by_the_order_of_the_links() -> None:
    ring = links([("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")])
    assert shortest_path(ring, "a", "c") == ("a", "b", "c")
    assert shortest_path(ring[::-1], "a", "c") == ("a", "d", "c")


def test_unknown_ends_have_no_way() -> None:
    assert shortest_path([], "a", "b") is None
    assert shortest_path(links([("a", "b")]), "a", "x") is None
