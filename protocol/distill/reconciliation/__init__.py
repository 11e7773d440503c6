"""Error correction between two parties, behind one interface that counts every leaked bit (SPEC §5)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.distill.reconciliation.cascade import make_cascade
from protocol.distill.reconciliation.choice import Choice, choose_method
from protocol.distill.reconciliation.ldpc import make_ldpc
from protocol.distill.reconciliation.party import Outcome, Party, ReconciliationError, Role, run_pair
from protocol.parameters import ParameterError

METHODS = ("cascade", "cascade-fast", "cascade-original", "ldpc", "parity", "auto")

__all__ = [
    "METHODS",
    "Choice",
    "Outcome",
    "Party",
    "ReconciliationError",
    "Role",
    "choose_method",
    "make_party",
    "run_pair",
]


def make_party(method: str, role: Role, bits: NDArray[np.uint8], qber: float, seed: bytes, **options: Any) -> Party:
    """Make one side of `method` for a block of 0/1 `bits`.

    Alice's string is the reference, Bob's is corrected; which node plays Alice is the caller's choice. `qber` is the
    expected error rate and sets block sizes or code rates, `seed` is public and fresh: both must be equal on both
    sides. "auto" takes `round_trip_s` and `max_efficiency` and decides by `choose_method`; other `options` go to the
    method. Raises ParameterError on an unknown method or values out of range.
    """
    if method == "auto":
        method, options = choose_method(bits.size, qber, **options).method, {}
    if method in ("cascade", "cascade-fast", "cascade-original"):
        return make_cascade(role, bits, qber, seed, method=method, **options)
    if method in ("ldpc", "parity"):
        return make_ldpc(role, bits, qber, device=method == "parity", **options)
    raise ParameterError(f"method is {method!r}; it is one of {', '.join(METHODS)}")
