"""Shaping in virtual time: what leaves, when, in which order, and what is held."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnode.io.shaping import HELD_BYTES_MAX, UNSHAPED, Shape, ShapeError, Shaper


class _Timer:
    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s, self.call, self.cancelled = at_s, call, False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """The two methods of an event loop that shaping uses, on a clock that jumps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[_Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> _Timer:
        self.timers.append(_Timer(self.now_s + delay_s, call))
        return self.timers[-1]

    def run(self, until_s: float) -> None:
        while due := [t for t in self.timers if not t.cancelled and t.at_s <= until_s]:
            timer = min(due, key=lambda t: t.at_s)
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer.at_s)
            timer.call()
        self.now_s = until_s


class Line:
    def __init__(self, shape: Shape) -> None:
        self.loop = VirtualLoop()
        self.arrived: list[tuple[float, bytes]] = []
        self.drained = 0
        self.shaper = Shaper(cast(asyncio.AbstractEventLoop, self.loop), self._arrive, self._drain)
        self.shaper.reshape(shape)

    def _arrive(self, data: bytes) -> None:
        self.arrived.append((self.loop.now_s, data))

    def _drain(self) -> None:
        self.drained += 1


def test_a_delay_moves_everything_by_itself() -> None:
    line = Line(Shape(delay_ms=50))
    line.shaper.write(b"a")
    line.loop.run(0.02)
    line.shaper.write(b"b")
    line.loop.run(1)
    assert line.arrived == [(pytest.approx(0.05), b"a"), (pytest.approx(0.07), b"b")]


def test_bandwidth_is_the_time_of_the_bytes() -> None:
    line = Line(Shape(bandwidth_mbit_per_s=8))  # a byte per microsecond
    for _ in range(4):
        line.shaper.write(bytes(250_000))
    line.loop.run(10)
    assert [at for at, _ in line.arrived] == [pytest.approx(0.25 * n) for n in (1, 2, 3, 4)]


def test_loss_costs_a_retransmission_and_keeps_the_order() -> None:
    line = Line(Shape(delay_ms=10, loss=0.5))
    for number in range(200):
        line.shaper.write(bytes([number]))
    line.loop.run(10)
    assert b"".join(data for _, data in line.arrived) == bytes(range(200))
    assert line.arrived[-1][0] == pytest.approx(0.21)


def test_a_cut_holds_everything_until_it_is_healed() -> None:
    line = Line(Shape(cut=True))
    line.shaper.write(b"a")
    line.loop.run(5)
    assert line.arrived == [] and not line.shaper.is_idle
    line.shaper.reshape(UNSHAPED)
    line.loop.run(6)
    assert [data for _, data in line.arrived] == [b"a"] and line.shaper.is_idle


def test_a_full_line_says_so_and_says_when_it_is_not() -> None:
    line = Line(Shape(bandwidth_mbit_per_s=8))
    while not line.shaper.is_full:
        line.shaper.write(bytes(1 << 18))
    assert line.drained == 0
    line.loop.run(HELD_BYTES_MAX / 1e6)
    assert line.drained == 1 and not line.shaper.is_full


def test_what_is_closed_never_arrives() -> None:
    line = Line(Shape(delay_ms=5))
    line.shaper.write(b"a")
    line.shaper.close()
    line.loop.run(1)
    assert line.arrived == []


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=3000), st.floats(0, 0.2)), max_size=30),
    st.builds(
        Shape,
        delay_ms=st.floats(0, 100),
        jitter_ms=st.floats(0, 100),
        loss=st.floats(0, 0.9),
        bandwidth_mbit_per_s=st.sampled_from([0.0, 0.1, 10.0]),
    ),
)
def test_a_shaped_stream_is_the_same_stream(writes: list[tuple[bytes, float]], shape: Shape) -> None:
    line = Line(shape)
    for data, pause_s in writes:
        line.shaper.write(data)
        line.loop.run(line.loop.now_s + pause_s)
    line.loop.run(line.loop.now_s + 1000)
    assert b"".join(data for _, data in line.arrived) == b"".join(data for data, _ in writes)


@pytest.mark.parametrize(
    "values", [{"delay_ms": -1}, {"loss": 1.0}, {"jitter_ms": 1e9}, {"bandwidth_mbit_per_s": 1e-9}]
)
def test_an_impossible_shape_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=next(iter(values))):
        Shape(**values)
