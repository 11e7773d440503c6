"""What light an emission is made of: the sparse sampler behind the transmitter, for pulses and for swapped pairs.

Decides which pulses arrive, with how many photons and in which state; writes no frame and parses none. Implements SPEC
§3.1 to §3.3 and §8.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.kernels import emulation
from protocol.quantum import photons
from protocol.quantum._light import FRAME_PULSES_MAX, Light
from protocol.quantum._sampling import BATCH, merge, propose, random_words
from protocol.quantum.detector import UNPOLARISED
from protocol.quantum.eavesdropper import Eavesdropper
from protocol.quantum.entanglement import ChainParameters, sample_rounds
from protocol.quantum.link_parameters import LinkParameters
from protocol.quantum.source import PULSES_MAX, ChoiceGenerator, PositionFunction, poisson

# Frames of a long emission are cut so that each lets a receiver make about a million dark counts at most.
FRAME_DARK_COUNTS: Final = 2**20


class Emission(Protocol):
    """A sampler of the light that reaches Bob."""

    def light(self, generator: ChoiceGenerator, end: int, attack: Eavesdropper | None) -> Iterator[Light]:
        """Return the light of pulses [0, end) in order, whose choices are those of `generator`."""
        ...


def make_emission(parameters: LinkParameters, physics: np.random.Generator) -> Emission:
    """Return the sampler that a link's medium needs."""
    medium = parameters.channel.medium
    if isinstance(medium, ChainParameters):
        return PairEmission(parameters, medium, physics)
    return PulseEmission(parameters, physics)


