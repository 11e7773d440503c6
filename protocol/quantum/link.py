"""A quantum link: Alice's transmitter, Bob's receiver, and the light between them.

Decides how the pieces of this package act together; the protocol above sees `Choices` and `Detections`, never light.
Only detections cost time: pulses that nobody detects are never drawn. Implements SPEC §3 and §4 (rows S0-E3 … E5, E8,
E10).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.entropy import Entropy
from protocol.kernels import emulation
from protocol.kernels.emulation_twin import BASIS_UNKNOWN
from protocol.parameters import ParameterError, require_range
from protocol.quantum import _light
from protocol.quantum._emission import make_emission
from protocol.quantum._light import LightError
from protocol.quantum._sampling import BATCH, merge, propose, random_words
from protocol.quantum.eavesdropper import Eavesdropper
from protocol.quantum.entanglement import ChainParameters, ChshEstimate, sample_chsh, sample_rounds
from protocol.quantum.link_parameters import LinkParameters
from protocol.quantum.plan import expected_signature
from protocol.quantum.source import PULSES_MAX, ChoiceGenerator, Choices, PositionFunction

__all__ = ["Choices", "Detections", "LightError", "LinkParameters", "Receiver", "Transmitter"]

# A frame whose gates promise more dark counts than this (384 MiB of them) is refused instead of exhausting memory.
FRAME_DARK_COUNTS_MAX: Final = 2**24


@dataclass(frozen=True, slots=True, repr=False)
class Detections:
    """What Bob registered: positions (uint64, strictly increasing), basis (uint8: 0 Z, 1 X) and bit (uint8)."""

    positions: NDArray[np.uint64]
    basis: NDArray[np.uint8]
    bit: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<Detections of {self.positions.size} pulses, redacted>"


class Transmitter:
    """Alice's device, with the channel and any eavesdropper on it: it emits the light that reaches Bob.

    Alice's choices come from a function keyed by `entropy` anew for every emission; `physics` draws photon numbers,
    loss and background. Loss and the receiver's efficiency thin the light here already (independent thinnings
    commute), so that frames carry only light that a detector would absorb.
    """

    def __init__(self, parameters: LinkParameters, entropy: Entropy, physics: np.random.Generator) -> None:
        self._parameters = parameters
        self._entropy = entropy
        self._physics = physics
        self._emission = make_emission(parameters, physics)
        self._pulse_count = 0
        self._generator: ChoiceGenerator | None = None
        self.attack: Eavesdropper | None = None

    def emit(self, pulse_count: int) -> bytes:
        """Emit pulses with fresh choices and return the light that reaches the receiver: one opaque frame.

        pulse_count: 0 … 2^32 - 1; the frame takes 5 bytes per arrival. Raises ParameterError outside the range.
        """
        require_range("pulse_count", pulse_count, 0, _light.FRAME_PULSES_MAX, "pulses in one frame")
        parts = list(self._begin(pulse_count))
        offsets = [part.offsets + np.uint32(part.first) for part in parts]
        tags = [part.tags for part in parts]
        blinding = any(part.blinding for part in parts)
        if not parts:
            return _light.encode(_light.Light(0, pulse_count, np.empty(0, np.uint32), np.empty(0, np.uint8)))
        return _light.encode(_light.Light(0, pulse_count, np.concatenate(offsets), np.concatenate(tags), blinding))

    def emit_chunks(self, pulse_count: int) -> Iterator[bytes]:
        """Emit up to 2^44 pulses with fresh choices, as frames of at most 256 KiB in order of position.

        Each frame covers its own range of pulses, and together they cover all; memory does not grow with the number
        of pulses. The emission begins at the call: `choices` works from then on.
        """
        require_range("pulse_count", pulse_count, 0, PULSES_MAX, "pulses")
        return (_light.encode(light) for light in self._begin(int(pulse_count)))

    def choices(self, positions: NDArray[np.uint64]) -> Choices:
        """Return Alice's choices of the last emission at `positions` (uint64, any order).

        Raises ParameterError for a position that was not emitted.
        """
        if self._generator is None or (len(positions) and int(positions.max()) >= self._pulse_count):
            raise ParameterError(f"choices are known for the {self._pulse_count} pulses of the last emission only")
        return self._generator.choices(positions)

    @property
    def incoming_photons_per_pulse(self) -> float:
        """Return what the watch detector at Alice's output sees come in: nothing but for a Trojan-horse attack."""
        return 0.0 if self.attack is None else self.attack.probe_photons

    def _begin(self, pulse_count: int) -> Iterator[_light.Light]:
        self._generator = ChoiceGenerator(self._parameters.source, self._entropy.take(32))
        self._pulse_count = pulse_count
        return self._emission.light(self._generator, pulse_count, self.attack)

    def chsh(self, pair_count: int) -> ChshEstimate:
        """Return the CHSH value of further pairs of a swapped chain, sacrificed for the check (E91); none of the key's.

        Raises ParameterError on a link without entanglement, and below 8 pairs.
        """
        chain = self._parameters.channel.medium
        if not isinstance(chain, ChainParameters):
            raise ParameterError("only pairs over a swapped chain have a CHSH value")
        require_range("pairs", pair_count, 8, 1e8)
        werner = sample_rounds(chain, pair_count, self._physics).werner
        if self.attack is not None:
            werner = werner * self._correlation_left(self.attack)
        return sample_chsh(werner, self._physics)

    def _correlation_left(self, attack: Eavesdropper) -> float:
        """Return what an eavesdropper leaves of the correlations in the Z-X plane: 1 - 2e shrinks with her errors e."""
        honest = expected_signature(self._parameters).basis_qber[0]
        attacked = expected_signature(self._parameters, attack).basis_qber[0]
        return float(np.mean([(1.0 - 2.0 * e) / (1.0 - 2.0 * q) for e, q in zip(attacked, honest, strict=True)]))

    @property
    def is_entangled(self) -> bool:
        """Return whether the link shares entangled pairs, so that `chsh` has an answer."""
        return isinstance(self._parameters.channel.medium, ChainParameters)


