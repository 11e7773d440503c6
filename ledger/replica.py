"""The ledger of one node: a deterministic core that takes inputs and returns outputs (SPEC, all parts).

Joins the parts: own transactions, bodies, listener, consensus, chain and anti-entropy. Does no input or output of its
own: time comes in as `now_ns` (monotonic; plus `wall_offset_ns` it is the wall clock that proposers stamp blocks with),
what must survive goes out as `Store`. `step` never raises for a peer's fault; it raises only for a bug of ours.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ledger.anti_entropy import AntiEntropy
from ledger.block import VERSIONS, Block, Header, MalformedBlock, transaction_root
from ledger.bodies import Bodies
from ledger.bundle import MalformedBundle
from ledger.catch_up import Arrived
from ledger.chain import BLOCK_TABLE, SET_CHANGE_TABLE, Archive, Chain
from ledger.collection import VoteCollection
from ledger.consensus import (
    Action,
    Commit,
    Consensus,
    FetchBody,
    Proposal,
    Propose,
    PullStatus,
    RefuseBlock,
    Say,
    Timing,
)
from ledger.core import (
    BODY_TABLE,
    CERTIFICATE_TABLE,
    EVIDENCE_TABLE,
    FLOOR_TABLE,
    PENDING_TABLE,
    SIGNER_TABLE,
    SNAPSHOT_HEAD_TABLE,
    SNAPSHOT_TABLE,
    STATEMENT_TABLE,
    TABLES,
    Core,
    ReplicaSettings,
)
from ledger.encoding import INTEGER_MAX, MalformedEncoding, integer_key
from ledger.execution import Rules
from ledger.genesis import Genesis
from ledger.guard import STEPS, Guard, Record
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
from ledger.messages import (
    BlocksMessage,
    BlocksWanted,
    BodyMessage,
    BodyWanted,
    BundleMessage,
    BundlesWanted,
    CertificatesMessage,
    Committed,
    Message,
    ProposalMessage,
    RangeMessage,
    RangeWanted,
    SnapshotOffer,
    SnapshotWanted,
    StatementMessage,
    Status,
    decode,
)
from ledger.outputs import BlockCommitted, Output, SnapshotAdopted
from ledger.recall import Recall
from ledger.signatures import Verifier
from ledger.snapshot import FLOOR_KEY, Snapshots, newest_head, restore_state, set_floor
from ledger.snapshot_sync import SnapshotFetch, SnapshotSync
from ledger.state import State
from ledger.submissions import OwnTransactions
from ledger.transactions import encode as encode_transaction
from ledger.votes import Certificate, Evidence, Kind, Statement

__all__ = ["TABLES", "Replica", "ReplicaSettings"]

_RECORD_KEY = b"record"
STEP_TRANSACTIONS_MAX = 1_000
"""Executed in one step while catching up: some 20 ms, then whatever else waits has its turn."""


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
        stored: Mapping[str, Sequence[tuple[bytes, bytes]]],
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
        self._keys = keys
        self._own = OwnTransactions(self._core, keys)
        self._bodies = Bodies(self._core)
        self._collection = VoteCollection(self._core)
        self._listener = Listener(self._core, self._bodies, self._collection, self._own.report, self._remember)
        self._may_have_forgotten = may_have_forgotten
        self._append_again_ns: int | None = None
        self._snapshots = Snapshots(self._core)
        self._snapshot_sync = SnapshotSync(self._core, self._snapshots, self._adopt)
        self._sync = AntiEntropy(self._core, self._collection, self._snapshot_sync)
        self._smoothed_height_ns = 0
        self._work_since_ns: int | None = None
        self.upgrade_needed: str | None = None
        """Why this node does not go on to the next height, if so: its program is too old (SPEC 5.5)."""
        self._versions = versions
        self._version_noted: tuple[int, int] | None = None
        self._clock_noted_height = 0
        self._later: dict[bytes, tuple[str, Message]] = {}
        self._later_size_bytes = 0
        self._decision: tuple[int, bytes] = (0, b"")  # the last that was told about the height in progress
        self._resume(stored)

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
        return len(self._later)

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
                self._on_payload(peer, payload)
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
            None if stopped or self._numbers_unknown else self._own.deadline_ns(),
            self._append_again_ns,
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

    # ---- starting

    def _resume(self, stored: Mapping[str, Sequence[tuple[bytes, bytes]]]) -> None:
        """Take up exactly where the stored tables end (SPEC 7)."""
        head = newest_head(stored.get(SNAPSHOT_HEAD_TABLE, ()))
        floor = dict(stored.get(FLOOR_TABLE, ())).get(FLOOR_KEY)
        if floor is not None:
            self.chain.raise_floor(int.from_bytes(floor, "big"))
        if head is not None:
            state = restore_state(self.genesis, head, stored.get(SNAPSHOT_TABLE, ()), self._core.verifier)
            self.chain.resume_at(state, head.header)
            for key, row in stored.get(SET_CHANGE_TABLE, ()):
                if key <= integer_key(head.height):
                    self.chain.take_set_change(key, row)
        snapshot_trie = self.state.trie
        self.chain.replay(stored.get(BLOCK_TABLE, ()))
        if not self._keys.is_own(self.state):
            raise ValueError(f"the chain knows {self.node_id} by another key; use the identity that `qnode init` made")
        for node in self.state.nodes():
            self._core.overlay.register(node.node_id, node.index)
        self._store_set_changes(dict(stored.get(SET_CHANGE_TABLE, ())))
        self._snapshot_sync.resume(stored)
        fetch = self._snapshot_sync.fetch
        self._snapshots.resume(head, snapshot_trie, stored, None if fetch is None else fetch.head.height)
        rows = dict(stored.get(SIGNER_TABLE, ()))
        record = Record.decode(rows[_RECORD_KEY]) if _RECORD_KEY in rows else Record()
        self._guard = Guard(self.node_id, self.genesis.digest, record)
        alone = self.state.validators().node_ids == (self.node_id,)
        may_have_forgotten = (not rows or self._may_have_forgotten) and not alone
        self._recall = Recall(may_have_forgotten, self._core.settings.anti_entropy_ns)
        self._began_empty = self.height == 0
        self._has_reached_tip = False
        self._own.resume(stored.get(PENDING_TABLE, ()))
        for key, value in stored.get(EVIDENCE_TABLE, ()):
            self._listener.resume(key, Evidence.decode(value))
        self._core.consensus = self._new_consensus()
        self._watch_versions()
        for table in (BODY_TABLE, CERTIFICATE_TABLE, STATEMENT_TABLE):
            for key, value in stored.get(table, ()):
                self._core.height_keys.append((table, key))
                self._resume_row(table, value)

    def _resume_row(self, table: str, value: bytes) -> None:
        """Restore what was held or said for the height after the tip; rows of other heights are leftovers."""
        height = self.height + 1
        if table == BODY_TABLE:
            block = Block.decode(value, self.genesis.parameters)
            if block.height == height:
                self.consensus.on_body(block)
                self._bodies.stored.add(block.digest)
        elif table == CERTIFICATE_TABLE:
            certificate = Certificate.decode(value)
            if certificate.height == height:
                self.consensus.on_certificate(certificate)
        else:
            statement = Statement.decode(value)
            if statement.height == height:
                self._restore_statement(statement)

    def _restore_statement(self, statement: Statement) -> None:
        self.consensus.restore(statement)
        block = self.consensus.bodies.get(statement.block)
        if statement.kind is Kind.PROPOSE and block is not None:
            digests = tuple(bundle.digest for bundle in block.bundles)
            self.consensus.on_proposal(Proposal(statement, block.header, digests))

    def _new_consensus(self) -> Consensus:
        settings = self._core.settings
        adapted_ns = min(4 * self._smoothed_height_ns, settings.view_timeout_max_ns)
        timeout_ns = max(settings.view_timeout_min_ns, adapted_ns)
        validators = self.state.validators()
        if self.node_id in validators.indices and self._keys.voter(validators) is None:
            text = "give it the key that the chain knows, or rotate it again; until then it watches"
            self._core.note("error", "vote_key_missing", height=self.height + 1, what_to_do=text)
        return Consensus(
            height=self.height + 1,
            node_id=self.node_id if self._keys.voter(validators) is not None else "",
            validators=validators,
            timing=Timing(
                view_timeout_ns=timeout_ns,
                finalize_timeout_ns=max(settings.finalize_timeout_ns, timeout_ns // 2),
                heartbeat_ns=settings.heartbeat_ns,
                block_interval_ns=settings.block_interval_ns,
                lost_leader_timeout_ns=settings.lost_leader_timeout_ns,
            ),
            now_ns=self._core.now_ns,
            block_fault=self._block_fault,
            is_lost=self._core.overlay.is_lost,
        )

    # ---- receiving

    def _on_payload(self, peer: str, payload: bytes) -> None:
        if not self._core.overlay.is_up(peer):
            self._core.overlay.connect(peer)
        if payload == self._decision[1]:
            if self._decision[0] == self.height + 1:
                self._sync.on_committed(peer)
            return  # every neighbour tells the same, and reading it once is enough
        try:
            message = decode(payload)
            if isinstance(message, Committed) and message.header.height == self.height + 1:
                self._decision = (message.header.height, payload)
            self._on_message(peer, message, len(payload))
        except (MalformedEncoding, MalformedBundle, MalformedBlock) as error:
            self._core.fault(peer, f"malformed message: {error}")

    def _on_message(self, peer: str, message: Message, size_bytes: int) -> None:
        match message:
            case StatementMessage(statement):
                if self._is_current(peer, message, statement.height, size_bytes, statement.encoded):
                    self._listener.on_statement(peer, statement)
            case ProposalMessage(proposal, certificates):
                statement = proposal.statement
                if self._is_current(peer, message, statement.height, size_bytes, statement.encoded):
                    self._listener.on_proposal(peer, proposal, certificates)
            case Committed(header, _, certificate):
                if self._is_current(peer, message, header.height, size_bytes, certificate.encoded):
                    self._sync.on_committed(peer)
                    self._listener.on_committed(peer, message)
            case BundleMessage(bundle):
                self._bodies.on_bundle(peer, bundle)
            case CertificatesMessage(certificates):
                self._listener.on_certificates(peer, certificates)
            case Status():
                self._recall.on_status(message, self._core.now_ns)
                self._sync.on_status(peer, message)
            case BundlesWanted(digests):
                self._bodies.answer_bundles(peer, digests)
            case BodyWanted(height, block):
                if not self._bodies.answer_body(peer, block):
                    self._sync.answer_blocks(peer, height, 1)
            case BodyMessage(block):
                self._bodies.on_body(peer, block)
            case BlocksWanted(first_height, count):
                self._sync.answer_blocks(peer, first_height, count)
            case BlocksMessage(blocks):
                self._on_blocks(peer, blocks)
            case SnapshotWanted(height):
                self._snapshot_sync.answer_head(peer, height)
            case SnapshotOffer():
                self._sync.on_snapshot(peer, message)
            case RangeWanted():
                self._snapshot_sync.answer_range(peer, message)
            case RangeMessage():
                self._snapshot_sync.on_range(peer, message)

    def _is_current(self, peer: str, message: Message, height: int, size_bytes: int, name: bytes) -> bool:
        """Say whether a message is of the height in progress; keep it if it is of the next, learn if further."""
        if height == self.height + 1:
            return True
        if height == self.height + 2:
            fits = self._later_size_bytes + size_bytes <= self._core.settings.later_size_bytes_max
            if fits and len(self._later) < self._core.settings.later_messages_max and name not in self._later:
                self._later[name] = (peer, message)
                self._later_size_bytes += size_bytes
        if height > self.height + 2:
            self._sync.catch_up.learn(peer, height - 2)
        return False

    def _block_fault(self, block: Block, fresh: bool) -> str | None:
        """Rule 3. The smallest possible step of time passes any clock: after clocks were set back the chain goes on."""
        fault = self.chain.block_fault(block)
        if fault is None and fresh and block.header.time_ns != self.chain.tip_time_ns + 1:
            distance_ns = block.header.time_ns - self._core.wall_ns
            if abs(distance_ns) > self._core.settings.clock_window_ns:
                fault = f"the block's time is {distance_ns / 1e9:+.1f} s from this node's clock"
        return fault

    # ---- consensus

    def _pump(self) -> None:
        """Do everything that is due now."""
        self._sync.tick()
        if self._append_again_ns is not None and self._core.now_ns >= self._append_again_ns:
            self._append_arrived()
        self._snapshots.tick()
        self._snapshot_sync.tick()
        self._recall.tick(self._core.now_ns, self._sync.catch_up.is_behind(self.height))
        if self._collection.tick():
            self._sync.announce(self._core.some_peers())  # who is further pushes what the leader kept from this node
        while self.upgrade_needed is None:
            if not self._numbers_unknown:
                self._own.flush()
            self.consensus.muted = self._recall.is_quiet
            self.consensus.work_waiting = self._core.mempool.has_work(self.state)
            self.consensus.block_full = self._core.fills_a_block
            if self.consensus.work_waiting and self._work_since_ns is None:
                self._work_since_ns = self._core.now_ns
            action = self.consensus.next_action(self._core.now_ns)
            if action is None:
                break
            self._perform(action)
        if self.upgrade_needed is None:
            if self._append_again_ns is None and self._sync.catch_up.has(self.height + 1):
                self._append_again_ns = self._core.now_ns + 1  # its turn came by a snapshot, or by consensus
            self._sync.ask_for_blocks()

    def _perform(self, action: Action) -> None:
        match action:
            case Say(kind, view, block, justified):
                self._say(kind, view, block, justified)
            case Propose(view, block, justified):
                self._propose(view, block, justified)
            case FetchBody(block):
                self._bodies.fetch(block)
            case PullStatus():
                self._sync.announce(self._core.some_peers())
            case RefuseBlock(view, reason):
                self._core.note("warning", "block_refused", height=self.height + 1, view=view, reason=reason)
            case Commit(block, certificate):
                self._recall.on_commit()
                self._sync.tell_decision(block, certificate)
                self._commit(block, certificate)

    def _sign(self, kind: Kind, view: int, block: bytes, justified: int) -> Statement | None:
        """Sign through the guard and store record and statement; None if an earlier life said more than it stored."""
        height = self.height + 1
        if not self._guard.allows(kind, height, view):
            self._core.note("warning", "signing_refused", kind=kind.name, height=height, view=view)
            return None
        validators = self.consensus.validators
        signer = self._keys.voter(validators)
        assert signer is not None, "only a node that can sign is asked for statements"
        statement = self._guard.sign(signer, validators, kind, height, view, block, justified)
        self._core.store(SIGNER_TABLE, _RECORD_KEY, self._guard.record.encoded())
        self._core.store_for_height(STATEMENT_TABLE, integer_key(height, view, kind), statement.encoded)
        return statement

    def _remember(self, statement: Statement) -> None:
        """Take back an own statement that only the neighbours remembered: never contradict it (SPEC 7.5)."""
        record = Record(statement.height, statement.view, STEPS[statement.kind])
        self._guard.record = max(self._guard.record, record)
        self._core.store(SIGNER_TABLE, _RECORD_KEY, self._guard.record.encoded())
        key = integer_key(statement.height, statement.view, statement.kind)
        self._core.store_for_height(STATEMENT_TABLE, key, statement.encoded)
        self.consensus.restore(statement)
        self._core.note("warning", "statement_recalled", kind=statement.kind.name, height=statement.height)

    def _say(self, kind: Kind, view: int, block: bytes, justified: int) -> None:
        statement = self._sign(kind, view, block, justified)
        if statement is None:
            return
        if kind is Kind.VOTE:
            self._bodies.store(self.consensus.bodies[block])
        self._collection.say(statement)
        self._listener.count(statement)

    def _propose(self, view: int, block: Block | None, justified: int) -> None:
        block = block or self._fresh_block()
        statement = self._sign(Kind.PROPOSE, view, block.digest, justified)
        if statement is None:
            return
        self._bodies.store(block)
        proposal = Proposal(statement, block.header, tuple(bundle.digest for bundle in block.bundles))
        self.consensus.on_body(block)
        self.consensus.on_proposal(proposal)
        message = ProposalMessage(proposal, self.consensus.justification(statement))
        self._core.spread_statement(message, statement, None)

    def _fresh_block(self) -> Block:
        bundles = self._core.mempool.select(self.state)
        header = Header(
            genesis_digest=self.genesis.digest,
            height=self.height + 1,
            previous=self.tip,
            state_root=self.state.root,
            validators_digest=self.consensus.validators.digest,
            transaction_root=transaction_root([bundle.digest for bundle in bundles]),
            time_ns=max(self._core.wall_ns, self.chain.tip_time_ns + 1),
            version=self.state.version(self.height + 1),
        )
        return Block(header, bundles)

    def _watch_versions(self) -> None:
        """Stop at a version that this program does not know, and tell the operator well before."""
        self.upgrade_needed = self.chain.upgrade_needed()
        coming = [(height, version) for height, version in self.state.versions() if version not in self._versions]
        if coming and coming[0] != self._version_noted:
            self._version_noted = coming[0]
            text = "install a newer qnode on this node before that height; without it the node stops there"
            self._core.note("error", "upgrade_needed", height=coming[0][0], version=coming[0][1], what_to_do=text)

    def _commit(self, block: Block, certificate: Certificate) -> None:
        """Rule 7: execute, store block, certificate and receipts in one atomic write, go to the next height."""
        assert self.chain.block_fault(block) is None, "a quorum committed a block that this node finds invalid"
        receipts, row = self.chain.append(block, certificate)
        self._core.store(BLOCK_TABLE, integer_key(block.height), row)
        self._store_set_changes({})
        self._core.erase_height()
        for bundle in block.bundles:
            self._core.mempool.forget(bundle.sender, bundle.sequence)
            if bundle.sender == self.node_id:
                self._own.settle(bundle)
        self._core.mempool.let_go(block.height)
        for node_id in self.state.changed_nodes:
            self._take_change(node_id)
        self._listener.report_evidence()
        self._core.outputs.append(BlockCommitted(block.height, block, certificate, tuple(receipts)))
        self._snapshots.on_commit(block.header, certificate)
        self._watch_clock(block)
        self._adapt(block)
        self._bodies.forget_height(block.bundles)
        self._collection.leave_height(self._sync.forget_height())
        self._core.consensus = self._new_consensus()
        self._watch_versions()
        self._take_later()

    def _take_change(self, node_id: str) -> None:
        """The last block admitted or revoked a node, or gave it another key: what waits of it has the old."""
        node = self.state.node(node_id)
        assert node is not None, "nodes are never removed"
        self._core.overlay.register(node_id, node.index)
        self._core.mempool.forget(node_id, INTEGER_MAX)
        if node_id == self.node_id:
            self._own.sign_again()

    def _store_set_changes(self, stored: Mapping[bytes, bytes]) -> None:
        for key, row in self.chain.new_set_changes:
            if stored.get(key) != row:
                self._core.store(SET_CHANGE_TABLE, key, row)
        self.chain.new_set_changes = []

    def _adopt(self, fetch: SnapshotFetch, state: State) -> None:
        """Switch to a fetched state, in the same atomic write as the row that makes its snapshot count (SPEC 10.5)."""
        core, head, former = self._core, fetch.head, self.height
        for change in fetch.changes:
            if change.header.height > former:  # some were executed meanwhile
                self.chain.take_set_change(integer_key(change.header.height), change.encoded)
        self._store_set_changes({})
        self.chain.resume_at(state, head.header)
        self._snapshots.discard((BLOCK_TABLE, integer_key(h)) for h in range(self.chain.floor, former + 1))
        set_floor(core, head.height + 1)
        core.erase_height()
        for node in state.nodes():
            core.overlay.register(node.node_id, node.index)
            core.mempool.forget(node.node_id, INTEGER_MAX)
        self._own.skip_to(core.committed_sequence(self.node_id), self._began_empty)
        core.outputs.append(SnapshotAdopted(head.height))
        core.note("info", "snapshot_adopted", height=head.height, blocks_not_executed=head.height - former)
        self._bodies.forget_height(())
        self._collection.leave_height(self._sync.forget_height())
        core.consensus = self._new_consensus()
        self._later, self._later_size_bytes = {}, 0
        self._watch_versions()
        self._listen_first()

    def _adapt(self, block: Block) -> None:
        """Smooth the time that heights take while there is work, for the view timers."""
        if self._work_since_ns is not None and block.bundles:
            took_ns = self._core.now_ns - self._work_since_ns
            self._smoothed_height_ns += (took_ns - self._smoothed_height_ns) // 8
        self._work_since_ns = None

    def _watch_clock(self, block: Block) -> None:
        """Tell the operator when a quorum's time is far from this node's: its votes are missing then."""
        distance_ns = block.header.time_ns - self._core.wall_ns
        late = self._sync.catch_up.is_behind(block.height)
        if late or abs(distance_ns) <= self._core.settings.clock_window_ns or block.height < self._clock_noted_height:
            return
        self._clock_noted_height = block.height + 100  # one line per hundred blocks is enough
        text = "this node's clock is far from that of the quorum; set it (for example with NTP)"
        self._core.note("error", "clock_off", block_time_ahead_s=distance_ns / 1e9, what_to_do=text)

    def _take_later(self) -> None:
        later, self._later, self._later_size_bytes = self._later, {}, 0
        for peer, message in later.values():
            self._on_message(peer, message, 0)

    def _on_blocks(self, peer: str, blocks: tuple[tuple[bytes, bytes], ...]) -> None:
        """Keep what was asked for until its turn, and append what follows the tip."""
        catch_up, useful = self._sync.catch_up, False
        for encoded, certificate_bytes in blocks:
            block, certificate = Block.decode(encoded, self.genesis.parameters), Certificate.decode(certificate_bytes)
            if block.height > self.height and catch_up.expects(peer, block.height, self.height):
                catch_up.keep(Arrived(peer, block, certificate, len(encoded) + len(certificate_bytes)))
                useful = True
        catch_up.answered(peer)
        if not useful:
            catch_up.forget(peer)
        self._append_arrived()

    def _append_arrived(self) -> None:
        """Append the blocks whose turn has come; every one must carry a valid commit certificate."""
        catch_up, before, transactions = self._sync.catch_up, self.height, 0
        self._append_again_ns = None
        while self.upgrade_needed is None and (arrived := catch_up.take(self.height + 1)) is not None:
            block, certificate = arrived.block, arrived.certificate
            fault = self.chain.certificate_fault(block, certificate) or self.chain.block_fault(block)
            if fault is not None:
                self._core.fault(arrived.peer, f"a committed block that is none: {fault}")
                catch_up.drop_all_of(arrived.peer)
                break
            if not catch_up.is_behind(block.height):
                self._sync.tell_decision(block, certificate)
            self._commit(block, certificate)
            transactions += block.transaction_count
            if transactions >= STEP_TRANSACTIONS_MAX:
                self._append_again_ns = self._core.now_ns + 1
                break
        if self.height > before:
            self._has_reached_tip |= not catch_up.is_behind(self.height)
            self._listen_first()

    @property
    def _numbers_unknown(self) -> bool:
        """Whether an earlier life may have used the next numbers for bundles: new ones wait until the tip is reached.

        A snapshot shows how many bundles of this node the chain has, and not which (SPEC 3.5). That no neighbour knows
        of more blocks is enough: a follower of a fast chain learns every block by asking, and would listen for ever.
        """
        return self._began_empty and self._recall.is_quiet and not self._has_reached_tip

    def _listen_first(self) -> None:
        """After a catch-up, a node that may have forgotten asks what it said at the height that it is at now."""
        if self._recall.on_caught_up(self._core.now_ns):
            self._sync.announce(self._core.some_peers())
