"""The figures of each case, from what was recorded: latencies, rates, memory, and the paper's five (S0-E20 … E24).

Counts what lies in the *measured window*: every phase but those in `APART`. What the run itself recorded under a
figure's name stands; this module fills in the rest, None where the data does not tell. The paper's formulas:

- (20) detection rate and (21) false alarm rate: see `loadtest.measure.detection`;
- (22) throughput: bytes that nodes received from each other, in bits, by the time of the window;
- (23) latency: the time of all completed requests together, by their number;
- (24) energy efficiency: throughput by power, in Mbit/s/W as in figure 9; power is the stated model's energy by time.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from loadtest.measure.detection import Detection, detection
from loadtest.measure.energy import PROFILES, energy_j
from loadtest.measure.histograms import LatencyHistogram
from loadtest.results.reader import Result, decoded
from loadtest.results.records import Case, Event, NodeSample

APART: Final = frozenset({"start", "warm-up", "warm_up", "saturate", "cool-down", "settle", "check", "stop"})
Values = dict[str, float | None]


def measured_phases(result: Result, case: Case) -> set[str]:
    """Return the names of the phases that count."""
    return {phase.name for phase in result.run.phases if phase.case == case.case} - APART


def window_s(result: Result, case: Case) -> tuple[float, float]:
    """Return where the measured phases of a case begin and end; the whole case where it has none."""
    phases = [phase for phase in result.run.phases if phase.case == case.case and phase.name not in APART]
    last_s = case_end_s(result, case)
    if not phases:
        return case.started_s, last_s
    return min(p.started_s for p in phases), max(last_s if p.ended_s is None else p.ended_s for p in phases)


def case_end_s(result: Result, case: Case) -> float:
    """Return when a case ended, or was last heard of."""
    if case.ended_s is not None:
        return case.ended_s
    heard = (row.time_s for rows in (result.nodes, result.events) for row in rows if row.case == case.case)
    return max(heard, default=case.started_s)


def detection_of(result: Result, case: Case) -> Detection:
    """Match a case's attacks with its alarms."""
    events = [event for event in result.events if event.case == case.case]
    links = [sample for sample in result.links if sample.case == case.case]
    return detection(events, links, case_end_s(result, case))


def figures(result: Result) -> dict[int, Values]:
    """Return the figures of every case. Raises ResultError."""
    return {case.case: {**_computed(result, case), **_recorded(result, case)} for case in result.cases}


def _recorded(result: Result, case: Case) -> Values:
    return {name: value for name, value in result.figures.get(case.case, {}).items() if value is not None}


def _computed(result: Result, case: Case) -> Values:
    begin_s, end_s = window_s(result, case)
    seconds = end_s - begin_s
    found = _latencies(result, case, seconds)
    series = _series(result, case, begin_s, end_s)
    found |= _nodes(result, case, series)
    found |= _heights(result, case, begin_s, end_s)
    found |= _detection(detection_of(result, case))
    found |= _recovery([event for event in result.events if event.case == case.case])
    found["bytes_per_node_and_height"] = _per_height(series, lambda s: s.bytes_sent)
    found["syncs_per_node_and_height"] = _per_height(series, lambda s: s.disk_syncs)
    return found


def _latencies(result: Result, case: Case, seconds: float) -> Values:
    phases = measured_phases(result, case)
    of_kind: dict[str, LatencyHistogram] = {}
    every = LatencyHistogram()
    for each in result.latencies:
        if each.case == case.case and (each.phase in phases or not phases):
            histogram = decoded(each, result.directory)
            of_kind.setdefault(each.kind, LatencyHistogram()).merge(histogram)
            if each.kind != "connect":  # a part of the requests that needed a connection
                every.merge(histogram)
    found: Values = {}
    for kind, histogram in of_kind.items():
        found |= {f"{kind}_ms_p{p}": histogram.percentile_ms(p) for p in (50, 95, 99)}
        found["key_requests" if kind == "key" else f"{kind}_samples"] = float(histogram.count)
    if "key" in of_kind and seconds > 0:
        found["keys_per_s"] = of_kind["key"].count / seconds
    if of_kind:
        found["requests_failed"] = float(every.failures)
        found["latency_ms_mean"] = every.mean_ms  # (23)
    return found


Pick = Callable[[NodeSample], float | None]


def gained(samples: Sequence[NodeSample], pick: Pick) -> tuple[float, float] | None:
    """Return (what a counter gained, over how many seconds); a counter that falls has begun again from nothing."""
    seen = [(sample.time_s, value) for sample in samples if (value := pick(sample)) is not None]
    if len(seen) < 2 or seen[-1][0] <= seen[0][0]:
        return None
    steps = ((after - before if after >= before else after) for (_, before), (_, after) in itertools.pairwise(seen))
    return sum(steps), seen[-1][0] - seen[0][0]


def _rate_sum(series: Iterable[Sequence[NodeSample]], pick: Pick) -> tuple[float, int]:
    """Return the sum of the nodes' rates, and how many nodes tell theirs."""
    rates = [g[0] / g[1] for samples in series if (g := gained(samples, pick)) is not None]
    return sum(rates), len(rates)


