"""Whole nodes in virtual time: keys under faults, and the same seed gives the same run."""

import os
import subprocess
import sys

import pytest

from loadtest.simulation.network import MS
from loadtest.simulation.node_faults import NodeFaultPlan
from loadtest.simulation.node_run import NodeRunResult, run_node_seed
from tests.simulation.test_simulation import FRESH_SEED


def check(result: NodeRunResult) -> None:
    again = (
        f"python -m loadtest simulate --whole-node --first-seed {result.seed} --seeds 1 --nodes {result.nodes} --trace"
    )
    assert result.violation is None, f"seed {result.seed}: {result.violation}; again: {again}"
    assert result.key_blocks > 0 and result.checks > 1000 and result.keys_retrieved > 0


def test_without_faults_every_key_reaches_both_ends() -> None:
    result = run_node_seed(1, 3, plan=NodeFaultPlan.quiet(3_000 * MS))
    check(result)
    assert result.keys_delivered == result.keys_retrieved > 10
    assert result.crashes == result.false_frames == result.alarms == 0


@pytest.mark.parametrize("nodes", [2, 4])
def test_known_seeds(nodes: int) -> None:
    result = run_node_seed(5, nodes)
    check(result)
    assert result.crashes > 0 and result.false_frames > 0 and result.attacks > 0


@pytest.mark.slow
def test_fresh_seeds() -> None:
    for seed in range(FRESH_SEED, FRESH_SEED + 4):
        check(run_node_seed(seed, 4))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_whatever_the_hash_seed() -> None:
    code = "from loadtest.simulation.node_run import run_node_seed; print(run_node_seed(7, 3))"
    outputs = set()
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    assert len(outputs) == 1
