"""Packing changes where things lie, and nothing else."""

import subprocess
import sys
import types

from hypothesis import given
from hypothesis import strategies as st

from loadtest.fleet import packing


def _outer(values: list[float]) -> tuple[list[float], str, tuple[object, ...]]:
    def inner(value: float) -> float:
        return value * 2.5 + 0.125

    return [inner(value) for value in values], "not a word: kept as it is", (1, 2.5, ("deep", None))


def test_code_that_ran_is_copied_with_what_it_defines_and_says_the_same() -> None:
    with packing.running_code() as run:
        expected = _outer([1.0, 2.0])
    before = _outer.__code__
    assert packing.pack({key: code for key, code in run.items() if code.co_filename == __file__}) >= 2
    after = _outer.__code__
    assert after is not before
    assert after == before  # CPython compares code by what it does
    inner_before, inner_after = (
        next(each for each in code.co_consts if isinstance(each, types.CodeType)) for code in (before, after)
    )
    assert inner_after is not inner_before
    assert _outer([1.0, 2.0]) == expected


def test_code_that_did_not_run_stays() -> None:
    before = test_code_that_ran_is_copied_with_what_it_defines_and_says_the_same.__code__
    with packing.running_code() as run:
        _outer([1.0])
    packing.pack({key: code for key, code in run.items() if code.co_filename == __file__})
    assert test_code_that_ran_is_copied_with_what_it_defines_and_says_the_same.__code__ is before


def test_words_are_names_and_identifiers() -> None:
    with packing.running_code() as run:
        _outer([1.0])
    words = packing.words({key: code for key, code in run.items() if code.co_filename == __file__})
    assert {"inner", "values", "value", "_outer"} <= set(words)
    assert "not a word: kept as it is" not in words
    assert len(words) == len(set(words))


@given(st.lists(st.text()))
def test_shared_texts_are_the_ones_that_everybody_gets(texts: list[str]) -> None:
    kept = packing.share("".join(list(each)) for each in texts)
    assert kept == texts
    assert all(sys.intern("".join(list(each))) is one for each, one in zip(texts, kept, strict=True))


HOLES = """
import gc
from loadtest.fleet import packing
kept = [bytes(n % 400) for n in range(200_000)]
del kept[::2]
gc.collect()
before = sum(size * count for size, count in packing._rooms())
filled = packing.fill_holes()
after = sum(size * count for size, count in packing._rooms())
print(before, filled, after)
"""


def test_holes_are_filled_and_hardly_any_are_left() -> None:
    """In a process of its own, since what is filled stays so."""
    ran = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=60)
    before, filled, after = map(int, ran.stdout.split())
    assert before > 10_000_000
    assert filled >= before
    assert after < before / 50
    assert ran.stderr == ""
