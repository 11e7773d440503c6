"""Keys over trusted nodes: equal at both ends or delivered at none, and every forged or false message refused."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.transactions import KeyDelivered
from ledger.transactions import encode as encode_transaction
from protocol.entropy import SeededEntropy
from protocol.messages import Record
from qnode.inputs import GetKeys, GetKeysWithIds, GetStatus, KeysAnswer, RequestError, StatusAnswer
from qnode.relay import TAG_KEY_BYTES, TRANSFER_DEADLINE_NS
from qnode.wire import KeyTransfer, KeyTransferred, PathProbe, PathProbed
from tests.qnode.virtual import RelayNet, ring

LINE = [(0, 1), (1, 2), (2, 3), (3, 4)]


def deliver(net: RelayNet, master: int, slave: int, number: int = 1, size_bits: int | None = None) -> KeysAnswer:
    """Fetch keys at the master's node and the same at the slave's."""
    a, b = f"sae-{master}", f"sae-{slave}"
    answer = net.ask(f"node-{master}", GetKeys(a, b, number, size_bits))
    assert isinstance(answer, KeysAnswer), answer
    ids = tuple(key.key_id for key in answer.keys)
    copy = net.ask(f"node-{slave}", GetKeysWithIds(b, a, ids))
    assert isinstance(copy, KeysAnswer), copy
    assert [(key.key_id, key.key.reveal()) for key in copy.keys] == [
        (key.key_id, key.key.reveal()) for key in answer.keys
    ]
    return answer


def transfers(net: RelayNet) -> list[KeyTransfer]:
    return [frame for _, _, frame in net.seen if isinstance(frame, KeyTransfer)]


@pytest.mark.parametrize("edges", [LINE, ring(4), ring(5), [(0, 1), (0, 2), (0, 3), (0, 4)]], ids=str)
def test_every_pair_gets_equal_keys(edges: list[tuple[int, int]]) -> None:
    net = RelayNet(edges)
    count = len(net.nodes)
    secrets = set()
    for master, slave in itertools.permutations(range(1, count + 1), 2):
        for key in deliver(net, master, slave, 2).keys:
            secrets.add(key.key.reveal())
    assert len(secrets) == 2 * count * (count - 1), "no key twice"
    assert not net.faults


@pytest.mark.parametrize("size_bits", [64, 256, 8192])
def test_keys_have_the_size_that_was_asked_for(size_bits: int) -> None:
    assert all(len(key.key) == size_bits // 8 for key in deliver(RelayNet(LINE), 1, 5, 1, size_bits).keys)


def test_the_key_is_key_of_the_first_link_and_no_later_frame_shows_it() -> None:
    net = RelayNet(LINE)
    secret = deliver(net, 1, 5).keys[0].key.reveal()
    assert secret == SeededEntropy(b"link-1-2/0").take(4000)[TAG_KEY_BYTES : TAG_KEY_BYTES + 32]
    hops = transfers(net)
    assert [hop.hop for hop in hops] == [0, 1, 2, 3] and hops[0].ciphertext == b""
    for hop in hops[1:]:
        pad = SeededEntropy(f"{hop.regions[0][0]}/0".encode()).take(4000)
        start = hop.regions[0][2] + TAG_KEY_BYTES
        assert hop.ciphertext == bytes(a ^ b for a, b in zip(secret, pad[start : start + 32], strict=True))
        assert secret not in hop.ciphertext + hop.tag


def test_no_bit_of_any_link_is_used_by_two_transfers() -> None:
    net = RelayNet(ring(4))
    for master, slave in [(1, 3), (3, 1), (1, 2), (2, 1), (4, 2), (1, 3)]:
        deliver(net, master, slave)
    used: set[tuple[str, int, int]] = set()
    for hop in transfers(net):
        for link, number, offset, size in hop.regions:
            places = {(link, number, place) for place in range(offset, offset + size)}
            assert not places & used
            used |= places


def test_the_chain_learns_which_bits_carried_a_key() -> None:
    net = RelayNet(LINE)
    key = deliver(net, 1, 4).keys[0]
    (record,) = net.recorded
    assert isinstance(record, KeyDelivered)
    assert record.path == ("node-1", "node-2", "node-3", "node-4")
    assert [hop[0] for hop in record.hops] == ["link-1-2", "link-2-3", "link-3-4"]
    assert all(hop[3] == 8 * (TAG_KEY_BYTES + 32) for hop in record.hops)
    assert record.size_bits == 256 and record.key_id.hex() == key.key_id.replace("-", "")


# ---- ways around


def test_a_transfer_goes_around_an_alarmed_link() -> None:
    net = RelayNet(ring(4))
    net.chain.set_alarm("link-1-2", True)
    deliver(net, 1, 2)
    assert transfers(net)[0].path == ("node-1", "node-4", "node-3", "node-2")
    net.chain.set_alarm("link-1-2", False)
    net.seen.clear()
    deliver(net, 1, 2)
    assert transfers(net)[0].path == ("node-1", "node-2")


def test_a_node_that_is_gone_is_gone_around() -> None:
    for gone, victim in (("node-2", "first hop"), ("node-2", "middle")):
        net = RelayNet(ring(4))
        net.lose(gone)
        deliver(net, 1, 3)
        assert transfers(net)[-1].path == ("node-1", "node-4", "node-3"), victim


def test_a_middle_node_without_a_way_on_is_gone_around() -> None:
    net = RelayNet(ring(4))
    del net.nodes["node-2"].context.connected["node-3"]
    deliver(net, 1, 3)
    assert {hop.path for hop in transfers(net)} == {
        ("node-1", "node-2", "node-3"),
        ("node-1", "node-4", "node-3"),
    }


def test_without_a_way_the_answer_says_why_and_nothing_is_delivered() -> None:
    net = RelayNet(LINE)
    net.chain.set_alarm("link-3-4", True)
    answer = net.ask("node-1", GetKeys("sae-1", "sae-5"))
    assert isinstance(answer, RequestError) and answer.status == 503
    assert "no link leads there" in answer.message
    net = RelayNet(LINE)
    net.lose("node-2")
    answer = net.ask("node-1", GetKeys("sae-1", "sae-5"))
    assert isinstance(answer, RequestError) and answer.status == 503 and "out of reach" in answer.message
    assert not net.recorded


def test_too_little_key_on_any_hop_is_503_with_the_hop() -> None:
    net = RelayNet(LINE)
    assert net.nodes["node-3"].keys.reserve("link-3-4", 1990) is not None
    answer = net.ask("node-1", GetKeys("sae-1", "sae-5"))
    assert isinstance(answer, RequestError) and answer.status == 503
    assert "node-3: not enough key towards node-4" in answer.message
    assert net.nodes["node-5"].keys.held_count == 0 and not net.recorded


def test_a_pool_is_given_out_to_the_last_key_and_then_refused() -> None:
    net = RelayNet([(0, 1)], block_bytes=4 * (TAG_KEY_BYTES + 32))
    deliver(net, 1, 2)
    deliver(net, 1, 2)
    deliver(net, 2, 1)
    deliver(net, 2, 1)
    for master, slave in ((1, 2), (2, 1)):
        answer = net.ask(f"node-{master}", GetKeys(f"sae-{master}", f"sae-{slave}"))
        assert isinstance(answer, RequestError) and answer.status == 503 and "not enough key" in answer.message
    assert not any(node.disk.get("key.chunk") for node in net.nodes.values()), "used key is gone from both disks"


# ---- lost answers


def drop(kind: type[Record], source: str, count: int = 1) -> Callable[[str, str, Record], list[Record]]:
    left = [count]

    def lose(sender: str, target: str, frame: Record) -> list[Record]:
        if isinstance(frame, kind) and sender == source and left[0]:
            left[0] -= 1
            return []
        return [frame]

    return lose


@pytest.mark.parametrize(
    ("kind", "source"),
    [(KeyTransfer, "node-1"), (KeyTransfer, "node-2"), (KeyTransferred, "node-3"), (KeyTransferred, "node-2")],
)
def test_a_lost_message_is_tried_another_way_after_the_deadline(kind: type[Record], source: str) -> None:
    """Also where only the answer was lost: the far node holds the first keys, and nobody ever learns their IDs."""
    net = RelayNet(ring(4))
    net.filter = drop(kind, source)
    assert net.ask("node-1", GetKeys("sae-1", "sae-3", 2)) is None
    net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
    (answer,) = net.answers.values()
    assert isinstance(answer, KeysAnswer), answer
    copy = net.ask("node-3", GetKeysWithIds("sae-3", "sae-1", tuple(key.key_id for key in answer.keys)))
    assert isinstance(copy, KeysAnswer)
    assert [key.key for key in copy.keys] == [key.key for key in answer.keys]
    assert [key.key_id for key in copy.keys] == [key.key_id for key in answer.keys]


def test_a_middle_node_that_dies_with_the_answer_is_gone_around_at_once() -> None:
    net = RelayNet(ring(4))
    net.filter = drop(KeyTransferred, "node-2")
    assert net.ask("node-1", GetKeys("sae-1", "sae-3")) is None
    net.lose("node-2")
    (answer,) = net.answers.values()
    assert isinstance(answer, KeysAnswer), answer


def test_a_late_answer_changes_nothing() -> None:
    net = RelayNet([(0, 1)])
    kept: list[Record] = []

    def keep(source: str, target: str, frame: Record) -> list[Record]:
        if isinstance(frame, KeyTransferred):
            kept.append(frame)
            return []
        return [frame]

    net.filter = keep
    assert net.ask("node-1", GetKeys("sae-1", "sae-2")) is None
    net.pass_time(30)
    (answer,) = net.answers.values()
    assert isinstance(answer, RequestError) and answer.status == 503 and "no answer" in answer.message
    for frame in kept:
        net.give("node-2", "node-1", frame)
    assert len(net.answers) == 1 and not net.recorded


def test_a_repeated_answer_delivers_once() -> None:
    net = RelayNet(LINE)
    net.filter = lambda source, target, frame: [frame, frame] if isinstance(frame, KeyTransferred) else [frame]
    deliver(net, 1, 5)
    assert len(net.recorded) == 1


def test_a_repeated_transfer_is_refused_as_used_key() -> None:
    net = RelayNet(LINE)
    deliver(net, 1, 2)
    (frame,) = transfers(net)
    net.seen.clear()
    net.give("node-1", "node-2", frame)
    (refusal,) = [frame for _, _, frame in net.seen]
    assert isinstance(refusal, KeyTransferred) and not refusal.stored
    assert net.nodes["node-2"].keys.held_count == 0


# ---- what no correct node sends

LIES: dict[str, Callable[[KeyTransfer], KeyTransfer]] = {
    "tag": lambda t: replace(t, tag=bytes(16)),
    "short tag": lambda t: replace(t, tag=t.tag[:8]),
    "no tag": lambda t: replace(t, tag=b""),
    "key IDs": lambda t: replace(t, key_ids=(bytes(16),)),
    "master": lambda t: replace(t, master_sae="sae-4"),
    "slave": lambda t: replace(t, slave_saes=("sae-2",)),
    "two slaves": lambda t: replace(t, slave_saes=("sae-3", "sae-2")),
    "transfer ID": lambda t: replace(t, transfer_id=bytes(16)),
    "size": lambda t: replace(t, size_bytes=16, key_ids=(*t.key_ids, bytes(16))),
    "hop": lambda t: replace(t, hop=t.hop + 1),
    "path": lambda t: replace(t, path=(*t.path, "node-9")),
    "path twice": lambda t: replace(t, path=(*t.path, t.path[0])),
    "no regions": lambda t: replace(t, regions=()),
    "regions": lambda t: replace(t, regions=((t.regions[0][0], 0, t.regions[0][2] + 1, t.regions[0][3]),)),
    "region size": lambda t: replace(t, regions=((*t.regions[0][:3], t.regions[0][3] + 1),)),
    "other link": lambda t: replace(t, regions=(("link-3-4", *t.regions[0][1:]),)),
    "ciphertext": lambda t: replace(t, ciphertext=bytes(len(t.ciphertext)) if t.ciphertext else b"x"),
    "short ciphertext": lambda t: replace(t, ciphertext=t.ciphertext[:-1] if t.ciphertext else b"x" * 32),
    "same ID twice": lambda t: replace(t, key_ids=t.key_ids * 2, size_bytes=t.size_bytes // 2),
    "no keys": lambda t: replace(t, key_ids=()),
    "zero size": lambda t: replace(t, size_bytes=0),
}


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize("lie", LIES)
def test_a_transfer_that_was_changed_on_the_way_is_refused(lie: str, hop: int) -> None:
    net = RelayNet(ring(4))

    def change(source: str, target: str, frame: Record) -> list[Record]:
        if isinstance(frame, KeyTransfer) and frame.hop == hop and frame.path[1] == "node-2":
            return [LIES[lie](frame)]
        return [frame]

    net.filter = change
    answer = net.ask("node-1", GetKeys("sae-1", "sae-3"))
    if answer is None:
        net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
        (answer,) = net.answers.values()
    assert not any(
        frame.stored for _, _, frame in net.seen if isinstance(frame, KeyTransferred) and _is_first(net, frame)
    )
    assert isinstance(answer, KeysAnswer), "and the way around is taken"
    copy = net.ask("node-3", GetKeysWithIds("sae-3", "sae-1", tuple(key.key_id for key in answer.keys)))
    assert isinstance(copy, KeysAnswer) and copy.keys[0].key == answer.keys[0].key
    assert net.nodes["node-3"].keys.held_count == 0, "nothing was stored for the false transfer"


def _is_first(net: RelayNet, answer: KeyTransferred) -> bool:
    return answer.transfer_id == transfers(net)[0].transfer_id


def test_a_stranger_cannot_send_for_a_neighbour() -> None:
    net = RelayNet(LINE)
    net.filter = lambda source, target, frame: []
    net.ask("node-1", GetKeys("sae-1", "sae-2"))
    net.filter = lambda source, target, frame: [frame]
    key = net.nodes["node-1"].keys
    assert key.available_bytes("link-1-2") < 2000
    forged = KeyTransfer(
        bytes(16),
        (b"k" * 16,),
        32,
        "sae-1",
        ("sae-2",),
        ("node-1", "node-2"),
        0,
        (("link-1-2", 0, 0, 64),),
        b"",
        b"T" * 16,
    )
    net.give("node-3", "node-2", forged)
    assert net.faults == [("node-3", "a key transfer that contradicts itself")]
    assert net.nodes["node-2"].keys.available_bytes("link-1-2", own=False) == 2000


def test_an_answer_from_a_node_that_was_not_asked_is_not_heard() -> None:
    """Neither at the beginning of the path nor in its middle: only the next hop may say that keys are stored."""
    for teller, hearer in (("node-4", "node-1"), ("node-1", "node-2")):
        net = RelayNet([*LINE, (3, 0)])
        net.filter = drop(KeyTransfer, "node-2", 9)
        net.chain.set_alarm("link-4-1", True)
        assert net.ask("node-1", GetKeys("sae-1", "sae-3")) is None
        transfer = transfers(net)[0]
        net.give(teller, hearer, KeyTransferred(transfer.transfer_id, True, "", ()))
        assert not net.answers and not net.recorded


@pytest.mark.parametrize(
    "regions",
    [
        (("", 0, 0, 1),),
        (("link-2-3", 0, 0, 0),),
        (("link-2-3", 0, 2**63 - 1, 8),),
        (("link-2-3", 0, 8, 2**63 - 1),),
        (("x" * 200, 0, 0, 1),),
        tuple(("link-2-3", 0, place, 1) for place in range(400)),
    ],
    ids=["no link", "empty", "far", "long", "long name", "many"],
)
def test_regions_that_the_chain_cannot_record_fail_the_transfer_and_raise_nothing(regions: Any) -> None:
    """A relay's claim enters a record: it must not bring the node down."""
    net = RelayNet(LINE)

    def boast(source: str, target: str, frame: Record) -> list[Record]:
        if isinstance(frame, KeyTransferred) and target == "node-1":
            return [replace(frame, regions=regions)]
        return [frame]

    net.filter = boast
    answer = net.ask("node-1", GetKeys("sae-1", "sae-3"))
    assert isinstance(answer, RequestError) and answer.status == 503
    assert not net.recorded


