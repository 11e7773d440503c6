"""Cascade's search for errors: the numpy twin, and the choice between it and the kernel.

The twin is the specification of the search (SPEC §5.2.3): the kernel sends the same bytes. Alice knows only the list
of running searches; Bob narrows each by the parity she answers, flips the bit it ends on, and follows what this
changes in the other passes. In one frame all searches of a round belong to one pass, the lowest with odd blocks;
its blocks are disjoint, so no error is found twice.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.distill.reconciliation.party import ReconciliationError
from protocol.distill.seeding import division, permutation
from protocol.kernels import distillation as kernels
from protocol.parameters import require

if TYPE_CHECKING:
    from protocol.distill.reconciliation.cascade import CascadePlan

Bits = NDArray[np.uint8]


class Requests(NamedTuple):
    """One round of Bob's queries: a direction bit per running search (1 = right half), 8 bytes per new search."""

    directions: bytes
    records: bytes


@dataclass(slots=True)
class Search:
    """A block lo ≤ row < hi, in the order of pass `index`, of frame `lane`, whose parities differ."""

    lane: int
    index: int
    lo: int
    hi: int

    @property
    def middle(self) -> int:
        """Where the block is cut: the left half is not the longer."""
        return (self.lo + self.hi) // 2

    def record(self) -> int:
        """Return the 64-bit form: lane (16), pass (8), lo (20), hi - 1 (20), from the top."""
        return self.lane << 48 | self.index << 40 | self.lo << 20 | (self.hi - 1)


CONTRADICTION = "the parities contradict each other: more corrections than there are bits"
"""With true parities every flip corrects an error; a liar's would otherwise flip one bit for ever."""


class AliceSearch(Protocol):
    """Alice's half: parities on demand."""

    @property
    def active(self) -> int:
        """Running searches: the number of parities in the next answer."""
        ...

    def opening(self) -> bytes:
        """Return the parities of every block of every pass: a row of lanes per block, least significant bit first."""
        ...

    def follow(self, requests: Requests) -> None:
        """Take Bob's directions and new searches. Raises ReconciliationError on one outside the block."""
        ...

    def answer(self) -> bytes:
        """Return the parity of the left half of each running search, least significant bit first."""
        ...


class BobSearch(Protocol):
    """Bob's half: locate and correct."""

    @property
    def active(self) -> int:
        """Running searches; none means that every known parity agrees."""
        ...

    @property
    def corrected(self) -> int:
        """Bits flipped so far."""
        ...

    def open(self, parities: bytes) -> Requests:
        """Take Alice's opening. Raises ReconciliationError on a wrong length or a set padding bit."""
        ...

    def step(self, parities: bytes) -> Requests:
        """Take an answer of Alice. Raises ReconciliationError on a wrong length or a set padding bit."""
        ...

    def bits(self) -> Bits:
        """Return the corrected string."""
        ...


def new_alice(plan: "CascadePlan", bits: Bits, use_kernel: bool | None) -> AliceSearch:
    """Make Alice's search with the kernel or the twin."""
    return AliceKernel(plan, bits) if _choose(use_kernel) else AliceTwin(plan, bits)


def new_bob(plan: "CascadePlan", bits: Bits, use_kernel: bool | None) -> BobSearch:
    """Make Bob's search with the kernel or the twin."""
    return BobKernel(plan, bits) if _choose(use_kernel) else BobTwin(plan, bits)


def _choose(use_kernel: bool | None) -> bool:
    available = kernels.library is not None
    require(available or not use_kernel, "the C kernel is not built; leave use_kernel unset to run on the numpy twin")
    return available if use_kernel is None else use_kernel


def _check_bits(data: bytes, count: int) -> None:
    """Refuse `data` unless it holds exactly `count` bits with zero padding."""
    if len(data) != (count + 7) // 8:
        raise ReconciliationError(f"{len(data)} bytes where {count} parities are due")
    if count % 8 and data[-1] >> count % 8:
        raise ReconciliationError("padding bits are set")


def _opening_size_bytes(plan: "CascadePlan") -> int:
    return plan.row_size_bytes * sum(plan.sent_blocks(index) for index in range(len(plan.block_rows)))


class AliceKernel:
    """Alice's search in C."""

    def __init__(self, plan: "CascadePlan", bits: Bits) -> None:
        self._plan = plan
        self._kernel = kernels.CascadeKernel(False, plan, bits)

    @property
    def active(self) -> int:
        return self._kernel.active

    def opening(self) -> bytes:
        return self._kernel.opening(_opening_size_bytes(self._plan))

    def follow(self, requests: Requests) -> None:
        _check_bits(requests.directions, self.active)
        try:
            self._kernel.follow(requests.directions, requests.records)
        except ValueError:
            raise ReconciliationError("a query lies outside the block") from None

    def answer(self) -> bytes:
        return self._kernel.answer()


