"""Both ends of a BB84 session over a wire that loses, repeats, swaps and forges: equal keys or none, never a raise."""

import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.authentication import PAD_BYTES, WINDOW_BYTES, Authenticator, session_id
from protocol.entropy import SeededEntropy
from protocol.messages import (
    SESSION_RECORDS,
    Detected,
    Finish,
    MalformedMessage,
    Reconcile,
    Record,
    Sifted,
    decode_record,
    encode_record,
)
from protocol.parameters import ParameterError
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.link import Detections, LinkParameters, Receiver, Transmitter
from protocol.quantum.source import ChoiceGenerator
from protocol.session import (
    COMMITMENT_BYTES,
    PROBED,
    AliceSession,
    BlockDistilled,
    BobSession,
    DistilledBlock,
    Output,
    PeerSigned,
    SendLight,
    SendMessage,
    SessionAborted,
    SessionParameters,
)

PULSES = 120_000
SIGNATURE = b"S" * 64
DEFAULTS = SessionParameters.from_mapping({})
Tamper = Callable[[str, int, bytes], list[bytes]]


def link(misalignment: float = 0.01) -> LinkParameters:
    detector = {"efficiency_0": 0.9, "efficiency_1": 0.9, "dead_time_ns": 0.0, "misalignment": misalignment}
    return LinkParameters.from_mapping(
        {"source": {"model": "single_photon", "pulse_rate_hz": 1e7}, "channel": {"length_km": 1}, "detector": detector}
    )


LINK = link()


def windows(seed: int = 0) -> tuple[bytes, bytes]:
    entropy = SeededEntropy(b"windows%d" % seed)
    return entropy.take(WINDOW_BYTES), entropy.take(WINDOW_BYTES)


@dataclass
class End:
    """What one end said it has."""

    block: DistilledBlock | None = None
    aborted: SessionAborted | None = None
    signature: bytes | None = None


@dataclass
class Wire:
    """Two sessions and what is between them; `tamper` turns one sent message into what arrives."""

    pulses: int = PULSES
    seed: int = 0
    parameters: SessionParameters = DEFAULTS
    bob_parameters: SessionParameters | None = None
    link: LinkParameters = LINK
    bob_link: LinkParameters | None = None
    attack: str | None = None
    probe: bool = False
    liar: bool = False
    pulses_max: int = 1 << 40
    window_bytes: int = WINDOW_BYTES
    top_up_bytes: int = 64
    light: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] = lambda chunks: chunks
    tamper: Tamper = lambda sender, index, sealed: [sealed]
    ends: dict[str, End] = field(default_factory=lambda: {"alice": End(), "bob": End()})
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)

    def __post_init__(self) -> None:
        identity = session_id("link", self.seed, bytes(16))
        to_bob, to_alice = (window[: self.window_bytes] for window in windows(self.seed))
        self.transmitter = Transmitter(self.link, SeededEntropy(b"a%d" % self.seed), np.random.default_rng(self.seed))
        if self.attack is not None:
            physics = np.random.default_rng(self.seed + 2)
            self.transmitter.attack = make_eavesdropper(self.attack, {"fraction": 1.0}, physics)
        receiver = Receiver(self.link, SeededEntropy(b"b%d" % self.seed), np.random.default_rng(self.seed + 1))
        measure = receiver.measure

        def watched(light: bytes) -> Detections:
            self.detections.append(measure(light))
            return self.detections[-1]

        receiver.measure = watched  # type: ignore[method-assign]
        self.alice = AliceSession(
            self.parameters,
            self.transmitter,
            self.link,
            Authenticator(identity, "alice", "bob", to_bob, to_alice),
            SeededEntropy(b"c%d" % self.seed),
            session_id=identity,
            pulse_count=self.pulses,
            expiry_height=2000,
            top_up_bytes=self.top_up_bytes,
            probe=self.probe,
        )
        self.bob = BobSession(
            self.bob_parameters or self.parameters,
            receiver,
            self.bob_link or self.link,
            Authenticator(identity, "bob", "alice", to_alice, to_bob),
            session_id=identity,
            pulse_count_max=self.pulses_max,
        )
        self._flying: deque[Callable[[], None]] = deque()

    def run(self) -> "Wire":
        self._act("alice", self.alice.start())
        while self._flying:
            self._flying.popleft()()
        self._check()
        return self

    def _act(self, who: str, outputs: list[Output]) -> None:
        end = self.ends[who]
        for output in outputs:
            match output:
                case SendMessage(sealed):
                    index = sum(sender == who for sender, _ in self.sent)
                    self.sent.append((who, sealed))
                    for arrives in self.tamper(who, index, sealed):
                        self._flying.append(lambda arrives=arrives: self._arrive(who, arrives))
                case SendLight(chunks):
                    chunks = self.light(tuple(chunks))
                    for place, chunk in enumerate(chunks):
                        last = place == len(chunks) - 1
                        self._flying.append(
                            lambda chunk=chunk, last=last: self._act("bob", self.bob.receive_light(chunk, last))
                        )
                case BlockDistilled(block):
                    assert end.block is None
                    end.block = block
                    if who == "bob":
                        self._flying.append(lambda: self._act("bob", self.bob.sign_off(SIGNATURE)))
                case PeerSigned(signature):
                    end.signature = signature
                case SessionAborted():
                    assert end.aborted is None, "a session ends once"
                    end.aborted = output

    def _arrive(self, sender: str, sealed: bytes) -> None:
        who = "bob" if sender == "alice" else "alice"
        session = self.bob if who == "bob" else self.alice
        self._act(who, session.receive(sealed))

    def _check(self) -> None:
        """What holds whatever happens on the wire."""
        alice, bob = self.ends["alice"], self.ends["bob"]
        for who, end in self.ends.items():
            session = self.alice if who == "alice" else self.bob
            assert end.aborted is None or session.finished
            assert end.aborted is None or end.aborted.reason, "an abort says why"
            assert not session.finished or session.receive(b"late") == []
        if alice.block is not None and bob.block is not None and not self.liar:
            assert alice.block == bob.block
        if alice.signature is not None:
            assert alice.block is not None
        assert bob.signature is None


