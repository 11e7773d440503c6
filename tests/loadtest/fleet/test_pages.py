"""Giving pages back changes what memory costs, and nothing that is in it."""

import asyncio
import json
import subprocess
import sys
import types
from typing import Any

import pytest

from loadtest.fleet import pages

compiled = pytest.mark.skipif(pages._pages is None, reason="the module that asks Linux for it was not compiled")

MAPPED = """
import ctypes, hashlib, json, mmap, random, threading, time
from loadtest.fleet import _pages

PAGE, COUNT = 4096, 600
def place(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
def made():
    return mmap.mmap(-1, PAGE * COUNT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory = made()
memory[:] = random.Random(1).randbytes(len(memory))
"""

COUNTED = (
    MAPPED
    + """
assert _pages.share([(place(memory), len(memory))]) == len(memory)
expected = bytearray(memory[:])
assert _pages.give_back() == 0
for page in range(0, COUNT, 2):
    memory[PAGE * page + page] ^= 255
    if page % 3:
        memory[PAGE * page + page] ^= 255
    else:
        expected[PAGE * page + page] ^= 255
told = [_pages.give_back(), memory[:] == expected, _pages.give_back(), memory[:] == expected]

library = ctypes.CDLL(None)
library.mmap.restype = ctypes.c_void_p
library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
held = memory[:]
assert library.mmap(place(memory), len(memory), protection, flags, -1, 0) == place(memory)
memory[:] = held  # other memory in the same place now, with the same content
print(json.dumps([*told, _pages.give_back(), memory[:] == held]))
"""
)

BUSY = (
    MAPPED
    + """
_pages.share([(place(memory), len(memory))])
memory[0] ^= 255
memory[0] ^= 255
ended = threading.Event()
def work():
    while not ended.is_set():
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
thread = threading.Thread(target=work)
thread.start()
while _pages.give_back() is not None:
    pass
ended.set()
thread.join()
memory[0] ^= 255
memory[0] ^= 255
while (given := _pages.give_back()) is None:
    pass  # the thread's last moments
print(json.dumps(given))
"""
)

SERVER = """
import json, os
from loadtest.fleet import _pages, server
from loadtest.fleet.rehearsal import rehearse

def main():
    server.prepare()
    reading, writing = os.pipe()
    if os.fork() == 0:
        given = []
        for _ in range(2):
            rehearse()
            given.append(_pages.give_back())
        os.write(writing, json.dumps(given).encode())
        os._exit(0)
    os.wait()
    print(os.read(reading, 100).decode())
main()
"""


def _said(script: str) -> Any:
    """Run in a process of its own: memory is shared once and for all."""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@compiled
def test_equal_pages_are_given_back_and_all_keep_their_content() -> None:
    assert _said(COUNTED) == [200, True, 0, True, 0, True]


@compiled
def test_nothing_is_given_back_while_another_thread_runs() -> None:
    assert _said(BUSY) == 1


@compiled
@pytest.mark.slow
@pytest.mark.integration
def test_a_fork_of_the_server_works_on_without_the_pages_that_it_gave_back() -> None:
    first, second = _said(SERVER)
    assert first > 1000 and second > 1000


async def test_without_the_module_nodes_keep_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_pages", None)
    assert pages.share() == 0
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda *_: pytest.fail("there is nothing to give back"))
    pages.keep_giving_back()


def test_a_system_without_files_in_memory_runs_nodes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ranges: list[tuple[int, int]]) -> int:
        raise PermissionError(1, "memfd_create")

    monkeypatch.setattr(pages, "_pages", types.SimpleNamespace(share=refuse))
    assert pages.share() == 0
