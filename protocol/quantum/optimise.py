"""The best source settings for a link and a block: intensities, their probabilities and the bias of the bases.

Decides settings by the planner's key length; a random search that closes in, since the length has kinks. Implements
SPEC §6.2.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.distill.key_length import SecurityParameters
from protocol.parameters import ParameterError, require, require_range
from protocol.quantum.link_parameters import LinkParameters
from protocol.quantum.plan import LinkPlan, plan_link
from protocol.quantum.source import WEAK_COHERENT

# Order: P(Z) of both ends, signal and decoy intensity, P(signal), P(decoy) of what the signal leaves.
_LOW: Final = np.array([0.5, 0.2, 0.02, 0.1, 0.1])
_HIGH: Final = np.array([0.98, 0.9, 0.3, 0.95, 0.95])


def with_settings(parameters: LinkParameters, settings: NDArray[np.float64]) -> LinkParameters:
    """Return the link with source settings in the order above. Raises ParameterError where they contradict."""
    z, signal, decoy, p_signal, p_decoy = settings.tolist()
    source = replace(
        parameters.source,
        basis_z_probability=z,
        signal_intensity=signal,
        decoy_intensity=decoy,
        signal_probability=p_signal,
        decoy_probability=p_decoy * (1.0 - p_signal),
    )
    return replace(parameters, source=source, detector=replace(parameters.detector, basis_z_probability=z))


def best_source(
    parameters: LinkParameters,
    pulses: int,
    physics: np.random.Generator,
    security: SecurityParameters | None = None,
    evaluations: int = 600,
) -> tuple[LinkParameters, LinkPlan]:
    """Return the link with the best source settings that `evaluations` plans find, and its plan.

    The settings given are among the candidates, so the answer is never worse; about 3 ms per evaluation. Raises
    ParameterError for a source without intensities.
    """
    require(parameters.source.model == WEAK_COHERENT, "only a weak-coherent source has intensities to optimise")
    require_range("evaluations", evaluations, 10, 1e6)
    best = (_merit(parameters, pulses, security), parameters)
    wide = evaluations // 3  # everywhere first, then ever closer to the best so far
    for number in range(evaluations):
        if number < wide:
            settings = physics.uniform(_LOW, _HIGH)
        else:
            spread = (_HIGH - _LOW) / 4.0 * 0.02 ** ((number - wide) / (evaluations - wide))
            settings = np.clip(_settings_of(best[1]) + spread * physics.standard_normal(5), _LOW, _HIGH)
        try:
            candidate = with_settings(parameters, settings)
        except ParameterError:  # intensities out of order
            continue
        best = max(best, (_merit(candidate, pulses, security), candidate), key=lambda pair: pair[0])
    return best[1], plan_link(best[1], pulses, security)


def _settings_of(parameters: LinkParameters) -> NDArray[np.float64]:
    source = parameters.source
    rest = max(1.0 - source.signal_probability, 1e-9)
    values = (source.basis_z_probability, source.signal_intensity, source.decoy_intensity, source.signal_probability)
    return np.array([*values, source.decoy_probability / rest])


def _merit(parameters: LinkParameters, pulses: int, security: SecurityParameters | None) -> float:
    """Return the key length before it is cut at zero: the search needs a slope where there is no key yet."""
    length = plan_link(parameters, pulses, security).key_length
    return sum(length.terms_bits.values()) if length.terms_bits else -float(pulses)
