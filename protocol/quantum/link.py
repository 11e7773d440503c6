"""A quantum link: Alice's transmitter, Bob's receiver, and the light between them.

Decides how the pieces of this package act together; the protocol above sees `Choices` and `Detections`, never light.
Only detections cost time: pulses that nobody detects are never drawn. Implements SPEC §3 and §4 (rows S0-E3 … E5, E8).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.entropy import Entropy
from protocol.kernels import emulation
from protocol.kernels.emulation_twin import BASIS_UNKNOWN
from protocol.parameters import ParameterError, require_range
from protocol.quantum import _light, photons
from protocol.quantum._light import LightError
from protocol.quantum._sampling import BATCH, merge, propose, random_words
from protocol.quantum.channel import ChannelParameters, FibreParameters, Medium
from protocol.quantum.detector import UNPOLARISED, DetectorParameters
from protocol.quantum.eavesdropper import Eavesdropper
from protocol.quantum.free_space import FreeSpaceParameters
from protocol.quantum.noise import NoiseParameters
from protocol.quantum.source import (
    PULSES_MAX,
    ChoiceGenerator,
    Choices,
    PositionFunction,
    SourceParameters,
    poisson,
)

__all__ = ["Choices", "Detections", "LightError", "LinkParameters", "Receiver", "Transmitter"]

# Frames of a long emission are cut so that each lets a receiver make about a million dark counts at most.
FRAME_DARK_COUNTS: Final = 2**20

# A frame whose gates promise more dark counts than this (384 MiB of them) is refused instead of exhausting memory.
FRAME_DARK_COUNTS_MAX: Final = 2**24

_MEDIA: Final[dict[str, type]] = {"fibre": FibreParameters, "free_space": FreeSpaceParameters}


@dataclass(frozen=True, slots=True)
class LinkParameters:
    """Everything that both ends and the planner must know of a link."""

    source: SourceParameters = field(default_factory=SourceParameters)
    channel: ChannelParameters = field(default_factory=ChannelParameters)
    detector: DetectorParameters = field(default_factory=DetectorParameters)

    @classmethod
    def from_mapping(cls, table: Mapping[str, object]) -> "LinkParameters":
        """Return the parameters of the TOML tables [source], [channel] and [detector]; what is not given is default.

        [channel] holds `kind` ("fibre" or "free_space"), that medium's keys and the noise keys. Raises ParameterError
        that names the valid keys or the valid range.
        """
        _refuse_unknown("a link", table, ("source", "channel", "detector"))
        tables = {name: _table(name, table.get(name, {})) for name in ("source", "channel", "detector")}
        return cls(
            source=_record(SourceParameters, "source", tables["source"]),
            channel=_channel(tables["channel"]),
            detector=_record(DetectorParameters, "detector", tables["detector"]),
        )

    @property
    def proof_gaps(self) -> tuple[str, ...]:
        """Return what of these parameters the security proofs do not cover (SPEC §7.4): such a link makes no key."""
        detector, gaps = self.detector, []
        if detector.efficiency_0 != detector.efficiency_1:
            gaps.append("the detectors' efficiencies differ: a click's value is not independent of its being detected")
        if detector.double_click != "random":
            gaps.append("double clicks are discarded, not assigned at random")
        if self.source.intensity_fluctuation > 0.0:
            gaps.append("the intensities fluctuate, and the decoy bounds need them known")
        return tuple(gaps)

    @property
    def background_per_gate(self) -> float:
        """Return the channel's mean number of background photons at Bob's input in one gate."""
        return self.channel.medium.background_rate_hz * self.detector.gate_width_ns * 1e-9


def _table(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ParameterError(f"[{name}] must be a table")
    return value


def _refuse_unknown(owner: str, table: Mapping[str, object], valid: tuple[str, ...]) -> None:
    if unknown := sorted(set(table) - set(valid)):
        raise ParameterError(f"{owner} has no key {', '.join(unknown)}; it has {', '.join(valid)}")


def _names(record: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(record))


def _record(record: type, name: str, table: Mapping[str, object]) -> Any:
    """Return `record` built from `table`, with unknown keys and wrong types refused."""
    _refuse_unknown(f"[{name}]", table, _names(record))
    defaults = {f.name: f.default for f in fields(record)}
    for key, value in table.items():
        textual = isinstance(defaults[key], str)
        if isinstance(value, str) != textual or isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ParameterError(f"{key} in [{name}] must be {'a string' if textual else 'a number'}, not {value!r}")
    return record(**table)


def _channel(table: Mapping[str, object]) -> ChannelParameters:
    kind = table.get("kind", "fibre")
    if not isinstance(kind, str) or kind not in _MEDIA:
        raise ParameterError(f"kind in [channel] is {kind!r}; it must be one of {', '.join(_MEDIA)}")
    noise_names, medium_names = _names(NoiseParameters), _names(_MEDIA[kind])
    _refuse_unknown(f"[channel] of kind {kind}", table, ("kind", *medium_names, *noise_names))
    medium: Medium = _record(_MEDIA[kind], "channel", {k: v for k, v in table.items() if k in medium_names})
    noise = _record(NoiseParameters, "channel", {k: v for k, v in table.items() if k in noise_names})
    return ChannelParameters(medium, noise)


@dataclass(frozen=True, slots=True, repr=False)
class Detections:
    """What Bob registered: positions (uint64, strictly increasing), basis (uint8: 0 Z, 1 X) and bit (uint8)."""

    positions: NDArray[np.uint64]
    basis: NDArray[np.uint8]
    bit: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<Detections of {self.positions.size} pulses, redacted>"


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Pulses up to `end` over which every probability is constant."""

    end: int
    tails: NDArray[np.float64]
    background_mean: float


def _frame_pulses(dark_probability: float) -> int:
    if dark_probability * _light.FRAME_PULSES_MAX <= FRAME_DARK_COUNTS:
        return _light.FRAME_PULSES_MAX
    return int(FRAME_DARK_COUNTS / dark_probability)


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
        self._thresholds = parameters.source.choice_thresholds()
        self._photon_distribution = parameters.source.photon_distribution()
        self._frame_pulses = _frame_pulses(parameters.detector.dark_probability)
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
        return self._light(self._generator.function, pulse_count, self.attack)

    def _light(self, function: PositionFunction, end: int, attack: Eavesdropper | None) -> Iterator[_light.Light]:
        start = 0
        blinding = attack is not None and attack.blinding
        for stretch in self._stretches(end, attack):
            while start < stretch.end:
                limit = min(stretch.end, start + self._frame_pulses)
                covered, positions, tags = self._signal(function, stretch.tails, start, limit)
                if attack is not None:
                    tags = attack.rewrite(tags)
                if stretch.background_mean > 0.0:
                    covered, positions, tags = self._add_background(
                        stretch.background_mean, start, covered, positions, tags
                    )
                offsets = (positions - np.uint64(start)).astype(np.uint32)
                yield _light.Light(start, covered - start, offsets, tags, blinding)
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
