"""SPEC 6.2: ranges from several neighbours at once, in any order, with slow and lying ones passed over."""

import pytest

from ledger.catch_up import RANGE_BLOCKS, WINDOW_BLOCKS, CatchUp
from ledger.inputs import TransactionsSubmitted
from ledger.messages import BlocksMessage, BlocksWanted, decode, encode
from ledger.outputs import PeerFaulted
from ledger.transactions import SaeRegistered
from tests.ledger.cluster import MS, Net, make_genesis


def test_every_range_is_asked_of_one_neighbour_and_the_window_is_bounded() -> None:
    catch_up = CatchUp(100)
    for i in range(20):
        catch_up.learn(f"n{i:02}", 10_000)
    asked = catch_up.ask(5, 0)
    heights = [height for _, first, count in asked for height in range(first, first + count)]
    assert heights == list(range(6, 6 + WINDOW_BLOCKS)), "no height twice, none left out, none beyond the window"
    assert len({peer for peer, _, _ in asked}) == len(asked) == WINDOW_BLOCKS // RANGE_BLOCKS
    assert catch_up.ask(5, 50) == []
    catch_up.expire(100)
    catch_up.learn("n00", 10_000)
    assert catch_up.ask(5, 100)[0][1] == 6, "what was not answered is asked elsewhere"


def test_a_neighbour_is_not_asked_for_what_it_does_not_have() -> None:
    catch_up = CatchUp(100)
    catch_up.learn("low", 7)
    catch_up.learn("high", 200)
    assert catch_up.ask(5, 0) == [("high", 6, RANGE_BLOCKS)]
    assert catch_up.ask(7, 0) == []


def behind(blocks: int) -> Net:
    net = Net(make_genesis(), heartbeat_ns=1_000 * MS)
    net.stop("delta")
    for i in range(blocks):
        net.give("alpha", TransactionsSubmitted(i + 1, (SaeRegistered(f"app-{i}", "alpha"),)))
        while net.replicas["alpha"].height <= i:
            net.pass_time(20 * MS)
    return net


@pytest.mark.parametrize("order", [1, -1])
def test_answers_in_any_order_from_several_neighbours_bring_all_blocks(order: int) -> None:
    net = behind(150)
    waiting: list[tuple[str, str, bytes]] = []
    givers: set[str] = set()

    def hold(source: str, target: str, payload: bytes) -> bool:
        if target == "delta" and isinstance(decode(payload), BlocksMessage):
            waiting.append((target, source, payload))
            givers.add(source)
            return False
        return True

    net.filter = hold
    net.start("delta")
    net.pass_time(1_000 * MS)
    for _ in range(20):
        for message in waiting[::order]:
            net.inject(*message)
        waiting.clear()
        net.settle()
        net.pass_time(300 * MS)
    assert len(givers) == 3
    assert net.replicas["delta"].height == net.replicas["alpha"].height
    assert net.replicas["delta"].state.root == net.replicas["alpha"].state.root
    assert not [o for _, o in net.outputs if isinstance(o, PeerFaulted)]


def test_a_liar_is_charged_and_a_silent_one_is_passed_over() -> None:
    net = behind(150)
    lies: list[bytes] = []

    def unfaithful(source: str, target: str, payload: bytes) -> bool:
        message = decode(payload)
        if target == "delta" and isinstance(message, BlocksMessage) and message.blocks:
            if source == "beta":
                (block, _), (_, certificate) = message.blocks[0], message.blocks[-1]
                lies.append(encode(BlocksMessage(((block, certificate), *message.blocks[1:]))))
                net.inject(target, source, lies[-1])
            return source == "alpha" and bool(lies)
        return True

    net.filter = unfaithful
    net.start("delta")
    net.pass_time(60_000 * MS)
    assert net.replicas["delta"].state.root == net.replicas["alpha"].state.root
    charged = {o.peer for _, o in net.outputs if isinstance(o, PeerFaulted)}
    assert charged == {"beta"}


def test_a_wish_is_answered_with_no_more_than_it_asks_for() -> None:
    net = behind(5)
    net.outputs.clear()
    net.inject("alpha", "beta", encode(BlocksWanted(2, 2)))
    net.settle()
    answers = [decode(o.payload) for _, o in net.outputs if hasattr(o, "payload")]
    (answer,) = [each for each in answers if isinstance(each, BlocksMessage)]
    assert len(answer.blocks) == 2
