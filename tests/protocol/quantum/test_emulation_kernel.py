"""The C kernel against its numpy twin, bit for bit, on the same random words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.kernels import emulation, emulation_twin
from protocol.kernels.emulation_twin import DetectorRules
from protocol.quantum.detector import DetectorParameters
from protocol.quantum.noise import NoiseParameters
from protocol.quantum.source import SourceParameters

pytestmark = pytest.mark.skipif(emulation.IMPLEMENTATION != "c", reason="the C kernel was not built here")

WORD = st.integers(0, 2**64 - 1)


def words(seed, count):
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@given(st.integers(0, 2**32), st.floats(0, 1e15), st.integers(0, 2**43), st.integers(0, 2**43), st.integers(1, 300))
def test_propose(seed, inverse_rate, start, length, count):
    exponentials = np.random.default_rng(seed).standard_exponential(count)
    blocks = np.zeros((2, count, 2), dtype=np.uint64)
    counts = [
        module.propose(exponentials, inverse_rate, start, start + length, blocks[i])
        for i, module in enumerate((emulation, emulation_twin))
    ]
    assert counts[0] == counts[1]
    assert np.array_equal(blocks[0, : counts[0]], blocks[1, : counts[0]])


@given(st.integers(0, 2**32), st.floats(0.01, 1.0), st.integers(0, 200))
def test_emit_and_split_choices(seed, scale, count):
    thresholds = SourceParameters(basis_z_probability=0.7).choice_thresholds()
    decays = np.array([[0.9], [0.5], [0.1]]) * scale
    tails = np.ascontiguousarray(decays ** np.arange(1, 16))
    blocks = np.zeros((count, 2), dtype=np.uint64)
    blocks[:, 0] = np.arange(count)
    inputs = (blocks, words(seed, 2 * count).reshape(-1, 2), words(seed + 1, count), thresholds, tails, tails[0, 0])
    results = []
    for module in (emulation, emulation_twin):
        positions, tags = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint8)
        kept = module.emit(*inputs, positions, tags)
        columns = [np.zeros(count, dtype=np.uint8) for _ in range(3)]
        module.split_choices(inputs[1], thresholds, *columns)
        results.append([positions[:kept].tolist(), tags[:kept].tolist(), *(c.tolist() for c in columns)])
    assert results[0] == results[1]


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 120),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.05, 0.5, 0.99]),
    st.floats(0, 50),
    st.booleans(),
    st.integers(1, 400),
)
def test_detect(seed, count, dead_pulses, after_pulse, decay, discard, spread):
    """Several stretches in a row, so that dead time and pending after-pulses are carried over too."""
    physics = np.random.default_rng(seed)
    table = DetectorParameters(efficiency_1=0.1).outcome_table(NoiseParameters(dephasing=0.1).one_probability())
    valid = np.array([t for t in range(256) if t >> 4 and t & 15 < 7] + [12, 13, 14, 0x18, 0x1B], dtype=np.uint8)
    rules = DetectorRules(dead_pulses, after_pulse, decay, discard)
    carries = [emulation.fresh_carry(), emulation.fresh_carry()]
    for stretch in range(3):
        first, end = stretch * spread, (stretch + 1) * spread
        positions = np.sort(physics.integers(first, end, count)).astype(np.uint64)
        inputs = (
            positions,
            physics.choice(valid, count),
            words(seed + stretch, 2 * count).reshape(-1, 2),
            words(seed + 7 + stretch, count),
            table,
            2**31,
            end,
            rules,
        )
        # The words of arrivals at one position are those of one call of Bob's function.
        inputs[2][:, 0] = words(3, 3 * spread + 1)[positions.astype(int)]
        results = [
            [column.tolist() for column in module.detect(*inputs, carry)]
            for module, carry in zip((emulation, emulation_twin), carries, strict=True)
        ]
        assert results[0] == results[1]
        assert carries[0].tolist() == carries[1].tolist()


def test_long_chains_of_after_pulses_outrun_the_room():
    """More detections than arrivals: the kernel is called again where it stopped."""
    positions = np.array([5], dtype=np.uint64)
    table = DetectorParameters().outcome_table(NoiseParameters().one_probability())
    rules = DetectorRules(1, 0.999, 0.5, False)
    results = []
    for module in (emulation, emulation_twin):
        carry = module.fresh_carry()
        arguments = (np.array([12], np.uint8), np.zeros((1, 2), np.uint64), np.array([8], np.uint64), table, 2**31)
        results.append([c.tolist() for c in module.detect(positions, *arguments, 10**6, rules, carry)])
    assert results[0] == results[1]
    assert len(results[0][0]) > 100
