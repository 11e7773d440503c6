"""What sessions may use of a link's authentication key: crashes, refusals and claims of the peer."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.authentication import HASH_KEY_BYTES, PAD_BYTES, WINDOW_BYTES, Authenticator
from protocol.entropy import SeededEntropy
from qnode.context import Context
from qnode.effects import Delete, Put
from qnode.keystore import RECEIVER, TRANSMITTER
from qnode.link_authentication import WINDOW_BYTES_MIN, LinkAuthentication, Loan
from qnode.streams import RESERVE_BYTES
from qnode.vault import Vault

SECRET = SeededEntropy(b"pre-shared").take(65_536)
VAULT = Vault(b"\7" * 32, SeededEntropy(b"vault"))


class End:
    """One end and its disk."""

    def __init__(self, role: int) -> None:
        self.role = role
        self.disk: dict[tuple[str, bytes], bytes] = {}
        self.start()

    def start(self) -> None:
        self.context = Context("node", SeededEntropy(b"node"), random.Random(1))
        stored: dict[str, list[tuple[bytes, bytes]]] = {}
        for (table, key), value in sorted(self.disk.items()):
            stored.setdefault(table, []).append((key, value))
        self.keys = LinkAuthentication("link", self.role, SECRET, self.context, VAULT, stored)
        self.sync()

    def sync(self) -> None:
        for effect in self.context.take():
            assert isinstance(effect, Put | Delete)
            if isinstance(effect, Put):
                self.disk[effect.table, effect.key] = effect.value
            else:
                self.disk.pop((effect.table, effect.key), None)

    def lend(self, number: int) -> tuple[Loan, Authenticator]:
        loan = Loan(number, self.keys.send.position, self.keys.receive.position)
        window = self.keys.send.window(loan.send_start, WINDOW_BYTES)
        return loan, Authenticator(b"i" * 32, "alice", "bob", window)


def test_each_end_sends_with_what_the_other_receives_with() -> None:
    one, other = End(TRANSMITTER).keys, End(RECEIVER).keys
    assert one.send.window(0, 10**6) == other.receive.window(0, 10**6) == SECRET[: len(SECRET) // 2]
    assert one.receive.window(0, 10**6) == other.send.window(0, 10**6) == SECRET[len(SECRET) // 2 :]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["ends", "crashes", "crashes unsynced"])), max_size=12))
def test_no_crash_brings_used_key_or_a_block_number_back(sessions: list[tuple[int, str]]) -> None:
    end, left, numbers = End(TRANSMITTER), 0, set()
    for messages, outcome in sessions:
        loan, authenticator = end.lend(end.keys.last_block_number + 1)
        assert loan.send_start >= left, "never what a message that left was sealed with"
        for _ in range(messages):
            authenticator.seal(b"message")
        end.keys.account(loan, authenticator)
        if outcome != "crashes unsynced":
            end.sync()  # now the messages leave
            assert loan.block_number not in numbers
            numbers.add(loan.block_number)
            left = max(left, loan.send_start + loan.send_used)
        if outcome == "ends":
            end.keys.settle(loan)
            end.sync()
        else:
            end.start()
    assert end.keys.send.position >= left and end.keys.last_block_number >= max(numbers, default=-1)


def test_a_receiver_counts_nothing_before_the_first_true_message() -> None:
    end = End(RECEIVER)
    loan, authenticator = end.lend(7)
    end.keys.account(loan, authenticator)
    assert end.keys.last_block_number == -1 and not end.context.take()


@pytest.mark.parametrize(
    ("stream_offset", "reply_offset", "reason"),
    [
        (-1, 0, "was used"),
        (2**62, 0, "not yet known"),
        (0, 2**62, "far ahead"),
        (0, 0, None),
    ],
)
def test_what_a_session_cannot_use_is_refused(stream_offset: int, reply_offset: int, reason: str | None) -> None:
    keys = End(RECEIVER).keys
    found = keys.refusal(stream_offset, reply_offset, max(keys.send.position, reply_offset))
    assert found == reason if reason is None else found is not None and reason in found


def test_a_stream_without_key_for_the_answers_is_refused() -> None:
    end = End(RECEIVER)
    end.keys.send.advance(end.keys.send.end - WINDOW_BYTES_MIN + 1)
    found = end.keys.refusal(0, end.keys.send.position, end.keys.send.position)
    assert found == "no authentication key left for the answers"


@given(st.integers(0, 2**64), st.integers(0, 2**64))
def test_no_claim_of_a_peer_burns_more_than_a_reservation(number: int, offset: int) -> None:
    end = End(TRANSMITTER)
    loan, authenticator = end.lend(0)
    authenticator.seal(b"the opening")
    end.keys.account(loan, authenticator)
    end.keys.catch_up(loan, number, offset)
    end.keys.settle(loan)
    assert end.keys.send.position <= 2 * (HASH_KEY_BYTES + PAD_BYTES) + RESERVE_BYTES
    assert end.keys.last_block_number <= 2**62
