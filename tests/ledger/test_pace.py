"""The view timers follow the time that heights with work take, within their bounds."""

from hypothesis import given
from hypothesis import strategies as st

from ledger.core import MS, ReplicaSettings
from ledger.pace import Pace

SETTINGS = ReplicaSettings()


def after(heights: list[tuple[int, bool]]) -> Pace:
    """A pace that has seen heights of so many milliseconds, with or without work in them."""
    pace, now_ns = Pace(SETTINGS), 0
    for took_ms, had_work in heights:
        pace.work_waits(now_ns)
        now_ns += took_ms * MS
        pace.work_waits(now_ns)  # what comes later does not begin anew
        pace.height_ended(now_ns, had_work=had_work)
    return pace


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), max_size=40))
def test_timers_stay_within_their_bounds(heights: list[tuple[int, bool]]) -> None:
    timing = after(heights).timing()
    assert SETTINGS.view_timeout_min_ns <= timing.view_timeout_ns <= SETTINGS.view_timeout_max_ns
    assert timing.finalize_timeout_ns >= max(SETTINGS.finalize_timeout_ns, timing.view_timeout_ns // 2)


def test_a_view_gets_four_times_what_a_height_takes() -> None:
    assert after([(500, True)] * 100).timing().view_timeout_ns // MS in range(1_990, 2_001)
    assert after([(500, True)] * 100 + [(1, True)] * 100).timing().view_timeout_ns == SETTINGS.view_timeout_min_ns


def test_heights_without_work_say_nothing() -> None:
    assert after([(5_000, False)] * 100).timing() == after([]).timing()


def test_a_height_in_which_nothing_waited_says_nothing() -> None:
    pace = Pace(SETTINGS)
    pace.height_ended(10**12, had_work=True)
    assert pace.timing() == after([]).timing()
