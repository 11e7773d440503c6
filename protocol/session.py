"""A BB84 session: one block from light to secret key, Alice's and Bob's side (SPEC parts 1 and 2).

Decides what is sent when, what is checked, and why a block ends without a key (rows S0-E1, S0-E12, S0-E6, S0-E16).
Does not decide how frames travel, where keys are kept or what the chain records: outputs say what happened, and the
daemon's link acts on them. Each side is one straight-line script; `start`, `receive`, `receive_light` and `sign_off`
feed it and return its outputs. No method raises for anything that the peer or the channel did.
"""

import contextlib
import hashlib
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.assessment import Assessment, BlockSuspect, Sifting, WatchParameters, assess, sift_block
from protocol.authentication import MESSAGE_BYTES_MAX, PAD_BYTES, Authenticator, ForgedMessage, KeyExhausted
from protocol.distill import bounds
from protocol.distill.amplification import amplification_seed_bits, amplify
from protocol.distill.reconciliation import METHODS, Outcome, Party, ReconciliationError, Role, make_party
from protocol.distill.verification import SEED_SIZE_BYTES, collision_bound, tag_bits_for, tags_agree, verification_tag
from protocol.entropy import Entropy
from protocol.keys import KeyMaterial
from protocol.messages import (
    SESSION_RECORDS,
    Abort,
    Accept,
    Detected,
    Finish,
    MalformedMessage,
    Open,
    Reconcile,
    Reconciled,
    Record,
    Sifted,
    Signed,
    Tested,
    decode_record,
    encode_record,
    pack_bits,
    pack_positions,
    unpack_bits,
    unpack_positions,
)
from protocol.parameters import ParameterError, require, require_range
from protocol.quantum.link import Choices, LightError, LinkParameters, Receiver, Transmitter

COMMITMENT_BYTES: Final = 32
"""Output bits of the amplification that serve the commitment alone and are delivered to nobody."""

POSITIONS_BYTES_MAX: Final = MESSAGE_BYTES_MAX - (1 << 20)
"""The positions share their message with the bases of DETECTIONS_MAX clicks."""

KEY_BYTES_MIN: Final = 32
"""A block that leaves less than one AES-256 key is not worth its record."""

DETECTIONS_MAX: Final = 3_000_000
"""Clicks of one block: bounds memory (about 100 MB) and the messages about them (below the frame bound)."""

INCOMING_PHOTONS_MAX: Final = 0.01
"""Photons per pulse that may come back out of the channel into the source: the resolution of its watch detector."""

PROBED: Final = "measured only: the pool of this link is full"
"""Why a probe ends; no fault."""

RECONCILIATION_QBER_MIN: Final = 0.002
"""Reconciliation is tuned for at least this error rate: a test sample without errors does not promise a key without."""


_OWN_KEYS: Final = ("method", "round_trip_ms")


