"""Profiles of nodes become shares of groups, tables and text."""

import pytest

from loadtest.measure.profiles import OTHER_THREADS, PROFILER, rows, spendings, summary_lines


def _said(cpu_s: float, **shares: float) -> dict[str, object]:
    functions = [{"function": name, "own_share": own, "total_share": 0.9} for name, own in shares.items()]
    return {"cpu_s": cpu_s, "functions": functions, "other_threads_share": 0.1, "overhead_share": 0.002}


def test_a_group_is_the_mean_of_its_nodes_by_their_processor_time() -> None:
    profiles = [
        *rows(_said(1.0, vote=0.8), 0, "load", "node-1", "validators"),
        *rows(_said(3.0, vote=0.4, sync=0.3), 0, "load", "node-2", "validators"),
        *rows(_said(2.0, sync=0.5), 0, "load", "node-3", "followers"),
    ]
    validators, followers = spendings(profiles)
    assert (validators.group, validators.nodes, validators.cpu_s) == ("validators", 2, 4.0)
    found = {name: own for name, own, _ in validators.functions}
    assert found["vote"] == pytest.approx(0.5) and found["sync"] == pytest.approx(0.225)
    assert found[OTHER_THREADS] == pytest.approx(0.1) and found[PROFILER] == pytest.approx(0.002)
    assert [name for name, _, _ in followers.functions] == ["sync", OTHER_THREADS, PROFILER]
    text = "\n".join(summary_lines(profiles))
    assert "case 0, load, 2 validators: 4.00 s" in text and "50.0 %   90.0 %  vote" in text
