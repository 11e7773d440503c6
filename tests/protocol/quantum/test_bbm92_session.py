"""A swapped chain through the very session that BB84 uses, from sifting to amplification (S0-E10)."""

from collections import deque

import numpy as np
import pytest

from protocol.authentication import WINDOW_BYTES, Authenticator, session_id
from protocol.entropy import SeededEntropy
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.entanglement import ChainParameters
from protocol.quantum.link import LinkParameters, Receiver, Transmitter
from protocol.session import (
    AliceSession,
    BlockDistilled,
    BobSession,
    SendLight,
    SendMessage,
    SessionAborted,
    SessionParameters,
)

CHAIN = {"segments": 2, "length_km": 20.0, "pair_fidelity": 0.99, "pair_efficiency": 0.9, "bell_efficiency": 0.9}


def chain_link() -> LinkParameters:
    attempts_hz = 1.0 / ChainParameters(**CHAIN).attempt_period_s
    return LinkParameters.from_mapping(
        {
            "source": {"model": "single_photon", "pulse_rate_hz": attempts_hz},
            "channel": {"kind": "swapped_chain", **CHAIN},
            "detector": {"efficiency_0": 0.9, "efficiency_1": 0.9, "dead_time_ns": 0.0},
        }
    )


def run_session(attack: str | None, attempts: int = 500_000):
    """Return what (Alice, Bob) ended with, over a wire that loses nothing."""
    link, parameters = chain_link(), SessionParameters.from_mapping({})
    entropy = SeededEntropy(b"windows")
    to_bob, to_alice = entropy.take(WINDOW_BYTES), entropy.take(WINDOW_BYTES)
    identity = session_id("chain", 0, bytes(16))
    transmitter = Transmitter(link, SeededEntropy(b"a"), np.random.default_rng(1))
    if attack is not None:
        transmitter.attack = make_eavesdropper(attack, {}, np.random.default_rng(3))
    receiver = Receiver(link, SeededEntropy(b"b"), np.random.default_rng(2))
    alice = AliceSession(
        parameters,
        transmitter,
        link,
        Authenticator(identity, "alice", "bob", to_bob, to_alice),
        SeededEntropy(b"c"),
        session_id=identity,
        pulse_count=attempts,
        expiry_height=2000,
        top_up_bytes=64,
        probe=False,
    )
    authenticator = Authenticator(identity, "bob", "alice", to_alice, to_bob)
    bob = BobSession(parameters, receiver, link, authenticator, session_id=identity, pulse_count_max=1 << 40)
    ends = {"alice": [], "bob": []}
    pending = deque(("alice", output) for output in alice.start())
    while pending:
        who, output = pending.popleft()
        other, session = ("bob", bob) if who == "alice" else ("alice", alice)
        match output:
            case SendMessage(sealed):
                pending.extend((other, more) for more in session.receive(sealed))
            case SendLight(chunks):
                chunks = list(chunks)
                for place, chunk in enumerate(chunks):
                    pending.extend(("bob", more) for more in bob.receive_light(chunk, place == len(chunks) - 1))
            case BlockDistilled() | SessionAborted():
                ends[who].append(output)
                if who == "bob" and isinstance(output, BlockDistilled):
                    pending.extend(("bob", more) for more in bob.sign_off(b"S" * 64))
    return ends["alice"], ends["bob"]


@pytest.mark.slow
def test_both_ends_of_a_chain_distil_one_key():
    alice, bob = run_session(None)
    assert isinstance(alice[0], BlockDistilled) and isinstance(bob[0], BlockDistilled)
    assert alice[0].block == bob[0].block
    assert alice[0].block.key.reveal() == bob[0].block.key.reveal() != b""


@pytest.mark.slow
def test_a_chain_under_interception_distils_none():
    ends = run_session("intercept_resend")
    assert all(isinstance(outputs[0], SessionAborted) for outputs in ends if outputs)
    assert any(ends)


def test_the_chsh_value_shows_who_listens():
    link = chain_link()
    transmitter = Transmitter(link, SeededEntropy(b"a"), np.random.default_rng(1))
    assert transmitter.is_entangled
    assert transmitter.chsh(20_000).violates()
    transmitter.attack = make_eavesdropper("intercept_resend", {}, np.random.default_rng(3))
    assert not transmitter.chsh(20_000).violates()