def _frame_pulses(dark_probability: float) -> int:
    if dark_probability * FRAME_PULSES_MAX <= FRAME_DARK_COUNTS:
        return FRAME_PULSES_MAX
    return int(FRAME_DARK_COUNTS / dark_probability)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Pulses up to `end` over which every probability is constant."""

    end: int
    tails: NDArray[np.float64]
    background_mean: float


class PulseEmission:
    """Prepared pulses through fibre or air."""

    def __init__(self, parameters: LinkParameters, physics: np.random.Generator) -> None:
        self._parameters = parameters
        self._physics = physics
        self._thresholds = parameters.source.choice_thresholds()
        self._photon_distribution = parameters.source.photon_distribution()
        self._frame_pulses = _frame_pulses(parameters.detector.dark_probability)

    def light(self, generator: ChoiceGenerator, end: int, attack: Eavesdropper | None) -> Iterator[Light]:
        """Return the light of pulses [0, end) in order."""
        start = 0
        blinding = attack is not None and attack.blinding
        for stretch in self._stretches(end, attack):
            while start < stretch.end:
                limit = min(stretch.end, start + self._frame_pulses)
                covered, positions, tags = self._signal(generator.function, stretch.tails, start, limit)
                if attack is not None:
                    tags = attack.rewrite(tags)
                if stretch.background_mean > 0.0:
                    covered, positions, tags = self._add_background(
                        stretch.background_mean, start, covered, positions, tags
                    )
                offsets = (positions - np.uint64(start)).astype(np.uint32)
                yield Light(start, covered - start, offsets, tags, blinding)
                start = covered

    def _stretches(self, end: int, attack: Eavesdropper | None) -> Iterator[_Stretch]:
        """Split an emission where fading or an eavesdropper changes a probability."""
        source, medium = self._parameters.source, self._parameters.channel.medium
        coherence = medium.coherence_time_s
        interval = PULSES_MAX if coherence is None else max(1, round(coherence * source.pulse_rate_hz))
        forward = attack.forward(None) if attack is not None else None
        start, fade_end, transmittance = 0, 0, 0.0
        table: NDArray[np.float64] = np.zeros((len(source.intensities), 15))
        while start < end:
            if start >= fade_end:
                transmittance, fade_end = float(medium.fading(self._physics, 1)[0]), start + interval
                behind = attack.transmittance(transmittance) if attack is not None else transmittance
                absorbed = photons.absorbed(
                    self._photon_distribution, forward, behind * self._parameters.detector.efficiency_max
                )
                table = photons.tails(absorbed)
            jamming_hz, change = attack.background(start, source.pulse_rate_hz) if attack is not None else (0.0, None)
            stop = min(end, fade_end, end if change is None else max(change, start + 1))
            gate_s = self._parameters.detector.gate_width_ns * 1e-9
            background = self._parameters.background_per_gate + jamming_hz * gate_s
            yield _Stretch(stop, table, background * self._parameters.detector.efficiency_max)
            start = stop

    def _signal(
        self, function: PositionFunction, tails: NDArray[np.float64], start: int, end: int
    ) -> tuple[int, NDArray[np.uint64], NDArray[np.uint8]]:
        """Return (end of the pulses covered, positions, tags): proposals at the largest rate, accepted exactly."""
        ceiling = float(tails[:, 0].max())
        covered, blocks = propose(self._physics, ceiling, start, end)
        positions, tags = np.empty(len(blocks), dtype=np.uint64), np.empty(len(blocks), dtype=np.uint8)
        uniforms = random_words(self._physics, len(blocks))
        count = emulation.emit(
            blocks, function.words(blocks), uniforms, self._thresholds, tails, ceiling, positions, tags
        )
        return covered, positions[:count], tags[:count]

    def _add_background(
        self, mean: float, start: int, end: int, positions: NDArray[np.uint64], tags: NDArray[np.uint8]
    ) -> tuple[int, NDArray[np.uint64], NDArray[np.uint8]]:
        """Merge unpolarised background light (Poisson, `mean` absorbed photons per gate) into the arrivals."""
        table = photons.tails(poisson(mean)[None, :])
        ceiling = float(table[0, 0])
        covered, blocks = propose(self._physics, ceiling, start, end)
        number = (self._physics.random(len(blocks))[:, None] * ceiling < table[0]).sum(axis=1)
        stray = (np.maximum(number, 1) << 4 | UNPOLARISED).astype(np.uint8)
        kept = int(np.searchsorted(positions, np.uint64(covered)))
        return covered, *merge(positions[:kept], tags[:kept], blocks[:, 0], stray)


class PairEmission:
    """Pairs over a chain of entanglement swaps (BBM92); positions count attempts.

    Measuring Alice's half in basis a with outcome x leaves Bob's half in the BB84 state (a, x), or unpolarised with the
    Werner state's probability 1 - w. Her outcomes are uniform and independent, so that the keyed function stands for
    them as it does for choices. Of an attack only the changed states of Bob's half apply.
    """

    def __init__(self, parameters: LinkParameters, chain: ChainParameters, physics: np.random.Generator) -> None:
        self._chain = chain
        self._physics = physics
        self._efficiency = chain.alice_efficiency * parameters.detector.efficiency_max
        self._frame_pulses = _frame_pulses(parameters.detector.dark_probability)

    def light(self, generator: ChoiceGenerator, end: int, attack: Eavesdropper | None) -> Iterator[Light]:
        """Return the light of attempts [0, end) in order."""
        start = 0
        blinding = attack is not None and attack.blinding
        while start < end:
            covered, positions, werner = self._pairs(start, end)
            tags = self._collapse(generator, positions, werner)
            if attack is not None:
                tags = attack.rewrite(tags)
            while start < covered:
                stop = min(covered, start + self._frame_pulses)
                part = slice(*np.searchsorted(positions, np.array([start, stop], dtype=np.uint64)).tolist())
                offsets = (positions[part] - np.uint64(start)).astype(np.uint32)
                yield Light(start, stop - start, offsets, tags[part], blinding)
                start = stop

    def _pairs(self, start: int, end: int) -> tuple[int, NDArray[np.uint64], NDArray[np.float64]]:
        """Return (end of the attempts covered, positions where both ends may click, Werner parameters)."""
        rounds = sample_rounds(self._chain, min(BATCH, end - start), self._physics)
        done = start + np.cumsum(rounds.attempts)
        kept = rounds.succeeded & (self._physics.random(len(done)) < self._efficiency) & (done <= end)
        # A round begins anew behind its end, so the next batch may begin where the last round of this one ended.
        return min(end, int(done[-1])), (done[kept] - 1).astype(np.uint64), rounds.werner[kept]

    def _collapse(
        self, generator: ChoiceGenerator, positions: NDArray[np.uint64], werner: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        choices = generator.choices(positions)
        state = np.where(self._physics.random(len(werner)) < werner, choices.basis << 1 | choices.bit, UNPOLARISED)
        return np.asarray(1 << 4 | state, dtype=np.uint8)
