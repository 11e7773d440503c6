"""LDPC and the device's parity method: correct or a reported failure, bounded round trips, every check counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.distill.key_length import binary_entropy
from protocol.distill.reconciliation import ReconciliationError, choose_method, make_party, run_pair
from protocol.distill.reconciliation.ldpc_code import EXTRAS_MAX, PROFILES, ROWS, build_code
from protocol.distill.reconciliation.ldpc_design import threshold_efficiency
from protocol.parameters import ParameterError

Bits = NDArray[np.uint8]


def noisy_pair(size: int, qber: float, seed: int) -> tuple[Bits, Bits]:
    generator = np.random.default_rng(seed)
    alice = generator.integers(0, 2, size, dtype=np.uint8)
    return alice, alice ^ (generator.random(size) < qber).astype(np.uint8)


@pytest.mark.parametrize("qber", [0.01, 0.03, 0.08])
def test_a_device_block_reconciles_in_about_one_round_trip(qber: float) -> None:
    good, trips = 0, 0
    for seed in range(20):
        alice, bob = noisy_pair(2048, qber, seed)
        ours, theirs = run_pair(
            make_party("parity", "alice", alice, qber, b""), make_party("parity", "bob", bob, qber, b"")
        )
        assert ours.leaked_bits == theirs.leaked_bits
        assert theirs.round_trips <= 1 + EXTRAS_MAX
        good += theirs.bits is not None and np.array_equal(theirs.bits, alice)
        trips += theirs.round_trips
    assert good >= 18
    assert trips <= 40


@pytest.mark.slow
@pytest.mark.parametrize("qber", [0.01, 0.02, 0.05, 0.08])
def test_long_frames_reach_their_efficiency(qber: float) -> None:
    leaks = []
    for seed in range(4):
        alice, bob = noisy_pair(100_000, qber, seed)
        ours, theirs = run_pair(
            make_party("ldpc", "alice", alice, qber, b""), make_party("ldpc", "bob", bob, qber, b"")
        )
        assert theirs.bits is not None
        assert np.array_equal(theirs.bits, alice)
        leaks.append(ours.leaked_bits / (100_000 * binary_entropy(float(np.mean(alice != bob)))))
    assert np.mean(leaks) <= 1.22


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5000), st.sampled_from([0.0, 0.01, 0.11, 0.25, 0.5]), st.sampled_from([0.0, 0.02, 0.1, 0.5]))
def test_any_block_ends_equal_converged_or_failed(size: int, qber: float, believed: float) -> None:
    alice, bob = noisy_pair(size, qber, size)
    ours, theirs = run_pair(
        make_party("parity", "alice", alice, believed, b""), make_party("parity", "bob", bob, believed, b"")
    )
    assert ours.failed == theirs.failed
    assert ours.leaked_bits == theirs.leaked_bits
    assert ours.failed == bool(ours.reason)
    if believed > 0.12:
        assert ours.failed
        assert ours.leaked_bits == 0


def test_leak_equals_the_bits_in_the_transcript() -> None:
    alice, bob = noisy_pair(9000, 0.06, 1)  # more errors than believed: spare checks will be asked for
    one, other = make_party("parity", "alice", alice, 0.045, b""), make_party("parity", "bob", bob, 0.045, b"")
    message, sent, rounds = one.start(), 0, 0
    while message is not None:
        sent += len(message) - 1
        rounds += 1
        reply = other.receive(message)
        message = one.receive(reply) if reply is not None else None
    assert one.outcome is not None
    assert rounds > 1
    assert 0 <= 8 * sent - one.outcome.leaked_bits < 8 * rounds


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.sampled_from(["alice", "bob"]))
def test_random_messages_are_refused_or_taken_never_worse(message: bytes, role: str) -> None:
    alice, bob = noisy_pair(200, 0.05, 1)
    sides = {"alice": make_party("ldpc", "alice", alice, 0.05, b""), "bob": make_party("ldpc", "bob", bob, 0.05, b"")}
    sides["alice"].start()
    try:
        sides[role].receive(message)
    except ReconciliationError:
        return


@pytest.mark.parametrize(("size", "share"), [(2048, 0.25), (100_000, 0.1), (100_000, 0.42), (40, 0.5), (1, 1.0)])
def test_codes_are_sound(size: int, share: float) -> None:
    code = build_code(size, max(1, int(size * share)))
    assert code.syndrome_bits < max(1, int(size * share)) + ROWS
    assert code.columns * code.z >= size
    seen = set()
    cycles = 0
    for row in range(len(code.row_start) - 1):
        edges = slice(int(code.row_start[row]), int(code.row_start[row + 1]))
        assert len(set(code.column[edges].tolist())) == edges.stop - edges.start
    for column in range(code.columns):
        at = np.flatnonzero(code.column == column)
        rows = np.searchsorted(code.row_start, at, side="right") - 1
        pairs = sorted(zip(rows.tolist(), code.shift[at].tolist(), strict=True))
        for i, (row, turn) in enumerate(pairs):
            for other, more in pairs[i + 1 :]:
                key = (row, other, (turn - more) % code.z)
                cycles += key in seen
                seen.add(key)
    if size >= 100_000:
        assert cycles == 0  # no cycle of length 4


@pytest.mark.slow
def test_the_profiles_have_their_thresholds() -> None:
    thresholds = [threshold_efficiency(profile, rate) for rate, profile in PROFILES]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[1] < 1.19
    assert thresholds[-1] < 1.06


# ---- auto


def test_auto_follows_size_error_rate_and_distance() -> None:
    assert choose_method(10**6, 0.02).method.startswith("cascade")
    assert choose_method(10**6, 0.02, round_trip_s=0.05).method == "ldpc"
    assert choose_method(4096, 0.02, round_trip_s=0.05).method == "parity"
    frugal = choose_method(10**6, 0.02, max_efficiency=1.06)
    assert frugal.method == "cascade"
    assert "1.06" in frugal.reason
    with pytest.raises(ParameterError, match="the least for this block"):
        choose_method(10**6, 0.02, max_efficiency=1.001)


@settings(deadline=None)
@given(st.integers(0, 10**7), st.floats(0, 1), st.floats(0, 10))
def test_auto_always_names_a_method_with_a_reason(size: int, qber: float, round_trip_s: float) -> None:
    choice = choose_method(size, qber, round_trip_s=round_trip_s)
    assert choice.method in choice.reason


def test_auto_makes_parties() -> None:
    alice, bob = noisy_pair(6000, 0.03, 4)
    ours, theirs = run_pair(
        make_party("auto", "alice", alice, 0.03, b"a", round_trip_s=0.001),
        make_party("auto", "bob", bob, 0.03, b"a", round_trip_s=0.001),
    )
    assert theirs.bits is not None
    assert np.array_equal(theirs.bits, alice)
    assert ours.method == theirs.method
