"""Two nodes and the link between them: its key, its authentication streams, and what may go wrong on the way."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ledger.transactions import KeyBlockRecorded
from ledger.transactions import encode as encode_transaction
from protocol.authentication import HASH_KEY_BYTES, PAD_BYTES
from protocol.keys import KeyMaterial
from protocol.messages import Record
from protocol.session import AliceSession, BobSession
from qnode import links
from qnode.inputs import DocumentAnswer, RequestError, SetAttack, SubmitTransactions
from qnode.link_authentication import STREAM_TARGET_BYTES, WINDOW_BYTES_MIN
from qnode.links import Link
from qnode.streams import RESERVE_BYTES
from qnode.wire import LightFrame, LightTaken, SessionFrame, SessionRefused, decode, encode
from tests.qnode.virtual import Cluster

LINK = "link-1-2"
ATTACK = SetAttack(LINK, "intercept_resend", (("fraction", 1.0),))


def cluster(pulses: int = 200_000, target_bits: int = 1 << 20, count: int = 2) -> Cluster:
    return Cluster(count, [(index, index + 1) for index in range(count - 1)], pulses, target_bits)


def link_of(net: Cluster, name: str) -> Link:
    node = net.hosts[name].node
    assert node is not None
    return node._links[LINK]


def blocks(net: Cluster, count: int) -> Callable[[], bool]:
    return lambda: all(link.figures.blocks >= count for node in net.nodes() for link in node._links.values())


class Usage:
    """Watches every sealed message that leaves: no byte of a stream is used by two of them, ever."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, str], dict[int, tuple[bytes, int]]] = {}
        self.counts: dict[tuple[str, str, bytes], int] = {}

    def __call__(self, source: str, target: str, frame: bytes) -> bytes:
        record = decode(frame)
        if isinstance(record, SessionFrame):
            session = (source, record.link_id, record.nonce)
            sequence = self.counts.get(session, 0)
            self.counts[session] = sequence + 1
            stream = self.used.setdefault((source, record.link_id), {})
            pad = record.stream_offset + HASH_KEY_BYTES + PAD_BYTES * sequence
            for place in range(record.stream_offset, record.stream_offset + HASH_KEY_BYTES):
                assert stream.setdefault(place, (record.nonce, -1)) == (record.nonce, -1), (
                    "a hash key serves one session"
                )
            for place in range(pad, pad + PAD_BYTES):
                assert stream.setdefault(place, (record.nonce, sequence)) == (record.nonce, sequence)
                assert sequence >= 0
            body = hashlib.sha256(record.sealed).digest()
            assert stream.setdefault(-pad - 1, (body, 0)) == (body, 0), "a pad serves one message"
        return frame


def frames(kind: type[Record], act: Callable[[Any], list[Record]]) -> Callable[[str, str, bytes], list[bytes]]:
    def change(source: str, target: str, frame: bytes) -> list[bytes]:
        record = decode(frame)
        return [encode(each) for each in act(record)] if isinstance(record, kind) else [frame]

    return change


def first_only(kind: type[Record], act: Callable[[Any], list[Record]]) -> Callable[[str, str, bytes], list[bytes]]:
    left = [1]

    def once(record: Any) -> list[Record]:
        if not left[0]:
            return [record]
        left[0] -= 1
        return act(record)

    return frames(kind, once)


# ---- the cycle


def test_both_ends_hold_the_same_key_and_the_same_streams() -> None:
    net = cluster()
    net.filter = usage = Usage()
    assert net.run(blocks(net, 4), 20)
    net.filter = lambda source, target, frame: None  # let both finish what is under way, alone
    net.run(lambda: False, 3)
    one, other = (link_of(net, name).authentication for name in ("node-1", "node-2"))
    ends = [net.hosts[name].node for name in ("node-1", "node-2")]
    pools = [node._keys._pools[LINK].blocks for node in ends if node is not None]
    assert list(pools[0]) == list(pools[1])
    for number, halves in pools[0].items():
        assert [bytes(half.bits) for half in halves] == [bytes(half.bits) for half in pools[1][number]]
    for sender, receiver in ((one, other), (other, one)):
        assert sender.send.end == receiver.receive.end > 32_768, "refilled alike"
        start = max(sender.send.position, receiver.receive.position)
        assert sender.send.window(start, 10**6) == receiver.receive.window(start, 10**6)
    assert len(usage.counts) >= 8


