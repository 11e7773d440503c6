"""Eavesdroppers on the quantum channel, as wrappers of the light between Alice and Bob.

Each one changes some of: how many photons go on, the transmittance, the states, the background light; and documents
its signature, what Alice and Bob can see of it. Implements SPEC §5 (row S0-T1).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import ParameterError, require_range
from protocol.quantum.detector import BREIDBART
from protocol.quantum.photons import Forward


class Eavesdropper:
    """One that listens to nothing: the base of all, and the hooks that a transmitter calls.

    An eavesdropper sits at Alice's output. It never learns Alice's choices from the emulator: `rewrite` sees states,
    as a measurement would, only to replace them by what the measurement leaves.
    """

    kind: ClassVar[str] = "none"
    # Continuous bright light keeps Bob's detectors in linear mode.
    blinding: bool = False

    def forward(self, forward: Forward | None) -> Forward | None:
        """Return the photon-number map n → f, given that of the eavesdroppers before (None: the identity)."""
        return forward

    def transmittance(self, channel: float) -> float:
        """Return the transmittance behind the eavesdropper, given that of the channel."""
        return channel

    def rewrite(self, tags: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the light that goes on in place of `tags` (tag as in `detector`)."""
        return tags

    def background(self, position: int, pulse_rate_hz: float) -> tuple[float, int | None]:
        """Return (unpolarised photons per second added at Bob's input, position where this changes next or None)."""
        return 0.0, None


class InterceptResend(Eavesdropper):
    """Measures a fraction of the pulses in a basis of her choice and sends her result on with as many photons.

    Signature: QBER rises by fraction · (1 - 2e)/2 · P(her basis differs), 25 % of the fraction for e ≪ 1 with either
    unbiased bases or the Breidbart basis; gains stay.
    """

    kind: ClassVar[str] = "intercept_resend"

    def __init__(
        self,
        physics: np.random.Generator,
        fraction: float = 1.0,
        basis_z_probability: float = 0.5,
        breidbart: float = 0,
    ) -> None:
        require_range("fraction", fraction, 0.0, 1.0)
        require_range("basis_z_probability", basis_z_probability, 0.0, 1.0)
        require_range("breidbart", breidbart, 0, 1)
        self._physics = physics
        self._fraction = fraction
        self._z_probability = basis_z_probability
        self._breidbart = bool(breidbart)

    def rewrite(self, tags: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Replace intercepted BB84 states by the states that her detector announced."""
        states = tags & np.uint8(0x0F)
        hit = (states < 4) & (self._physics.random(tags.size) < self._fraction)
        return np.where(hit, (tags & 0xF0) | self._resent(states), tags).astype(np.uint8)

    def _resent(self, states: NDArray[np.uint8]) -> NDArray[np.uint8]:
        chance = self._physics.random(states.size)
        bits = states & np.uint8(1)
        if self._breidbart:
            wrong = (chance < np.sin(np.pi / 8) ** 2).astype(np.uint8)
            return np.asarray(BREIDBART + (bits ^ wrong), dtype=np.uint8)
        basis = (self._physics.random(states.size) >= self._z_probability).astype(np.uint8)
        measured = np.where(basis == states >> 1, bits, (chance < 0.5).astype(np.uint8))
        return np.asarray(basis << 1 | measured, dtype=np.uint8)


class Combined(Eavesdropper):
    """Several eavesdroppers one behind the other, the first nearest to Alice."""

    kind: ClassVar[str] = "combined"

    def __init__(self, parts: Sequence[Eavesdropper]) -> None:
        self.parts = tuple(parts)
        self.blinding = any(part.blinding for part in self.parts)

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

    def rewrite(self, tags: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Let every part act in order."""
        for part in self.parts:
            tags = part.rewrite(tags)
        return tags

    def background(self, position: int, pulse_rate_hz: float) -> tuple[float, int | None]:
        """Add the background of every part."""
        answers = [part.background(position, pulse_rate_hz) for part in self.parts]
        changes = [change for _, change in answers if change is not None]
        return sum(rate for rate, _ in answers), min(changes, default=None)


_KINDS: dict[str, Callable[..., Eavesdropper]] = {InterceptResend.kind: InterceptResend}


def make_eavesdropper(kind: str, parameters: Mapping[str, float], physics: np.random.Generator) -> Eavesdropper:
    """Return an eavesdropper by name, with `parameters` over its defaults; it draws from `physics` alone.

    Raises ParameterError that names the valid kinds, the valid parameters, or the valid range.
    """
    if kind not in _KINDS:
        raise ParameterError(f"no eavesdropper is called {kind!r}; there are {', '.join(sorted(_KINDS))}")
    factory = _KINDS[kind]
    valid = parameter_names(kind)
    if unknown := sorted(set(parameters) - set(valid)):
        raise ParameterError(f"{kind} has no parameter {', '.join(unknown)}; it has {', '.join(valid)}")
    return factory(physics, **parameters)


def parameter_names(kind: str) -> tuple[str, ...]:
    """Return the parameters of a kind of eavesdropper, in order."""
    constructor = _KINDS[kind].__init__
    return constructor.__code__.co_varnames[2 : constructor.__code__.co_argcount]
