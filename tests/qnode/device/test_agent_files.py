"""A device's files, profiles, energy plans and readings."""

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.transactions import DeviceRegistered
from protocol.lightweight.enrolment import statement
from protocol.lightweight.length import DevicePolicy
from protocol.lightweight.telemetry import GCM, PAD, PadExhausted, ReplayWindow, TelemetryError, TelemetryKey
from qnode.device import readings
from qnode.device.agent import DeviceState
from qnode.device.energy import Battery, Plan, Profile, TooWeak, plan_session, refresh_period_s
from qnode.device.process import end_task
from qnode.device.store import Configuration, DeviceError, Store, profile_names, read_profile

FLOOR = DevicePolicy()


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_read_and_affords_a_key(name: str) -> None:
    battery = Battery.fresh(read_profile(name))
    plan = plan_session(battery, FLOOR)
    assert isinstance(plan, Plan) and plan.wish.key_bits >= FLOOR.key_bits_min
    assert 0 < plan.energy_j < 1.0


def test_there_are_five_devices_as_in_the_paper() -> None:
    assert len(profile_names()) == 5


@given(st.floats(0, 1), st.sampled_from(profile_names()), st.sampled_from([128, 256, 512]))
def test_no_battery_makes_a_device_cross_the_floor(charge: float, name: str, key_bits_min: int) -> None:
    """|K_final| = α·E between the floor and what the session gives; below the floor the device is too weak."""
    profile = read_profile(name)
    battery = Battery(profile, charge * profile.battery_j, {})
    plan = plan_session(battery, DevicePolicy(key_bits_min))
    if isinstance(plan, TooWeak):
        least = plan_session(Battery.fresh(replace(profile, charge_share=1.0)), DevicePolicy(key_bits_min))
        assert isinstance(least, Plan) and least.energy_j > 0.5 * battery.usable_j
        return
    assert plan.energy_j <= battery.usable_j
    assert key_bits_min <= plan.wish.key_bits <= plan.secret_bits
    adaptive = int(profile.alpha_bits_per_j * battery.usable_j)
    assert plan.wish.key_bits <= max(key_bits_min, adaptive)


def test_less_energy_means_shorter_keys_and_longer_periods() -> None:
    profile = read_profile("thermometer")
    keys, periods = [], []
    for share in (1.0, 0.8, 0.6, 0.4):
        battery = Battery(profile, share * profile.battery_j, {})
        plan = plan_session(battery, DevicePolicy(128))
        assert isinstance(plan, Plan)
        keys.append(plan.wish.key_bits)
        periods.append(refresh_period_s(battery))
    assert keys == sorted(keys, reverse=True) and keys[0] > keys[-1]
    assert periods == sorted(periods)


def test_batteries_run_down_and_are_filled() -> None:
    profile = replace(read_profile("thermometer"), idle_w=1.0, harvest_w=0.0)
    battery = Battery.fresh(profile)
    battery.pass_time(10.0)
    assert battery.charge_j == pytest.approx(profile.battery_j * profile.charge_share - 10.0)
    battery.pass_time(1e9)
    assert battery.charge_j == 0.0 and isinstance(plan_session(battery, FLOOR), TooWeak)
    battery.profile = replace(profile, idle_w=0.0, harvest_w=1.0)
    battery.pass_time(1e9)
    assert battery.share == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unknown": 1}, "no key unknown"),
        ({"battery_j": "much"}, "battery_j"),
        ({"battery_j": -1.0}, "battery_j"),
        ({"session_sifted_bits": 77}, "session_sifted_bits"),
        ({"misalignment": 2.0}, "misalignment"),
    ],
)
def test_bad_profiles_are_refused_with_the_reason(tmp_path: Path, change: dict[str, object], said: str) -> None:
    table = {name: getattr(read_profile("ecg-patch"), name) for name in Profile.__slots__ if name != "name"} | change
    path = tmp_path / "p.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items()))
    with pytest.raises(DeviceError, match=said):
        read_profile(str(path))


# ---- files


