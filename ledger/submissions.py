"""This node's own transactions on their way into bundles, and its bundles on their way into blocks.

A first submission becomes a bundle at once; while more arrive within `bundle_interval_ns` they share the next one.
One with patience waits for others, at most so long: a chain that records what nobody waits for makes fewer blocks.
Every bundle is kept until a block contains it. A number that a block gave to another bundle of ours (an earlier life
of this node) moves the displaced transactions to a new bundle (SPEC 3.5).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ledger.bundle import Bundle, make_bundle
from ledger.contracts.actions import MalformedAction, decode_action
from ledger.contracts.entries import Proposal
from ledger.contracts.membership import ActivateVersion
from ledger.core import PENDING_TABLE, Core
from ledger.encoding import integer_key
from ledger.genesis import GenesisParameters
from ledger.identity import OwnKeys
from ledger.messages import BundleMessage
from ledger.outputs import Erase, TransactionsAdmitted, TransactionsRefused
from ledger.signatures import Signer
from ledger.transactions import (
    GovernanceApproved,
    GovernanceProposed,
    MalformedTransaction,
    Transaction,
    decode,
)


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
        self._due_ns = 0  # of what is queued, when the least patient is due

    @property
    def queued_size_bytes(self) -> int:
        """Bytes of transactions without a bundle."""
        return self._queue_size_bytes

    @property
    def queued_count(self) -> int:
        """Transactions without a bundle."""
        return len(self._queue)

    def enqueue(self, token: int | None, bodies: tuple[bytes, ...], due_ns: int = 0) -> None:
        """Queue transactions; `token` comes back with the batch of the last of them, which may wait until `due_ns`."""
        self._due_ns = min(self._due_ns, due_ns) if self._queue else due_ns
        for i, body in enumerate(bodies):
            self._queue.append((body, token if i == len(bodies) - 1 else None))
            self._queue_size_bytes += len(body)

    def deadline_ns(self) -> int | None:
        """Return when `take` has something to return."""
        if not self._queue:
            return None
        interval_ends_ns = 0 if self._last_bundle_ns is None else self._last_bundle_ns + self._interval_ns
        return max(self._due_ns, interval_ends_ns)

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
        self._due_ns = 0  # what did not fit follows as soon as it may
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

    def skip_to(self, committed: int, numbers_were_used: bool) -> list[int]:
        """Forget own bundles up to a number that the chain has reached unseen; returns their numbers.

        Where an earlier life of this node may have used the same numbers, the chain may hold its bundles instead: the
        transactions are queued again, and those that it has already it refuses.
        """
        passed = [sequence for sequence in self.pending if sequence <= committed]
        for sequence in passed:
            bundle = self.pending.pop(sequence)
            if numbers_were_used:
                self.enqueue(None, bundle.transactions)
        return passed


class OwnTransactions:
    """Admits this node's transactions, signs its bundles, stores and offers them."""

    def __init__(self, core: Core, keys: OwnKeys) -> None:
        self.queue = Submissions(core.limits, core.settings.bundle_interval_ns)
        self._core = core
        self._keys = keys

    def resume(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take back the stored bundles that no block contains yet."""
        core = self._core
        committed = core.committed_sequence(core.node_id)
        for _, value in rows:
            bundle = Bundle.decode(value, core.limits)
            if bundle.sequence > committed:
                self.queue.pending[bundle.sequence] = bundle
                self._hold([bundle])

    def submit_encoded(self, token: int, bodies: tuple[bytes, ...]) -> None:
        """Like `submit`, but looks at the bodies first."""
        try:
            for body in bodies:
                if reason := self._unwise(decode(body)):
                    self._core.outputs.append(TransactionsRefused(token, reason))
                    return
        except MalformedTransaction as error:
            self._core.outputs.append(TransactionsRefused(token, f"malformed transaction: {error}"))
            return
        self.submit(token, bodies)

    def submit(self, token: int, bodies: tuple[bytes, ...], patience_ns: int = 0) -> None:
        """Queue encoded transactions for a bundle, where they may wait so long, or refuse them all."""
        if reason := self._fault(bodies):
            self._core.outputs.append(TransactionsRefused(token, reason))
            return
        self.queue.enqueue(token, bodies, self._core.now_ns + patience_ns)

    def report(self, body: bytes) -> bool:
        """Queue a transaction of the node itself, for which nobody waits; False if the node has no name or no room."""
        if self._fault((body,)) is not None:
            return False
        self.queue.enqueue(None, (body,))
        return True

    def _unwise(self, transaction: Transaction) -> str | None:
        """Return why this node lends its name to no such decision: a version that its own program does not know."""
        if isinstance(transaction, GovernanceApproved):
            proposal = self._core.state.entry(Proposal, transaction.proposal)
            encoded = b"" if proposal is None else proposal.action
        else:
            encoded = transaction.action if isinstance(transaction, GovernanceProposed) else b""
        if not encoded:
            return None
        try:
            action = decode_action(encoded)
        except MalformedAction:
            return None  # the chain says what is wrong with it
        if isinstance(action, ActivateVersion) and action.version not in self._core.chain.known_versions:
            return f"this node's program does not know version {action.version}; install a newer qnode first"
        return None

    def _fault(self, bodies: tuple[bytes, ...]) -> str | None:
        core = self._core
        if not bodies:
            return "no transactions; submit at least one"
        if self._keys.present(core.state) is None:
            return "the chain does not know this node by a key that it holds; see `qnode ledger show`"
        size_max = core.limits.transaction_size_bytes_max
        if any(len(body) > size_max for body in bodies):
            return f"a transaction has at most {size_max} bytes; split it"
        queued_bytes = self.queue.queued_size_bytes + sum(len(body) + 5 for body in bodies) + 512
        ahead = (self.queue.queued_count + len(bodies)) // core.limits.bundle_transactions_max
        committed = core.committed_sequence(core.node_id)
        return core.mempool.refusal(core.node_id, self._next_sequence() + ahead, queued_bytes, committed)

    def _next_sequence(self) -> int:
        return max(next(reversed(self.queue.pending), 0), self._core.committed_sequence(self._core.node_id)) + 1

    def deadline_ns(self) -> int | None:
        """Return when `flush` has something to do; never while the chain knows no key of this node that it holds."""
        return None if self._keys.present(self._core.state) is None else self.queue.deadline_ns()

    def flush(self) -> None:
        """Make the bundles that are due: store, hold, send, and answer their submitters."""
        signer = self._keys.present(self._core.state)
        while signer is not None and (batch := self.queue.take(self._core.now_ns)) is not None:
            self._bundle(signer, self._next_sequence(), batch.transactions)
            self._core.outputs += [TransactionsAdmitted(token) for token in batch.tokens]

    def _bundle(self, signer: Signer, sequence: int, transactions: tuple[bytes, ...]) -> None:
        """Sign, store, hold and send one bundle."""
        core = self._core
        name = (core.genesis.chain_id, core.genesis.digest, core.node_id, sequence)
        bundle = make_bundle(signer, *name, transactions)
        self.queue.pending[sequence] = bundle
        core.store(PENDING_TABLE, integer_key(sequence), bundle.encoded)
        core.mempool.add(bundle, core.committed_sequence(core.node_id), core.height)
        core.spread_bundle(bundle, None)

    def sign_again(self) -> None:
        """This node's key is another since the last block: what waits goes out under it (SPEC 3.7)."""
        for bundle in list(self.queue.pending.values()):
            self._sign_again(bundle)

    def _sign_again(self, bundle: Bundle) -> None:
        signer = self._keys.present(self._core.state)
        if signer is not None:
            self._bundle(signer, bundle.sequence, bundle.transactions)

    def _is_signed(self, bundle: Bundle) -> bool:
        """Whether the present key signed an own bundle."""
        signer, core = self._keys.present(self._core.state), self._core
        name = (core.genesis.chain_id, core.genesis.digest)
        return signer is not None and bundle.is_signed_by(signer.public_key, *name, core.verifier)

    def settle(self, bundle: Bundle) -> None:
        """An own bundle is in a block."""
        if self.queue.settle(bundle):
            self._core.outputs.append(Erase(PENDING_TABLE, integer_key(bundle.sequence)))

    def skip_to(self, committed: int, numbers_were_used: bool) -> None:
        """Blocks up to a snapshot were not seen here: own bundles that they contain are done (SPEC 10.5)."""
        for sequence in self.queue.skip_to(committed, numbers_were_used):
            self._core.outputs.append(Erase(PENDING_TABLE, integer_key(sequence)))
        self._hold(list(self.queue.pending.values()))

    def _hold(self, bundles: Iterable[Bundle]) -> None:
        """Offer own bundles again, under the present key."""
        committed = self._core.committed_sequence(self._core.node_id)
        for bundle in bundles:
            if self._is_signed(bundle):
                self._core.mempool.add(bundle, committed, self._core.height)
            else:
                self._sign_again(bundle)  # the key came while this node did not hold it

    def offer(self, peer: str) -> None:
        """Send a new neighbour what of ours waits for a block."""
        budget_bytes = self._core.settings.gap_size_bytes_max
        for bundle in self.queue.pending.values():
            budget_bytes -= bundle.size_bytes
            if budget_bytes < 0:
                return
            self._core.send(peer, BundleMessage(bundle.encoded), urgent=False, after_sync=True)
