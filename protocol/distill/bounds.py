"""Which proof a link's key length rests on: by its source, from the counts that both ends know (SPEC part 2).

Decides the choice only. Single photons: `key_length`; weak pulses with decoy intensities: `decoy`.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.distill.decoy import decoy_key_length
from protocol.distill.key_length import KeyLength, SecurityParameters, secret_key_length
from protocol.quantum.source import SINGLE_PHOTON, SourceParameters

__all__ = [
    "PROOF_DECOY",
    "PROOF_SINGLE_PHOTON",
    "Costs",
    "DetectionCounts",
    "KeyLength",
    "SecurityParameters",
    "key_length",
]

PROOF_SINGLE_PHOTON: Final = "tomamichel-2012"
"""The name in records; `key_length` cites the paper."""

PROOF_DECOY: Final = "lim-2014"
"""The name in records; `decoy` cites the paper."""

INTENSITIES_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class DetectionCounts:
    """Sifted clicks by intensity code: of the key basis, of the test basis, and the errors among the latter."""

    key: tuple[int, ...]
    test: tuple[int, ...] = (0,) * INTENSITIES_MAX
    test_errors: tuple[int, ...] = (0,) * INTENSITIES_MAX

    @classmethod
    def of_key(cls, intensities: NDArray[np.uint8]) -> "DetectionCounts":
        """Count the key-basis clicks of each intensity code."""
        return cls(_count(intensities))

    def with_test(self, intensities: NDArray[np.uint8], errors: NDArray[np.bool_]) -> "DetectionCounts":
        """Return these counts completed by the compared test bits."""
        return replace(self, test=_count(intensities), test_errors=_count(intensities[errors]))


def _count(codes: NDArray[np.uint8]) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(codes, minlength=INTENSITIES_MAX))


@dataclass(frozen=True, slots=True)
class Costs:
    """What was said in public about the key: bits leaked by reconciliation, and the verification tag."""

    leaked_bits: int
    tag_bits: int
    tag_collision: float


def key_length(
    security: SecurityParameters, source: SourceParameters, counts: DetectionCounts, costs: Costs
) -> KeyLength:
    """Return the secret length of a block after `costs`, and its proof.

    Never raises for what a peer reported: counts come from arrays that both sides hold.
    """
    if source.model == SINGLE_PHOTON:
        length = secret_key_length(
            sum(counts.key),
            sum(counts.test),
            sum(counts.test_errors),
            costs.leaked_bits,
            costs.tag_bits,
            security,
            tag_collision=costs.tag_collision,
        )
        return replace(length, proof=PROOF_SINGLE_PHOTON)
    length = decoy_key_length(
        source.intensities,
        source.intensity_probabilities,
        counts.key,
        counts.test,
        counts.test_errors,
        costs.leaked_bits,
        costs.tag_bits,
        security,
        tag_collision=costs.tag_collision,
    )
    return replace(length, proof=PROOF_DECOY)
