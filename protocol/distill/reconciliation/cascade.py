"""Cascade: interactive reconciliation by parities, many frames in flight (S0-E6, S4-5.7).

Brassard and Salvail, EUROCRYPT '93 ("cascade-original": first blocks of 0.73 / QBER, doubled over four passes), and
two modern sets of parameters after Martínez-Mateo, Pacher, Peev, Ciurana, Martín, Quantum Inf. Comput. 15, 453 (2015),
with every parity ever learned reused: "cascade" leaks least, "cascade-fast" needs a third of its round trips. This
module decides parameters, messages and accounting; the search itself is in `cascade_search` (twin) or the kernel,
which agree message for message. Implements SPEC §5.2.

The block is cut into up to 64 interleaved frames (frame f holds the bits f, f + L, f + 2L, …): a round trip serves
all of them, one machine word holds a row of them, and a burst of errors is spread over them.
"""

import math
import struct
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protocol.distill.reconciliation.cascade_search import AliceSearch, BobSearch, Requests, new_alice, new_bob
from protocol.distill.reconciliation.party import Outcome, ReconciliationError
from protocol.distill.seeding import stream_key
from protocol.kernels import distillation as kernels
from protocol.parameters import ParameterError, require, require_range

Bits = NDArray[np.uint8]

FRAME_BITS = 1 << 14  # frames of this size are within 1 % of the efficiency of any longer one, and fit the cache
LANES_MAX = 64
ROWS_MAX = 1 << 20  # a position in a request has 20 bits: blocks up to 6.7·10⁷ bits
PASSES_ORIGINAL = 4
HALVINGS = 5  # passes of two blocks per frame: each finds half of the frames that still have errors
CHECK_BITS = 16  # lets one block in 65,536 of those that still have errors pass unrepaired
REPAIR_HALVINGS = 12
REPAIRS_MAX = 4
ROUND_TRIPS_MAX = 4_000  # ten times what 10⁷ bits need; only a hopeless estimate takes more
QBER_MIN = 1e-4  # below it larger first blocks save nothing that can be measured

_PARITIES, _QUERIES, _DONE, _ABORT, _REPAIR = range(5)
_COUNT = struct.Struct("<I")
TOO_MUCH_LEAKED = "reconciliation would announce more bits than the block has"
ERRORS_REMAIN = "errors remain after every repair"
TOO_MANY_ROUNDS = "the search took too many rounds: the error rate is far from the estimate"
_REASONS = {reason.encode(): reason for reason in (TOO_MUCH_LEAKED, ERRORS_REMAIN, TOO_MANY_ROUNDS)}


