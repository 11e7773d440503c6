"""The node's side of an L-QKD session: prepares the light, decodes, answers (rows S4-A1.7 to S4-A1.17, S4-5.7, S4-6.2).

Passive: every frame of the device has one answer, which is kept and given again when the frame comes again. Nothing
that a stranger sends changes a session. Decides no storage: `key` is there before the frame that activates it leaves,
and the daemon stores it first.
"""

import hashlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.distill.amplification import amplify
from protocol.distill.reconciliation.ldpc import DEVICE_FRAME_BITS, make_ldpc, make_plan
from protocol.distill.reconciliation.ldpc_code import Code
from protocol.distill.reconciliation.party import ReconciliationError
from protocol.distill.verification import verification_tag
from protocol.entropy import Entropy
from protocol.lightweight.arithmetic import FRAME_BITS_MAX, ParityCode
from protocol.lightweight.channel import (
    DEVICE,
    NODE,
    Channel,
    Forged,
    SessionKey,
    derive,
    equal,
    proof_of,
    sequence_of,
)
from protocol.lightweight.hybrid import Kem
from protocol.lightweight.length import (
    CHALLENGE_BYTES,
    CONTROL_BITS,
    KEY_BITS_MAX,
    DevicePolicy,
    SiftedCounts,
    session_length,
    tag_bits,
)
from protocol.lightweight.records import (
    Aborted,
    Active,
    Begin,
    Checks,
    Corrected,
    Detected,
    Finish,
    More,
    Prepared,
    Proof,
    Response,
    Reveal,
    Revealed,
    Sifted,
    unpack_positions,
)
from protocol.parameters import ParameterError
from protocol.quantum.link import LinkParameters, Transmitter
from protocol.quantum.source import SINGLE_PHOTON
from protocol.records import MalformedMessage, Record

Bits = NDArray[np.uint8]
_Expected = TypeVar("_Expected", bound=Record)

SIFTED_BITS: Final = (512, 1024, 2048, 3072, 4096)
"""The sizes that a session may have: few, so that codes are built once."""
QBER_LEVELS: Final = (0.01, 0.02, 0.03, 0.05)
"""Error rates that codes are made for; a device's next session uses the level above what its last one showed."""
ATTACK_QBER: Final = 0.09
"""Above it a session counts as attacked: no setting of this receiver explains it, and no key comes of it."""
_MORE: Final = 1
_DONE: Final = 2


@dataclass(slots=True)
class NodeFigures:
    """What the node saw of a session."""

    pulses: int = 0
    detections: int = 0
    sifted_bits: int = 0
    leaked_bits: int = 0
    secret_bits: int = 0
    key_bits: int = 0
    qber: float = 0.0
    epsilon: float = 0.0
    selective: bool = False
    battery_mj: int = 0


class _Failed(Exception):
    def __init__(self, reason: str, *, qber: float = 0.0, tell_device: bool = True) -> None:
        super().__init__(reason)
        self.qber = qber
        self.tell_device = tell_device


_Script = Generator[Record, Record, SessionKey]


@lru_cache(maxsize=64)
def described_code(frame_bits: int, qber: float) -> tuple[bytes, ParityCode]:
    """Return the description of the parity code of a frame, and the code. Up to 0.3 s the first time."""
    plan = make_plan(frame_bits, qber, DEVICE_FRAME_BITS)
    assert plan is not None and plan.frames == 1, "one frame, at an error rate that codes are made for"
    code = _parity_code(plan.code())
    return code.pack(), code


def _parity_code(code: Code) -> ParityCode:
    rows = tuple(
        tuple(zip(code.column[a:b].tolist(), code.shift[a:b].tolist(), strict=True))
        for a, b in zip(code.row_start[:-1].tolist(), code.row_start[1:].tolist(), strict=True)
    )
    return ParityCode(code.z, code.base_rows, rows)


