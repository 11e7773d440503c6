"""A device's files: its configuration, its state, its identity. Shell.

The state is replaced as a whole (written beside, synced, renamed) and the bytes of the one before are overwritten, so
that old keys do not stay in the file system's free blocks, as far as the medium writes in place (flash may not).
"""

import base64
import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.lightweight.length import DevicePolicy
from protocol.parameters import ParameterError
from qnode.device.agent import DeviceState
from qnode.device.energy import Profile

CONFIGURATION: Final = "device.json"
STATE: Final = "state.json"
IDENTITY: Final = "identity.key"


class DeviceError(ValueError):
    """A device's files cannot serve; the message names the file and the way out."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What `qnode device enrol` wrote for one device. `code` serves once and is then without value."""

    directory: Path
    device_id: str
    node_id: str
    chain_id: str
    genesis: bytes
    code: bytes = field(repr=False)
    policy: DevicePolicy
    broker_host: str
    broker_port: int
    security: str
    profile: str
    tls: tuple[Path, Path, Path] | None  # authority, certificate, key

    @classmethod
    def read(cls, directory: Path) -> "Configuration":
        """Read a device's directory. Raises DeviceError."""
        path = directory / CONFIGURATION
        try:
            table = json.loads(path.read_text("utf-8"))
            security = str(table["security"])
            host = str(table["broker_host"])
            if security not in ("tls", "none"):
                raise DeviceError(f"{path}: security is {security!r}; it must be 'tls' or 'none'")
            if security == "none" and host not in ("localhost", "127.0.0.1", "::1"):
                raise DeviceError(f"{path}: security 'none' sends to {host} in the clear; use 'tls'")
            files = (directory / "ca.crt", directory / "device.crt", directory / "device.key")
            return cls(
                directory,
                *(str(table["device_id"]), str(table["node_id"]), str(table["chain_id"])),
                bytes.fromhex(table["genesis"]),
                base64.b64decode(table["code"], validate=True),
                DevicePolicy(table["key_bits_min"], table["security_millibits_min"]),
                host,
                int(table["broker_port"]),
                security,
                str(table["profile"]),
                files if security == "tls" else None,
            )
        except OSError as error:
            raise DeviceError(f"{path}: cannot be read: {error.strerror}; `qnode device enrol` writes it") from None
        except DeviceError:
            raise
        except (ValueError, TypeError, KeyError, ParameterError) as error:
            raise DeviceError(f"{path}: not what `qnode device enrol` writes: {error!r}") from None

    def identity(self) -> Ed25519PrivateKey:
        """Return the device's identity key, made on first use and never leaving its directory. Raises DeviceError."""
        path = self.directory / IDENTITY
        try:
            return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
            write_private(path, key.private_bytes_raw())
            return key
        except (OSError, ValueError) as error:
            raise DeviceError(f"{path}: not an identity key: {error}") from None

    def read_profile(self) -> Profile:
        """Return the device's profile: a name of config/devices, or a file. Raises DeviceError."""
        return read_profile(self.profile)


def profile_names() -> list[str]:
    """Return the profiles that come with the package."""
    return sorted(path.stem for path in _profiles().glob("*.toml"))


def read_profile(name: str) -> Profile:
    """Read a profile by name, or by the path of a file ending in .toml. Raises DeviceError."""
    path = Path(name) if name.endswith(".toml") else _profiles() / f"{name}.toml"
    try:
        return Profile.from_mapping({"name": path.stem, **tomllib.loads(path.read_text("utf-8"))})
    except OSError:
        raise DeviceError(
            f"{name!r} is not a device profile; the profiles are {', '.join(profile_names())}; or name a .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ParameterError) as error:
        raise DeviceError(f"{path}: {error}") from None


def _profiles() -> Path:
    import config

    return Path(next(iter(config.__path__))) / "devices"


class Store:
    """The device's durable state."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / STATE

    def load(self) -> DeviceState | None:
        """Return the state; None before enrolment. Raises DeviceError."""
        try:
            table = json.loads(self._path.read_text("utf-8"))
            return DeviceState(
                table["device_id"],
                bytes.fromhex(table["authentication_key"]),
                *(table["counter"], bytes.fromhex(table["key_id"]), bytes.fromhex(table["key"])),
                *(table["key_time_ns"], table["sequences_reserved"], table["pad_used"], table["charge_j"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"{self._path}: not a device's state: {error!r}; revoke and enrol anew") from None

    def save(self, state: DeviceState) -> None:
        """Make a state durable and overwrite the one before."""
        table: dict[str, Any] = {
            "device_id": state.device_id,
            "authentication_key": state.authentication_key.hex(),
            "counter": state.counter,
            "key_id": state.key_id.hex(),
            "key": state.key.hex(),
            "key_time_ns": state.key_time_ns,
            "sequences_reserved": state.sequences_reserved,
            "pad_used": state.pad_used,
            "charge_j": state.charge_j,
        }
        try:
            old = os.open(self._path, os.O_WRONLY)
        except FileNotFoundError:
            old = None
        write_private(self._path, json.dumps(table).encode())
        if old is not None:
            os.pwrite(old, bytes(os.fstat(old).st_size), 0)
            os.close(old)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all, and durably."""
    beside = path.with_name(f"{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
