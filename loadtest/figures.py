"""Draws the figures of docs/physics.md and recomputes its table of published results.

`python -m loadtest.figures` writes SVG files to docs/images and prints the table as one JSON object. Needs nothing
beyond the package itself. Every figure comes from a run of the emulator or the planner; nothing is stored.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from protocol.entropy import SeededEntropy
from protocol.quantum import error_correction as qec
from protocol.quantum import plan, published
from protocol.quantum.eavesdropper import make_eavesdropper
from protocol.quantum.entanglement import ChainParameters, fidelity_of, sample_rounds
from protocol.quantum.figure import Series, chart, rate_chart
from protocol.quantum.link import Detections, LinkParameters, Receiver, Transmitter
from protocol.quantum.noise import depolarising, pauli_probabilities

IMAGES = Path("docs", "images")


def emulate(parameters: LinkParameters, pulses: int, seed: int, fraction: float = 0.0) -> tuple[float, float, int]:
    """Return (signal gain, signal QBER, sifted signal bits) of an emulated emission, under interception if asked."""
    alice = Transmitter(parameters, SeededEntropy(b"figure a %d" % seed), np.random.default_rng([seed, 1]))
    bob = Receiver(parameters, SeededEntropy(b"figure b %d" % seed), np.random.default_rng([seed, 2]))
    if fraction > 0.0:
        alice.attack = make_eavesdropper("intercept_resend", {"fraction": fraction}, np.random.default_rng([seed, 3]))
    found: list[Detections] = [bob.measure(light) for light in alice.emit_chunks(pulses)]
    signal = sifted = errors = 0
    for part in found:
        choices = alice.choices(part.positions)
        kept = (choices.basis == part.basis) & (choices.intensity == 0)
        signal += int((choices.intensity == 0).sum())
        sifted += int(kept.sum())
        errors += int((choices.bit != part.bit)[kept].sum())
    return signal / (pulses * parameters.source.signal_probability), errors / max(1, sifted), sifted


def rate_against_distance() -> str:
    """Key rate of the default link for several block sizes."""
    lengths = np.arange(0.0, 251.0, 2.5).tolist()
    lines = []
    for pulses in (10**8, 10**9, 10**10, 10**12):
        label = f"blocks of 1e{round(math.log10(pulses))} pulses"
        lines.append((label, lengths, plan.rate_against_distance(LinkParameters(), lengths, pulses)))
    return rate_chart(lines)


def plan_against_emulation(what: str) -> str:
    """Predicted and emulated gain or QBER of the signal over distance, with 99 % intervals."""
    lengths = np.arange(0.0, 201.0, 5.0)
    spots = np.arange(0.0, 201.0, 25.0)
    predicted = [plan.expected_signature(plan.at_distance(LinkParameters(), km)) for km in lengths.tolist()]
    values, errors = [], []
    for seed, km in enumerate(spots.tolist()):
        parameters = plan.at_distance(LinkParameters(), km)
        pulses = int(min(2e10, 2e5 / plan.expected_signature(parameters).click_rate))
        gain, qber, sifted = emulate(parameters, pulses, seed)
        spread = gain / pulses if what == "gain" else qber * (1 - qber) / max(1, sifted)
        values.append(gain if what == "gain" else qber)
        errors.append(2.576 * math.sqrt(spread))
    line = [s.gain[0] if what == "gain" else s.qber[0] for s in predicted]
    series = [
        Series("planned", lengths.tolist(), line),
        Series("emulated, 99 %", spots.tolist(), values, points=True, errors=errors),
    ]
    return chart(f"Signal {what}: plan and emulation", "fibre, km", f"signal {what}", series, log_y=what == "gain")


def interception() -> str:
    """QBER against the intercepted fraction."""
    fractions = np.linspace(0.0, 1.0, 11).tolist()
    link = LinkParameters()
    planned, values, errors = [], [], []
    for seed, fraction in enumerate(fractions):
        eve = make_eavesdropper("intercept_resend", {"fraction": fraction}, np.random.default_rng(1))
        planned.append(plan.expected_signature(link, eve).qber[0])
        _, qber, sifted = emulate(link, 20_000_000, seed, fraction)
        values.append(qber)
        errors.append(2.576 * math.sqrt(qber * (1 - qber) / sifted))
    series = [Series("planned", fractions, planned), Series("emulated, 99 %", fractions, values, True, errors)]
    return chart("Intercept-resend: its signature", "intercepted fraction of the pulses", "QBER", series)


def gys() -> str:
    """The GYS experiment with decoys (Ma et al. 2005, figure 2)."""
    lengths = np.arange(0.0, 150.1, 0.25)
    series = [
        Series(label, lengths.tolist(), published.gys_rate(0.48, lengths, weak).tolist())
        for label, weak in (("infinitely many decoys", None), ("vacuum + weak decoy", 0.05))
    ]
    return chart("GYS with decoys (Ma et al. 2005)", "fibre, km", "secret bits per pulse", series, log_y=True)


def lim() -> str:
    """Finite blocks (Lim et al. 2014, figure 1)."""
    lengths = np.arange(0.0, 181.0, 10.0).tolist()
    physics = np.random.default_rng(1)
    series = []
    for exponent in (4, 5, 6, 7, 8, 9):
        rates = [published.lim_best_rate(km, 10.0**exponent, physics)[0] for km in lengths]
        series.append(Series(f"n = 1e{exponent}", lengths, rates))
    return chart("Finite blocks (Lim et al. 2014)", "fibre, km", "secret bits per pulse", series, log_y=True)


def free_space() -> str:
    """Key rate of a vehicle's link against range in every profile."""
    ranges = np.geomspace(10.0, 5000.0, 22).tolist()
    series = []
    for profile in ("indoor", "suburban", "urban"):
        for time in ("night", "day"):
            rates = []
            for range_m in ranges:
                channel = {"kind": "free_space", "range_m": range_m, "profile": profile, "time": time}
                table = {"source": {"pulse_rate_hz": 1e8}, "channel": channel}
                rates.append(plan.plan_link(LinkParameters.from_mapping(table), 10**9).secret_key_rate_bits_per_s)
            series.append(Series(f"{profile}, {time}", ranges, rates))
    return chart("Free space: 10⁹ pulses at 100 MHz", "range, m", "secret bits per second", series, True, True)


