"""Reads a node's TOML file, the link profiles and the chain's genesis from disk.

Decides nothing about their content: `qnode.settings` and `ledger.genesis` do.
"""

import datetime
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ledger.genesis import Genesis, GenesisError
from qnode import settings_tables
from qnode.io import certificates
from qnode.settings import NodeSettings, SettingsError


@cache
def profiles() -> dict[str, dict[str, Any]]:
    """Return the link profiles that ship with the package, by name."""
    found = {}
    for entry in resources.files("config").joinpath("profiles").iterdir():
        if entry.name.endswith(".toml"):
            found[entry.name.removesuffix(".toml")] = tomllib.loads(entry.read_text("utf-8"))
    return found


def read_settings(path: Path) -> NodeSettings:
    """Read one node's configuration file.

    Raises SettingsError with the file, the key and the way out: no such file, not TOML, or a value that cannot run.
    """
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; `qnode init DIR` writes a cluster's configuration") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return settings_tables.from_mapping(document, path.resolve().parent, profiles())
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def read_file(path: Path, what: str) -> bytes:
    """Read a whole file that the configuration names. Raises SettingsError saying `what` it should have been."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: the {what} cannot be read: {error.strerror}") from None


def read_genesis(node_settings: NodeSettings) -> Genesis:
    """Read the genesis file and check that node and peers are in it. Raises SettingsError."""
    path = node_settings.genesis
    try:
        genesis = Genesis.from_json(read_file(path, "genesis").decode("utf-8"))
    except (GenesisError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    known = {node.node_id for node in genesis.nodes}
    for name in (node_settings.node_id, *(peer.node_id for peer in node_settings.peers)):
        if name not in known and node_settings.members == "genesis":
            raise SettingsError(
                f"{name!r} is not in {path}, which lists {', '.join(sorted(known))}; correct it, or set members = "
                "'chain' for nodes that the chain admits later"
            )
    return genesis


def check_certificates(node_settings: NodeSettings, now: datetime.datetime) -> None:
    """Check the node's own certificates before a peer or a client refuses them. Raises CertificateError."""
    peer_to_peer, api = node_settings.peer_to_peer, node_settings.api
    certificates.check_files(peer_to_peer.certificate, node_settings.identity_key, peer_to_peer.ca, now)
    certificates.check_files(api.certificate, api.key, api.ca, now)
