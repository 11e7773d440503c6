"""Attacks against alarms: what was detected, what was a false alarm, out of how much (S0-E20, S0-E21).

An attack is detected when its subject raises an alarm between its beginning and a little after its end (a block that
was attacked is assessed when it is complete). An alarm at any other time is false. Legitimate events are the blocks,
good or aborted, of links while nobody attacked them.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.results.records import Event, LinkSample

GRACE_S: Final = 15.0
"""An alarm so soon after an attack's end still tells of it: a block in the making, and the way through the chain."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack on one subject; `detected_s` is how long after its beginning the first alarm came."""

    subject: str
    kind: str
    begun_s: float
    ended_s: float
    detected_s: float | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """The outcome of one case."""

    attacks: tuple[Attack, ...]
    legitimate_events: int
    false_alarms: int

    @property
    def detected(self) -> int:
        """Attacks that raised an alarm."""
        return sum(1 for attack in self.attacks if attack.detected_s is not None)

    @property
    def detection_rate(self) -> float | None:
        """Return the share of attacks that were detected (S0-E20); None without attacks."""
        return self.detected / len(self.attacks) if self.attacks else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Return false alarms per legitimate event (S0-E21); None without such events."""
        return self.false_alarms / self.legitimate_events if self.legitimate_events else None


def detection(events: Iterable[Event], links: Sequence[LinkSample], end_s: float) -> Detection:
    """Match the attacks of one case with its alarms; an attack without end lasted until `end_s`."""
    ordered = sorted(events, key=lambda event: event.time_s)
    attacks = _attacks(ordered, end_s)
    alarms = [(event.subject, event.time_s) for event in ordered if event.kind == "alarm"] or _raised(links)
    return Detection(
        tuple(_detected(attack, alarms) for attack in attacks),
        _legitimate(links, attacks),
        sum(1 for subject, time_s in alarms if not _attacked(attacks, subject, time_s)),
    )


def _attacks(events: Iterable[Event], end_s: float) -> list[Attack]:
    """Pair every beginning with the next end on the same subject; a second beginning ends the first."""
    open_: dict[str, Event] = {}
    found: list[Attack] = []

    def close(subject: str, time_s: float) -> None:
        if begun := open_.pop(subject, None):
            found.append(Attack(subject, str(begun.detail.get("attack", "attack")), begun.time_s, time_s))

    for event in events:
        if event.kind in ("attack", "attack_end"):
            close(event.subject, event.time_s)
        if event.kind == "attack":
            open_[event.subject] = event
    for subject in list(open_):
        close(subject, max(end_s, open_[subject].time_s))
    return sorted(found, key=lambda attack: (attack.begun_s, attack.subject))


def _detected(attack: Attack, alarms: Iterable[tuple[str, float]]) -> Attack:
    waits_s = [t - attack.begun_s for subject, t in alarms if subject == attack.subject and _within(attack, t)]
    return Attack(attack.subject, attack.kind, attack.begun_s, attack.ended_s, min(waits_s, default=None))


def _within(attack: Attack, time_s: float) -> bool:
    return attack.begun_s <= time_s <= attack.ended_s + GRACE_S


def _attacked(attacks: Iterable[Attack], subject: str, time_s: float) -> bool:
    return any(attack.subject == subject and _within(attack, time_s) for attack in attacks)


def _by_link(links: Iterable[LinkSample]) -> dict[str, list[LinkSample]]:
    series: dict[str, list[LinkSample]] = {}
    for sample in links:
        series.setdefault(sample.link_id, []).append(sample)
    return series


def _raised(links: Iterable[LinkSample]) -> list[tuple[str, float]]:
    """Return when each link's alarm was first seen raised; for runs that noted no alarms."""
    found: list[tuple[str, float]] = []
    for link_id, samples in _by_link(links).items():
        before = False
        for sample in samples:
            if sample.alarmed and not before:
                found.append((link_id, sample.time_s))
            before = bool(sample.alarmed)
    return found


def _legitimate(links: Iterable[LinkSample], attacks: Sequence[Attack]) -> int:
    """Count blocks, good or aborted, between two looks at a link that no attack touches."""
    total = 0
    for link_id, samples in _by_link(links).items():
        spans = [attack for attack in attacks if attack.subject == link_id]
        for before, after in itertools.pairwise(samples):
            touched = any(s.begun_s <= after.time_s and before.time_s <= s.ended_s + GRACE_S for s in spans)
            gained = _blocks(after) - _blocks(before)
            if not touched:
                total += gained if gained >= 0 else _blocks(after)  # a restarted node counts from nothing
    return total


def _blocks(sample: LinkSample) -> int:
    return (sample.blocks or 0) + (sample.aborts or 0)
