"""The examples in the documents run as they stand, each in an interpreter of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = (ROOT / "protocol" / "distill" / "SPEC.md", ROOT / "docs" / "performance.md")


def examples() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        if document.exists():
            blocks = re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
            found += [(f"{document.name}-{index}", block) for index, block in enumerate(blocks)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), examples(), ids=lambda value: value if len(value) < 40 else "")
def test_an_example_runs(name: str, code: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"{name}: {run.stderr}"


def test_there_are_examples() -> None:
    assert len(examples()) >= 2