def keys_of(block: DistilledBlock) -> tuple[bytes, bytes, bytes]:
    return block.refill_transmitter.reveal(), block.refill_receiver.reveal(), block.key.reveal()


def records_of(wire: Wire) -> list[tuple[str, Record]]:
    """Open every sealed message of a run with the key of the ends."""
    identity = session_id("link", wire.seed, bytes(16))
    to_bob, to_alice = windows(wire.seed)
    spies = {
        "alice": Authenticator(identity, "bob", "alice", to_alice, to_bob),
        "bob": Authenticator(identity, "alice", "bob", to_bob, to_alice),
    }
    return [(who, decode_record(spies[who].open(sealed), SESSION_RECORDS)) for who, sealed in wire.sent]


@pytest.fixture(scope="module")
def honest() -> Wire:
    return Wire().run()


# ---- the honest run


def test_an_honest_run_ends_with_equal_blocks(honest: Wire) -> None:
    alice, bob = honest.ends["alice"], honest.ends["bob"]
    assert alice.block is not None and bob.block is not None
    assert alice.block == bob.block, "every figure, the commitment and all key"
    assert alice.signature == SIGNATURE
    assert alice.aborted is None and bob.aborted is None
    assert honest.alice.finished and honest.bob.finished


def test_the_figures_of_an_honest_run_are_what_was_said(honest: Wire) -> None:
    block = honest.ends["alice"].block
    assert block is not None
    said = records_of(honest)
    detected = next(record for _, record in said if isinstance(record, Detected))
    finish = next(record for _, record in said if isinstance(record, Finish))
    positions = np.concatenate([each.positions for each in honest.detections])
    bob_bases = np.concatenate([each.basis for each in honest.detections])
    bob_bits = np.concatenate([each.bit for each in honest.detections])
    choices = honest.transmitter.choices(positions)
    same = choices.basis == bob_bases
    tested = same & (bob_bases == 1)
    errors = int(np.count_nonzero(choices.bit[tested] != bob_bits[tested]))
    key_errors = int(np.count_nonzero((choices.bit != bob_bits)[same & (bob_bases == 0)]))
    assert block.pulses == PULSES
    assert block.detections == len(positions) == detected.count
    assert block.sifted_bits == int(np.count_nonzero(same))
    assert block.sample_bits == int(np.count_nonzero(tested))
    assert block.qber_ppm == round(1e6 * errors / block.sample_bits)
    assert block.corrected_errors == key_errors
    assert block.verification_bits == 8 * len(finish.verification_tag)
    assert block.secret_bits == finish.secret_bits
    assert 0 < block.secret_bits < block.sifted_bits - block.sample_bits - block.leaked_bits
    assert block.method == "cascade-fast" and block.expiry_height == 2000


