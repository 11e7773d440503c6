"""Own records on their way to the chain survive a restart, once and in order."""

import random

from hypothesis import given
from hypothesis import strategies as st

from ledger.transactions import SaeRegistered
from protocol.entropy import SeededEntropy
from qnode.context import Context
from qnode.effects import Delete, Put
from qnode.records import TABLE, OwnRecords


class Life:
    """One life of the records on a disk."""

    def __init__(self, disk: dict[bytes, bytes]) -> None:
        self.disk = disk
        self.context = Context("alpha", SeededEntropy(b"records"), random.Random(0))
        self.records = OwnRecords(self.context, {TABLE: sorted(disk.items())})

    def sync(self) -> None:
        self.records.keep()
        for effect in self.context.take():
            if isinstance(effect, Put):
                self.disk[effect.key] = effect.value
            elif isinstance(effect, Delete):
                del self.disk[effect.key]


def record(number: int) -> SaeRegistered:
    return SaeRegistered(f"app-{number}", "alpha")


@given(st.lists(st.sampled_from(["admitted", "refused", "later"]), max_size=12))
def test_what_was_not_admitted_waits_in_the_next_life(outcomes: list[str]) -> None:
    disk: dict[bytes, bytes] = {}
    life = Life(disk)
    for token, outcome in enumerate(outcomes):
        life.records.submit(token, (record(token),))
        if outcome == "admitted":
            life.records.admitted(token)
        elif outcome == "refused":
            life.records.refused(token, "full")
        life.sync()
    left = [token for token, outcome in enumerate(outcomes) if outcome != "admitted"]
    again = Life(disk)
    assert len(disk) == again.records.waiting_count == len(left)
    found = []
    for token, number in enumerate(list(again.records.waiting())):
        found += again.records.submit_again(token, number)
        again.records.admitted(token)
    again.sync()
    assert found == [record(token) for token in left]
    assert not disk and Life(disk).records.waiting_count == 0


def test_a_record_that_is_admitted_in_the_same_step_costs_no_row() -> None:
    life = Life({})
    life.records.submit(1, (record(1),))
    life.records.admitted(1)
    life.records.keep()
    assert not life.context.take()


def test_a_refused_record_is_offered_again_and_then_forgotten() -> None:
    life = Life({})
    life.records.submit(1, (record(1), record(2)))
    life.records.refused(1, "full")
    life.sync()
    (number,) = life.records.waiting()
    assert life.records.submit_again(2, number) == (record(1), record(2))
    life.records.refused(2, "still full")
    assert life.records.is_waiting(number)
    life.records.submit_again(3, number)
    life.records.admitted(3)
    life.sync()
    assert not life.disk and life.records.waiting_count == 0
