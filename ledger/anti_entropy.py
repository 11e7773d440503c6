"""Neighbours kept equal: decisions told, statuses out, gaps filled, blocks asked for and given (SPEC 6.2, 6.3, 6.6).

Whether a received block is valid is decided by the replica that appends it.
"""

from typing import Final

from ledger.block import Block
from ledger.catch_up import CatchUp
from ledger.collection import VoteCollection
from ledger.core import Core
from ledger.messages import (
    BlocksMessage,
    BlocksWanted,
    BundleMessage,
    CertificatesMessage,
    Committed,
    ProposalMessage,
    SnapshotOffer,
    StatementMessage,
    Status,
)
from ledger.snapshot_sync import SnapshotSync
from ledger.sync import gap_of, make_status
from ledger.votes import Certificate

VOTERS_SPREAD_DIVISOR: Final = 4
"""Validators whose votes the leader collects are told within this part of the decision spread: one of them leads next,
and they tell the followers."""


class AntiEntropy:
    """Statuses, gaps and the one question for blocks that may be open."""

    def __init__(self, core: Core, collection: VoteCollection, snapshot_sync: SnapshotSync) -> None:
        self.snapshot_sync = snapshot_sync
        self._collection = collection
        self.catch_up = CatchUp(core.settings.catch_up_timeout_ns)
        self._status_due_ns: int | None = None
        self._core = core
        self._decision: tuple[Block, Certificate] | None = None
        self._untold: dict[str, int] = {}  # neighbours that will be told the last decision, and when
        self._answered_ns: dict[str, int] = {}
        self._behind_since: tuple[int, int] | None = None  # a height, and since when a neighbour is above it
        self._informed: set[str] = set()  # neighbours who told of the decision about the height in progress

    # ---- decisions

    def on_committed(self, peer: str) -> None:
        """Take note of who told of the decision, so that it is not told back."""
        self._informed.add(peer)

    def tell_decision(self, block: Block, certificate: Certificate) -> None:
        """Tell it to the neighbours that are not known to have it, nor to get it otherwise: hubs have all the votes.

        Where the leader collects the votes, he tells all validators, and the others spare the hubs that he is connected
        to; whoever does not vote is told by one hub, with the bundles (6.9).
        The certificate may hold this node's own statement of this step, which must not leave before it is durable.
        """
        core, validators = self._core, self._core.consensus.validators
        self._tell(list(self._untold))  # a node that learns of one decision at a time never has to ask
        peers = [
            peer
            for peer in core.overlay.peers
            if peer not in self._informed
            and not self._is_told_otherwise(peer)
            and self.catch_up.height_of(peer) < block.height
        ]
        self._decision = (block, certificate)
        spread_ns = core.settings.decision_spread_ns
        voters_spread_ns = spread_ns // VOTERS_SPREAD_DIVISOR if core.collects_votes else 0
        spreads = {peer: voters_spread_ns if peer in validators.indices else spread_ns for peer in peers}
        self._untold = {peer: core.now_ns + int(ns * core.jitter.random()) for peer, ns in spreads.items() if ns}
        self._tell([peer for peer in peers if peer not in self._untold])

    def _tell(self, peers: list[str]) -> None:
        """Tell the last decision."""
        core, validators = self._core, self._core.consensus.validators
        if peers and self._decision is not None:
            block, certificate = self._decision
            votes = core.node_id in validators.indices
            whole = [peer for peer in peers if self._is_told_whole(peer)]
            if whole:
                message = BlocksMessage(((block.encoded, certificate.encoded),))
                core.send_to_all(whole, message, urgent=True, after_sync=votes)
            if len(whole) < len(peers):
                decision = Committed(block.header, tuple(bundle.digest for bundle in block.bundles), certificate)
                rest = [peer for peer in peers if peer not in whole]
                core.send_to_all(rest, decision, urgent=True, after_sync=votes)
        for peer in peers:
            self._untold.pop(peer, None)

    def _tell_due(self) -> None:
        """Tell the last decision to those whose moment has come, if they have not heard of it."""
        due = [peer for peer, due_ns in self._untold.items() if self._core.now_ns >= due_ns]
        self._tell([peer for peer in due if self.catch_up.height_of(peer) < self._core.height])
        for peer in due:
            self._untold.pop(peer, None)

    def _is_told_otherwise(self, peer: str) -> bool:
        core, leader, validators = self._core, self._core.consensus.leader(0), self._core.consensus.validators
        if self._is_told_whole(peer):
            return core.overlay.teller(peer, core.consensus.height, leader, validators) != core.node_id
        if not core.overlay.is_hub(peer, validators):
            return False
        if not core.collects_votes:
            return True
        return leader != core.node_id and (peer == leader or core.overlay.are_joined(leader, peer))

    def _is_told_whole(self, node_id: str) -> bool:
        """Whether decisions bring a node the bundles, so that it needs none before (6.9)."""
        return self._core.collects_votes and node_id not in self._core.consensus.validators.indices

    def forget_height(self) -> set[str]:
        """Start on the next height; returns the neighbours that told of the decision about this one."""
        informed, self._informed = self._informed, set()
        return informed

    # ---- statuses

    def status(self) -> Status:
        """Return this node's status."""
        core = self._core
        neighbours = core.overlay.neighbours_bitmap()
        return make_status(core.consensus, core.mempool, core.state, neighbours)

    def announce(self, peers: list[str]) -> None:
        """Send the status to some neighbours."""
        status = self.status()
        for peer in peers:
            self._core.send(peer, status, urgent=True, after_sync=True)

    def begin(self) -> None:
        """Start to tell what is held: now."""
        self._status_due_ns = self._core.now_ns

    def deadline_ns(self) -> int | None:
        """Return when `tick` has something to do."""
        due_ns = [*self._untold.values(), *([] if self._status_due_ns is None else [self._status_due_ns])]
        if self._behind_since is not None:
            until_ns = self._behind_since[1] + self._core.settings.decision_spread_ns
            due_ns += [until_ns] if until_ns > self._core.now_ns else []
        return min(due_ns, default=None)

    def tick(self) -> None:
        """When it is time: announce what is held, and let unanswered questions be asked again."""
        core = self._core
        self._tell_due()
        if self._status_due_ns is None or core.now_ns < self._status_due_ns:
            return
        self._status_due_ns = core.now_ns + int(core.settings.anti_entropy_ns * core.jitter.uniform(0.75, 1.25))
        core.consensus.forget_fetches()
        self.announce(core.overlay.peers if core.overlay.take_news() else core.some_peers())

    def forget(self, peer: str) -> None:
        """The neighbour is gone."""
        self._untold.pop(peer, None)
        self.catch_up.forget(peer)
        self.snapshot_sync.forget(peer)
        self._answered_ns.pop(peer, None)

    def on_status(self, peer: str, status: Status) -> None:
        """Learn where a neighbour is and push what it lacks."""
        core = self._core
        core.overlay.learn(peer, status.neighbours)
        self.catch_up.learn(peer, status.height)
        self.snapshot_sync.on_status(peer, status.height)
        if status.height == core.height:
            self.push_gap(peer, status)
        if abs(status.height - core.height) <= 1:
            self.push_bundles(peer, status)
        if status.height < core.height - self._is_told_whole(peer):  # of the last decision it is about to be told
            self._answer_late(peer)

    def _answer_late(self, peer: str) -> None:
        """Tell a neighbour that is behind, but not more often than a few times a second."""
        core = self._core
        answered_ns = self._answered_ns.get(peer)
        if answered_ns is None or core.now_ns - answered_ns >= core.settings.anti_entropy_ns // 4:
            self._answered_ns[peer] = core.now_ns
            self.announce([peer])

    def push_gap(self, peer: str, status: Status) -> None:
        """Send certificates, proposals and statements of this height that a neighbour lacks."""
        core = self._core
        if self._waits_for_decision(peer):
            return
        gap = gap_of(core.consensus, status, collects=self._collection.goes_well)
        if gap.certificates:
            core.send(peer, CertificatesMessage(gap.certificates), urgent=True, after_sync=True)
        for view in gap.proposed_views:
            proposal = core.consensus.proposals[view]
            message = ProposalMessage(proposal, core.consensus.justification(proposal.statement))
            core.send(peer, message, urgent=True, after_sync=True)
        for statement in gap.statements:
            core.send(peer, StatementMessage(statement), urgent=True, after_sync=True)

    def _waits_for_decision(self, peer: str) -> bool:
        """Whether all goes well and a neighbour that does not vote will be told the outcome at once."""
        core, consensus = self._core, self._core.consensus
        goes_well = consensus.view == 0 and consensus.commit is None and core.is_hub
        return goes_well and peer not in consensus.validators.indices

    def push_bundles(self, peer: str, status: Status) -> None:
        """Send waiting bundles after those that a neighbour holds, within the byte budget."""
        core = self._core
        if core.is_hub and self._is_told_whole(peer):
            return  # it gets them with the decision (6.9)
        budget_bytes = core.settings.gap_size_bytes_max
        theirs = dict(status.pending)
        for sender in core.mempool.senders():
            node = core.state.node(sender)
            if node is None:
                continue
            sequence = max(theirs.get(node.index, node.sequence), node.sequence) + 1
            while (bundle := core.mempool.to_offer(sender, sequence, core.height)) is not None and sender != peer:
                budget_bytes -= bundle.size_bytes
                if budget_bytes < 0:
                    return
                core.send(peer, BundleMessage(bundle.encoded), urgent=False, after_sync=True)
                sequence += 1

    # ---- committed blocks

    def ask_for_blocks(self) -> None:
        """Ask every idle neighbour that is ahead for a range that nobody else was asked for."""
        core = self._core
        self.catch_up.expire(core.now_ns)
        if self.snapshot_sync.takes_precedence:
            return  # the blocks after the snapshot come next
        if self._is_about_to_be_told():
            return
        for peer, first_height, count in self.catch_up.ask(core.height, core.now_ns):
            core.send(peer, BlocksWanted(first_height, count), urgent=False, after_sync=False)
        for peer in self.catch_up.without_source(core.height):
            self.snapshot_sync.want(peer)

    def _is_about_to_be_told(self) -> bool:
        """Whether this node lacks the newest block alone, and for no longer than its neighbours take to tell it."""
        core, spread_ns = self._core, self._core.settings.decision_spread_ns
        if spread_ns == 0 or not self._is_told_whole(core.node_id) or not self.catch_up.is_behind(core.height):
            self._behind_since = None
            return False
        if self._behind_since is None or self._behind_since[0] != core.height:
            self._behind_since = core.height, core.now_ns
        return not self.catch_up.is_behind(core.height + 1) and core.now_ns < self._behind_since[1] + spread_ns

    def on_snapshot(self, peer: str, offer: SnapshotOffer) -> None:
        """A neighbour offers a snapshot: as it was asked to, or since it lacks the blocks that it was asked for.

        The latter alone is no reason to take it: another neighbour may have the blocks (10.4).
        """
        self.catch_up.refused(peer, offer.head.height)
        if self.snapshot_sync.expects(peer):
            self.snapshot_sync.on_head(peer, offer)

    def answer_blocks(self, peer: str, first_height: int, count: int) -> None:
        """Send committed blocks from a height on, as many as wanted and fit; below the floor tell of a snapshot."""
        core = self._core
        if first_height < core.chain.floor:
            self.snapshot_sync.answer_head(peer, first_height - 1)
            return
        blocks: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        for height in range(first_height, min(first_height + count, core.height + 1)):
            stored = core.chain.stored_block(height)
            if stored is None:
                break
            size_bytes += len(stored.block) + len(stored.certificate)
            if blocks and size_bytes > core.settings.answer_size_bytes_max:
                break
            blocks.append((stored.block, stored.certificate))
        core.send(peer, BlocksMessage(tuple(blocks)), urgent=False, after_sync=True)
