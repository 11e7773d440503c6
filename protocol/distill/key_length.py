"""How many secret bits a block holds: a finite-key bound with every cost subtracted (S0-E6, S4-5.8).

Decides the length, nothing else; it holds no bits. The bound is that of Tomamichel, Lim, Gisin, Renner, "Tight
finite-key analysis for quantum cryptography", Nature Communications 3, 634 (2012), for single photons; weak pulses
with decoys have their own (`decoy`) and return the same record. Implements SPEC §8, where the argument is written out.
"""

import math
from dataclasses import dataclass, field

from protocol.distill.estimation import serfling_deviation
from protocol.parameters import require, require_range

PROOF = "Tomamichel et al. 2012 (single photons, entropic uncertainty, Serfling sampling)"


@dataclass(frozen=True, slots=True)
class SecurityParameters:
    """What the link promises per block. ε's are probabilities of failure, so small ones promise more.

    `epsilon_secrecy` bounds the distance from an ideal secret key, `epsilon_correctness` the probability that the
    two keys differ unnoticed. `preparation_quality_bits` is q of the source: 1 for exactly conjugate bases, less by
    its measured overlap. The default 10⁻¹⁰ per block is the field's habit: 300 years of one block per second.
    """

    epsilon_secrecy: float = 1e-10
    epsilon_correctness: float = 1e-15
    preparation_quality_bits: float = 1.0

    def __post_init__(self) -> None:
        require_range("epsilon_secrecy", self.epsilon_secrecy, 1e-40, 1e-2)
        require_range("epsilon_correctness", self.epsilon_correctness, 1e-36, 1e-2)
        require_range("preparation_quality_bits", self.preparation_quality_bits, 0.0, 1.0)

    @property
    def epsilon_total(self) -> float:
        """Composable security parameter of one block's key."""
        return self.epsilon_secrecy + self.epsilon_correctness


@dataclass(frozen=True, slots=True)
class KeyLength:
    """A length with the promise it rests on. `terms_bits` sums to `bits` before rounding down; `reason` if no key."""

    bits: int
    epsilon_total: float
    proof: str
    terms_bits: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


def binary_entropy(probability: float) -> float:
    """Return h(p) in bits; h(0) = h(1) = 0."""
    if probability <= 0.0 or probability >= 1.0:
        return 0.0
    return -probability * math.log2(probability) - (1 - probability) * math.log2(1 - probability)


def secret_key_length(
    key_bits: int,
    sample_bits: int,
    sample_errors: int,
    leaked_bits: int,
    tag_bits: int,
    security: SecurityParameters,
    *,
    tag_collision: float | None = None,
) -> KeyLength:
    """Return ℓ = n (q - h(Q + µ)) - leak - tag - log₂(2/ε²) - log₂(classes), or 0 bits with a reason.

    `key_bits` n were reconciled; `sample_errors` of `sample_bits` k were seen in the conjugate basis (or in a random
    sample of a symmetrised block) and give Q; `leaked_bits` is what reconciliation announced, `tag_bits` what
    verification did. `tag_collision` is the collision probability of the tag and must not exceed
    ε_correctness (default: 2^-tag_bits, for a tag from a strictly universal family).

    Q and the leak are those observed, not tolerances fixed before: the last term pays for that, log₂ of the number of
    outcomes (k + 1)(leak + 1), by the sum over disjoint outcomes (SPEC §8.4). Raises ParameterError on counts that
    contradict each other.
    """
    require(min(key_bits, sample_bits, sample_errors, leaked_bits, tag_bits) >= 0, "counts of bits are not negative")
    require(sample_errors <= sample_bits, f"{sample_errors} errors among {sample_bits} sampled bits")
    collision = 2.0**-tag_bits if tag_collision is None else tag_collision
    if collision > security.epsilon_correctness:
        return _none(security, f"a tag that collides with probability {collision:.1e} is too weak for the block")
    if key_bits == 0 or sample_bits == 0:
        return _none(security, "no bits to distil" if key_bits == 0 else "no sample to bound the phase errors with")
    phase_error = sample_errors / sample_bits + serfling_deviation(key_bits, sample_bits, security.epsilon_secrecy / 4)
    terms = {
        "entropy": key_bits * (security.preparation_quality_bits - binary_entropy(min(0.5, phase_error))),
        "reconciliation": -float(leaked_bits),
        "verification": -float(tag_bits),
        "secrecy": -math.log2(2 / security.epsilon_secrecy**2),
        "variable_length": -math.log2((sample_bits + 1) * (leaked_bits + 1)),
    }
    length = math.floor(sum(terms.values()))
    if length <= 0:
        return _none(security, _why_no_key(phase_error, terms), terms)
    return KeyLength(length, security.epsilon_total, PROOF, terms)


def _none(security: SecurityParameters, reason: str, terms: dict[str, float] | None = None) -> KeyLength:
    return KeyLength(0, security.epsilon_total, PROOF, terms or {}, reason)


def _why_no_key(phase_error: float, terms: dict[str, float]) -> str:
    if phase_error >= 0.5 or terms["entropy"] <= 0:
        return (
            f"the phase error may be {min(phase_error, 0.5):.1%}: nothing is secret; use longer blocks or a better link"
        )
    costs = -sum(value for name, value in terms.items() if name != "entropy")
    entropy = terms["entropy"]
    return f"the costs, {costs:.0f} bits, exceed the entropy, {entropy:.0f} bits: use longer blocks or a better link"
