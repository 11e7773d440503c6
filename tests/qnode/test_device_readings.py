"""Readings kept beyond a restart: bounded per device, aged, sealed, and what a device may write without harm."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.entropy import SeededEntropy
from qnode.context import Context
from qnode.device_readings import NESTING_MAX, READINGS_TABLE, Reading, Readings, Retention, readable
from qnode.effects import Delete, Put
from qnode.vault import Vault

HOUR_NS = 3_600_000_000_000


class Shelf:
    """A store beside a disk that keeps every effect."""

    def __init__(self, retention: Retention) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.now_ns = 10**18
        self.start(retention)

    def start(self, retention: Retention) -> None:
        entropy = SeededEntropy(str(len(self.rows)).encode())
        self.context = Context("node-1", entropy, random.Random(1))
        self.context.begin(self.now_ns)
        vault = Vault(bytes(32), entropy)
        self.readings = Readings(self.context, vault, retention, sorted(self.rows.items()))
        self.sync()

    def sync(self) -> None:
        for effect in self.context.take():
            match effect:
                case Put(table, key, value):
                    assert table == READINGS_TABLE
                    self.rows[key] = value
                case Delete(table, key):
                    assert table == READINGS_TABLE
                    self.rows.pop(key, None)

    def say(self, number: int, device: str = "ecg-1", content: bytes | None = None) -> None:
        self.context.begin(self.now_ns)
        self.readings.keep(Reading(device, bytes(16), number, number, content or str(number).encode()))
        self.sync()

    def last(self, count: int, device: str = "ecg-1") -> list[Any]:
        self.context.begin(self.now_ns)
        found = [each["reading"] for each in self.readings.last(device, count)]
        self.sync()
        return found


@given(
    before=st.integers(1, 12),
    after=st.integers(0, 12),
    said=st.integers(0, 40),
    more=st.integers(0, 20),
)
def test_the_last_readings_survive_a_restart_under_any_retention(before: int, after: int, said: int, more: int) -> None:
    shelf = Shelf(Retention(before))
    for number in range(said):
        shelf.say(number)
        shelf.say(number, "ecg-2")
    assert len(shelf.rows) == 2 * min(said, before)
    shelf.start(Retention(after))
    kept = list(range(said))[-before:]
    assert shelf.last(100) == shelf.last(100, "ecg-2") == (kept[-after:] if after else [])
    for number in range(said, said + more):
        shelf.say(number)
    expected = ([*kept[-after:], *range(said, said + more)][-after:]) if after else []
    assert shelf.last(100) == expected and shelf.last(3) == expected[-3:]
    shelf.start(Retention(after))
    assert shelf.last(100) == expected
    assert len(shelf.rows) <= 2 * after


def test_old_readings_are_destroyed() -> None:
    shelf = Shelf(Retention(10, age_ms_max=3_600_000))
    shelf.say(1)
    shelf.now_ns += HOUR_NS // 2
    shelf.say(2)
    shelf.now_ns += HOUR_NS // 2 + 1_000_000
    assert shelf.last(10) == [2] and len(shelf.rows) == 1
    shelf.now_ns += HOUR_NS
    shelf.say(3, "ecg-2")  # hearing any device is enough
    assert len(shelf.rows) == 1 and not shelf.last(10)


def test_rows_are_sealed_and_forgotten_with_their_device() -> None:
    shelf = Shelf(Retention())
    shelf.say(1, content=b"blood pressure 120/80")
    shelf.say(1, "ecg-2")
    assert not any(b"blood" in value for value in shelf.rows.values())
    shelf.readings.forget("ecg-1")
    shelf.sync()
    assert len(shelf.rows) == 1 and shelf.last(5, "ecg-2") == [1]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 60_000 + b"]" * 60_000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"x":1' + b"0" * 400 + b"}",
        b'"\\ud800"',
        b"\xff\x00",
    ],
)
def test_whatever_a_device_writes_can_be_shown(content: bytes) -> None:
    shelf = Shelf(Retention(4))
    shelf.say(1, content=content)
    shelf.start(Retention(4))
    (shown,) = shelf.last(1)
    assert json.dumps(shown) and shown == readable(content)


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_shown_as_what_it_is(value: Any) -> None:
    assert readable(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", ["NaN", "[1,-Infinity]"])
def test_numbers_that_are_none_are_shown_as_text(text: str) -> None:
    assert readable(text.encode()) == text


def test_wide_json_is_no_deep_json() -> None:
    wide = [{"v": [n]} for n in range(2 * NESTING_MAX)]
    assert readable(json.dumps(wide).encode()) == wide