def test_streams_grow_to_their_target_and_stay() -> None:
    net = cluster(400_000)
    assert net.run(blocks(net, 12), 30)
    for name in ("node-1", "node-2"):
        assert net.link_status(name, LINK)["authentication_bytes"] >= STREAM_TARGET_BYTES


def test_the_chain_records_what_both_ends_signed() -> None:
    net = cluster()
    assert net.run(blocks(net, 2), 20)
    for node in net.nodes():
        link = node.state.link(LINK)
        assert link is not None and link.blocks_recorded >= 2 and link.secret_bits > 0
        for number in range(2):
            block = node.state.key_block(LINK, number)
            assert block is not None and len(block.commitment) == 32


def test_a_full_pool_is_only_probed() -> None:
    net = cluster(target_bits=1)
    assert net.run(blocks(net, 1), 20)
    net.run(lambda: False, 45)
    status = net.link_status("node-1", LINK)
    assert status["blocks"] <= 2, "what was under way when the first block came"
    assert status["aborts"] == 0 and status["last_abort"] is None
    assert status["qber"] is not None


def test_a_pool_that_a_block_has_just_filled_is_left_in_peace() -> None:
    """The session that filled it has measured the error rate: the probe interval counts from it."""
    net = cluster(target_bits=1)
    assert net.run(blocks(net, 1), 20)
    link = link_of(net, "node-1")
    due_ns = link._probe_due_ns
    assert net.run(lambda: not net.link_status("node-2", LINK)["session_runs"], 5)
    status = net.link_status("node-1", LINK)
    assert status["pool_full"] and not status["session_runs"]
    assert net.run(lambda: bool(net.link_status("node-1", LINK)["session_runs"]), 20)
    assert link._services.context.now_ns >= due_ns


def test_a_pool_that_was_drained_is_filled_without_waiting_for_the_next_probe() -> None:
    net = cluster(target_bits=1)
    for host in net.hosts.values():
        assert host.node is not None
        for each in host.node._links.values():
            each._configuration = replace(each._configuration, probe_interval_ns=3_600_000_000_000)
    assert net.run(lambda: all(bool(net.link_status(name, LINK)["pool_full"]) for name in net.hosts), 20)
    net.run(lambda: False, 10)
    link = link_of(net, "node-1")
    before = link.figures.blocks
    for node in net.nodes():
        for link_id, number in node._keys.available_blocks():
            node._keys.destroy_block(link_id, number)
    assert net.run(lambda: link.figures.blocks > before, 5), "a second to notice, and a session"


def test_sessions_that_take_too_long_leave_as_much_time_to_others() -> None:
    """Where more sessions run than the cores carry, to begin again at once would keep all of them from ending."""
    net = cluster()
    net.filter = frames(SessionFrame, lambda frame: [])
    assert net.run(lambda: net.link_status("node-1", LINK)["aborts"] == 2, 150), "the first may have lost a frame"
    assert "too long" in net.link_status("node-1", LINK)["last_abort"]
    net.filter = lambda source, target, frame: frame
    assert not net.run(lambda: bool(net.link_status("node-1", LINK)["session_runs"]), 40)
    assert net.run(blocks(net, 1), 40)


