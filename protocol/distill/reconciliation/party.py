"""What every reconciliation method looks like from outside: a party that takes and gives byte messages.

Decides nothing about codes. A party is one side of one block; its driver carries messages and knows no roles.
Implements SPEC §5.1.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Role = Literal["alice", "bob"]


class ReconciliationError(ValueError):
    """A message that no honest peer sends here: malformed, or contradicting what was said before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one side's reconciliation ended.

    `bits` is the reconciled string, None on failure: then `reason` says why. `leaked_bits` counts every bit that
    Alice announced about her string. `round_trips` counts pairs of messages that waited for each other.
    `corrected_errors` is what Bob changed. Equal strings are likely, not certain, until verification.
    """

    method: str
    bits: Bits | None = field(repr=False)
    leaked_bits: int
    round_trips: int
    corrected_errors: int | None = None
    reason: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no reconciled string."""
        return self.bits is None


class Party(Protocol):
    """One side of an interactive reconciliation. Alice's string is the reference; Bob corrects his."""

    @property
    def outcome(self) -> Outcome | None:
        """The end, once this side has finished."""
        ...

    def start(self) -> bytes | None:
        """Return the first message, or None if the other side opens."""
        ...

    def receive(self, message: bytes) -> bytes | None:
        """Take the peer's message; return the next one, or None when nothing is to be sent.

        Raises ReconciliationError on malformed or inconsistent input, and nothing else.
        """
        ...


def run_pair(alice: Party, bob: Party) -> tuple[Outcome, Outcome]:
    """Carry messages between two parties in one process until both have finished; for tests, benches and examples."""
    to_bob, to_alice = alice.start(), bob.start()
    while to_bob is not None or to_alice is not None:
        if to_bob is not None:
            to_alice, to_bob = bob.receive(to_bob), None
        elif to_alice is not None:
            to_bob, to_alice = alice.receive(to_alice), None
    assert alice.outcome is not None and bob.outcome is not None, "a party stopped without an outcome"
    return alice.outcome, bob.outcome