class BobKernel:
    """Bob's search in C."""

    def __init__(self, plan: "CascadePlan", bits: Bits) -> None:
        self._plan = plan
        self._kernel = kernels.CascadeKernel(True, plan, bits)

    @property
    def active(self) -> int:
        return self._kernel.active

    @property
    def corrected(self) -> int:
        return self._kernel.corrected

    def bits(self) -> Bits:
        return self._kernel.bits()

    def open(self, parities: bytes) -> Requests:
        due = _opening_size_bytes(self._plan)
        if len(parities) != due:
            raise ReconciliationError(f"{len(parities)} bytes of opening parities, {due} are due")
        try:
            return Requests(*self._kernel.open(parities))
        except ValueError:
            raise ReconciliationError(f"padding bits are set, or {CONTRADICTION}") from None

    def step(self, parities: bytes) -> Requests:
        _check_bits(parities, self.active)
        try:
            return Requests(*self._kernel.step(parities))
        except ValueError:
            raise ReconciliationError(CONTRADICTION) from None


def _permutations(plan: "CascadePlan") -> list[NDArray[np.uint32]]:
    """One order per pass; the first is the identity. All frames share them: their errors are independent anyway."""
    orders = [np.arange(plan.rows, dtype=np.uint32)]
    for index, key in enumerate(plan.keys[1:], start=1):
        orders.append(division(plan.rows, key) if plan.halves(index) else permutation(plan.rows, key))
    return orders


def _frames(plan: "CascadePlan", bits: Bits) -> Bits:
    """Return the string as rows × lanes, padded with zeros, which agree on both sides."""
    padded = np.zeros(plan.rows * plan.lanes, dtype=np.uint8)
    padded[: bits.size] = bits
    return padded.reshape(plan.rows, plan.lanes)


def _unpack(data: bytes, count: int) -> Bits:
    """Unpack `count` bits; the padding must be zero."""
    _check_bits(data, count)
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little")


class AliceTwin:
    """Alice in numpy: prefix parities of every pass answer any block in two look-ups."""

    def __init__(self, plan: "CascadePlan", bits: Bits) -> None:
        self._plan = plan
        rows = _frames(plan, bits)
        first = np.zeros((1, plan.lanes), dtype=np.uint8)
        self._prefix = [
            np.concatenate((first, np.bitwise_xor.accumulate(rows[order], axis=0))) for order in _permutations(plan)
        ]
        self._active: list[Search] = []

    @property
    def active(self) -> int:
        return len(self._active)

    def opening(self) -> bytes:
        parts = []
        for index, prefix in enumerate(self._prefix):
            size = self._plan.block_rows[index]
            blocks = self._plan.sent_blocks(index)
            ends = np.minimum(np.arange(1, blocks + 1) * size, self._plan.rows)
            parity = prefix[ends] ^ prefix[np.arange(blocks) * size]
            parts.append(np.packbits(parity, axis=1, bitorder="little").tobytes())
        return b"".join(parts)

    def follow(self, requests: Requests) -> None:
        directions = _unpack(requests.directions, len(self._active))
        running = []
        for search, right in zip(self._active, directions.tolist(), strict=True):
            if right:
                search.lo = search.middle
            else:
                search.hi = search.middle
            if search.hi - search.lo > 1:
                running.append(search)
        added = [self._checked(int(v)) for v in np.frombuffer(requests.records, dtype="<u8")]
        self._active = running + added

    def _checked(self, record: int) -> Search:
        search = Search(record >> 48, record >> 40 & 0xFF, record >> 20 & 0xFFFFF, (record & 0xFFFFF) + 1)
        inside = search.lane < self._plan.lanes and search.index < len(self._plan.block_rows)
        if not (inside and search.lo + 1 < search.hi <= self._plan.rows):
            raise ReconciliationError("a query lies outside the block")
        return search

    def answer(self) -> bytes:
        parity = [self._prefix[s.index][s.middle, s.lane] ^ self._prefix[s.index][s.lo, s.lane] for s in self._active]
        return np.packbits(np.array(parity, dtype=np.uint8), bitorder="little").tobytes()