def test_sessions_that_are_over_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes end in the middle of Bob's script; a daemon collects cycles too rarely to free megabytes by that."""
    net = cluster(target_bits=1)
    assert net.run(blocks(net, 1), 20)
    original = AliceSession._scripted, BobSession._scripted
    held: list[Any] = []

    def scripted(self: Any) -> Any:
        script = original[isinstance(self, BobSession)](self)
        held.append(script)
        return script

    monkeypatch.setattr(AliceSession, "_scripted", scripted)
    monkeypatch.setattr(BobSession, "_scripted", scripted)
    assert net.run(lambda: len(held) >= 8, 200)
    under_way = 2
    assert all(script.gi_frame is None for script in held[:-under_way]), "a script that is over lets go of its frame"


def test_a_link_whose_chain_stands_still_waits() -> None:
    """Without a quorum at most four blocks wait for the chain, and nobody spins meanwhile."""
    net = Cluster(3, [(0, 1), (1, 2)], 200_000)
    assert net.run(blocks(net, 1), 20)
    net.crash("node-3")
    inputs = [0]
    net._note = lambda name, effects: inputs.__setitem__(0, inputs[0] + 1)  # type: ignore[method-assign]
    net.run(lambda: False, 30)
    node = net.hosts["node-1"].node
    assert node is not None and len(node._keys.pending_blocks()) <= 5
    assert inputs[0] < 5_000, "steps in half a minute of waiting"
    net.start("node-3")
    done = link_of(net, "node-1").figures.blocks
    assert net.run(lambda: link_of(net, "node-1").figures.blocks > done + 4, 20)


def test_a_block_that_fills_the_pool_is_waited_for() -> None:
    """A slow chain is no reason to make key that nobody wants: that would keep it slow."""
    net = Cluster(3, [(0, 1), (1, 2)], 200_000, 1)
    net.run(lambda: False, 0)
    net.crash("node-3")
    net.run(lambda: False, 30)
    node = net.hosts["node-1"].node
    assert node is not None and len(node._keys.pending_blocks()) <= 1
    net.start("node-3")
    assert net.run(lambda: link_of(net, "node-1").figures.blocks == 1, 30)


@pytest.mark.slow
def test_key_that_the_chain_never_records_is_destroyed_at_its_height(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "RECORD_LIFETIME_HEIGHTS", 3)
    net = cluster(count=3)
    lost = []

    def lose_signatures(source: str, target: str, frame: bytes) -> bytes | None:
        """Bob's last message is lost: he has signed, Alice waits, no record."""
        record = decode(frame)
        if isinstance(record, SessionFrame) and len(record.sealed) == 16 + 68 and record.link_id == LINK:
            lost.append(record)
            return None
        return frame

    net.filter = lose_signatures
    net.run(lambda: bool(lost), 10)
    node = net.hosts["node-2"].node
    assert lost and node is not None
    number = lost[0].block_number
    assert (LINK, number) in [pending[:2] for pending in node._keys.pending_blocks()]
    net.filter = lambda source, target, frame: frame
    assert net.run(lambda: (LINK, number) not in [p[:2] for p in node._keys.pending_blocks()], 60)
    assert net.run(lambda: link_of(net, "node-1").figures.blocks >= 2, 90), "and the link goes on"


# ---- loss, repetition, silence


@pytest.mark.parametrize("place", [0, 1, 2, 3, 5, 9, 20, 40])
def test_a_connection_lost_at_any_moment_costs_one_block(place: int) -> None:
    net = cluster()
    usage, seen = Usage(), [0]

    def cut(source: str, target: str, frame: bytes) -> bytes | None:
        if isinstance(decode(frame), SessionFrame):
            seen[0] += 1
            if seen[0] == place + 1:
                net._at(0, lambda: net.cut("node-1", "node-2"))
                net._at(50_000_000, lambda: net.mend("node-1", "node-2"))
        return usage(source, target, frame)

    net.filter = cut
    assert net.run(blocks(net, 2), 30)
    assert link_of(net, "node-1").figures.aborts <= 2
    assert net.link_status("node-1", LINK)["attacked_aborts"] == 0