def test_a_transfer_over_many_small_blocks_is_delivered_or_refused_but_never_raises() -> None:
    """More pieces of key than a record can name (256, and 4096 bytes): refused with a reason."""
    for number in (20, 10):
        net = RelayNet(LINE, block_bytes=16, blocks=300)
        answer = net.ask("node-1", GetKeys("sae-1", "sae-5", number))
        assert isinstance(answer, RequestError) and answer.status == 503, answer
        deliver(net, 1, 5, 3)
        assert net.recorded and all(len(encode_transaction(record)) <= 4096 for record in net.recorded)


def test_a_refused_relay_keeps_memory_and_disk_alike() -> None:
    """A transfer ID that is under way already: the hop is refused before key is taken for it."""
    net = RelayNet(LINE)
    net.filter = drop(KeyTransfer, "node-2", 9)
    assert net.ask("node-1", GetKeys("sae-1", "sae-3")) is None
    assert net.ask("node-1", GetKeys("sae-1", "sae-3", 1, 128)) is None
    before = net.nodes["node-2"].keys.available_bytes("link-2-3")
    first, second = transfers(net)[:2]
    net.nodes["node-2"].relay._passing[b"X" * 16] = net.nodes["node-2"].relay._passing[first.transfer_id]
    net.filter = lambda source, target, frame: [] if isinstance(frame, KeyTransfer) and source == "node-2" else [frame]
    net.nodes["node-1"].context.entropy = Fixed(b"X" * 16, net.nodes["node-1"].context.entropy)
    net.ask("node-1", GetKeys("sae-1", "sae-3", 1, 512))
    assert second.transfer_id != first.transfer_id
    assert net.nodes["node-2"].keys.available_bytes("link-2-3") == before


