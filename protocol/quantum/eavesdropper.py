"""Eavesdroppers on the quantum channel, as wrappers of the light between Alice and Bob.

Each one is a set of changes: how many photons go on, the transmittance behind it, the states, the background light;
and documents its signature, what Alice and Bob can see of it. `plan.expected_signature` computes the signature from
the same changes, the emulator draws from them. Implements SPEC §5 (row S0-T1).
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import ParameterError, require, require_range
from protocol.quantum.detector import BREIDBART, BRIGHT
from protocol.quantum.photons import Forward, binomial_loss, identity_forward
from protocol.quantum.source import PHOTONS_MAX

# Kinds of light: the low nibble of a tag (see `detector`).
KINDS: Final = 16
Transition = NDArray[np.float64]


class Eavesdropper:
    """One that does nothing: the base of all, and the hooks that the emulator and the planner call.

    An eavesdropper sits at Alice's output. It never learns Alice's choices from the emulator: `transition` turns
    states into what her measurement and her resending leave, pulse by pulse and independently.
    """

    kind: ClassVar[str] = "none"
    # Continuous bright light keeps Bob's detectors in linear mode, where single photons and dark counts do not click.
    blinding: bool = False
    # Mean photons per pulse that enter Alice's device: what a watch detector at her output sees.
    probe_photons: float = 0.0
    # Background that she adds at Bob's input while she adds any, in photons per second.
    background_peak_hz: float = 0.0

    def __init__(self, physics: np.random.Generator) -> None:
        self._physics = physics

    def forward(self, forward: Forward | None) -> Forward | None:
        """Return the photon-number map n → f, given that of the eavesdroppers before (None: the identity)."""
        return forward

    def transmittance(self, channel: float) -> float:
        """Return the transmittance behind the eavesdropper, given that of the channel."""
        return channel

    def transition(self) -> Transition | None:
        """Return P[kind, kind'] with rows that sum to one, or None where states pass untouched."""
        return None

    def rewrite(self, tags: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the light that goes on in place of `tags`: every kind replaced as `transition` says."""
        transition = self.transition()
        if transition is None:
            return tags
        limits = np.cumsum(transition, axis=1)[:, :-1]
        kinds = (self._physics.random(tags.size)[:, None] >= limits[tags & np.uint8(0x0F)]).sum(axis=1)
        return np.asarray((tags & np.uint8(0xF0)) | kinds, dtype=np.uint8)

    def tamper(self, message: bytes) -> bytes:
        """Return a message of the classical channel as it goes on: unchanged, unless a kind says otherwise."""
        return message

    def background(self, position: int, pulse_rate_hz: float) -> tuple[float, int | None]:
        """Return (unpolarised photons per second added at Bob's input, position where this changes next or None)."""
        return self.background_peak_hz, None


def measured_and_resent(basis: int, first_kind: int) -> Transition:
    """Return the transition of measuring BB84 states in `basis` and sending the result as kind first_kind | bit."""
    transition = np.eye(KINDS)
    for state in range(4):
        transition[state] = 0.0
        for bit in (0, 1):
            overlap = float(state & 1 == bit) if state >> 1 == basis else 0.5
            transition[state, first_kind | bit] = overlap
    return transition


class InterceptResend(Eavesdropper):
    """Measures a fraction of the pulses in a basis of her choice and sends her result on with as many photons.

    Signature: with perfect optics the QBER of basis B is fraction · P(she measures the other basis) / 2; the Breidbart
    basis, half-way between both, gives 25 % of the fraction in each. Gains stay.
    """

    kind: ClassVar[str] = "intercept_resend"

    def __init__(
        self,
        physics: np.random.Generator,
        fraction: float = 1.0,
        basis_z_probability: float = 0.5,
        breidbart: float = 0.0,
    ) -> None:
        super().__init__(physics)
        require_range("fraction", fraction, 0.0, 1.0)
        require_range("basis_z_probability", basis_z_probability, 0.0, 1.0)
        require(breidbart in (0, 1), f"breidbart is {breidbart:g}; it must be 0 or 1")
        self._fraction = fraction
        self._z_probability = basis_z_probability
        self._breidbart = bool(breidbart)

    def transition(self) -> Transition:
        """Mix untouched pulses with those measured in Z, X or the Breidbart basis."""
        if self._breidbart:
            measured = np.eye(KINDS)
            for state in range(4):
                wrong = math.sin(math.pi / 8) ** 2
                measured[state] = 0.0
                measured[state, BREIDBART + (state & 1)] = 1.0 - wrong
                measured[state, BREIDBART + 1 - (state & 1)] = wrong
        else:
            z, x = measured_and_resent(0, 0), measured_and_resent(1, 2)
            measured = self._z_probability * z + (1.0 - self._z_probability) * x
        return np.asarray(self._fraction * measured + (1.0 - self._fraction) * np.eye(KINDS))


class PhotonNumberSplitting(Eavesdropper):
    """Counts photons without disturbing them, keeps one of several in a memory until the bases are announced, sends
    the others through a channel of her own, and blocks part of the single photons to hide the better channel.

    single_pass: probability that a lone photon may go on; transmittance: of her own channel.
    Signature: no errors; the gain of weak pulses falls more than that of strong ones (the single-photon yield drops
    by single_pass against the multi-photon yields), which decoy intensities show; without decoys nothing shows
    (`plan.unsuspicious_single_pass` finds the value that keeps the signal's gain).
    """

    kind: ClassVar[str] = "photon_number_splitting"

    def __init__(self, physics: np.random.Generator, single_pass: float = 0.0, transmittance: float = 1.0) -> None:
        super().__init__(physics)
        require_range("single_pass", single_pass, 0.0, 1.0)
        require_range("transmittance", transmittance, 0.0, 1.0)
        self._single_pass = single_pass
        self._transmittance = transmittance

    def forward(self, forward: Forward | None) -> Forward:
        """Take one photon of several away; block single ones."""
        split = np.zeros((PHOTONS_MAX + 1, PHOTONS_MAX + 1))
        split[0, 0] = 1.0
        split[1, :2] = 1.0 - self._single_pass, self._single_pass
        split[np.arange(2, PHOTONS_MAX + 1), np.arange(1, PHOTONS_MAX)] = 1.0
        return split if forward is None else np.asarray(forward @ split)

    def transmittance(self, channel: float) -> float:
        """Replace the channel by her own."""
        return self._transmittance


class BeamSplitting(Eavesdropper):
    """Taps a fraction of the light and, where she can, replaces the channel by a better one to make up for it.

    Signature: none while compensated (1 - tapped ≥ the channel's transmittance); without compensation all gains fall
    by the tapped fraction. What she learns is bounded by the multi-photon part, which the decoy bounds give away.
    """

    kind: ClassVar[str] = "beam_splitting"

    def __init__(self, physics: np.random.Generator, tapped: float = 0.5, compensated: float = 1.0) -> None:
        super().__init__(physics)
        require_range("tapped", tapped, 0.0, 1.0)
        require(compensated in (0, 1), f"compensated is {compensated:g}; it must be 0 or 1")
        self._passed = 1.0 - tapped
        self._compensated = bool(compensated)

    def forward(self, forward: Forward | None) -> Forward:
        """Lose the tapped photons."""
        return np.asarray((identity_forward() if forward is None else forward) @ binomial_loss(self._passed))

    def transmittance(self, channel: float) -> float:
        """Improve the channel as far as physics allows."""
        return min(1.0, channel / self._passed) if self._compensated and self._passed > 0.0 else channel


class TrojanHorse(Eavesdropper):
    """Shines light into Alice's device and reads her basis from the reflection, then measures in that basis.

    reflected_photons: mean photons of the reflection that carry the setting, isolation_db: what Alice's isolators take
    on the way in and out. She knows the basis of 1 - exp(-reflected) of the pulses.
    Signature: neither errors nor gains change; Alice's watch detector sees `probe_photons` per pulse.
    """

    kind: ClassVar[str] = "trojan_horse"

    def __init__(
        self, physics: np.random.Generator, reflected_photons: float = 0.1, isolation_db: float = 100.0
    ) -> None:
        super().__init__(physics)
        require_range("reflected_photons", reflected_photons, 0.0, 1e6)
        require_range("isolation_db", isolation_db, 0.0, 200.0, "dB")
        self.known_fraction = -math.expm1(-reflected_photons)
        self.probe_photons = reflected_photons * 10.0 ** (isolation_db / 10.0)


class DetectorBlinding(Eavesdropper):
    """Blinds Bob's detectors with continuous light, measures the pulses herself, and makes Bob's detector click with
    bright pulses, which do so only in her basis.

    Signature: misalignment, dark counts, after-pulses and double clicks vanish, so that the QBER and the gain of the
    vacuum intensity fall to zero; sifted gains stay as they were since she doubles the rate; Bob's photocurrent monitor
    shows the continuous light (`Receiver.photocurrent`).
    """

    kind: ClassVar[str] = "detector_blinding"
    blinding = True

    def transmittance(self, channel: float) -> float:
        """Send twice as often, since half of her pulses meet the other basis."""
        return min(1.0, 2.0 * channel)

    def transition(self) -> Transition:
        """Measure in either basis, send bright pulses."""
        return np.asarray(0.5 * measured_and_resent(0, BRIGHT) + 0.5 * measured_and_resent(1, BRIGHT | 2))


class Jamming(Eavesdropper):
    """Raises the background light at Bob's input: a level, in bursts of a period and duty cycle, for a duration.

    Times count from the beginning of each emission.
    Signature: while it lasts every intensity's gain rises by the same background yield, vacuum included, and the QBER
    goes to (e Q + Y/2) / (Q + Y).
    """

    kind: ClassVar[str] = "jamming"

    def __init__(
        self,
        physics: np.random.Generator,
        level_hz: float = 1e6,
        duty_cycle: float = 1.0,
        period_s: float = 1e-3,
        start_s: float = 0.0,
        duration_s: float = 1e6,
    ) -> None:
        super().__init__(physics)
        require_range("level_hz", level_hz, 0.0, 1e12, "photons/s")
        require_range("duty_cycle", duty_cycle, 0.0, 1.0)
        require_range("period_s", period_s, 1e-9, 1e6, "s")
        require_range("start_s", start_s, 0.0, 1e6, "s")
        require_range("duration_s", duration_s, 0.0, 1e6, "s")
        self.background_peak_hz, self._duty_cycle, self._period_s = level_hz, duty_cycle, period_s
        self._start_s, self._end_s = start_s, start_s + duration_s

    def background(self, position: int, pulse_rate_hz: float) -> tuple[float, int | None]:
        """Return the level inside a burst and zero outside, with the next edge of a burst."""
        start, end = round(self._start_s * pulse_rate_hz), round(self._end_s * pulse_rate_hz)
        period = max(1, round(self._period_s * pulse_rate_hz))
        burst = round(period * self._duty_cycle)
        if position < start:
            return 0.0, start
        if position >= end:
            return 0.0, None
        cycle, phase = divmod(position - start, period)
        if burst == period:
            return self.background_peak_hz, end
        edge = burst if phase < burst else period
        return (self.background_peak_hz if phase < burst else 0.0), min(end, start + cycle * period + edge)


class ManInTheMiddle(InterceptResend):
    """Intercepts and resends every pulse, and alters messages on the classical channel to hide it.

    Signature: that of interception, and messages whose authentication tag does not verify: a session must end at the
    first one, whatever its QBER looks like.
    """

    kind: ClassVar[str] = "man_in_the_middle"

    def __init__(self, physics: np.random.Generator, fraction: float = 1.0, tampered: float = 1.0) -> None:
        super().__init__(physics, fraction)
        require_range("tampered", tampered, 0.0, 1.0)
        self._tampered = tampered

    def tamper(self, message: bytes) -> bytes:
        """Return a classical message as it goes on: with probability `tampered` one bit is another."""
        if not message or self._physics.random() >= self._tampered:
            return message
        altered = bytearray(message)
        altered[int(self._physics.integers(len(message)))] ^= 1 << int(self._physics.integers(8))
        return bytes(altered)


class Combined(Eavesdropper):
    """Several eavesdroppers one behind the other, the first nearest to Alice."""

    kind: ClassVar[str] = "combined"

    def __init__(self, parts: Sequence[Eavesdropper]) -> None:
        self.parts = tuple(parts)
        self.blinding = any(part.blinding for part in self.parts)
        self.probe_photons = sum(part.probe_photons for part in self.parts)
        self.background_peak_hz = sum(part.background_peak_hz for part in self.parts)

    def forward(self, forward: Forward | None) -> Forward | None:
        """Apply every part's map in order."""
        for part in self.parts:
            forward = part.forward(forward)
        return forward

    def transmittance(self, channel: float) -> float:
        """Apply every part's change in order."""
        for part in self.parts:
            channel = part.transmittance(channel)
        return channel

    def transition(self) -> Transition:
        """Return the product of the parts' transitions."""
        total = np.eye(KINDS)
        for part in self.parts:
            step = part.transition()
            total = total if step is None else total @ step
        return total

    def rewrite(self, tags: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Let every part act in order, with its own physics."""
        for part in self.parts:
            tags = part.rewrite(tags)
        return tags

    def tamper(self, message: bytes) -> bytes:
        """Let every part act in order."""
        for part in self.parts:
            message = part.tamper(message)
        return message

    def background(self, position: int, pulse_rate_hz: float) -> tuple[float, int | None]:
        """Add the background of every part."""
        answers = [part.background(position, pulse_rate_hz) for part in self.parts]
        changes = [change for _, change in answers if change is not None]
        return sum(rate for rate, _ in answers), min(changes, default=None)


_KINDS: Final[dict[str, type[Eavesdropper]]] = {
    kind.kind: kind
    for kind in (
        InterceptResend,
        PhotonNumberSplitting,
        BeamSplitting,
        TrojanHorse,
        DetectorBlinding,
        Jamming,
        ManInTheMiddle,
    )
}


def eavesdropper_kinds() -> tuple[str, ...]:
    """Return the names that `make_eavesdropper` knows."""
    return tuple(sorted(_KINDS))


def parameter_names(kind: str) -> tuple[str, ...]:
    """Return the parameters of a kind of eavesdropper, in order."""
    return tuple(inspect.signature(_KINDS[kind]).parameters)[1:]


def make_eavesdropper(kind: str, parameters: Mapping[str, float], physics: np.random.Generator) -> Eavesdropper:
    """Return an eavesdropper by name, with `parameters` over its defaults; it draws from `physics` alone.

    Raises ParameterError that names the valid kinds, the valid parameters, or the valid range.
    """
    if kind not in _KINDS:
        raise ParameterError(f"no eavesdropper is called {kind!r}; there are {', '.join(eavesdropper_kinds())}")
    valid = parameter_names(kind)
    if unknown := sorted(set(parameters) - set(valid)):
        raise ParameterError(f"{kind} has no parameter {', '.join(unknown)}; it has {', '.join(valid) or 'none'}")
    return _KINDS[kind](physics, **parameters)


def make_eavesdroppers(kinds: str, parameters: Mapping[str, float], physics: np.random.Generator) -> Eavesdropper:
    """Return the eavesdropper of one name, or of several joined by "+", the first nearest to Alice.

    Of several, a parameter is named `kind.parameter`. Raises ParameterError.
    """
    names = kinds.split("+")
    if len(names) == 1:
        return make_eavesdropper(kinds, parameters, physics)
    given: dict[str, dict[str, float]] = {each: {} for each in names}
    for name, value in parameters.items():
        owner, _, parameter = name.partition(".")
        if owner not in given or not parameter:
            raise ParameterError(f"{name!r} must be kind.parameter, with a kind of {', '.join(names)}")
        given[owner][parameter] = value
    return Combined([make_eavesdropper(each, given[each], physics) for each in names])
