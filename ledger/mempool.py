"""Bundles that wait for a block: bounded per sender, ordered by sequence, offered fairly.

Every sender has its own share of the room, so that a flood of one never displaces another's (SPEC 3.4). Holds only
bundles whose signature was checked; what is held is not checked again when a block names it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ledger.bundle import Bundle
from ledger.genesis import GenesisParameters
from ledger.state import State


@dataclass(frozen=True, slots=True)
class MempoolSettings:
    """Bounds of what waits. At a limit own submissions are refused; others' bundles are dropped and offered again."""

    sender_bundles_max: int = 256
    """Bundles of one sender: a second of work in bundles of 4 ms."""
    size_bytes_max: int = 134_217_728
    """All senders together; each has an equal share, at least one bundle's worth."""


class Mempool:
    """Waiting bundles by sender and sequence."""

    def __init__(self, settings: MempoolSettings, limits: GenesisParameters, senders: int) -> None:
        self._settings = settings
        self._limits = limits
        self._share_bytes = max(settings.size_bytes_max // max(senders, 1), limits.bundle_size_bytes_max)
        self._by_sender: dict[str, dict[int, Bundle]] = {}
        self._by_digest: dict[bytes, Bundle] = {}
        self._sizes_bytes: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._by_digest)

    @property
    def size_bytes(self) -> int:
        """Bytes of all waiting bundles."""
        return sum(self._sizes_bytes.values())

    @property
    def transaction_count(self) -> int:
        """Transactions of all waiting bundles."""
        return sum(len(bundle.transactions) for bundle in self._by_digest.values())

    def get(self, digest: bytes) -> Bundle | None:
        """Return a waiting bundle, or None."""
        return self._by_digest.get(digest)

    def held(self, sender: str, sequence: int) -> Bundle | None:
        """Return the waiting bundle of this number, or None."""
        return self._by_sender.get(sender, {}).get(sequence)

    def contains(self, sender: str, body: bytes) -> bool:
        """Say whether a transaction waits in a bundle of its sender."""
        return any(body in bundle.transactions for bundle in self._by_sender.get(sender, {}).values())

    def refusal(self, sender: str, sequence: int, size_bytes: int, committed: int) -> str | None:
        """Return why a bundle of this sender, number and size is not taken now, or None; `committed` is its last."""
        if sequence <= committed:
            return "its sequence is already committed"
        if sequence > committed + self._settings.sender_bundles_max:
            return f"{self._settings.sender_bundles_max} bundles of this sender wait; retry when some are committed"
        if sequence in self._by_sender.get(sender, ()):
            return "a bundle of this sequence waits already"
        if self._sizes_bytes.get(sender, 0) + size_bytes > self._share_bytes:
            return f"this sender's share of {self._share_bytes} bytes is full; retry when some are committed"
        return None

    def add(self, bundle: Bundle, committed: int) -> str | None:
        """Take a verified bundle; returns why not, or None."""
        if reason := self.refusal(bundle.sender, bundle.sequence, bundle.size_bytes, committed):
            return reason
        self._by_sender.setdefault(bundle.sender, {})[bundle.sequence] = bundle
        self._by_digest[bundle.digest] = bundle
        self._sizes_bytes[bundle.sender] = self._sizes_bytes.get(bundle.sender, 0) + bundle.size_bytes
        return None

    def contiguous(self, sender: str, committed: int) -> int:
        """Return the last sequence up to which nothing of `sender` is missing here."""
        held = self._by_sender.get(sender, {})
        last = committed
        while last + 1 in held:
            last += 1
        return last

    def senders(self) -> Iterator[str]:
        """Iterate over senders with waiting bundles, in a fixed order."""
        return iter(sorted(self._by_sender))

    def has_work(self, state: State) -> bool:
        """Say whether a block could be made now."""
        for sender, held in self._by_sender.items():
            node = state.node(sender)
            if node is not None and node.sequence + 1 in held:
                return True
        return False

    def select(self, state: State) -> tuple[Bundle, ...]:
        """Return bundles for the next block: in turn from every sender, in each sender's order, within the limits."""
        order = sorted(self._by_sender)
        if not order:
            return ()
        self._turn = (self._turn + 1) % len(order)
        order = order[self._turn :] + order[: self._turn]
        following = {sender: node.sequence + 1 for sender in order if (node := state.node(sender)) is not None}
        chosen: list[Bundle] = []
        size_bytes, transactions = 0, 0
        shares: dict[str, tuple[int, int]] = {}
        while following:
            for sender in list(following):
                bundle = self._by_sender[sender].get(following[sender])
                own = shares.get(sender, (0, 0))
                if bundle is None or not self._fits(chosen, bundle, size_bytes, transactions, own):
                    del following[sender]
                    continue
                following[sender] += 1
                chosen.append(bundle)
                shares[sender] = (own[0] + bundle.size_bytes, own[1] + len(bundle.transactions))
                size_bytes += bundle.size_bytes
                transactions += len(bundle.transactions)
        return tuple(chosen)

    def _fits(
        self, chosen: list[Bundle], bundle: Bundle, size_bytes: int, transactions: int, own: tuple[int, int]
    ) -> bool:
        limits = self._limits
        return (
            len(chosen) < limits.block_bundles_max
            and size_bytes + bundle.size_bytes <= limits.block_size_bytes_max
            and transactions + len(bundle.transactions) <= limits.block_transactions_max
            and own[0] + bundle.size_bytes <= limits.sender_block_size_bytes_max
            and own[1] + len(bundle.transactions) <= limits.sender_block_transactions_max
        )

    def forget(self, sender: str, committed: int) -> None:
        """Drop the bundles of `sender` up to `committed`."""
        held = self._by_sender.get(sender)
        if held is None:
            return
        for sequence in [sequence for sequence in held if sequence <= committed]:
            bundle = held.pop(sequence)
            del self._by_digest[bundle.digest]
            self._sizes_bytes[sender] -= bundle.size_bytes
        if not held:
            del self._by_sender[sender], self._sizes_bytes[sender]