@dataclass(frozen=True, slots=True)
class CascadePlan:
    """The public parameters of one block, equal on both sides.

    `rows` is the length of a frame, `lanes` the number of frames; `block_rows` the block length of each pass;
    `reuse` whether the search continues in the smallest block of known parity; `infer_last` whether the last block's
    parity of later passes follows from the first pass instead of being sent; `keys` seed the passes' permutations
    (the first pass keeps the order). `check_bits` is the length of a hash of the whole block that tells Bob whether to
    ask for a repair.
    """

    size_bits: int
    lanes: int
    rows: int
    block_rows: tuple[int, ...]
    reuse: bool
    infer_last: bool
    keys: tuple[int, ...]
    check_bits: int

    @property
    def row_size_bytes(self) -> int:
        """Bytes of one bit per lane."""
        return (self.lanes + 7) // 8

    def sent_blocks(self, index: int) -> int:
        """Blocks of pass `index` whose parity is announced at the start."""
        blocks = -(-self.rows // self.block_rows[index])
        return blocks - 1 if index and self.infer_last else blocks

    def halves(self, index: int) -> bool:
        """Whether pass `index` > 0 has two blocks: then a random split orders it, where the last block is inferred."""
        return self.infer_last and 2 * self.block_rows[index] >= self.rows

    @property
    def opening_bits(self) -> int:
        """Bits announced at the start: the parities of all passes and frames, and the check."""
        return self.lanes * sum(self.sent_blocks(i) for i in range(len(self.block_rows))) + self.check_bits


def make_plan(size_bits: int, qber: float, seed: bytes, method: str) -> CascadePlan:
    """Choose lanes and block sizes. Raises ParameterError for a size or QBER out of range."""
    require_range("qber", qber, 0.0, 1.0)
    require_range("size_bits", size_bits, 0, LANES_MAX * ROWS_MAX)
    lanes = min(LANES_MAX, max(1, round(size_bits / FRAME_BITS)))
    rows = -(-size_bits // lanes)
    expected = min(0.5, max(QBER_MIN, qber))
    original = method == "cascade-original"
    sizes = _original_sizes(expected) if original else _modern_sizes(expected, rows, method == "cascade-fast")
    # A pass of one block repeats the first pass's total parity: it is left out.
    first = max(1, min(rows, sizes[0]))
    kept = (first, *(size for size in sizes[1:] if size < rows))
    keys = tuple(stream_key(seed, f"cascade pass {index}") for index in range(len(kept)))
    return CascadePlan(size_bits, lanes, rows, kept, not original, not original, keys, 0 if original else CHECK_BITS)


def make_repair(plan: CascadePlan, seed: bytes, attempt: int) -> CascadePlan:
    """Plan the search for the few errors that a whole Cascade left: halves of each frame in fresh random orders.

    Two errors in a frame fall into different halves of at least one of the twelve passes but for 2⁻¹² or so.
    """
    keys = tuple(stream_key(seed, f"cascade repair {attempt} pass {i}") for i in range(REPAIR_HALVINGS))
    half = max(1, -(-plan.rows // 2))
    return replace(plan, block_rows=(half,) * REPAIR_HALVINGS, keys=keys, check_bits=0)


def _original_sizes(qber: float) -> list[int]:
    first = max(2, round(0.73 / qber))
    return [first << index for index in range(PASSES_ORIGINAL)]


def _modern_sizes(qber: float, rows: int, fast: bool) -> list[int]:
    """Powers of two, so that all searches of a pass end together: a first block of ½ to 1 error, then 4 or 8 such.

    Measured at n = 10⁶ over QBER 1-8 % among 20 sets: within 1 % of the least leak at half its round trips. Only twice
    the first size is faster: what the second pass finds then takes fewer rounds to follow. The third size bounds what
    the halvings have left to find.
    """
    half = max(2, -(-rows // 2))
    first = max(2, 1 << math.floor(math.log2(1 / qber)))
    growth = 2 if fast else 8 if first * qber < 0.75 else 4
    growing = [first, first * growth, 4096]
    return [min(size, half) for size in growing] + [half] * HALVINGS


def _message(kind: int, *parts: bytes) -> bytes:
    return b"".join((bytes((kind,)), *parts))


def _split(message: bytes, *kinds: int) -> tuple[int, memoryview]:
    if not message or message[0] not in kinds:
        raise ReconciliationError("unexpected kind of Cascade message")
    return message[0], memoryview(message)[1:]


class _Side:
    """What both sides count."""

    def __init__(self, plan: CascadePlan, seed: bytes, method: str, use_kernel: bool | None) -> None:
        self.outcome: Outcome | None = None
        self._plan = plan
        self._seed = seed
        self._method = method
        self._use_kernel = use_kernel
        self._leaked_bits = 0
        self._round_trips = 0
        self._repairs = 0
        # A lying or hopeless peer cannot make the search go on for ever: beyond the block's size nothing is left.
        self._leak_limit_bits = plan.size_bits + 64

    def _charge(self, announced_bits: int) -> bool:
        """Count bits that are about to be announced; False when they would exceed the limit."""
        if self._leaked_bits + announced_bits > self._leak_limit_bits:
            return False
        self._leaked_bits += announced_bits
        return True

    def _check(self, bits: Bits) -> bytes:
        """Return the hash that tells whether a repair is needed; announced once, so charged once."""
        point = stream_key(self._seed, "cascade check") | 1 << 64
        value = kernels.polynomial_hash(np.packbits(bits, bitorder="little").tobytes(), point)
        return (value & ((1 << self._plan.check_bits) - 1)).to_bytes(self._plan.check_bits // 8, "little")

    def _next_repair(self) -> CascadePlan:
        self._repairs += 1
        return make_repair(self._plan, self._seed, self._repairs)

    def _finish(self, bits: Bits | None, corrected: int | None, reason: str | None = None) -> None:
        self.outcome = Outcome(self._method, bits, self._leaked_bits, self._round_trips, corrected, reason)

    def _abort(self, reason: str) -> bytes:
        self._finish(None, None, reason)
        return _message(_ABORT, reason.encode())

    def _aborted(self, body: memoryview) -> None:
        """Take the peer's abort; its reason must be one that this protocol has."""
        reason = _REASONS.get(bytes(body))
        if reason is None:
            raise ReconciliationError("an abort with an unknown reason")
        self._finish(None, None, reason)


class CascadeAlice(_Side):
    """Alice's side: announces parities of her string, counts them, never changes a bit."""

    def __init__(self, bits: Bits, plan: CascadePlan, seed: bytes, method: str, use_kernel: bool | None) -> None:
        super().__init__(plan, seed, method, use_kernel)
        self._bits = bits
        self._search: AliceSearch = new_alice(plan, bits, use_kernel)

    def start(self) -> bytes | None:
        """Announce the parities of all blocks of all passes at once: later passes need no round trip of their own."""
        if not self._charge(self._plan.opening_bits):
            return self._abort(TOO_MUCH_LEAKED)
        return _message(_PARITIES, self._search.opening(), self._check(self._bits))

    def receive(self, message: bytes) -> bytes | None:
        """Answer one round of queries. Raises ReconciliationError."""
        if self.outcome is not None:
            raise ReconciliationError("a message after the end")
        kind, body = _split(message, _QUERIES, _DONE, _ABORT, _REPAIR)
        self._round_trips += 1
        if kind == _QUERIES:
            return self._answer(body)
        if kind == _REPAIR:
            return self._repair(body)
        if kind == _ABORT:
            self._aborted(body)
        elif len(body) != _COUNT.size:
            raise ReconciliationError("a final message has a count of errors and nothing else")
        else:
            self._finish(self._bits, *_COUNT.unpack(body))
        return None

    def _answer(self, body: memoryview) -> bytes:
        """Split directions of the running searches from the records of new ones, and answer them."""
        directions = (self._search.active + 7) // 8
        if len(body) < directions or (len(body) - directions) % 8:
            raise ReconciliationError("a round of queries has the wrong length")
        self._search.follow(Requests(bytes(body[:directions]), bytes(body[directions:])))
        if not self._charge(self._search.active):
            return self._abort(TOO_MUCH_LEAKED)
        return _message(_PARITIES, self._search.answer())

    def _repair(self, body: memoryview) -> bytes:
        if len(body) or self._repairs == REPAIRS_MAX or not self._plan.check_bits:
            raise ReconciliationError("a repair that this plan does not have")
        plan = self._next_repair()
        if not self._charge(plan.opening_bits):
            return self._abort(TOO_MUCH_LEAKED)
        self._search = new_alice(plan, self._bits, self._use_kernel)
        return _message(_PARITIES, self._search.opening())


class CascadeBob(_Side):
    """Bob's side: searches and corrects."""

    def __init__(self, bits: Bits, plan: CascadePlan, seed: bytes, method: str, use_kernel: bool | None) -> None:
        super().__init__(plan, seed, method, use_kernel)
        self._search: BobSearch = new_bob(plan, bits, use_kernel)
        self._opening: CascadePlan | None = plan
        self._their_check = b""
        self._corrected_before = 0

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
            self._aborted(body)
            return None
        requests = self._open(self._opening, bytes(body)) if self._opening else self._search.step(bytes(body))
        if self._search.active == 0:
            return self._conclude()
        if not self._charge(self._search.active):
            return self._abort(TOO_MUCH_LEAKED)
        if self._round_trips >= ROUND_TRIPS_MAX:
            return self._abort(TOO_MANY_ROUNDS)
        return _message(_QUERIES, requests.directions, requests.records)

    def _open(self, plan: CascadePlan, body: bytes) -> Requests:
        check_size_bytes = plan.check_bits // 8
        if len(body) < check_size_bytes:
            raise ReconciliationError("an opening ends with its check")
        parities = body[: len(body) - check_size_bytes]
        requests = self._search.open(parities)
        self._their_check = self._their_check or body[len(parities) :]
        self._leaked_bits += plan.opening_bits
        self._opening = None
        return requests

    def _conclude(self) -> bytes:
        """Every parity agrees: end, or ask for a repair if the check does not."""
        bits = self._search.bits()
        corrected = self._corrected_before + self._search.corrected
        if self._plan.check_bits and self._check(bits) != self._their_check:
            if self._repairs == REPAIRS_MAX:
                return self._abort(ERRORS_REMAIN)
            self._corrected_before = corrected
            self._opening = self._next_repair()
            self._search = new_bob(self._opening, bits, self._use_kernel)
            return _message(_REPAIR)
        self._finish(bits, corrected)
        return _message(_DONE, _COUNT.pack(corrected))


def make_cascade(
    role: str, bits: Bits, qber: float, seed: bytes, *, method: str = "cascade", use_kernel: bool | None = None
) -> CascadeAlice | CascadeBob:
    """Make one side of Cascade for a block of 0/1 `bits`; both sides must pass equal sizes, `qber` and `seed`.

    `use_kernel` False forces the numpy twin, True the kernel (ParameterError without one), None takes what there is.
    """
    require(role in ("alice", "bob"), f"role is {role!r}; it is 'alice' or 'bob'")
    if bits.ndim != 1 or bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 1):
        raise ParameterError("bits is one line of uint8 zeros and ones")
    plan = make_plan(bits.size, qber, seed, method)
    side = CascadeAlice if role == "alice" else CascadeBob
    return side(bits, plan, seed, method, use_kernel)
