"""Tags of the classical channel: the published vector, a dumb second Poly1305, and everything that must be refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.authentication import (
    HASH_KEY_BYTES,
    MESSAGE_BYTES_MAX,
    PAD_BYTES,
    SESSION_MESSAGES_MAX,
    TAG_BYTES,
    WINDOW_BYTES,
    Authenticator,
    ForgedMessage,
    KeyExhausted,
    session_id,
)
from protocol.entropy import SeededEntropy

SESSION = session_id("link-1-2", 7, bytes(16))
BODIES = st.lists(st.binary(max_size=200), min_size=1, max_size=6)


def poly1305(key: bytes, message: bytes) -> bytes:
    """RFC 8439 §2.5 as its text reads, on Python integers."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    accumulator = 0
    for start in range(0, len(message), 16):
        block = message[start : start + 16]
        accumulator = (accumulator + int.from_bytes(block + b"\1", "little")) * r % ((1 << 130) - 5)
    return ((accumulator + int.from_bytes(key[16:], "little")) % (1 << 128)).to_bytes(16, "little")


def windows(seed: bytes = b"pair") -> tuple[bytes, bytes]:
    entropy = SeededEntropy(seed)
    return entropy.take(WINDOW_BYTES), entropy.take(WINDOW_BYTES)


def pair(session: bytes = SESSION, seed: bytes = b"pair") -> tuple[Authenticator, Authenticator]:
    to_bob, to_alice = windows(seed)
    alice = Authenticator(session, "alice", "bob", to_bob, to_alice)
    return alice, Authenticator(session, "bob", "alice", to_alice, to_bob)


def test_the_published_vector_fits_the_second_implementation() -> None:
    key = bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b")
    assert poly1305(key, b"Cryptographic Forum Research Group").hex() == "a8061dc1305136c6c22b8baf0c0127a9"


@given(BODIES)
def test_every_tag_is_poly1305_under_r_and_its_own_pad(bodies: list[bytes]) -> None:
    to_bob, to_alice = windows()
    alice = Authenticator(SESSION, "alice", "bob", to_bob, to_alice)
    for sequence, body in enumerate(bodies):
        pad = to_bob[HASH_KEY_BYTES + sequence * PAD_BYTES :][:PAD_BYTES]
        header = b"qnode session message v1" + SESSION + b"\5alice" + sequence.to_bytes(4, "big")
        expected = poly1305(to_bob[:HASH_KEY_BYTES] + pad, header + len(body).to_bytes(8, "big") + body)
        assert alice.seal(body) == expected + body


def test_pinned_bytes_of_a_sealed_message() -> None:
    sealed = Authenticator(bytes(range(16)), "alice", "bob", bytes(range(64))).seal(b"light")
    assert sealed.hex() == "45fedf82aae50a064e96d817337622b76c69676874"


@given(BODIES, BODIES)
def test_both_directions_open_what_was_sealed_and_count_the_same_bytes(there: list[bytes], back: list[bytes]) -> None:
    alice, bob = pair()
    assert [bob.open(alice.seal(body)) for body in there] == there
    assert [alice.open(bob.seal(body)) for body in back] == back
    assert alice.send_used_bytes == bob.receive_used_bytes == HASH_KEY_BYTES + PAD_BYTES * len(there)
    assert bob.send_used_bytes == alice.receive_used_bytes == HASH_KEY_BYTES + PAD_BYTES * len(back)


def test_nothing_is_used_before_the_first_message() -> None:
    alice, bob = pair()
    assert alice.send_used_bytes == alice.receive_used_bytes == bob.send_used_bytes == bob.receive_used_bytes == 0