def test_authentication_bits_are_what_the_authenticators_say(honest: Wire) -> None:
    block = honest.ends["bob"].block
    assert block is not None
    alice, bob = honest.alice.authenticator, honest.bob.authenticator
    assert (alice.send_used_bytes, alice.receive_used_bytes) == (bob.receive_used_bytes, bob.send_used_bytes)
    assert block.authentication_bits == 8 * (alice.send_used_bytes + alice.receive_used_bytes)
    assert alice.send_used_bytes == PAD_BYTES * (1 + sum(who == "alice" for who, _ in honest.sent))


def test_the_split_pays_for_the_tags_and_uses_every_bit_once(honest: Wire) -> None:
    block = honest.ends["alice"].block
    assert block is not None
    used = max(honest.alice.authenticator.send_used_bytes, honest.alice.authenticator.receive_used_bytes)
    assert len(block.refill_transmitter) == len(block.refill_receiver) == used + 64, "what was used and the top-up"
    total = COMMITMENT_BYTES + 2 * len(block.refill_transmitter) + len(block.key)
    assert total == block.secret_bits // 8
    assert len({*keys_of(block)}) == 3


def test_blocks_and_outputs_do_not_show_their_key(honest: Wire) -> None:
    block = honest.ends["alice"].block
    assert block is not None
    shown = repr(BlockDistilled(block)) + repr(honest.alice) + repr(honest.detections[0])
    for secret in keys_of(block):
        assert secret.hex()[:16] not in shown and repr(secret)[2:18] not in shown
    assert "redacted" in shown


def test_two_runs_with_the_same_seeds_say_the_same_and_others_do_not(honest: Wire) -> None:
    assert Wire().run().sent == honest.sent
    other = Wire(seed=1).run().ends["alice"].block
    block = honest.ends["alice"].block
    assert other is not None and block is not None
    assert other.commitment != block.commitment and other.key != block.key


# ---- opacity


def test_outcomes_in_the_wrong_basis_say_nothing_of_alices_bits() -> None:
    """S0-E4/E5: equal bases agree (no noise here), different ones agree as coins do: |z| < 5."""
    wire = Wire(link=link(misalignment=0.0)).run()
    positions = np.concatenate([each.positions for each in wire.detections])
    bases = np.concatenate([each.basis for each in wire.detections])
    bits = np.concatenate([each.bit for each in wire.detections])
    choices = wire.transmitter.choices(positions)
    agree = choices.bit == bits
    same = choices.basis == bases
    assert agree[same].mean() > 0.99, "dark counts aside"
    for basis in (0, 1):
        for bit in (0, 1):
            coins = agree[~same & (bases == basis) & (choices.bit == bit)]
            assert len(coins) > 5_000
            assert abs(coins.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(coins))


def reachable(root: object) -> Iterator[object]:
    seen = {id(root)}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        yield thing
        if isinstance(thing, type) or type(thing).__name__ in ("module", "function", "builtin_function_or_method"):
            continue
        for inner in gc.get_referents(thing):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)


def test_bobs_session_reaches_neither_alices_device_nor_her_choices() -> None:
    parameters, receiver = DEFAULTS, Receiver(LINK, SeededEntropy(b"b"), np.random.default_rng(1))
    identity, (to_bob, to_alice) = session_id("link", 0, bytes(16)), windows()
    transmitter = Transmitter(LINK, SeededEntropy(b"a"), np.random.default_rng(0))
    authenticator = Authenticator(identity, "bob", "alice", to_alice, to_bob)
    bob = BobSession(parameters, receiver, LINK, authenticator, session_id=identity, pulse_count_max=PULSES)
    alice = Authenticator(identity, "alice", "bob", to_bob)
    opening = next(record for _, record in records_of(Wire(seed=0).run()) if type(record).__name__ == "Open")
    bob.receive(alice.seal(encode_record(opening)))
    for chunk in (chunks := list(transmitter.emit_chunks(PULSES))):
        bob.receive_light(chunk, chunk is chunks[-1])
    for thing in reachable(bob):
        assert not isinstance(thing, Transmitter | ChoiceGenerator | AliceSession)


