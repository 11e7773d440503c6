"""From one height to the next: by a decision, by blocks that neighbours committed before, or by a snapshot.

Executes what was decided, stores it in one atomic write, lets every part forget the height that is over, and begins
the next (SPEC rules 3 and 7, parts 6.2 and 10.5). What is decided, `consensus` says.
"""

from ledger.anti_entropy import AntiEntropy
from ledger.block import Block
from ledger.bodies import Bodies
from ledger.catch_up import Arrived
from ledger.chain import BLOCK_TABLE
from ledger.collection import VoteCollection
from ledger.consensus import Consensus
from ledger.core import Core
from ledger.encoding import INTEGER_MAX, integer_key
from ledger.identity import OwnKeys
from ledger.listener import Listener
from ledger.outputs import BlockCommitted, SnapshotAdopted
from ledger.pace import Pace
from ledger.recall import Recall
from ledger.reception import Reception
from ledger.snapshot import Snapshots, set_floor
from ledger.snapshot_sync import SnapshotFetch
from ledger.state import State
from ledger.submissions import OwnTransactions
from ledger.upkeep import Upkeep
from ledger.votes import Certificate

STEP_TRANSACTIONS_MAX = 1_000
"""Executed in one step while catching up: some 20 ms, then whatever else waits has its turn."""


