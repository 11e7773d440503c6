"""Energy by a stated model (S0-E24): so many joules per second of processor time and per byte on the wire.

Emulated nodes share a machine that has no meter, so energy is a model and says so: its two constants come from a
profile that names its source. Figures of one profile compare with each other, not with a wall socket.
"""

from typing import Final

from loadtest.results.records import EnergyProfile

PROFILES: Final[dict[str, EnergyProfile]] = {
    "server": EnergyProfile(
        name="server",
        joules_per_cpu_second=5.0,
        joules_per_byte=5e-9,
        source="5 W per busy core: a server processor of 320 W for 64 cores at full load. 5 nJ per byte: 10 Gbit/s "
        "Ethernet adapter and cable of some 6 W at line rate. Orders of magnitude for relative comparison.",
    ),
    "vehicle": EnergyProfile(
        name="vehicle",
        joules_per_cpu_second=1.5,
        joules_per_byte=1e-6,
        source="1.5 W per busy core: an embedded processor of 6 W for 4 cores. 1 µJ per byte: an 802.11 radio of some "
        "1 W sending 8 Mbit/s. Orders of magnitude for relative comparison.",
    ),
}


def energy_j(profile: EnergyProfile, cpu_s: float, bytes_sent: float, bytes_received: float) -> float:
    """Return joules for processor time and for every byte at both of its ends."""
    return profile.joules_per_cpu_second * cpu_s + profile.joules_per_byte * (bytes_sent + bytes_received)
