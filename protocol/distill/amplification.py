"""Privacy amplification: a fresh, public, linear hash makes the key nearly uniform for an eavesdropper (S0-E6, S4-5.8).

The family is the modified Toeplitz matrix (I | T): y = x₁…x_m + T·(x_m+1 … x_n) over GF(2), with T of m × (n - m)
given by n - 1 seed bits. Two inputs that differ in the last n - m bits collide with probability 2^-m because T is a
Toeplitz matrix; two that differ only in the first m never do: so it is 2-universal (Hayashi and Tsurumaru, IEEE
Trans. Inf. Theory 62, 2213 (2016)), with the leftover-hash bound of the full Toeplitz matrix at half its work.
Decides no length (`key_length` does). Implements SPEC §7.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.kernels import distillation as kernels
from protocol.parameters import require

Bits = NDArray[np.uint8]

INPUT_BITS_MAX = 1 << 26  # beyond it the twin's floating-point convolution is no longer provably exact


def amplification_seed_bits(input_bits: int, output_bits: int) -> int:
    """Return how many public random bits the hash from n to m bits needs: n - 1, or none when it hashes nothing."""
    require(0 <= output_bits <= input_bits, f"cannot make {output_bits} bits of {input_bits}")
    return input_bits - 1 if 0 < output_bits < input_bits else 0


def amplify(bits: Bits, seed: bytes | Bits, output_bits: int) -> Bits:
    """Hash the verified `bits` (0/1 array, n) to `output_bits` (m) secret bits; both sides with the same seed agree.

    `seed` holds at least `amplification_seed_bits(n, m)` uniform bits, as a 0/1 array or packed into bytes, lowest
    bit first; it is public, fresh for each block, drawn after the block was received, and its message
    is authenticated. Output bit i is x_i + Σ_j s[i - j + n - m - 1]·x_{m+j}. Cost: about 2 ms for 10⁶ → 5·10⁵ with
    the kernel. Raises ParameterError if the seed is too short or the sizes are out of range.
    """
    require(bits.size <= INPUT_BITS_MAX, f"{bits.size} bits; one hash takes at most {INPUT_BITS_MAX}")
    needed = amplification_seed_bits(bits.size, output_bits)
    packed = seed if isinstance(seed, bytes) else np.packbits(seed, bitorder="little").tobytes()
    given = 8 * len(seed) if isinstance(seed, bytes) else seed.size
    require(given >= needed, f"the seed has {given} bits; {bits.size} to {output_bits} bits needs {needed}")
    if needed == 0:
        return bits[:output_bits].copy()
    return kernels.toeplitz(bits, packed, output_bits)
