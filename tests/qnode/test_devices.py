"""The node's device plane in virtual time: enrolment, sessions, readings, restarts, revocation, and bad input."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.contracts.actions import encode_action
from ledger.contracts.document import policy_from_document
from ledger.contracts.entries import PolicyEntry
from ledger.contracts.policy_actions import SetPolicy
from ledger.execution import Receipt
from ledger.outputs import SnapshotAdopted
from ledger.transactions import DeviceRegistered, GovernanceApproved, GovernanceProposed, transaction_id
from ledger.transactions import encode as encode_transaction
from protocol.entropy import SeededEntropy
from protocol.lightweight import enrolment
from protocol.lightweight.enrolment import Enrol
from protocol.lightweight.length import DevicePolicy
from protocol.records import encode_record
from qnode.device.agent import Agent, DeviceState
from qnode.device.energy import Battery, Profile
from qnode.device_plane import DevicePlane
from qnode.devices import Devices
from qnode.inputs import (
    DeviceFrame,
    DeviceReply,
    DocumentAnswer,
    EnrolmentAnswer,
    GetDevices,
    GetReadings,
    IssueEnrolment,
    RequestError,
    RevokeDevice,
    SetDeviceAttack,
    SubmitTransactions,
)
from tests.protocol.test_lightweight import PARAMETERS
from tests.qnode.virtual import Cluster

PROFILE = Profile(
    name="test",
    battery_j=1000.0,
    charge_share=1.0,
    harvest_w=0.0,
    idle_w=0.0,
    qubit_j=5e-5,
    sent_byte_j=1e-7,
    received_byte_j=1e-7,
    cycle_j=1.5e-10,
    alpha_bits_per_j=0.5,
    reserve_share=0.05,
    misalignment=0.005,
    dark_count_probability=1e-6,
    refresh_s=60.0,
    refresh_bytes=1 << 20,
    refresh_messages=20,
    expected_qber=0.01,
)


def make_cluster(count: int = 2) -> Cluster:
    cluster = Cluster(count, edges=[(0, 1)], block_pulses=10_000)
    for name, host in cluster.hosts.items():
        host.setup = replace(host.setup, devices=DevicePlane(PARAMETERS))
        cluster.crash(name)
        cluster.start(name)
    return cluster


class Ward:
    """One device beside a virtual cluster; `carry` takes its frames to node-1 and the answers back."""

    def __init__(self, cluster: Cluster, name: str = "ecg-1", *, pad: bool = False) -> None:
        self.cluster = cluster
        self.name = name
        self.pad = pad
        self.identity = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))
        self.saved: list[DeviceState] = []
        self.readings: list[Any] = []
        self.agent: Agent | None = None
        self.chaos: random.Random | None = None
        self.refused: list[str] = []

    def enrol(self, answer: EnrolmentAnswer, **changed: Any) -> Any:
        public = self.identity.public_key().public_bytes_raw()
        floor = (answer.key_bits_min, answer.security_millibits_min)
        genesis = changed.pop("genesis", answer.genesis_digest)
        signed = enrolment.statement(answer.chain_id, genesis, self.name, answer.node_id, public, floor)
        blank = Enrol(enrolment.code_name(answer.code), self.name, public, self.identity.sign(signed), bytes(16), b"")
        request = enrolment.with_mac(replace(blank, **changed), answer.code)
        self.last_request = encode_record(request)
        reply = self.cluster.answer("node-1", DeviceFrame(self.name, "enrol", self.last_request))
        assert isinstance(reply, DeviceReply)
        said = enrolment.decode(reply.messages[0][1])
        if isinstance(said, enrolment.Enrolled):
            assert enrolment.is_answer(said, request, answer.code)
            secret = enrolment.initial_secret(request, said.nonce, answer.code)
            self.boot(DeviceState(self.name, secret), DevicePolicy(*floor))
        return said

    def boot(self, state: DeviceState, policy: DevicePolicy) -> None:
        self.policy = policy
        self.agent = Agent(
            replace(state),
            policy,
            Battery.fresh(PROFILE),
            SeededEntropy(f"{self.name}{len(self.saved)}".encode()),
            random.Random(3),
            lambda state: self.saved.append(replace(state)),
            self.pad,
        )

    def carry(self, frames: list[tuple[str, bytes]]) -> None:
        assert self.agent is not None
        while frames:
            channel, payload = frames.pop(0)
            copies = [payload]
            if self.chaos is not None:
                copies = self.chaos.choice([[], [payload], [payload, payload], [payload]])
            for copy in copies:
                reply = self.cluster.answer("node-1", DeviceFrame(self.name, channel, copy))
                assert isinstance(reply, DeviceReply), reply
                if reply.reading is not None:
                    self.readings.append(reply.reading)
                for answered, content in reply.messages:
                    if answered == "refused":
                        self.refused.append(json.loads(content)["reason"])
                    if self.chaos is None or self.chaos.random() < 0.8:
                        frames += self.agent.received(answered, content, self.cluster.now_ns)

    def live(self, seconds: float) -> None:
        assert self.agent is not None
        end = self.cluster.now_ns + int(seconds * 1e9)
        while self.cluster.now_ns < end:
            self.carry(self.agent.tick(self.cluster.now_ns))
            self.cluster.run(lambda: False, 0.25)

    def status(self) -> dict[str, Any]:
        answer = self.cluster.answer("node-1", GetDevices())
        assert isinstance(answer, DocumentAnswer)
        return answer.document


def issue(cluster: Cluster, name: str = "ecg-1", bits: int = 256, millibits: int = 33_219) -> EnrolmentAnswer:
    answer = cluster.answer("node-1", IssueEnrolment(name, bits, millibits))
    assert isinstance(answer, EnrolmentAnswer)
    return answer


@pytest.fixture
def ward() -> Ward:
    ward = Ward(make_cluster())
    said = ward.enrol(issue(ward.cluster))
    assert isinstance(said, enrolment.Enrolled), said
    return ward


def test_a_device_enrols_makes_a_key_and_is_read(ward: Ward) -> None:
    assert ward.agent is not None
    for name in ("node-1", "node-2"):
        ward.cluster.run(lambda name=name: ward.cluster.hosts[name].node.state.device("ecg-1") is not None)  # type: ignore[union-attr]
    ward.live(1)
    assert ward.agent.has_key, ward.agent.figures
    for value in range(5):
        ward.carry(ward.agent.publish(json.dumps({"bpm": 60 + value}).encode(), ward.cluster.now_ns))
    assert [reading["reading"]["bpm"] for reading in ward.readings] == [60, 61, 62, 63, 64]
    assert ward.agent.unanswered == 0 and ward.agent.figures.receipts == 5
    (entry,) = ward.status()["devices"]
    assert entry["readings"] == 5 and entry["keys"] == 1 and entry["missing"] == 0 and entry["last_qber"] < 0.03


def test_keys_are_renewed_and_old_ones_forgotten(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    used = set()
    for round_ in range(6):
        for value in range(15):
            ward.carry(ward.agent.publish(f"{round_} {value}".encode(), ward.cluster.now_ns))
        used.add(ward.agent.state.key)
        ward.live(1)
    assert ward.agent.figures.keys >= 3 and len(used) >= 3
    rows = ward.cluster.hosts["node-1"].disk
    assert len(rows["device.window"]) <= 2
    assert len(ward.readings) == 90 == ward.agent.figures.receipts
    for host in ward.cluster.hosts.values():
        for table in host.disk.values():
            for value in table.values():
                assert not any(key in value for key in used), "keys rest encrypted"


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_repetition_lose_no_reading_and_repeat_none(ward: Ward, seed: int) -> None:
    assert ward.agent is not None
    ward.chaos = random.Random(seed)
    ward.live(20)
    sent = []
    for value in range(30):
        frames = ward.agent.publish(str(value).encode(), ward.cluster.now_ns)
        if frames:
            sent.append(value)
        ward.carry(frames)
        ward.live(0.5)
    ward.chaos = None
    ward.live(20)
    assert sorted(reading["reading"] for reading in ward.readings) == sent and len(sent) > 20
    assert ward.agent.unanswered == 0


@pytest.mark.parametrize("seed", range(3))
def test_one_time_pads_survive_loss_and_disorder(seed: int) -> None:
    ward = Ward(make_cluster(), pad=True)
    ward.enrol(issue(ward.cluster))
    assert ward.agent is not None
    ward.chaos = random.Random(seed)
    ward.live(20)
    sent = []
    for value in range(12):
        frames = ward.agent.publish(str(value).encode(), ward.cluster.now_ns)
        if frames:
            sent.append(value)
        ward.carry(frames)
        ward.live(1)
    ward.chaos = None
    ward.live(10)
    assert sorted(reading["reading"] for reading in ward.readings) == sent and len(sent) > 5
    assert ward.agent.unanswered == 0


def test_a_registration_in_blocks_that_a_snapshot_skipped_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster()
    host = cluster.hosts["node-1"]

    def skip(devices: Devices, receipt: Receipt) -> None:
        if devices._context.node_id == "node-1" and isinstance(receipt.transaction, DeviceRegistered):
            host.node._replica_output(SnapshotAdopted(host.node.chain.height))

    monkeypatch.setattr(Devices, "recorded", skip)
    assert isinstance(Ward(cluster).enrol(issue(cluster)), enrolment.Enrolled)


def test_codes_are_destroyed_once_the_device_has_a_key(ward: Ward) -> None:
    assert ward.cluster.hosts["node-1"].disk["device.enrolment"]
    ward.live(1)
    ward.cluster.run(lambda: False, 1)
    assert not ward.cluster.hosts["node-1"].disk["device.enrolment"]
    reply = ward.cluster.answer("node-1", DeviceFrame("ecg-1", "enrol", ward.last_request))
    assert "not valid here" in enrolment.decode(reply.messages[0][1]).reason  # type: ignore[attr-defined]


def test_a_node_that_is_killed_goes_on_with_its_devices(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    ward.carry(ward.agent.publish(b"1", ward.cluster.now_ns))
    ward.cluster.crash("node-1")
    ward.cluster.start("node-1")
    ward.carry(ward.agent.publish(b"2", ward.cluster.now_ns))
    assert [reading["reading"] for reading in ward.readings] == [1, 2]
    old = ward.readings[0]
    replayed = ward.agent._keys[0].seal(old["sequence"], 0, b"1")
    reply = ward.cluster.answer("node-1", DeviceFrame("ecg-1", "data", replayed))
    assert reply.reading is None


def test_a_device_that_lost_the_last_word_of_a_session_goes_on(ward: Ward) -> None:
    """The node holds the new key, the device never heard: it begins under the old secret, and both agree again."""
    assert ward.agent is not None
    frames = ward.agent.tick(ward.cluster.now_ns)
    while frames:
        channel, payload = frames.pop(0)
        reply = ward.cluster.answer("node-1", DeviceFrame("ecg-1", channel, payload))
        before = (ward.agent.figures.keys, ward.saved[-1])
        for answered, content in reply.messages:
            frames += ward.agent.received(answered, content, ward.cluster.now_ns)
    assert before[0] == 0 and ward.agent.figures.keys == 1
    ward.boot(before[1], ward.policy)  # as if Active had never come
    ward.live(2)
    assert ward.agent.has_key and ward.agent.figures.keys == 1
    ward.carry(ward.agent.publish(b"7", ward.cluster.now_ns))
    assert ward.readings[-1]["reading"] == 7


def test_a_restarted_device_never_uses_a_sequence_twice(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    ward.carry(ward.agent.publish(b"1", ward.cluster.now_ns))
    ward.boot(ward.saved[-1], ward.policy)
    ward.carry(ward.agent.publish(b"2", ward.cluster.now_ns))
    assert [reading["sequence"] for reading in ward.readings] == [1, 257]


def test_a_weak_device_says_so_once_and_keeps_what_it_has(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    ward.agent.battery.charge_j = 0.0
    first = ward.agent.begin_session(ward.cluster.now_ns)
    assert [channel for channel, _ in first] == ["status"] and first[0][1].startswith(b"too weak: a key of 256 bits")
    assert ward.agent.begin_session(ward.cluster.now_ns) == [] and not ward.agent.in_session
    ward.carry(ward.agent.publish(b"1", ward.cluster.now_ns))
    assert ward.readings[-1]["reading"] == 1
    ward.boot(ward.saved[-1], ward.policy)
    assert ward.agent.battery.charge_j == ward.saved[-1].charge_j, "a restart fills no battery"


def test_one_time_pads_carry_readings_until_they_are_used_up() -> None:
    ward = Ward(make_cluster(), pad=True)
    ward.enrol(issue(ward.cluster))
    assert ward.agent is not None
    ward.live(1)
    for _ in range(12):
        ward.carry(ward.agent.publish(b"spo2 97", ward.cluster.now_ns))
        ward.live(1)
    assert ward.agent.figures.keys > 2 and len(ward.readings) == 12


def test_revocation_on_the_chain_cuts_a_device_off_and_destroys_its_keys(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    ward.carry(ward.agent.publish(b"1", ward.cluster.now_ns))
    assert isinstance(ward.cluster.answer("node-1", RevokeDevice("ecg-1", "stolen")), DocumentAnswer)
    node = ward.cluster.hosts["node-1"].node
    assert node is not None
    assert ward.cluster.run(lambda: bool((known := node.state.device("ecg-1")) and known.revoked), 5)
    ward.carry(ward.agent.publish(b"2", ward.cluster.now_ns))
    assert len(ward.readings) == 1 and "revoked" in ward.refused[-1]
    ward.cluster.run(lambda: False, 1)
    rows = ward.cluster.hosts["node-1"].disk
    assert not rows["device.state"] and not rows["device.window"] and not rows["device.enrolment"]
    assert isinstance(ward.cluster.answer("node-1", IssueEnrolment("ecg-1", 256, 33_219)), RequestError)


def test_an_eavesdropper_costs_keys_and_never_gives_one(ward: Ward) -> None:
    assert ward.agent is not None
    assert isinstance(ward.cluster.answer("node-1", SetDeviceAttack("ecg-1", "intercept_resend")), DocumentAnswer)
    ward.live(3)
    (entry,) = ward.status()["devices"]
    assert entry["attacked"] >= 1 and entry["keys"] == 0 and entry["last_qber"] > 0.2 and not ward.agent.has_key
    ward.cluster.answer("node-1", SetDeviceAttack("ecg-1", None))
    ward.live(3)
    assert ward.agent.has_key


# ---- enrolment and bad input


def test_codes_serve_once_and_their_device_only() -> None:
    cluster = make_cluster()
    answer = issue(cluster)
    other = Ward(cluster, "ecg-2")
    assert "another device" in other.enrol(answer).reason
    first = Ward(cluster)
    assert "another chain" not in str(first.enrol(answer))
    reply = cluster.answer("node-1", DeviceFrame("ecg-1", "enrol", first.last_request))
    assert isinstance(enrolment.decode(reply.messages[0][1]), enrolment.Enrolled), "the lost answer is said again"
    thief = Ward(cluster)
    thief.identity = Ed25519PrivateKey.generate()
    assert "was used" in thief.enrol(answer).reason
    assert repr(answer.code)[2:-1] not in repr(answer)


def test_other_chains_codes_and_keys_are_refused() -> None:
    cluster = make_cluster()
    answer = issue(cluster)
    ward = Ward(cluster)
    assert "another chain" in ward.enrol(answer, genesis=bytes(32)).reason
    assert "not valid here" in ward.enrol(replace(answer, code=bytes(32))).reason
    assert "another key's" in ward.enrol(answer, public_key=bytes(32)).reason
    assert isinstance(ward.enrol(answer), enrolment.Enrolled)
    assert isinstance(cluster.answer("node-1", IssueEnrolment("x", 64, 33_219)), RequestError)
    assert isinstance(cluster.answer("node-1", IssueEnrolment("ecg-1", 256, 33_219)), RequestError)


def test_garbage_on_every_channel_is_refused_and_counted(ward: Ward) -> None:
    assert ward.agent is not None
    rng = random.Random(1)
    for channel in ("enrol", "session", "data"):
        for name in ("ecg-1", "nobody"):
            for size in (0, 1, 20, 27, 200, 60_000):
                reply = ward.cluster.answer("node-1", DeviceFrame(name, channel, rng.randbytes(size)))
                assert isinstance(reply, DeviceReply) and reply.reading is None
    assert sum(ward.status()["refusals"].values()) >= 30
    ward.live(1)
    assert ward.agent.has_key


def test_replays_and_clocks_far_ahead_are_refused(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    (frame,) = ward.agent.publish(b"1", ward.cluster.now_ns)
    ward.carry([frame])
    for _ in range(3):
        reply = ward.cluster.answer("node-1", DeviceFrame("ecg-1", *frame))
        assert reply.reading is None
    ahead = ward.agent._keys[0].seal(99, ward.cluster.now_ns // 1_000_000 + 400_000, b"2")
    reply = ward.cluster.answer("node-1", DeviceFrame("ecg-1", "data", ahead))
    assert "future" in json.loads(reply.messages[0][1])["reason"]
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    begin = Agent(ward.saved[0], ward.policy, Battery.fresh(PROFILE), SeededEntropy(b"r"), random.Random(1), print)
    begin.state.counter = 0
    (old,) = begin.begin_session(ward.cluster.now_ns)
    reply = ward.cluster.answer("node-1", DeviceFrame("ecg-1", *old))
    assert "not a new session" in json.loads(reply.messages[0][1])["reason"]
    (entry,) = ward.status()["devices"]
    assert entry["repeated"] == 3 and entry["replayed"] == 1 and entry["readings"] == 1


def test_unanswered_readings_are_said_again_ever_more_rarely_and_at_once_after_a_reconnection(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    second, now_ns = 1_000_000_000, ward.cluster.now_ns
    ward.agent.publish(b"1", now_ns)
    said = [s for s in range(1, 100) if any(c == "data" for c, _ in ward.agent.tick(now_ns + s * second))]
    assert said == [2, 6, 14, 30, 62, 94]
    assert any(c == "data" for c, _ in ward.agent.reconnected(now_ns + 101 * second))


def test_a_node_without_devices_says_so() -> None:
    cluster = Cluster(2, edges=[(0, 1)], block_pulses=10_000)
    assert cluster.answer("node-1", GetDevices()).status == 404


@pytest.mark.parametrize("delay_ns", [0, 200_000, 400_000, 2_000_000, 20_000_000])
def test_an_enrolment_survives_a_kill_at_any_moment(delay_ns: int) -> None:
    """The device asks again after the crash, and is registered once."""
    cluster = make_cluster()
    answer = issue(cluster)
    ward = Ward(cluster)
    public = ward.identity.public_key().public_bytes_raw()
    signed = enrolment.statement(
        answer.chain_id, answer.genesis_digest, "ecg-1", "node-1", public, (answer.key_bits_min, 33_219)
    )
    blank = Enrol(enrolment.code_name(answer.code), "ecg-1", public, ward.identity.sign(signed), bytes(16), b"")
    frame = DeviceFrame("ecg-1", "enrol", encode_record(enrolment.with_mac(blank, answer.code)))
    cluster.ask("node-1", frame)
    cluster.run(lambda: False, delay_ns / 1e9)
    cluster.crash("node-1")
    cluster.start("node-1")
    reply = cluster.answer("node-1", frame, 60)
    assert isinstance(enrolment.decode(reply.messages[0][1]), enrolment.Enrolled)
    assert [each["device_id"] for each in ward.status()["devices"]] == ["ecg-1"]


def chain_alarm(ward: Ward) -> tuple[bool, str, int]:
    known = ward.cluster.hosts["node-2"].node.state.device("ecg-1")  # type: ignore[union-attr]
    assert known is not None
    return known.alarmed, known.alarm_reason, known.alarms_raised


def test_an_attacked_session_is_an_alarm_on_the_chain_and_a_clean_one_clears_it(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    assert isinstance(ward.cluster.answer("node-1", SetDeviceAttack("ecg-1", "intercept_resend")), DocumentAnswer)
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    ward.cluster.run(lambda: chain_alarm(ward)[0], 30)
    assert chain_alarm(ward) == (True, "qber", 1)
    assert ward.status()["devices"][0]["alarm"] == "qber"
    for _ in range(3):
        ward.carry(ward.agent.begin_session(ward.cluster.now_ns))  # the alarm stands: no further record
    ward.cluster.run(lambda: False, 1)
    assert chain_alarm(ward) == (True, "qber", 1) and ward.status()["devices"][0]["attacked"] == 4
    ward.cluster.answer("node-1", SetDeviceAttack("ecg-1", None))
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    ward.cluster.run(lambda: not chain_alarm(ward)[0], 30)
    assert chain_alarm(ward) == (False, "", 1)
    ward.cluster.run(lambda: ward.status()["devices"][0]["alarm"] is None, 30)


def test_forged_sessions_are_an_alarm_from_the_third_and_at_most_one_in_a_while(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    (frame,) = ward.agent.begin_session(ward.cluster.now_ns)
    false = frame[1][:-1] + bytes([frame[1][-1] ^ 1])
    for _ in range(2):
        ward.cluster.answer("node-1", DeviceFrame("ecg-1", "session", false))
    ward.cluster.run(lambda: False, 1)
    assert chain_alarm(ward) == (False, "", 0)
    ward.cluster.answer("node-1", DeviceFrame("ecg-1", "session", false))
    ward.carry([frame])  # the device itself, before the alarm is on the chain
    ward.cluster.run(lambda: chain_alarm(ward)[2] == 1 and not chain_alarm(ward)[0], 30)
    for _ in range(50):
        ward.cluster.answer("node-1", DeviceFrame("ecg-1", "session", false))
    ward.cluster.run(lambda: False, 1)
    assert chain_alarm(ward) == (False, "", 1)  # too soon after the last one


def test_readings_are_shown_after_a_restart(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    for value in range(5):
        ward.carry(ward.agent.publish(json.dumps({"bpm": value}).encode(), ward.cluster.now_ns))
    ward.cluster.crash("node-1")
    ward.cluster.start("node-1")
    answer = ward.cluster.answer("node-1", GetReadings("ecg-1", 3))
    assert isinstance(answer, DocumentAnswer)
    assert [each["reading"]["bpm"] for each in answer.document["readings"]] == [2, 3, 4]
    assert ward.cluster.answer("node-1", GetReadings("nobody", 3)).status == 404


def govern(ward: Ward, **rules: Any) -> None:
    """Let the validators put a policy for devices in force."""
    policy = policy_from_document({"name": "floor", "select": {"devices": ["*"]}, "device": rules})
    cluster = ward.cluster
    expiry = cluster.hosts["node-1"].node.state.height + 1000  # type: ignore[union-attr]
    action = encode_action(SetPolicy(policy.encoded))
    proposal = encode_transaction(GovernanceProposed("node-1", action, expiry))
    cluster.answer("node-1", SubmitTransactions((proposal,), until_committed=True))
    for name in cluster.hosts:
        approval = encode_transaction(GovernanceApproved(transaction_id(proposal), name))
        cluster.answer(name, SubmitTransactions((approval,), until_committed=True))
    cluster.run(
        lambda: all(
            any(policy.name == entry.name for entry in host.node.state.entries(PolicyEntry))  # type: ignore[union-attr]
            for host in cluster.hosts.values()
        ),
        30,
    )


def test_a_floor_that_policies_raise_is_kept_from_the_next_key_on(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    assert len(ward.agent._keys[0].key) * 8 >= 256
    govern(ward, key_bits_min=1000, security_bits_min=40.0)
    (entry,) = ward.status()["devices"]
    assert entry["floor"] == {"key_bits_min": 1000, "security_millibits_min": 40_000}
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    figures = ward.agent.figures
    assert figures.session_failures == 1 and "this was for less" in str(figures.last_failure)
    assert figures.last_session["qubits"] == 0  # no light was measured for it
    ward.cluster.run(lambda: False, 1)
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    assert figures.keys == 2 and figures.last_session["key_bits"] >= 1000
    assert figures.last_session["epsilon"] == pytest.approx(2**-40)
    (entry,) = ward.status()["devices"]
    assert entry["key_bits"] >= 1000 and entry["attacked"] == 0 and entry["alarm"] is None


def test_a_device_that_is_too_weak_for_a_raised_floor_says_so_and_asks_again(ward: Ward) -> None:
    assert ward.agent is not None
    ward.live(1)
    govern(ward, key_bits_min=4096)
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    ward.cluster.run(lambda: False, 1)
    said = ward.agent.begin_session(ward.cluster.now_ns)
    assert said[0][0] == "status" and said[0][1].startswith(b"too weak: ") and ward.agent.has_key
    govern(ward, key_bits_min=512)
    ward.cluster.run(lambda: False, PROFILE.refresh_s + 1)
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))  # planned for its own floor: hears the new one
    ward.cluster.run(lambda: False, 1)
    ward.carry(ward.agent.begin_session(ward.cluster.now_ns))
    assert ward.agent.figures.keys == 2 and ward.agent.figures.last_session["key_bits"] >= 512
    assert ward.agent.figures.too_weak is None


def test_a_new_device_is_enrolled_with_the_floor_that_the_policies_want(ward: Ward) -> None:
    govern(ward, key_bits_min=515)
    answer = issue(ward.cluster, "ecg-2")
    assert (answer.key_bits_min, answer.security_millibits_min) == (520, 33_219)
    other = Ward(ward.cluster, "ecg-2")
    assert isinstance(other.enrol(answer), enrolment.Enrolled)
