"""Which proof a block rests on, and that its counts are those of the arrays both ends hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.distill.bounds import (
    INTENSITIES_MAX,
    PROOF_SINGLE_PHOTON,
    Costs,
    DetectionCounts,
    SecurityParameters,
    key_length,
)
from protocol.distill.key_length import secret_key_length
from protocol.quantum.source import SourceParameters

CODES = st.lists(st.integers(0, INTENSITIES_MAX - 1), max_size=60)
SINGLE = SourceParameters(model="single_photon")
SECURITY = SecurityParameters()


@given(CODES, CODES, st.data())
def test_counts_are_those_of_a_plain_count(key: list[int], test: list[int], data: st.DataObject) -> None:
    errors = data.draw(st.lists(st.booleans(), min_size=len(test), max_size=len(test)))
    counts = DetectionCounts.of_key(np.array(key, np.uint8)).with_test(np.array(test, np.uint8), np.array(errors, bool))
    codes = range(INTENSITIES_MAX)
    assert counts.key == tuple(key.count(code) for code in codes)
    assert counts.test == tuple(test.count(code) for code in codes)
    assert counts.test_errors == tuple(
        sum(wrong for code_of, wrong in zip(test, errors, strict=True) if code_of == code) for code in codes
    )


def single(key: int, test: int, errors: int, leaked: int = 0, tag: int = 64, collision: float = 1e-16) -> int:
    counts = DetectionCounts((key, 0, 0), (test, 0, 0), (errors, 0, 0))
    return key_length(SECURITY, SINGLE, counts, Costs(leaked, tag, collision)).bits


def test_single_photons_rest_on_their_proof() -> None:
    counts = DetectionCounts((40_000, 0, 0), (10_000, 0, 0), (100, 0, 0))
    length = key_length(SECURITY, SINGLE, counts, Costs(4_000, 64, 1e-16))
    plain = secret_key_length(40_000, 10_000, 100, 4_000, 64, SECURITY, tag_collision=1e-16)
    assert length.bits == plain.bits > 0
    assert length.proof == PROOF_SINGLE_PHOTON
    assert length.epsilon_total == SECURITY.epsilon_total


@given(
    st.integers(1, 10**6),
    st.integers(1, 10**5),
    st.integers(0, 10**5),
    st.integers(0, 10**5),
    st.integers(1, 1000),
)
def test_more_errors_and_more_talk_never_make_more_key(
    key: int, test: int, errors: int, leaked: int, more: int
) -> None:
    errors = min(errors, test)
    length = single(key, test, errors, leaked)
    assert 0 <= length <= max(0, key - leaked - 64)
    assert single(key, test, errors, leaked + more) <= length
    assert single(key, test, min(test, errors + more), leaked) <= length


@pytest.mark.parametrize(
    ("key", "test", "errors", "collision"),
    [
        (0, 100, 0, 1e-16),
        (100, 0, 0, 1e-16),
        (10_000, 5_000, 2_500, 1e-16),
        (10, 10, 0, 1e-16),
        (40_000, 10_000, 0, 1e-3),
    ],
)
def test_no_key_has_a_reason(key: int, test: int, errors: int, collision: float) -> None:
    counts = DetectionCounts((key, 0, 0), (test, 0, 0), (errors, 0, 0))
    length = key_length(SECURITY, SINGLE, counts, Costs(0, 64, collision))
    assert length.bits == 0
    assert length.reason


DECOY = SourceParameters()


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=3, max_size=3))
def test_decoy_counts_of_any_kind_make_a_length_or_a_reason(counts: list[tuple[int, int, int]]) -> None:
    """The peer reports which pulses clicked: no report may raise, and none makes more key than clicks."""
    key, test, wrong = zip(*((key, test, min(wrong, test)) for key, test, wrong in counts), strict=True)
    length = key_length(SECURITY, DECOY, DetectionCounts(key, test, wrong), Costs(0, 64, 1e-16))
    assert 0 <= length.bits <= sum(key)
    assert (length.bits > 0) == (length.reason is None)
    assert length.proof != PROOF_SINGLE_PHOTON


def test_weak_pulses_do_not_get_the_single_photon_length() -> None:
    """The same clicks: photon-number splitting is what decoys pay for."""
    counts = DetectionCounts((400_000, 20_000, 500), (40_000, 2_000, 50), (400, 40, 25))
    costs = Costs(0, 64, 1e-16)
    assert key_length(SECURITY, DECOY, counts, costs).bits < key_length(SECURITY, SINGLE, counts, costs).bits
