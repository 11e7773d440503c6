"""What a block's clicks say before any key is made of them: sifting into key and test, and whether somebody listens.

Both ends compute the same from the same announcements. Decides whether a block goes on; how long its key may be is
decided in `distill.bounds`. Implements SPEC parts 1 (steps 4 and 5) and 2; the test is that of
`quantum.detection_test` (row S0-T1), the limit on the error rate a last line behind it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.distill import bounds
from protocol.parameters import require_range
from protocol.quantum.detection_test import EavesdroppingTest, counts_of
from protocol.quantum.link import LinkParameters
from protocol.quantum.plan import expected_signature

KEY_BASIS: Final = 0
TEST_BASIS: Final = 1
"""Z carries the key; X is revealed where both chose it, because X's bit errors bound Z's phase errors (the proof)."""


@dataclass(frozen=True, slots=True)
class WatchParameters:
    """When a block counts as attacked.

    qber_max: a test error rate above it always does (0.001 to 0.25). false_alarm: the probability that a block of an
    honest link does. qber_tolerance (absolute) and gain_tolerance (relative): how far an honest link may drift from
    its plan; fading air needs a wide gain tolerance.
    """

    qber_max: float = 0.09
    false_alarm: float = 1e-6
    qber_tolerance: float = 0.005
    gain_tolerance: float = 0.1

    def __post_init__(self) -> None:
        require_range("qber_max", self.qber_max, 0.001, 0.25)
        require_range("false_alarm", self.false_alarm, 1e-30, 0.5)
        require_range("qber_tolerance", self.qber_tolerance, 0.0, 0.25)
        require_range("gain_tolerance", self.gain_tolerance, 0.0, 10.0)


class BlockSuspect(Exception):
    """The block must not become key. `attacked` says that somebody on the line is the likely reason."""

    def __init__(self, reason: str, qber_ppm: int, *, attacked: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.qber_ppm = qber_ppm
        self.attacked = attacked


@dataclass(frozen=True, slots=True, repr=False)
class Sifting:
    """What one side knows after sifting; bits are its own. `detected` counts all clicks by intensity code."""

    key_bits: NDArray[np.uint8]
    own_test_bits: NDArray[np.uint8]
    test_intensities: NDArray[np.uint8]
    detected: tuple[int, ...]
    counts: bounds.DetectionCounts

    @property
    def detections(self) -> int:
        """All clicks of the block."""
        return sum(self.detected)


def sift_block(
    own_bits: NDArray[np.uint8],
    alice_bases: NDArray[np.uint8],
    bob_bases: NDArray[np.uint8],
    intensities: NDArray[np.uint8],
) -> Sifting:
    """Split this side's bits of all clicks (arrays of equal length, one entry per click) into key and test."""
    key = (alice_bases == KEY_BASIS) & (bob_bases == KEY_BASIS)
    test = (alice_bases == TEST_BASIS) & (bob_bases == TEST_BASIS)
    detected = np.bincount(intensities, minlength=bounds.INTENSITIES_MAX)
    return Sifting(
        own_bits[key],
        own_bits[test],
        intensities[test],
        tuple(int(count) for count in detected),
        bounds.DetectionCounts.of_key(intensities[key]),
    )


@dataclass(frozen=True, slots=True)
class Assessment:
    """The error rate that both sides compute alike from the revealed test bits."""

    counts: bounds.DetectionCounts
    test_bits: int
    qber: float

    @property
    def qber_ppm(self) -> int:
        """The error rate as records carry it."""
        return round(self.qber * 1e6)


def assess(
    sifting: Sifting,
    peer_test_bits: NDArray[np.uint8],
    pulse_count: int,
    link: LinkParameters,
    watch: WatchParameters,
) -> Assessment:
    """Compare the test bits with the peer's, and the block with what the link should give.

    Raises BlockSuspect: too few clicks, too many errors, or counts that an honest link would show with a probability
    below `watch.false_alarm`.
    """
    errors = sifting.own_test_bits != peer_test_bits
    test_bits = len(errors)
    if test_bits == 0 or len(sifting.key_bits) == 0:
        reason = f"too few detections: {sifting.detections} clicks left nothing to compare or to distil"
        raise BlockSuspect(reason, 0, attacked=False)
    qber = float(np.count_nonzero(errors)) / test_bits
    if qber > watch.qber_max:
        reason = f"QBER {qber:.4f} exceeds the limit {watch.qber_max:g}"
        raise BlockSuspect(reason, round(qber * 1e6), attacked=True)
    assessment = Assessment(sifting.counts.with_test(sifting.test_intensities, errors), test_bits, qber)
    evidence = _evidence(sifting, assessment.counts, pulse_count, link, watch)
    if evidence:
        reason = (
            f"an eavesdropper is likely (an honest link shows this with probability {watch.false_alarm:g} at most): "
            f"{', '.join(evidence)} out of range at QBER {qber:.4f}"
        )
        raise BlockSuspect(reason, assessment.qber_ppm, attacked=True)
    return assessment


def _evidence(
    sifting: Sifting, counts: bounds.DetectionCounts, pulse_count: int, link: LinkParameters, watch: WatchParameters
) -> tuple[str, ...]:
    """Return the statistics that speak against an honest link: none, all being well."""
    probabilities = link.source.intensity_probabilities
    levels = len(probabilities)
    block = counts_of(
        pulse_count, probabilities, sifting.detected[:levels], counts.test[:levels], counts.test_errors[:levels]
    )
    return _test_of(link, watch).assess(block).evidence


@lru_cache(maxsize=1024)  # one entry per link of a node; a link with fading air takes a tenth of a second to plan
def _test_of(link: LinkParameters, watch: WatchParameters) -> EavesdroppingTest:
    signature = expected_signature(link)
    test_basis = tuple(rates[TEST_BASIS] for rates in signature.basis_qber)
    return EavesdroppingTest(
        replace(signature, qber=test_basis), watch.false_alarm, watch.qber_tolerance, watch.gain_tolerance
    )
