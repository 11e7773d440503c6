"""The heart: whatever arrives, `step` returns effects and never raises; requests are answered; faults are counted."""

import json
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.delivery_proof import check_delivery
from protocol.messages import Record
from qnode.effects import Disconnect, Effect, Respond
from qnode.inputs import (
    DocumentAnswer,
    FrameReceived,
    GetBlocks,
    GetKeys,
    GetNodeStatus,
    GetProof,
    KeysAnswer,
    PeerConnected,
    PeerLost,
    Requested,
    RequestError,
    SetAttack,
    SubmitTransactions,
    Ticked,
)
from qnode.node import FAULTS_MAX, HOUSEKEEPING_NS, IDLE_HOUSEKEEPING_NS, Node
from qnode.relay import HELD_LIFETIME_NS
from qnode.wire import (
    FRAMES,
    KeyTransfer,
    KeyTransferred,
    LedgerFrame,
    LightFrame,
    LightTaken,
    PathProbe,
    SessionFrame,
    SessionRefused,
    encode,
)
from tests.qnode.test_wire import ANY_FRAME
from tests.qnode.virtual import Cluster

LINK = "link-1-2"


def cluster(count: int = 2) -> Cluster:
    net = Cluster(count, [(index, index + 1) for index in range(count - 1)], 200_000, 1)
    assert net.run(lambda: all(link.figures.blocks for node in net.nodes() for link in node._links.values()), 20)
    return net


def node_of(net: Cluster, name: str = "node-1") -> Node:
    node = net.hosts[name].node
    assert node is not None
    return node


def answer(node: Node, now_ns: int, request: object) -> object:
    effects: list[Effect] = node.step(now_ns, Requested(7, request))  # type: ignore[arg-type]
    return next(effect.answer for effect in effects if isinstance(effect, Respond))


@pytest.fixture(scope="module")
def shared() -> Cluster:
    """One cluster whose first node takes whatever the tests below throw at it."""
    return cluster(3)


@pytest.fixture(scope="module")
def running() -> Cluster:
    """Two nodes in the middle of their first session."""
    return Cluster(2, [(0, 1)], 200_000)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["node-1", "node-3", "stranger"]), ANY_FRAME | st.binary(max_size=80))
def test_any_frame_from_anybody_makes_effects_and_no_exception(
    shared: Cluster, source: str, frame: Record | bytes
) -> None:
    node = node_of(shared, "node-2")
    data = frame if isinstance(frame, bytes) else encode(frame)
    assert isinstance(node.step(shared.now_ns, FrameReceived(source, data)), list)


NEAR = st.sampled_from([0, 1, 2, 16, 1040, 4096, 32_768, 2**31, 2**62, 2**63 - 1])


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        SessionFrame, st.just("link-1-2"), NEAR, st.binary(min_size=16, max_size=16), NEAR, NEAR, st.binary(max_size=90)
    )
    | st.builds(LightFrame, st.just("link-1-2"), NEAR, NEAR, st.booleans(), st.binary(max_size=60))
    | st.builds(LightTaken, st.just("link-1-2"), NEAR, NEAR)
    | st.builds(SessionRefused, st.just("link-1-2"), NEAR, st.text(max_size=9), NEAR, NEAR)
    | st.builds(LedgerFrame, st.binary(max_size=120)),
    st.sampled_from(["node-1", "node-2"]),
)
def test_any_frame_of_the_neighbour_during_a_session_makes_no_exception(
    running: Cluster, frame: Record, target: str
) -> None:
    net = running
    net.inject("node-1" if target == "node-2" else "node-2", target, encode(frame))
    net.run(lambda: False, 0.01)


def test_the_cluster_that_was_attacked_by_the_test_above_recovers(running: Cluster) -> None:
    done = [link.figures.blocks for node in running.nodes() for link in node._links.values()]
    assert running.run(
        lambda: all(
            link.figures.blocks > before
            for node, before in zip(running.nodes(), done, strict=True)
            for link in node._links.values()
        ),
        200,
    )


# ---- faults


