"""The machine's limits are checked before a fleet starts, and each refusal says what to do."""

import dataclasses

import pytest

from loadtest.fleet.launcher import FleetError
from loadtest.fleet.limits import Machine, require

ROOMY = Machine(20_000, 100_000, 200_000, 24_000, 2)


def test_a_roomy_machine_runs_three_hundred() -> None:
    require(300, machine=ROOMY)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("descriptors_per_process", 100, "ulimit -n"),
        ("processes_per_user", 500, "ulimit -u"),
        ("threads_in_system", 1000, "sysctl kernel.threads-max"),
        ("memory_available_mib", 2000, "choose at most"),
    ],
)
def test_each_limit_is_named_with_its_remedy(field: str, value: int, remedy: str) -> None:
    with pytest.raises(FleetError, match=remedy):
        require(300, machine=dataclasses.replace(ROOMY, **{field: value}))


def test_what_a_machine_does_not_say_is_not_checked() -> None:
    require(300, machine=dataclasses.replace(ROOMY, threads_in_system=None, memory_available_mib=None))


def test_the_number_that_fits_does_fit() -> None:
    machine = dataclasses.replace(ROOMY, memory_available_mib=5_000)
    with pytest.raises(FleetError, match=r"at most (\d+)") as refused:
        require(300, machine=machine)
    fit = int(str(refused.value).rsplit("at most ", 1)[1].removesuffix(" nodes"))
    require(fit, machine=machine)
