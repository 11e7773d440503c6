"""This node's own transactions on their way into bundles, and its bundles on their way into blocks.

A first submission becomes a bundle at once; while more arrive within `bundle_interval_ns` they share the next one.
Every bundle is kept until a block contains it. A number that a block gave to another bundle of ours (an earlier life
of this node) moves the displaced transactions to a new bundle (SPEC 3.5).
"""

from dataclasses import dataclass

from ledger.bundle import Bundle
from ledger.genesis import GenesisParameters


@dataclass(frozen=True, slots=True)
class Batch:
    """Transactions for one new bundle, and the tokens that are answered by it."""

    transactions: tuple[bytes, ...]
    tokens: tuple[int, ...]


class Submissions:
    """The queue of encoded transactions and the bundles in wait, by sequence."""

    def __init__(self, limits: GenesisParameters, bundle_interval_ns: int) -> None:
        self.pending: dict[int, Bundle] = {}
        self._limits = limits
        self._interval_ns = bundle_interval_ns
        self._queue: list[tuple[bytes, int | None]] = []
        self._queue_size_bytes = 0
        self._last_bundle_ns: int | None = None

    @property
    def queued_size_bytes(self) -> int:
        """Bytes of transactions without a bundle."""
        return self._queue_size_bytes

    @property
    def queued_count(self) -> int:
        """Transactions without a bundle."""
        return len(self._queue)

    def enqueue(self, token: int | None, bodies: tuple[bytes, ...]) -> None:
        """Queue transactions; `token` comes back with the batch of the last of them."""
        for i, body in enumerate(bodies):
            self._queue.append((body, token if i == len(bodies) - 1 else None))
            self._queue_size_bytes += len(body)

    def deadline_ns(self) -> int | None:
        """Return when `take` has something to return."""
        if not self._queue:
            return None
        return 0 if self._last_bundle_ns is None else self._last_bundle_ns + self._interval_ns

    def take(self, now_ns: int) -> Batch | None:
        """Return the next batch if it is due."""
        deadline_ns = self.deadline_ns()
        full = len(self._queue) >= self._limits.bundle_transactions_max
        if deadline_ns is None or (now_ns < deadline_ns and not full):
            return None
        self._last_bundle_ns = now_ns
        return self._cut()

    def _cut(self) -> Batch:
        room_bytes = self._limits.bundle_size_bytes_max - 512  # sender, sequence, root, signature and array heads
        count = 0
        for body, _ in self._queue[: self._limits.bundle_transactions_max]:
            if count and room_bytes < len(body) + 5:
                break
            room_bytes -= len(body) + 5
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        self._queue_size_bytes -= sum(len(body) for body, _ in taken)
        tokens = tuple(token for _, token in taken if token is not None)
        return Batch(tuple(body for body, _ in taken), tokens)

    def settle(self, bundle: Bundle) -> bool:
        """Take note of an own bundle in a block; displaced transactions are queued again. True if one was in wait."""
        waiting = self.pending.pop(bundle.sequence, None)
        if waiting is None:
            return False
        if waiting.digest != bundle.digest:
            self.enqueue(None, waiting.transactions)
        return True
