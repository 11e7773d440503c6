"""The transmitter's side of a session (SPEC part 1; rows S0-E1, S0-E12, S0-E16)."""

from typing import Final

from protocol.assessment import Assessment, BlockSuspect, Sifting, assess, sift_block
from protocol.authentication import PAD_BYTES, Authenticator
from protocol.distill.amplification import amplification_seed_bits
from protocol.distill.reconciliation import Outcome
from protocol.distill.verification import SEED_SIZE_BYTES, verification_tag
from protocol.entropy import Entropy
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
    unpack_bits,
    unpack_positions,
)
from protocol.quantum.entanglement import ChshEstimate
from protocol.quantum.link import Choices, LinkParameters, Transmitter
from protocol.session.steps import (
    COMMITMENT_BYTES,
    INCOMING_PHOTONS_MAX,
    KEY_BYTES_MIN,
    PROBED,
    BlockDistilled,
    DistillingSession,
    Failed,
    Output,
    PeerSigned,
    Script,
    SendLight,
    SendMessage,
    SessionParameters,
    amplified,
    expect,
    require_detections,
    split_secret,
)

CHSH_PAIRS: Final = 20_000
"""Pairs sacrificed per block for the CHSH value: a standard error of 0.02 tells 2.1 from the classical bound."""


class AliceSession(DistillingSession):
    """The transmitter's side.

    `top_up_bytes`: what each authentication stream should gain beyond this block's use. `probe`: measure the error
    rate and stop there, because no key is wanted now but an eavesdropper should still be noticed. `chsh` is the block's
    CHSH value on a link of entangled pairs (E91's check), None elsewhere.
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
        self.chsh: ChshEstimate | None = None

    def start(self) -> list[Output]:
        """Open the session."""
        return self._feed(None)

    def _scripted(self) -> Script:
        digest = self._parameters.digest(self._link)
        opening = Open(self._pulse_count, self._parameters.method, digest)
        expect(Accept, (yield [self._message(opening)]))
        light = SendLight(self._transmitter.emit_chunks(self._pulse_count))
        detected = expect(Detected, (yield [light]))
        if self._transmitter.incoming_photons_per_pulse > INCOMING_PHOTONS_MAX:
            raise Failed("light enters the source from outside: a Trojan-horse probe is likely", attacked=True)
        if self._transmitter.is_entangled:
            self.chsh = self._transmitter.chsh(CHSH_PAIRS)
            if not self.chsh.violates():
                reason = (
                    f"the pairs are not entangled: CHSH value {self.chsh.value:.3f} ± {self.chsh.standard_error:.3f}"
                )
                raise Failed(reason, attacked=True)
        sifting, answer = self._sift(detected)
        tested = expect(Tested, (yield [answer]))
        peer_bits = unpack_bits(tested.test_bits, len(sifting.own_test_bits))
        try:
            assessment = assess(sifting, peer_bits, self._pulse_count, self._link, self._parameters.watch)
        except BlockSuspect as suspect:
            raise Failed(suspect.reason, suspect.qber_ppm, attacked=suspect.attacked) from None
        if self._probe:
            raise Failed(PROBED, assessment.qber_ppm)
        party = self._party("alice", sifting.key_bits, assessment.qber, self._session_id)
        outcome, record, outputs = yield from self._reconcile(party, party.start(), [])
        if record is None:
            record = yield outputs
        return (yield from self._finish(sifting, assessment, outcome, expect(Reconciled, record)))

    def _sift(self, detected: Detected) -> tuple[Sifting, SendMessage]:
        require_detections(detected.count)
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
    ) -> Script:
        if outcome is None or outcome.failed:
            raise Failed(f"reconciliation failed: {outcome.reason if outcome else 'the peer broke off'}")
        if claimed.corrected_errors > len(sifting.key_bits) or claimed.leaked_bits != outcome.leaked_bits:
            raise Failed("the two ends count the leaked bits or the corrections differently")
        leaked_bits = outcome.leaked_bits
        length = self._length(assessment, len(sifting.key_bits), leaked_bits)
        sent = self.authenticator.send_used_bytes + PAD_BYTES
        received = self.authenticator.receive_used_bytes + PAD_BYTES
        refill = max(sent, received) + self._top_up_bytes
        spare = length.bits // 8 - COMMITMENT_BYTES - KEY_BYTES_MIN
        if spare < 2 * max(sent, received):
            raise Failed(
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
        secret = amplified(sifting.key_bits, finish)
        block = split_secret(secret, finish.refill_bytes, numbers, self._expiry_height)
        signed = expect(Signed, (yield [message, BlockDistilled(block)]))
        return [PeerSigned(signed.signature)]
