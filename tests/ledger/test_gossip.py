"""Whom a message goes to, and when neighbours are news."""

from ledger.gossip import Overlay
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
