"""What the parts of a replica share: its settings, its chain, the height in progress, and the list of outputs.

Holds no rules. Every part (`Listener`, `Bodies`, `AntiEntropy`, `OwnTransactions`) gets the one `Core` of its replica
and reads the present height's `consensus` through it, which changes with every commit.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ledger.bundle import Bundle
from ledger.chain import BLOCK_TABLE, SET_CHANGE_TABLE, Chain
from ledger.consensus import Consensus
from ledger.genesis import Genesis, GenesisParameters
from ledger.gossip import Overlay
from ledger.mempool import Mempool, MempoolSettings
from ledger.messages import BundleMessage, Message, ProposalMessage, StatementMessage, encode
from ledger.outputs import Erase, Noted, Output, PeerFaulted, SendMessage, Store
from ledger.signatures import Verifier
from ledger.state import State
from ledger.votes import Kind, Statement

MS = 1_000_000
SIGNER_TABLE = "ledger.signer"
STATEMENT_TABLE = "ledger.statement"
CERTIFICATE_TABLE = "ledger.certificate"
BODY_TABLE = "ledger.body"
PENDING_TABLE = "ledger.pending"
EVIDENCE_TABLE = "ledger.evidence"
SNAPSHOT_TABLE = "ledger.snapshot"
SNAPSHOT_HEAD_TABLE = "ledger.snapshot_head"
SNAPSHOT_FETCH_TABLE = "ledger.snapshot_fetch"
FLOOR_TABLE = "ledger.floor"
TABLES = (
    BLOCK_TABLE,
    SIGNER_TABLE,
    STATEMENT_TABLE,
    CERTIFICATE_TABLE,
    BODY_TABLE,
    PENDING_TABLE,
    EVIDENCE_TABLE,
    SET_CHANGE_TABLE,
    SNAPSHOT_TABLE,
    SNAPSHOT_HEAD_TABLE,
    SNAPSHOT_FETCH_TABLE,
    FLOOR_TABLE,
)


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Local choices of one node: none of them decides validity, so nodes may differ."""

    view_timeout_min_ns: int = 300 * MS
    """T0 at rest: three message delays on a continental network plus checking a full block."""
    view_timeout_max_ns: int = 10_000 * MS
    """T0 never adapts beyond this, however slow heights become."""
    finalize_timeout_ns: int = 150 * MS
    """T_f: two message delays on a continental network."""
    lost_leader_timeout_ns: int = 60 * MS
    """The wait for a leader whose connection broke: long enough for its last messages to come round."""
    block_interval_ns: int = 0
    """A leader collects for so long what goes into the next block, unless it is full before: every block costs every
    node some milliseconds, which counts where hundreds of nodes share a few cores."""
    decision_spread_ns: int = 0
    """Neighbours that do not vote are told a decision at moments drawn from so long: they need not all work at once."""
    heartbeat_ns: int = 5_000 * MS
    """An idle chain makes an empty block this often, so that clocks and state roots are still certified."""
    anti_entropy_ns: int = 500 * MS
    """Statuses go out this often, jittered by a quarter."""
    anti_entropy_peers_max: int = 4
    """Neighbours told per round: keeps a mesh of hundreds at a constant cost per node."""
    catch_up_timeout_ns: int = 2_000 * MS
    """An asked neighbour that does not answer in time is passed over."""
    answer_size_bytes_max: int = 1_048_576
    """One catch-up answer holds blocks up to this size, and at least one."""
    gap_size_bytes_max: int = 262_144
    """Bundles pushed to a neighbour per status."""
    clock_window_ns: int = 10_000 * MS
    """A fresh block further from this node's wall clock is not voted for: bounds what a wrong clock can do."""
    bundle_interval_ns: int = 2 * MS
    """Submissions within this time share a bundle: one signature check saved per bundle at every node."""
    direct_votes_max: int = 7
    """Committees up to this size tell their votes to each other: the fewest hops. Larger ones have the leader collect
    them (SPEC 6.8): n² messages per round cost more than two hops."""
    later_messages_max: int = 4096
    """Messages kept for the next height; more are dropped and come again by anti-entropy."""
    later_size_bytes_max: int = 8_388_608
    """The same in bytes."""
    snapshot_interval: int = 1_000
    """Heights between snapshots of the state, from which a restart begins; 0 takes none."""
    keep_blocks: int = 0
    """Blocks kept at least, once a snapshot lies above them; 0 keeps all: the audit from the genesis on needs them."""
    snapshot_distance: int = 20_000
    """A node further behind than so many heights fetches a snapshot; nearer, it executes every block itself."""
    mempool: MempoolSettings = field(default_factory=MempoolSettings)


