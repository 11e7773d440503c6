"""What a device may spend: its battery, the cost of each kind of work, what session that allows (S4-6.1, S4-6.2).

Pure. The key's length follows the energy left, |K_final| = α·E, between the floor of the policy and the most that a
session gives; below the floor the device says that it is too weak, it never makes a shorter key. Numbers come from a
profile file, which names their sources.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from protocol.lightweight.device import SessionFigures, Wish
from protocol.lightweight.length import CONTROL_BITS, DevicePolicy, SiftedCounts, session_length
from protocol.lightweight.receiver import ReceiverParameters
from protocol.parameters import ParameterError, require, require_range

SESSIONS: Final = ((512, False), (1024, False), (2048, True), (2048, False), (3072, False), (4096, True), (4096, False))
"""Sizes in sifted bits, and whether only a subset makes key, that a device chooses from."""
KEY_BITS_MOST: Final = 2048
SESSION_BYTES_SENT: Final = 700
"""Seeds, proofs and headers of a session; positions and bases come on top."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of device: its battery, its costs in joules, its receiver, its habits.

    `alpha_bits_per_j` is the paper's α; `reserve_share` of the battery is never spent on keys.
    `session_sifted_bits` fixes the size of its sessions; 0 lets energy and wish decide.
    """

    name: str
    battery_j: float
    charge_share: float
    harvest_w: float
    idle_w: float
    qubit_j: float
    sent_byte_j: float
    received_byte_j: float
    cycle_j: float
    alpha_bits_per_j: float
    reserve_share: float
    misalignment: float
    dark_count_probability: float
    refresh_s: float
    refresh_bytes: int
    refresh_messages: int
    expected_qber: float
    session_sifted_bits: int = 0
    selective: bool = False

    def __post_init__(self) -> None:
        require_range("battery_j", self.battery_j, 1.0, 1e9, "J")
        for share in ("charge_share", "reserve_share"):
            require_range(share, getattr(self, share), 0.0, 1.0)
        for watts in ("harvest_w", "idle_w"):
            require_range(watts, getattr(self, watts), 0.0, 1e4, "W")
        for cost in ("qubit_j", "sent_byte_j", "received_byte_j", "cycle_j"):
            require_range(cost, getattr(self, cost), 0.0, 1.0, "J")
        require_range("alpha_bits_per_j", self.alpha_bits_per_j, 0.0, 1e9, "bits/J")
        require_range("refresh_s", self.refresh_s, 1.0, 86_400.0, "s")
        require_range("refresh_bytes", self.refresh_bytes, 64, 1 << 32, "bytes")
        require_range("refresh_messages", self.refresh_messages, 1, 1 << 32, "messages")
        require_range("expected_qber", self.expected_qber, 0.0, 0.09)
        sizes = (0, *sorted({size for size, _ in SESSIONS}))
        require(self.session_sifted_bits in sizes, f"session_sifted_bits is one of {sizes}")
        self.receiver()

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> "Profile":
        """Build from a profile file. Raises ParameterError naming unknown and missing keys and bad values."""
        known = {each.name: each for each in fields(cls)}
        if unknown := sorted(set(table) - set(known)):
            raise ParameterError(f"a device profile has no key {', '.join(unknown)}; it has {', '.join(known)}")
        values: dict[str, Any] = {}
        for name, each in known.items():
            kinds: tuple[type, ...] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[each.type]  # type: ignore[index]
            if name not in table and name in ("session_sifted_bits", "selective"):
                continue
            value = table.get(name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and each.type is not bool):
                raise ParameterError(f"{name} of a device profile is {value!r}; it must be given, as {each.type}")
            values[name] = value
        return cls(**values)

    def receiver(self) -> ReceiverParameters:
        """Return the device's detectors."""
        return ReceiverParameters(self.misalignment, self.dark_count_probability)


@dataclass(slots=True)
class Battery:
    """The energy account of one device; `spent_j` by what it was spent on."""

    profile: Profile
    charge_j: float
    spent_j: dict[str, float]

    @classmethod
    def fresh(cls, profile: Profile) -> "Battery":
        """Return the battery as the profile says it is at first."""
        return cls(profile, profile.battery_j * profile.charge_share, {})

    @property
    def share(self) -> float:
        """How full it is."""
        return self.charge_j / self.profile.battery_j

    @property
    def usable_j(self) -> float:
        """What keys may cost."""
        return max(0.0, self.charge_j - self.profile.reserve_share * self.profile.battery_j)

    def spend(self, what: str, joules: float) -> None:
        """Take energy; an empty battery stays empty."""
        self.charge_j = max(0.0, self.charge_j - joules)
        self.spent_j[what] = self.spent_j.get(what, 0.0) + joules

    def pass_time(self, seconds: float) -> None:
        """Idle and harvest."""
        self.spend("idle", self.profile.idle_w * seconds)
        self.charge_j = min(self.profile.battery_j, self.charge_j + self.profile.harvest_w * seconds)


