"""The ledger of one node: a deterministic core that takes inputs and returns outputs (SPEC, all parts).

Joins the parts: own transactions, bodies, listener, speaker, consensus, heights, chain and anti-entropy. Does no input
or output of its own: time comes in as `now_ns` (monotonic; plus `wall_offset_ns` it is the wall clock that proposers
stamp blocks with), what must survive goes out as `Store`. `step` never raises for a peer's fault; it raises only for a
bug of ours.
"""

import random
from collections.abc import Callable
from typing import Any

from ledger.anti_entropy import AntiEntropy
from ledger.block import VERSIONS
from ledger.bodies import Bodies
from ledger.chain import Archive, Chain
from ledger.collection import VoteCollection
from ledger.consensus import Action, Commit, Consensus, FetchBody, Propose, PullStatus, RefuseBlock, Say
from ledger.core import EVIDENCE_TABLE, PENDING_TABLE, SIGNER_TABLE, TABLES, Core, ReplicaSettings
from ledger.execution import Rules
from ledger.genesis import Genesis
from ledger.heights import Heights
from ledger.identity import OwnKeys
from ledger.inputs import (
    EncodedTransactionsSubmitted,
    Input,
    MessageReceived,
    PeerDown,
    PeerUp,
    Started,
    TimePassed,
    TransactionsSubmitted,
)
from ledger.listener import Listener
from ledger.mempool import Mempool
from ledger.outputs import Output
from ledger.pace import Pace
from ledger.recall import Recall
from ledger.reception import Reception
from ledger.resumption import resume_chain, resume_height
from ledger.signatures import Verifier
from ledger.snapshot import Snapshots, Stored
from ledger.snapshot_sync import SnapshotSync
from ledger.speaker import Speaker
from ledger.state import State
from ledger.submissions import OwnTransactions
from ledger.transactions import encode as encode_transaction
from ledger.upkeep import Upkeep
from ledger.votes import Evidence

__all__ = ["TABLES", "Replica", "ReplicaSettings"]


