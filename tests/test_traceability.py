"""The traceability table says what is true: its paths exist, and modules name the rows that they are said to carry."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "docs" / "traceability.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in TABLE.splitlines()
    if re.match(r"\| S[04]-", line)
]


def paths(cell: str) -> list[str]:
    return re.findall(r"`([^`]+\.py)`", cell)


def test_the_table_has_every_equation_of_the_first_paper() -> None:
    named = " ".join(row[0] for row in ROWS)
    for number in range(1, 20):
        assert f"S0-E{number}" in named


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_named_file_exists(row: list[str]) -> None:
    missing = [path for cell in row[3:] for path in paths(cell) if not (ROOT / path).is_file()]
    assert not missing, f"{row[0]} names {missing}"


@pytest.mark.parametrize("row", [row for row in ROWS if row[2].startswith("built")], ids=lambda row: row[0])
def test_a_built_row_has_a_module_that_names_it_and_a_test(row: list[str]) -> None:
    modules = paths(row[3])
    assert modules, f"{row[0]} is called built but names no module"
    assert paths(row[4]), f"{row[0]} is called built but names no test"
    for path in modules:
        text = (ROOT / path).read_text("utf-8")
        named = set(re.findall(r"S[04]-[A-Z]?\d+(?:\.\d+)?(?:[-–]\d+)?", text))
        for first, last in re.findall(r"S0-E(\d+) …\s+E(\d+)", text):
            named |= {f"S0-E{number}" for number in range(int(first), int(last) + 1)}
        for first, second in re.findall(r"(S[04]-E\d+), (E\d+)", text):
            named |= {first, f"{first[:3]}{second}"}
        first_row = row[0].partition(" …")[0]
        assert first_row in named, f"{path} does not name {row[0]}"
