"""What both sides of a session share: its parameters, its outputs, and the way a script is fed, checked and ended.

A side is one straight-line script, a generator that yields outputs and waits for the next input (SPEC part 1). Decides
how a block is accounted (rows S0-E6, S0-E16); what is said when is in `alice` and `bob`.
"""

import contextlib
import hashlib
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.assessment import Assessment, Sifting, WatchParameters
from protocol.authentication import MESSAGE_BYTES_MAX, Authenticator, ForgedMessage, KeyExhausted
from protocol.distill import bounds
from protocol.distill.amplification import amplify
from protocol.distill.reconciliation import METHODS, Outcome, Party, ReconciliationError, Role, make_party
from protocol.distill.verification import collision_bound, tag_bits_for
from protocol.keys import KeyMaterial
from protocol.messages import (
    SESSION_RECORDS,
    Abort,
    Finish,
    MalformedMessage,
    Reconcile,
    Record,
    decode_record,
    encode_record,
)
from protocol.parameters import ParameterError, require, require_range
from protocol.quantum.link import LightError, LinkParameters

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


class Failed(Exception):
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
class Light:
    chunk: bytes
    last: bool


Input = Record | Light | bytes | None
Script = Generator[list[Output], Input, list[Output]]
_Expected = TypeVar("_Expected", bound=Record)


class _Session:
    """What both sides share: sealing, opening, checking and ending."""

    def __init__(self, parameters: SessionParameters, link: LinkParameters, authenticator: Authenticator) -> None:
        self._parameters = parameters
        self._link = link
        self.authenticator = authenticator
        self.finished = False
        self._script: Script | None = None

    def _scripted(self) -> Script:
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
            return self._end(Failed(f"forged message: {error}", attacked=True, tell_peer=known))
        except (KeyExhausted, MalformedMessage) as error:
            return self._end(Failed(str(error)))
        if isinstance(record, Abort):
            reason = f"the peer ended the block: {record.reason}"
            return self._end(Failed(reason, min(record.qber_ppm, 10**6), tell_peer=False))
        return self._feed(record)

    def _feed(self, value: Input) -> list[Output]:
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
        except Failed as failure:
            return self._end(failure)
        except (MalformedMessage, KeyExhausted, LightError, ReconciliationError) as error:
            return self._end(Failed(str(error)))

    def close(self) -> None:
        """Let go of everything that the session holds; for a session that is over or given up, and has no job running.

        A script that still waits and its session hold each other: without this, what was measured lived until the next
        full collection, which a daemon hardly ever makes.
        """
        self.finished = True
        if self._script is not None:
            self._script.close()

    def _end(self, failure: Failed) -> list[Output]:
        self.finished = True
        outputs: list[Output] = list(failure.unsent)
        if failure.tell_peer:
            with contextlib.suppress(KeyExhausted):  # the peer then learns it from its own time-out
                outputs.append(self._message(Abort(failure.reason[:200], failure.qber_ppm)))
        return [*outputs, SessionAborted(failure.reason, failure.qber_ppm, failure.attacked)]

    def _message(self, record: Record) -> SendMessage:
        return SendMessage(self.authenticator.seal(encode_record(record)))

    def _reconcile(self, party: Party, first: bytes | None, opening: list[Output]) -> "Reconciling":
        """Exchange `Reconcile` messages until this side's outcome; returns it with the next foreign record, if any."""
        outputs = opening + ([self._message(Reconcile(first))] if first is not None else [])
        while party.outcome is None:
            record = yield outputs
            if not isinstance(record, Reconcile):
                return None, record, []
            reply = party.receive(record.payload)
            outputs = [self._message(Reconcile(reply))] if reply is not None else []
        return party.outcome, None, outputs


Reconciling = Generator[list[Output], Input, tuple[Outcome | None, Input, list[Output]]]


def expect(kind: type[_Expected], value: Input) -> _Expected:
    if not isinstance(value, kind):
        raise Failed(f"a message of kind {kind.__name__} was due, {type(value).__name__} came")
    return value


def require_detections(count: int) -> None:
    if count == 0:
        raise Failed("too few detections: not one pulse clicked")
    if count > DETECTIONS_MAX:
        raise Failed(f"{count} clicks; a block holds {DETECTIONS_MAX}: use fewer pulses per block (block_pulses)")


def split_secret(
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


class DistillingSession(_Session):
    """The second half of a session, after sifting, as far as both sides do the same."""

    def _tag_bits(self, key_bits: int) -> int:
        return tag_bits_for(key_bits, self._parameters.security.epsilon_correctness)

    def _length(self, assessment: Assessment, key_bits: int, leaked_bits: int) -> bounds.KeyLength:
        if self._link.proof_gaps:
            raise Failed(f"no key: no proof covers this link: {'; '.join(self._link.proof_gaps)}", assessment.qber_ppm)
        tag_bits = self._tag_bits(key_bits)
        costs = bounds.Costs(leaked_bits, tag_bits, collision_bound(key_bits, tag_bits))
        length = bounds.key_length(self._parameters.security, self._link.source, assessment.counts, costs)
        if length.bits <= 0:
            raise Failed(f"no key: {length.reason or 'the bound gives no secret bit'}", assessment.qber_ppm)
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


def amplified(bits: NDArray[np.uint8], finish: Finish) -> NDArray[np.uint8]:
    return amplify(bits, finish.amplification_seed, finish.secret_bits)
