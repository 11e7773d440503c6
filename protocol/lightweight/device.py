"""The device's side of an L-QKD session (rows S4-A1.7 to S4-A1.17, S4-5.7, S4-5.8): pure, and free of numpy.

The device measures, announces, reveals parities of its string, checks the node's, hashes, and proves that it holds the
key. It drives: `start` and `receive` return the frame to send; `frame` is what to send again when nothing came.
Nothing that a stranger sends ends a session: false frames are counted and dropped.
"""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeVar

from protocol.entropy import Entropy
from protocol.lightweight import arithmetic
from protocol.lightweight.arithmetic import FRAME_BITS_MAX, CodeError, ParityCode
from protocol.lightweight.channel import DEVICE, NODE, Channel, Forged, SessionKey, derive, equal, proof_of
from protocol.lightweight.hybrid import Kem
from protocol.lightweight.length import (
    CHALLENGE_BYTES,
    CONTROL_BITS,
    DevicePolicy,
    SessionLength,
    SiftedCounts,
    session_length,
)
from protocol.lightweight.receiver import PULSES_MAX, Clicks, DeviceReceiver, LightError
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
    pack_positions,
)
from protocol.parameters import ParameterError
from protocol.records import MalformedMessage, Record

_Expected = TypeVar("_Expected", bound=Record)
CODES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What the device asks a session for: bits to sift, whether only a subset makes key, bits of key."""

    sifted_bits: int
    selective: bool
    key_bits: int
    battery_mj: int = 0


@dataclass(slots=True)
class SessionFigures:
    """What a session took, for the energy account and the operator; counts on the device's side."""

    qubits_measured: int = 0
    sifted_bits: int = 0
    reconciled_bits: int = 0
    parity_bits: int = 0
    secret_bits: int = 0
    key_bits: int = 0
    qber: float = 0.0
    epsilon: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    forged: int = 0


class SessionFailed(Exception):
    """The session ends without a key; `tell_node` whether the node must hear of it."""

    def __init__(self, reason: str, *, tell_node: bool = True, qber_ppm: int = 0) -> None:
        super().__init__(reason)
        self.tell_node = tell_node
        self.qber_ppm = qber_ppm


_Step = Record | bytes
_Script = Generator[Record, _Step, SessionKey]


