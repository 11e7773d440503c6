"""Cascade: interactive reconciliation by parities, many frames in flight (S0-E6, S4-5.7).

Brassard and Salvail, EUROCRYPT '93 ("cascade-original": first blocks of 0.73 / QBER, doubled over four passes), and a
modern parameter set after Martínez-Mateo, Pacher, Peev, Ciurana, Martín, Quantum Inf. Comput. 15, 453 (2015), with
every parity ever learned reused ("cascade"). This module decides parameters, messages and accounting; the search
itself is in `cascade_search` (twin) or the kernel, which agree message for message. Implements SPEC §5.2.

The block is cut into up to 64 interleaved frames (frame f holds the bits f, f + L, f + 2L, …): a round trip serves
all of them, one machine word holds a row of them, and a burst of errors is spread over them.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.distill.reconciliation.cascade_search import AliceSearch, BobSearch, Requests, new_alice, new_bob
from protocol.distill.reconciliation.party import Outcome, ReconciliationError
from protocol.distill.seeding import stream_key
from protocol.parameters import ParameterError, require, require_range

Bits = NDArray[np.uint8]

FRAME_BITS = 1 << 14  # frames of this size are within 1 % of the efficiency of any longer one, and fit the cache
LANES_MAX = 64
ROWS_MAX = 1 << 20  # a position in a request has 20 bits: blocks up to 6.7·10⁷ bits
PASSES_ORIGINAL = 4
PASSES_MODERN = 14
QBER_MIN = 1e-4  # below it larger first blocks save nothing that can be measured

_PARITIES, _QUERIES, _DONE, _ABORT = range(4)
_COUNT = struct.Struct("<I")
TOO_MUCH_LEAKED = "reconciliation would announce more bits than the block has"


@dataclass(frozen=True, slots=True)
class CascadePlan:
    """The public parameters of one block, equal on both sides.

    `rows` is the length of a frame, `lanes` the number of frames; `block_rows` the block length of each pass;
    `reuse` whether the search continues in the smallest block of known parity; `infer_last` whether the last block's
    parity of later passes follows from the first pass instead of being sent; `keys` seed the passes' permutations
    (the first pass keeps the order).
    """

    size_bits: int
    lanes: int
    rows: int
    block_rows: tuple[int, ...]
    reuse: bool
    infer_last: bool
    keys: tuple[int, ...]

    @property
    def row_size_bytes(self) -> int:
        """Bytes of one bit per lane."""
        return (self.lanes + 7) // 8

    def sent_blocks(self, index: int) -> int:
        """Blocks of pass `index` whose parity is announced at the start."""
        blocks = -(-self.rows // self.block_rows[index])
        return blocks - 1 if index and self.infer_last else blocks

    @property
    def opening_bits(self) -> int:
        """Parities announced at the start, over all passes and frames."""
        return self.lanes * sum(self.sent_blocks(i) for i in range(len(self.block_rows)))


def make_plan(size_bits: int, qber: float, seed: bytes, original: bool) -> CascadePlan:
    """Choose lanes and block sizes. Raises ParameterError for a size or QBER out of range."""
    require_range("qber", qber, 0.0, 1.0)
    require_range("size_bits", size_bits, 0, LANES_MAX * ROWS_MAX)
    lanes = min(LANES_MAX, max(1, round(size_bits / FRAME_BITS)))
    rows = -(-size_bits // lanes)
    expected = min(0.5, max(QBER_MIN, qber))
    sizes = _original_sizes(expected) if original else _modern_sizes(expected, rows)
    # A pass of one block repeats the first pass's total parity: it is left out.
    first = max(1, min(rows, sizes[0]))
    kept = (first, *(size for size in sizes[1:] if size < rows))
    keys = tuple(stream_key(seed, f"cascade pass {index}") for index in range(len(kept)))
    return CascadePlan(size_bits, lanes, rows, kept, not original, not original, keys)


def _original_sizes(qber: float) -> list[int]:
    first = max(2, round(0.73 / qber))
    return [first << index for index in range(PASSES_ORIGINAL)]


def _modern_sizes(qber: float, rows: int) -> list[int]:
    """Block sizes of the set that the 2015 study found best: 2^⌈α⌉, 2^⌈(α+12)/2⌉, 4096, then halves of the frame."""
    alpha = math.log2(1 / qber) - 0.5
    half = max(2, -(-rows // 2))
    sizes = [max(2, 1 << math.ceil(alpha)), 1 << math.ceil((alpha + 12) / 2), 4096]
    growing = [min(size, half) for size in sizes]
    return [growing[0], *growing[1:], *[half] * (PASSES_MODERN - len(growing))]


def _message(kind: int, *parts: bytes) -> bytes:
    return b"".join((bytes((kind,)), *parts))


def _split(message: bytes, *kinds: int) -> tuple[int, memoryview]:
    if not message or message[0] not in kinds:
        raise ReconciliationError("unexpected kind of Cascade message")
    return message[0], memoryview(message)[1:]


class _Side:
    """What both sides count."""

    def __init__(self, plan: CascadePlan, method: str) -> None:
        self.outcome: Outcome | None = None
        self._plan = plan
        self._method = method
        self._leaked_bits = 0
        self._round_trips = 0
        # A lying or hopeless peer cannot make the search go on for ever: beyond the block's size nothing is left.
        self._leak_limit_bits = plan.size_bits + 64

    def _charge(self, announced_bits: int) -> bool:
        """Count parities that are about to be announced; False when they would exceed the limit."""
        if self._leaked_bits + announced_bits > self._leak_limit_bits:
            return False
        self._leaked_bits += announced_bits
        return True

    def _finish(self, bits: Bits | None, corrected: int | None, reason: str | None = None) -> None:
        self.outcome = Outcome(self._method, bits, self._leaked_bits, self._round_trips, corrected, reason)

    def _abort(self, reason: str) -> bytes:
        self._finish(None, None, reason)
        return _message(_ABORT, reason.encode())


class CascadeAlice(_Side):
    """Alice's side: announces parities of her string, counts them, never changes a bit."""

    def __init__(self, bits: Bits, plan: CascadePlan, method: str, use_kernel: bool | None = None) -> None:
        super().__init__(plan, method)
        self._bits = bits
        self._search: AliceSearch = new_alice(plan, bits, use_kernel)

    def start(self) -> bytes | None:
        """Announce the parities of all blocks of all passes at once: later passes need no round trip of their own."""
        if not self._charge(self._plan.opening_bits):
            return self._abort(TOO_MUCH_LEAKED)
        return _message(_PARITIES, self._search.opening())

    def receive(self, message: bytes) -> bytes | None:
        """Answer one round of queries. Raises ReconciliationError."""
        if self.outcome is not None:
            raise ReconciliationError("a message after the end")
        kind, body = _split(message, _QUERIES, _DONE, _ABORT)
        self._round_trips += 1
        if kind == _ABORT:
            self._finish(None, None, _reason(body))
            return None
        if kind == _DONE:
            if len(body) != _COUNT.size:
                raise ReconciliationError("a final message has a count of errors and nothing else")
            self._finish(self._bits, *_COUNT.unpack(body))
            return None
        self._search.follow(self._parse(body))
        if not self._charge(self._search.active):
            return self._abort(TOO_MUCH_LEAKED)
        return _message(_PARITIES, self._search.answer())

    def _parse(self, body: memoryview) -> Requests:
        """Split directions of the running searches from the records of new ones, checking the length."""
        directions = (self._search.active + 7) // 8
        if len(body) < directions or (len(body) - directions) % 8:
            raise ReconciliationError("a round of queries has the wrong length")
        return Requests(bytes(body[:directions]), bytes(body[directions:]))