@pytest.mark.parametrize("kind", [SessionFrame, LightFrame, LightTaken], ids=lambda kind: kind.__name__)
def test_a_lost_frame_ends_at_most_one_session(kind: type[Record]) -> None:
    net = cluster()
    net.filter = first_only(kind, lambda record: [])
    assert net.run(blocks(net, 2), 100), "after the session's deadline at the latest"
    assert net.link_status("node-1", LINK)["attacked_aborts"] == 0


@pytest.mark.parametrize("kind", [SessionFrame, LightFrame, LightTaken, SessionRefused], ids=lambda kind: kind.__name__)
def test_repeated_frames_bring_no_node_down_and_no_key_into_doubt(kind: type[Record]) -> None:
    net = cluster()
    usage = Usage()
    repeat = frames(kind, lambda record: [record, record])
    net.filter = lambda source, target, frame: (usage(source, target, frame), repeat(source, target, frame))[1]
    net.run(lambda: False, 5)
    net.filter = usage
    done = link_of(net, "node-2").figures.blocks
    assert net.run(lambda: link_of(net, "node-2").figures.blocks > done, 90)


def test_bobs_first_answer_twice_at_once_is_one_answer_and_a_forgery() -> None:
    """The second arrives while the job that opens the first runs: the window of the peer is given once."""
    net = cluster()
    net.run(lambda: False, 0.0001)
    net.filter = lambda source, target, frame: (
        [frame, frame] if source == "node-2" and isinstance(decode(frame), SessionFrame) else [frame]
    )
    net.run(lambda: False, 0.5)
    assert "forged" in str(net.link_status("node-1", LINK)["last_abort"])


def test_swapped_light_ends_the_block() -> None:
    net = cluster(pulses=600_000)
    held: list[Record] = []

    def swap(record: LightFrame) -> list[Record]:
        if record.chunk == 0 and not held and not record.last:
            held.append(record)
            return []
        return [record, held[0]] if len(held) == 1 and record.chunk == 1 else [record]

    net.filter = frames(LightFrame, swap)
    assert net.run(blocks(net, 1), 100)


# ---- strangers inside the connection


def session_frame(number: int, offset: int, reply: int = 0, sealed: bytes = b"T" * 60) -> bytes:
    return encode(SessionFrame(LINK, number, b"N" * 16, offset, reply, sealed))


def quiet(net: Cluster) -> None:
    """Let the session under way end and start no other: the pool is full."""
    assert net.run(blocks(net, 1), 20)
    net.run(lambda: all(link_of(net, name).session is None for name in ("node-1", "node-2")), 5)


@pytest.mark.parametrize("number", [5, 2**40, 2**63 - 1])
@pytest.mark.parametrize("where", ["start", "end"])
def test_a_forged_opening_costs_no_key_and_no_block_number(number: int, where: str) -> None:
    """It raises the alarm, and that is all: the link goes on where it was."""
    net = cluster(target_bits=1)
    quiet(net)
    bob = link_of(net, "node-2")
    position, reply = bob.authentication.receive.position, bob.authentication.send.position
    offset = position if where == "start" else bob.authentication.receive.end - WINDOW_BYTES_MIN
    answer = reply if where == "start" else reply + RESERVE_BYTES
    net.inject("node-1", "node-2", session_frame(number, offset, answer))
    assert net.run(lambda: bob.figures.attacked_aborts == 1, 1)
    assert (bob.authentication.receive.position, bob.authentication.send.position) == (position, reply)
    assert bob.authentication.last_block_number < 5
    assert net.run(lambda: net.nodes()[0]._is_alarmed(LINK), 5)
    done = bob.figures.blocks
    assert net.run(lambda: link_of(net, "node-1").figures.blocks > done, 60), "an alarmed link distils again"
    assert not net.nodes()[0]._is_alarmed(LINK)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"number": 0}, "the block number was used"),
        ({"offset": 0}, "that authentication key was used"),
        ({"offset": 2**62}, "not yet known here"),
        ({"reply": 2**62}, "far ahead"),
        ({"sealed": b"T" * 5000}, "too long"),
    ],
)
def test_openings_that_cannot_be_are_refused_with_a_reason(change: dict[str, Any], reason: str) -> None:
    net = cluster(target_bits=1)
    quiet(net)
    bob = link_of(net, "node-2")
    seen: list[str] = []

    def watch(source: str, target: str, frame: bytes) -> bytes:
        record = decode(frame)
        if isinstance(record, SessionRefused):
            seen.append(record.reason)
        return frame

    net.filter = watch
    net.inject(
        "node-1", "node-2", session_frame(**({"number": 99, "offset": bob.authentication.receive.position} | change))
    )
    net.run(lambda: False, 0.1)
    assert len(seen) == 1 and reason in seen[0]
    assert bob.session is None and bob.figures.aborts == 0


