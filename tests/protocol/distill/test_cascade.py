"""Cascade: any error pattern ends in equal strings or a reported failure, and no leaked bit goes uncounted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.distill.key_length import binary_entropy
from protocol.distill.reconciliation import Outcome, Party, ReconciliationError, make_party
from protocol.parameters import ParameterError

Bits = NDArray[np.uint8]
METHODS = ("cascade", "cascade-fast", "cascade-original")


def noisy_pair(size: int, qber: float, seed: int) -> tuple[Bits, Bits]:
    generator = np.random.default_rng(seed)
    alice = generator.integers(0, 2, size, dtype=np.uint8)
    return alice, alice ^ (generator.random(size) < qber).astype(np.uint8)


def converse(alice: Party, bob: Party) -> tuple[Outcome, Outcome, list[bytes], list[bytes]]:
    """Run to the end, keeping both transcripts."""
    from_alice, from_bob = [], []
    message = alice.start()
    assert bob.start() is None
    while message is not None:
        from_alice.append(message)
        reply = bob.receive(message)
        if reply is None:
            break
        from_bob.append(reply)
        message = alice.receive(reply)
    assert alice.outcome is not None
    assert bob.outcome is not None
    return alice.outcome, bob.outcome, from_alice, from_bob


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Bits, Bits, float]:
    """A string and errors of any shape: scattered, bursts, all, none."""
    size = draw(st.integers(0, 700))
    seed = draw(st.integers(0, 2**32 - 1))
    alice, bob = noisy_pair(size, draw(st.sampled_from((0.0, 0.01, 0.11, 0.25, 0.5, 1.0))), seed)
    start = draw(st.integers(0, size))
    bob[start : start + draw(st.integers(0, 200))] ^= 1
    return alice, bob, draw(st.sampled_from((0.0, 0.001, 0.03, 0.11, 0.25, 0.5)))


@settings(deadline=None, max_examples=150)
@given(patterns(), st.sampled_from(METHODS), st.booleans())
def test_any_error_pattern_ends_equal_or_failed(case: tuple[Bits, Bits, float], method: str, few_blocks: bool) -> None:
    alice, bob, qber = case
    ours, theirs, *_ = converse(
        make_party(method, "alice", alice, qber, b"seed", use_kernel=False),
        make_party(method, "bob", bob, qber, b"seed", use_kernel=False),
    )
    assert ours.failed == theirs.failed
    assert ours.leaked_bits == theirs.leaked_bits
    if ours.bits is None or theirs.bits is None:
        assert ours.reason
        return
    assert np.array_equal(ours.bits, alice)
    assert theirs.corrected_errors is not None
    # Cascade may miss an even pattern of errors; what it changed is exactly what it says, and never adds errors.
    assert theirs.corrected_errors >= np.count_nonzero(bob != theirs.bits)
    assert np.count_nonzero(theirs.bits != alice) <= np.count_nonzero(bob != alice)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [5_000, 40_001])
def test_leak_equals_the_parities_in_the_transcript(method: str, size: int) -> None:
    alice, bob = noisy_pair(size, 0.03, 5)
    sides = [make_party(method, "alice", alice, 0.03, b"s"), make_party(method, "bob", bob, 0.03, b"s")]
    ours, theirs, from_alice, from_bob = converse(*sides)
    assert theirs.bits is not None
    assert np.array_equal(theirs.bits, alice)
    # An independent count: what Alice sent after the opening, bit by bit, from the searches that Bob had running.
    running, answered = [0], 0
    sizes: list[int] = []
    for message in from_bob[:-1]:
        body = message[1:]
        directions = np.unpackbits(np.frombuffer(body[: (len(sizes) + 7) // 8], np.uint8), bitorder="little")
        halves = [(s - s // 2) if right else s // 2 for s, right in zip(sizes, directions, strict=False)]
        records = np.frombuffer(body[(len(sizes) + 7) // 8 :], dtype="<u8").tolist()
        sizes = [s for s in halves if s > 1] + [(r & 0xFFFFF) + 1 - (r >> 20 & 0xFFFFF) for r in records]
        running.append(len(sizes))
        answered += len(sizes)
    for count, message in zip(running[1:], from_alice[1:], strict=True):
        assert len(message) == 1 + (count + 7) // 8
    check_bytes = 0 if method == "cascade-original" else 2
    lanes = max(1, round(size / 16384))
    rows = (len(from_alice[0]) - 1 - check_bytes) // ((lanes + 7) // 8)
    assert ours.leaked_bits - answered == rows * lanes + 8 * check_bytes
    assert ours.round_trips == len(from_bob)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "qber"), [(0, 0.02), (1, 0.02), (1, 0.5), (2, 0.0), (10_000, 0.0), (10_000, 0.5)])
def test_extremes_end_cleanly(method: str, size: int, qber: float) -> None:
    alice, bob = noisy_pair(size, qber, 3)
    ours, theirs, *_ = converse(
        make_party(method, "alice", alice, qber, b""), make_party(method, "bob", bob, qber, b"")
    )
    assert ours.failed == theirs.failed
    if theirs.bits is not None and qber == 0.0:
        assert theirs.corrected_errors == 0
        assert np.array_equal(theirs.bits, alice)


def test_a_wrong_estimate_costs_bits_not_correctness() -> None:
    alice, bob = noisy_pair(20_000, 0.05, 9)
    for believed in (0.0, 0.005, 0.2):
        ours, theirs, *_ = converse(
            make_party("cascade", "alice", alice, believed, b"z"), make_party("cascade", "bob", bob, believed, b"z")
        )
        assert theirs.bits is not None
        assert np.array_equal(theirs.bits, alice)
        assert ours.leaked_bits > 20_000 * binary_entropy(0.05)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80), st.sampled_from(["alice", "bob"]), st.integers(0, 3))
def test_random_messages_are_refused_or_taken_never_worse(message: bytes, role: str, rounds: int) -> None:
    alice, bob = noisy_pair(300, 0.1, 1)
    sides = {
        "alice": make_party("cascade", "alice", alice, 0.1, b"q"),
        "bob": make_party("cascade", "bob", bob, 0.1, b"q"),
    }
    honest = sides["alice"].start()
    for _ in range(rounds):
        assert honest is not None
        reply = sides["bob"].receive(honest)
        assert reply is not None
        honest = sides["alice"].receive(reply)
    try:
        sides[role].receive(message)  # type: ignore[index]
    except ReconciliationError:
        return


def test_a_lying_peer_cannot_keep_bob_busy_for_ever() -> None:
    _, bits = noisy_pair(2_000, 0.1, 2)
    bob = make_party("cascade-original", "bob", bits, 0.02, b"l")
    honest = make_party("cascade-original", "alice", bits ^ 1, 0.02, b"l").start()
    generator = np.random.default_rng(0)
    assert honest is not None
    reply = bob.receive(honest)
    for _ in range(10_000):
        if bob.outcome is not None:
            break
        assert reply is not None
        running = bob._search.active  # type: ignore[attr-defined]
        lies = np.packbits(generator.integers(0, 2, running, dtype=np.uint8), bitorder="little")
        reply = bob.receive(b"\0" + lies.tobytes())
    assert bob.outcome is not None


def test_bad_arguments_are_refused_with_a_reason() -> None:
    with pytest.raises(ParameterError, match="method"):
        make_party("magic", "alice", np.zeros(4, np.uint8), 0.1, b"")
    with pytest.raises(ParameterError, match="role"):
        make_party("cascade", "eve", np.zeros(4, np.uint8), 0.1, b"")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="zeros and ones"):
        make_party("cascade", "bob", np.full(4, 2, np.uint8), 0.1, b"")
    with pytest.raises(ParameterError, match="qber"):
        make_party("cascade", "bob", np.zeros(4, np.uint8), 1.5, b"")


# Mean efficiency of the original Cascade at n = 10⁴, as its reference implementations report it.
KNOWN_EFFICIENCY = ((0.01, 1.143), (0.02, 1.159), (0.03, 1.174), (0.05, 1.185), (0.08, 1.217))


@pytest.mark.slow
@pytest.mark.parametrize(("qber", "known"), KNOWN_EFFICIENCY)
def test_the_original_reproduces_its_known_efficiency(qber: float, known: float) -> None:
    efficiency = []
    for seed in range(1200):  # the mean's standard error is then below a quarter of a per cent
        alice, bob = noisy_pair(10_000, qber, seed)
        public = seed.to_bytes(4, "little")
        ours, theirs, *_ = converse(
            make_party("cascade-original", "alice", alice, qber, public),
            make_party("cascade-original", "bob", bob, qber, public),
        )
        assert theirs.bits is not None
        efficiency.append(ours.leaked_bits / (10_000 * binary_entropy(float(np.mean(alice != bob)))))
    assert np.mean(efficiency) == pytest.approx(known, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "blocks"), [(10_000, 200), (1_000_000, 5)])
@pytest.mark.parametrize("qber", [0.01, 0.02, 0.05, 0.08])
def test_the_modern_set_leaks_little_and_leaves_nothing(size: int, blocks: int, qber: float) -> None:
    efficiency = []
    for seed in range(blocks):
        alice, bob = noisy_pair(size, qber, seed)
        ours, theirs, *_ = converse(
            make_party("cascade", "alice", alice, qber, b"m"), make_party("cascade", "bob", bob, qber, b"m")
        )
        assert theirs.bits is not None
        assert np.array_equal(theirs.bits, alice)
        efficiency.append(ours.leaked_bits / (size * binary_entropy(float(np.mean(alice != bob)))))
    assert np.mean(efficiency) <= 1.08


@pytest.mark.parametrize("use_kernel", [None, False], ids=["as built", "twin"])
@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_contradictory_parities_end_cleanly(method: str, use_kernel: bool | None, seed: int, size: int) -> None:
    """A liar answers every query at random: Bob ends, with a failure or an error, and never searches for ever."""
    generator = np.random.default_rng(seed)
    alice, bits = noisy_pair(size, 0.1, seed)
    honest = make_party(method, "alice", alice, 0.1, b"seed", use_kernel=use_kernel)
    bob = make_party(method, "bob", bits, 0.1, b"seed", use_kernel=use_kernel)
    message = honest.start()
    try:
        for _ in range(10 * size + 1000):
            assert message is not None
            lie = bytearray(message)
            flips = generator.integers(0, 256, len(lie) - 1, dtype=np.uint8)
            lie[1:] = (np.frombuffer(message, np.uint8)[1:] ^ (flips & generator.integers(0, 256))).tobytes()
            reply = bob.receive(bytes(lie))
            if bob.outcome is not None or reply is None:
                return
            message = honest.receive(reply)
            if message is None:
                return
    except ReconciliationError:
        return
    raise AssertionError("the search did not end")