def test_what_bob_sends_first_holds_no_outcome(honest: Wire) -> None:
    """Equal positions and bases with other outcomes make the same message: nothing of a bit is in it."""
    detected = next(record for _, record in records_of(honest) if isinstance(record, Detected))
    assert [f.name for f in fields(Detected)] == ["count", "positions", "bases"]
    bases = np.concatenate([each.basis for each in honest.detections])
    assert detected.bases == np.packbits(bases).tobytes()


def test_alice_reveals_bits_only_where_both_tested(honest: Wire) -> None:
    sifted = next(record for _, record in records_of(honest) if isinstance(record, Sifted))
    block = honest.ends["alice"].block
    assert block is not None
    assert len(sifted.test_bits) == (block.sample_bits + 7) // 8


# ---- a wire that is not honest; every message in turn


def nth(place: int, act: Callable[[bytes], list[bytes]]) -> Tamper:
    counter = iter(range(10**6))
    return lambda sender, index, sealed: act(sealed) if next(counter) == place else [sealed]


FAULTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "garbage": lambda sealed: [b"\x5a" * len(sealed)],
    "empty": lambda sealed: [b""],
    "flipped": lambda sealed: [sealed[:-1] + bytes([sealed[-1] ^ 1])],
    "duplicated": lambda sealed: [sealed, sealed],
    "truncated": lambda sealed: [sealed[:-1]],
}


def places(count: int) -> list[int]:
    """The beginning, the end, and every seventh of the error correction's many messages between."""
    return sorted({*range(8), *range(8, count, 7), *range(count - 5, count)})


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_message_in_turn_forged(fault: str, honest: Wire) -> None:
    forge(fault, honest, list(range(len(honest.sent))))


@pytest.mark.parametrize("fault", FAULTS)
def test_messages_in_turn_forged_end_the_session_with_a_reason(fault: str, honest: Wire) -> None:
    forge(fault, honest, places(len(honest.sent)))


def forge(fault: str, honest: Wire, where: list[int]) -> None:
    for place in where:
        wire = Wire(tamper=nth(place, FAULTS[fault])).run()
        sender = wire.sent[place][0]
        victim = wire.ends["bob" if sender == "alice" else "alice"]
        last = place == len(honest.sent) - 1
        if fault == "duplicated" and last:
            assert victim.signature == SIGNATURE, "what follows the end is not heard"
            continue
        assert victim.aborted is not None, (place, wire.ends)
        assert victim.aborted.attacked and "forged" in victim.aborted.reason
        assert wire.ends["alice"].signature is None, "no block is complete after a forgery"


def test_messages_in_turn_lost_ends_or_waits_and_gives_no_key(honest: Wire) -> None:
    for place in places(len(honest.sent)):
        wire = Wire(tamper=nth(place, lambda sealed: [])).run()
        assert wire.ends["alice"].signature is None
        sender = wire.sent[place][0]
        victim = wire.ends["bob" if sender == "alice" else "alice"]
        followed = sum(who == sender for who, _ in wire.sent[place:]) > 1
        # Silence is the link's to judge, by its deadline; a gap in the order is a forgery.
        assert (victim.aborted is not None) == followed


def test_neighbouring_messages_of_one_sender_swapped_end_the_session() -> None:
    """A sender's next message takes the place of the one it waits for."""
    honest = Wire().run()
    for sender in ("alice", "bob"):
        own = [sealed for who, sealed in honest.sent if who == sender]
        for place in places(len(own) - 1)[:-1]:

            def swap(
                who: str,
                index: int,
                sealed: bytes,
                *,
                swapped: list[bytes] = [own[place + 1], own[place]],  # noqa: B006  bound per turn of the loop
                at: tuple[str, int] = (sender, place),
            ) -> list[bytes]:
                return swapped if (who, index) == at else [sealed]

            wire = Wire(tamper=swap).run()
            victim = wire.ends["bob" if sender == "alice" else "alice"]
            assert victim.aborted is not None and victim.aborted.attacked
            assert wire.ends["alice"].signature is None


