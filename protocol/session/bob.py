"""The receiver's side of a session (SPEC part 1; rows S0-E1, S0-E12, S0-E16)."""

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from protocol.assessment import Assessment, BlockSuspect, Sifting, assess, sift_block
from protocol.authentication import PAD_BYTES, Authenticator
from protocol.distill.amplification import amplification_seed_bits
from protocol.distill.reconciliation import Outcome
from protocol.distill.verification import SEED_SIZE_BYTES, tags_agree, verification_tag
from protocol.messages import (
    Accept,
    Detected,
    Finish,
    Open,
    Reconciled,
    Sifted,
    Signed,
    Tested,
    pack_bits,
    pack_positions,
    unpack_bits,
)
from protocol.quantum.link import LinkParameters, Receiver
from protocol.session.steps import (
    COMMITMENT_BYTES,
    KEY_BYTES_MIN,
    POSITIONS_BYTES_MAX,
    BlockDistilled,
    DistillingSession,
    Failed,
    Input,
    Light,
    Output,
    Script,
    SendMessage,
    SessionParameters,
    amplified,
    expect,
    require_detections,
    split_secret,
)


class BobSession(DistillingSession):
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
        return self._feed(Light(chunk, last))

    def sign_off(self, signature: bytes) -> list[Output]:
        """The block is stored and signed here: tell Alice."""
        return self._feed(signature)

    def _scripted(self) -> Script:
        opening = expect(Open, (yield []))
        if opening.parameters_digest != self._parameters.digest(self._link):
            raise Failed("the two ends configure this link differently: make [link.*] alike at both nodes")
        if not 0 < opening.pulse_count <= self._pulse_count_max:
            raise Failed(f"{opening.pulse_count} pulses; this end takes at most {self._pulse_count_max} per block")
        bases, bits, record = yield from self._measure([self._message(Accept())])
        sifted = expect(Sifted, record)
        sifting, peer_bits = self._sift(sifted, bases, bits)
        tested = self._message(Tested(pack_bits(sifting.own_test_bits)))
        try:
            assessment = assess(sifting, peer_bits, opening.pulse_count, self._link, self._parameters.watch)
        except BlockSuspect as suspect:
            # Alice gets the bits all the same: she computes the same from them.
            raise Failed(suspect.reason, suspect.qber_ppm, attacked=suspect.attacked, unsent=(tested,)) from None
        party = self._party("bob", sifting.key_bits, assessment.qber, self._session_id)
        outcome, _, outputs = yield from self._reconcile(party, party.start(), [tested])
        if outcome is None or outcome.failed:
            reason = f"reconciliation failed: {outcome.reason if outcome else 'the peer broke off'}"
            raise Failed(reason, unsent=tuple(each for each in outputs if isinstance(each, SendMessage)))
        corrected = outcome.corrected_errors if outcome.corrected_errors is not None else 0
        done = self._message(Reconciled(corrected, outcome.leaked_bits))
        finish = expect(Finish, (yield [*outputs, done]))
        return (yield from self._finish(opening, sifting, assessment, outcome, finish))

    def _measure(self, outputs: list[Output]) -> "_Measuring":
        """Detect chunk by chunk, report the clicks, and return them with Alice's answer."""
        positions, bases, bits = [], [], []
        last = False
        while not last:
            light = yield outputs
            if not isinstance(light, Light):
                raise Failed("a message came before the light had ended")
            detections = self._receiver.measure(light.chunk)
            if self._receiver.photocurrent:
                raise Failed("bright light drives the detectors: blinding is likely", attacked=True)
            positions.append(detections.positions)
            bases.append(detections.basis)
            bits.append(detections.bit)
            last, outputs = light.last, []
        where, basis, bit = np.concatenate(positions), np.concatenate(bases), np.concatenate(bits)
        require_detections(len(where))
        packed = pack_positions(where)
        if len(packed) > POSITIONS_BYTES_MAX:
            raise Failed("the clicks lie too far apart for one message: use fewer pulses per block (block_pulses)")
        record = yield [self._message(Detected(len(where), packed, pack_bits(basis)))]
        return basis, bit, record

    def _sift(
        self, sifted: Sifted, bases: NDArray[np.uint8], bits: NDArray[np.uint8]
    ) -> tuple[Sifting, NDArray[np.uint8]]:
        levels = len(self._link.source.intensities)
        intensities = np.frombuffer(sifted.intensities, np.uint8) if levels > 1 else np.zeros(len(bits), np.uint8)
        if len(intensities) != len(bits) or (len(bits) and int(intensities.max()) >= levels):
            raise Failed("the announced intensities do not fit the clicks")
        sifting = sift_block(bits, unpack_bits(sifted.bases, len(bits)), bases, intensities)
        return sifting, unpack_bits(sifted.test_bits, len(sifting.own_test_bits))

    def _finish(
        self, opening: Open, sifting: Sifting, assessment: Assessment, outcome: Outcome, finish: Finish
    ) -> Script:
        reconciled = outcome.bits
        assert reconciled is not None, "a failed reconciliation never comes here"
        if len(finish.verification_seed) != SEED_SIZE_BYTES:
            raise Failed("the verification seed has another length")
        tag = verification_tag(reconciled, finish.verification_seed, self._tag_bits(len(reconciled)))
        if not tags_agree(tag, finish.verification_tag):
            raise Failed("verification failed: the reconciled strings differ", assessment.qber_ppm)
        length = self._length(assessment, len(sifting.key_bits), outcome.leaked_bits)
        taken = COMMITMENT_BYTES + 2 * finish.refill_bytes + KEY_BYTES_MIN
        if not 8 * taken <= finish.secret_bits <= length.bits:
            raise Failed(f"the peer wants {finish.secret_bits} secret bits; the bound gives {length.bits}")
        seed_bits = amplification_seed_bits(len(reconciled), finish.secret_bits)
        if len(finish.amplification_seed) != (seed_bits + 7) // 8:
            raise Failed("the amplification seed has another length")
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
        block = split_secret(amplified(reconciled, finish), finish.refill_bytes, numbers, finish.expiry_height)
        signature = yield [BlockDistilled(block)]
        if not isinstance(signature, bytes):
            raise Failed("a message came before the block was signed")
        return [self._message(Signed(signature))]


_Measuring = Generator[list[Output], Input, tuple[NDArray[np.uint8], NDArray[np.uint8], Input]]
