"""Runs of the simulator: invariants under faults, sparse overlays, full nodes that do not vote, and determinism."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from loadtest.simulation.faults import FaultPlan, Faults
from loadtest.simulation.network import MS, Network
from loadtest.simulation.run import RunResult, run_seed

CALM = FaultPlan.quiet(4_000 * MS)
FRESH_SEED = int(os.environ.get("QNODE_SIMULATION_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
"""New seeds in every run; a failure prints its own, and the variable repeats the batch."""


def check(result: RunResult) -> None:
    again = f"python -m loadtest simulate --first-seed {result.seed} --seeds 1 --nodes {result.nodes} --trace"
    assert result.violation is None, f"seed {result.seed}: {result.violation}; again: {again}"
    assert result.heights > 0 and result.transactions > 0 and result.checks > 100


@pytest.mark.parametrize("nodes", [4, 7])
def test_known_seeds(nodes: int) -> None:
    for seed in range(4):
        check(run_seed(seed, nodes))


@pytest.mark.parametrize(
    ("seed", "nodes"),
    [
        pytest.param(1087266973, 2, id="a snapshot of a height that no checker saw executed"),
        pytest.param(610057, 5, id="a liar's certificates passed on with a proposal"),
        pytest.param(700020, 4, id="an old program that waits for blocks it cannot use"),
        pytest.param(3613603786, 7, id="a block on one disk alone that changes the validators"),
        pytest.param(610011, 10, id="bundles that are left in stored bodies alone"),
    ],
)
def test_seeds_that_showed_a_fault(seed: int, nodes: int) -> None:
    check(run_seed(seed, nodes))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 4, 5, 7, 10])
def test_fresh_seeds(nodes: int) -> None:
    for seed in range(FRESH_SEED, FRESH_SEED + 5):
        check(run_seed(seed, nodes))


@pytest.mark.parametrize("topology", ["mesh", "ring", "line", "random"])
def test_overlays_without_faults(topology: str) -> None:
    result = run_seed(1, 7, topology=topology, plan=CALM)
    check(result)
    assert result.heights > 20 and result.crashes == 0 and result.views_max == 0


@pytest.mark.parametrize(("topology", "nodes"), [("core", 10), ("outpost", 8), ("bridged", 8), ("line", 6)])
def test_followers_around_and_between_voters(topology: str, nodes: int) -> None:
    calm = run_seed(1, nodes, validators=4, topology=topology, plan=CALM)
    check(calm)
    assert calm.heights > 20 and calm.views_max == 0
    for seed in range(2):
        check(run_seed(seed, nodes, validators=4, topology=topology))


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "nodes"), [("core", 10), ("outpost", 8), ("bridged", 8)])
def test_fresh_seeds_with_followers(topology: str, nodes: int) -> None:
    for seed in range(FRESH_SEED, FRESH_SEED + 4):
        check(run_seed(seed, nodes, validators=4, topology=topology))


@pytest.mark.slow
def test_votes_of_31_cost_each_node_a_few_frames_per_height(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flooding every statement to everybody took 189 at the mean node, votes of all voters to all voters 56."""
    heard: Counter[str] = Counter()
    real = Network.arrivals_ns

    def counted(self: Network, source: str, target: str, size_bytes: int) -> list[int]:
        heard[target] += 1
        return real(self, source, target, size_bytes)

    monkeypatch.setattr(Network, "arrivals_ns", counted)
    result = run_seed(1, 64, validators=31, topology="chords", plan=FaultPlan.quiet(2_000 * MS))
    check(result)
    assert result.heights > 10 and result.views_max == 0
    follower = sum(heard[f"n{n:03}"] for n in range(31, 64)) / 33 / result.heights
    settled = result.settled.messages / 64 / result.settled.heights
    assert follower < 15, follower
    assert settled < 7, settled


def test_a_restarted_node_passes_on_what_it_had_told_the_leader_alone() -> None:
    """It waited for him with nothing held back, and kept its FINALIZE to itself for ever."""
    check(run_seed(410_001, 7))


def test_full_nodes_that_do_not_vote_follow() -> None:
    check(run_seed(3, 10, validators=4))


def test_everybody_lies_as_far_as_allowed() -> None:
    plan = FaultPlan(crashes=False, partitions=False, bad_network=False, clocks=False, duration_ns=6_000 * MS)
    liars = 0
    for seed in range(8):
        result = run_seed(seed, 7, topology="mesh", plan=plan)
        check(result)
        liars += len(result.liars)
    assert liars > 4


@pytest.mark.parametrize("machine", ["twin", "backup", "wipe"])
def test_a_machine_that_is_broken_harms_nobody_else(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = FaultPlan(duration_ns=6_000 * MS, lies=("silent",), crashes=False)
    broken: list[str] = []
    real = Faults._break_machine

    def broken_so(self: Faults, name: str) -> None:
        broken.append(name)
        with monkeypatch.context() as patch:
            patch.setattr(self._random, "choice", lambda choices: machine)
            real(self, name)

    monkeypatch.setattr(Faults, "_break_machine", broken_so)
    for seed in range(6):
        check(run_seed(seed, 4, topology="mesh", plan=plan))
    assert broken


def test_the_same_seed_gives_the_same_trace() -> None:
    one, other = run_seed(5, 4), run_seed(5, 4)
    assert one == other
    assert one.trace_hash != run_seed(6, 4).trace_hash


@pytest.mark.slow
def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    code = "from loadtest.simulation.run import run_seed; print([run_seed(s, 5).trace_hash for s in (11, 12)])"
    outputs = set()
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    assert len(outputs) == 1