def frame_bits_for(sifted_bits: int, selective: bool) -> int:
    """Return the frame that the key's bits fit into: all of them, or the half in one basis and four deviations."""
    if not selective:
        return sifted_bits
    return min(FRAME_BITS_MAX, sifted_bits // 2 + 2 * math.isqrt(sifted_bits))


def pulses_for(parameters: LinkParameters, sifted_bits: int) -> int:
    """Return how many pulses leave enough sifted bits but for one session in some ten thousand."""
    rate = parameters.channel.medium.transmittance * parameters.detector.efficiency_max
    rate *= parameters.source.intensities[0] / 2
    wanted = sifted_bits + 4.0 * math.sqrt(sifted_bits)
    return math.ceil(wanted / rate)


def require_device_link(parameters: LinkParameters) -> None:
    """Refuse a channel that the proof of L-QKD does not cover. Raises ParameterError."""
    if parameters.source.model != SINGLE_PHOTON or parameters.source.basis_z_probability != 0.5:
        raise ParameterError("the channel of devices needs model = 'single_photon' and basis_z_probability = 0.5")
    if parameters.proof_gaps:
        raise ParameterError(f"the channel of devices: {'; '.join(parameters.proof_gaps)}")


@dataclass(slots=True)
class NodeSession:
    """One session. `answer` is what the last frame of the device got; `light` goes with the first answer."""

    channel: Channel
    policy: DevicePolicy
    parameters: LinkParameters
    transmitter: Transmitter
    entropy: Entropy
    expected_qber: float
    kem: Kem | None = None
    answer: bytes = b""
    light: bytes = field(default=b"", repr=False)
    figures: NodeFigures = field(default_factory=NodeFigures)
    key: SessionKey | None = None
    failure: str | None = None
    attacked: bool = False
    forged: int = 0
    _script: _Script | None = field(default=None, repr=False)
    _decapsulate: Callable[[bytes], bytes] | None = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        """Whether the session is over."""
        return self.key is not None or self.failure is not None

    def receive(self, frame: bytes) -> bytes | None:
        """Take a frame; return the answer: the same one for a frame that came before, None for one of a stranger."""
        if self.channel.received and sequence_of(frame) == self.channel.received - 1:
            return self.answer if self._known(frame) else None
        if self.finished:
            return None
        try:
            record = self.channel.open(frame)
        except Forged:
            self.forged += 1
            return None
        except MalformedMessage as error:
            return self._fail(_Failed(str(error)))
        return self._advance(record)

    def _known(self, frame: bytes) -> bool:
        """Say whether this is truly the device's last frame again."""
        again = Channel(self.channel.device_id, self.channel.counter, NODE, self.channel.authentication_key)
        again.received = self.channel.received - 1
        try:
            again.open(frame)
        except (Forged, MalformedMessage):
            self.forged += 1
            return False
        return True

    def _advance(self, record: Record) -> bytes | None:
        try:
            if self._script is None:
                self._script = self._run(_expect(Begin, record))
                answer = next(self._script)
            else:
                answer = self._script.send(record)
        except StopIteration as done:
            self.key = done.value
            answer = Active(done.value.key_id)
        except _Failed as failed:
            return self._fail(failed)
        self.answer = self.channel.seal(answer)
        return self.answer

    def _fail(self, failed: _Failed) -> bytes | None:
        self.failure = str(failed)
        self.figures.qber = failed.qber or self.figures.qber
        self.attacked = failed.qber > ATTACK_QBER
        self.light = b""
        if not failed.tell_device:
            return None
        self.answer = self.channel.seal(Aborted(str(failed)[:200], round(failed.qber * 1e6)))
        return self.answer

    # ---- the script

    def _run(self, begin: Begin) -> _Script:
        figures = self.figures
        if begin.sifted_bits not in SIFTED_BITS or not 0 < begin.key_bits <= KEY_BITS_MAX:
            raise _Failed(f"sessions sift {', '.join(map(str, SIFTED_BITS))} bits, for 1 to {KEY_BITS_MAX} bits of key")
        figures.selective, figures.battery_mj = begin.selective, begin.battery_mj
        figures.pulses = pulses_for(self.parameters, begin.sifted_bits)
        frame_bits = frame_bits_for(begin.sifted_bits, begin.selective)
        described, _ = described_code(frame_bits, self.expected_qber)
        self.light = self.transmitter.emit(figures.pulses)
        kem_key = self._offer_kem() if begin.hybrid else b""
        digest = hashlib.sha256(described).digest()
        floor = (self.policy.key_bits_min, self.policy.security_millibits_min)
        detected = _expect(Detected, (yield Prepared(figures.pulses, frame_bits, digest, kem_key, *floor)))
        self.light = b""
        ours, bob_basis, matched = self._sift(detected)
        answer = Sifted(np.packbits(matched, bitorder="little").tobytes(), described if detected.lacks_code else b"")
        kept = np.flatnonzero(matched)[: begin.sifted_bits]
        figures.sifted_bits = kept.size
        checks = yield answer
        if kept.size < begin.sifted_bits:
            raise _Failed(f"{kept.size} sifted bits where {begin.sifted_bits} were wanted")
        keyed = kept[bob_basis[kept] == 0] if begin.selective else kept
        theirs_shown = kept[bob_basis[kept] == 1] if begin.selective else kept[:0]
        first = _expect(Checks, checks)
        shown = _bits(first.revealed, theirs_shown.size)
        errors_x = int(np.count_nonzero(shown != ours[theirs_shown]))
        if begin.selective and errors_x > ATTACK_QBER * shown.size:
            qber = errors_x / shown.size
            raise _Failed(f"QBER {qber:.1%} in the revealed bits", qber=qber)
        corrected, leaked = yield from self._decode(first, ours[keyed], frame_bits, ours[kept])
        errors = corrected != ours[keyed]
        in_z = bob_basis[keyed] == 0
        found = (int(np.count_nonzero(errors & in_z)), int(np.count_nonzero(errors & ~in_z)) or errors_x)
        total_z = int(np.count_nonzero(bob_basis[kept] == 0))
        counts = SiftedCounts((total_z, kept.size - total_z), found, leaked, begin.selective)
        return (yield from self._agree(corrected, counts))

    def _offer_kem(self) -> bytes:
        """Return a fresh public key for this session (S4-8.3)."""
        if self.kem is None:
            raise _Failed("this node has no post-quantum KEM; make keys without --hybrid")
        public, self._decapsulate = self.kem.new_pair()
        return public

    def _shared_secret(self, ciphertext: bytes) -> bytes:
        """Return the KEM's secret; nothing without a hybrid."""
        if self._decapsulate is None:
            return b""
        try:
            return self._decapsulate(ciphertext)
        except ValueError:
            raise _Failed("a ciphertext that the KEM does not open") from None

    def _sift(self, detected: Detected) -> tuple[Bits, Bits, NDArray[np.bool_]]:
        """Return our bits and the device's bases at its clicks, and where the bases agree."""
        try:
            positions = np.array(unpack_positions(detected.positions, self.figures.pulses), dtype=np.uint64)
        except MalformedMessage as error:
            raise _Failed(str(error)) from None
        self.figures.detections = positions.size
        basis = _bits(detected.bases, positions.size)
        choices = self.transmitter.choices(positions)
        return choices.bit, basis, choices.basis == basis

    def _decode(
        self, first: Checks, ours: Bits, frame_bits: int, sifted: Bits
    ) -> Generator[Record, Record, tuple[Bits, int]]:
        """Correct our string to the device's; return it with the parities that this took."""
        if ours.size > frame_bits:
            raise _Failed("more bits in the key's basis than its frame holds")
        padded = np.zeros(frame_bits, dtype=np.uint8)
        padded[: ours.size] = ours
        decoder = make_ldpc("bob", padded, self.expected_qber, device=True)
        checks = first
        while True:
            try:
                reply = decoder.receive(b"\0" + checks.parities)
            except ReconciliationError as error:
                raise _Failed(str(error)) from None
            if reply is None or reply[0] not in (_MORE, _DONE):
                raise (yield from self._measure_failure(sifted))
            if reply[0] == _DONE:
                break
            checks = _expect(Checks, (yield More()))
        outcome = decoder.outcome
        assert outcome is not None and outcome.bits is not None, "a decoder that is done has a string"
        self.figures.leaked_bits = outcome.leaked_bits
        return outcome.bits[: ours.size], outcome.leaked_bits

    def _measure_failure(self, sifted: Bits) -> Generator[Record, Record, _Failed]:
        """Compare the bits of a session that cannot make a key: how wrong are they?"""
        revealed = _expect(Revealed, (yield Reveal()))
        qber = float(np.mean(_bits(revealed.bits, sifted.size) != sifted))
        return _Failed(f"QBER {qber:.1%}: nothing decodes", qber=qber)

    def _agree(self, string: Bits, counts: SiftedCounts) -> _Script:
        length = session_length(counts, self.policy.epsilon)
        self.figures.qber, self.figures.epsilon = counts.qber, self.policy.epsilon
        self.figures.secret_bits = length.bits
        seed = self.entropy.take(16)
        tag = verification_tag(string, seed, tag_bits(string.size, 0.1 * self.policy.epsilon))
        finish = _expect(Finish, (yield Corrected(*counts.errors, seed, tag)))
        if finish.key_bits % 8 or not self.policy.key_bits_min <= finish.key_bits <= length.bits - CONTROL_BITS:
            raise _Failed(f"a key of {finish.key_bits} bits from {length.bits} secret bits against the policy")
        if len(finish.amplification_seed) != (string.size - 1 + 7) // 8 or len(finish.challenge) != CHALLENGE_BYTES:
            raise _Failed("a seed or a challenge of another size")
        hashed = amplify(string, finish.amplification_seed, CONTROL_BITS + finish.key_bits)
        secret = np.packbits(hashed, bitorder="little").tobytes()
        shared = self._shared_secret(finish.kem_ciphertext)
        confirm = derive(secret[: CONTROL_BITS // 8], "confirmation", self.channel.counter.to_bytes(8, "big"), shared)
        challenge = self.entropy.take(CHALLENGE_BYTES)
        proof = _expect(Proof, (yield Response(proof_of(confirm, NODE, finish.challenge), challenge)))
        if not equal(proof.proof, proof_of(confirm, DEVICE, challenge)):
            raise _Failed("the device's answer to the challenge is wrong: it holds another key")
        self.figures.key_bits = finish.key_bits
        channel = self.channel
        return SessionKey.split(
            channel.device_id, channel.counter, secret, CONTROL_BITS // 8, channel.authentication_key, shared
        )


def _bits(data: bytes, count: int) -> Bits:
    if len(data) != (count + 7) // 8:
        raise _Failed(f"{len(data)} bytes where {count} bits are due")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")


def _expect(kind: type[_Expected], got: Record) -> _Expected:
    if isinstance(got, Aborted):
        raise _Failed(f"the device ended the session: {got.reason}", qber=got.qber_ppm / 1e6, tell_device=False)
    if not isinstance(got, kind):
        raise _Failed(f"{type(got).__name__} where {kind.__name__} is due")
    return got