class BobTwin:
    """Bob in numpy and lists: his bits in the order of every pass, and for each frame and pass the odd blocks."""

    def __init__(self, plan: "CascadePlan", bits: Bits) -> None:
        self._plan = plan
        self._orders = _permutations(plan)
        self._inverse = [np.argsort(order) for order in self._orders]
        rows = _frames(plan, bits)
        self._bits = [np.ascontiguousarray(rows[order].T) for order in self._orders]  # pass → lanes × rows
        passes = range(len(self._orders))
        # Cuts of the passes into blocks of known parity, and the starts of those that are odd.
        self._cuts = [[list(range(0, plan.rows, size)) for size in plan.block_rows] for _ in range(plan.lanes)]
        self._odd: list[list[set[int]]] = [[set() for _ in passes] for _ in range(plan.lanes)]
        self._active: list[Search] = []
        self.corrected = 0

    @property
    def active(self) -> int:
        return len(self._active)

    def bits(self) -> Bits:
        return self._bits[0].T.reshape(-1)[: self._plan.size_bits].copy()

    def open(self, parities: bytes) -> Requests:
        total = np.zeros(self._plan.lanes, dtype=np.uint8)
        width = self._plan.row_size_bytes
        due = _opening_size_bytes(self._plan)
        if len(parities) != due:
            raise ReconciliationError(f"{len(parities)} bytes of opening parities, {due} are due")
        start = 0
        for index in range(len(self._orders)):
            blocks = self._plan.sent_blocks(index)
            theirs = self._rows_of(parities[start : start + blocks * width])
            start += blocks * width
            if index and self._plan.infer_last:
                last = np.bitwise_xor.reduce(theirs, axis=0) ^ total
                theirs = np.concatenate((theirs, last[None, :]))
            elif index == 0:
                total = np.bitwise_xor.reduce(theirs, axis=0)
            self._mark(index, theirs)
        return Requests(b"", self._next(range(self._plan.lanes)))

    def _rows_of(self, data: bytes) -> Bits:
        table = np.frombuffer(data, dtype=np.uint8).reshape(-1, self._plan.row_size_bytes)
        rows = np.unpackbits(table, axis=1, bitorder="little")
        if rows[:, self._plan.lanes :].any():
            raise ReconciliationError("padding bits are set")
        return rows[:, : self._plan.lanes]

    def _mark(self, index: int, theirs: Bits) -> None:
        size = self._plan.block_rows[index]
        if self._plan.rows == 0:
            return
        ours = np.bitwise_xor.reduceat(self._bits[index], np.arange(0, self._plan.rows, size), axis=1).T
        for block, lane in np.argwhere(ours != theirs).tolist():
            self._odd[lane][index].add(block * size)

    def step(self, parities: bytes) -> Requests:
        answers = _unpack(parities, len(self._active)).tolist()
        directions: list[int] = []
        running: list[Search] = []
        ended: list[Search] = []
        for search, parity in zip(self._active, answers, strict=True):
            middle = search.middle
            ours = int(np.bitwise_xor.reduce(self._bits[search.index][search.lane, search.lo : middle]))
            right = int(ours == parity)
            directions.append(right)
            if self._plan.reuse:
                insort(self._cuts[search.lane][search.index], middle)
            search.lo, search.hi = (middle, search.hi) if right else (search.lo, middle)
            (running if search.hi - search.lo > 1 else ended).append(search)
        self._active = running
        for search in ended:
            self._flip(search)
        busy = {search.lane for search in running}
        records = self._next(sorted({search.lane for search in ended} - busy))
        return Requests(np.packbits(np.array(directions, dtype=np.uint8), bitorder="little").tobytes(), records)

    def _flip(self, search: Search) -> None:
        """Correct the bit that `search` ended on; every other pass's block around it changes parity."""
        row = int(self._orders[search.index][search.lo])
        self.corrected += 1
        if self.corrected > self._plan.rows * self._plan.lanes:
            raise ReconciliationError(CONTRADICTION)
        for index, inverse in enumerate(self._inverse):
            position = int(inverse[row])
            self._bits[index][search.lane, position] ^= 1
            if index != search.index:
                cuts = self._cuts[search.lane][index]
                self._odd[search.lane][index] ^= {cuts[bisect_right(cuts, position) - 1]}

    def _next(self, lanes: "list[int] | range") -> bytes:
        """Start searches in the lowest pass with odd blocks of each frame; blocks of one bit need none."""
        added: list[Search] = []
        for lane in lanes:
            added += self._next_of(lane)
        self._active += added
        return b"".join(search.record().to_bytes(8, "little") for search in added)

    def _next_of(self, lane: int) -> list[Search]:
        longer: list[Search] = []
        while not longer:
            index = next((index for index, odd in enumerate(self._odd[lane]) if odd), None)
            if index is None:
                break
            odd, cuts = self._odd[lane][index], self._cuts[lane][index]
            starts = sorted(odd)
            odd.clear()
            searches = [Search(lane, index, lo, self._end(cuts, lo)) for lo in starts]
            for search in searches:
                if search.hi - search.lo == 1:
                    self._flip(search)
            longer = [search for search in searches if search.hi - search.lo > 1]
        return longer

    def _end(self, cuts: list[int], lo: int) -> int:
        after = bisect_right(cuts, lo)
        return cuts[after] if after < len(cuts) else self._plan.rows