@dataclass(frozen=True, slots=True)
class SessionParameters:
    """How blocks are distilled; both ends must agree on it.

    security: the ε's of the proof. watch: when a block counts as attacked. method: a name known to
    `reconciliation.make_party`; "auto" decides by block size, error rate and `round_trip_ms` (0.01 to 10,000), the time
    that a message and its answer take between the two ends, computing included.
    """

    security: bounds.SecurityParameters
    watch: WatchParameters = field(default_factory=WatchParameters)
    method: str = "cascade-fast"
    round_trip_ms: float = 5.0

    def __post_init__(self) -> None:
        require(self.method in METHODS, f"method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        require_range("round_trip_ms", self.round_trip_ms, 0.01, 1e4, "ms")

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> "SessionParameters":
        """Build from a [distillation] table. Raises ParameterError naming unknown keys and the valid ones."""
        records = {"security": bounds.SecurityParameters, "watch": WatchParameters}
        names = {part: [each.name for each in fields(record)] for part, record in records.items()}
        valid = [*_OWN_KEYS, *names["watch"], *names["security"]]
        if unknown := [key for key in table if key not in valid]:
            raise ParameterError(f"unknown key {unknown[0]!r} in [distillation]; the valid keys are {', '.join(valid)}")
        parts: dict[str, Any] = {
            part: record(**{key: table[key] for key in names[part] if key in table}) for part, record in records.items()
        }
        return cls(**parts, **{key: table[key] for key in _OWN_KEYS if key in table})

    def digest(self, link: LinkParameters) -> bytes:
        """Return the name of everything that both ends of a link must have configured alike."""
        return hashlib.sha256(repr((self, link)).encode()).digest()


# ---- outputs


@dataclass(frozen=True, slots=True)
class SendMessage:
    """A sealed message for the peer."""

    sealed: bytes


@dataclass(frozen=True, slots=True)
class SendLight:
    """What the channel carries to the receiver: at least one piece, drawn (as jobs) and sent in order.

    Drawn lazily, so that a long block needs no more memory than the pieces under way.
    """

    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class DistilledBlock:
    """A block of secret key and the figures of its record. Counts in bits unless named otherwise.

    `commitment` is the SHA-256 of dedicated output bits: it shows that both ends hold the same key and says nothing
    about the delivered bits, which are (up to the block's ε) independent of the dedicated ones.
    """

    pulses: int
    detections: int
    sifted_bits: int
    sample_bits: int
    qber_ppm: int
    leaked_bits: int
    corrected_errors: int
    verification_bits: int
    authentication_bits: int
    secret_bits: int
    security_millibits: int
    proof: str
    method: str
    commitment: bytes
    expiry_height: int
    refill_transmitter: KeyMaterial
    refill_receiver: KeyMaterial
    key: KeyMaterial


@dataclass(frozen=True, slots=True)
class BlockDistilled:
    """This side holds the block. Bob: store it, then call `sign_off`. Alice: wait for PeerSigned."""

    block: DistilledBlock


@dataclass(frozen=True, slots=True)
class PeerSigned:
    """Bob's signature over the record arrived; the session is complete."""

    signature: bytes


@dataclass(frozen=True, slots=True)
class SessionAborted:
    """The block ends without a key. `attacked` says that an error rate or a forgery is the reason."""

    reason: str
    qber_ppm: int
    attacked: bool


Output = SendMessage | SendLight | BlockDistilled | PeerSigned | SessionAborted


class _Failed(Exception):
    """Ends a script; `attacked` as in SessionAborted."""

    def __init__(
        self,
        reason: str,
        qber_ppm: int = 0,
        *,
        attacked: bool = False,
        tell_peer: bool = True,
        unsent: "tuple[SendMessage, ...]" = (),
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.qber_ppm = qber_ppm
        self.attacked = attacked
        self.tell_peer = tell_peer
        self.unsent = unsent  # sealed before the failure: without them the peer takes what follows for a forgery


@dataclass(frozen=True, slots=True)
class _Light:
    chunk: bytes
    last: bool


_Input = Record | _Light | bytes | None
_Script = Generator[list[Output], _Input, list[Output]]
_Expected = TypeVar("_Expected", bound=Record)


class _Session:
    """What both sides share: sealing, opening, checking and ending."""

    def __init__(self, parameters: SessionParameters, link: LinkParameters, authenticator: Authenticator) -> None:
        self._parameters = parameters
        self._link = link
        self.authenticator = authenticator
        self.finished = False
        self._script: _Script | None = None

    def _scripted(self) -> _Script:
        raise AssertionError("each side brings its script")

    def receive(self, sealed: bytes) -> list[Output]:
        """Take the peer's next message."""
        if self.finished:
            return []
        try:
            record = decode_record(self.authenticator.open(sealed), SESSION_RECORDS)
        except ForgedMessage as error:
            # A stranger, who chose where in the stream the answers would begin, gets none: it would cost key there.
            known = self.authenticator.opened_messages > 0
            return self._end(_Failed(f"forged message: {error}", attacked=True, tell_peer=known))
        except (KeyExhausted, MalformedMessage) as error:
            return self._end(_Failed(str(error)))
        if isinstance(record, Abort):
            reason = f"the peer ended the block: {record.reason}"
            return self._end(_Failed(reason, min(record.qber_ppm, 10**6), tell_peer=False))
        return self._feed(record)

    def _feed(self, value: _Input) -> list[Output]:
        """Run the script to its next wait."""
        if self.finished:
            return []
        try:
            if self._script is None:
                self._script = self._scripted()
                assert value is None
                return next(self._script)
            return self._script.send(value)
        except StopIteration as stop:
            self.finished = True
            outputs: list[Output] = stop.value
            return outputs
        except _Failed as failure:
            return self._end(failure)
        except (MalformedMessage, KeyExhausted, LightError, ReconciliationError) as error:
            return self._end(_Failed(str(error)))

    def _end(self, failure: _Failed) -> list[Output]:
        self.finished = True
        outputs: list[Output] = list(failure.unsent)
        if failure.tell_peer:
            with contextlib.suppress(KeyExhausted):  # the peer then learns it from its own time-out
                outputs.append(self._message(Abort(failure.reason[:200], failure.qber_ppm)))
        return [*outputs, SessionAborted(failure.reason, failure.qber_ppm, failure.attacked)]

    def _message(self, record: Record) -> SendMessage:
        return SendMessage(self.authenticator.seal(encode_record(record)))

    def _reconcile(self, party: Party, first: bytes | None, opening: list[Output]) -> "_Reconciling":
        """Exchange `Reconcile` messages until this side's outcome; returns it with the next foreign record, if any."""
        outputs = opening + ([self._message(Reconcile(first))] if first is not None else [])
        while party.outcome is None:
            record = yield outputs
            if not isinstance(record, Reconcile):
                return None, record, []
            reply = party.receive(record.payload)
            outputs = [self._message(Reconcile(reply))] if reply is not None else []
        return party.outcome, None, outputs


_Reconciling = Generator[list[Output], _Input, tuple[Outcome | None, _Input, list[Output]]]


def _expect(kind: type[_Expected], value: _Input) -> _Expected:
    if not isinstance(value, kind):
        raise _Failed(f"a message of kind {kind.__name__} was due, {type(value).__name__} came")
    return value


def _require_detections(count: int) -> None:
    if count == 0:
        raise _Failed("too few detections: not one pulse clicked")
    if count > DETECTIONS_MAX:
        raise _Failed(f"{count} clicks; a block holds {DETECTIONS_MAX}: use fewer pulses per block (block_pulses)")


def _split(
    secret: NDArray[np.uint8], refill_bytes: int, numbers: Mapping[str, Any], expiry_height: int
) -> DistilledBlock:
    """Cut the amplified bits into commitment, refills and key."""
    packed = np.packbits(secret[: len(secret) // 8 * 8]).tobytes()
    first, second = COMMITMENT_BYTES + refill_bytes, COMMITMENT_BYTES + 2 * refill_bytes
    return DistilledBlock(
        **numbers,
        secret_bits=len(secret),
        commitment=hashlib.sha256(b"qnode block commitment v1" + packed[:COMMITMENT_BYTES]).digest(),
        expiry_height=expiry_height,
        refill_transmitter=KeyMaterial(packed[COMMITMENT_BYTES:first]),
        refill_receiver=KeyMaterial(packed[first:second]),
        key=KeyMaterial(packed[second:]),
    )


class _Distilling(_Session):
    """The second half of a session, after sifting, as far as both sides do the same."""

    def _tag_bits(self, key_bits: int) -> int:
        return tag_bits_for(key_bits, self._parameters.security.epsilon_correctness)

    def _length(self, assessment: Assessment, key_bits: int, leaked_bits: int) -> bounds.KeyLength:
        if self._link.proof_gaps:
            raise _Failed(f"no key: no proof covers this link: {'; '.join(self._link.proof_gaps)}", assessment.qber_ppm)
        tag_bits = self._tag_bits(key_bits)
        costs = bounds.Costs(leaked_bits, tag_bits, collision_bound(key_bits, tag_bits))
        length = bounds.key_length(self._parameters.security, self._link.source, assessment.counts, costs)
        if length.bits <= 0:
            raise _Failed(f"no key: {length.reason or 'the bound gives no secret bit'}", assessment.qber_ppm)
        return length

    def _numbers(
        self,
        pulses: int,
        sifting: Sifting,
        assessment: Assessment,
        length: bounds.KeyLength,
        outcome: Outcome,
        corrected_errors: int,
        authentication_bytes: int,
    ) -> dict[str, Any]:
        return {
            "pulses": pulses,
            "detections": sifting.detections,
            "sifted_bits": len(sifting.key_bits) + assessment.test_bits,
            "sample_bits": assessment.test_bits,
            "qber_ppm": assessment.qber_ppm,
            "leaked_bits": outcome.leaked_bits,
            "corrected_errors": corrected_errors,
            "verification_bits": self._tag_bits(len(sifting.key_bits)),
            "authentication_bits": 8 * authentication_bytes,
            "security_millibits": math.floor(-1000 * math.log2(length.epsilon_total)),
            "proof": length.proof,
            "method": outcome.method,
        }

    def _party(self, role: Role, bits: NDArray[np.uint8], qber: float, seed: bytes) -> Party:
        method = self._parameters.method
        options = {"round_trip_s": self._parameters.round_trip_ms / 1e3} if method == "auto" else {}
        return make_party(method, role, bits, max(qber, RECONCILIATION_QBER_MIN), seed, **options)


class AliceSession(_Distilling):
    """The transmitter's side.

    `top_up_bytes`: what each authentication stream should gain beyond this block's use. `probe`: measure the error
    rate and stop there, because no key is wanted now but an eavesdropper should still be noticed.
    """

    def __init__(
        self,
        parameters: SessionParameters,
        transmitter: Transmitter,
        link: LinkParameters,
        authenticator: Authenticator,
        entropy: Entropy,
        *,
        session_id: bytes,
        pulse_count: int,
        expiry_height: int,
        top_up_bytes: int,
        probe: bool = False,
    ) -> None:
        super().__init__(parameters, link, authenticator)
        self._transmitter = transmitter
        self._entropy = entropy
        self._session_id = session_id
        self._pulse_count = pulse_count
        self._expiry_height = expiry_height
        self._top_up_bytes = top_up_bytes
        self._probe = probe

    def start(self) -> list[Output]:
        """Open the session."""
        return self._feed(None)

    def _scripted(self) -> _Script:
        digest = self._parameters.digest(self._link)
        opening = Open(self._pulse_count, self._parameters.method, digest)
        _expect(Accept, (yield [self._message(opening)]))
        light = SendLight(self._transmitter.emit_chunks(self._pulse_count))
        detected = _expect(Detected, (yield [light]))
        if self._transmitter.incoming_photons_per_pulse > INCOMING_PHOTONS_MAX:
            raise _Failed("light enters the source from outside: a Trojan-horse probe is likely", attacked=True)
        sifting, answer = self._sift(detected)
        tested = _expect(Tested, (yield [answer]))
        peer_bits = unpack_bits(tested.test_bits, len(sifting.own_test_bits))
        try:
            assessment = assess(sifting, peer_bits, self._pulse_count, self._link, self._parameters.watch)
        except BlockSuspect as suspect:
            raise _Failed(suspect.reason, suspect.qber_ppm, attacked=suspect.attacked) from None
        if self._probe:
            raise _Failed(PROBED, assessment.qber_ppm)
        party = self._party("alice", sifting.key_bits, assessment.qber, self._session_id)
        outcome, record, outputs = yield from self._reconcile(party, party.start(), [])
        if record is None:
            record = yield outputs
        return (yield from self._finish(sifting, assessment, outcome, _expect(Reconciled, record)))

    def _sift(self, detected: Detected) -> tuple[Sifting, SendMessage]:
        _require_detections(detected.count)
        positions = unpack_positions(detected.positions, detected.count, self._pulse_count)
        bob_bases = unpack_bits(detected.bases, detected.count)
        choices: Choices = self._transmitter.choices(positions)
        sifting = sift_block(choices.bit, choices.basis, bob_bases, choices.intensity)
        intensities = choices.intensity.tobytes() if len(self._link.source.intensities) > 1 else b""
        answer = Sifted(pack_bits(choices.basis), intensities, pack_bits(sifting.own_test_bits))
        return sifting, self._message(answer)

    def _finish(
        self,
        sifting: Sifting,
        assessment: Assessment,
        outcome: Outcome | None,
        claimed: Reconciled,
    ) -> _Script:
        if outcome is None or outcome.failed:
            raise _Failed(f"reconciliation failed: {outcome.reason if outcome else 'the peer broke off'}")
        if claimed.corrected_errors > len(sifting.key_bits) or claimed.leaked_bits != outcome.leaked_bits:
            raise _Failed("the two ends count the leaked bits or the corrections differently")
        leaked_bits = outcome.leaked_bits
        length = self._length(assessment, len(sifting.key_bits), leaked_bits)
        sent = self.authenticator.send_used_bytes + PAD_BYTES
        received = self.authenticator.receive_used_bytes + PAD_BYTES
        refill = max(sent, received) + self._top_up_bytes
        spare = length.bits // 8 - COMMITMENT_BYTES - KEY_BYTES_MIN
        if spare < 2 * max(sent, received):
            raise _Failed(
                f"the block makes {length.bits} secret bits, and its tags cost {8 * (sent + received)}: "
                "more pulses per block are needed (block_pulses)",
                assessment.qber_ppm,
            )
        finish = Finish(
            verification_seed=(seed := self._entropy.take(SEED_SIZE_BYTES)),
            verification_tag=verification_tag(sifting.key_bits, seed, self._tag_bits(len(sifting.key_bits))),
            amplification_seed=self._entropy.take(
                (amplification_seed_bits(len(sifting.key_bits), length.bits) + 7) // 8
            ),
            secret_bits=length.bits,
            refill_bytes=min(refill, spare // 2),
            expiry_height=self._expiry_height,
        )
        message = self._message(finish)
        numbers = self._numbers(
            self._pulse_count, sifting, assessment, length, outcome, claimed.corrected_errors, sent + received
        )
        secret = _amplified(sifting.key_bits, finish)
        block = _split(secret, finish.refill_bytes, numbers, self._expiry_height)
        signed = _expect(Signed, (yield [message, BlockDistilled(block)]))
        return [PeerSigned(signed.signature)]


class BobSession(_Distilling):
    """The receiver's side; it begins with Alice's first message."""

    def __init__(
        self,
        parameters: SessionParameters,
        receiver: Receiver,
        link: LinkParameters,
        authenticator: Authenticator,
        *,
        session_id: bytes,
        pulse_count_max: int,
    ) -> None:
        super().__init__(parameters, link, authenticator)
        self._receiver = receiver
        self._session_id = session_id
        self._pulse_count_max = pulse_count_max
        self._script = self._scripted()
        next(self._script)

    def receive_light(self, chunk: bytes, last: bool) -> list[Output]:
        """Let the next stretch of light reach the detectors."""
        return self._feed(_Light(chunk, last))

    def sign_off(self, signature: bytes) -> list[Output]:
        """The block is stored and signed here: tell Alice."""
        return self._feed(signature)

    def _scripted(self) -> _Script:
        opening = _expect(Open, (yield []))
        if opening.parameters_digest != self._parameters.digest(self._link):
            raise _Failed("the two ends configure this link differently: make [link.*] alike at both nodes")
        if not 0 < opening.pulse_count <= self._pulse_count_max:
            raise _Failed(f"{opening.pulse_count} pulses; this end takes at most {self._pulse_count_max} per block")
        bases, bits, record = yield from self._measure([self._message(Accept())])
        sifted = _expect(Sifted, record)
        sifting, peer_bits = self._sift(sifted, bases, bits)
        tested = self._message(Tested(pack_bits(sifting.own_test_bits)))
        try:
            assessment = assess(sifting, peer_bits, opening.pulse_count, self._link, self._parameters.watch)
        except BlockSuspect as suspect:
            # Alice gets the bits all the same: she computes the same from them.
            raise _Failed(suspect.reason, suspect.qber_ppm, attacked=suspect.attacked, unsent=(tested,)) from None
        party = self._party("bob", sifting.key_bits, assessment.qber, self._session_id)
        outcome, _, outputs = yield from self._reconcile(party, party.start(), [tested])
        if outcome is None or outcome.failed:
            reason = f"reconciliation failed: {outcome.reason if outcome else 'the peer broke off'}"
            raise _Failed(reason, unsent=tuple(each for each in outputs if isinstance(each, SendMessage)))
        corrected = outcome.corrected_errors if outcome.corrected_errors is not None else 0
        done = self._message(Reconciled(corrected, outcome.leaked_bits))
        finish = _expect(Finish, (yield [*outputs, done]))
        return (yield from self._finish(opening, sifting, assessment, outcome, finish))

    def _measure(self, outputs: list[Output]) -> "_Measuring":
        """Detect chunk by chunk, report the clicks, and return them with Alice's answer."""
        positions, bases, bits = [], [], []
        last = False
        while not last:
            light = yield outputs
            if not isinstance(light, _Light):
                raise _Failed("a message came before the light had ended")
            detections = self._receiver.measure(light.chunk)
            if self._receiver.photocurrent:
                raise _Failed("bright light drives the detectors: blinding is likely", attacked=True)
            positions.append(detections.positions)
            bases.append(detections.basis)
            bits.append(detections.bit)
            last, outputs = light.last, []
        where, basis, bit = np.concatenate(positions), np.concatenate(bases), np.concatenate(bits)
        _require_detections(len(where))
        packed = pack_positions(where)
        if len(packed) > POSITIONS_BYTES_MAX:
            raise _Failed("the clicks lie too far apart for one message: use fewer pulses per block (block_pulses)")
        record = yield [self._message(Detected(len(where), packed, pack_bits(basis)))]
        return basis, bit, record

    def _sift(
        self, sifted: Sifted, bases: NDArray[np.uint8], bits: NDArray[np.uint8]
    ) -> tuple[Sifting, NDArray[np.uint8]]:
        levels = len(self._link.source.intensities)
        intensities = np.frombuffer(sifted.intensities, np.uint8) if levels > 1 else np.zeros(len(bits), np.uint8)
        if len(intensities) != len(bits) or (len(bits) and int(intensities.max()) >= levels):
            raise _Failed("the announced intensities do not fit the clicks")
        sifting = sift_block(bits, unpack_bits(sifted.bases, len(bits)), bases, intensities)
        return sifting, unpack_bits(sifted.test_bits, len(sifting.own_test_bits))

    def _finish(
        self, opening: Open, sifting: Sifting, assessment: Assessment, outcome: Outcome, finish: Finish
    ) -> _Script:
        reconciled = outcome.bits
        assert reconciled is not None, "a failed reconciliation never comes here"
        if len(finish.verification_seed) != SEED_SIZE_BYTES:
            raise _Failed("the verification seed has another length")
        tag = verification_tag(reconciled, finish.verification_seed, self._tag_bits(len(reconciled)))
        if not tags_agree(tag, finish.verification_tag):
            raise _Failed("verification failed: the reconciled strings differ", assessment.qber_ppm)
        length = self._length(assessment, len(sifting.key_bits), outcome.leaked_bits)
        taken = COMMITMENT_BYTES + 2 * finish.refill_bytes + KEY_BYTES_MIN
        if not 8 * taken <= finish.secret_bits <= length.bits:
            raise _Failed(f"the peer wants {finish.secret_bits} secret bits; the bound gives {length.bits}")
        seed_bits = amplification_seed_bits(len(reconciled), finish.secret_bits)
        if len(finish.amplification_seed) != (seed_bits + 7) // 8:
            raise _Failed("the amplification seed has another length")
        used = self.authenticator.send_used_bytes + PAD_BYTES + self.authenticator.receive_used_bytes
        numbers = self._numbers(
            opening.pulse_count,
            sifting,
            assessment,
            length,
            outcome,
            outcome.corrected_errors or 0,
            used,
        )
        block = _split(_amplified(reconciled, finish), finish.refill_bytes, numbers, finish.expiry_height)
        signature = yield [BlockDistilled(block)]
        if not isinstance(signature, bytes):
            raise _Failed("a message came before the block was signed")
        return [self._message(Signed(signature))]


_Measuring = Generator[list[Output], _Input, tuple[NDArray[np.uint8], NDArray[np.uint8], _Input]]


def _amplified(bits: NDArray[np.uint8], finish: Finish) -> NDArray[np.uint8]:
    return amplify(bits, finish.amplification_seed, finish.secret_bits)