class CascadeBob(_Side):
    """Bob's side: searches and corrects."""

    def __init__(self, bits: Bits, plan: CascadePlan, method: str, use_kernel: bool | None = None) -> None:
        super().__init__(plan, method)
        self._search: BobSearch = new_bob(plan, bits, use_kernel)
        self._opened = False

    def start(self) -> bytes | None:
        """Wait for Alice."""
        return None

    def receive(self, message: bytes) -> bytes | None:
        """Take one round of parities, correct what they locate, ask the next. Raises ReconciliationError."""
        if self.outcome is not None:
            raise ReconciliationError("a message after the end")
        kind, body = _split(message, _PARITIES, _ABORT)
        self._round_trips += 1
        if kind == _ABORT:
            self._finish(None, None, _reason(body))
            return None
        if self._opened:
            requests = self._search.step(bytes(body))
        else:
            self._charge(self._plan.opening_bits)
            self._opened = True
            requests = self._search.open(bytes(body))
        if self._search.active == 0:
            self._finish(self._search.bits(), self._search.corrected)
            return _message(_DONE, _COUNT.pack(self._search.corrected))
        if not self._charge(self._search.active):
            return self._abort(TOO_MUCH_LEAKED)
        return _message(_QUERIES, requests.directions, requests.records)


def _reason(body: memoryview) -> str:
    """Return the peer's reason for an abort if it is one that this protocol has."""
    if bytes(body) != TOO_MUCH_LEAKED.encode():
        raise ReconciliationError("an abort with an unknown reason")
    return TOO_MUCH_LEAKED


def make_cascade(
    role: str, bits: Bits, qber: float, seed: bytes, *, original: bool = False, use_kernel: bool | None = None
) -> CascadeAlice | CascadeBob:
    """Make one side of Cascade for a block of 0/1 `bits`; both sides must pass equal sizes, `qber` and `seed`.

    `use_kernel` False forces the numpy twin, True the kernel (ParameterError without one), None takes what there is.
    """
    require(role in ("alice", "bob"), f"role is {role!r}; it is 'alice' or 'bob'")
    if bits.ndim != 1 or bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 1):
        raise ParameterError("bits is one line of uint8 zeros and ones")
    plan = make_plan(bits.size, qber, seed, original)
    method = "cascade-original" if original else "cascade"
    side = CascadeAlice if role == "alice" else CascadeBob
    return side(bits, plan, method, use_kernel)
