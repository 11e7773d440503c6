"""Brings together, before nodes are forked, what every node will write to: fewer pages of memory then become its own.

A call of a Python function counts references in its code, its constants and the names it looks up, and so makes the
kernel copy their pages for the node. What a node runs is a tenth of what it has imported, strewn over all of it.

- `words` and `share`: names that will be used are made side by side before anything else is imported.
- `pack`: code that a rehearsal has run is copied, one after the other.
- `fill_holes`: what earlier work left free between objects is taken, so that neither those copies nor the nodes' own
  objects end up among objects that are never written to.

It knows CPython's and glibc's allocators; elsewhere there is nothing to gain, and everything stays as it is.
"""

import ctypes
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType
from typing import Any, ClassVar, Final

FILLED_BYTES_MAX: Final = 64 << 20
"""More than a server has in all: ends a search of a heap that is laid out differently."""


@contextmanager
def running_code() -> Iterator[dict[int, CodeType]]:
    """Collect all code that begins to run in this thread, and in threads started meanwhile, by its identity."""
    seen: dict[int, CodeType] = {}

    def called(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen[id(frame.f_code)] = frame.f_code

    sys.setprofile(called)
    threading.setprofile(called)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def words(run: Mapping[int, CodeType]) -> list[str]:
    """Return the names and words that code uses, each once."""
    found: dict[str, None] = {}
    for code in run.values():
        found.update(dict.fromkeys((*code.co_names, *code.co_varnames, code.co_name)))
        found.update((each, None) for each in code.co_consts if type(each) is str and each.isidentifier())
    return list(found)


def share(texts: Iterable[str]) -> list[str]:
    """Have everything that is imported from now on use these texts, which lie side by side, while they are kept."""
    return [sys.intern(each) for each in texts]


def pack(run: Mapping[int, CodeType]) -> int:
    """Have every function whose code is among `run` use a copy of it; return the number of copies."""
    copies: dict[int, CodeType] = {}
    for function in [each for each in gc.get_objects() if type(each) is FunctionType]:
        if _runs(function.__code__, run):
            function.__code__ = _copied(function.__code__, run, copies)
    return len(copies)


def _runs(code: CodeType, run: Mapping[int, CodeType]) -> bool:
    return id(code) in run or any(_runs(each, run) for each in code.co_consts if type(each) is CodeType)


def _copied(code: CodeType, run: Mapping[int, CodeType], copies: dict[int, CodeType]) -> CodeType:
    """Return the copy of `code`, made together with its constants and what is defined within it."""
    if id(code) not in copies:
        copies[id(code)] = code.replace(co_consts=tuple(_constant(each, run, copies) for each in code.co_consts))
    return copies[id(code)]


def _constant(value: Any, run: Mapping[int, CodeType], copies: dict[int, CodeType]) -> Any:
    """Return a copy of a constant in which calls count references; words are shared by all code and stay."""
    if type(value) is CodeType:
        return _copied(value, run, copies) if _runs(value, run) else value
    if type(value) is tuple:
        return tuple([_constant(each, run, copies) for each in value])
    if type(value) is float:
        return float.fromhex(value.hex())
    if type(value) is str and len(value) > 1 and not value.isidentifier():
        return "".join(list(value))
    return value


def fill_holes() -> int:
    """Take the free memory between objects, for good; return how many bytes. Nothing where Python is not CPython."""
    if sys.implementation.name != "cpython":
        return 0
    return _fill_heap() + _fill_pools()


class _HeapFigures(ctypes.Structure):
    """`struct mallinfo2` of glibc; `keepcost` is what is free at the heap's end."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def _fill_heap() -> int:
    """Fill glibc's heap below its end, from the largest holes to the smallest; nothing before glibc 2.33 or without."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return 0
    allocate, free = _allocator(library, "malloc", "free")
    figures = library.mallinfo2
    figures.restype = _HeapFigures
    filled = 0
    for size in (*(1 << power for power in range(16, 10, -1)), *range(1024, 16, -16)):
        while filled < FILLED_BYTES_MAX:
            end_bytes = figures().keepcost
            block = allocate(size)
            if figures().keepcost != end_bytes:  # taken from the end: no hole is so large
                free(block)
                break
            filled += size
    return filled


def _fill_pools() -> int:
    """Fill the pools of small objects that are in use in part, size by size."""
    allocate, _ = _allocator(ctypes.pythonapi, "PyObject_Malloc", "PyObject_Free")
    rooms = _rooms()
    for size, count in rooms:
        for _ in range(count):
            allocate(size)
    return sum(size * count for size, count in rooms)


def _rooms() -> list[tuple[int, int]]:
    """Return the sizes of small objects and how many more of each fit into pools; CPython says it in a table."""
    tell: Callable[[], None] | None = getattr(sys, "_debugmallocstats", None)
    if tell is None:
        return []
    said = os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)
        try:
            tell()
        finally:
            os.dup2(said, 2)
            os.close(said)
        file.seek(0)
        rows = (line.split() for line in file)
        return [(int(row[1]), int(row[4])) for row in rows if len(row) == 5 and all(each.isdigit() for each in row)]


def _allocator(library: ctypes.CDLL, allocate: str, free: str) -> tuple[Callable[[int], int], Callable[[int], None]]:
    allocating, freeing = library[allocate], library[free]
    allocating.restype, allocating.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    freeing.restype, freeing.argtypes = None, [ctypes.c_void_p]
    return allocating, freeing
