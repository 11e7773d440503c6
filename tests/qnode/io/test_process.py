"""A process's own figures are those that others see of it, and reading them is bounded."""

import mmap
import time
from pathlib import Path

import psutil
import pytest

from qnode.io import process
from qnode.io.process import ProcessFigures


def test_own_figures_agree_with_what_others_see() -> None:
    seen, own = psutil.Process(), ProcessFigures().document()
    assert own["cpu_s"] == pytest.approx(sum(seen.cpu_times()[:2]), abs=0.5)
    assert own["rss_mib"] == pytest.approx(seen.memory_info().rss / 2**20, rel=0.1)
    assert own["pss_mib"] == pytest.approx(seen.memory_full_info().pss / 2**20, rel=0.1)
    assert own["open_files"] == seen.num_fds() - 1  # psutil counts its own look
    assert own["threads"] >= 1


def test_proportional_memory_is_read_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ProcessFigures()
    first = figures.document()["pss_mib"]
    fresh = mmap.mmap(-1, 32 << 20)
    fresh.write(b"x" * (32 << 20))
    assert figures.document()["pss_mib"] == first
    later_s = time.monotonic() + 3_600
    monkeypatch.setattr(process.time, "monotonic", lambda: later_s)
    assert figures.document()["pss_mib"] > first + 16
    fresh.close()


def test_a_system_without_proc_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_OWN", tmp_path)
    own = ProcessFigures().document()
    assert (own["rss_mib"], own["pss_mib"], own["open_files"]) == (None, None, None)
    assert own["cpu_s"] > 0