def test_a_message_of_an_earlier_session_is_a_forgery(honest: Wire) -> None:
    for place in (0, 1, 4, 9):
        sender, old = honest.sent[place]
        index = sum(who == sender for who, _ in honest.sent[:place])

        def replay(
            who: str, at: int, sealed: bytes, *, when: tuple[str, int] = (sender, index), old: bytes = old
        ) -> list[bytes]:
            return [old] if (who, at) == when else [sealed]

        aborted = Wire(seed=5, tamper=replay).run().ends["bob" if sender == "alice" else "alice"].aborted
        assert aborted is not None and aborted.attacked


def test_a_reflected_message_is_a_forgery() -> None:
    wire = Wire()
    for output in wire.alice.start():
        assert isinstance(output, SendMessage)
        ended = wire.alice.receive(output.sealed)
    assert any(isinstance(each, SessionAborted) and each.attacked for each in ended)


# ---- a peer that holds the key and lies


def lying(place: int, change: Callable[[Record], bytes | None], seed: int = 0) -> Tamper:
    """Open the message at `place` with the ends' key, let `change` rewrite it, and seal it as its sender would."""
    identity, (to_bob, to_alice) = session_id("link", seed, bytes(16)), windows(seed)
    openers = {
        "alice": Authenticator(identity, "bob", "alice", to_alice, to_bob),
        "bob": Authenticator(identity, "alice", "bob", to_bob, to_alice),
    }
    sealers = {
        "alice": Authenticator(identity, "alice", "bob", to_bob, to_alice),
        "bob": Authenticator(identity, "bob", "alice", to_alice, to_bob),
    }
    counter = iter(range(10**6))

    def tamper(sender: str, index: int, sealed: bytes) -> list[bytes]:
        body = openers[sender].open(sealed)
        if next(counter) == place:
            changed = change(decode_record(body, SESSION_RECORDS))
            body = body if changed is None else changed
        return [sealers[sender].seal(body)]

    return tamper


def lies(value: Any) -> list[Any]:
    if isinstance(value, int):
        return [0, 1, value + 1, max(0, value - 1), 2**62]
    if isinstance(value, str):
        return ["", value + "?"]
    flipped = bytes([value[0] ^ 0x81]) + value[1:] if value else b"\1"
    return [b"", value[:-1], value + b"\0", flipped, bytes(len(value)), b"\xff" * len(value)]


def places_of_kinds(honest: Wire) -> dict[str, int]:
    """The first place of every kind, and for the error correction the first of either side."""
    found: dict[str, int] = {}
    for place, (who, record) in enumerate(records_of(honest)):
        found.setdefault(f"{type(record).__name__} of {who}", place)
    return found


def test_a_liar_with_the_key_never_causes_an_exception_or_a_silent_difference(honest: Wire) -> None:
    """Blocks may differ only where the end that chooses seed and split gave the other end another one."""
    outcomes: dict[str, int] = {"aborted": 0, "finished": 0}
    for name, place in places_of_kinds(honest).items():
        record = records_of(honest)[place][1]
        for member in fields(record):
            for lie in lies(getattr(record, member.name)):
                changed = encode_record(replace(record, **{member.name: lie}))
                wire = Wire(tamper=lying(place, lambda record, changed=changed: changed), liar=True).run()
                if not name.startswith("Finish") and wire.ends["bob"].block is not None:
                    assert wire.ends["alice"].block is not None
                    assert keys_of(wire.ends["alice"].block) == keys_of(wire.ends["bob"].block), (name, lie)
                aborted = [end.aborted for end in wire.ends.values() if end.aborted is not None]
                outcomes["aborted" if aborted else "finished"] += 1
                assert not any("forged" in each.reason for each in aborted), (name, lie, aborted)
    assert outcomes["aborted"] > 50


