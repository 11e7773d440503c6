"""Estimation: from the errors seen in a sample to a bound on those not seen (S0-E6).

Decides how certain the QBER is, not whether a key results (`key_length`). The bound is Serfling's for sampling
without replacement in the form of Tomamichel, Lim, Gisin, Renner, Nature Communications 3, 634 (2012), eq. (2).
No sample is wasted where the proof allows: with two bases the bits of the other basis are the sample, and their
errors are counted by reconciliation and confirmed by verification, so none has to be thrown away
(`errors_between`); only a link with one mixed block reveals a random part of it. Implements SPEC §4.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.distill.seeding import sample_mask, stream_key
from protocol.kernels import distillation as kernels
from protocol.parameters import require, require_range

Bits = NDArray[np.uint8]


def choose_sample(total_bits: int, sample_bits: int, seed: bytes) -> NDArray[np.bool_]:
    """Return the mask of the bits to reveal; both sides with the same seed get the same mask.

    `seed` is public, drawn by one side after sifting and sent authenticated. Uniform among all sets of that size.
    """
    return sample_mask(total_bits, sample_bits, stream_key(seed, "sample"))


def split_sample(bits: Bits, sample: NDArray[np.bool_]) -> tuple[Bits, Bits]:
    """Return the bits that stay secret and those that are revealed, each in order. Raises ParameterError on sizes."""
    require(bits.shape == sample.shape, f"a sample over {sample.size} bits does not fit {bits.size}")
    return kernels.split(bits, sample)


def errors_between(ours: Bits, theirs: Bits) -> int:
    """Count the positions that differ: revealed samples, or a string before and after verified reconciliation."""
    require(ours.shape == theirs.shape, f"{ours.size} bits against {theirs.size}")
    return int(np.count_nonzero(ours != theirs))


def serfling_deviation(unseen_bits: int, sample_bits: int, epsilon: float) -> float:
    """Return µ: the error rate of the unseen bits exceeds the sample's by µ with probability at most `epsilon`².

    µ = √( (n + k)/(n k) · (k + 1)/k · ln(1/ε) ), for n unseen and k sampled bits; the square is the convention of the
    smooth-entropy proof, where ε is a purified distance. Infinite without a sample.
    """
    require_range("epsilon", epsilon, 1e-300, 1.0)
    if sample_bits <= 0 or unseen_bits <= 0:
        return math.inf
    n, k = float(unseen_bits), float(sample_bits)
    return math.sqrt((n + k) / (n * k) * (k + 1) / k * math.log(1 / epsilon))


@dataclass(frozen=True, slots=True)
class QberEstimate:
    """What a sample tells: `rate` seen, and `upper_bound` for the unseen bits, up to `epsilon`² (capped at 1/2)."""

    errors: int
    sample_bits: int
    unseen_bits: int
    rate: float
    upper_bound: float
    epsilon: float


def estimate_qber(errors: int, sample_bits: int, unseen_bits: int, epsilon: float) -> QberEstimate:
    """Bound the error rate of `unseen_bits` from `errors` among `sample_bits`; an empty sample bounds nothing (1/2).

    One-sided: only an error rate that is higher than believed endangers the key.
    """
    require(0 <= errors <= sample_bits, f"{errors} errors among {sample_bits} sampled bits")
    rate = errors / sample_bits if sample_bits else 0.5
    bound = min(0.5, rate + serfling_deviation(unseen_bits, sample_bits, epsilon))
    return QberEstimate(errors, sample_bits, unseen_bits, rate, bound, epsilon)


def default_sample_bits(total_bits: int) -> int:
    """Return how many bits of a mixed block to reveal when nothing better is known.

    Revealing k costs about k bits, and µ costs about n·h'(Q)·√(c/k): the least sum is at k ∝ n^(2/3). The factor 7
    is the optimum at QBER 2 % and ε = 10⁻¹⁰ for n from 10⁴ to 10⁷ within a few per cent of the key.
    """
    return min(total_bits // 2, math.ceil(7 * math.pow(total_bits, 2 / 3)))
