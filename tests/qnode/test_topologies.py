"""Topologies: shapes by their graph properties, files by their messages, contacts by reachability."""

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnode.topologies import SHAPES, Topology, TopologyError, contacts, from_mapping, shaped


def neighbours(topology: Topology) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {node_id: set() for node_id in topology.node_ids}
    for link in topology.links:
        found[link.transmitter].add(link.receiver)
        found[link.receiver].add(link.transmitter)
    return found


def farthest(graph: dict[str, Any]) -> int:
    """Return the most hops from the first node to any; fails when one is out of reach."""
    first = next(iter(graph))
    distance, waiting = {first: 0}, deque([first])
    while waiting:
        node = waiting.popleft()
        for other in graph[node]:
            if other not in distance:
                distance[other] = distance[node] + 1
                waiting.append(other)
    assert len(distance) == len(graph)
    return max(distance.values())


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 60))
def test_every_shape_is_connected_and_simple(shape: str, count: int) -> None:
    topology = shaped(shape, count)
    farthest(neighbours(topology))
    pairs = [frozenset((link.transmitter, link.receiver)) for link in topology.links]
    assert len(set(pairs)) == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)
    assert len({link.link_id for link in topology.links}) == len(pairs)


@given(st.integers(3, 40))
def test_the_shapes_are_what_their_names_say(count: int) -> None:
    degrees = {shape: sorted(len(each) for each in neighbours(shaped(shape, count)).values()) for shape in SHAPES}
    assert degrees["ring"] == [2] * count
    assert degrees["line"] == [1, 1] + [2] * (count - 2)
    assert degrees["star"] == [1] * (count - 1) + [count - 1]
    assert degrees["mesh"] == [count - 1] * count
    assert max(degrees["grid"]) <= 4


def test_a_grid_of_nine_is_three_by_three() -> None:
    pairs = {(link.transmitter[5:], link.receiver[5:]) for link in shaped("grid", 9).links}
    right = {("1", "2"), ("2", "3"), ("4", "5"), ("5", "6"), ("7", "8"), ("8", "9")}
    down = {("1", "4"), ("2", "5"), ("3", "6"), ("4", "7"), ("5", "8"), ("6", "9")}
    assert pairs == right | down


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 80), st.integers(1, 31))
def test_contacts_are_symmetric_and_few_hops_apart(shape: str, count: int, validators: int) -> None:
    graph = contacts(shaped(shape, count), validators)
    assert all(a in graph[b] and a != b for a, others in graph.items() for b in others)
    assert farthest(graph) <= max(1, (count - 1).bit_length())
    ids = list(graph)
    assert all(b in graph[a] for a in ids[:validators] for b in ids[:validators] if a != b)


@given(st.integers(17, 320), st.integers(1, 31))
def test_a_follower_costs_three_connections_and_validators_share_them_evenly(count: int, validators: int) -> None:
    graph = contacts(Topology(shaped("ring", count).node_ids, ()), validators)
    ids, voting = list(graph), set(list(graph)[:validators])
    anchors = min(2, validators)
    for each in ids[validators:]:
        assert len(voting & set(graph[each])) == anchors
        assert anchors <= len(graph[each]) <= anchors + 1
    followed = [len(set(graph[each]) - voting) for each in ids[:validators]]
    assert max(followed) - min(followed) <= 1


def test_two_hundred_nodes_keep_so_many_connections() -> None:
    graph = contacts(Topology(shaped("ring", 200).node_ids, ()), 31)
    degrees = [len(others) for others in graph.values()]
    assert sum(degrees) // 2 == 465 + 2 * 169 + 84
    assert (max(degrees), min(degrees)) == (41, 2)


def test_a_committee_of_many_votes_over_chords() -> None:
    graph = contacts(Topology(shaped("ring", 256).node_ids, ()), 100)
    assert {len(others) for others in graph.values()} == {8}


def test_a_file_is_read_with_its_names() -> None:
    topology = from_mapping({"links": [{"transmitter": "b", "receiver": "a", "profile": "metro"}]})
    assert topology.node_ids == ("b", "a")
    assert topology.links[0].link_id == "b--a"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "name at least one"),
        ({"link": []}, "unknown keys link; the valid keys are nodes, links"),
        ({"links": {}}, r"\[\[links\]\] tables"),
        ({"links": [{"transmitter": "a"}]}, "lacks receiver"),
        ({"links": [{"transmitter": "a", "receiver": "a"}]}, "with itself"),
        ({"links": [{"transmitter": "a", "receiver": 1}]}, "text in quotes"),
        ({"links": [{"transmitter": "a", "receiver": "b c"}]}, "not a name"),
        ({"links": [{"transmitter": "a", "receiver": "b"}] * 2}, "more than once"),
        ({"nodes": ["a"], "links": [{"transmitter": "a", "receiver": "b"}]}, "nodes does not list"),
        ({"nodes": ["a", "a"]}, "more than once"),
    ],
)
def test_a_bad_file_says_what_to_change(document: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        from_mapping(document)


@pytest.mark.parametrize(("shape", "count"), [("torus", 4), ("ring", 0), ("ring", 10_001)])
def test_an_impossible_shape_is_refused(shape: str, count: int) -> None:
    with pytest.raises(TopologyError):
        shaped(shape, count)
