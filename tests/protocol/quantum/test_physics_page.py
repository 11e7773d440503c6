"""The walk through docs/physics.md runs as it is printed."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "physics.md"


def test_the_walk_through_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})


def test_every_figure_of_the_page_exists():
    for name in re.findall(r"\]\((images/[^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / name).is_file(), name
