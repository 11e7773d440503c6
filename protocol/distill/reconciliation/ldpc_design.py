"""How the degree profiles of `ldpc_code` were found: density evolution under the Gaussian approximation (S4-5.7).

`python -m protocol.distill.reconciliation.ldpc_design` prints for each profile the threshold of its ensemble on the
binary symmetric channel; with `--optimise` it runs the linear program that found them (needs scipy, a development
dependency). Nothing imports this at run time. Messages from variables are the channel's two-point
log-likelihood ratio plus a Gaussian; checks use the reciprocal-channel approximation (Chung, Forney, Richardson,
Urbanke, IEEE Comm. Letters 5, 58 (2001)). The approximation is too dark at low error rates
(5 % at p = 0.01), where codes of 10⁵ bits decode below these thresholds; above 0.03 they come within 2-5 % of them.
`tests/protocol/distill/test_ldpc.py` measures by decoding.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from protocol.distill.key_length import binary_entropy
from protocol.distill.reconciliation.ldpc_code import PROFILES, Profile

DEGREES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24)

_NODES, _WEIGHTS = np.polynomial.hermite.hermgauss(64)
_DEVIATION = np.concatenate(([0.0], np.geomspace(1e-3, 40, 4000)))


def _information(mean: float, deviation: float) -> float:
    """Return E[1 - log₂(1 + e^-L)] for a Gaussian L: what a message tells about a bit."""
    ratios = mean + math.sqrt(2) * deviation * _NODES
    bits = 1 - np.logaddexp(0, -ratios) / math.log(2)
    return float((_WEIGHTS * bits).sum() / math.sqrt(math.pi))


_TABLE = np.maximum.accumulate([_information(s * s / 2, float(s)) for s in _DEVIATION])


def _of_deviation(deviation: float) -> float:
    return float(np.interp(deviation, _DEVIATION, _TABLE))


def _to_deviation(information: float) -> float:
    return float(np.interp(information, _TABLE, _DEVIATION))


def variable_output(degree: int, incoming: float, error_rate: float) -> float:
    """Return the information that a variable of `degree` sends on, given that of its incoming messages."""
    prior = math.log((1 - error_rate) / error_rate)
    variance = (degree - 1) * _to_deviation(incoming) ** 2
    right = _information(variance / 2 + prior, math.sqrt(variance))
    wrong = _information(variance / 2 - prior, math.sqrt(variance))
    return (1 - error_rate) * right + error_rate * wrong


def check_output(degree: float, incoming: float) -> float:
    """Return the information that checks of mean edge degree `degree`, on two neighbouring integers, send back."""
    low = math.floor(degree)
    high_share = (degree - low) * (low + 1) / degree
    deviation = _to_deviation(1 - incoming)
    outputs = [1 - _of_deviation(math.sqrt(d - 1) * deviation) for d in (low, low + 1)]
    return (1 - high_share) * outputs[0] + high_share * outputs[1]


def converges(profile: Profile, leak_share: float, error_rate: float, rounds_max: int = 2000) -> bool:
    """Whether density evolution drives the errors of the ensemble to zero."""
    mean = sum(degree * share for degree, share in profile)
    check_degree = mean / leak_share
    information = 0.0
    for _ in range(rounds_max):
        outgoing = sum(d * share / mean * variable_output(d, information, error_rate) for d, share in profile)
        following = check_output(check_degree, outgoing)
        if following > 1 - 1e-5:
            return True
        if following - information < 1e-7:
            return False
        information = following
    return False


def threshold_efficiency(profile: Profile, error_rate: float) -> float:
    """Return the least leak / h(p) at which the ensemble converges, within 0.002."""
    low, high = 1.0, 2.0
    while high - low > 0.002:
        middle = (low + high) / 2
        if converges(profile, middle * binary_entropy(error_rate), error_rate):
            high = middle
        else:
            low = middle
    return high


def optimise(error_rate: float, check_degree: int) -> tuple[float, Profile] | None:
    """Find the edge shares that leak least at `error_rate` for one check degree, by linear programming."""
    from scipy.optimize import linprog

    rows: list[list[float]] = []
    bounds: list[float] = []
    for incoming in np.concatenate((np.linspace(0.02, 0.98, 50), 1 - np.geomspace(0.02, 1e-4, 12))):
        needed = _inverse_check(check_degree, float(incoming))
        rows.append([-variable_output(d, float(incoming), error_rate) for d in DEGREES])
        bounds.append(-(needed + 1e-4 * (1 - float(incoming))))
    # Stability: degree 2 must not sustain errors by itself.
    rows.append([1.0 if d == 2 else 0.0 for d in DEGREES])
    bounds.append(1 / ((check_degree - 1) * 2 * math.sqrt(error_rate * (1 - error_rate))))
    objective = [-1 / d for d in DEGREES]
    found = linprog(objective, A_ub=rows, b_ub=bounds, A_eq=[[1.0] * len(DEGREES)], b_eq=[1.0], bounds=(0, 1))
    if found.status != 0:
        return None
    shares: NDArray[np.float64] = found.x / np.array(DEGREES)
    shares = shares / shares.sum()
    return -1 / (check_degree * found.fun), tuple(
        (d, round(float(share), 3)) for d, share in zip(DEGREES, shares, strict=True) if share > 1e-3
    )


def _inverse_check(check_degree: int, wanted: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if check_output(check_degree, middle) < wanted else (low, middle)
    return high


def main() -> None:
    """Print thresholds, or optimise."""
    parser = argparse.ArgumentParser(description="Degree profiles of the LDPC codes")
    parser.add_argument("--optimise", action="store_true", help="run the linear program too (minutes; needs scipy)")
    wants_optimum = parser.parse_args().optimise
    for error_rate, profile in PROFILES:
        print(f"p = {error_rate}: threshold f = {threshold_efficiency(profile, error_rate):.3f}, {dict(profile)}")
        if wants_optimum:
            degrees = range(math.ceil(3 / binary_entropy(error_rate)), math.floor(6 / binary_entropy(error_rate)))
            found = [best for degree in degrees if (best := optimise(error_rate, degree)) is not None]
            leak, best_profile = min(found, key=lambda item: item[0])
            print(f"  optimum f = {leak / binary_entropy(error_rate):.3f}, {dict(best_profile)}")


if __name__ == "__main__":
    main()
