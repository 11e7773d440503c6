"""What a node keeps of its devices: secrets, counters, telemetry keys, and which readings it has seen (S4-A1.19).

Pure. The secrets are stored encrypted, replay windows beside them, so that a restart neither forgets a key nor takes a
reading twice. Decides nothing about sessions (`device_sessions`) nor readings (`devices`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgpack

from protocol.lightweight.node import QBER_LEVELS, NodeSession
from protocol.lightweight.telemetry import ReplayWindow, TelemetryKey
from qnode.context import Context
from qnode.effects import Delete, Put
from qnode.vault import Vault

DEVICE_TABLE: Final = "device.state"
WINDOW_TABLE: Final = "device.window"
KEYS_KEPT: Final = 2
"""The key in use and the one before it, whose last readings may still be on their way."""


@dataclass(slots=True)
class DeviceFigures:
    """What an operator sees of a device. Counts since the start of the process."""

    sessions: int = 0
    keys: int = 0
    aborts: int = 0
    attacked: int = 0
    forged: int = 0
    replayed: int = 0
    repeated: int = 0
    readings: int = 0
    refused: int = 0
    last_qber: float | None = None
    last_secret_bits: int | None = None
    last_failure: str | None = None
    battery_mj: int | None = None


@dataclass(slots=True)
class Device:
    """One device. The first of `keys` is in use."""

    device_id: str
    authentication_key: bytes = field(repr=False)
    previous_key: bytes = field(repr=False)  # in force again if the device never heard of its last success
    counter: int = 0
    keys: list[TelemetryKey] = field(default_factory=list, repr=False)
    windows: dict[bytes, ReplayWindow] = field(default_factory=dict)
    session: NodeSession | None = field(default=None, repr=False)
    busy: bool = False
    ended: int = 0  # the last session that was accounted for
    attack: str | None = None
    expected_qber: float = QBER_LEVELS[0]
    figures: DeviceFigures = field(default_factory=DeviceFigures)


class DeviceStore:
    """The devices of one node, by name."""

    def __init__(self, context: Context, vault: Vault, stored: Mapping[str, list[tuple[bytes, bytes]]]) -> None:
        self._context = context
        self._vault = vault
        self._devices: dict[str, Device] = {}
        windows = dict(stored.get(WINDOW_TABLE, ()))
        for row, sealed in stored.get(DEVICE_TABLE, ()):
            device_id, current, previous, counter, keys = msgpack.unpackb(self._vault.open(DEVICE_TABLE, row, sealed))
            device = self._devices[device_id] = Device(device_id, current, previous, counter)
            for key_id, secret in keys:
                last, seen, missing = msgpack.unpackb(windows[key_id])
                device.keys.append(TelemetryKey(device_id, key_id, secret))
                device.windows[key_id] = ReplayWindow(last, int.from_bytes(seen, "big"), missing)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices.values())

    def __len__(self) -> int:
        return len(self._devices)

    def __contains__(self, device_id: str) -> bool:
        return device_id in self._devices

    def get(self, device_id: str) -> Device | None:
        """Return a device, None if it is not one of this node's."""
        return self._devices.get(device_id)

    def add(self, device_id: str, initial_secret: bytes) -> None:
        """Keep a new device."""
        device = self._devices[device_id] = Device(device_id, initial_secret, initial_secret)
        self.put(device)

    def put(self, device: Device) -> None:
        """Make the secrets and the counter of a device durable."""
        keys = [(key.key_id, key.key) for key in device.keys]
        row = device.device_id.encode()
        values = (device.device_id, device.authentication_key, device.previous_key, device.counter, keys)
        self._context.do(Put(DEVICE_TABLE, row, self._vault.seal(DEVICE_TABLE, row, msgpack.packb(values))))

    def put_window(self, device: Device, key: TelemetryKey) -> None:
        """Make durable which readings were seen under a key."""
        window = device.windows[key.key_id]
        seen = window.seen.to_bytes(128, "big")
        packed = msgpack.packb((window.last, seen, window.missing))
        self._context.do(Put(WINDOW_TABLE, key.key_id, packed))

    def begin_session(self, device: Device, counter: int, authentication_key: bytes) -> None:
        """A session of this number begins under either authentication key that is known."""
        if authentication_key != device.authentication_key:
            device.authentication_key = authentication_key  # the device never heard that its last session succeeded
            if device.keys:
                self._drop_key(device, device.keys.pop(0))
        device.counter = counter
        self.put(device)

    def renew(self, device: Device, new: TelemetryKey, authentication_key: bytes) -> None:
        """Take the keys of a session that succeeded into use."""
        device.keys.insert(0, new)
        device.windows[new.key_id] = ReplayWindow()
        while len(device.keys) > KEYS_KEPT:
            self._drop_key(device, device.keys.pop())
        device.previous_key = device.authentication_key
        device.authentication_key = authentication_key

    def _drop_key(self, device: Device, key: TelemetryKey) -> None:
        device.windows.pop(key.key_id, None)
        self._context.do(Delete(WINDOW_TABLE, key.key_id))

    def forget(self, device_id: str) -> bool:
        """Destroy everything that is kept here of a device; False if there is nothing."""
        device = self._devices.pop(device_id, None)
        if device is None:
            return False
        for key in device.keys:
            self._context.do(Delete(WINDOW_TABLE, key.key_id))
        self._context.do(Delete(DEVICE_TABLE, device_id.encode()))
        return True
