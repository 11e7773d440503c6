"""The harness from end to end, as CI runs it: the shipped smoke scenario, and what a run leaves when it is cut off."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RUN = [sys.executable, "-m", "loadtest", "run"]


def test_a_short_smoke_keeps_every_promise(tmp_path: Path) -> None:
    done = subprocess.run(
        [*RUN, "smoke", "--into", str(tmp_path / "result"), "--json", "--set", "duration_s=16"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    [case] = summary["cases"]
    assert summary["status"] == "complete" and summary["checks"] >= 8 and not summary["checks_failed"]
    assert case["detection_rate"] == 1.0 and case["recovery_s_max"] > 0
    assert case["key_ms_p50"] > 0 and case["commit_ms_p50"] > 0 and case["message_ms_p50"] > 0


def test_an_interrupted_run_keeps_what_it_had_and_says_so(tmp_path: Path) -> None:
    into = tmp_path / "result"
    process = subprocess.Popen(
        [*RUN, "smoke", "--into", str(into), "--set", "warm_up_s=600"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs its jobs in the background hands an ignored SIGINT down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if ", warm-up " in line:
            break
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    document = json.loads((into / "run.json").read_text())
    assert process.returncode == 1
    assert document["status"] == "partial" and document["reason"] == "interrupted"
    assert [phase["name"] for phase in document["phases"]] == ["start", "settle", "warm-up"]


def test_a_wrong_scenario_is_one_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('title = "x"\nduration = 5\n')
    done = subprocess.run([*RUN, str(wrong)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "unknown key `duration`; the valid keys are title" in done.stderr and "Traceback" not in done.stderr