def codes() -> str:
    """Logical against physical error rate under depolarising noise: enumeration, and Monte Carlo on top."""
    noises = np.geomspace(1e-3, 0.5, 24).tolist()
    physics = np.random.default_rng(1)
    bare = [1.0 - float(pauli_probabilities(depolarising(p))[0]) for p in noises]
    series = [Series("no code", bare, bare)]
    for number, code in enumerate((qec.FIVE_QUBIT, qec.STEANE), start=1):
        exact = [qec.exact_logical_errors(code, pauli_probabilities(depolarising(p))).any for p in noises]
        series.append(Series(f"{code.name}, exact", bare, exact, colour=number))
        spots = noises[8::3]
        sampled = [
            qec.sample_logical_errors(code, pauli_probabilities(depolarising(p)), 300_000, physics).any for p in spots
        ]
        x = [1.0 - float(pauli_probabilities(depolarising(p))[0]) for p in spots]
        series.append(Series(f"{code.name}, sampled", x, sampled, points=True, colour=number))
    return chart("Quantum error correction", "physical error rate", "logical error rate", series, True, True)


def repeaters() -> str:
    """Pairs per second over a chain against distance."""
    lengths = np.arange(10.0, 501.0, 10.0).tolist()
    series = []
    for segments in (1, 2, 4, 8):
        chains = [ChainParameters(segments=segments, length_km=km) for km in lengths]
        rates = [chain.expected_pairs_per_attempt() / chain.attempt_period_s for chain in chains]
        series.append(Series(f"{segments} segments", lengths, rates))
    return chart("Entanglement swapping", "distance, km", "pairs per second", series, log_y=True)


def chain_fidelity() -> str:
    """Fidelity of the swapped pair against distance, with memories that decohere."""
    lengths = np.arange(10.0, 401.0, 30.0).tolist()
    physics = np.random.default_rng(1)
    series = []
    for rounds in (0, 1):
        for segments in (2, 4):
            values = []
            for km in lengths:
                chain = ChainParameters(
                    segments=segments, length_km=km, pair_fidelity=0.96, memory_time_s=0.1, purification_rounds=rounds
                )
                values.append(fidelity_of(float(sample_rounds(chain, 4_000, physics).werner.mean())))
            series.append(Series(f"{segments} segments, {rounds} purification", lengths, values))
    return chart("Fidelity behind the swaps, memories of 0.1 s", "distance, km", "fidelity", series)


FIGURES: dict[str, Callable[[], str]] = {
    "rate-against-distance": rate_against_distance,
    "gain-plan-and-emulation": lambda: plan_against_emulation("gain"),
    "qber-plan-and-emulation": lambda: plan_against_emulation("QBER"),
    "interception": interception,
    "gys": gys,
    "lim-2014": lim,
    "free-space": free_space,
    "error-correction": codes,
    "swapping-rate": repeaters,
    "swapping-fidelity": chain_fidelity,
}


def published_results() -> dict[str, dict[str, float]]:
    """Return {result: {published, recomputed}} of the table in docs/physics.md."""
    physics = np.random.default_rng(2)
    short, long = (published.lim_best_rate(100.0, n, physics)[0] for n in (1e7, 1e9))
    reach = max(
        km
        for km in np.arange(124.0, 134.0, 1.0).tolist()
        if max(published.lim_best_rate(km, 1e4, physics)[0] for _ in range(3)) > 0.0
    )
    misalignment = published.GYS_MISALIGNMENT
    rows = {
        "GYS optimal signal intensity, f 1.22": (0.48, published.optimal_intensity(misalignment, 1.22)),
        "GYS optimal signal intensity, f 1": (0.54, published.optimal_intensity(misalignment, 1.0)),
        "GYS distance km, infinitely many decoys": (142.05, published.gys_distance_km(0.48, None)),
        "GYS distance km, vacuum + weak decoy": (140.55, published.gys_distance_km(0.48, 0.05)),
        "Lim distance km, blocks of 1e4": (130.0, reach),
        "Lim rate at 100 km, n 1e9 over n 1e7": (1.75, long / short),
    }
    return {name: {"published": paper, "recomputed": round(own, 4)} for name, (paper, own) in rows.items()}


def main() -> None:
    """Draw every figure and print the table."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (IMAGES / f"physics-{name}.svg").write_text(draw(), encoding="utf-8")
        print(f"docs/images/physics-{name}.svg", file=sys.stderr)
    print(json.dumps(published_results(), indent=2))


if __name__ == "__main__":
    main()