def test_a_replayed_session_is_refused_after_a_restart_of_the_receiver() -> None:
    net = cluster(target_bits=1)
    sent: list[bytes] = []

    def record_all(source: str, target: str, frame: bytes) -> bytes:
        if source == "node-1" and isinstance(decode(frame), SessionFrame):
            sent.append(frame)
        return frame

    net.filter = record_all
    quiet(net)
    net.crash("node-2")
    net.start("node-2")
    bob = link_of(net, "node-2")
    for frame in list(sent):
        opening = decode(frame)
        assert isinstance(opening, SessionFrame)
        used = opening.stream_offset < bob.authentication.receive.position
        assert used or opening.block_number > bob.authentication.last_block_number
        net.inject("node-1", "node-2", frame)
        assert bob.session is None, "not even as a forgery"


def test_a_receiver_killed_in_a_session_never_takes_its_key_again() -> None:
    net = cluster()
    offsets: list[int] = []

    def watch(source: str, target: str, frame: bytes) -> bytes:
        record = decode(frame)
        if source == "node-1" and isinstance(record, SessionFrame):
            offsets.append(record.stream_offset)
        return frame

    net.filter = watch
    assert net.run(lambda: len(offsets) >= 20, 10)
    net.crash("node-2")
    heard = offsets[-1] + HASH_KEY_BYTES + PAD_BYTES * (offsets.count(offsets[-1]) - 2)
    net.start("node-2")
    assert link_of(net, "node-2").authentication.receive.position >= heard


def test_false_positions_of_the_peer_end_the_session_only() -> None:
    net = cluster()
    net.filter = first_only(SessionFrame, lambda record: [replace(record, reply_offset=2**62)])
    assert net.run(blocks(net, 1), 60)
    net = cluster()
    seen = [0]

    def behind(source: str, target: str, frame: bytes) -> bytes:
        record = decode(frame)
        if source == "node-2" and isinstance(record, SessionFrame) and seen[0] < 60:
            seen[0] += 1
            return encode(replace(record, stream_offset=max(0, record.stream_offset - 16)))
        return frame

    net.filter = behind
    assert net.run(blocks(net, 2), 90)


def test_a_refusal_that_claims_too_much_leaves_the_link_alive_or_says_so() -> None:
    net = cluster()
    net.filter = first_only(
        SessionFrame, lambda record: [SessionRefused(LINK, record.block_number, "no", 0, 2**63 - 1)]
    )
    net.run(lambda: False, 0.01)
    alice = link_of(net, "node-1")
    net.inject("node-2", "node-1", encode(SessionRefused(LINK, 0, "no", 0, 2**63 - 1)))
    assert net.run(lambda: alice.figures.blocks >= 2, 60)
    assert alice.authentication.last_block_number <= 2**62 + 100


