"""Secrets at rest open only in their own row, for their own node, unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.entropy import SeededEntropy
from qnode.vault import Vault, VaultError

SECRETS = st.binary(max_size=100)


def vault(identity: bytes = b"\1" * 32, entropy: bytes = b"nonces") -> Vault:
    return Vault(identity, SeededEntropy(entropy))


@given(SECRETS, st.binary(max_size=20))
def test_a_secret_opens_in_its_row_after_a_restart(secret: bytes, row: bytes) -> None:
    sealed = vault().seal("key.chunk", row, secret)
    assert vault(entropy=b"later").open("key.chunk", row, sealed) == secret
    assert len(secret) < 8 or secret not in sealed


@given(SECRETS, st.data())
def test_a_changed_bit_or_length_does_not_open(secret: bytes, data: st.DataObject) -> None:
    sealed = vault().seal("key.chunk", b"row", secret)
    flipped = bytearray(sealed)
    place = data.draw(st.integers(0, 8 * len(sealed) - 1))
    flipped[place // 8] ^= 1 << place % 8
    for other in (bytes(flipped), sealed[: data.draw(st.integers(0, len(sealed) - 1))], sealed + b"\0"):
        with pytest.raises(VaultError):
            vault().open("key.chunk", b"row", other)


def test_a_secret_that_was_moved_does_not_open() -> None:
    sealed = vault().seal("key.chunk", b"row", b"secret")
    for table, row in (("key.held", b"row"), ("key.chunk", b"row2"), ("key.chunk\0row", b""), ("key", b".chunk\0row")):
        with pytest.raises(VaultError):
            vault().open(table, row, sealed)


def test_another_identity_does_not_open_it_and_is_told_the_way_out() -> None:
    sealed = vault().seal("key.chunk", b"row", b"secret")
    with pytest.raises(VaultError, match="restore the identity key") as caught:
        vault(identity=b"\2" * 32).open("key.chunk", b"row", sealed)
    assert "secret" not in str(caught.value)


def test_nonces_are_fresh() -> None:
    one = vault()
    assert len({one.seal("t", b"r", b"same")[:12] for _ in range(100)}) == 100
