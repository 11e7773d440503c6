"""The steps around reconciliation against dumb second implementations and their stated bounds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.distill.amplification import amplification_seed_bits, amplify
from protocol.distill.estimation import choose_sample, default_sample_bits, estimate_qber, serfling_deviation
from protocol.distill.key_length import SecurityParameters, binary_entropy, secret_key_length
from protocol.distill.seeding import mix64, permutation
from protocol.distill.sifting import BlockAccumulator, SiftingError, classify, sift
from protocol.distill.verification import (
    collision_bound,
    record_checksum,
    tag_bits_for,
    tags_agree,
    verification_tag,
)
from protocol.parameters import ParameterError

# ---- seeding


def test_splitmix64_gives_its_published_sequence() -> None:
    # The reference implementation (Vigna) seeded with 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix64(1234567, 0, 5).tolist() == expected
    assert mix64(1234567, 2, 3).tolist() == expected[2:]


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_a_permutation_is_one(size: int, key: int) -> None:
    assert sorted(permutation(size, key).tolist()) == list(range(size))


def test_permutations_are_uniform_over_small_sets() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in mix64(9, 0, 6000).tolist():
        order = tuple(permutation(3, key).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    chi_square = sum((c - 1000) ** 2 / 1000 for c in counts.values())
    assert chi_square < 25.7  # 5 degrees of freedom, one in ten thousand


@given(st.integers(0, 500), st.data(), st.binary(max_size=16))
def test_a_sample_has_its_size_and_is_the_same_on_both_sides(total: int, data: st.DataObject, seed: bytes) -> None:
    count = data.draw(st.integers(0, total))
    mask = choose_sample(total, count, seed)
    assert mask.sum() == count
    assert np.array_equal(mask, choose_sample(total, count, seed))


def test_samples_cover_all_positions_evenly() -> None:
    hits = sum(choose_sample(40, 10, bytes([i, j])).astype(int) for i in range(64) for j in range(32))
    assert isinstance(hits, np.ndarray)
    chi_square = float(((hits - 512) ** 2 / (512 * 0.75)).sum()) * 39 / 40
    assert chi_square < 85  # 39 degrees of freedom, about one in forty thousand


# ---- sifting


def test_sifting_keeps_equal_bases_and_splits_by_class() -> None:
    alice_basis = np.array([0, 1, 0, 1, 1, 0], np.uint8)
    positions = np.array([0, 2, 3, 5])
    bob_basis = np.array([0, 1, 1, 0], np.uint8)
    matched = sift(positions, bob_basis, alice_basis)
    assert matched.tolist() == [True, False, True, True]
    classes = classify(matched, bob_basis, np.array([0, 0, 2, 1], np.uint8))
    assert [(c.basis, c.intensity, c.index.tolist()) for c in classes] == [(0, 0, [0]), (0, 1, [3]), (1, 2, [2])]


@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [-1, 0], [0, 6]])
def test_impossible_announcements_are_refused(positions: list[int]) -> None:
    with pytest.raises(SiftingError):
        sift(np.array(positions), np.zeros(2, np.uint8), np.zeros(6, np.uint8))


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 60))
def test_blocks_are_cut_without_loss_or_reordering(parts: list[int], block_bits: int) -> None:
    stream = np.random.default_rng(0).integers(0, 2, sum(parts), dtype=np.uint8)
    accumulator, blocks, start = BlockAccumulator(block_bits), [], 0
    for size in parts:
        blocks += accumulator.append(stream[start : start + size])
        start += size
    assert all(block.size == block_bits for block in blocks)
    assert accumulator.pending_bits == sum(parts) - block_bits * len(blocks)
    if blocks:
        assert np.array_equal(np.concatenate(blocks), stream[: block_bits * len(blocks)])
    assert "array" not in repr(accumulator)


# ---- estimation


def test_the_bound_holds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    epsilon, n, k = 0.2, 400, 200
    beyond = 0
    for _ in range(4000):
        errors = generator.permutation(np.arange(n + k) < 60)
        estimate = estimate_qber(int(errors[:k].sum()), k, n, epsilon)
        beyond += errors[k:].mean() > estimate.upper_bound
    assert beyond / 4000 <= epsilon**2


def test_serfling_matches_the_paper_by_hand() -> None:
    assert serfling_deviation(100, 50, math.exp(-2)) == pytest.approx(math.sqrt(150 / 5000 * 51 / 50 * 2))
    assert math.isinf(serfling_deviation(100, 0, 0.1))
    assert estimate_qber(0, 0, 100, 1e-10).upper_bound == 0.5


@pytest.mark.parametrize("total", [10**4, 10**5, 10**6, 10**7])
def test_the_default_sample_is_near_the_best(total: int) -> None:
    def key_bits(k: int) -> int:
        n = total - k
        return secret_key_length(
            n, k, round(0.02 * k), int(1.05 * n * binary_entropy(0.02)), 64, SecurityParameters()
        ).bits

    best = max(key_bits(int(total * share)) for share in np.geomspace(1e-3, 0.5, 60))
    assert key_bits(default_sample_bits(total)) >= 0.97 * best


# ---- verification


def dumb_tag(bits: list[int], seed: bytes, tag_bits: int) -> bytes:
    """The polynomial coefficient by coefficient, from bits."""
    prime = 2**127 - 1
    point = (int.from_bytes(seed, "little") >> 1) % prime
    padded = bits + [0] * (-len(bits) % 8)
    chunks = [padded[i : i + 120] for i in range(0, len(padded), 120)]
    coefficients = [sum(bit << i for i, bit in enumerate(chunk)) for chunk in chunks] + [len(bits)]
    value = sum(c * pow(point, len(coefficients) - i, prime) for i, c in enumerate(coefficients)) % prime
    return (value % 2**tag_bits).to_bytes(tag_bits // 8, "little")


@given(st.lists(st.integers(0, 1), max_size=700), st.binary(min_size=16, max_size=16), st.sampled_from([8, 64, 120]))
def test_the_tag_is_the_polynomial(bits: list[int], seed: bytes, tag_bits: int) -> None:
    assert verification_tag(np.array(bits, np.uint8), seed, tag_bits) == dumb_tag(bits, seed, tag_bits)


def test_different_strings_collide_no_more_often_than_stated() -> None:
    generator = np.random.default_rng(8)
    one, other = generator.integers(0, 2, (2, 500), dtype=np.uint8)
    seeds = [generator.bytes(16) for _ in range(20_000)]
    collisions = sum(tags_agree(verification_tag(one, s, 8), verification_tag(other, s, 8)) for s in seeds)
    assert collisions / 20_000 <= collision_bound(500, 8)
    assert not any(verification_tag(one, s) == verification_tag(one[:-1], s) for s in seeds[:100])


def test_tag_sizes_reach_their_epsilon() -> None:
    assert tag_bits_for(10**6, 1e-15) == 72
    assert tag_bits_for(10**6, 2e-15) == 64
    for size in (0, 10**4, 10**7):
        assert collision_bound(size, tag_bits_for(size, 1e-15)) <= 1e-15
    with pytest.raises(ParameterError, match="epsilon"):
        tag_bits_for(10**6, 1e-36)
    with pytest.raises(ParameterError, match="seed"):
        verification_tag(np.zeros(3, np.uint8), b"short")


def test_the_checksum_is_the_common_crc32() -> None:
    assert record_checksum(b"123456789") == 0xCBF43926


# ---- amplification


@settings(deadline=None)
@given(st.integers(0, 130), st.data(), st.integers(0, 2**32 - 1))
def test_amplification_is_the_matrix_product(n: int, data: st.DataObject, seed: int) -> None:
    m = data.draw(st.integers(0, n))
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2, n, dtype=np.uint8)
    diagonal = generator.integers(0, 2, amplification_seed_bits(n, m), dtype=np.uint8)
    matrix = np.array([[diagonal[i - j + n - m - 1] for j in range(n - m)] for i in range(m)]).reshape(m, n - m)
    expected = (bits[:m] + matrix.astype(np.int64) @ bits[m:]) % 2 if n > m else bits
    assert np.array_equal(amplify(bits, diagonal, m), expected)
    assert np.array_equal(amplify(bits, np.packbits(diagonal, bitorder="little").tobytes(), m), expected)


def test_the_family_is_two_universal() -> None:
    n, m = 7, 3  # small enough to try every seed and every pair
    inputs = [np.array([v >> i & 1 for i in range(n)], np.uint8) for v in range(2**n)]
    seeds = [np.array([v >> i & 1 for i in range(n - 1)], np.uint8) for v in range(2 ** (n - 1))]
    hashes = np.array([[int(np.dot(amplify(x, s, m), [1, 2, 4])) for x in inputs] for s in seeds])
    # Linear: a pair collides exactly when its difference hashes to zero.
    assert max(int((hashes[:, v] == 0).sum()) for v in range(1, 2**n)) <= len(seeds) / 2**m


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ParameterError, match="needs 99"):
        amplify(np.zeros(100, np.uint8), np.zeros(98, np.uint8), 50)
    with pytest.raises(ParameterError, match="cannot make"):
        amplification_seed_bits(5, 6)


# ---- key length


def test_the_length_is_the_formula() -> None:
    length = secret_key_length(10**6, 10**5, 2000, 150_000, 64, SecurityParameters())
    mu = math.sqrt(1.1e6 / 1e11 * (1e5 + 1) / 1e5 * math.log(4e10))
    expected = 1e6 * (1 - binary_entropy(0.02 + mu)) - 150_000 - 64 - math.log2(2e20) - math.log2(100_001 * 150_001)
    assert length.bits == math.floor(expected)
    assert length.epsilon_total == pytest.approx(1e-10)
    assert sum(length.terms_bits.values()) == pytest.approx(expected)
    assert "Tomamichel" in length.proof


def test_no_key_comes_with_a_reason() -> None:
    security = SecurityParameters()
    assert "phase error" in (secret_key_length(1000, 100, 30, 0, 64, security).reason or "")
    assert "costs" in (secret_key_length(10**5, 10**4, 200, 90_000, 64, security).reason or "")
    assert "weak" in (secret_key_length(10**5, 10**4, 200, 9_000, 32, security).reason or "")
    assert "sample" in (secret_key_length(10**5, 0, 0, 9_000, 64, security).reason or "")
    assert secret_key_length(0, 0, 0, 0, 64, security).bits == 0


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.floats(0, 0.5), st.integers(0, 10**6))
def test_more_errors_or_leak_never_give_more_key(n: int, k: int, rate: float, leak: int) -> None:
    security, errors = SecurityParameters(), int(rate * k)
    base = secret_key_length(n, k, errors, leak, 64, security).bits
    assert 0 <= base <= n
    assert secret_key_length(n, k, min(k, errors + 1), leak, 64, security).bits <= base
    assert secret_key_length(n, k, errors, leak + 1, 64, security).bits <= base


def test_parameters_out_of_range_are_refused() -> None:
    for bad in ({"epsilon_secrecy": 0.0}, {"epsilon_correctness": 1.0}, {"preparation_quality_bits": 1.5}):
        with pytest.raises(ParameterError):
            SecurityParameters(**bad)
    with pytest.raises(ParameterError):
        secret_key_length(10, 5, 6, 0, 64, SecurityParameters())