class Core:
    """One per replica. `outputs` collects what the present step wants; `now_ns` is the step's time."""

    consensus: Consensus

    def __init__(
        self,
        *,
        genesis: Genesis,
        node_id: str,
        settings: ReplicaSettings,
        verifier: Verifier,
        jitter: random.Random,
        chain: Chain,
        wall_offset_ns: int,
    ) -> None:
        self.genesis = genesis
        self.node_id = node_id
        self.settings = settings
        self.verifier = verifier
        self.jitter = jitter
        self.chain = chain
        self.wall_offset_ns = wall_offset_ns
        self.now_ns = 0
        self.outputs: list[Output] = []
        self.height_keys: list[tuple[str, bytes]] = []
        self.received_transactions = 0  # others', taken into the mempool since the start
        self.mempool = Mempool(settings.mempool, genesis.parameters, len(genesis.nodes), node_id)
        self.overlay = Overlay(node_id, [node.node_id for node in genesis.nodes])
        for node in chain.state.nodes():
            self.overlay.register(node.node_id, node.index)

    @property
    def limits(self) -> GenesisParameters:
        """The chain's limits."""
        return self.genesis.parameters

    @property
    def state(self) -> State:
        """The state after the last committed block."""
        return self.chain.state

    @property
    def height(self) -> int:
        """The last committed height; consensus is about the next one."""
        return self.chain.height

    @property
    def wall_ns(self) -> int:
        """The wall clock."""
        return self.now_ns + self.wall_offset_ns

    def committed_sequence(self, sender: str) -> int:
        """Return the number of the last committed bundle of a node."""
        node = self.state.node(sender)
        return 0 if node is None else node.sequence

    # ---- outputs

    def send(self, peer: str, message: Message, *, urgent: bool, after_sync: bool) -> None:
        """Send to one neighbour."""
        self.outputs.append(SendMessage(peer, encode(message), urgent, after_sync))

    def spread_bundle(self, bundle: Bundle, received_from: str | None) -> None:
        """Send an own bundle, or pass another's on (6.1, 6.9); only own ones wait for the disk."""
        overlay, origin = self.overlay, bundle.sender
        if not overlay.peers:
            return  # as while the replica resumes, before its first height
        if self.collects_votes:
            targets = overlay.bundle_targets(origin, received_from, self.consensus.validators)
        else:
            targets = overlay.uncovered_targets(origin, received_from)
        self.send_to_all(targets, BundleMessage(bundle.encoded), urgent=False, after_sync=received_from is None)

    def spread_statement(
        self, message: StatementMessage | ProposalMessage, statement: Statement, received_from: str | None
    ) -> None:
        """Spread what a validator says; among hubs the good case stays among the validators (6.6)."""
        targets = self.overlay.targets(statement.signer, received_from)
        if statement.view == 0 and statement.kind is not Kind.NULLIFY and self.is_hub:
            targets = [peer for peer in targets if peer in self.consensus.validators.indices]
        self.send_to_all(targets, message, urgent=True, after_sync=received_from is None)

    @property
    def is_hub(self) -> bool:
        """Whether this node votes at the height in progress and is connected to a quorum of those who do."""
        return self.overlay.is_hub(self.node_id, self.consensus.validators)

    @property
    def fills_a_block(self) -> bool:
        """Whether as many transactions wait as a leader puts into a block; or leaders wait for no more anyway."""
        if self.settings.block_interval_ns == 0:
            return True
        most = min(self.limits.block_transactions_max, self.settings.mempool.block_fill_transactions)
        return self.mempool.transaction_count >= most

    @property
    def collects_votes(self) -> bool:
        """Whether the committee of the height in progress is so large that its leaders collect the votes (6.8)."""
        return len(self.consensus.validators.node_ids) > self.settings.direct_votes_max

    def send_to_all(self, peers: list[str], message: Message, *, urgent: bool, after_sync: bool) -> None:
        """Send one message to some neighbours, encoded once."""
        if peers:
            payload = encode(message)
            self.outputs += [SendMessage(peer, payload, urgent, after_sync) for peer in peers]

    def some_peers(self) -> list[str]:
        """Draw a few connected neighbours."""
        peers = self.overlay.peers
        return self.jitter.sample(peers, min(len(peers), self.settings.anti_entropy_peers_max))

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Tell the operator."""
        self.outputs.append(Noted(level, event, tuple(fields.items())))

    def fault(self, peer: str, reason: str) -> None:
        """Charge a neighbour with a fault."""
        self.outputs.append(PeerFaulted(peer, reason))

    def store(self, table: str, key: bytes, value: bytes) -> None:
        """Keep a row."""
        self.outputs.append(Store(table, key, value))

    def store_for_height(self, table: str, key: bytes, value: bytes) -> None:
        """Keep a row until the height in progress is committed."""
        self.height_keys.append((table, key))
        self.store(table, key, value)

    def erase_height(self) -> None:
        """Erase what was kept for the height that is being committed."""
        self.outputs += [Erase(table, key) for table, key in self.height_keys]
        self.height_keys = []

    def store_set_changes(self, stored: Mapping[bytes, bytes]) -> None:
        """Keep the changes of the validator set that the chain has learned of, unless they are `stored` already."""
        for key, row in self.chain.new_set_changes:
            if stored.get(key) != row:
                self.store(SET_CHANGE_TABLE, key, row)
        self.chain.new_set_changes = []
