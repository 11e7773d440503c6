"""How fast a link is emulated: both sides' work on one core, decoy BB84 with every imperfection of the detectors on.

Measures; decides nothing. `qnode bench emulate --pulses 1e10 --loss-db 20 --json` prints what `run` returns.
"""

import time

import numpy as np

from protocol.entropy import SeededEntropy
from protocol.kernels import emulation
from protocol.quantum.link import LinkParameters, Receiver, Transmitter
from protocol.quantum.plan import expected_signature


def bench_link(loss_db: float) -> LinkParameters:
    """Return the link of the bench: 1 GHz, µ 0.5 / 0.1 / 0, detectors at 20 %, a channel of `loss_db` in all."""
    channel = {"kind": "fibre", "length_km": 0.0, "connector_count": 0, "extra_loss_db": loss_db}
    return LinkParameters.from_mapping({"channel": channel})


def run(pulses: float, loss_db: float, seed: int) -> dict[str, float | int | str]:
    """Emulate `pulses` pulses over `loss_db` and return the figures.

    Timed: Alice's emission, frames, Bob's measurement, Alice's choices at his detections, sifting and the error count.
    Memory stays below some 10 MiB whatever `pulses`. A link is set up and warmed before the clock starts.
    """
    parameters = bench_link(loss_db)
    _emulate(parameters, min(int(pulses), 1_000_000), seed + 1)
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    detections, sifted, errors = _emulate(parameters, int(pulses), seed)
    elapsed_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    expected = expected_signature(parameters)
    return {
        "pulses": int(pulses),
        "loss_db": loss_db,
        "detections": detections,
        "seconds": elapsed_s,
        "cpu_seconds": cpu_s,
        "pulses_per_s": pulses / elapsed_s,
        "detections_per_s": detections / elapsed_s,
        "sifted_signal_bits": sifted,
        "qber": errors / sifted if sifted else 0.0,
        "qber_expected": expected.qber[0],
        "kernel": emulation.IMPLEMENTATION,
    }


def _emulate(parameters: LinkParameters, pulses: int, seed: int) -> tuple[int, int, int]:
    """Return (detections, sifted signal bits, errors among them)."""
    alice = Transmitter(parameters, SeededEntropy(b"alice %d" % seed), np.random.default_rng([seed, 1]))
    bob = Receiver(parameters, SeededEntropy(b"bob %d" % seed), np.random.default_rng([seed, 2]))
    detections = sifted = errors = 0
    for light in alice.emit_chunks(pulses):
        found = bob.measure(light)
        choices = alice.choices(found.positions)
        kept = (choices.basis == found.basis) & (choices.intensity == 0)
        detections += found.positions.size
        sifted += int(np.count_nonzero(kept))
        errors += int(np.count_nonzero((choices.bit ^ found.bit) & kept))
    return detections, sifted, errors