def test_a_strangers_refusal_burns_at_most_one_reservation() -> None:
    net = cluster()
    alice = link_of(net, "node-1")
    net.filter = lambda source, target, frame: None if source == "node-1" else frame
    assert net.run(lambda: alice.session is not None and alice.session.loan.send_used > 0, 5)
    number = alice.authentication.last_block_number
    net.inject("node-2", "node-1", encode(SessionRefused(LINK, number, "", 2**62, 0)))
    assert alice.session is None
    assert alice.authentication.send.position <= 2 * (HASH_KEY_BYTES + PAD_BYTES) + RESERVE_BYTES
    net.filter = lambda source, target, frame: frame
    assert net.run(blocks(net, 2), 30), "and both ends meet again"


def test_a_receiver_that_restarts_in_every_session_is_met_again() -> None:
    """Its durable position runs ahead of what it heard: a refusal tells the transmitter where to go on."""
    net = cluster()
    net.filter = usage = Usage()
    for _ in range(6):
        done = len(usage.counts)
        assert net.run(lambda done=done: len(usage.counts) > done + 1, 30)
        net.crash("node-2")
        net.start("node-2")
    assert net.run(blocks(net, 2), 60)
    refusals = [log for _, log in net.logs if "refused" in str(log.fields)]
    assert refusals, "the way back was needed"


def test_messages_for_links_of_others_are_faults() -> None:
    net = Cluster(3, [(0, 1), (1, 2)], 200_000)
    net.run(lambda: len(net.hosts["node-2"].node._context.connected) == 2, 5)  # type: ignore[union-attr]
    for frame in (
        SessionFrame("link-1-2", 0, b"N" * 16, 0, 0, b""),
        LightFrame("link-1-2", 0, 0, True, b""),
        SessionRefused("link-9-9", 0, "", 0, 0),
        LightTaken("", 0, 0),
    ):
        net.inject("node-3", "node-2", encode(frame))
    assert net.nodes()[1]._fault_count == 4


# ---- records of others


def test_a_strangers_false_record_does_not_cost_the_key() -> None:
    """Anybody may submit a false record of a link's next block: the chain refuses it, no key is lost."""
    net = cluster(count=3)
    assert net.run(lambda: link_of(net, "node-1").figures.blocks >= 1, 20)
    alice = net.hosts["node-1"].node
    assert alice is not None
    state = alice.state.key_block(LINK, 0)
    assert state is not None
    done = link_of(net, "node-1").figures.blocks
    for number in range(done, done + 6):
        false = KeyBlockRecorded(
            LINK, number, 9, 9, 9, 1, 0, 0, 0, 0, 1, 1, "p", "m", bytes(32), 2**40, bytes(64), bytes(64)
        )
        answer = net.answer("node-3", SubmitTransactions((encode_transaction(false),)))
        assert answer is not None
    assert net.run(lambda: link_of(net, "node-1").figures.blocks >= done + 6, 30)
    errors = [log for _, log in net.logs if log.level == "error"]
    assert not errors
    ends = [link_of(net, name) for name in ("node-1", "node-2")]
    net.run(lambda: ends[0].figures.blocks == ends[1].figures.blocks, 5)
    one, other = (end.authentication for end in ends)
    assert one.send.end == other.receive.end and other.send.end == one.receive.end


# ---- eavesdroppers


def test_an_eavesdropper_is_noticed_alarmed_and_forgotten() -> None:
    net = cluster()
    assert net.run(blocks(net, 1), 20)
    net.answer("node-1", ATTACK)
    assert net.run(lambda: all(node._is_alarmed(LINK) for node in net.nodes()), 20)
    before = link_of(net, "node-1").figures.blocks
    net.run(lambda: False, 10)
    assert link_of(net, "node-1").figures.blocks == before, "no key under attack"
    for name in ("node-1", "node-2"):
        status = net.link_status(name, LINK)
        assert status["qber"] > 0.2 and "QBER" in status["last_abort"] and status["attacked_aborts"] >= 2
    net.answer("node-1", SetAttack(LINK, None))
    assert net.run(lambda: not any(node._is_alarmed(LINK) for node in net.nodes()), 20)
    assert link_of(net, "node-1").figures.blocks > before


