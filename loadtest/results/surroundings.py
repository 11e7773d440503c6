"""What a run was measured with: the machine, the versions, the commit. Reads them; decides nothing."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

import psutil

from loadtest.results.records import Machine, Versions

LIBRARIES: Final = ("aiohttp", "cryptography", "hdrhistogram", "msgpack", "numpy", "pynacl", "scipy", "uvloop")
ROOT: Final = Path(__file__).resolve().parents[2]


def machine() -> Machine:
    """Describe this machine, without its name."""
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total >> 20,
        kernel=f"{platform.system()} {platform.release()}",
        cpu_model=_cpu_model(),
        platform=platform.machine(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "cpu model"))]
    return names[0] if names else platform.processor() or "unknown"


def versions() -> Versions:
    """Describe what runs."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return Versions(
        qnode=importlib.metadata.version("qnode"),
        python=platform.python_version(),
        libraries=found,
        git_commit=_git_commit(),
    )


def _git_commit() -> str | None:
    """Return the commit of the checkout, with "+" if files changed since; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True, timeout=10
    ).stdout