@given(st.binary(max_size=100), st.data())
def test_any_changed_bit_is_a_forgery(body: bytes, data: st.DataObject) -> None:
    alice, bob = pair()
    sealed = bytearray(alice.seal(body))
    place = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[place // 8] ^= 1 << place % 8
    with pytest.raises(ForgedMessage):
        bob.open(bytes(sealed))


@given(st.binary(max_size=60), st.data())
def test_truncated_and_extended_messages_are_forgeries(body: bytes, data: st.DataObject) -> None:
    sealed = pair()[0].seal(body)
    for other in (sealed[: data.draw(st.integers(0, len(sealed) - 1))], sealed + b"\0", b"\0" + sealed):
        with pytest.raises(ForgedMessage):
            pair()[1].open(other)


def test_replayed_reordered_and_skipped_messages_are_forgeries() -> None:
    alice, bob = pair()
    first, second = alice.seal(b"one"), alice.seal(b"two")
    assert bob.open(first) == b"one"
    with pytest.raises(ForgedMessage):
        bob.open(first)
    with pytest.raises(ForgedMessage):
        pair()[1].open(second)


def test_a_false_tag_uses_its_pad_up() -> None:
    """One guess per pad: the true message no longer opens, so the session cannot go on after a forgery."""
    alice, bob = pair()
    sealed = alice.seal(b"one")
    with pytest.raises(ForgedMessage):
        bob.open(bytes(TAG_BYTES) + b"one")
    assert bob.receive_used_bytes == HASH_KEY_BYTES + PAD_BYTES
    with pytest.raises(ForgedMessage):
        bob.open(sealed)


def test_messages_of_another_session_are_forgeries() -> None:
    sealed = pair()[0].seal(b"one")
    for other in (
        session_id("link-1-3", 7, bytes(16)),
        session_id("link-1-2", 8, bytes(16)),
        session_id("link-1-2", 7, b"\1" + bytes(15)),
    ):
        with pytest.raises(ForgedMessage):
            pair(other)[1].open(sealed)


def test_reflected_messages_are_forgeries_even_under_one_window() -> None:
    """Not only the streams differ: the sender's role is in the tag."""
    window = windows()[0]
    alice = Authenticator(SESSION, "alice", "bob", window, window)
    with pytest.raises(ForgedMessage):
        alice.open(alice.seal(b"one"))


def test_messages_of_the_other_direction_are_forgeries() -> None:
    alice, bob = pair()
    sealed = bob.seal(b"one")
    with pytest.raises(ForgedMessage):
        bob.open(sealed)
    assert alice.open(sealed) == b"one"


def test_session_names_keep_their_parts_apart() -> None:
    names = {
        session_id(link, number, nonce)
        for link, number, nonce in (
            ("a", 1, b""),
            ("a", 1, b"\0"),
            ("a\0", 1, b""),
            ("a", 256, b""),
            ("", 1, b"a"),
        )
    }
    assert len(names) == 5


def test_the_window_ends_a_session() -> None:
    to_bob = windows()[0][: HASH_KEY_BYTES + 3 * PAD_BYTES + PAD_BYTES - 1]
    alice = Authenticator(SESSION, "alice", "bob", to_bob)
    sealed = [alice.seal(b"") for _ in range(3)]
    with pytest.raises(KeyExhausted, match="covers 3 messages from alice"):
        alice.seal(b"")
    assert alice.send_used_bytes == HASH_KEY_BYTES + 3 * PAD_BYTES
    assert len({message[:TAG_BYTES] for message in sealed}) == 3, "a fresh pad per message"
    with pytest.raises(KeyExhausted):
        alice.open(sealed[0])


def test_a_session_has_a_bound_however_long_the_window() -> None:
    alice = Authenticator(SESSION, "alice", "bob", bytes(2 * WINDOW_BYTES))
    for _ in range(SESSION_MESSAGES_MAX):
        alice.seal(b"")
    with pytest.raises(KeyExhausted):
        alice.seal(b"")
    assert alice.send_used_bytes == WINDOW_BYTES


def test_a_message_above_the_bound_is_refused_before_it_costs_key() -> None:
    alice, bob = pair()
    with pytest.raises(ValueError, match="bound"):
        alice.seal(bytes(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(ForgedMessage):
        bob.open(bytes(TAG_BYTES + MESSAGE_BYTES_MAX + 1))
    with pytest.raises(ForgedMessage):
        bob.open(bytes(TAG_BYTES - 1))
    assert alice.send_used_bytes == bob.receive_used_bytes == 0


def test_the_receive_window_is_given_once() -> None:
    to_bob, to_alice = windows()
    alice = Authenticator(SESSION, "alice", "bob", to_bob)
    alice.begin_receiving(to_alice)
    assert alice.open(Authenticator(SESSION, "bob", "alice", to_alice, to_bob).seal(b"yes")) == b"yes"
    with pytest.raises(AssertionError):
        alice.begin_receiving(to_alice)