class Replica:
    """See the module. `stored` maps each of `TABLES` to what earlier lives stored in it, in key order.

    `may_have_forgotten`: the disk may hold less than was synced, so that the first statements wait (SPEC 7.5).
    `archive` reads old blocks back on demand; without it all blocks stay in memory. `wall_offset_ns` may be set again
    at any time when the clocks drift apart.
    """

    def __init__(
        self,
        *,
        genesis: Genesis,
        keys: OwnKeys,
        verifier: Verifier,
        settings: ReplicaSettings | None = None,
        jitter: random.Random,
        stored: Stored,
        wall_offset_ns: int = 0,
        archive: Archive | None = None,
        may_have_forgotten: bool = False,
        versions: frozenset[int] = VERSIONS,
    ) -> None:
        self.genesis = genesis
        self.node_id = node_id = keys.node_id
        self.chain = Chain(genesis, Rules.of(genesis, verifier, versions), archive)
        self._core = Core(
            genesis=genesis,
            node_id=node_id,
            settings=settings or ReplicaSettings(),
            verifier=verifier,
            jitter=jitter,
            chain=self.chain,
            wall_offset_ns=wall_offset_ns,
        )
        core = self._core
        self._own = OwnTransactions(core, keys)
        self._bodies = Bodies(core)
        self._collection = VoteCollection(core)
        self._snapshots = Snapshots(core)
        self._snapshot_sync = SnapshotSync(
            core, self._snapshots, lambda fetch, state: self._heights.adopt(fetch, state)
        )
        self._sync = AntiEntropy(core, self._collection, self._snapshot_sync)
        resume_chain(core, self._snapshots, self._snapshot_sync, stored)
        if not keys.is_own(self.state):
            raise ValueError(f"the chain knows {self.node_id} by another key; use the identity that `qnode init` made")
        signed = dict(stored.get(SIGNER_TABLE, ()))
        alone = self.state.validators().node_ids == (self.node_id,)
        self._recall = Recall((not signed or may_have_forgotten) and not alone, core.settings.anti_entropy_ns)
        self._speaker = Speaker(core, keys, self._bodies, self._collection, signed)
        self._listener = Listener(core, self._bodies, self._collection, self._own.report, self._speaker.remember)
        self._upkeep = Upkeep(core, versions)
        self._pace = Pace(core.settings)
        self._reception = Reception(
            core,
            listener=self._listener,
            bodies=self._bodies,
            sync=self._sync,
            snapshot_sync=self._snapshot_sync,
            recall=self._recall,
            on_blocks=lambda peer, blocks: self._heights.on_blocks(peer, blocks),
        )
        self._heights = Heights(
            core,
            keys=keys,
            own=self._own,
            bodies=self._bodies,
            collection=self._collection,
            listener=self._listener,
            sync=self._sync,
            snapshots=self._snapshots,
            reception=self._reception,
            recall=self._recall,
            upkeep=self._upkeep,
            pace=self._pace,
        )
        self._own.resume(stored.get(PENDING_TABLE, ()))
        for key, value in stored.get(EVIDENCE_TABLE, ()):
            self._listener.resume(key, Evidence.decode(value))
        self._heights.begin()
        resume_height(core, self._bodies, self._speaker, stored)

    # ---- what the driver uses

    def keep_blocks_for(self, needed_height: Callable[[], int | None]) -> None:
        """Never prune at or above the height that `needed_height` returns (None for no need)."""
        self._snapshots.needed_height = needed_height

    @property
    def state(self) -> State:
        """The state after `height`."""
        return self.chain.state

    @property
    def height(self) -> int:
        """The last committed height."""
        return self.chain.height

    @property
    def tip(self) -> bytes:
        """The digest of the last committed block (of the genesis at height 0)."""
        return self.chain.tip_digest

    @property
    def consensus(self) -> Consensus:
        """The height in progress."""
        return self._core.consensus

    @property
    def evidence(self) -> dict[bytes, Evidence]:
        """Contradicting statements, the first per height and signer."""
        return self._listener.evidence

    @property
    def later_count(self) -> int:
        """How many messages wait for the next height."""
        return self._reception.later_count

    @property
    def upgrade_needed(self) -> str | None:
        """Why this node does not go on to the next height, if so: its program is too old (SPEC 5.5)."""
        return self._upkeep.upgrade_needed

    @property
    def received_transactions(self) -> int:
        """How many transactions of other nodes this life has taken into the mempool."""
        return self._core.received_transactions

    @property
    def mempool(self) -> Mempool:
        """What waits for a block; read only."""
        return self._core.mempool

    @property
    def wall_offset_ns(self) -> int:
        """What turns monotonic time into wall time."""
        return self._core.wall_offset_ns

    @wall_offset_ns.setter
    def wall_offset_ns(self, offset_ns: int) -> None:
        self._core.wall_offset_ns = offset_ns

    def step(self, now_ns: int, input: Input) -> list[Output]:
        """Take one input at monotonic time `now_ns` and return what to do. Synchronous."""
        core = self._core
        core.now_ns = max(core.now_ns, now_ns)
        match input:
            case MessageReceived(peer, payload):
                self._reception.receive(peer, payload)
            case TransactionsSubmitted(token, transactions, patience_ns):
                self._own.submit(token, tuple(encode_transaction(each) for each in transactions), patience_ns)
            case EncodedTransactionsSubmitted(token, bodies):
                self._own.submit_encoded(token, bodies)
            case PeerUp(peer):
                core.overlay.connect(peer)
                self._sync.announce([peer])
                self._own.offer(peer)
            case PeerDown(peer):
                core.overlay.disconnect(peer)
                self._sync.forget(peer)
                self.consensus.hurry(core.now_ns)
            case Started():
                self.consensus.started_ns = core.now_ns
                self._sync.begin()
            case TimePassed():
                pass
        self._pump()
        outputs, core.outputs = core.outputs, []
        return outputs

    def next_deadline_ns(self) -> int | None:
        """Return when `step` wants to be called with `TimePassed` at the latest."""
        quiet, stopped = self._recall.is_quiet, self.upgrade_needed is not None
        consensus_ns = None if stopped else self.consensus.next_deadline_ns()
        deadlines = (
            self._recall.deadline_ns() if quiet else consensus_ns,
            self._sync.deadline_ns(),
            None if stopped else self._sync.catch_up.deadline_ns(),
            None if stopped or self._heights.numbers_unknown else self._own.deadline_ns(),
            self._heights.deadline_ns(),
            self._snapshots.deadline_ns(),
            self._snapshot_sync.deadline_ns(),
            None if stopped else self._collection.deadline_ns(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def status(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        mempool = self._core.mempool
        return {
            "node_id": self.node_id,
            "chain_id": self.genesis.chain_id,
            "height": self.height,
            "view": self.consensus.view,
            "leader": self.consensus.leader(self.consensus.view),
            "tip": self.tip.hex(),
            "state_root": self.state.root.hex(),
            "block_time_ns": self.chain.tip_time_ns,
            "validators": list(self.state.validators().node_ids),
            "peers": self._core.overlay.peers,
            "mempool_bundles": len(mempool),
            "mempool_transactions": mempool.transaction_count,
            "mempool_size_bytes": mempool.size_bytes,
            "mempool_age_heights": mempool.age_heights(self.height),
            "behind": self._sync.catch_up.is_behind(self.height),
            "evidence": len(self.evidence),
            "suspended": [node.node_id for node in self.state.nodes() if node.suspended],
            "revoked": [node.node_id for node in self.state.nodes() if node.revoked],
            "version": self.state.version(self.height + 1),
            "upgrade_needed": self.upgrade_needed or "",
            "floor": self.chain.floor,
            "snapshot_height": self._snapshots.written_height,
            "snapshot_fetch": self._snapshot_sync.document(),
            "retired": self.state.retired_count,
            **{f"state_{name}": count for name, count in self.state.counts().items()},
        }

    def blocks(self, first_height: int, count: int) -> list[dict[str, Any]]:
        """Return committed blocks as JSON-ready documents."""
        last = min(self.height, first_height + count - 1)
        found = (self.chain.summary(height) for height in range(max(1, first_height), last + 1))
        return [document for document in found if document is not None]

    # ---- what is due

    def _pump(self) -> None:
        """Do everything that is due now."""
        self._sync.tick()
        self._heights.tick()
        self._snapshots.tick()
        self._snapshot_sync.tick()
        self._recall.tick(self._core.now_ns, self._sync.catch_up.is_behind(self.height))
        if self._collection.tick():
            self._sync.announce(self._core.some_peers())  # who is further pushes what the leader kept from this node
        while self.upgrade_needed is None:
            if not self._heights.numbers_unknown:
                self._own.flush()
            self.consensus.muted = self._recall.is_quiet
            self.consensus.work_waiting = self._core.mempool.has_work(self.state)
            self.consensus.block_full = self._core.fills_a_block
            if self.consensus.work_waiting:
                self._pace.work_waits(self._core.now_ns)
            action = self.consensus.next_action(self._core.now_ns)
            if action is None:
                break
            self._perform(action)
        if self.upgrade_needed is None:
            self._heights.look_for_arrived()
            self._sync.ask_for_blocks()

    def _perform(self, action: Action) -> None:
        match action:
            case Say(kind, view, block, justified):
                statement = self._speaker.say(kind, view, block, justified)
                if statement is not None:
                    self._listener.count(statement)
            case Propose(view, block, justified):
                self._speaker.propose(view, block, justified)
            case FetchBody(block):
                self._bodies.fetch(block)
            case PullStatus():
                self._sync.announce(self._core.some_peers())
            case RefuseBlock(view, reason):
                self._core.note("warning", "block_refused", height=self.height + 1, view=view, reason=reason)
            case Commit(block, certificate):
                self._heights.decided(block, certificate)
