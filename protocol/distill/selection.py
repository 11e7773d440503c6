"""Which of the sifted bits to make key of, when less key is wanted than they could give (S4-6.2).

The paper keeps a subset S of the qubits for the key and calls the rest redundancy. The sound reading: the rest is
revealed as the sample, which bounds the phase errors better, and only S is corrected, verified and hashed. A device
thereby trades bits that it does not need for work that it need not do, within the same ε: the security bound is never
relaxed, and a selection that cannot give the wanted key says so. Implements SPEC §4.4.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.distill.estimation import choose_sample, serfling_deviation
from protocol.distill.key_length import KeyLength, SecurityParameters, binary_entropy, secret_key_length
from protocol.distill.verification import tag_bits_for
from protocol.parameters import require, require_range

_STEPS = 64  # sizes tried: within 2 % of the least subset


@dataclass(frozen=True, slots=True)
class Selection:
    """A subset of `subset_bits` for the key, the other bits revealed, and what that changes.

    `work_share` is the work of correcting, verifying and hashing relative to using every bit but the usual sample:
    it is linear in the subset, and so is the energy of a device. `phase_error_margin` is µ: smaller than with the
    usual sample. `length` is what to expect at the given error rate; its ε is that of the security parameters.
    """

    subset_bits: int
    sample_bits: int
    work_share: float
    phase_error_margin: float
    length: KeyLength

    def mask(self, seed: bytes) -> NDArray[np.bool_]:
        """Return the mask of the subset among the sifted bits; equal on both sides for the same public seed."""
        return ~choose_sample(self.subset_bits + self.sample_bits, self.sample_bits, seed)


def select_subset(
    sifted_bits: int, wanted_bits: int, qber: float, security: SecurityParameters, efficiency: float = 1.5
) -> Selection:
    """Choose the smallest subset that is expected to give `wanted_bits` of key at `qber`.

    `efficiency` is that of the reconciliation (1.5 for a device's short frames). If no subset gives that much, the one
    that gives most is returned, and its `length` tells what is missing. Raises ParameterError on values out of range.
    """
    require(sifted_bits > 1, f"sifted_bits is {sifted_bits}; a subset and a rest need two")
    require(wanted_bits > 0, f"wanted_bits is {wanted_bits}; there is no key of that length")
    require_range("qber", qber, 0.0, 0.5)
    require_range("efficiency", efficiency, 1.0, 10.0)
    sizes = sorted({max(1, sifted_bits * step // _STEPS) for step in range(1, _STEPS)})
    lengths = [_expected(size, sifted_bits - size, qber, security, efficiency) for size in sizes]
    enough = [(size, length) for size, length in zip(sizes, lengths, strict=True) if length.bits >= wanted_bits]
    best = max(range(len(sizes)), key=lambda i: lengths[i].bits)
    size, length = enough[0] if enough else (sizes[best], lengths[best])
    margin = serfling_deviation(size, sifted_bits - size, security.epsilon_secrecy / 4)
    return Selection(size, sifted_bits - size, size / sizes[best], margin, length)


def _expected(
    subset_bits: int, sample_bits: int, qber: float, security: SecurityParameters, efficiency: float
) -> KeyLength:
    leaked = round(efficiency * subset_bits * binary_entropy(qber))
    tag_bits = tag_bits_for(subset_bits, security.epsilon_correctness)
    errors = round(qber * sample_bits)
    return secret_key_length(
        subset_bits, sample_bits, errors, leaked, tag_bits, security, tag_collision=security.epsilon_correctness
    )
