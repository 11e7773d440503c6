"""Bundles that wait for a block: bounded by count, bytes and age, ordered by sequence, taken fairly.

Every sender has its own share of the room, so that a flood of one never displaces another's, and its turn in every
round of blocks (SPEC 3.4, 3.8). Holds only bundles whose signature was checked; what is held is not checked again when
a block names it. A node's own bundles stay until a block contains them: it answers for them, and offers them again to
neighbours that let them go.
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
    block_fill_transactions: int = 2_048
    """A leader fills its block up to so many transactions, and takes one bundle at least: some 20 ms of execution, for
    which whatever arrives meanwhile waits. Blocks follow each other the sooner; far smaller ones cost more than their
    records do, in votes."""
    age_heights_max: int = 1_000
    """Blocks that may go by without a bundle of another node before it is let go: four times what 256 bundles of one
    sender take at one a block. Counted in heights, so that nothing ages while no block is made."""


class Mempool:
    """Waiting bundles by sender and sequence."""

    def __init__(self, settings: MempoolSettings, limits: GenesisParameters, senders: int, own: str = "") -> None:
        """`senders` have a share each; what `own` sends never ages."""
        self._settings = settings
        self._own = own
        self._limits = limits
        self._share_bytes = max(settings.size_bytes_max // max(senders, 1), limits.bundle_size_bytes_max)
        self._by_sender: dict[str, dict[int, Bundle]] = {}
        self._by_digest: dict[bytes, Bundle] = {}
        self._sizes_bytes: dict[str, int] = {}
        self._came: dict[bytes, int] = {}  # digest → the height at which it came, in that order

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

    def to_offer(self, sender: str, sequence: int, height: int) -> Bundle | None:
        """Return the waiting bundle of this number if a neighbour that lacks it may have it from this node, or None.

        Another node's is passed on during the first half of its time only: what neighbours let go at about the same
        moment would come back from each other, ever younger, without its origin.
        """
        bundle = self.held(sender, sequence)
        if bundle is None or sender == self._own:
            return bundle
        is_old = 2 * (height - self._came[bundle.digest]) > self._settings.age_heights_max
        return None if is_old else bundle

    def age_heights(self, height: int) -> int:
        """Return how many blocks went by without the other nodes' bundle that waits longest; 0 if none waits."""
        came = (came for digest, came in self._came.items() if self._by_digest[digest].sender != self._own)
        return height - next(came, height)

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

    def add(self, bundle: Bundle, committed: int, height: int) -> str | None:
        """Take a verified bundle at `height`, which never decreases; returns why not, or None."""
        if reason := self.refusal(bundle.sender, bundle.sequence, bundle.size_bytes, committed):
            return reason
        self._by_sender.setdefault(bundle.sender, {})[bundle.sequence] = bundle
        self._by_digest[bundle.digest] = bundle
        self._sizes_bytes[bundle.sender] = self._sizes_bytes.get(bundle.sender, 0) + bundle.size_bytes
        self._came[bundle.digest] = height
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
        following = {sender: state.known_node(sender).sequence + 1 for sender in self._in_turn(state)}
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

    def _in_turn(self, state: State) -> list[str]:
        """Return the senders in the order in which the block after `state` takes their bundles.

        Who is first moves on by one registered node per height, whoever leads and whoever else waits, and by one more
        per round: so nobody is first under the same leader always, who might leave it out.
        """
        count = state.node_count
        first = (state.height + state.height // count) % count
        known = [node for sender in self._by_sender if (node := state.node(sender)) is not None]
        return [node.node_id for node in sorted(known, key=lambda node: (node.index - first) % count)]

    def _fits(
        self, chosen: list[Bundle], bundle: Bundle, size_bytes: int, transactions: int, own: tuple[int, int]
    ) -> bool:
        limits = self._limits
        return (
            len(chosen) < limits.block_bundles_max
            and size_bytes + bundle.size_bytes <= limits.block_size_bytes_max
            and transactions + len(bundle.transactions) <= limits.block_transactions_max
            and (not chosen or transactions + len(bundle.transactions) <= self._settings.block_fill_transactions)
            and own[0] + bundle.size_bytes <= limits.sender_block_size_bytes_max
            and own[1] + len(bundle.transactions) <= limits.sender_block_transactions_max
        )

    def forget(self, sender: str, committed: int) -> None:
        """Drop the bundles of `sender` up to `committed`."""
        held = self._by_sender.get(sender, {})
        for sequence in [sequence for sequence in held if sequence <= committed]:
            self._drop(held[sequence])

    def let_go(self, height: int) -> int:
        """Drop other nodes' bundles that came more than `age_heights_max` blocks ago; returns how many (SPEC 3.8)."""
        old: list[Bundle] = []
        for digest, came in self._came.items():
            if height - came <= self._settings.age_heights_max:
                break
            if (bundle := self._by_digest[digest]).sender != self._own:
                old.append(bundle)
        for bundle in old:
            self._drop(bundle)
        return len(old)

    def _drop(self, bundle: Bundle) -> None:
        held = self._by_sender[bundle.sender]
        del held[bundle.sequence], self._by_digest[bundle.digest], self._came[bundle.digest]
        self._sizes_bytes[bundle.sender] -= bundle.size_bytes
        if not held:
            del self._by_sender[bundle.sender], self._sizes_bytes[bundle.sender]
