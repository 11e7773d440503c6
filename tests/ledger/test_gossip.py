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


def hub_among(count: int) -> tuple[Overlay, Validators]:
    """A hub "v0" of five that vote, with followers "f0" to "f2"; f1 and the hub know of each other alone."""
    names = [f"v{i}" for i in range(5)] + [f"f{i}" for i in range(3)]
    overlay, five = Overlay("v0", names), Validators(tuple(names[:5]), (b"",) * 5)
    for peer in names[1 : count + 1] + names[5:]:
        overlay.connect(peer)
    for place in range(1, count + 1):
        overlay.learn(names[place], bitmap_of([i for i in range(count + 1) if i != place]))
    return overlay, five


def test_a_hub_gives_bundles_to_validators_alone_while_it_sees_all_of_them() -> None:
    overlay, five = hub_among(4)
    assert overlay.bundle_targets("f0", "f0", five) == ["v1", "v2", "v3", "v4"]
    assert overlay.bundle_targets("f0", "v1", five) == [], "a hub told the others"
    assert overlay.bundle_targets("v0", None, five) == ["v1", "v2", "v3", "v4"]


def test_a_hub_gives_bundles_to_all_while_there_is_a_validator_that_nobody_is_seen_to_reach() -> None:
    overlay, five = hub_among(3)
    assert overlay.bundle_targets("f0", "f0", five) == ["f1", "f2", "v1", "v2", "v3"]
    overlay.learn("f2", bitmap_of([0, 4]))
    assert overlay.bundle_targets("f0", "f0", five) == ["f2", "v1", "v2", "v3"], "f2 reaches it"
    overlay.connect("v4")
    overlay.disconnect("v4")
    overlay.learn("f2", bitmap_of([0]))
    assert overlay.bundle_targets("f0", "f0", five) == ["v1", "v2", "v3"], "it is known to be down"


def test_who_does_not_vote_gives_bundles_to_two_hubs_and_to_what_they_do_not_reach() -> None:
    names = [f"v{i}" for i in range(5)] + ["f0", "f1", "f2"]
    overlay, five = Overlay("f0", names), Validators(tuple(names[:5]), (b"",) * 5)
    for peer in ("v0", "v1", "v2", "f1"):
        overlay.connect(peer)
    assert overlay.bundle_targets("f0", None, five) == ["f1", "v0", "v1", "v2"], "no hub is known"
    for place in range(3):
        overlay.learn(f"v{place}", bitmap_of([i for i in range(4) if i != place] + [5]))
    assert overlay.bundle_targets("f0", None, five) == ["f1", "v0", "v1", "v2"], "v4 is not seen"
    overlay.learn("f1", bitmap_of([4, 5]))
    chosen = overlay.bundle_targets("f0", None, five)
    assert len(chosen) == 3 and chosen[0] == "f1" and set(chosen[1:]) < {"v0", "v1", "v2"}
    assert overlay.bundle_targets("f2", "v0", five) == ["f1"], "what a hub gives it is for those behind it"


def test_hubs_take_turns_to_tell_a_follower_and_leave_the_leader_out() -> None:
    overlay, five = hub_among(4)
    overlay.learn("f0", bitmap_of([0, 1, 2, 6]))
    tellers = [overlay.teller("f0", height, "v1", five) for height in range(4)]
    assert set(tellers) == {"v0", "v2"} and tellers[:2] == tellers[2:]
    overlay.learn("f1", bitmap_of([6]))
    assert overlay.teller("f1", 1, "v1", five) == "v0", "nobody else is known to do it"
