"""L-QKD: arithmetic against the numpy layer, the exact bound, the receiver's statistics, and whole sessions."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.distill import amplification, verification
from protocol.distill.reconciliation.ldpc import DEVICE_FRAME_BITS, make_plan
from protocol.entropy import SeededEntropy
from protocol.kernels import distillation as kernels
from protocol.lightweight import arithmetic
from protocol.lightweight.arithmetic import CodeError, ParityCode
from protocol.lightweight.channel import DEVICE, NODE, Channel, Forged, SessionKey
from protocol.lightweight.device import DeviceSession, Wish
from protocol.lightweight.length import CONTROL_BITS, DevicePolicy, SiftedCounts, errors_bound, session_length
from protocol.lightweight.node import NodeSession, described_code, pulses_for, require_device_link
from protocol.lightweight.receiver import DeviceReceiver, LightError, ReceiverParameters
from protocol.lightweight.records import Aborted, Active, Finish, pack_positions, unpack_positions
from protocol.parameters import ParameterError
from protocol.quantum._light import Light, encode
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import LinkParameters, Receiver, Transmitter
from protocol.records import MalformedMessage

PARAMETERS = LinkParameters.from_mapping(
    {
        "source": {"model": "single_photon", "basis_z_probability": 0.5, "pulse_rate_hz": 1e6},
        "channel": {"length_km": 0.02},
        "detector": {
            "basis_z_probability": 0.5,
            "efficiency_0": 0.6,
            "efficiency_1": 0.6,
            "misalignment": 0.005,
            "dead_time_ns": 0.0,
            "after_pulse_probability": 0.0,
        },
    }
)
WISH = Wish(2048, False, 256)
POLICY = DevicePolicy()
bit_lists = st.lists(st.integers(0, 1), min_size=2, max_size=400)


@given(bit_lists, st.data())
def test_the_hash_is_that_of_the_numpy_layer(bits: list[int], data: st.DataObject) -> None:
    output = data.draw(st.integers(1, len(bits) - 1))
    seed = data.draw(st.binary(min_size=(len(bits) + 6) // 8, max_size=(len(bits) + 6) // 8))
    ours = arithmetic.amplify(arithmetic.from_bits(bits), len(bits), seed, output)
    theirs = amplification.amplify(np.array(bits, np.uint8), seed, output)
    assert [ours >> i & 1 for i in range(output)] == theirs.tolist()


@given(bit_lists, st.binary(min_size=16, max_size=16), st.sampled_from([8, 48, 64, 120]))
def test_the_tag_is_that_of_the_numpy_layer(bits: list[int], seed: bytes, size: int) -> None:
    ours = arithmetic.verification_tag(arithmetic.from_bits(bits), len(bits), seed, size)
    assert ours == verification.verification_tag(np.array(bits, np.uint8), seed, size)


@pytest.mark.parametrize("size", [512, 1100, 2048])
def test_the_parities_are_those_of_the_numpy_layer(size: int) -> None:
    plan = make_plan(size, 0.02, DEVICE_FRAME_BITS)
    assert plan is not None
    described, code = described_code(size, 0.02)
    assert ParityCode.unpack(described, size) == code
    bits = np.random.default_rng(size).integers(0, 2, size, dtype=np.uint8)
    rows = code.base_rows + 2
    theirs = kernels.ldpc_syndrome(plan.code(), rows, bits)
    ours = code.checks(arithmetic.from_bits(bits.tolist()), 0, rows)
    assert arithmetic.to_bytes(ours, theirs.size) == np.packbits(theirs, bitorder="little").tobytes()
    tail = code.checks(arithmetic.from_bits(bits.tolist()), code.base_rows, rows)
    assert ours >> code.base_rows * code.z == tail


@given(st.binary(max_size=64))
def test_random_bytes_are_no_code_or_a_bounded_one(data: bytes) -> None:
    try:
        code = ParityCode.unpack(data, 64)
    except CodeError:
        return
    assert code.checks(2**64 - 1, 0, len(code.rows)) >> code.z * len(code.rows) == 0


@given(st.lists(st.integers(0, 1 << 20), unique=True, max_size=50))
def test_positions_survive_their_packing(positions: list[int]) -> None:
    positions.sort()
    assert unpack_positions(pack_positions(positions), (1 << 20) + 1) == positions


@given(st.binary(max_size=30))
def test_random_positions_are_canonical_or_refused(data: bytes) -> None:
    try:
        positions = unpack_positions(data, 1 << 34)
    except MalformedMessage:
        return
    assert pack_positions(positions) == data


# ---- the length


def exact_tail(unseen: int, sample: int, seen: int, total: int) -> Fraction:
    """P[at most `seen` of `total` errors fall into the sample], by counting."""
    ways = sum(math.comb(sample, k) * math.comb(unseen, total - k) for k in range(seen + 1) if total - k >= 0)
    return Fraction(ways, math.comb(unseen + sample, total))


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_the_error_bound_is_the_exact_quantile(unseen: int, sample: int, data: st.DataObject) -> None:
    seen = data.draw(st.integers(0, sample))
    probability = data.draw(st.sampled_from([1e-2, 1e-4, 1e-8]))
    bound = errors_bound(unseen, sample, seen, probability)
    fitting = [
        e for e in range(unseen + 1) if e == unseen or exact_tail(unseen, sample, seen, seen + e + 1) <= probability
    ]
    assert bound == min(fitting)


def test_lengths_fall_with_errors_leak_and_epsilon() -> None:
    base = SiftedCounts((1024, 1024), (10, 10), 288)
    best = session_length(base, 1e-10).bits
    assert 600 < best < 700
    assert session_length(replace(base, errors=(20, 10)), 1e-10).bits < best
    assert session_length(replace(base, leaked_bits=300), 1e-10).bits < best
    assert session_length(base, 1e-12).bits < best
    assert session_length(replace(base, selective=True, leaked_bits=160), 1e-10).bits < best
    assert session_length(replace(base, errors=(250, 250)), 1e-10).reason is not None
    assert session_length(replace(base, bits=(2048, 0), errors=(10, 0)), 1e-10).bits == 0


def test_the_terms_sum_to_the_length() -> None:
    length = session_length(SiftedCounts((1000, 1048), (9, 11), 288), 1e-9)
    assert length.bits == math.floor(sum(length.terms_bits.values()))
    assert 2.0 ** -(length.tag_bits - 8) > 0.1e-9 * 0.01


@pytest.mark.parametrize("bad", [{"key_bits_min": 64}, {"key_bits_min": 130}, {"security_millibits_min": 1000}])
def test_a_policy_below_the_floor_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        DevicePolicy(**bad)


# ---- the receiver


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11])
@pytest.mark.parametrize("photons", [1, 3])
def test_the_receiver_reproduces_the_outcome_table(kind: int, photons: int) -> None:
    """For every kind of light: the shares of (basis, bit) are those of the fast receiver."""
    tag, size = photons << 4 | kind, 12_000
    light = encode(Light(0, size, np.arange(size, dtype=np.uint32), np.full(size, tag, dtype=np.uint8)))
    device = DeviceReceiver(ReceiverParameters(0.03, 0.0), SeededEntropy(b"bases"), random.Random(5))
    detector = replace(PARAMETERS.detector, misalignment=0.03, dark_count_probability=0.0)
    fast = Receiver(replace(PARAMETERS, detector=detector), SeededEntropy(b"other"), np.random.default_rng(5))
    ours, theirs = device.measure(light), fast.measure(light)
    for basis, bit in itertools.product((0, 1), (0, 1)):
        mine = sum(1 for b, v in zip(ours.basis, ours.bit, strict=True) if (b, v) == (basis, bit)) / size
        other = float(np.mean((theirs.basis == basis) & (theirs.bit == bit)) * theirs.positions.size / size)
        assert abs(mine - other) < 5 * math.sqrt(0.5 / size)


def test_dark_counts_come_at_their_rate() -> None:
    dark = encode(Light(0, 1 << 20, np.empty(0, np.uint32), np.empty(0, np.uint8)))
    receiver = DeviceReceiver(ReceiverParameters(0.0, 1e-3), SeededEntropy(b"d"), random.Random(1))
    clicks = receiver.measure(dark)
    assert abs(len(clicks.positions) - 2 * 1e-3 * (1 << 20)) < 250
    assert abs(sum(clicks.bit) / len(clicks.bit) - 0.5) < 0.06
    assert clicks.positions == sorted(set(clicks.positions))


@given(st.binary(max_size=80))
def test_random_bytes_are_no_light(data: bytes) -> None:
    receiver = DeviceReceiver(ReceiverParameters(), SeededEntropy(b"x"), random.Random(1))
    with pytest.raises(LightError):
        receiver.measure(data)


# ---- sessions


def make_pair(
    wish: Wish = WISH,
    policy: DevicePolicy = POLICY,
    seed: int = 1,
    attack: str | None = None,
    codes: dict[bytes, ParityCode] | None = None,
) -> tuple[DeviceSession, NodeSession]:
    name = f"{seed}".encode()
    physics = np.random.default_rng(seed)
    transmitter = Transmitter(PARAMETERS, SeededEntropy(b"alice" + name), physics)
    if attack:
        transmitter.attack = make_eavesdropper(attack, {}, physics)
    receiver = DeviceReceiver(ReceiverParameters(), SeededEntropy(b"bases" + name), random.Random(seed))
    key = bytes(range(32))
    device = DeviceSession(
        Channel("ecg-1", 7, DEVICE, key),
        policy,
        wish,
        receiver,
        SeededEntropy(b"device" + name),
        {} if codes is None else codes,
    )
    channel = Channel("ecg-1", 7, NODE, key)
    node = NodeSession(channel, policy, PARAMETERS, transmitter, SeededEntropy(b"node" + name), 0.01)
    return device, node


def converse(device: DeviceSession, node: NodeSession, chaos: random.Random | None = None) -> None:
    """Carry frames both ways; with `chaos`, lose, repeat and forge a third of them, and say again what got lost."""
    frame: bytes | None = device.start()
    for _ in range(500):
        if device.finished and frame is None:
            return
        if frame is None:
            frame = device.frame
        arrivals = [frame]
        if chaos is not None and chaos.random() < 0.5:
            arrivals = chaos.choice([[], [frame, frame], [frame[:-1] + bytes([frame[-1] ^ 1]), frame]])
        if device.finished:
            arrivals = [frame]
        frame = None
        for arrived in arrivals:
            answer = node.receive(arrived)
            if answer is None or (chaos is not None and chaos.random() < 0.2):
                continue
            frame = frame or device.receive(answer)
            if node.light:
                frame = frame or device.receive_light(node.light)
    raise AssertionError("the session does not end")


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("sifted", [2048, 4096])
def test_a_session_ends_with_one_key_at_both_ends(sifted: int, selective: bool) -> None:
    device, node = make_pair(Wish(sifted, selective, 384), DevicePolicy(128, 33_219))
    converse(device, node)
    assert device.failure is None, device.failure
    assert device.key == node.key
    assert node.key is not None and device.key is not None
    assert len(device.key.key) * 8 == device.figures.key_bits <= device.figures.secret_bits - CONTROL_BITS
    assert device.figures.secret_bits == node.figures.secret_bits
    assert device.figures.parity_bits == node.figures.leaked_bits
    assert 0 < device.figures.qber < 0.03
    assert device.key.authentication_key != bytes(range(32))


def test_a_subset_costs_the_device_less_correction() -> None:
    whole, node_whole = make_pair(Wish(4096, False, 256))
    part, node_part = make_pair(Wish(4096, True, 256))
    converse(whole, node_whole)
    converse(part, node_part)
    assert part.figures.parity_bits < 0.65 * whole.figures.parity_bits
    assert part.figures.secret_bits < whole.figures.secret_bits
    assert part.figures.epsilon == whole.figures.epsilon


@pytest.mark.parametrize("seed", range(12))
def test_lost_repeated_and_forged_frames_change_nothing(seed: int) -> None:
    device, node = make_pair(seed=seed)
    converse(device, node, random.Random(seed))
    if device.failure is None:
        assert device.key == node.key and node.key is not None
    else:  # the physics of this seed, not the frames
        assert "policy" in device.failure or "sifted" in device.failure


class SharedLetter:
    """A KEM for tests: the ciphertext is the secret under a pad that both ends know."""

    def new_pair(self) -> tuple[bytes, Callable[[bytes], bytes]]:
        return b"public" * 6, self._open

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        if public_key != b"public" * 6:
            raise ValueError
        return b"s" * 32, b"S" * 32

    def _open(self, ciphertext: bytes) -> bytes:
        if ciphertext != b"S" * 32:
            raise ValueError
        return b"s" * 32


def test_hybrid_keys_need_both_secrets() -> None:
    """Equal physics with and without the KEM: equal length, another key, another authentication key."""
    plain, plain_node = make_pair()
    hybrid, node = make_pair()
    hybrid._kem = node.kem = SharedLetter()
    converse(plain, plain_node)
    converse(hybrid, node)
    assert hybrid.key is not None and hybrid.key == node.key and plain.key is not None
    assert hybrid.key.key != plain.key.key and len(hybrid.key.key) == 32
    assert hybrid.key.authentication_key != plain.key.authentication_key


def test_a_node_without_a_kem_says_so() -> None:
    device, node = make_pair()
    device._kem = SharedLetter()
    converse(device, node)
    assert device.key is None and "no post-quantum KEM" in str(device.failure)


def test_other_seeds_give_other_keys() -> None:
    keys = set()
    for seed in (1, 2, 3):
        device, node = make_pair(seed=seed)
        converse(device, node)
        assert device.key is not None
        keys.add(device.key.key)
    assert len(keys) == 3


@pytest.mark.parametrize("selective", [False, True])
def test_an_eavesdropper_ends_the_session_and_is_measured(selective: bool) -> None:
    device, node = make_pair(Wish(2048, selective, 256), attack="intercept_resend")
    converse(device, node)
    assert device.key is None and node.key is None
    assert node.attacked and 0.2 < node.figures.qber < 0.3
    assert "QBER" in str(device.failure)


def test_no_session_goes_below_the_floor() -> None:
    device, node = make_pair(Wish(512, False, 256), DevicePolicy(256, 33_219))
    converse(device, node)
    assert device.key is None and node.key is None
    assert "policy needs 384" in str(device.failure) or "leaves no secret bit" in str(device.failure)


def test_the_node_refuses_a_device_that_wants_more_than_there_is() -> None:
    device, node = make_pair(seed=4)
    frame: bytes | None = device.start()
    while frame is not None:
        channel = Channel("ecg-1", 7, NODE, bytes(range(32)))
        channel.received = device._channel.sent - 1
        record = channel.open(frame)
        if isinstance(record, Finish):
            forger = Channel("ecg-1", 7, DEVICE, bytes(range(32)), sent=device._channel.sent - 1)
            frame = forger.seal(replace(record, key_bits=4096))
        answer = node.receive(frame)
        if node.finished:
            break
        assert answer is not None
        frame = device.receive(answer)
        if frame is None and node.light:
            frame = device.receive_light(node.light)
    assert node.key is None and "against the policy" in str(node.failure)


@given(st.lists(st.binary(max_size=120), max_size=4), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_garbage_at_any_place_neither_ends_nor_changes_a_session(garbage: list[bytes], place: int) -> None:
    device, node = make_pair(Wish(1024, False, 128), DevicePolicy(128, 20_000))
    frame, step = device.start(), 0
    while frame is not None:
        if step == place:
            for thrown in garbage:
                assert node.receive(thrown) is None
                assert device.receive(thrown) is None
        answer = node.receive(frame)
        if answer is None:
            break
        frame = device.receive(answer)  # type: ignore[assignment]
        if frame is None and node.light:
            frame = device.receive_light(node.light)  # type: ignore[assignment]
        step += 1
    assert device.key == node.key and device.key is not None


def test_frames_of_other_sessions_and_other_keys_are_forged() -> None:
    ours = Channel("a", 1, NODE, b"k" * 32)
    for other in (
        Channel("a", 2, DEVICE, b"k" * 32),
        Channel("b", 1, DEVICE, b"k" * 32),
        Channel("a", 1, DEVICE, b"j" * 32),
        Channel("a", 1, NODE, b"k" * 32),
        Channel("a", 1, DEVICE, b"k" * 32, sent=1),
    ):
        with pytest.raises(Forged):
            ours.open(other.seal(Aborted("x", 0)))
    assert ours.open(Channel("a", 1, DEVICE, b"k" * 32).seal(Active(b"id"))) == Active(b"id")


def test_keys_stay_out_of_every_repr() -> None:
    device, node = make_pair()
    converse(device, node)
    assert device.key is not None
    shown = repr((device.key, node.key, node, device._channel, device.figures))
    for secret in (device.key.key, device.key.authentication_key, bytes(range(32))):
        assert repr(secret)[2:-1] not in shown and secret.hex() not in shown
    assert SessionKey.split("a", 1, bytes(48), 16, bytes(32)).key == bytes(32)


def test_links_that_the_proof_does_not_cover_are_refused() -> None:
    require_device_link(PARAMETERS)
    with pytest.raises(ParameterError, match="single_photon"):
        require_device_link(LinkParameters())
    assert 7_000 < pulses_for(PARAMETERS, 2048) < 9_000


# ---- the paper's worked example (row S4-9)


def test_the_worked_example_where_it_is_consistent() -> None:
    """Eight qubits in +, measured in + × + × + × + ×: four places match, and 1011 ⊕ 01 01… does not give 1001.

    The paper keeps 0, 0, 0, 1 at the matching places of its results 0 1 0 1 0 0 1 1: it is 0, 0, 0, 1 indeed.
    What Alice sent there is 0, 0, 0, 1 as well (H H H V), so nothing needs correction, but the paper "corrects" it to
    0, 0, 1, 1. Its cipher 1011 → 1001 is a key stream of 0010, not the key 01 repeated (which gives 1110).
    """
    sent = [0, 1, 0, 1, 0, 0, 1, 1]
    results = [0, 1, 0, 1, 0, 0, 1, 1]
    bases = [0, 1, 0, 1, 0, 1, 0, 1]
    raw = [bit for bit, basis in zip(results, bases, strict=True) if basis == 0]
    alice = [bit for bit, basis in zip(sent, bases, strict=True) if basis == 0]
    assert raw == [0, 0, 0, 1] == alice
    assert len(raw) == len(sent) // 2
    assert 0b1011 ^ 0b1001 == 0b0010 and 0b1011 ^ 0b0101 == 0b1110
    assert (0b1011 ^ 0b0010) ^ 0b0010 == 0b1011
