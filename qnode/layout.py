"""The files of one node in a cluster directory: their form, their modes, and its TOML; for `init` and `node new`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from qnode.io.certificates import PrivateKey

API_NAMES: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Address:
    """Where one node listens, for peers and for applications."""

    host: str
    peer_port: int
    api_port: int


@dataclass(frozen=True, slots=True)
class LinkEntry:
    """A link of the node: what its table in the TOML file says."""

    link_id: str
    transmitter: str
    receiver: str
    profile: str


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer that the node dials."""

    node_id: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """Everything that a node's TOML file says; paths follow from the name."""

    chain_id: str
    node_id: str
    address: Address
    contacts: Sequence[Contact]
    links: Sequence[LinkEntry] = ()
    log_level: str = "info"
    seed: int | None = None
    joins: bool = False  # the genesis does not name it: the chain admits it later


def api_names(node_id: str, host: str, more: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a node's API certificate: those that clients dial."""
    return tuple(dict.fromkeys((*API_NAMES, host, node_id, *more)))


def node_toml(entry: NodeEntry) -> str:
    """Return one node's configuration."""
    text, node_id = json.dumps, entry.node_id  # a TOML basic string has the escapes of a JSON string
    lines = [
        f"# Node {node_id} of chain {entry.chain_id}. Every key is explained in docs/configuration.md.",
        "# Paths are relative to this file.",
        f"node_id = {text(node_id)}",
        'genesis = "genesis.json"',
        f"state_directory = {text(f'{node_id}/state')}",
        f"identity_key = {text(f'{node_id}/identity.key')}",
        *(['members = "chain"'] if entry.joins else []),
        f"log_level = {text(entry.log_level)}",
        *([f"seed = {entry.seed}"] if entry.seed is not None else []),
        "",
        "[peer_to_peer]",
        f"listen_host = {text(entry.address.host)}",
        f"listen_port = {entry.address.peer_port}",
        f"ca = {text(f'{node_id}/ca.crt')}",
        f"certificate = {text(f'{node_id}/peer.crt')}",
        "",
        "[api]",
        f"listen_host = {text(entry.address.host)}",
        f"listen_port = {entry.address.api_port}",
        f"ca = {text(f'{node_id}/ca.crt')}",
        f"certificate = {text(f'{node_id}/api.crt')}",
        f"key = {text(f'{node_id}/api.key')}",
    ]
    for link in entry.links:
        lines += ["", f"[link.{text(link.link_id)}]  # {link.transmitter} → {link.receiver}"]
        lines += [f"profile = {text(link.profile)}"]
        lines += [f"pre_shared_secret = {text(f'{node_id}/{link.link_id}.psk')}"]
    for peer in entry.contacts:
        lines += ["", "[[peers]]", f"node_id = {text(peer.node_id)}", f"host = {text(peer.host)}"]
        lines += [f"port = {peer.port}"]
    return "\n".join(lines) + "\n"


def write_file(root: Path, name: str, content: bytes, *, private: bool) -> None:
    """Write a new file below `root`, readable by its owner alone where it is private. Raises OSError."""
    path = root / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def write_pair(root: Path, stem: str, certificate: x509.Certificate, key: PrivateKey) -> None:
    """Write `stem`.crt and `stem`.key."""
    write_file(root, f"{stem}.crt", certificate_pem(certificate), private=False)
    write_file(root, f"{stem}.key", key_pem(key), private=True)


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Return a certificate, or a request for one, as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def pair_pem(certificate: x509.Certificate, key: PrivateKey) -> tuple[bytes, bytes]:
    """Return a certificate and its private key as the files that TLS wants."""
    return certificate_pem(certificate), key_pem(key)
