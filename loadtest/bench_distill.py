"""Benches of distillation: what `qnode bench distill` and `qnode bench amplify` print, and the table in the docs.

Both sides' work is done and counted, in one thread; a seed makes the strings and the errors, a clock is read around
each stage, and medians over blocks are reported. `python -m loadtest.bench_distill` prints the table of
QBER × size × method as Markdown.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.distill.amplification import amplification_seed_bits, amplify
from protocol.distill.key_length import SecurityParameters, binary_entropy
from protocol.distill.pipeline import DistilledBlock, distill_block
from protocol.distill.reconciliation import choose_method, make_party, run_pair
from protocol.entropy import SeededEntropy
from protocol.kernels import distillation as kernels

Bits = NDArray[np.uint8]

BLOCKS_MIN = 5
BLOCKS_MAX = 200
SECONDS = 2.0  # of measuring: enough blocks that a median is steady on a noisy machine
TABLE_QBERS = (0.01, 0.02, 0.03, 0.05, 0.08)
TABLE_SIZES_BITS = (10_000, 100_000, 1_000_000)
TABLE_METHODS = ("cascade", "cascade-fast", "cascade-original", "ldpc")


def _noisy(size_bits: int, qber: float, generator: np.random.Generator) -> tuple[Bits, Bits]:
    alice = generator.integers(0, 2, size_bits, dtype=np.uint8)
    return alice, alice ^ (generator.random(size_bits) < qber).astype(np.uint8)


def _equal(ours: Bits, theirs: Bits | None) -> bool:
    return theirs is not None and bool(np.array_equal(ours, theirs))


def _enough(started_s: float, blocks: int) -> bool:
    return blocks >= BLOCKS_MAX or (blocks >= BLOCKS_MIN and time.perf_counter() - started_s > SECONDS)


class _Stages:
    """A clock for `distill_block`: milliseconds by stage, of one block."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now_s = time.perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + (now_s - self._last_s) * 1e3
        self._last_s = now_s


