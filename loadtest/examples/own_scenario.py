"""Your own scenario in Python: which rate of key requests does a ring of six nodes carry while a fibre is tapped?

Copy it, change it, run it:

    python loadtest/examples/own_scenario.py results/own
"""

import sys
from pathlib import Path

from loadtest import runner
from loadtest.results.reader import Result
from loadtest.run_command import execute
from loadtest.scenarios.model import Attack, Client, Network, Scenario

SCENARIO = Scenario(
    title="keys around a tapped fibre",
    nodes=(6,),
    loads=(1, 4, 16),  # every client's rate, times these
    warm_up_s=2,
    duration_s=15,
    network=Network(shape="ring", profile="lab", settings={"pool": {"target_bits": 1_048_576}}),
    clients=(Client(kind="keys", rate_per_s=5, between="any"),),
    attacks=(Attack(kind="eavesdropper", at_s=3, duration_s=8),),
)


def main(directory: Path) -> None:
    """Run it, and print what was found."""
    partial = execute(SCENARIO, "own", directory)
    summary = runner.summary(Result(directory))
    for case in summary["cases"]:
        print(f"load × {case['load']:g}: p95 {case.get('key_ms_p95')} ms, {case.get('requests_failed'):g} failed")
    print(partial or "complete", "-", summary["result"])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/own"))
