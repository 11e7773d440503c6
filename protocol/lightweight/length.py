"""How many secret bits a short session holds: both bases, one exact sampling bound, every cost (rows S4-5.8, S4-6.2).

Blocks of a few thousand bits need a bound without slack: the errors that were not seen follow the hypergeometric law
exactly (Lim, Xu, Pan, Ekert, Physical Review Letters 126, 100501 (2021), use it the same way) where Serfling's
inequality ignores how rare errors are. `docs/devices.md` writes the argument out. Pure floating point on both sides:
both ends compute the length and a session ends unless they agree.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from protocol.parameters import require, require_range

PROOF: Final = "entropic uncertainty, hypergeometric sampling"
CONTROL_BITS: Final = 128
"""Output bits that confirm the key and renew the authentication key; delivered to nobody."""
KEY_BITS_MIN: Final = 128
"""No policy may set a lower floor: below it a key is no AES key."""
KEY_BITS_MAX: Final = 4096
CHALLENGE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """The floor that the chain records for a device: no session goes below it, whatever the battery says (S4-6.1).

    `key_bits_min`: shortest key K_final. `security_millibits_min`: floor(-1000·log2 ε) that every key must keep;
    33,219 is ε = 10⁻¹⁰.
    """

    key_bits_min: int = 256
    security_millibits_min: int = 33_219

    def __post_init__(self) -> None:
        require_range("key_bits_min", self.key_bits_min, KEY_BITS_MIN, KEY_BITS_MAX, "bits")
        require_range("security_millibits_min", self.security_millibits_min, 13_000, 120_000, "millibits")
        require(self.key_bits_min % 8 == 0, "key_bits_min must be a multiple of 8")

    def raised(self, key_bits_min: int, security_millibits_min: int) -> "DevicePolicy":
        """Return the stricter of this floor and another in both respects. Raises ParameterError beyond any session."""
        return DevicePolicy(
            max(self.key_bits_min, -(-key_bits_min // 8) * 8),
            max(self.security_millibits_min, security_millibits_min),
        )

    def covers(self, other: "DevicePolicy") -> bool:
        """Say whether what keeps this floor keeps the other."""
        return self.key_bits_min >= other.key_bits_min and self.security_millibits_min >= other.security_millibits_min

    @property
    def epsilon(self) -> float:
        """The largest ε that the policy allows for one key: secrecy and correctness together."""
        return float(2.0 ** (-self.security_millibits_min / 1000))


@dataclass(frozen=True, slots=True)
class SiftedCounts:
    """What both ends know of a session: bits and errors by basis (Z, X), and what was said in public.

    `selective`: only the Z bits make key, the X bits are the redundancy that was revealed (S4-6.2).
    """

    bits: tuple[int, int]
    errors: tuple[int, int]
    leaked_bits: int
    selective: bool = False

    @property
    def key_bits(self) -> int:
        """Length of the reconciled string."""
        return self.bits[0] if self.selective else self.bits[0] + self.bits[1]

    @property
    def qber(self) -> float:
        """Error rate of everything sifted that was counted."""
        total = self.bits[1] if self.selective else sum(self.bits)
        return (self.errors[1] if self.selective else sum(self.errors)) / total if total else 0.5


@dataclass(frozen=True, slots=True)
class SessionLength:
    """The secret bits, and the terms that sum to them; `reason` when there are none."""

    bits: int
    epsilon: float
    tag_bits: int
    terms_bits: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


def tag_bits(size_bits: int, epsilon: float) -> int:
    """Return the shortest verification tag, in whole bytes, that collides with probability at most `epsilon`."""
    degree = -(-size_bits // 120) + 1
    return next(t for t in range(8, 121, 8) if degree * 4 * (2.0 ** (127 - t) + 1) / 2.0**127 <= epsilon)


@lru_cache(maxsize=256)
def errors_bound(unseen_bits: int, sample_bits: int, sample_errors: int, probability: float) -> int:
    """Return the least e such that more than e errors among the unseen have at most `probability` to go with the seen.

    The sample is a uniform subset of all. For a total of K errors, P[at most s in the sample] is the hypergeometric
    distribution function; it falls with K, so the bound is found by bisection.
    """
    low, high = 0, unseen_bits
    while low < high:
        middle = (low + high) // 2
        if _at_most(unseen_bits, sample_bits, sample_errors, sample_errors + middle + 1) <= probability:
            high = middle
        else:
            low = middle + 1
    return low


def _at_most(unseen_bits: int, sample_bits: int, seen: int, total_errors: int) -> float:
    """Return P[at most `seen` of `total_errors` fall into the sample]."""
    size = unseen_bits + sample_bits
    norm = _log_choose(size, total_errors)
    first = max(0, total_errors - unseen_bits)
    return sum(
        math.exp(_log_choose(sample_bits, k) + _log_choose(unseen_bits, total_errors - k) - norm)
        for k in range(first, min(seen, sample_bits, total_errors) + 1)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _entropy(rate: float) -> float:
    if rate <= 0.0:
        return 0.0
    return 1.0 if rate >= 0.5 else -rate * math.log2(rate) - (1 - rate) * math.log2(1 - rate)


def session_length(counts: SiftedCounts, epsilon: float) -> SessionLength:
    """Return ℓ = Σ n_b (1 - h(φ_b)) - leak - tag - log₂(2/ε_s²) - log₂(outcomes), or 0 bits with a reason.

    `epsilon` is the whole promise: nine tenths go to secrecy, a tenth to correctness. φ_b bounds the phase errors of
    basis b by the bit errors of the other, which both ends know exactly after verification (or from the revealed bits).
    """
    secrecy, correctness = 0.9 * epsilon, 0.1 * epsilon
    tag = tag_bits(max(1, counts.key_bits), correctness)
    if min(counts.bits) == 0:
        return SessionLength(0, epsilon, tag, reason="no bits in one of the bases")
    probability = (secrecy / 4) ** 2 / (1 if counts.selective else 2)
    entropy = 0.0
    for basis in (0,) if counts.selective else (0, 1):
        unseen, sample = counts.bits[basis], counts.bits[1 - basis]
        bound = errors_bound(unseen, sample, counts.errors[1 - basis], probability)
        entropy += unseen * (1 - _entropy(min(0.5, bound / unseen)))
    outcomes = (counts.bits[0] + 1) * (counts.bits[1] + 1) * (counts.leaked_bits + 1)
    terms = {
        "entropy": entropy,
        "reconciliation": -float(counts.leaked_bits),
        "verification": -float(tag),
        "secrecy": -math.log2(2 / secrecy**2),
        "variable_length": -math.log2(outcomes),
    }
    bits = math.floor(sum(terms.values()) - 1e-6)  # two libms may differ in the last digits
    if bits <= 0:
        reason = f"QBER {counts.qber:.1%} leaves no secret bit of {counts.key_bits}"
        return SessionLength(0, epsilon, tag, terms, reason)
    return SessionLength(bits, epsilon, tag, terms)
