"""Selective use of bits (S4-6.2): less work for less key, never less security."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.distill.key_length import SecurityParameters
from protocol.distill.selection import select_subset
from protocol.parameters import ParameterError

SECURITY = SecurityParameters(epsilon_secrecy=1e-6, epsilon_correctness=1e-9)


def test_less_key_needs_less_work_and_a_smaller_margin() -> None:
    little, much = (select_subset(100_000, wanted, 0.02, SECURITY) for wanted in (2_000, 30_000))
    assert little.subset_bits < much.subset_bits
    assert little.work_share < much.work_share <= 1.0
    assert little.length.bits >= 2_000
    assert much.length.bits >= 30_000
    assert little.length.epsilon_total == much.length.epsilon_total == SECURITY.epsilon_total


@settings(deadline=None)
@given(st.integers(2, 200_000), st.integers(1, 50_000), st.floats(0, 0.5))
def test_a_selection_uses_every_bit_once(sifted_bits: int, wanted_bits: int, qber: float) -> None:
    selection = select_subset(sifted_bits, wanted_bits, qber, SECURITY)
    assert selection.subset_bits + selection.sample_bits == sifted_bits
    assert selection.mask(b"s").sum() == selection.subset_bits
    assert selection.work_share > 0


def test_what_cannot_be_given_is_said() -> None:
    selection = select_subset(2_000, 1_500, 0.05, SecurityParameters())
    assert selection.length.bits < 1_500
    assert selection.length.reason
    with pytest.raises(ParameterError, match="wanted_bits"):
        select_subset(2_000, 0, 0.05, SECURITY)
