"""The whole of distillation: equal keys out of noisy strings, or an honest reason."""

import numpy as np
import pytest

from protocol.distill.key_length import SecurityParameters
from protocol.distill.pipeline import DistilledBlock, distill_block, distill_two_bases
from protocol.entropy import SeededEntropy
from protocol.kernels import distillation as kernels


@pytest.mark.parametrize("method", ["cascade", "cascade-original"])
def test_a_good_block_becomes_equal_keys(method: str) -> None:
    generator = np.random.default_rng(7)
    alice = generator.integers(0, 2, 60_000, dtype=np.uint8)
    bob = alice ^ (generator.random(60_000) < 0.02).astype(np.uint8)
    stages: list[str] = []
    block = distill_block(alice, bob, SecurityParameters(), SeededEntropy(b"p"), method=method, on_stage=stages.append)
    assert stages == ["estimation", "reconciliation", "verification", "amplification"]
    assert block.alice_key is not None
    assert block.bob_key is not None
    assert block.length is not None
    assert np.array_equal(block.alice_key, block.bob_key)
    assert block.alice_key.size == block.length.bits > 15_000
    assert abs(block.alice_key.mean() - 0.5) < 0.02
    assert "array" not in repr(block)


@pytest.mark.parametrize("qber", [0.11, 0.25, 0.5, 1.0])
def test_a_bad_block_ends_with_a_reason(qber: float) -> None:
    generator = np.random.default_rng(3)
    alice = generator.integers(0, 2, 8_000, dtype=np.uint8)
    bob = alice ^ (generator.random(8_000) < qber).astype(np.uint8)
    block = distill_block(alice, bob, SecurityParameters(), SeededEntropy(b"p"))
    assert block.alice_key is None
    assert block.reason


def test_empty_and_tiny_blocks_end_cleanly() -> None:
    for size in (0, 1, 2, 50):
        block = distill_block(
            np.zeros(size, np.uint8), np.zeros(size, np.uint8), SecurityParameters(), SeededEntropy(b"")
        )
        assert block.alice_key is None
        assert block.reason


def test_two_bases_need_no_sample() -> None:
    generator = np.random.default_rng(5)
    pairs = []
    for qber in (0.02, 0.03):
        alice = generator.integers(0, 2, 60_000, dtype=np.uint8)
        pairs.append((alice, alice ^ (generator.random(60_000) < qber).astype(np.uint8)))
    blocks = distill_two_bases(pairs[0], pairs[1], 0.025, SecurityParameters(), SeededEntropy(b"two"))
    for block, other_rate in zip(blocks, (0.03, 0.02), strict=True):
        assert block.alice_key is not None
        assert block.bob_key is not None
        assert np.array_equal(block.alice_key, block.bob_key)
        assert block.qber == pytest.approx(other_rate, abs=0.003)  # the sample is the other basis
        assert block.sample_bits == 60_000
    joined = distill_block(
        np.concatenate([a for a, _ in pairs]),
        np.concatenate([b for _, b in pairs]),
        SecurityParameters(),
        SeededEntropy(b"one"),
    )
    assert joined.alice_key is not None
    assert sum(b.alice_key.size for b in blocks if b.alice_key is not None) > joined.alice_key.size


def test_a_failed_basis_leaves_the_other_without_a_sample() -> None:
    generator = np.random.default_rng(6)
    alice = generator.integers(0, 2, 5_000, dtype=np.uint8)
    good, bad = (alice, alice.copy()), (alice, generator.integers(0, 2, 5_000, dtype=np.uint8))
    first, second = distill_two_bases(good, bad, 0.02, SecurityParameters(), SeededEntropy(b"x"))
    assert first.alice_key is None
    assert second.alice_key is None
    assert "other basis" in (first.reason or "")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cascade-fast", "ldpc"])
def test_the_twins_serve_where_nothing_was_compiled(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(9)
    alice = generator.integers(0, 2, 40_000, dtype=np.uint8)
    bob = alice ^ (generator.random(40_000) < 0.02).astype(np.uint8)

    def distil() -> DistilledBlock:
        return distill_block(alice, bob, SecurityParameters(), SeededEntropy(b"t"), method=method)

    usual = distil()
    monkeypatch.setattr(kernels, "library", None)
    assert kernels.implementation() == "numpy"
    with_twins = distil()
    assert usual.alice_key is not None
    assert with_twins.alice_key is not None
    assert np.array_equal(usual.alice_key, with_twins.alice_key)
    assert with_twins.reconciliation is not None
    assert usual.reconciliation is not None
    assert with_twins.reconciliation.leaked_bits == usual.reconciliation.leaked_bits
