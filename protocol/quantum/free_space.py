"""Free-space links of vehicles, drones and rooms: 10 m to kilometres of air.

Decides loss (geometry, weather, optics), fading (pointing, turbulence) and background light from a profile of the
surroundings. Implements SPEC §2.2 (rows S0-E8, S0-T1: range 10–100 m, urban / suburban / indoor).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.parameters import ParameterError, require_range

Floats = NDArray[np.float64]

PLANCK_TIMES_LIGHT_J_M: Final = 1.98644586e-25

# (refractive-index structure Cn² in m^(-2/3), spectral radiance of the background in W/(m² sr µm)).
# Orders of magnitude, to be replaced by a site's own: radiances outdoors 1.5 on a clear and 15 on a hazy day, 1.5e-3
# under a full moon (after Miao et al., New J. Phys. 7, 215 (2005)), ten times that among street lamps; rooms are lit
# day and night with little infrared. Cn² near the ground: 1e-13 over warm asphalt, 1e-15 at night; still air 1e-17.
PROFILES: Final[dict[tuple[str, str], tuple[float, float]]] = {
    ("urban", "day"): (1e-13, 15.0),
    ("urban", "night"): (2e-15, 1.5e-2),
    ("suburban", "day"): (3e-14, 1.5),
    ("suburban", "night"): (1e-15, 1.5e-3),
    ("indoor", "day"): (1e-17, 0.1),
    ("indoor", "night"): (1e-17, 1e-2),
}


@dataclass(frozen=True, slots=True)
class FreeSpaceParameters:
    """One line of sight through air.

    Angles are half-angles of the 1/e² beam (divergence) and standard deviations per axis (pointing); apertures are
    diameters. visibility_km gives the weather's attenuation by Kim's model (0.2 dense fog … 23 clear … 200). cn2 and
    radiance come from `profile` and `time` unless given. Fading keeps its value for coherence_s.
    """

    range_m: float = 100.0
    wavelength_nm: float = 850.0
    beam_waist_mm: float = 10.0
    divergence_mrad: float = 0.3
    receiver_aperture_mm: float = 50.0
    pointing_jitter_mrad: float = 0.05
    visibility_km: float = 23.0
    optics_loss_db: float = 2.0
    field_of_view_mrad: float = 0.3
    filter_nm: float = 1.0
    coherence_s: float = 1e-3
    profile: str = "suburban"
    time: str = "night"
    cn2: float | None = None
    radiance: float | None = None

    def __post_init__(self) -> None:
        require_range("range_m", self.range_m, 1.0, 50_000.0, "m")
        require_range("wavelength_nm", self.wavelength_nm, 400.0, 2000.0, "nm")
        require_range("beam_waist_mm", self.beam_waist_mm, 0.1, 1000.0, "mm")
        require_range("divergence_mrad", self.divergence_mrad, 0.001, 100.0, "mrad")
        require_range("receiver_aperture_mm", self.receiver_aperture_mm, 1.0, 2000.0, "mm")
        require_range("pointing_jitter_mrad", self.pointing_jitter_mrad, 0.0, 100.0, "mrad")
        require_range("visibility_km", self.visibility_km, 0.05, 200.0, "km")
        require_range("optics_loss_db", self.optics_loss_db, 0.0, 60.0, "dB")
        require_range("field_of_view_mrad", self.field_of_view_mrad, 0.001, 1000.0, "mrad")
        require_range("filter_nm", self.filter_nm, 0.001, 1000.0, "nm")
        require_range("coherence_s", self.coherence_s, 1e-6, 10.0, "s")
        if (self.profile, self.time) not in PROFILES:
            profiles = sorted({profile for profile, _ in PROFILES})
            raise ParameterError(
                f"profile is {self.profile!r}, time {self.time!r}; they must be one of {profiles} and 'day' or 'night'"
            )
        require_range("cn2", self.structure_constant, 0.0, 1e-11, "m^(-2/3)")
        require_range("radiance", self.background_radiance, 0.0, 1e4, "W/(m² sr µm)")

    @property
    def structure_constant(self) -> float:
        """Return Cn² in m^(-2/3): as given, else the profile's."""
        return PROFILES[self.profile, self.time][0] if self.cn2 is None else self.cn2

    @property
    def background_radiance(self) -> float:
        """Return the background's radiance in W/(m² sr µm): as given, else the profile's."""
        return PROFILES[self.profile, self.time][1] if self.radiance is None else self.radiance

    @property
    def beam_radius_m(self) -> float:
        """Return the 1/e² radius of the beam at the receiver."""
        return math.hypot(self.beam_waist_mm * 1e-3, self.divergence_mrad * 1e-3 * self.range_m)

    @property
    def centred_transmittance(self) -> float:
        """Return the share of a centred beam that enters the aperture: erf(v)², v = √(π/2) a/w (Farid & Hranilovic)."""
        return math.erf(self._aperture_ratio) ** 2

    @property
    def _aperture_ratio(self) -> float:
        return math.sqrt(math.pi / 2.0) * (self.receiver_aperture_mm * 0.5e-3) / self.beam_radius_m

    @property
    def pointing_exponent(self) -> float:
        """Return g of the pointing loss exp(-g E) with E ~ Exp(1): 4 σ² / w_eq² (Farid & Hranilovic 2007, eq. 9)."""
        v = min(self._aperture_ratio, 20.0)
        equivalent = self.beam_radius_m**2 * math.sqrt(math.pi) * math.erf(v) / (2.0 * v * math.exp(-(v**2)))
        return float(4.0 * (self.pointing_jitter_mrad * 1e-3 * self.range_m) ** 2 / equivalent)

    @property
    def weather_loss_db(self) -> float:
        """Return the attenuation of haze or fog over the path (Kim, McArthur, Korevaar 2001)."""
        v = self.visibility_km
        if v > 6.0:
            q = 1.6 if v > 50.0 else 1.3
        elif v > 1.0:
            q = 0.16 * v + 0.34
        else:
            q = max(0.0, v - 0.5)
        per_km = 10.0 * math.log10(math.e) * 3.912 / v * (self.wavelength_nm / 550.0) ** -q
        return float(per_km * self.range_m * 1e-3)

    @property
    def scintillation_index(self) -> float:
        """Return the variance of the received power over its squared mean, averaged over the aperture.

        Plane wave, weak to strong turbulence (Andrews & Phillips 2005), with the aperture factor
        (1 + 1.062 k D²/(4L))^(-7/6).
        """
        k = 2.0 * math.pi / (self.wavelength_nm * 1e-9)
        rytov = 1.23 * self.structure_constant * k ** (7 / 6) * self.range_m ** (11 / 6)
        beta = rytov ** (6 / 5)  # σ_R^(12/5)
        large = 0.49 * rytov / (1.0 + 1.11 * beta) ** (7 / 6)
        small = 0.51 * rytov / (1.0 + 0.69 * beta) ** (5 / 6)
        averaging = (1.0 + 1.062 * k * (self.receiver_aperture_mm * 1e-3) ** 2 / (4.0 * self.range_m)) ** (-7 / 6)
        return float(math.expm1(large + small) * averaging)

    @property
    def still_transmittance(self) -> float:
        """Return the transmittance without pointing errors and turbulence."""
        return self.centred_transmittance * float(10.0 ** (-(self.optics_loss_db + self.weather_loss_db) / 10.0))

    def _transmittances(self, pointing: Floats, turbulence: Floats) -> Floats:
        """Return transmittances for unit exponential and standard normal variates; never above one."""
        sigma = math.sqrt(math.log1p(self.scintillation_index))
        fade = np.exp(sigma * turbulence - 0.5 * sigma**2 - self.pointing_exponent * pointing)
        return np.asarray(np.minimum(1.0, self.still_transmittance * fade))

    def fading(self, physics: np.random.Generator, count: int) -> Floats:
        """Return transmittances of `count` coherence intervals: log-normal turbulence times Gaussian pointing."""
        return self._transmittances(physics.standard_exponential(count), physics.standard_normal(count))

    def fading_levels(self) -> tuple[Floats, Floats]:
        """Return (weights, transmittances) that stand for the fading in averages: 48 groups of a quadrature grid."""
        exponential, exponential_weight = np.polynomial.laguerre.laggauss(40)
        normal, normal_weight = np.polynomial.hermite_e.hermegauss(40)
        weights = np.outer(exponential_weight, normal_weight / normal_weight.sum()).ravel()
        levels = self._transmittances(*(axis.ravel() for axis in np.meshgrid(exponential, normal, indexing="ij")))
        order = np.argsort(levels)
        weights, levels = weights[order], levels[order]
        group = np.minimum((48 * (np.cumsum(weights) - 0.5 * weights)).astype(int), 47)
        total = np.bincount(group, weights, minlength=48)
        means = np.bincount(group, weights * levels, minlength=48)
        kept = total > 0.0
        return total[kept] / total.sum(), means[kept] / total[kept]

    @property
    def transmittance(self) -> float:
        """Return the mean transmittance over the fading."""
        weights, levels = self.fading_levels()
        return float(weights @ levels)

    @property
    def coherence_time_s(self) -> float | None:
        """Return the time over which fading is constant."""
        return self.coherence_s

    @property
    def background_rate_hz(self) -> float:
        """Return background photons per second through aperture, field of view and filter, behind Bob's optics."""
        area_m2 = math.pi * (self.receiver_aperture_mm * 0.5e-3) ** 2
        solid_angle_sr = math.pi * (self.field_of_view_mrad * 0.5e-3) ** 2
        power_w = self.background_radiance * area_m2 * solid_angle_sr * self.filter_nm * 1e-3
        photons_per_s = power_w * self.wavelength_nm * 1e-9 / PLANCK_TIMES_LIGHT_J_M
        return float(photons_per_s * 10.0 ** (-self.optics_loss_db / 10.0))