def test_three_faults_end_a_connection_and_a_new_one_starts_from_none() -> None:
    net = cluster()
    node = node_of(net)

    def faulty() -> list[Effect]:
        return node.step(net.now_ns, FrameReceived("node-2", b"\xc1"))

    for _ in range(2):
        for _ in range(FAULTS_MAX - 1):
            assert not any(isinstance(effect, Disconnect) for effect in faulty())
        node.step(net.now_ns, PeerConnected("node-2"))
    for _ in range(FAULTS_MAX - 1):
        faulty()
    (cut,) = [effect for effect in faulty() if isinstance(effect, Disconnect)]
    assert cut.peer == "node-2" and cut.reason


def test_faults_of_one_peer_do_not_cost_another() -> None:
    net = cluster(3)
    node = node_of(net, "node-2")
    for _ in range(FAULTS_MAX - 1):
        node.step(net.now_ns, FrameReceived("node-1", b""))
    effects = node.step(net.now_ns, FrameReceived("node-3", b""))
    assert not any(isinstance(effect, Disconnect) for effect in effects)


def test_every_kind_of_frame_is_handled() -> None:
    """A new frame needs a place in `Node._frame`: these are the ones with a place."""
    known = {LedgerFrame, SessionFrame, LightFrame, SessionRefused, KeyTransfer, KeyTransferred, PathProbe, LightTaken}
    assert {kind.__name__ for kind in FRAMES.values()} == {kind.__name__ for kind in known} | {"PathProbed"}


# ---- requests


def test_operators_requests_are_answered(shared: Cluster) -> None:
    node, now_ns = node_of(shared), shared.now_ns
    status = answer(node, now_ns, GetNodeStatus())
    assert isinstance(status, DocumentAnswer)
    assert json.loads(json.dumps(status.document))["node_id"] == "node-1"
    blocks = answer(node, now_ns, GetBlocks(1, 1))
    assert isinstance(blocks, DocumentAnswer) and len(blocks.document["blocks"]) == 1
    json.dumps(blocks.document)
    assert isinstance(answer(node, now_ns, GetBlocks(10**9, 10**9)), DocumentAnswer)


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (SetAttack("link-9-9", None), 404, "it has link-1-2"),
        (SetAttack(LINK, "sorcery"), 400, "sorcery"),
        (SetAttack(LINK, "intercept_resend", (("fraction", 2.0),)), 400, "fraction"),
        (SetAttack(LINK, "intercept_resend", (("magic", 1.0),)), 400, "magic"),
    ],
    ids=str,
)
def test_attacks_that_cannot_be_say_why(shared: Cluster, request_: SetAttack, status: int, text: str) -> None:
    refused = answer(node_of(shared), shared.now_ns, request_)
    assert isinstance(refused, RequestError) and refused.status == status and text in refused.message


def test_an_attack_is_set_at_the_transmitter(shared: Cluster) -> None:
    refused = answer(node_of(shared, "node-2"), shared.now_ns, SetAttack(LINK, None))
    assert isinstance(refused, RequestError) and refused.status == 409 and "ask node-1" in refused.message


def test_submitted_nonsense_is_refused_with_a_reason(shared: Cluster) -> None:
    for nonsense in ((b"",), (b"\xc1",), (b"x" * 100, b"y"), ()):
        refused = shared.answer("node-1", SubmitTransactions(nonsense))
        assert isinstance(refused, RequestError | DocumentAnswer)
        assert not nonsense or isinstance(refused, RequestError)


def test_a_key_is_proved_as_soon_as_it_was_delivered() -> None:
    """Over two links; the proof waits for the blocks that it needs, and holds with the genesis alone."""
    net = cluster(3)
    keys = net.answer("node-1", GetKeys("sae-1", "sae-3"))
    assert isinstance(keys, KeysAnswer)
    (key,) = keys.keys
    for name in ("node-1", "node-2"):
        answered = net.answer(name, GetProof(key.key_id))
        assert isinstance(answered, DocumentAnswer), answered
        statement = check_delivery(json.loads(json.dumps(answered.document)), net.genesis)
        assert statement.ok and statement.key_id == key.key_id
        assert statement.record.path == ("node-1", "node-2", "node-3")
        assert dict(statement.ends) == {"link-1-2": ("node-1", "node-2"), "link-2-3": ("node-2", "node-3")}
        assert statement.security_millibits is not None and statement.security_millibits > 0
        assert key.key.reveal().hex() not in json.dumps(answered.document)


