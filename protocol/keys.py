"""The one type that holds key material outside the hot loops.

Its text forms are redacted, it cannot be pickled, copied into a message or compared by accident, and it can be wiped.
"""

import hmac
from typing import NoReturn


class KeyMaterial:
    """Secret bytes with a redacted `repr`; `reveal` is the only way to the bytes, and easy to search for."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes | bytearray) -> None:
        self._secret = bytearray(secret)

    def reveal(self) -> bytes:
        """Return a copy of the secret bytes: call it only where they are used or encrypted."""
        return bytes(self._secret)

    def wipe(self) -> None:
        """Overwrite the bytes in place. Copies that the interpreter made elsewhere are beyond reach."""
        self._secret[:] = bytes(len(self._secret))
        self._secret.clear()

    def __len__(self) -> int:
        return len(self._secret)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyMaterial):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    __hash__ = None  # type: ignore[assignment]  # a hash would be a (weak) digest of the secret

    def __repr__(self) -> str:
        return f"<KeyMaterial {len(self._secret)} bytes, redacted>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("key material is not serialised; encrypt it through the key store")
