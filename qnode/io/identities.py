"""A node's identity keys on disk: the first, and those that came by rotation, each with its certificate.

Beside `identity.key` and `peer.crt` lie `identity-<name>.key` and `peer-<name>.crt`, named by the public key. Files are
only ever added, whole and durably, so that no crash loses a key; which one counts, the chain says.
"""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from protocol.entropy import Entropy
from qnode.device.store import write_private
from qnode.io.certificates import Authority, CertificateError, Identity, load_private_key
from qnode.settings import NodeSettings

IDENTITIES_MAX: Final = 256
"""Keys of one node: one a month for twenty years; more in the directory are somebody's mistake."""
_NAME_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class HeldIdentity:
    """One identity key and the files that hold it and its certificate."""

    public_key: bytes
    seed: bytes = field(repr=False)
    key: Path
    certificate: Path


def load_identities(settings: NodeSettings) -> list[HeldIdentity]:
    """Return the first identity and all that came later, by the names of their files. Raises CertificateError."""
    first, certificate = settings.identity_key, settings.peer_to_peer.certificate
    found = [_load(first, certificate)]
    paths = sorted(first.parent.glob(f"{first.stem}-*{first.suffix}"))
    if len(paths) > IDENTITIES_MAX:
        raise CertificateError(f"{first.parent}: more than {IDENTITIES_MAX} identity keys; move old ones away")
    for path in paths:
        name = path.stem.removeprefix(f"{first.stem}-")
        found.append(_load(path, _beside(certificate, name)))
    return found


def _load(key: Path, certificate: Path) -> HeldIdentity:
    private = load_private_key(key)
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise CertificateError(f"identity_key {key} is not an Ed25519 key; `qnode init` makes one")
    return HeldIdentity(private.public_key().public_bytes_raw(), private.private_bytes_raw(), key, certificate)


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{path.suffix}")


def add_identity(
    settings: NodeSettings, authority: Authority, entropy: Entropy, now: datetime.datetime
) -> HeldIdentity:
    """Make a new identity key and its certificate, the certificate first: a key on disk is always complete."""
    private = ed25519.Ed25519PrivateKey.from_private_bytes(entropy.take(32))
    public = private.public_key()
    name = public.public_bytes_raw().hex()[:_NAME_DIGITS]
    certificate = _beside(settings.peer_to_peer.certificate, name)
    issued = authority.issue(Identity("node", settings.node_id), public, now)
    write_private(certificate, issued.public_bytes(serialization.Encoding.PEM))
    key = _beside(settings.identity_key, name)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(key, pem)
    return HeldIdentity(public.public_bytes_raw(), private.private_bytes_raw(), key, certificate)
