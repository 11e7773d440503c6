"""Whom a message goes to, and when neighbours are news."""

from ledger.gossip import Overlay
from ledger.validators import Validators
from ledger.votes import bitmap_of

NODES = ["a", "b", "c", "d"]


def test_neighbours_are_news_once_when_they_come_and_when_they_go() -> None:
    overlay = Overlay("a", NODES)
    assert not overlay.take_news()
    overlay.connect("b")
    assert overlay.take_news() and not overlay.take_news()
    overlay.connect("b")
    assert not overlay.take_news()
    overlay.disconnect("c")
    assert not overlay.take_news()
    overlay.disconnect("b")
    assert overlay.take_news()


def test_a_message_is_not_passed_to_who_has_it_from_its_origin() -> None:
    overlay = Overlay("a", NODES)
    for peer in "bcd":
        overlay.connect(peer)
    assert overlay.targets("b", "b") == ["c", "d"]
    overlay.learn("c", bitmap_of([0, 1]))
    assert overlay.targets("b", "b") == ["d"]


def test_a_bundle_is_not_passed_to_who_has_it_from_its_bringer() -> None:
    overlay = Overlay("a", NODES)
    for peer in "bc":
        overlay.connect(peer)
    overlay.learn("c", bitmap_of([0, 1]))
    assert overlay.targets("d", "b") == ["c"]
    assert overlay.uncovered_targets("d", "b") == []
    assert overlay.uncovered_targets("a", None) == ["b", "c"]


def test_a_hub_is_a_validator_that_is_connected_to_a_quorum_itself_counted() -> None:
    overlay, four = Overlay("a", [*NODES, "e"]), Validators(tuple(NODES), (b"",) * 4)
    overlay.connect("b")
    overlay.connect("e")
    assert not overlay.is_hub("a", four)
    overlay.connect("c")
    assert overlay.is_hub("a", four)
    assert not overlay.is_hub("b", four) and not overlay.is_hub("d", four)
    overlay.learn("b", bitmap_of([0, 4]))
    assert not overlay.is_hub("b", four)
    overlay.learn("b", bitmap_of([0, 3]))
    overlay.learn("e", bitmap_of([0, 1, 2, 3]))
    assert overlay.is_hub("b", four)
    assert not overlay.is_hub("e", four), "it does not vote"
    overlay.disconnect("c")
    assert not overlay.is_hub("a", four)