@pytest.mark.slow
def test_minutes_of_attack_leave_the_link_able_to_recover() -> None:
    net = cluster()
    assert net.run(blocks(net, 1), 20)
    net.answer("node-1", ATTACK)
    net.run(lambda: False, 120)
    net.answer("node-1", SetAttack(LINK, None))
    done = link_of(net, "node-1").figures.blocks
    assert net.run(lambda: link_of(net, "node-1").figures.blocks > done + 2, 30)


def test_a_link_without_authentication_key_stops_and_says_so() -> None:
    net = cluster(pulses=3_000)  # every block fails, and none refills
    alice = link_of(net, "node-1")
    alice.authentication.send.advance(alice.authentication.send.end - WINDOW_BYTES_MIN - 100)
    alice._services.context.take()
    assert net.run(lambda: "exhausted" in str(alice.figures.last_abort), 60)
    assert any(log.event == "link stopped" for _, log in net.logs)
    steps = len(net.logs)
    net.run(lambda: False, 60)
    assert len(net.logs) - steps < 40, "it looks again now and then"


# ---- secrets


def test_no_log_status_or_repr_shows_key() -> None:
    net = cluster()
    secrets: set[bytes] = set()
    reveal = KeyMaterial.reveal

    def watched(self: KeyMaterial) -> bytes:
        secret = reveal(self)
        secrets.add(secret)
        return secret

    KeyMaterial.reveal = watched  # type: ignore[method-assign]
    try:
        assert net.run(blocks(net, 2), 20)
    finally:
        KeyMaterial.reveal = reveal  # type: ignore[method-assign]
    shown = repr(net.logs) + repr([node._status() for node in net.nodes()])
    shown += repr([host.setup for host in net.hosts.values()]) + repr(link_of(net, "node-1")._configuration)
    assert len(secrets) > 4
    for secret in secrets:
        for start in range(0, len(secret) - 8, 64):
            piece = secret[start : start + 8]
            assert piece.hex() not in shown and repr(piece)[2:-1] not in shown


def test_a_man_in_the_middle_is_stopped_by_the_tags() -> None:
    cluster = Cluster(2, [(0, 1)])
    assert cluster.run(lambda: all(link["blocks"] >= 1 for link in _links(cluster)), 20)
    attack = SetAttack("link-1-2", "man_in_the_middle+jamming", (("man_in_the_middle.fraction", 0.0),))
    assert isinstance(cluster.answer("node-1", attack), DocumentAnswer)
    assert cluster.run(lambda: any(link["alarmed"] for link in _links(cluster)), 30)
    assert any("forged message" in (link["last_abort"] or "") for link in _links(cluster))
    assert isinstance(cluster.answer("node-1", SetAttack("link-1-2", None)), DocumentAnswer)
    assert cluster.run(lambda: not any(link["alarmed"] for link in _links(cluster)), 60)


def test_a_row_of_attacks_with_a_stray_parameter_is_refused() -> None:
    cluster = Cluster(2, [(0, 1)])
    attack = SetAttack("link-1-2", "intercept_resend+jamming", (("fraction", 1.0),))
    answer = cluster.answer("node-1", attack)
    assert isinstance(answer, RequestError)
    assert "kind.parameter" in answer.message


def _links(cluster: Cluster) -> list[dict[str, Any]]:
    return [link for node in cluster.nodes() for link in node._status()["links"]]


def test_first_sessions_begin_at_different_moments() -> None:
    net = cluster(count=6)
    spread_ns = 50_000_000_000
    starts = set()
    for host in net.hosts.values():
        assert host.node is not None
        for link in host.node._links.values():
            late = Link(replace(link._configuration, start_spread_ns=spread_ns), link._services, {})
            wait_ns = late._rests_until_ns - link._services.context.now_ns
            assert 0 <= wait_ns <= spread_ns
            starts.add(wait_ns // 1_000_000_000)
    assert len(starts) > 4