class DeviceSession:
    """One session. When `finished`, either `key` is the new key or `failure` says why there is none."""

    def __init__(
        self,
        channel: Channel,
        policy: DevicePolicy,
        wish: Wish,
        receiver: DeviceReceiver,
        entropy: Entropy,
        codes: dict[bytes, ParityCode],
        kem: Kem | None = None,
        planned: DevicePolicy | None = None,
    ) -> None:
        """`codes`: parity codes by digest, kept over sessions and filled here; `kem`: for hybrid keys.

        `planned`: the floor that `wish` keeps, if that is not the device's own `policy`.
        """
        self._channel = channel
        self._own_policy = policy
        self._planned = planned or policy
        self.policy = policy
        """The floor in force: the device's own until the node has said it."""
        self._wish = wish
        self._receiver = receiver
        self._entropy = entropy
        self._codes = codes
        self._kem = kem
        self._light: bytes | None = None
        self._waiting_light = False
        self.frame = b""
        self.figures = SessionFigures()
        self.key: SessionKey | None = None
        self.failure: str | None = None
        self._script = self._run()

    @property
    def finished(self) -> bool:
        """Whether the session is over."""
        return self.key is not None or self.failure is not None

    @property
    def counter(self) -> int:
        """Which session this is."""
        return self._channel.counter

    def start(self) -> bytes:
        """Return the first frame."""
        return self._sealed(next(self._script))

    def receive(self, frame: bytes) -> bytes | None:
        """Take a frame of the node; return the next frame to send, None when none is due."""
        if self.finished or self._waiting_light:
            return None
        try:
            record = self._channel.open(frame)
        except Forged:
            self.figures.forged += 1
            return None
        except MalformedMessage as error:
            return self._fail(SessionFailed(str(error)))
        self.figures.bytes_received += len(frame)
        return self._advance(record)

    def receive_light(self, light: bytes) -> bytes | None:
        """Take what the quantum channel carried; return the next frame to send, if it was waited for."""
        self._light = light
        return self._advance(light) if self._waiting_light else None

    # ---- the script

    def _run(self) -> _Script:
        wish = self._wish
        prepared = _expect(Prepared, (yield self._begin()))
        if not wish.sifted_bits <= prepared.pulse_count <= PULSES_MAX or not 0 < prepared.frame_bits <= FRAME_BITS_MAX:
            raise SessionFailed("the node's preparation is out of bounds")
        self._take_floor(prepared)
        self._waiting_light = self._light is None
        light = self._light if self._light is not None else (yield prepared)
        self._waiting_light = False
        assert isinstance(light, bytes)
        clicks = self._measure(light)
        code = self._codes.get(prepared.code_digest)
        bases = arithmetic.to_bytes(arithmetic.from_bits(clicks.basis), len(clicks.basis))
        sifted = _expect(Sifted, (yield Detected(pack_positions(clicks.positions), bases, code is None)))
        if code is None:
            code = self._learn(prepared, sifted.code)
        kept = self._sift(clicks, sifted.matched)
        keyed = [i for i in kept if clicks.basis[i] == 0] if wish.selective else kept
        revealed = [i for i in kept if clicks.basis[i] == 1] if wish.selective else []
        key_bits = arithmetic.from_bits(clicks.bit[i] for i in keyed)
        shown = arithmetic.to_bytes(arithmetic.from_bits(clicks.bit[i] for i in revealed), len(revealed))
        if len(keyed) > prepared.frame_bits:
            raise SessionFailed("more bits in the key's basis than its frame holds")
        counts_z = sum(1 for i in kept if clicks.basis[i] == 0)
        self.figures.reconciled_bits = len(keyed)
        corrected = yield from self._reconcile(code, key_bits, shown, kept, clicks)
        counts = SiftedCounts(
            (counts_z, len(kept) - counts_z),
            (corrected.errors_z, corrected.errors_x),
            self.figures.parity_bits,
            wish.selective,
        )
        length = self._length(counts)
        seed, tag = corrected.verification_seed, corrected.verification_tag
        if len(seed) != 16 or not equal(
            arithmetic.verification_tag(key_bits, len(keyed), seed, length.tag_bits).ljust(16), tag.ljust(16)
        ):
            raise SessionFailed("the strings differ after correction: the session is discarded")
        shared, ciphertext = self._encapsulate(prepared.kem_key)
        return (yield from self._agree(key_bits, len(keyed), length, shared, ciphertext))

    def _take_floor(self, prepared: Prepared) -> None:
        """Obey the floor in force, which is never below our own; end before a qubit is spent on too little."""
        try:
            self.policy = self._own_policy.raised(prepared.key_bits_min, prepared.security_millibits_min)
        except ParameterError as error:
            raise SessionFailed(f"no session keeps the floor that the node names: {error}") from None
        if not self._planned.covers(self.policy):
            raise SessionFailed(
                f"the floor is {self.policy.key_bits_min} bits at ε = {self.policy.epsilon:.0e} now: this was for less"
            )

    def _begin(self) -> Begin:
        wish = self._wish
        battery = max(0, wish.battery_mj)
        return Begin(wish.sifted_bits, wish.selective, wish.key_bits, battery, self._kem is not None)

    def _encapsulate(self, kem_key: bytes) -> tuple[bytes, bytes]:
        """Return the shared secret of a hybrid and its ciphertext; nothing of either without."""
        if self._kem is None:
            return b"", b""
        try:
            return self._kem.encapsulate(kem_key)
        except ValueError:
            raise SessionFailed("the node's key for the KEM is none") from None

    def _measure(self, light: bytes) -> Clicks:
        try:
            clicks = self._receiver.measure(light)
        except LightError as error:
            raise SessionFailed(str(error)) from None
        self.figures.qubits_measured = len(clicks.positions)
        return clicks

    def _learn(self, prepared: Prepared, described: bytes) -> ParityCode:
        if hashlib.sha256(described).digest() != prepared.code_digest:
            raise SessionFailed("the parity code is not the one that was announced")
        try:
            code = ParityCode.unpack(described, prepared.frame_bits)
        except CodeError as error:
            raise SessionFailed(str(error)) from None
        while len(self._codes) >= CODES_MAX:
            self._codes.pop(next(iter(self._codes)))
        self._codes[prepared.code_digest] = code
        return code

    def _sift(self, clicks: Clicks, matched: bytes) -> list[int]:
        """Return the clicks that are kept: the first `sifted_bits` where the bases were the same."""
        count = len(clicks.positions)
        if len(matched) != (count + 7) // 8:
            raise SessionFailed("the node's answer is about other clicks")
        kept = [i for i in range(count) if matched[i >> 3] >> (i & 7) & 1][: self._wish.sifted_bits]
        self.figures.sifted_bits = len(kept)
        if len(kept) < self._wish.sifted_bits:
            raise SessionFailed(f"{len(kept)} sifted bits where {self._wish.sifted_bits} were wanted")
        return kept

    def _reconcile(
        self, code: ParityCode, key_bits: int, shown: bytes, kept: list[int], clicks: Clicks
    ) -> Generator[Record, _Step, Corrected]:
        """Give parities until the node has decoded, or the code has no more."""
        first, last = 0, code.base_rows
        while True:
            parities = code.checks(key_bits, first, last)
            size = (last - first) * code.z
            self.figures.parity_bits += size
            answer = yield Checks(arithmetic.to_bytes(parities, size), shown)
            if isinstance(answer, Corrected):
                return answer
            if isinstance(answer, Reveal):
                bits = arithmetic.to_bytes(arithmetic.from_bits(clicks.bit[i] for i in kept), len(kept))
                answer = yield Revealed(bits)
            _expect(More, answer)
            shown, first, last = b"", last, last + 1
            if last > len(code.rows):
                raise SessionFailed("the node asks for parities that the code does not have")

    def _length(self, counts: SiftedCounts) -> SessionLength:
        """Compute the length; refuse a session that would go below the floor of the policy."""
        if any(e > n for e, n in zip(counts.errors, counts.bits, strict=True)):
            raise SessionFailed("more errors than bits")
        length = session_length(counts, self.policy.epsilon)
        self.figures.qber, self.figures.epsilon = counts.qber, self.policy.epsilon
        self.figures.secret_bits = length.bits
        floor = CONTROL_BITS + self.policy.key_bits_min
        if length.bits < floor:
            reason = length.reason or f"{length.bits} secret bits; the policy needs {floor}"
            raise SessionFailed(reason, qber_ppm=round(counts.qber * 1e6))
        return length

    def _agree(
        self, bits: int, size_bits: int, length: SessionLength, shared: bytes, ciphertext: bytes
    ) -> Generator[Record, _Step, SessionKey]:
        """Hash, challenge the node, answer its challenge, and wait until it has stored the key."""
        wanted = max(self.policy.key_bits_min, self._wish.key_bits)
        key_bits = min(wanted, length.bits - CONTROL_BITS) // 8 * 8
        output = CONTROL_BITS + key_bits
        seed = self._entropy.take((size_bits - 1 + 7) // 8)
        secret = arithmetic.to_bytes(arithmetic.amplify(bits, size_bits, seed, output), output)
        confirm = derive(secret[: CONTROL_BITS // 8], "confirmation", self._channel.counter.to_bytes(8, "big"), shared)
        challenge = self._entropy.take(CHALLENGE_BYTES)
        response = _expect(Response, (yield Finish(seed, key_bits, challenge, ciphertext)))
        if not equal(response.proof, proof_of(confirm, NODE, challenge)):
            raise SessionFailed("the node's answer to the challenge is wrong: it holds another key")
        key = SessionKey.split(
            *(self._channel.device_id, self._channel.counter, secret, CONTROL_BITS // 8),
            self._channel.authentication_key,
            shared,
        )
        active = _expect(Active, (yield Proof(proof_of(confirm, DEVICE, response.challenge))))
        if active.key_id != key.key_id:
            raise SessionFailed("the node activated another key")
        self.figures.key_bits = key_bits
        return key

    # ---- running it

    def _advance(self, value: _Step) -> bytes | None:
        try:
            record = self._script.send(value)
        except StopIteration as done:
            self.key = done.value
            return None
        except SessionFailed as failed:
            return self._fail(failed)
        return None if self._waiting_light else self._sealed(record)

    def _fail(self, failed: SessionFailed) -> bytes | None:
        self.failure = str(failed)
        return self._sealed(Aborted(str(failed)[:200], failed.qber_ppm)) if failed.tell_node else None

    def _sealed(self, record: Record) -> bytes:
        self.frame = self._channel.seal(record)
        self.figures.bytes_sent += len(self.frame)
        return self.frame


def _expect(kind: type[_Expected], got: _Step) -> _Expected:
    if isinstance(got, Aborted):
        raise SessionFailed(f"the node ended the session: {got.reason}", tell_node=False, qber_ppm=got.qber_ppm)
    if not isinstance(got, kind):
        raise SessionFailed(f"{type(got).__name__} where {kind.__name__} is due")
    return got
