"""Photon-number statistics from Alice's output to absorption at Bob.

Decides how many photons of a pulse would be absorbed, as a distribution per intensity: the source's statistics, what
an eavesdropper forwards, and independent loss. Implements SPEC §3.2.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocol.quantum.detector import PHOTONS_TAG_MAX
from protocol.quantum.source import PHOTONS_MAX

# forward[n, f]: probability that f photons go on when n left Alice; no eavesdropper is the identity.
Forward = NDArray[np.float64]


def identity_forward() -> Forward:
    """Return the map that forwards every photon."""
    return np.eye(PHOTONS_MAX + 1)


@lru_cache(maxsize=1)
def _binomial_coefficients() -> NDArray[np.float64]:
    table = np.zeros((PHOTONS_MAX + 1, PHOTONS_MAX + 1))
    table[:, 0] = 1.0
    for n in range(1, PHOTONS_MAX + 1):
        table[n, 1:] = table[n - 1, 1:] + table[n - 1, :-1]
    return table


def binomial_loss(transmittance: float) -> Forward:
    """Return B[n, j] = C(n, j) t^j (1 - t)^(n - j): independent loss of every photon."""
    numbers = np.arange(PHOTONS_MAX + 1)
    lost = np.maximum(numbers[:, None] - numbers[None, :], 0)
    return np.asarray(_binomial_coefficients() * transmittance ** numbers[None, :] * (1.0 - transmittance) ** lost)


def absorbed(source: NDArray[np.float64], forward: Forward | None, transmittance: float) -> NDArray[np.float64]:
    """Return P[k, j]: probability that j photons of a pulse of intensity k survive `transmittance`."""
    forwarded = source if forward is None else source @ forward
    return np.asarray(forwarded @ binomial_loss(transmittance))


def tails(absorbed_distribution: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return T[k, j - 1] = P(at least j photons | k) for j = 1 … 15; sums of positive terms, smallest first."""
    upper = np.cumsum(absorbed_distribution[:, :0:-1], axis=1)[:, ::-1]
    return np.ascontiguousarray(np.minimum(upper[:, :PHOTONS_TAG_MAX], 1.0))
