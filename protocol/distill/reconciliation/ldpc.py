"""LDPC reconciliation: syndromes one way, and more of them when they do not suffice (S0-E6, S4-5.7).

"ldpc" is for long round trips: Alice sends one message, Bob decodes frames of about 10⁵ bits. "parity" is the same
for devices: frames of at most 4,096 bits, so that memory and work are bounded, and the device plays Alice, whose part
is a few XORs per bit; the decoder runs at the other end. When a frame does not decode, Bob asks once or more for spare
checks of the same code. This module decides rates, framing, messages and accounting. Implements SPEC §5.3 and §5.4.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.distill.key_length import binary_entropy
from protocol.distill.reconciliation.ldpc_code import EXTRA_ROWS, EXTRAS_MAX, ROWS, SHORT_BITS, Code, build_code
from protocol.distill.reconciliation.party import Outcome, ReconciliationError
from protocol.kernels import distillation as kernels
from protocol.parameters import ParameterError, require, require_range

Bits = NDArray[np.uint8]

FRAME_BITS = 100_000
DEVICE_FRAME_BITS = 4_096
QBER_MIN = 2e-3  # below it the checks would be longer than the design covers, and the leak is tiny anyway
QBER_MAX = 0.12  # above it no key can come out; the block fails without announcing anything
ITERATIONS_MAX = 120

_SYNDROME, _MORE, _DONE, _ABORT = range(4)
_COUNT = struct.Struct("<I")
NOT_DECODED = "a frame did not decode with all spare checks"
RATE_OUT_OF_RANGE = "the error rate is beyond what the codes are made for"
_REASONS = {reason.encode(): reason for reason in (NOT_DECODED, RATE_OUT_OF_RANGE)}


@dataclass(frozen=True, slots=True)
class LdpcPlan:
    """How a block is cut into frames of one size (the last is padded with known zeros), and their code's syndrome."""

    size_bits: int
    frame_bits: int
    frames: int
    syndrome_bits: int
    prior: int

    def code(self) -> Code:
        """Return the code of every frame; built once per size and rate."""
        return build_code(self.frame_bits, self.syndrome_bits, ROWS)


def design_efficiency(frame_bits: int, qber: float) -> float:
    """Return leak / (n·h) of the first syndrome, such that most frames decode without more.

    The first term is the codes' threshold as measured; the second allows for the spread of the number of errors in a
    frame, one standard deviation, or two for short frames, whose devices should not be asked again; the third is for
    the weakness of shorter codes.
    """
    threshold = 1.075 + 0.00067 / qber
    spread = math.log2((1 - qber) / qber) * math.sqrt(qber * (1 - qber) / frame_bits) / binary_entropy(qber)
    return threshold + spread * (1 if frame_bits >= SHORT_BITS else 2) + 3.0 / math.sqrt(frame_bits)


