"""The link planner: what a configuration will give before it is built, exactly from the same models.

Decides expected gains, error rates, key length per block, key rate and block time; the emulator must agree within its
confidence intervals, and the tests hold it to that. Implements SPEC §6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.distill.decoy import decoy_key_length
from protocol.distill.key_length import KeyLength, SecurityParameters, binary_entropy, secret_key_length
from protocol.parameters import ParameterError, require_range
from protocol.quantum import photons
from protocol.quantum.channel import ChannelParameters, FibreParameters
from protocol.quantum.detector import PHOTONS_TAG_MAX, UNPOLARISED, DetectorParameters
from protocol.quantum.eavesdropper import KINDS, Eavesdropper, PhotonNumberSplitting, Transition
from protocol.quantum.entanglement import ChainParameters, expected_pairs
from protocol.quantum.link_parameters import LinkParameters
from protocol.quantum.source import SINGLE_PHOTON, poisson

Floats = NDArray[np.float64]

# The verification tag that the planner reckons with; reconciliation at the efficiency that cascade reaches.
TAG_BITS: Final = 64
EFFICIENCY: Final = 1.16


@dataclass(frozen=True, slots=True)
class Signature:
    """What Alice and Bob see of a link, in the mean, by intensity code.

    gain: registered detections per emitted pulse; qber: errors per sifted detection; basis_gain and basis_qber: the
    same for sifted detections, [intensity][basis] with the probability of both choices included in the gain.
    click_rate: registered detections per pulse over all choices; live_fraction: gates outside dead time.
    """

    gain: tuple[float, ...]
    qber: tuple[float, ...]
    basis_gain: tuple[tuple[float, float], ...]
    basis_qber: tuple[tuple[float, float], ...]
    click_rate: float
    live_fraction: float


def expected_signature(parameters: LinkParameters, attack: Eavesdropper | None = None) -> Signature:
    """Return the signature of a link under `attack` (a jammer: inside its bursts), averaged over the fading.

    Exact for light, background and dark counts; dead time and after-pulses by renewal theory, which is exact for a
    constant click probability.
    """
    weights, levels = parameters.channel.medium.fading_levels()
    registered, wrong = np.zeros(1), np.zeros(1)
    click_rate = live = 0.0
    for weight, level in zip(weights.tolist(), levels.tolist(), strict=True):
        at_level = _registered(parameters, attack, level)
        registered, wrong = registered + weight * at_level[0], wrong + weight * at_level[1]
        click_rate, live = click_rate + weight * at_level[2], live + weight * at_level[3]
    sifted, sifted_wrong = (np.stack([v[:, b, b] for b in (0, 1)], axis=1) for v in (registered, wrong))
    return Signature(
        gain=tuple(np.sum(registered, axis=(1, 2)).tolist()),
        qber=tuple(_ratio(sifted_wrong.sum(axis=1), sifted.sum(axis=1)).tolist()),
        basis_gain=tuple((row[0], row[1]) for row in sifted.tolist()),
        basis_qber=tuple((row[0], row[1]) for row in _ratio(sifted_wrong, sifted).tolist()),
        click_rate=click_rate,
        live_fraction=live,
    )


def _registered(
    parameters: LinkParameters, attack: Eavesdropper | None, transmittance: float
) -> tuple[Floats, Floats, float, float]:
    """Return at one transmittance: registered detections and errors per pulse of an intensity, as [intensity, Alice's
    basis, Bob's basis] with the probability of the bases; the click rate; the live fraction."""
    bits, both = _live_bits(parameters, attack, transmittance)
    source, detector = parameters.source, parameters.detector
    z_alice, z_bob = source.basis_z_probability, detector.basis_z_probability
    share = np.outer((z_alice, 1.0 - z_alice), (z_bob, 1.0 - z_bob))
    chances = np.array(source.intensity_probabilities)
    clicks = bits.sum(axis=-1).mean(axis=2)
    # A discarded double click is no detection, but closes the detectors all the same.
    doubled = 0.5 if detector.double_click == "random" else 0.0
    firing = clicks if doubled else clicks + both.mean(axis=2)
    click, double = (float(np.einsum("k,kab,ab->", chances, v, share)) for v in (firing, both.mean(axis=2)))
    live, after = _live_fraction(parameters, click, double, attack is not None and attack.blinding)
    errors = 0.5 * (bits[:, :, 0, :, 1] + bits[:, :, 1, :, 0])
    # An after-pulse beside light is in the detector that the light met, or makes a double click of it.
    registered = share * live * (clicks * (1.0 - after) + after * (1.0 - clicks + clicks * (0.5 + doubled)))
    beside = 0.5 * (errors + doubled * clicks)
    wrong = share * live * (errors * (1.0 - after) + after * (0.5 * (1.0 - clicks) + beside))
    return registered, wrong, float(np.einsum("k,kab->", chances, registered)), live


def _ratio(wrong: Floats, total: Floats) -> Floats:
    return np.asarray(np.divide(wrong, total, out=np.full(total.shape, 0.5), where=total > 0.0))


def _live_bits(parameters: LinkParameters, attack: Eavesdropper | None, transmittance: float) -> tuple[Floats, Floats]:
    """Return, of a live gate, P(this bit) as [intensity, Alice's basis, bit, Bob's basis, outcome] and, without the
    last axis, P(double click)."""
    detector, channel = parameters.detector, parameters.channel
    blinded = attack is not None and attack.blinding
    behind, forward, transition, jamming_hz = transmittance, None, None, 0.0
    if attack is not None:
        transition = attack.transition()
        if not isinstance(channel.medium, ChainParameters):
            behind, forward = attack.transmittance(behind), attack.forward(None)
            jamming_hz = attack.background_peak_hz
    emitted = parameters.source.photon_distribution()
    if isinstance(channel.medium, ChainParameters):
        emitted = np.eye(1, emitted.shape[1], 1)
        transition = _after_werner(expected_pairs(channel.medium)[1], transition)
    absorbed = photons.absorbed(emitted, forward, behind * detector.efficiency_max)
    table = detector.outcome_table(channel.noise.one_probability(), blinded)
    kinds = _contained(_masks(absorbed, table))  # [intensity, kind, Bob's basis, subset]
    if transition is not None:
        kinds = np.einsum("st,ktbm->ksbm", transition, kinds)
    stray = (parameters.background_per_gate + jamming_hz * detector.gate_width_ns * 1e-9) * detector.efficiency_max
    background = _contained(_masks(poisson(stray)[None, :], table))[0, UNPOLARISED]  # [Bob's basis, subset]
    quiet = 1.0 - (0.0 if blinded else detector.dark_count_probability)
    contained = kinds[:, :4] * background * np.array([quiet**2, quiet, quiet, 1.0])
    both = 1.0 - contained[..., 1] - contained[..., 2] + contained[..., 0]
    shape = (len(absorbed), 2, 2, 2)
    return _bits(contained, both, detector).reshape(*shape, 2), both.reshape(shape)


def _after_werner(werner: float, transition: Transition | None) -> Transition:
    """Return the transition of a Werner pair's half, followed by that of an attack."""
    mixed = werner * np.eye(KINDS)
    mixed[:, UNPOLARISED] += 1.0 - werner
    return mixed if transition is None else np.asarray(mixed @ transition)


def _masks(absorbed: Floats, table: Floats) -> Floats:
    """Return P(click pattern) as [intensity, kind, basis, (none, only 0, only 1, both)] for a photon distribution."""
    numbers = absorbed[:, : PHOTONS_TAG_MAX + 1].copy()
    numbers[:, -1] += absorbed[:, PHOTONS_TAG_MAX + 1 :].sum(axis=1)
    by_tag = np.diff(table, axis=-1, prepend=0.0).reshape(16, KINDS, 2, 3)
    clicks = np.einsum("kn,nsbm->ksbm", numbers[:, 1:], by_tag[1:])
    return np.concatenate([1.0 - clicks.sum(axis=-1, keepdims=True), clicks], axis=-1)


def _contained(masks: Floats) -> Floats:
    """Return P(click pattern ⊆ S) for S = {}, {0}, {1}, {0, 1}: independent patterns unite by products of these."""
    none, only_0, only_1 = masks[..., 0], masks[..., 1], masks[..., 2]
    return np.stack([none, none + only_0, none + only_1, np.ones_like(none)], axis=-1)


def _bits(contained: Floats, both: Floats, detector: DetectorParameters) -> Floats:
    """Return P(bit 0), P(bit 1) from the subset probabilities, P(both) and the double-click rule."""
    none, within_0, within_1 = contained[..., 0], contained[..., 1], contained[..., 2]
    shared = 0.5 * both if detector.double_click == "random" else np.zeros_like(both)
    return np.stack([within_0 - none + shared, within_1 - none + shared], axis=-1)


def _live_fraction(parameters: LinkParameters, click: float, double: float, blinded: bool) -> tuple[float, float]:
    """Return (fraction of gates that are live, probability of an after-pulse in a live gate).

    Renewal: every registered click takes D - 1 further gates, and leaves a trap in each detector that clicked. The
    after-pulse counts if its gate is live and no click before it has refilled the trap. With q clicks per live gate of
    which a share s refills, V(z) = 1 / (1 - (1 - q) z - q (1 - s) z^D) generates that probability over the delay, and
    (1 - a) V(a) is its mean over the geometric delay of ratio a.
    """
    rules = parameters.detector.rules(parameters.source.pulse_rate_hz)
    dead, decay = rules.dead_pulses, rules.after_pulse_decay_pulses
    trapping = 0.0 if blinded else rules.after_pulse_probability
    ratio = math.exp(-1.0 / decay) if decay > 0.0 else 0.0
    total, after = click, 0.0
    for _ in range(100):
        traps = (1.0 + double / total) * trapping if total > 0.0 else 0.0
        counted = (1.0 - ratio) / (1.0 - (1.0 - total) * ratio - total * (1.0 - 0.5 * traps) * ratio**dead)
        after = traps * total * counted
        total = 1.0 - (1.0 - click) * (1.0 - after)
    return 1.0 / (1.0 + (dead - 1) * total), after


def unsuspicious_single_pass(parameters: LinkParameters, physics: np.random.Generator) -> float:
    """Return the single-photon pass probability with which photon-number splitting keeps the signal's gain.

    Zero where blocking all single photons still leaves too many clicks (a short channel).
    """
    target = expected_signature(parameters).gain[0]
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        gain = expected_signature(parameters, PhotonNumberSplitting(physics, middle)).gain[0]
        low, high = (middle, high) if gain < target else (low, middle)
    return low


# ---- blocks and rates


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What one block of a link will give, in the mean; rates per second of emission."""

    loss_db: float
    pulses: int
    block_time_s: float
    signature: Signature
    key_clicks: tuple[int, ...]
    test_clicks: tuple[int, ...]
    test_errors: tuple[int, ...]
    key_qber: float
    leaked_bits: int
    key_length: KeyLength
    secret_key_rate_bits_per_s: float


def plan_link(
    parameters: LinkParameters,
    pulses: int,
    security: SecurityParameters | None = None,
    efficiency: float = EFFICIENCY,
    attack: Eavesdropper | None = None,
) -> LinkPlan:
    """Return what a block of `pulses` pulses gives: Z makes the key, X the test; f · n · h(QBER) is leaked.

    Raises ParameterError for a parameter out of range.
    """
    require_range("pulses", pulses, 1, 2**44)
    require_range("efficiency", efficiency, 1.0, 3.0)
    security = security or SecurityParameters()
    signature = expected_signature(parameters, attack)
    source = parameters.source
    emitted = pulses * np.array(source.intensity_probabilities)
    sifted = emitted[:, None] * np.array(signature.basis_gain)
    wrong = sifted * np.array(signature.basis_qber)
    key, test, test_errors = (_counts(column) for column in (sifted[:, 0], sifted[:, 1], wrong[:, 1]))
    key_qber = float(wrong[:, 0].sum() / sifted[:, 0].sum()) if sifted[:, 0].sum() > 0 else 0.5
    leaked_bits = math.ceil(min(1.0, efficiency * binary_entropy(key_qber)) * sum(key))
    costs = (leaked_bits, TAG_BITS, security)
    if parameters.proof_gaps:
        length = KeyLength(0, security.epsilon_total, "none", {}, "; ".join(parameters.proof_gaps))
    elif source.model == SINGLE_PHOTON:
        length = secret_key_length(sum(key), sum(test), sum(test_errors), *costs)
    else:
        statistics = (source.intensities, source.intensity_probabilities, key, test, test_errors)
        length = decoy_key_length(*statistics, *costs)
    block_time_s = pulses / source.pulse_rate_hz
    return LinkPlan(
        parameters.channel.loss_db,
        pulses,
        block_time_s,
        signature,
        key,
        test,
        test_errors,
        key_qber,
        leaked_bits,
        length,
        length.bits / block_time_s,
    )


def _counts(column: Floats) -> tuple[int, ...]:
    return tuple(round(float(value)) for value in column)


def at_distance(parameters: LinkParameters, length_km: float) -> LinkParameters:
    """Return the link with its fibre cut to `length_km`. Raises ParameterError for a link without a fibre."""
    medium = parameters.channel.medium
    if not isinstance(medium, FibreParameters):
        raise ParameterError("only a fibre has a length to vary here; plan a free-space link as it is")
    channel = ChannelParameters(replace(medium, length_km=length_km), parameters.channel.noise)
    return replace(parameters, channel=channel)


def rate_against_distance(
    parameters: LinkParameters, lengths_km: Sequence[float], pulses: int, security: SecurityParameters | None = None
) -> list[LinkPlan]:
    """Return a plan for every length of the fibre."""
    return [plan_link(at_distance(parameters, length), pulses, security) for length in lengths_km]
