"""The whole of distillation for one mixed block, both sides in one process: the worked example and the bench.

A network session drives the same steps one by one with messages between them; nothing here is a shortcut: each side
does its own work, and only what a message would carry passes between them. S0-E6, SPEC §1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

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

    The block is symmetrised (basis choices are uniform and independent of the sample), so that a random sample bounds
    the phase errors of the rest. Expected failures are results with a reason, not exceptions.
    """
    revealed = default_sample_bits(alice.size) if sample_bits is None else sample_bits
    seed = public_randomness.take(SEED_BYTES)
    kept_alice, sample_alice = split_sample(alice, choose_sample(alice.size, revealed, seed))
    kept_bob, sample_bob = split_sample(bob, choose_sample(bob.size, revealed, seed))
    errors = errors_between(sample_alice, sample_bob)
    estimate = estimate_qber(errors, revealed, kept_alice.size, security.epsilon_secrecy / 4)
    on_stage("estimation")

    def ended(reason: str, outcome: Outcome | None = None, length: KeyLength | None = None) -> DistilledBlock:
        return DistilledBlock(None, None, estimate.rate, revealed, outcome, length, reason)

    if estimate.upper_bound >= 0.5:
        return ended("the sample allows phase errors up to one half: nothing can be secret")
    seed = public_randomness.take(SEED_BYTES)
    ours, theirs = run_pair(
        make_party(method, "alice", kept_alice, estimate.rate, seed, **options),
        make_party(method, "bob", kept_bob, estimate.rate, seed, **options),
    )
    on_stage("reconciliation")
    if ours.bits is None or theirs.bits is None:
        return ended(ours.reason or theirs.reason or "reconciliation failed", theirs)
    tag_bits = tag_bits_for(kept_alice.size, security.epsilon_correctness)
    seed = public_randomness.take(SEED_SIZE_BYTES)
    agree = tags_agree(verification_tag(ours.bits, seed, tag_bits), verification_tag(theirs.bits, seed, tag_bits))
    on_stage("verification")
    if not agree:
        return ended("the tags differ: errors remain after reconciliation, the block is discarded", theirs)
    length = secret_key_length(
        kept_alice.size,
        revealed,
        errors,
        ours.leaked_bits,
        tag_bits,
        security,
        tag_collision=collision_bound(kept_alice.size, tag_bits),
    )
    if length.bits == 0:
        return ended(length.reason or "no key", theirs, length)
    seed = public_randomness.take((amplification_seed_bits(kept_alice.size, length.bits) + 7) // 8)
    alice_key = amplify(ours.bits, seed, length.bits)
    bob_key = amplify(theirs.bits, seed, length.bits)
    on_stage("amplification")
    return DistilledBlock(alice_key, bob_key, estimate.rate, revealed, theirs, length)
