"""Sparse sampling: which pulses of a stretch might click, drawn without drawing the others.

Implements SPEC §3.1: a Bernoulli process by its geometric gaps, in batches that a cache holds.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.kernels import emulation
from protocol.quantum.source import PositionFunction

# Proposals of one batch: every array of a batch stays in the second-level cache, and its frame below 256 KiB.
BATCH: Final = PositionFunction.BATCH


def propose(physics: np.random.Generator, probability: float, start: int, end: int) -> tuple[int, NDArray[np.uint64]]:
    """Propose pulses of [start, end), each independently with `probability`.

    Returns (covered, blocks): blocks is (n, 2) with the positions in the first column, all below `covered` ≤ end. When
    the batch is full, `covered` is just behind its last proposal: the process has no memory, so that the next batch
    may begin there.
    """
    if probability <= 0.0:
        return end, np.empty((0, 2), dtype=np.uint64)
    inverse_rate = -1.0 / math.log1p(-probability) if probability < 1.0 else 0.0
    expected = probability * (end - start)
    size = min(BATCH, math.ceil(expected + 6.0 * math.sqrt(expected) + 16.0))
    blocks = np.empty((size, 2), dtype=np.uint64)
    count = emulation.propose(physics.standard_exponential(size), inverse_rate, start, end, blocks)
    covered = end if count < size else int(blocks[-1, 0]) + 1
    return covered, blocks[:count]


def random_words(physics: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Return `count` uniform 64-bit words."""
    return physics.integers(0, 2**64, count, dtype=np.uint64)


def merge(
    positions: NDArray[np.uint64], tags: NDArray[np.uint8], more: NDArray[np.uint64], more_tags: NDArray[np.uint8]
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Merge two sorted lists of arrivals into one, equal positions side by side; cheapest when `more` is short."""
    if not len(more):
        return positions, tags
    places = np.searchsorted(positions, more, side="right")
    return np.insert(positions, places, more), np.insert(tags, places, more_tags)
