"""SPEC 1: canonical bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.encoding import MalformedEncoding, digest, integer_key, pack, unpack

values = st.recursive(
    st.integers(0, 2**63 - 1) | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)


@given(values)
def test_unpack_is_the_inverse_of_pack(value: object) -> None:
    assert unpack(pack(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_decode_canonically_or_are_refused(data: bytes) -> None:
    try:
        value = unpack(data)
    except MalformedEncoding:
        return
    assert pack(value) == data


@given(values, st.binary(min_size=1, max_size=4))
def test_trailing_bytes_are_refused(value: object, tail: bytes) -> None:
    with pytest.raises(MalformedEncoding):
        unpack(pack(value) + tail)


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x05",  # 5 as one byte more than needed
        b"\xd9\x01a",  # "a" with a long header
        b"\xc4\x00" + b"\x00",  # trailing
        b"\xdc\x00\x01\x01",  # a short array with a long header
        b"\x91" * 3000,  # too deep, and cut
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedEncoding):
        unpack(data)


def test_domains_separate_digests() -> None:
    assert digest("a", 1) != digest("b", 1)
    assert digest("a", 1, 2) != digest("a", (1, 2))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=2, max_size=9))
def test_storage_keys_sort_like_their_numbers(pairs: list[tuple[int, int]]) -> None:
    assert sorted(pairs) == sorted(pairs, key=lambda pair: integer_key(*pair))