def test_records_of_deliveries_share_blocks_and_survive_a_crash_before_them() -> None:
    net = Cluster(2, [(0, 1)], 1_000_000, 40_000)
    assert net.run(lambda: net.link_status("node-1", LINK)["available_bytes"] >= 30 * 64, 20)
    before = node_of(net).state.height
    keys: list[bytes] = []
    for _ in range(30):
        found = net.answer("node-1", GetKeys("sae-1", "sae-2"))
        assert isinstance(found, KeysAnswer)
        keys.append(uuid.UUID(found.keys[0].key_id).bytes)
        net.run(lambda: False, 0.01)
    assert node_of(net).state.height - before <= 10, "one block in a tenth of a second, not one per key"
    assert any(node_of(net).state.delivery(key) is None for key in keys), "the newest have not been recorded yet"
    net.crash("node-1")
    net.start("node-1")
    assert net.run(lambda: all(node.state.delivery(key) for node in net.nodes() for key in keys), 20)


@pytest.mark.parametrize(("key_id", "status"), [("x", 400), ("00000000-0000-4000-8000-000000000000", 404)])
def test_no_proof_without_a_delivery(shared: Cluster, key_id: str, status: int) -> None:
    refused = shared.answer("node-1", GetProof(key_id))
    assert isinstance(refused, RequestError) and refused.status == status


# ---- time


def test_time_never_runs_backwards_and_deadlines_move_on() -> None:
    net = cluster()
    node = node_of(net)
    node.step(net.now_ns, Ticked())
    node.step(net.now_ns - 10**12, Ticked())
    assert node._context.now_ns == net.now_ns
    for _ in range(50):
        deadline = node.next_deadline_ns()
        assert deadline <= node._context.now_ns + IDLE_HOUSEKEEPING_NS
        node.step(max(deadline, node._context.now_ns), Ticked())
        assert node.next_deadline_ns() > node._context.now_ns - 1


def test_a_node_of_which_nobody_wants_anything_keeps_house_seldom() -> None:
    net = cluster()
    node = node_of(net)
    node.step(net.now_ns + 2 * HOUSEKEEPING_NS, Ticked())
    assert node._housekeeping_ns == node._context.now_ns + IDLE_HOUSEKEEPING_NS
    net.now_ns = node._context.now_ns
    net.answer("node-1", GetKeys("sae-1", "sae-2"))
    for each in (node, node_of(net, "node-2")):  # the pools of both were drawn from, and the slave's holds a key
        assert each._housekeeping_ns <= each._context.now_ns + HOUSEKEEPING_NS
    other = node_of(net, "node-2")
    other.step(net.now_ns + 2 * HOUSEKEEPING_NS, Ticked())
    assert other._housekeeping_ns == other._context.now_ns + HOUSEKEEPING_NS, "a held key expires"


def test_keys_that_nobody_fetches_are_destroyed_in_time() -> None:
    net = cluster()
    net.answer("node-1", GetKeys("sae-1", "sae-2"))
    node = node_of(net, "node-2")
    assert node._keys.held_count == 1
    node.step(net.now_ns + HELD_LIFETIME_NS - 2 * HOUSEKEEPING_NS, Ticked())
    assert node._keys.held_count == 1
    node.step(net.now_ns + HELD_LIFETIME_NS + HOUSEKEEPING_NS, Ticked())
    assert node._keys.held_count == 0


def test_peers_that_come_and_go_in_any_order_are_taken() -> None:
    net = cluster()
    node = node_of(net)
    for happened in (PeerLost("node-2", ""), PeerLost("node-2", ""), PeerConnected("node-2"), PeerLost("nobody", "")):
        node.step(net.now_ns, happened)
    assert node._context.connected == {"node-2": None}


def test_a_node_restarts_from_its_disk_to_the_same_state() -> None:
    net = cluster()
    assert net.run(lambda: node_of(net)._status()["keys"]["pending_blocks"] == 0, 5)
    net.run(lambda: False, 0.5)
    before = node_of(net)._status()
    net.crash("node-1")
    net.start("node-1")
    after = node_of(net)._status()
    assert after["ledger"]["height"] == before["ledger"]["height"]
    assert after["ledger"]["state_root"] == before["ledger"]["state_root"]
    for name in ("available_bytes", "available_bytes_peer"):
        assert after["links"][0][name] == before["links"][0][name]
