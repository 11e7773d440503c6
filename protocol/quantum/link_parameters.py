"""The parameters of a whole link: source, channel and detectors, and what they must be to each other.

Decides which configurations are valid, and which the security proofs cover. Each part owns its own record; this one
reads them from configuration tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from protocol.parameters import ParameterError, require
from protocol.quantum.channel import ChannelParameters, FibreParameters, Medium
from protocol.quantum.detector import DetectorParameters
from protocol.quantum.entanglement import ChainParameters
from protocol.quantum.free_space import FreeSpaceParameters
from protocol.quantum.noise import NoiseParameters
from protocol.quantum.source import SINGLE_PHOTON, SourceParameters

_MEDIA: Final[dict[str, type]] = {
    "fibre": FibreParameters,
    "free_space": FreeSpaceParameters,
    "swapped_chain": ChainParameters,
}


@dataclass(frozen=True, slots=True)
class LinkParameters:
    """Everything that both ends and the planner must know of a link."""

    source: SourceParameters = field(default_factory=SourceParameters)
    channel: ChannelParameters = field(default_factory=ChannelParameters)
    detector: DetectorParameters = field(default_factory=DetectorParameters)

    def __post_init__(self) -> None:
        chain = self.channel.medium
        if not isinstance(chain, ChainParameters):
            return
        require(
            self.source.model == SINGLE_PHOTON,
            "pairs over a swapped chain need [source] model = 'single_photon', whose security proof covers them",
        )
        attempts_hz = 1.0 / chain.attempt_period_s
        require(
            abs(self.source.pulse_rate_hz / attempts_hz - 1.0) < 1e-6,
            f"pulse_rate_hz is {self.source.pulse_rate_hz:g} Hz; over this swapped chain positions count attempts, and "
            f"it must be {attempts_hz!r} Hz",
        )

    @classmethod
    def from_mapping(cls, table: Mapping[str, object]) -> "LinkParameters":
        """Return the parameters of the TOML tables [source], [channel] and [detector]; what is not given is default.

        [channel] holds `kind` ("fibre", "free_space" or "swapped_chain"), that medium's keys and the noise keys. Raises
        ParameterError that names the valid keys or the valid range.
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