def test_a_message_out_of_turn_ends_the_session_with_a_reason(honest: Wire) -> None:
    said = records_of(honest)
    bodies = [encode_record(record) for _, record in said]
    kinds = list(places_of_kinds(honest).values())
    for place in kinds:
        for other in kinds:
            if type(said[place][1]) is not type(said[other][1]):
                wire = Wire(tamper=lying(place, lambda record, other=other: bodies[other])).run()
                assert any(end.aborted is not None for end in wire.ends.values()), (place, other)
                assert wire.ends["alice"].signature is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_under_a_true_tag_end_or_continue_but_never_raise(data: st.DataObject, honest: Wire) -> None:
    place = data.draw(st.integers(0, len(honest.sent) - 1))
    body = data.draw(
        st.binary(max_size=60) | st.binary(max_size=60).map(lambda payload: encode_record(Reconcile(payload)))
    )
    wire = Wire(tamper=lying(place, lambda record: body)).run()
    if not isinstance(_decoded(body), Reconcile):
        assert wire.ends["alice"].signature is None


def _decoded(body: bytes) -> Record | None:
    try:
        return decode_record(body, SESSION_RECORDS)
    except MalformedMessage:
        return None


def test_bob_refuses_more_secret_bits_than_his_own_bound_gives(honest: Wire) -> None:
    said = records_of(honest)
    place = next(place for place, (_, record) in enumerate(said) if isinstance(record, Finish))
    finish = said[place][1]
    assert isinstance(finish, Finish)
    seed = finish.amplification_seed + b"\0"
    greedy = replace(finish, secret_bits=finish.secret_bits + 8, amplification_seed=seed)
    wire = Wire(tamper=lying(place, lambda record: encode_record(greedy))).run()
    aborted = wire.ends["bob"].aborted
    assert wire.ends["bob"].block is None and aborted is not None
    assert f"the bound gives {finish.secret_bits}" in aborted.reason


def test_bob_refuses_a_string_that_does_not_verify(honest: Wire) -> None:
    said = records_of(honest)
    place = next(place for place, (_, record) in enumerate(said) if isinstance(record, Finish))
    finish = said[place][1]
    assert isinstance(finish, Finish)
    other = replace(finish, verification_tag=bytes(len(finish.verification_tag)))
    wire = Wire(tamper=lying(place, lambda record: encode_record(other))).run()
    aborted = wire.ends["bob"].aborted
    assert aborted is not None and "verification failed" in aborted.reason
    assert wire.ends["alice"].aborted is not None and wire.ends["alice"].signature is None


# ---- eavesdroppers, disagreement, too little light


def test_an_eavesdropper_ends_the_block_as_attacked_at_both_ends_with_one_figure() -> None:
    wire = Wire(attack="intercept_resend").run()
    alice, bob = wire.ends["alice"].aborted, wire.ends["bob"].aborted
    assert alice is not None and bob is not None
    assert alice.attacked and bob.attacked
    assert alice.qber_ppm == bob.qber_ppm
    assert 230_000 < alice.qber_ppm < 280_000, "a quarter, and the link's own errors"
    assert "QBER" in alice.reason and wire.ends["alice"].block is None and wire.ends["bob"].block is None
    assert not any(isinstance(record, Reconcile) and who == "bob" for who, record in records_of(wire))


def test_ends_that_are_configured_differently_say_so() -> None:
    for other in (
        Wire(bob_parameters=SessionParameters.from_mapping({"qber_max": 0.08})),
        Wire(bob_link=link(misalignment=0.02)),
    ):
        bob, alice = other.run().ends["bob"].aborted, other.ends["alice"].aborted
        assert bob is not None and alice is not None and not bob.attacked and not alice.attacked
        assert "configure this link differently" in bob.reason and bob.reason in alice.reason
        assert other.detections == [], "no light was wasted"


def test_too_many_pulses_are_refused_before_light() -> None:
    wire = Wire(pulses_max=PULSES - 1).run()
    aborted = wire.ends["alice"].aborted
    assert aborted is not None and "at most" in aborted.reason and not wire.detections


@pytest.mark.parametrize("pulses", [1, 10, 100, 3_000, 30_000])
def test_too_few_pulses_end_with_a_reason_at_both_ends(pulses: int) -> None:
    wire = Wire(pulses=pulses).run()
    for end in wire.ends.values():
        assert end.block is None and end.aborted is not None
        assert not end.aborted.attacked or end.aborted.qber_ppm > 90_000
    reason = wire.ends["alice"].aborted.reason  # type: ignore[union-attr]
    assert any(text in reason for text in ("too few", "no key", "more pulses", "QBER", "reconciliation")), reason


