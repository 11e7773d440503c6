"""The C kernels of distillation against their numpy twins: the same bits, the same messages."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.distill.reconciliation import make_party
from protocol.distill.reconciliation.ldpc_code import build_code
from protocol.kernels import distillation as kernels

pytestmark = pytest.mark.skipif(kernels.library is None, reason="the kernels are not built here; their twins serve")

CASCADES = ("cascade", "cascade-fast", "cascade-original")


def transcript(method: str, size: int, qber: float, believed: float, seed: int, use_kernel: bool) -> list[bytes]:
    """Every message of both sides, and at the end what Bob holds."""
    generator = np.random.default_rng(seed)
    alice_bits = generator.integers(0, 2, size, dtype=np.uint8)
    bob_bits = alice_bits ^ (generator.random(size) < qber).astype(np.uint8)
    alice = make_party(method, "alice", alice_bits, believed, b"t", use_kernel=use_kernel)
    bob = make_party(method, "bob", bob_bits, believed, b"t", use_kernel=use_kernel)
    messages = []
    message = alice.start()
    sides: Iterator = iter([bob, alice] * 10_000)
    while message is not None:
        messages.append(message)
        message = next(sides).receive(message)
    assert bob.outcome is not None
    return [*messages, b"" if bob.outcome.bits is None else bob.outcome.bits.tobytes()]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(CASCADES),
    st.integers(0, 900) | st.sampled_from([20_000, 33_000, 70_001]),
    st.sampled_from([0.0, 0.01, 0.08, 0.3]),
    st.sampled_from([0.001, 0.02, 0.2]),
    st.integers(0, 1000),
)
def test_cascade_sends_the_same_messages(method: str, size: int, qber: float, believed: float, seed: int) -> None:
    with_kernel = transcript(method, size, qber, believed, seed, use_kernel=True)
    assert with_kernel == transcript(method, size, qber, believed, seed, use_kernel=False)


@pytest.mark.slow
def test_cascade_with_all_lanes_sends_the_same_messages() -> None:
    with_kernel = transcript("cascade", 1_050_000, 0.02, 0.02, 1, use_kernel=True)
    assert with_kernel == transcript("cascade", 1_050_000, 0.02, 0.02, 1, use_kernel=False)


@given(st.binary(max_size=400), st.integers(0, 2**127 - 2))
def test_the_polynomial_hash(data: bytes, point: int) -> None:
    assert kernels.polynomial_hash(data, point) == kernels.polynomial_hash_twin(data, point)


@pytest.mark.parametrize("data", [b"\xff" * 1500, b"", b"\0" * 30])
@pytest.mark.parametrize("point", [0, 1, 2**127 - 2, 2**126, 2**64 - 1])
def test_the_polynomial_hash_at_its_edges(data: bytes, point: int) -> None:
    assert kernels.polynomial_hash(data, point) == kernels.polynomial_hash_twin(data, point)


@pytest.mark.parametrize("level", kernels.LEVELS)
@settings(deadline=None, max_examples=80)
@given(size=st.integers(2, 9000), ratio=st.floats(0.0001, 0.9999), seed=st.integers(0, 2**32 - 1))
def test_the_toeplitz_hash(level: str, size: int, ratio: float, seed: int) -> None:
    output_bits = min(size - 1, max(1, int(size * ratio)))
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2, size, dtype=np.uint8)
    hash_seed = generator.bytes((size + 6) // 8 + seed % 3)
    expected = kernels.toeplitz_twin(bits, hash_seed, output_bits)
    with kernels.limited_to(level):
        assert np.array_equal(kernels.toeplitz(bits, hash_seed, output_bits), expected)


@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize(("size", "output_bits"), [(300_001, 150_000), (100_000, 1_000), (100_000, 99_000)])
def test_the_toeplitz_hash_of_long_blocks(level: str, size: int, output_bits: int) -> None:
    generator = np.random.default_rng(size)
    bits = generator.integers(0, 2, size, dtype=np.uint8)
    hash_seed = generator.bytes(size // 8 + 1)
    expected = kernels.toeplitz_twin(bits, hash_seed, output_bits)
    with kernels.limited_to(level):
        assert np.array_equal(kernels.toeplitz(bits, hash_seed, output_bits), expected)


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=300))
def test_the_split(pairs: list[tuple[int, bool]]) -> None:
    bits = np.array([bit for bit, _ in pairs], dtype=np.uint8)
    mask = np.array([inside for _, inside in pairs], dtype=np.bool_)
    for ours, theirs in zip(kernels.split(bits, mask), kernels.split_twin(bits, mask), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("level", kernels.LEVELS)
@settings(deadline=None, max_examples=20)
@given(
    size=st.integers(1, 3000),
    leak_share=st.floats(0.1, 0.9),
    qber=st.sampled_from([0.01, 0.05, 0.2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ldpc_syndromes_and_decoding(level: str, size: int, leak_share: float, qber: float, seed: int) -> None:
    code = build_code(size, max(1, int(size * leak_share)))
    errors = (np.random.default_rng(seed).random(size) < qber).astype(np.uint8)
    rows = code.base_rows + seed % 3
    syndrome = kernels.ldpc_syndrome(code, rows, errors)
    assert np.array_equal(syndrome, kernels.ldpc_syndrome_twin(code, rows, errors))
    for iterations in (1, 4, 12):
        with kernels.limited_to(level):
            ours, used = kernels.ldpc_decode(code, rows, syndrome, size, 200, iterations)
        theirs, twin_used = kernels.ldpc_decode_twin(code, rows, syndrome, size, 200, iterations)
        assert used == twin_used
        assert np.array_equal(ours, theirs)


def test_the_implementation_is_named() -> None:
    assert kernels.implementation().startswith("C (")
    with kernels.limited_to("portable"):
        assert kernels.implementation() == "C (portable)"
