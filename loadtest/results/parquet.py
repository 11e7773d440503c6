"""The tables of a result as Parquet, for data frames and query engines. Needs pyarrow, which is not required else."""

from pathlib import Path

import msgspec
import pyarrow
import pyarrow.parquet

from loadtest.results.reader import Result
from loadtest.results.records import Record


def write_parquet(result: Result) -> list[Path]:
    """Write nodes, links and commits beside their CSV; return the files. Raises ResultError, OSError."""
    tables: dict[str, list[Record]] = {
        "nodes": list(result.nodes),
        "links": list(result.links),
        "commits": list(result.commits),
    }
    written = []
    for name, rows in tables.items():
        path = result.directory / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([msgspec.structs.asdict(row) for row in rows]), path)
        written.append(path)
    return written