def test_a_block_that_cannot_pay_for_its_tags_is_no_block() -> None:
    wire = Wire(pulses=60_000).run()
    aborted = wire.ends["alice"].aborted
    assert aborted is not None and "block_pulses" in aborted.reason and not aborted.attacked


def test_a_probe_measures_and_makes_no_key() -> None:
    wire = Wire(probe=True).run()
    alice, bob = wire.ends["alice"].aborted, wire.ends["bob"].aborted
    assert alice is not None and bob is not None
    assert alice.reason == PROBED and bob.reason.endswith(PROBED)
    assert not alice.attacked and not bob.attacked
    assert alice.qber_ppm == bob.qber_ppm and 2_000 < alice.qber_ppm < 40_000


def test_a_probe_still_finds_the_eavesdropper() -> None:
    wire = Wire(probe=True, attack="intercept_resend").run()
    assert all(end.aborted is not None and end.aborted.attacked for end in wire.ends.values())


def test_exhausted_authentication_key_ends_the_session_without_reuse() -> None:
    for messages in range(8):
        wire = Wire(window_bytes=16 + 16 * messages).run()
        assert wire.ends["alice"].signature is None
        assert any(
            end.aborted is not None and "authentication key covers" in end.aborted.reason for end in wire.ends.values()
        )
        for session in (wire.alice, wire.bob):
            assert session.authenticator.send_used_bytes <= 16 + 16 * messages


# ---- light that is not what Alice sent

LIGHT: dict[str, Callable[[tuple[bytes, ...]], tuple[bytes, ...]]] = {
    "garbage": lambda chunks: (b"garbage",),
    "truncated": lambda chunks: (chunks[0][:-1], *chunks[1:]),
    "repeated": lambda chunks: (chunks[0], chunks[0], *chunks[1:]),
    "reversed": lambda chunks: chunks[::-1],
}


@pytest.mark.parametrize("name", LIGHT)
def test_light_that_no_transmitter_sends_ends_the_block_without_exception(name: str) -> None:
    wire = Wire(light=LIGHT[name], pulses=400_000).run()
    if name != "reversed" or len(wire.detections) > 1:
        assert wire.ends["alice"].signature is None
        assert any(end.aborted is not None for end in wire.ends.values())


def test_lost_light_only_costs_detections() -> None:
    wire = Wire(light=lambda chunks: chunks[:-1], pulses=400_000).run()
    if len(wire.detections) > 0:
        block = wire.ends["alice"].block
        assert block is not None and block == wire.ends["bob"].block


def test_a_message_before_the_light_has_ended_ends_the_block() -> None:
    wire = Wire(light=lambda chunks: ())
    wire.run()
    assert not wire.bob.finished
    outputs = wire.bob.sign_off(SIGNATURE)
    assert any(isinstance(each, SessionAborted) and "light" in each.reason for each in outputs)
    assert wire.bob.receive_light(b"", True) == []


def test_light_before_the_opening_ends_the_block() -> None:
    wire = Wire()
    assert any(isinstance(each, SessionAborted) for each in wire.bob.receive_light(b"light", True))


# ---- parameters


def test_parameters_refuse_unknown_keys_and_ranges() -> None:
    with pytest.raises(ParameterError, match=r"unknown key 'qber'.*qber_max"):
        SessionParameters.from_mapping({"qber": 0.1})
    with pytest.raises(ParameterError, match="qber_max"):
        SessionParameters.from_mapping({"qber_max": 0.5})
    with pytest.raises(ParameterError):
        SessionParameters.from_mapping({"method": ""})
    assert SessionParameters.from_mapping({"epsilon_secrecy": 1e-9}).security.epsilon_secrecy == 1e-9


def test_the_digest_names_every_parameter() -> None:
    digests = {
        SessionParameters.from_mapping(table).digest(line)
        for table in ({}, {"qber_max": 0.08}, {"epsilon_secrecy": 1e-9}, {"method": "cascade"})
        for line in (LINK, link(misalignment=0.02))
    }
    assert len(digests) == 8