class Fixed:
    """Gives one value for transfer IDs; key IDs come from elsewhere."""

    def __init__(self, value: bytes, rest: Any) -> None:
        self.value, self.rest, self.calls = value, rest, 0

    def take(self, size_bytes: int) -> bytes:
        self.calls += 1
        return self.rest.take(size_bytes) if self.calls == 1 else self.value


FIELDS = st.sampled_from(["transfer_id", "key_ids", "size_bytes", "path", "hop", "regions", "ciphertext", "tag"])
NODE = st.sampled_from([f"node-{index}" for index in range(1, 7)])
REGION = st.tuples(
    st.sampled_from(["link-1-2", "link-2-3", "link-9-9"]),
    st.integers(0, 2),
    st.integers(0, 5000) | st.integers(0, 2**63 - 1),
    st.integers(0, 100) | st.integers(0, 2**63 - 1),
)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        KeyTransfer,
        st.binary(min_size=15, max_size=16),
        st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple),
        st.integers(0, 40) | st.integers(0, 2**62),
        st.sampled_from(["sae-1", "sae-2", "sae-9", ""]),
        st.lists(st.sampled_from(["sae-2", "sae-3"]), max_size=2).map(tuple),
        st.lists(NODE, max_size=6).map(tuple),
        st.integers(0, 5) | st.integers(0, 2**62),
        st.lists(REGION, max_size=3).map(tuple),
        st.binary(max_size=40),
        st.binary(max_size=17),
    )
    | st.builds(KeyTransferred, st.binary(max_size=16), st.booleans(), st.text(max_size=9), st.just(()))
    | st.builds(
        PathProbe, st.binary(max_size=17), st.lists(NODE, max_size=6).map(tuple), st.integers(0, 9), st.integers(0, 99)
    )
    | st.builds(PathProbed, st.binary(max_size=16), st.integers(0, 2**62)),
    NODE.filter(lambda name: name != "node-6"),
    NODE.filter(lambda name: name != "node-6"),
)
def test_random_frames_store_nothing_and_raise_nothing(frame: Record, source: str, target: str) -> None:
    net = RelayNet(LINE, block_bytes=100)
    net.give(source, target, frame)
    assert all(node.keys.held_count == 0 for node in net.nodes.values())