def session_cycles(qubits: int, sifted: int, reconciled: int, parity_bits: int, output_bits: int, sent: int) -> int:
    """Return processor cycles of a session on a 32-bit core, by counting what the algorithms do.

    Per click 60 (basis, time stamp, list); per sifted bit 30; parities: four edges per code bit, a bit at a time, 6
    cycles each; the hash: one shift and addition of the output's words per set bit; tags: 30 cycles per byte
    (SHA-256 in software).
    """
    words = math.ceil(output_bits / 32)
    amplification = (max(0, reconciled - output_bits) // 2) * words * 4
    return 60 * qubits + 30 * sifted + 24 * reconciled + 2 * parity_bits + amplification + 30 * sent


def session_energy_j(profile: Profile, figures: SessionFigures) -> float:
    """Return the energy of a session that took place, by the model."""
    cycles = session_cycles(
        *(figures.qubits_measured, figures.sifted_bits, figures.reconciled_bits, figures.parity_bits),
        *(CONTROL_BITS + figures.key_bits, figures.bytes_sent + figures.bytes_received),
    )
    return (
        profile.qubit_j * figures.qubits_measured
        + profile.sent_byte_j * figures.bytes_sent
        + profile.received_byte_j * figures.bytes_received
        + profile.cycle_j * cycles
    )


def reading_energy_j(profile: Profile, frame_bytes: int) -> float:
    """Return the energy of one reading: AES-GCM in software at 60 cycles per byte, and the radio."""
    return (profile.sent_byte_j + 60 * profile.cycle_j) * frame_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a session is expected to give and to cost."""

    wish: Wish
    secret_bits: int
    energy_j: float


@dataclass(frozen=True, slots=True)
class TooWeak:
    """No session that keeps the floor can be afforded."""

    reason: str


def expected(profile: Profile, policy: DevicePolicy, sifted_bits: int, selective: bool) -> tuple[int, SessionFigures]:
    """Return the secret bits that a session of this form should give, and its figures."""
    half = sifted_bits // 2
    frame = half + 2 * math.isqrt(sifted_bits) if selective else sifted_bits
    rate = max(0.01, profile.expected_qber)
    entropy = -rate * math.log2(rate) - (1 - rate) * math.log2(1 - rate)
    spread = 2 * math.log2((1 - rate) / rate) * math.sqrt(rate * (1 - rate) / frame) / entropy
    leak = math.ceil(frame * entropy * (1.075 + 0.00067 / rate + spread + 3 / math.sqrt(frame)))
    errors = math.ceil(half * profile.expected_qber)
    counts = SiftedCounts((half, sifted_bits - half), (errors, errors), leak, selective)
    secret = session_length(counts, policy.epsilon).bits
    figures = SessionFigures(
        qubits_measured=round(2.1 * sifted_bits),
        sifted_bits=sifted_bits,
        reconciled_bits=counts.key_bits,
        parity_bits=leak,
        bytes_sent=round(SESSION_BYTES_SENT + 2.1 * sifted_bits * 1.125 + sifted_bits / 8),
        bytes_received=round(500 + 2.1 * sifted_bits / 8),
    )
    return secret, figures


def plan_session(battery: Battery, policy: DevicePolicy) -> Plan | TooWeak:
    """Choose the cheapest session that gives α·E bits of key, at least the policy's floor.

    Raises nothing: a device that cannot afford the floor, or whose channel cannot give it, gets the reason.
    """
    profile = battery.profile
    adaptive = int(profile.alpha_bits_per_j * battery.usable_j) // 8 * 8
    wanted = max(policy.key_bits_min, min(KEY_BITS_MOST, adaptive))
    plans = []
    for sifted_bits, selective in SESSIONS:
        if profile.session_sifted_bits and (sifted_bits, selective) != (profile.session_sifted_bits, profile.selective):
            continue
        secret, figures = expected(profile, policy, sifted_bits, selective)
        figures.key_bits = min(wanted, secret - CONTROL_BITS) // 8 * 8
        if figures.key_bits < policy.key_bits_min:
            continue
        energy = session_energy_j(profile, figures)
        wish = Wish(sifted_bits, selective, figures.key_bits, round(1000 * battery.charge_j))
        plans.append(Plan(wish, secret, energy))
    if not plans:
        return TooWeak(f"no session of this receiver gives {policy.key_bits_min} bits at ε = {policy.epsilon:.0e}")
    affordable = [plan for plan in plans if plan.energy_j <= battery.usable_j]
    if not affordable:
        least = min(plan.energy_j for plan in plans)
        return TooWeak(
            f"a key of {policy.key_bits_min} bits takes {least:.3g} J; "
            f"{battery.usable_j:.3g} J are left above the reserve"
        )
    most = max(plan.wish.key_bits for plan in affordable)
    enough = [plan for plan in affordable if plan.wish.key_bits >= min(wanted, most)]
    return min(enough, key=lambda plan: plan.energy_j)


def refresh_period_s(battery: Battery) -> float:
    """Return how old a key may get: three times the profile's period when the battery is empty."""
    return battery.profile.refresh_s * (3.0 - 2.0 * battery.share)