class Heights:
    """Ends heights and begins them."""

    def __init__(
        self,
        core: Core,
        *,
        keys: OwnKeys,
        own: OwnTransactions,
        bodies: Bodies,
        collection: VoteCollection,
        listener: Listener,
        sync: AntiEntropy,
        snapshots: Snapshots,
        reception: Reception,
        recall: Recall,
        upkeep: Upkeep,
        pace: Pace,
    ) -> None:
        self._core = core
        self._keys = keys
        self._own = own
        self._bodies = bodies
        self._collection = collection
        self._listener = listener
        self._sync = sync
        self._snapshots = snapshots
        self._reception = reception
        self._recall = recall
        self._upkeep = upkeep
        self._pace = pace
        self._began_empty = core.height == 0
        self._has_reached_tip = False
        self._append_again_ns: int | None = None

    # ---- beginning a height

    def begin(self) -> None:
        """Begin the height after the tip."""
        self._core.consensus = self._consensus()
        self._upkeep.watch_versions()

    def _consensus(self) -> Consensus:
        core, validators = self._core, self._core.state.validators()
        can_vote = self._keys.voter(validators) is not None
        if core.node_id in validators.indices and not can_vote:
            self._upkeep.miss_vote_key()
        return Consensus(
            height=core.height + 1,
            node_id=core.node_id if can_vote else "",
            validators=validators,
            timing=self._pace.timing(),
            now_ns=core.now_ns,
            block_fault=self._block_fault,
            is_lost=core.overlay.is_lost,
        )

    def _block_fault(self, block: Block, fresh: bool) -> str | None:
        """Rule 3. The smallest possible step of time passes any clock: after clocks were set back the chain goes on."""
        core = self._core
        fault = core.chain.block_fault(block)
        if fault is None and fresh and block.header.time_ns != core.chain.tip_time_ns + 1:
            distance_ns = block.header.time_ns - core.wall_ns
            if abs(distance_ns) > core.settings.clock_window_ns:
                fault = f"the block's time is {distance_ns / 1e9:+.1f} s from this node's clock"
        return fault

    # ---- by a decision

    def decided(self, block: Block, certificate: Certificate) -> None:
        """The height in progress is decided: tell it, and go to the next."""
        self._recall.on_commit()
        self._sync.tell_decision(block, certificate)
        self._commit(block, certificate)

    def _commit(self, block: Block, certificate: Certificate) -> None:
        """Rule 7: execute, store block, certificate and receipts in one atomic write, go to the next height."""
        core = self._core
        assert core.chain.block_fault(block) is None, "a quorum committed a block that this node finds invalid"
        receipts, row = core.chain.append(block, certificate)
        core.store(BLOCK_TABLE, integer_key(block.height), row)
        core.store_set_changes({})
        core.erase_height()
        for bundle in block.bundles:
            core.mempool.forget(bundle.sender, bundle.sequence)
            if bundle.sender == core.node_id:
                self._own.settle(bundle)
        core.mempool.let_go(block.height)
        for node_id in core.state.changed_nodes:
            self._take_change(node_id)
        self._listener.report_evidence()
        core.outputs.append(BlockCommitted(block.height, block, certificate, tuple(receipts)))
        self._snapshots.on_commit(block.header, certificate)
        self._upkeep.watch_clock(block, is_behind=self._sync.catch_up.is_behind(block.height))
        self._pace.height_ended(core.now_ns, had_work=bool(block.bundles))
        self._bodies.forget_height(block.bundles)
        self._collection.leave_height(self._sync.forget_height())
        self.begin()
        self._reception.take_later()

    def _take_change(self, node_id: str) -> None:
        """The last block admitted or revoked a node, or gave it another key: what waits of it has the old."""
        core = self._core
        node = core.state.node(node_id)
        assert node is not None, "nodes are never removed"
        core.overlay.register(node_id, node.index)
        core.mempool.forget(node_id, INTEGER_MAX)
        if node_id == core.node_id:
            self._own.sign_again()

    # ---- by a snapshot

    def adopt(self, fetch: SnapshotFetch, state: State) -> None:
        """Switch to a fetched state, in the same atomic write as the row that makes its snapshot count (SPEC 10.5)."""
        core, chain, head, former = self._core, self._core.chain, fetch.head, self._core.height
        for change in fetch.changes:
            if change.header.height > former:  # some were executed meanwhile
                chain.take_set_change(integer_key(change.header.height), change.encoded)
        core.store_set_changes({})
        chain.resume_at(state, head.header)
        self._snapshots.discard((BLOCK_TABLE, integer_key(h)) for h in range(chain.floor, former + 1))
        set_floor(core, head.height + 1)
        core.erase_height()
        for node in state.nodes():
            core.overlay.register(node.node_id, node.index)
            core.mempool.forget(node.node_id, INTEGER_MAX)
        self._own.skip_to(core.committed_sequence(core.node_id), self._began_empty)
        core.outputs.append(SnapshotAdopted(head.height))
        core.note("info", "snapshot_adopted", height=head.height, blocks_not_executed=head.height - former)
        self._bodies.forget_height(())
        self._collection.leave_height(self._sync.forget_height())
        self._reception.drop_later()
        self.begin()
        self._listen_first()

    # ---- by blocks that were committed before

    def on_blocks(self, peer: str, blocks: tuple[tuple[bytes, bytes], ...]) -> None:
        """Keep what was asked for until its turn, and append what follows the tip. Raises MalformedEncoding.

        A block that was not asked for is a decision that the neighbour tells (6.9), and no answer.
        """
        core, catch_up, useful, highest = self._core, self._sync.catch_up, False, 0
        for encoded, certificate_bytes in blocks:
            block, certificate = Block.decode(encoded, core.limits), Certificate.decode(certificate_bytes)
            highest = max(highest, block.height)
            if block.height > core.height and catch_up.expects(peer, block.height, core.height):
                catch_up.keep(Arrived(peer, block, certificate, len(encoded) + len(certificate_bytes)))
                useful = True
        if blocks and not catch_up.has_asked(peer, highest):
            catch_up.learn(peer, max(highest, catch_up.height_of(peer)))
            if highest == core.height + 1:
                self._sync.on_committed(peer)
        else:
            catch_up.answered(peer)
            if not useful:
                catch_up.forget(peer)
        self._append_arrived()

    def _append_arrived(self) -> None:
        """Append the blocks whose turn has come; every one must carry a valid commit certificate."""
        core, catch_up, before, transactions = self._core, self._sync.catch_up, self._core.height, 0
        self._append_again_ns = None
        while self._upkeep.upgrade_needed is None and (arrived := catch_up.take(core.height + 1)) is not None:
            block, certificate = arrived.block, arrived.certificate
            fault = core.chain.certificate_fault(block, certificate) or core.chain.block_fault(block)
            if fault is not None:
                core.fault(arrived.peer, f"a committed block that is none: {fault}")
                catch_up.drop_all_of(arrived.peer)
                break
            if not catch_up.is_behind(block.height):
                self._sync.tell_decision(block, certificate)
            self._commit(block, certificate)
            transactions += block.transaction_count
            if transactions >= STEP_TRANSACTIONS_MAX:
                self._append_again_ns = core.now_ns + 1
                break
        if core.height > before:
            self._has_reached_tip |= not catch_up.is_behind(core.height)
            self._listen_first()

    def tick(self) -> None:
        """Append the rest of what had to wait for another step."""
        if self._append_again_ns is not None and self._core.now_ns >= self._append_again_ns:
            self._append_arrived()

    def look_for_arrived(self) -> None:
        """The turn of a kept block may have come by a snapshot, or by consensus."""
        if self._append_again_ns is None and self._sync.catch_up.has(self._core.height + 1):
            self._append_again_ns = self._core.now_ns + 1

    def deadline_ns(self) -> int | None:
        """Return when `tick` has something to do."""
        return self._append_again_ns

    # ---- what an earlier life did

    @property
    def numbers_unknown(self) -> bool:
        """Whether an earlier life may have used the next numbers for bundles: new ones wait until the tip is reached.

        A snapshot shows how many bundles of this node the chain has, and not which (SPEC 3.5). That no neighbour knows
        of more blocks is enough: a follower of a fast chain learns every block by asking, and would listen for ever.
        """
        return self._began_empty and self._recall.is_quiet and not self._has_reached_tip

    def _listen_first(self) -> None:
        """After a catch-up, a voter that may have forgotten asks what it said at the height that it is at now."""
        core = self._core
        if self._recall.on_caught_up(core.now_ns) and core.node_id in core.consensus.validators.indices:
            self._sync.announce(core.some_peers())
