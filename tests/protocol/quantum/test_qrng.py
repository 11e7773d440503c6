"""Random numbers: cut-offs of SP 800-90B, what the tests catch, and that a failure lasts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocol.entropy import SeededEntropy
from protocol.quantum import qrng


@pytest.mark.parametrize(("entropy", "alpha", "run"), [(1.0, 2**-20, 21), (0.5, 2**-20, 41), (0.9, 2**-40, 46)])
def test_repetition_cutoffs_by_hand(entropy, alpha, run):
    assert qrng.repetition_cutoff(entropy, alpha) == run


@pytest.mark.parametrize("alpha", [2.0**-20, 2.0**-30, 2.0**-40])
@pytest.mark.parametrize("entropy", [0.2, 0.5, 0.9, 1.0])
def test_proportion_cutoffs_are_critbinom(entropy, alpha):
    cutoff = qrng.proportion_cutoff(entropy, alpha)
    p = 2.0**-entropy
    assert stats.binom.sf(cutoff - 1, 1024, p) <= alpha < stats.binom.sf(cutoff - 2, 1024, p)


def dumb_tests(bits, tests):
    """The flow charts of the standard, bit by bit: which test fails, if any."""
    last, run, window = -1, 0, []
    for bit in bits:
        run = run + 1 if bit == last else 1
        last = bit
        if run >= tests.repetition_cutoff:
            return True
        window.append(bit)
        if len(window) == 1024:
            if window.count(window[0]) >= tests.proportion_cutoff:
                return True
            window = []
    return False


@given(st.integers(0, 2**32), st.floats(0.3, 0.7), st.floats(0, 0.9), st.lists(st.integers(0, 3000), max_size=5))
def test_chunked_tests_equal_the_flow_charts(seed, bias, stickiness, sizes):
    physics = np.random.default_rng(seed)
    source = qrng.EmulatedQrng(SeededEntropy(physics.bytes(16)), bias, stickiness)
    chunks = [source.raw_bits(size) for size in sizes]
    tests = qrng.HealthTests(0.9, 2.0**-20)
    failed = False
    try:
        for chunk in chunks:
            tests.check(chunk)
    except qrng.EntropyFailure:
        failed = True
    everything = np.concatenate([*chunks, np.empty(0, dtype=np.uint8)]).tolist()
    assert failed == dumb_tests(everything, qrng.HealthTests(0.9, 2.0**-20))


def test_emulated_generator_has_its_bias_and_stickiness():
    source = qrng.EmulatedQrng(SeededEntropy(b"q"), one_probability=0.3, stickiness=0.2)
    bits = np.concatenate([source.raw_bits(100_000), source.raw_bits(100_000)])
    assert bits.mean() == pytest.approx(0.3, abs=0.01)
    repeats = (bits[1:] == bits[:-1]).mean()
    assert repeats == pytest.approx(0.2 + 0.8 * (0.3**2 + 0.7**2), abs=0.01)
    assert source.min_entropy_per_bit == pytest.approx(-math.log2(0.2 + 0.8 * 0.7))


def test_good_sources_give_uniform_reproducible_bytes():
    streams = [
        qrng.TestedEntropy(make(SeededEntropy(b"seed")))
        for make in (qrng.EmulatedQrng, qrng.EmulatedQrng, qrng.SystemSource)
    ]
    first, again, system = (stream.take(20_000) for stream in streams)
    assert first == again != system
    for data in (first, system):
        assert stats.chisquare(np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)).pvalue > 1e-4
    assert len(streams[0].take(0)) == 0 and len(streams[0].take(33)) == 33


@pytest.mark.parametrize(("bias", "stickiness"), [(0.5, 1.0), (1.0, 0.0), (0.75, 0.0), (0.5, 0.8)])
def test_broken_sources_never_start(bias, stickiness):
    source = qrng.EmulatedQrng(SeededEntropy(b"s"), bias, stickiness)
    with pytest.raises(qrng.EntropyFailure, match=r"repetition|proportion"):
        qrng.TestedEntropy(source)


def test_a_source_that_breaks_stops_for_good():
    source = qrng.EmulatedQrng(SeededEntropy(b"s"))
    entropy = qrng.TestedEntropy(source)
    entropy.take(1000)
    source.stickiness = 1.0
    with pytest.raises(qrng.EntropyFailure):
        entropy.take(100)
    source.stickiness = 0.0
    with pytest.raises(qrng.EntropyFailure):
        entropy.take(1)


def test_healthy_bits_do_not_alarm():
    tests = qrng.HealthTests(1.0)
    source = qrng.EmulatedQrng(SeededEntropy(b"long"))
    for _ in range(20):
        tests.check(source.raw_bits(1 << 18))