def _per_height(series: Sequence[Sequence[NodeSample]], pick: Pick) -> float | None:
    """Return what nodes together gained by what heights they together gained, each between the same two looks at it."""
    total = heights = 0.0
    for samples in series:
        known = [sample for sample in samples if sample.height is not None and pick(sample) is not None]
        if (counted := gained(known, pick)) is not None:
            total += counted[0]
            heights += max(0, (known[-1].height or 0) - (known[0].height or 0))
    return total / heights if heights else None


def _series(result: Result, case: Case, begin_s: float, end_s: float) -> list[list[NodeSample]]:
    """Return the looks at each node in the window, and the last one before it in the phase that led to it.

    With hundreds of nodes there are minutes between two looks at one; the runner has all looked at just before a load.
    """
    led_s = max(
        (p.started_s for p in result.run.phases if p.case == case.case and p.started_s < begin_s and p.name != "start"),
        default=begin_s,
    )
    before: dict[str, NodeSample] = {}
    inside: dict[str, list[NodeSample]] = {}
    for sample in result.nodes:
        if sample.case != case.case or not led_s <= sample.time_s <= end_s:
            continue
        if sample.time_s < begin_s:
            before[sample.node_id] = sample
        else:
            inside.setdefault(sample.node_id, []).append(sample)
    return [[*((before[n],) if n in before else ()), *samples] for n, samples in inside.items()]


def _nodes(result: Result, case: Case, series: Sequence[Sequence[NodeSample]]) -> Values:
    found: Values = {
        "pss_mib_per_node": _median_of_last(series, lambda s: s.pss_mib),
        "rss_mib_per_node": _median_of_last(series, lambda s: s.rss_mib),
        "open_files_per_node": _median_of_last(series, lambda s: s.open_files),
    }
    cpu, cpu_nodes = _rate_sum(series, lambda s: s.cpu_s)
    sent, sent_nodes = _rate_sum(series, lambda s: s.bytes_sent)
    received, received_nodes = _rate_sum(series, lambda s: s.bytes_received)
    syncs, sync_nodes = _rate_sum(series, lambda s: s.disk_syncs)
    if cpu_nodes:
        found["cpu_share_per_node"] = cpu / cpu_nodes
    if sent_nodes:
        found["sent_bytes_per_s_per_node"] = sent / sent_nodes
    if sync_nodes:
        found["syncs_per_s_per_node"] = syncs / sync_nodes
    if received_nodes:
        found["throughput_mbit_per_s"] = 8e-6 * received / received_nodes * case.nodes  # (22)
    if cpu_nodes and received_nodes:
        profile = result.run.energy or PROFILES["server"]
        power_w = energy_j(profile, cpu / cpu_nodes, sent / max(1, sent_nodes), received / received_nodes) * case.nodes
        found["power_w"] = power_w
        found["energy_efficiency_mbit_per_s_per_w"] = (
            (found["throughput_mbit_per_s"] or 0.0) / power_w if power_w > 0 else None
        )  # (24)
    return found


def _median_of_last(series: Iterable[Sequence[NodeSample]], pick: Pick) -> float | None:
    last = [values[-1] for samples in series if (values := [v for s in samples if (v := pick(s)) is not None])]
    return statistics.median(last) if last else None


def _heights(result: Result, case: Case, begin_s: float, end_s: float) -> Values:
    rows = [row for row in result.commits if row.case == case.case and begin_s <= row.time_s <= end_s]
    if len(rows) < 2 or rows[-1].time_s <= rows[0].time_s:
        return {}
    seconds = rows[-1].time_s - rows[0].time_s
    return {
        "heights_per_s": (rows[-1].height - rows[0].height) / seconds,
        "tx_per_s": sum(row.transactions for row in rows[1:]) / seconds,
    }


def _detection(found: Detection) -> Values:
    if not found.attacks and not found.legitimate_events:
        return {}
    return {
        "attacks": float(len(found.attacks)),
        "attacks_detected": float(found.detected),
        "legitimate_events": float(found.legitimate_events),
        "false_alarms": float(found.false_alarms),
        "detection_rate": found.detection_rate,
        "false_alarm_rate": found.false_alarm_rate,
    }


def recoveries_s(events: Iterable[Event]) -> list[float]:
    """Return how long each subject took from its healing (or its fault, if it heals by itself) to "recovered"."""
    begun: dict[str, float] = {}
    found: list[float] = []
    for event in sorted(events, key=lambda each: each.time_s):
        if event.kind in ("fault", "heal"):
            begun[event.subject] = event.time_s
        elif event.kind == "recovered" and event.subject in begun:
            found.append(event.time_s - begun.pop(event.subject))
    return found


def _recovery(events: Iterable[Event]) -> Values:
    waits_s = recoveries_s(events)
    return {"recovery_s_p50": statistics.median(waits_s), "recovery_s_max": max(waits_s)} if waits_s else {}