def test_states_survive_and_leave_no_old_key_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load() is None
    first = DeviceState("d", bytes(range(32)), 3, b"i" * 16, b"k" * 63, 5, 256, 0)
    store.save(first)
    held = (tmp_path / "state.json").open("rb")
    store.save(replace(first, key=b"n" * 63))
    assert store.load() == replace(first, key=b"n" * 63)
    assert set(held.read()) == {0}, "the old file's bytes are overwritten"
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DeviceError, match="not a device's state"):
        store.load()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"security": "none", "broker_host": "example.org"}, "in the clear"),
        ({"security": "maybe"}, "'tls' or 'none'"),
        ({"key_bits_min": 64}, "key_bits_min"),
        ({"code": "not base64!"}, "enrol"),
        ({"genesis": 5}, "enrol"),
    ],
)
def test_bad_configurations_are_refused_with_the_reason(tmp_path: Path, change: dict[str, object], said: str) -> None:
    table = {
        "device_id": "d",
        "node_id": "n",
        "chain_id": "c",
        "genesis": "00" * 32,
        "code": "AAAA",
        "key_bits_min": 256,
        "security_millibits_min": 33_219,
        "broker_host": "127.0.0.1",
        "broker_port": 1,
        "security": "tls",
        "profile": "ecg-patch",
    }
    (tmp_path / "device.json").write_text(json.dumps(table))
    good = Configuration.read(tmp_path)
    assert good.policy == FLOOR and "AAAA" not in repr(good)
    assert good.identity().private_bytes_raw() == good.identity().private_bytes_raw()
    (tmp_path / "device.json").write_text(json.dumps(table | change))
    with pytest.raises(DeviceError, match=said):
        Configuration.read(tmp_path)


def test_devices_sign_the_very_record_of_the_chain() -> None:
    record = DeviceRegistered("d", "n", bytes(range(32)), 256, 33_219, bytes(64))
    assert statement("c", b"g" * 32, "d", "n", bytes(range(32)), (256, 33_219)) == record.signing_bytes("c", b"g" * 32)


# ---- readings


def test_the_shipped_readings_are_those_of_the_generator(tmp_path: Path) -> None:
    readings.write(tmp_path)
    for name in readings.SHIPPED:
        assert (tmp_path / name).read_bytes() == readings.shipped(name).read_bytes()
        values = [json.loads(reading) for reading in readings.recorded(readings.shipped(name))]
        assert len(values) == readings.SHIPPED[name][1] and all("t_ms" in value for value in values)


@given(st.binary(max_size=200), st.sampled_from([".csv", ".jsonl"]))
def test_random_files_are_readings_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    path = tmp_path_factory.mktemp("r") / f"file{kind}"
    path.write_bytes(data)
    try:
        assert all(isinstance(reading, bytes) for reading in readings.recorded(path))
    except DeviceError as error:
        assert "file" in str(error)


# ---- telemetry


@given(st.lists(st.integers(1, 3000), max_size=80))
def test_the_window_is_a_set_of_what_was_seen(sequences: list[int]) -> None:
    window, seen = ReplayWindow(), set()
    for sequence in sequences:
        new = sequence not in seen and (not seen or sequence > max(seen) - 1024)
        assert window.is_new(sequence) == new
        if new:
            window.accept(sequence)
            seen.add(sequence)
    assert window.last == max(seen, default=0) and window.missing == window.last - len(seen)


@given(st.binary(max_size=300), st.integers(1, 2**60), st.integers(0, 7))
def test_changed_readings_do_not_open(reading: bytes, sequence: int, place: int) -> None:
    for mode in (GCM, PAD):
        ours, theirs = (TelemetryKey("d", b"i" * 16, bytes(range(256)) * 2) for _ in range(2))
        frame = ours.seal(sequence, 5, reading, mode)
        at = len(frame) * place // 8
        changed = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]
        with pytest.raises(TelemetryError):
            theirs.open(changed)
        assert theirs.open(frame) == (5, reading)
    other = TelemetryKey("e", b"i" * 16, bytes(range(256)) * 2)
    with pytest.raises(TelemetryError):
        other.open(frame)


def test_a_pad_is_used_once() -> None:
    ours, theirs = (TelemetryKey("d", b"i" * 16, random.Random(1).randbytes(64)) for _ in range(2))
    first = ours.seal(1, 0, b"97", PAD)
    second = ours.seal(2, 0, b"97", PAD)
    assert theirs.open(second) == theirs.open(first) == (0, b"97"), "in any order"
    assert int.from_bytes(second[25:27], "big") == len(first) - 25 - 2 - 16, "the next pad begins behind the first"
    assert first[27:-16] != second[27:-16]
    with pytest.raises(PadExhausted):
        ours.seal(3, 0, bytes(40), PAD)
    assert ours.seal(3, 0, bytes(40), GCM)


async def test_a_task_that_drops_a_cancellation_is_ended_all_the_same() -> None:
    """As `asyncio.wait_for` does before Python 3.12 when its result comes in the same turn."""
    drops = 2

    async def stubborn() -> None:
        nonlocal drops
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                drops -= 1
                if drops < 0:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(end_task(task), 10)
    assert task.done() and drops == -1