def run_distill(
    sifted_bits: int,
    qber: float,
    method: str = "auto",
    max_efficiency: float | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Distil blocks of `sifted_bits` at `qber` and report rates, efficiency and stages.

    `sifted_bits_per_s` is the whole pipeline, `reconciled_bits_per_s` reconciliation alone; `efficiency` is the mean
    of leaked / (n·h) at the block's true error rate; `frame_error_rate` the share of blocks that failed or were
    discarded by verification. `max_efficiency` makes "auto" choose a method that leaks no more.
    """
    generator, public = np.random.default_rng(seed), SeededEntropy(seed.to_bytes(8, "little"))
    choice = choose_method(sifted_bits, qber, max_efficiency=max_efficiency) if method == "auto" else None
    chosen = choice.method if choice else method
    blocks: list[tuple[DistilledBlock, dict[str, float], float]] = []
    started_s = time.perf_counter()
    while not _enough(started_s, len(blocks)):
        alice, bob = _noisy(sifted_bits, qber, generator)
        true_rate = float(np.mean(alice != bob))
        stages = _Stages()
        block = distill_block(alice, bob, SecurityParameters(), public, method=chosen, on_stage=stages)
        stages("end")
        if block.alice_key is not None and not _equal(block.alice_key, block.bob_key):
            raise AssertionError("keys differ although their tags agree")
        blocks.append((block, stages.ms, true_rate))
    return {
        "method": chosen,
        "reason": choice.reason if choice else "asked for",
        **_summary(sifted_bits, blocks),
        "blocks": len(blocks),
        "kernels": kernels.implementation(),
    }


def _summary(sifted_bits: int, blocks: list[tuple[DistilledBlock, dict[str, float], float]]) -> dict[str, Any]:
    names = [name for name in blocks[0][1] if name != "end"]
    stage_ms = {name: statistics.median(ms.get(name, 0.0) for _, ms, _ in blocks) for name in names}
    total_ms = statistics.median(sum(ms.values()) for _, ms, _ in blocks)
    outcomes = [(b, b.reconciliation, rate) for b, _, rate in blocks if b.reconciliation is not None]
    kept = [(sifted_bits - b.sample_bits, o, rate) for b, o, rate in outcomes]
    efficiency = [o.leaked_bits / (n * binary_entropy(rate)) for n, o, rate in kept if 0 < rate < 1]
    secret = [b.length.bits if b.length and b.alice_key is not None else 0 for b, _, _ in blocks]
    reconciling_s = stage_ms.get("reconciliation", 0.0) / 1e3
    failed = sum(b.alice_key is None and not (b.length and b.length.bits == 0) for b, _, _ in blocks)
    return {
        "sifted_bits_per_s": sifted_bits / total_ms * 1e3,
        "reconciled_bits_per_s": statistics.median(n for n, *_ in kept) / reconciling_s if kept else 0.0,
        "secret_bits_per_s": statistics.median(secret) / total_ms * 1e3,
        "secret_bits_per_block": statistics.median(secret),
        "efficiency": statistics.fmean(efficiency) if efficiency else None,
        "frame_error_rate": failed / len(blocks),
        "round_trips": statistics.median(o.round_trips for _, o, _ in kept) if kept else 0,
        "stage_ms": {name: round(ms, 3) for name, ms in stage_ms.items()},
    }


def run_amplify(bits: int, ratio: float, seed: int = 1) -> dict[str, Any]:
    """Hash blocks of `bits` to `ratio`·`bits`, a fresh seed for each, and report input bits per second of one side."""
    generator = np.random.default_rng(seed)
    output_bits = int(bits * ratio)
    seconds: list[float] = []
    started_s = time.perf_counter()
    while not _enough(started_s, len(seconds)):
        block = generator.integers(0, 2, bits, dtype=np.uint8)
        hash_seed = generator.bytes((amplification_seed_bits(bits, output_bits) + 7) // 8)
        before_s = time.perf_counter()
        amplify(block, hash_seed, output_bits)
        seconds.append(time.perf_counter() - before_s)
    median_s = statistics.median(seconds)
    return {
        "input_bits": bits,
        "output_bits": output_bits,
        "input_bits_per_s": bits / median_s,
        "ms": median_s * 1e3,
        "blocks": len(seconds),
        "family": "modified Toeplitz (I | T)",
        "kernels": kernels.implementation(),
    }


def reconcile_once(size_bits: int, qber: float, method: str, seed: int) -> tuple[float, float, int, bool]:
    """Reconcile one block: processor seconds of both sides, efficiency at the true error rate, round trips, success.

    Processor time, because the table takes minutes and a neighbour's load should not bend it; there is one thread.
    """
    alice, bob = _noisy(size_bits, qber, np.random.default_rng(seed))
    public = seed.to_bytes(8, "little")
    before_s = time.process_time()
    sides = (make_party(method, "alice", alice, qber, public), make_party(method, "bob", bob, qber, public))
    ours, theirs = run_pair(*sides)
    seconds = time.process_time() - before_s
    entropy = binary_entropy(float(np.mean(alice != bob)))
    equal = theirs.bits is not None and bool(np.array_equal(theirs.bits, alice))
    return seconds, ours.leaked_bits / (size_bits * entropy), theirs.round_trips, equal


def table_row(size_bits: int, qber: float, method: str, seconds: float) -> str:
    """Measure one line of the table for about `seconds`."""
    runs: list[tuple[float, float, int, bool]] = []
    started_s = time.perf_counter()
    while len(runs) < 3 or (time.perf_counter() - started_s < seconds and len(runs) < 500):
        runs.append(reconcile_once(size_bits, qber, method, len(runs)))
    rate = size_bits / statistics.median(r[0] for r in runs) / 1e6
    efficiency = statistics.fmean(r[1] for r in runs)
    trips = statistics.median(r[2] for r in runs)
    failures = sum(not r[3] for r in runs)
    cells = (f"{qber:.0%}", f"{size_bits:,}", method, f"{rate:.1f}", f"{efficiency:.3f}", f"{trips:.0f}")
    return f"| {' | '.join(cells)} | {failures}/{len(runs)} |"


BEGIN_MARK = "<!-- the table below is written by `make bench-distill` -->"
END_MARK = "<!-- end of the table -->"


def write_table(path: Path, table: str) -> None:
    """Put the table between the two marks of a document. Raises ValueError when it has no such marks."""
    text = path.read_text("utf-8")
    before, begun, rest = text.partition(BEGIN_MARK)
    _, ended, after = rest.partition(END_MARK)
    if not begun or not ended:
        raise ValueError(f"{path} has no place for the table: it needs the lines {BEGIN_MARK} and {END_MARK}")
    path.write_text(f"{before}{BEGIN_MARK}\n\n{table}\n\n{END_MARK}{after}", "utf-8")


def main() -> None:
    """Print the table, and write it into a document on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long to measure each line")
    parser.add_argument("--into", type=Path, help="a document whose table is replaced by this one")
    arguments = parser.parse_args()
    lines = [
        f"Kernels: {kernels.implementation()}. Both sides' work on one core, processor time; medians.\n",
        "| QBER | bits | method | Mbit/s | f | round trips | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for method in TABLE_METHODS:
        for size_bits in TABLE_SIZES_BITS:
            for qber in TABLE_QBERS:
                lines.append(table_row(size_bits, qber, method, arguments.seconds))
                print(lines[-1], flush=True)
    if arguments.into is not None:
        write_table(arguments.into, "\n".join(lines))


if __name__ == "__main__":
    main()
