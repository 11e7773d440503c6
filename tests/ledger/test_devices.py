"""Devices on the chain: pinned bytes, who may register and revoke, and that both are for good."""

import pytest

from ledger.signatures import Ed25519Signer
from ledger.state_entries import device_key
from ledger.transactions import (
    DeviceAlarmCleared,
    DeviceAlarmRaised,
    DeviceRegistered,
    DeviceRevoked,
    MalformedTransaction,
    Transaction,
    decode,
    encode,
)
from tests.ledger.test_execution import Table

DEVICE = Ed25519Signer(b"\x07" * 32)


def registered(table: Table, node_id: str = "alpha", name: str = "ecg-1", **changed: object) -> DeviceRegistered:
    members = {
        "device_id": name,
        "node_id": node_id,
        "public_key": DEVICE.public_key,
        "key_bits_min": 256,
        "security_millibits_min": 33_219,
    }
    blank = DeviceRegistered(**members, device_signature=bytes(64))  # type: ignore[arg-type]
    signature = DEVICE.sign(blank.signing_bytes(table.genesis.chain_id, table.genesis.digest))
    return DeviceRegistered(**{**members, "device_signature": signature, **changed})  # type: ignore[arg-type]


@pytest.fixture
def table() -> Table:
    return Table()


def test_bytes_are_pinned() -> None:
    record = DeviceRegistered("ecg-1", "alpha", bytes(range(32)), 256, 33_219, bytes(64))
    assert encode(record).hex() == (
        "9710a56563672d31a5616c706861c420" + bytes(range(32)).hex() + "cd0100cd81c3c440" + "00" * 64
    )
    assert encode(DeviceRevoked("ecg-1", "lost")).hex() == "9311a56563672d31a46c6f7374"
    assert encode(DeviceAlarmRaised("ecg-1", "qber", 250_000)).hex() == "9412a56563672d31a471626572ce0003d090"
    assert encode(DeviceAlarmCleared("ecg-1")).hex() == "9213a56563672d31"
    assert record.signing_bytes("c", bytes(32)).hex() == PINNED_STATEMENT


PINNED_STATEMENT = "e9558f0232ce25721741f9db1cd938604b198a62f9968c9c926c01b6d1e72e81"


@pytest.mark.parametrize(
    "record",
    [
        DeviceRegistered("d", "n", bytes(32), 1, 2, bytes(64)),
        DeviceRevoked("d", "stolen"),
        DeviceAlarmRaised("d", "qber", 1),
        DeviceAlarmCleared("d"),
    ],
)
def test_decode_is_the_inverse_of_encode(record: Transaction) -> None:
    assert decode(encode(record)) == record


@pytest.mark.parametrize("changed", [{"public_key": b"short"}, {"key_bits_min": -1}, {"device_id": ""}])
def test_ranges(table: Table, changed: dict[str, object]) -> None:
    with pytest.raises(MalformedTransaction):
        registered(table, **changed)


def test_a_device_is_registered_once_by_its_node(table: Table) -> None:
    assert table.reason("beta", registered(table)) == "device.sender"
    assert table.reason("alpha", registered(table, device_signature=bytes(64))) == "device.signature"
    assert table.reason("alpha", registered(table, key_bits_min=128)) == "device.signature"
    assert table.reason("alpha", registered(table)) == ""
    assert table.reason("alpha", registered(table)) == "device.taken"
    assert table.reason("beta", registered(table, "beta")) == "device.taken"
    device = table.state.device("ecg-1")
    assert device is not None and not device.revoked and device.node_id == "alpha" and device.key_bits_min == 256


def test_a_revocation_is_the_nodes_and_for_good(table: Table) -> None:
    assert table.reason("alpha", DeviceRevoked("ecg-1", "lost")) == "device.unknown"
    assert table.reason("alpha", registered(table)) == ""
    before = table.state.root
    assert table.reason("beta", DeviceRevoked("ecg-1", "lost")) == "device.sender"
    assert table.reason("alpha", DeviceRevoked("ecg-1", "lost")) == ""
    assert table.state.root != before
    device = table.state.device("ecg-1")
    assert device is not None and device.revoked
    assert table.reason("alpha", DeviceRevoked("ecg-1", "lost")) == "device.revoked"
    assert table.reason("alpha", registered(table)) == "device.taken"
    assert table.state.prove(device_key("ecg-1")) is not None


def test_an_alarm_is_the_nodes_stands_once_and_is_cleared(table: Table) -> None:
    alarm, clear = DeviceAlarmRaised("ecg-1", "qber", 250_000), DeviceAlarmCleared("ecg-1")
    for record in (alarm, clear):
        assert table.reason("alpha", record) == "device.unknown"
    assert table.reason("alpha", registered(table)) == ""
    assert table.reason("beta", alarm) == "device.sender"
    assert table.reason("alpha", clear) == "device.not_alarmed"
    assert table.reason("alpha", alarm) == ""
    device = table.state.device("ecg-1")
    assert device is not None and (device.alarmed, device.alarm_reason, device.alarms_raised) == (True, "qber", 1)
    before = table.state.root
    assert table.reason("alpha", alarm) == "device.alarmed"
    assert table.reason("beta", clear) == "device.sender"
    assert table.reason("alpha", clear) == ""
    assert table.state.root != before
    device = table.state.device("ecg-1")
    assert device is not None and (device.alarmed, device.alarm_reason, device.alarms_raised) == (False, "", 1)
    assert table.reason("alpha", DeviceRevoked("ecg-1", "lost")) == ""
    assert table.reason("alpha", alarm) == "device.revoked" == table.reason("alpha", clear)


def test_an_alarm_has_an_error_rate_of_at_most_one() -> None:
    with pytest.raises(MalformedTransaction):
        DeviceAlarmRaised("ecg-1", "qber", 1_000_001)
