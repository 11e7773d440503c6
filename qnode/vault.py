"""Encryption of key material at rest: AES-256-GCM under a key derived from the node's identity.

Every stored secret is bound to its table and row, so that a value moved or put back elsewhere in the database does
not open. Decides nothing about which secrets exist: `keystore` and `streams` do.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.entropy import Entropy

_NONCE_BYTES = 12


class VaultError(Exception):
    """A stored secret does not open: another identity key, or a changed database."""


class Vault:
    """Seals and opens stored secrets. `identity_seed` is the node's 32-byte Ed25519 seed."""

    def __init__(self, identity_seed: bytes, entropy: Entropy) -> None:
        key = HKDF(hashes.SHA256(), 32, salt=None, info=b"qnode key store v1").derive(identity_seed)
        self._cipher = AESGCM(key)
        self._entropy = entropy

    def seal(self, table: str, key: bytes, secret: bytes) -> bytes:
        """Return nonce and ciphertext of `secret` for row `key` of `table`."""
        nonce = self._entropy.take(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, table.encode() + b"\0" + key)

    def open(self, table: str, key: bytes, sealed: bytes) -> bytes:
        """Return the secret. Raises VaultError with the way out."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], table.encode() + b"\0" + key)
        except (InvalidTag, ValueError):
            raise VaultError(
                f"a record of {table} does not open with this node's identity key: restore the identity key that "
                "belongs to this state directory, or start with an empty one (its undelivered keys are then lost)"
            ) from None