def make_plan(size_bits: int, qber: float, frame_bits_max: int) -> LdpcPlan | None:
    """Choose frames and rate; None when `qber` is above what the codes are made for."""
    require_range("qber", qber, 0.0, 1.0)
    if qber > QBER_MAX:
        return None
    expected = max(QBER_MIN, qber)
    frames = max(1, -(-size_bits // frame_bits_max))
    frame_bits = max(1, -(-size_bits // frames))
    syndrome = math.ceil(frame_bits * binary_entropy(expected) * design_efficiency(frame_bits, expected))
    prior = round(kernels.UNITS_PER_NAT * math.log((1 - expected) / expected))
    return LdpcPlan(size_bits, frame_bits, frames, min(syndrome, frame_bits), prior)


class _Side:
    """What both sides share: frames, accounting, the end."""

    def __init__(self, bits: Bits, plan: LdpcPlan | None, method: str) -> None:
        self.outcome: Outcome | None = None
        self._bits = bits
        self._plan = plan
        self._method = method
        self._leaked_bits = 0
        self._round_trips = 0
        self._extras = 0
        self._code = plan.code() if plan and bits.size else None

    def _frame(self, index: int) -> Bits:
        assert self._plan is not None
        return self._bits[index * self._plan.frame_bits : (index + 1) * self._plan.frame_bits]

    @property
    def _rows(self) -> int:
        """Rows announced so far for frames that asked for every extra."""
        assert self._code is not None
        return self._code.base_rows + self._extras * EXTRA_ROWS

    def _finish(self, bits: Bits | None, corrected: int | None, reason: str | None = None) -> None:
        self.outcome = Outcome(self._method, bits, self._leaked_bits, self._round_trips, corrected, reason)

    def _aborted(self, body: bytes) -> None:
        reason = _REASONS.get(body)
        if reason is None:
            raise ReconciliationError("an abort with an unknown reason")
        self._finish(None, None, reason)

    def _begin(self, message: bytes, *kinds: int) -> tuple[int, bytes]:
        if self.outcome is not None:
            raise ReconciliationError("a message after the end")
        if not message or message[0] not in kinds:
            raise ReconciliationError("unexpected kind of LDPC message")
        self._round_trips += 1
        return message[0], message[1:]


class LdpcAlice(_Side):
    """Alice's side: syndromes of her frames."""

    def start(self) -> bytes | None:
        """Announce the syndromes of all frames."""
        if self._plan is None:
            self._finish(None, None, RATE_OUT_OF_RANGE)
            return bytes((_ABORT,)) + RATE_OUT_OF_RANGE.encode()
        if self._code is None:
            return bytes((_SYNDROME,))
        return bytes((_SYNDROME,)) + self._checks(range(self._plan.frames), 0, self._code.base_rows)

    def _checks(self, frames: "range | list[int]", first: int, last: int) -> bytes:
        """Return checks of rows first … last - 1 for each frame, packed together, and count them."""
        assert self._code is not None
        parts = [kernels.ldpc_syndrome(self._code, last, self._frame(i))[first * self._code.z :] for i in frames]
        joined = np.concatenate(parts)
        self._leaked_bits += joined.size
        return np.packbits(joined, bitorder="little").tobytes()

    def receive(self, message: bytes) -> bytes | None:
        """Take the end, or send spare checks of the frames that Bob names. Raises ReconciliationError."""
        kind, body = self._begin(message, _MORE, _DONE, _ABORT)
        if kind == _ABORT:
            self._aborted(body)
        elif kind == _DONE:
            if len(body) != _COUNT.size:
                raise ReconciliationError("a final message has a count of errors and nothing else")
            self._finish(self._bits, *_COUNT.unpack(body))
        else:
            return self._extend(body)
        return None

    def _extend(self, body: bytes) -> bytes:
        if self._plan is None or self._code is None or self._extras == EXTRAS_MAX:
            raise ReconciliationError("no more checks can be asked for")
        failed = _unpack(body, self._plan.frames)
        if not failed.any():
            raise ReconciliationError("more checks are asked for no frame")
        first = self._rows
        self._extras += 1
        return bytes((_SYNDROME,)) + self._checks(np.flatnonzero(failed).tolist(), first, self._rows)


class LdpcBob(_Side):
    """Bob's side: decodes the difference of the syndromes into the difference of the strings."""

    def __init__(self, bits: Bits, plan: LdpcPlan | None, method: str) -> None:
        super().__init__(bits, plan, method)
        self._pending: dict[int, Bits] = {} if plan is None else {i: np.empty(0, np.uint8) for i in range(plan.frames)}
        self._errors = np.zeros(0 if plan is None else plan.frames * plan.frame_bits, dtype=np.uint8)
        self._started = False

    def start(self) -> bytes | None:
        """Wait for Alice."""
        return None

    def receive(self, message: bytes) -> bytes | None:
        """Take syndromes or spare checks and decode what is pending. Raises ReconciliationError."""
        kind, body = self._begin(message, _SYNDROME, _ABORT)
        if kind == _ABORT:
            self._aborted(body)
            return None
        if self._plan is None:
            raise ReconciliationError("a syndrome where both sides must give up")
        if self._code is None:
            return self._conclude(b"" if not body else None)
        self._take(body)
        for index in list(self._pending):
            self._decode(index)
        if not self._pending:
            return self._conclude(b"")
        if self._extras == EXTRAS_MAX:
            self._finish(None, None, NOT_DECODED)
            return bytes((_ABORT,)) + NOT_DECODED.encode()
        failed = np.zeros(self._plan.frames, dtype=np.uint8)
        failed[list(self._pending)] = 1
        return bytes((_MORE,)) + np.packbits(failed, bitorder="little").tobytes()

    def _take(self, body: bytes) -> None:
        """Append the checks of each pending frame."""
        assert self._code is not None
        rows = EXTRA_ROWS if self._started else self._code.base_rows
        self._extras += self._started
        self._started = True
        checks = _unpack(body, len(self._pending) * rows * self._code.z)
        for (index, known), added in zip(self._pending.items(), np.split(checks, len(self._pending)), strict=True):
            self._pending[index] = np.concatenate((known, added))
        self._leaked_bits += checks.size

    def _decode(self, index: int) -> None:
        assert self._code is not None and self._plan is not None
        ours = self._frame(index)
        difference = self._pending[index] ^ kernels.ldpc_syndrome(self._code, self._rows, ours)
        errors, iterations = kernels.ldpc_decode(
            self._code, self._rows, difference, ours.size, self._plan.prior, ITERATIONS_MAX
        )
        if iterations:
            start = index * self._plan.frame_bits
            self._errors[start : start + ours.size] = errors
            del self._pending[index]

    def _conclude(self, rest: bytes | None) -> bytes:
        if rest is None:
            raise ReconciliationError("checks for an empty block")
        errors = self._errors[: self._bits.size]
        corrected = int(np.count_nonzero(errors))
        self._finish(self._bits ^ errors, corrected)
        return bytes((_DONE,)) + _COUNT.pack(corrected)


def _unpack(data: bytes, count: int) -> Bits:
    """Unpack exactly `count` bits with zero padding."""
    if len(data) != (count + 7) // 8 or (count % 8 and data[-1] >> count % 8):
        raise ReconciliationError(f"{len(data)} bytes where {count} bits are due")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little")


def make_ldpc(role: str, bits: Bits, qber: float, *, device: bool = False) -> LdpcAlice | LdpcBob:
    """Make one side of "ldpc", or of "parity" with `device`; both sides must pass equal sizes and `qber`."""
    require(role in ("alice", "bob"), f"role is {role!r}; it is 'alice' or 'bob'")
    if bits.ndim != 1 or bits.dtype != np.uint8 or (bits.size and int(bits.max()) > 1):
        raise ParameterError("bits is one line of uint8 zeros and ones")
    plan = make_plan(bits.size, qber, DEVICE_FRAME_BITS if device else FRAME_BITS)
    side = LdpcAlice if role == "alice" else LdpcBob
    return side(bits, plan, "parity" if device else "ldpc")
