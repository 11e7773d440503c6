"""Public randomness that both sides expand from one short seed: samples and permutations (S0-E6).

A seed is public: one side draws it after the light has been measured and sends it over the authenticated channel, so
an eavesdropper cannot adapt to it. Hence SplitMix64 suffices: it needs statistical quality only, and it is defined
here bit for bit because two nodes with different numpy versions must agree. It decides no secret: key bits come from
`protocol.entropy`, hash seeds are used as they were sent. Implements SPEC §2.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def stream_key(seed: bytes, label: str) -> int:
    """Return the 64-bit key of the stream `label` under `seed`: different labels give independent streams."""
    digest = hashlib.sha256(label.encode() + b"\0" + seed).digest()
    return int.from_bytes(digest[:8], "little")


def mix64(key: int, first: int, count: int) -> NDArray[np.uint64]:
    """Return words `first` … `first + count - 1` of the SplitMix64 stream of `key`."""
    start = np.uint64((key + (first + 1) * _GOLDEN) & _MASK)
    z = start + np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def below(words: NDArray[np.uint64], limit: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Map 64-bit words to integers below `limit` (≤ 2³²) by their upper half; the bias is under limit · 2⁻³²."""
    return ((words >> np.uint64(32)) * np.asarray(limit, dtype=np.uint64)) >> np.uint64(32)


def permutation(size: int, key: int) -> NDArray[np.uint32]:
    """Return the Fisher-Yates permutation of 0 … size - 1 under `key`; the twin of the kernel's."""
    order = list(range(size))
    if size > 1:
        swaps = below(mix64(key, 0, size - 1), np.arange(size, 1, -1, dtype=np.uint64)).tolist()
        for i, j in zip(range(size - 1, 0, -1), swaps, strict=True):
            order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.uint32)


def division(size: int, key: int) -> NDArray[np.uint32]:
    """Return 0 … size - 1 with those whose bit of the stream is 0 first, each part in order.

    A random split at a tenth of a permutation's cost. Bit i is bit i mod 64 of word ⌊i / 64⌋.
    """
    words = mix64(key, 0, (size + 63) // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=size, bitorder="little")
    return np.argsort(bits, kind="stable").astype(np.uint32)


def sample_mask(size: int, count: int, key: int) -> NDArray[np.bool_]:
    """Return a mask with exactly `count` of `size` positions, uniform among all such sets.

    Positions are drawn with replacement until `count` different ones are found, which makes every set equally
    likely; above one half the complement is drawn. Raises ValueError unless 0 ≤ count ≤ size < 2³².
    """
    if not 0 <= count <= size < 1 << 32:
        raise ValueError(f"cannot sample {count} of {size} positions")
    if 2 * count > size:
        return ~sample_mask(size, size - count, key)
    mask = np.zeros(size, dtype=np.bool_)
    drawn, found = 0, 0
    while found < count:
        wanted = count - found  # never more than are missing, so that the last batch cannot overshoot
        mask[below(mix64(key, drawn, wanted), size)] = True
        drawn += wanted
        found = int(np.count_nonzero(mask))
    return mask
