"""Names of entries by the height that brought them, oldest first, as packed bytes (SPEC 9.11).

What retention goes by. A chain delivers millions of keys, so that an object each would cost more than the entry itself.
"""

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

HEIGHT_SIZE_BYTES: Final = 8
Name = TypeVar("Name")


def oldest(aged: Iterable[tuple[int, Name]], below_height: int, count_max: int) -> list[Name]:
    """Return the names of the oldest heights below `below_height`; `aged` is in the order of its heights.

    Whole heights, so that the order within one does not matter, until `count_max` names are reached.
    """
    taken: list[Name] = []
    last = -1
    for height, name in aged:
        if height >= below_height or (height != last and len(taken) >= count_max):
            break
        taken.append(name)
        last = height
    return taken


class Ages:
    """A queue of (height, name); names have one size, and those of one height leave together."""

    def __init__(self, name_size_bytes: int) -> None:
        self._row_size_bytes = HEIGHT_SIZE_BYTES + name_size_bytes
        self._rows = bytearray()

    def __len__(self) -> int:
        return len(self._rows) // self._row_size_bytes

    def add(self, height: int, name: bytes) -> None:
        """Append a name; heights come in order, or `sort` follows."""
        assert len(name) == self._row_size_bytes - HEIGHT_SIZE_BYTES
        self._rows += height.to_bytes(HEIGHT_SIZE_BYTES, "big") + name

    def sort(self) -> None:
        """Put the heights in order, after names came in any order."""
        size = self._row_size_bytes
        rows = sorted(bytes(self._rows[at : at + size]) for at in range(0, len(self._rows), size))
        self._rows = bytearray(b"".join(rows))

    def take(self, below_height: int, count_max: int) -> list[bytes]:
        """Remove and return the `oldest` names below a height."""
        taken = oldest(self._aged(), below_height, count_max)
        del self._rows[: len(taken) * self._row_size_bytes]
        return taken

    def _aged(self) -> Iterator[tuple[int, bytes]]:
        for at in range(0, len(self._rows), self._row_size_bytes):
            row = bytes(self._rows[at : at + self._row_size_bytes])
            yield int.from_bytes(row[:HEIGHT_SIZE_BYTES], "big"), row[HEIGHT_SIZE_BYTES:]