class Receiver:
    """Bob's device: it turns light into detections, and its user sees nothing else of the light.

    Bob's basis at a pulse is a function of the position under a key from `entropy`, fresh for every frame; detection,
    dark counts, after-pulses and double clicks are drawn from `physics`. Dead time and pending after-pulses go on
    from frame to frame while these follow each other.
    """

    def __init__(self, parameters: LinkParameters, entropy: Entropy, physics: np.random.Generator) -> None:
        self._detector = parameters.detector
        self._entropy = entropy
        self._physics = physics
        noise = parameters.channel.noise.one_probability()
        self._outcomes = self._detector.outcome_table(noise)
        self._outcomes_blinded = self._detector.outcome_table(noise, blinded=True)
        self._rules = self._detector.rules(parameters.source.pulse_rate_hz)
        self._basis_threshold = self._detector.basis_threshold()
        self._carry = emulation.fresh_carry()
        self._next_position = 0
        self._photocurrent = False

    @property
    def photocurrent(self) -> bool:
        """Return whether the last frame drove a continuous photocurrent: bright light, never single photons."""
        return self._photocurrent

    def measure(self, light: bytes) -> Detections:
        """Measure one frame of light and return what the detectors registered in its range of pulses.

        Raises LightError, and nothing else, on a malformed frame; the detectors are unchanged then.
        """
        arrived = _light.decode(light)
        if arrived.pulse_count * self._detector.dark_probability > FRAME_DARK_COUNTS_MAX:
            raise LightError(f"a frame of {arrived.pulse_count} pulses has too many dark counts for one measurement")
        if arrived.first != self._next_position or arrived.first == 0:
            self._carry = emulation.fresh_carry()
        self._next_position = arrived.first + arrived.pulse_count
        self._photocurrent = arrived.blinding
        positions, tags = arrived.offsets + np.uint64(arrived.first), arrived.tags
        if not arrived.blinding:
            positions, tags = merge(positions, tags, *self._dark_counts(arrived.first, self._next_position))
        return self._detect(positions, tags, arrived.blinding)

    def _dark_counts(self, start: int, end: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        parts = []
        while start < end:
            start, blocks = propose(self._physics, self._detector.dark_probability, start, end)
            parts.append(blocks[:, 0])
        positions = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
        return positions, self._detector.dark_tags(self._physics.random(len(positions)))

    def _detect(self, positions: NDArray[np.uint64], tags: NDArray[np.uint8], blinded: bool) -> Detections:
        """Detect in batches; the last one reaches to the end of the frame."""
        function = PositionFunction(self._entropy.take(32))
        outcomes = self._outcomes_blinded if blinded else self._outcomes
        found, start, stop = [], 0, -1
        while stop < len(positions):
            stop = min(start + BATCH, len(positions))
            end = self._next_position
            if stop < len(positions):
                end = int(positions[stop])
                stop = int(np.searchsorted(positions, np.uint64(end)))  # a gate's arrivals stay together
            detected, basis, bit = emulation.detect(
                positions[start:stop],
                tags[start:stop],
                function.words_at(positions[start:stop]),
                random_words(self._physics, len(positions[start:stop])),
                outcomes,
                self._basis_threshold,
                end,
                # Avalanches fill the traps that release after-pulses, and a blinded detector has none.
                self._rules._replace(after_pulse_probability=0.0) if blinded else self._rules,
                self._carry,
            )
            self._complete_bases(function, detected, basis)
            found.append((detected, basis, bit))
            start = stop
        if len(found) == 1:
            return Detections(*found[0])
        return Detections(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _complete_bases(
        self, function: PositionFunction, detected: NDArray[np.uint64], basis: NDArray[np.uint8]
    ) -> None:
        """Read Bob's basis where nothing but an after-pulse clicked."""
        unknown = np.flatnonzero(basis == BASIS_UNKNOWN)
        if not unknown.size:
            return
        for part in np.split(unknown, range(BATCH, len(unknown), BATCH)):
            words = function.words_at(detected[part])
            basis[part] = (words[:, 0] >> np.uint64(32)) < np.uint64(self._basis_threshold)
