"""The whole of distillation, both sides in one process: the worked example of a session, and the bench.

A network session drives the same steps one by one with messages between them; nothing here is a shortcut: each side
does its own work, and only what a message would carry passes between them. S0-E6, SPEC §1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from protocol.distill.amplification import amplification_seed_bits, amplify
from protocol.distill.estimation import choose_sample, default_sample_bits, errors_between, estimate_qber, split_sample
from protocol.distill.key_length import KeyLength, SecurityParameters, secret_key_length
from protocol.distill.reconciliation import Outcome, make_party, run_pair
from protocol.distill.verification import (
    SEED_SIZE_BYTES,
    collision_bound,
    tag_bits_for,
    tags_agree,
    verification_tag,
)
from protocol.entropy import Entropy

Bits = NDArray[np.uint8]

SEED_BYTES = 16


@dataclass(frozen=True, slots=True)
class DistilledBlock:
    """The result: both secret keys (equal unless verification failed unnoticed), or the `reason` why there is none."""

    alice_key: Bits | None = field(repr=False)
    bob_key: Bits | None = field(repr=False)
    qber: float
    sample_bits: int
    reconciliation: Outcome | None
    length: KeyLength | None
    reason: str | None = None


def _no_stage(_: str) -> None:
    """Nobody is measuring."""


def distill_block(
    alice: Bits,
    bob: Bits,
    security: SecurityParameters,
    public_randomness: Entropy,
    *,
    method: str = "cascade",
    sample_bits: int | None = None,
    on_stage: Callable[[str], None] = _no_stage,
    **options: object,
) -> DistilledBlock:
    """Distil two sifted strings of equal length; `on_stage(name)` is called as each stage ends.

    The block is mixed: bases were chosen uniformly and independently of the sample, so that a random sample bounds the
    phase errors of the rest. Expected failures are results with a reason, not exceptions.
    """
    revealed = default_sample_bits(alice.size) if sample_bits is None else sample_bits
    sample = choose_sample(alice.size, revealed, seed := public_randomness.take(SEED_BYTES))
    kept_alice, sample_alice = split_sample(alice, sample)
    kept_bob, sample_bob = split_sample(bob, choose_sample(bob.size, revealed, seed))
    errors = errors_between(sample_alice, sample_bob)
    estimate = estimate_qber(errors, revealed, kept_alice.size, security.epsilon_secrecy / 4)
    on_stage("estimation")
    if estimate.upper_bound >= 0.5:
        reason = "the sample allows phase errors up to one half: nothing can be secret"
        return DistilledBlock(None, None, estimate.rate, revealed, None, None, reason)
    driver = _Driver(security, public_randomness, method, options, on_stage)
    agreement = driver.agree(kept_alice, kept_bob, estimate.rate)
    return driver.shrink(agreement, errors, revealed)


def distill_two_bases(
    first: tuple[Bits, Bits],
    second: tuple[Bits, Bits],
    expected_qber: float,
    security: SecurityParameters,
    public_randomness: Entropy,
    *,
    method: str = "cascade",
    **options: object,
) -> tuple[DistilledBlock, DistilledBlock]:
    """Distil the (Alice, Bob) strings of both bases without revealing a sample (SPEC §4.2).

    The corrections in one basis, confirmed by verification, are the sample for the phase errors of the other; so if
    either block fails, neither gives a key. `expected_qber` tunes reconciliation only. The ε's of the two keys add.
    """
    driver = _Driver(security, public_randomness, method, options, _no_stage)
    agreements = [driver.agree(alice, bob, expected_qber) for alice, bob in (first, second)]
    if failed := next((a for a in agreements if a.reason), None):
        reason = f"without the other basis there is no sample: {failed.reason}"
        agreements = [a if a.reason else replace(a, reason=reason) for a in agreements]
    errors = [
        errors_between(bob, a.bob) if a.bob is not None else 0
        for (_, bob), a in zip((first, second), agreements, strict=True)
    ]
    return (
        driver.shrink(agreements[0], errors[1], second[0].size),
        driver.shrink(agreements[1], errors[0], first[0].size),
    )


@dataclass(frozen=True, slots=True)
class _Agreement:
    """Verified strings of both sides with what they cost, or a reason."""

    alice: Bits | None = field(repr=False)
    bob: Bits | None = field(repr=False)
    outcome: Outcome
    tag_bits: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Driver:
    """The steps that every block takes."""

    security: SecurityParameters
    public_randomness: Entropy
    method: str
    options: dict[str, object]
    on_stage: Callable[[str], None]

    def agree(self, alice: Bits, bob: Bits, qber: float) -> _Agreement:
        """Reconcile and verify."""
        seed = self.public_randomness.take(SEED_BYTES)
        ours, theirs = run_pair(
            make_party(self.method, "alice", alice, qber, seed, **self.options),
            make_party(self.method, "bob", bob, qber, seed, **self.options),
        )
        self.on_stage("reconciliation")
        if ours.bits is None or theirs.bits is None:
            return _Agreement(None, None, theirs, 0, ours.reason or theirs.reason or "reconciliation failed")
        tag_bits = tag_bits_for(alice.size, self.security.epsilon_correctness)
        seed = self.public_randomness.take(SEED_SIZE_BYTES)
        agree = tags_agree(verification_tag(ours.bits, seed, tag_bits), verification_tag(theirs.bits, seed, tag_bits))
        self.on_stage("verification")
        if not agree:
            reason = "the tags differ: errors remain after reconciliation, the block is discarded"
            return _Agreement(None, None, theirs, tag_bits, reason)
        return _Agreement(ours.bits, theirs.bits, theirs, tag_bits)

    def shrink(self, agreement: _Agreement, errors: int, sample_bits: int) -> DistilledBlock:
        """Compute the length from `errors` in the sample, and hash both sides' strings to it."""
        rate = errors / sample_bits if sample_bits else 0.0
        outcome = agreement.outcome
        if agreement.reason or agreement.alice is None or agreement.bob is None:
            return DistilledBlock(None, None, rate, sample_bits, outcome, None, agreement.reason)
        size = agreement.alice.size
        collision = collision_bound(size, agreement.tag_bits)
        length = secret_key_length(
            size,
            sample_bits,
            errors,
            outcome.leaked_bits,
            agreement.tag_bits,
            self.security,
            tag_collision=collision,
        )
        if length.bits == 0:
            return DistilledBlock(None, None, rate, sample_bits, outcome, length, length.reason)
        seed = self.public_randomness.take((amplification_seed_bits(size, length.bits) + 7) // 8)
        alice_key, bob_key = (amplify(bits, seed, length.bits) for bits in (agreement.alice, agreement.bob))
        self.on_stage("amplification")
        return DistilledBlock(alice_key, bob_key, rate, sample_bits, outcome, length)