# ---- probes


@pytest.mark.parametrize("edges", [LINE, ring(5)], ids=["line", "ring"])
def test_a_probe_finds_the_least_of_the_path(edges: list[tuple[int, int]]) -> None:
    net = RelayNet(edges)
    assert net.nodes["node-2"].keys.reserve("link-2-3", 1000) is not None
    status = net.ask("node-1", GetStatus("sae-1", "sae-3"))
    assert isinstance(status, StatusAnswer) and status.stored_key_count == 1000 // (TAG_KEY_BYTES + 32)
    delivered = 0
    while isinstance(net.ask("node-1", GetKeys("sae-1", "sae-3")), KeysAnswer) and delivered < status.stored_key_count:
        delivered += 1
    assert delivered == status.stored_key_count, "what status counts can be delivered"


def test_a_probe_without_a_way_or_without_an_answer_says_none() -> None:
    net = RelayNet(LINE)
    net.filter = drop(PathProbe, "node-2")
    assert net.ask("node-1", GetStatus("sae-1", "sae-5")) is None
    net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
    (status,) = net.answers.values()
    assert isinstance(status, StatusAnswer) and status.stored_key_count == 0
    net.lose("node-2")
    status = net.ask("node-1", GetStatus("sae-1", "sae-5"))
    assert isinstance(status, StatusAnswer) and status.stored_key_count == 0


def test_nothing_of_a_transfer_stays_behind() -> None:
    net = RelayNet(LINE)
    net.filter = drop(KeyTransfer, "node-3", 3)
    net.ask("node-1", GetKeys("sae-1", "sae-5"))
    net.ask("node-1", GetStatus("sae-1", "sae-5"))
    for _ in range(4):
        net.pass_time(TRANSFER_DEADLINE_NS / 1e9)
    for node in net.nodes.values():
        assert node.relay.next_deadline_ns() is None
        assert not node.relay._own and not node.relay._passing and not node.relay._probes
