"""The invariants of the commit protocol, asserted while a simulation runs (numbers as in ledger/SPEC.md, part 8).

The checkers see what leaves a node, what it stores and what it commits. They recount certificates in their own simple
way and never ask the code under test whether it was right.
"""

from functools import lru_cache

from ledger.block import Block
from ledger.core import (
    BODY_TABLE,
    CERTIFICATE_TABLE,
    EVIDENCE_TABLE,
    SIGNER_TABLE,
    ReplicaSettings,
)
from ledger.encoding import MalformedEncoding, digest, integer_key
from ledger.guard import STEPS, Record
from ledger.mempool import MempoolSettings
from ledger.messages import Committed, Message, ProposalMessage, StatementMessage, decode
from ledger.outputs import BlockCommitted, Erase, Output, PeerFaulted, SendMessage, SnapshotAdopted, Store
from ledger.replica import Replica
from ledger.votes import FRESH, Certificate, Evidence, Kind, Statement
from loadtest.simulation.members import Members
from loadtest.simulation.world import SimulatedNode, Stored, World


class Violation(AssertionError):
    """An invariant does not hold; the message names its number, the node and the height."""


@lru_cache(maxsize=4096)
def decoded(payload: bytes) -> Message | None:
    """Return the message of a payload, or None; the same payload goes to many peers."""
    try:
        return decode(payload)
    except MalformedEncoding:
        return None


class Checkers:
    """All invariants over one run. Only honest nodes are held to them; Byzantine ones are ignored."""

    def __init__(self) -> None:
        self.world: World
        self.members: Members
        self.blocks: dict[int, tuple[Block, Certificate]] = {}
        self.committed: dict[int, bytes] = {}
        self.state_roots: dict[int, bytes] = {}
        self.sequences: dict[str, int] = {}
        self.executed: set[bytes] = set()
        self.admitted: dict[int, str] = {}
        """Node that promised, by token."""
        self.rows: dict[str, dict[tuple[str, bytes], bytes]] = {}
        """What every disk must hold: all that was reported durable, and nothing else."""
        self.wipes = 0
        self.heights: dict[str, int] = {}
        self.statements: dict[tuple[str, int, int, Kind], tuple[bytes, int]] = {}
        self.last_said: dict[str, Record] = {}
        self.notarized: dict[tuple[int, int], bytes] = {}
        self.nullified: set[tuple[int, int]] = set()
        self.commits: dict[int, dict[int, bytes]] = {}
        self.checks = 0
        self.adoptions = 0

    def _require(self, condition: bool, invariant: int, node: SimulatedNode, text: str) -> None:
        self.checks += 1
        if not condition:
            raise Violation(f"invariant {invariant} at {self.world.now_ns / 1e6:.3f} ms, {node.node_id}: {text}")

    # ---- what the world reports

    def on_load(self, node: SimulatedNode, stored: Stored) -> None:
        """A start reads the boundary of a batch, or refuses: never a silent difference."""
        if node.byzantine:
            return
        found = {(table, key): value for table, rows in stored.items() for key, value in rows}
        self._require(found == self.rows.get(node.node_id, {}), 22, node, "starts from rows that it never stored so")

    def on_wiped(self, node: SimulatedNode) -> None:
        """What it had promised went with the disk; what it had said must not be contradicted all the same."""
        self.wipes += 1
        self.rows.pop(node.node_id, None)
        self.heights.pop(node.node_id, None)
        self.last_said.pop(node.node_id, None)
        self.admitted = {token: name for token, name in self.admitted.items() if name != node.node_id}

    def on_start(self, node: SimulatedNode) -> None:
        """A restarted node resumes at a height that it had, with the state that all had there."""
        if node.byzantine:
            return
        assert node.replica is not None
        height = node.replica.height
        self._require(height <= self.heights.get(node.node_id, 0), 9, node, f"starts at height {height}, never had it")
        if height:
            self._check_root(node, height, node.replica.state.root, 18, "replays to another state at height")
        self.heights[node.node_id] = height

    def on_outputs(self, node: SimulatedNode, outputs: list[Output]) -> None:
        """Look at commits, stored certificates and stored evidence, once they are durable."""
        if node.byzantine:
            return
        rows = self.rows.setdefault(node.node_id, {})
        for output in outputs:
            if isinstance(output, Store) and output.table not in node.disk.dropped_tables:
                rows[output.table, output.key] = output.value
            elif isinstance(output, Erase):
                rows.pop((output.table, output.key), None)
            if isinstance(output, BlockCommitted):
                self._on_commit(node, output)
            elif isinstance(output, SnapshotAdopted):
                self._on_adoption(node, output.height)
            elif isinstance(output, Store) and output.table == CERTIFICATE_TABLE:
                self._on_certificate(node, Certificate.decode(output.value))
            elif isinstance(output, Store) and output.table == EVIDENCE_TABLE:
                one = Evidence.decode(output.value).one
                self._require(self.world.nodes[one.signer].byzantine, 13, node, f"evidence against honest {one.signer}")
            elif isinstance(output, PeerFaulted):
                good = self.world.nodes[output.peer].byzantine
                self._require(good, 21, node, f"charges honest {output.peer} with {output.reason}")
        self._check_memory(node)

    def on_send(self, node: SimulatedNode, message: SendMessage) -> None:
        """Look at own statements as they leave: everything they rest on must be durable by now."""
        if node.byzantine or not message.urgent:
            return
        content = decoded(message.payload)
        if isinstance(content, StatementMessage):
            statement = content.statement
        elif isinstance(content, ProposalMessage):
            statement = content.proposal.statement
        elif isinstance(content, Committed):
            self._check_own_share(node, content.certificate)
            return
        else:
            return
        if statement.signer == node.node_id:
            self._on_own_statement(node, statement)

    def on_admitted(self, node: SimulatedNode, token: int) -> None:
        """The caller was told that its transactions will be committed."""
        if not node.byzantine:
            self.admitted[token] = node.node_id

    # ---- statements: 2, 6, 7, 8

    def _on_own_statement(self, node: SimulatedNode, statement: Statement) -> None:
        self._check_version(node, statement.height)
        said = (node.node_id, statement.height, statement.view)
        known = self.statements.setdefault((*said, statement.kind), statement.says)
        self._require(known == statement.says, 2, node, f"two {statement.kind.name} in view {statement.view}")
        excluded = {Kind.FINALIZE: Kind.NULLIFY, Kind.NULLIFY: Kind.FINALIZE}.get(statement.kind)
        if excluded is not None:
            both = (*said, excluded) in self.statements
            self._require(not both, 2, node, f"NULLIFY and FINALIZE in view {statement.view}")
        self._check_record(node, statement)
        if statement.height == self.heights.get(node.node_id, 0) + 1:  # later its height's records may be erased
            self._check_durable(node, statement)

    def _check_own_share(self, node: SimulatedNode, certificate: Certificate) -> None:
        """A certificate that holds a statement of its own sender leaves after that statement's record."""
        if certificate.height > self.members.height + 2:
            return  # ahead of every disk: who votes there is not known yet
        names = [entry.node_id for entry in self.members.voting(certificate.height)]
        if node.node_id in [names[index] for index in certificate.indices()]:
            row = node.disk.read(SIGNER_TABLE, b"record")
            step = Record(certificate.height, certificate.view, STEPS[certificate.kind])
            good = row is not None and Record.decode(row) >= step
            self._require(good, 8, node, "tells a decision before its own statement in it is durable")

    def _check_record(self, node: SimulatedNode, statement: Statement) -> None:
        row = node.disk.read(SIGNER_TABLE, b"record")
        self._require(row is not None, 8, node, "sends a statement without any durable record")
        assert row is not None
        step = Record(statement.height, statement.view, STEPS[statement.kind])
        self._require(Record.decode(row) >= step, 8, node, "sends a statement before its record is durable")
        self.last_said[node.node_id] = max(self.last_said.get(node.node_id, Record()), step)
        self._require(Record.decode(row) >= self.last_said[node.node_id], 8, node, "its durable record went backwards")

    def _check_durable(self, node: SimulatedNode, statement: Statement) -> None:
        height, view = statement.height, statement.view
        if statement.kind is Kind.FINALIZE:
            row = node.disk.read(CERTIFICATE_TABLE, integer_key(height, Kind.VOTE, view))
            good = row is not None and Certificate.decode(row).block == statement.block
            self._require(good, 6, node, f"FINALIZE in view {view} without a durable notarization")
        if statement.kind is not Kind.VOTE:
            return
        body = node.disk.read(BODY_TABLE, integer_key(height) + statement.block)
        self._require(body is not None, 7, node, f"VOTE in view {view} without a durable body")
        if statement.justified != FRESH:
            row = node.disk.read(CERTIFICATE_TABLE, integer_key(height, Kind.VOTE, statement.justified))
            good = row is not None and Certificate.decode(row).block == statement.block
            self._require(good, 7, node, f"VOTE in view {view} without N({statement.justified})")
        for between in range(statement.justified + 1, view):
            row = node.disk.read(CERTIFICATE_TABLE, integer_key(height, Kind.NULLIFY, between))
            self._require(row is not None, 7, node, f"VOTE in view {view} without X({between})")

    # ---- certificates: 3, 4, 5, 10

    def _on_certificate(self, node: SimulatedNode, certificate: Certificate) -> None:
        self._recount(node, certificate)
        height, view, block = certificate.height, certificate.view, certificate.block
        committed_views = self.commits.setdefault(height, {})
        if certificate.kind is Kind.VOTE:
            known = self.notarized.setdefault((height, view), block)
            self._require(known == block, 3, node, f"two blocks notarized at height {height} in view {view}")
            for earlier, committed in committed_views.items():
                good = view < earlier or committed == block
                self._require(good, 5, node, f"another block notarized after a commit at height {height}")
        elif certificate.kind is Kind.NULLIFY:
            self.nullified.add((height, view))
            self._require(view not in committed_views, 4, node, f"X and C at height {height} in view {view}")
        else:
            committed_views[view] = block
            self._require((height, view) not in self.nullified, 4, node, f"X and C at height {height} in view {view}")
            for (of_height, later), other in self.notarized.items():
                good = of_height != height or later < view or other == block
                self._require(good, 5, node, f"another block notarized after a commit at height {height}")

    def _recount(self, node: SimulatedNode, certificate: Certificate) -> None:
        """Count the signatures again, in the plainest way."""
        voting = self.members.voting(certificate.height)
        set_digest = self.members.set_digest(certificate.height)
        message = digest(
            "qnode/statement/1",
            *(self.world.genesis.digest, set_digest, int(certificate.kind), certificate.height, certificate.view),
            *(certificate.block, certificate.justified + 1),
        )
        bits = int.from_bytes(certificate.signers, "little")
        signers = [entry for i, entry in enumerate(voting) if bits >> i & 1]
        valid = [
            entry
            for entry, signature in zip(signers, certificate.signatures, strict=False)
            if self.world.signers[entry.public_key].sign(message) == signature
        ]
        faulty_max = max(faulty for faulty in range(len(voting)) if 3 * faulty + 1 <= len(voting))
        enough = len(valid) >= len(voting) - faulty_max
        self._require(enough, 10, node, f"{certificate.kind.name} certificate with {len(valid)} valid signatures")

    # ---- commits: 1, 9, 10, 11, 12

    def _on_commit(self, node: SimulatedNode, output: BlockCommitted) -> None:
        height, block = output.height, output.block
        expected = self.heights.get(node.node_id, 0) + 1
        self._require(height == expected, 9, node, f"commits height {height} where {expected} is next")
        self.heights[node.node_id] = height
        first = height not in self.committed
        known = self.committed.setdefault(height, block.digest)
        self._require(known == block.digest, 1, node, f"two blocks committed at height {height}")
        parent = self.committed.get(height - 1, self.world.genesis.digest)
        self._require(block.header.previous == parent, 9, node, f"block {height} is not linked to {height - 1}")
        if height > 1:
            self._check_root(node, height - 1, block.header.state_root, 9, "a block names another state after height")
        if node.replica is not None and node.replica.height == height:
            self._check_root(node, height, node.replica.state.root, 9, "another state after height")
        expected_set = self.members.set_digest(height)
        self._require(expected_set == block.header.validators_digest, 11, node, f"another validator set at {height}")
        self._check_version(node, height)
        self._on_certificate(node, output.certificate)
        if first:
            self.blocks[height] = (block, output.certificate)
            self._check_order(node, block)
            self.members.take(height, output.receipts)
        self._check_following_sets(node)

    def _on_adoption(self, node: SimulatedNode, height: int) -> None:
        """A fetched snapshot is a state that others reached by executing every block."""
        self.adoptions += 1
        self._require(height > self.heights.get(node.node_id, 0), 9, node, f"goes back to the snapshot of {height}")
        self.heights[node.node_id] = height
        if node.replica is not None and node.replica.height == height:
            self._check_root(node, height, node.replica.state.root, 18, "adopts another state at height")
        self._check_version(node, height)
        self._check_following_sets(node)

    def _check_root(self, node: SimulatedNode, height: int, root: bytes, invariant: int, text: str) -> None:
        """One state per height. Whoever shows it first settles it: a node whose disk was busy has executed further by
        the time that its commit is reported, so that the root of a height may be known from the next header alone."""
        known = self.state_roots.setdefault(height, root)
        self._require(root == known, invariant, node, f"{text} {height}")

    def _check_following_sets(self, node: SimulatedNode) -> None:
        """What a node believes of the next two heights follows from the committed records alone."""
        replica = node.replica
        if replica is None or replica.height != self.heights[node.node_id]:
            return  # it has gone on while its disk was busy: its turn comes
        following = (replica.consensus.validators, replica.state.validators_after())
        for height, found in enumerate(following, replica.height + 1):
            good = found.digest == self.members.set_digest(height)
            self._require(good, 11, node, f"believes in another validator set at height {height}")

    def _check_version(self, node: SimulatedNode, height: int) -> None:
        """An old program takes no part in heights whose rules it does not know."""
        activation_height = self.members.activation_height
        if activation_height is not None and height >= activation_height:
            self._require(2 in node.versions, 11, node, f"goes on to height {height} with rules that it does not know")

    def _check_order(self, node: SimulatedNode, block: Block) -> None:
        for bundle in block.bundles:
            expected = self.sequences.get(bundle.sender, 0) + 1
            self._require(bundle.sequence == expected, 12, node, f"bundle {bundle.sequence} of {bundle.sender}")
            self.sequences[bundle.sender] = expected
            for body in bundle.transactions:
                self.executed.add(body)

    # ---- memory: 15

    def _check_memory(self, node: SimulatedNode) -> None:
        replica = node.replica
        if replica is None:
            return
        settings: ReplicaSettings = self.world.settings
        later = replica.later_count
        self._require(later <= settings.later_messages_max, 15, node, f"{later} messages kept for the next height")
        views = replica.consensus.book.views()
        window = 2 * 16 + 1
        self._require(len(views) <= window, 15, node, f"statements of {len(views)} views kept")
        self._check_mempool(node, replica, settings.mempool)

    def _check_mempool(self, node: SimulatedNode, replica: Replica, settings: MempoolSettings) -> None:
        """Bounded by age, and by count and bytes of every sender."""
        pool, genesis = replica.mempool, self.world.genesis
        age = pool.age_heights(replica.height)
        self._require(age <= settings.age_heights_max, 15, node, f"a bundle waits here for {age} heights")
        bundles_max = settings.sender_bundles_max * replica.state.node_count
        self._require(len(pool) <= bundles_max, 15, node, f"{len(pool)} bundles wait here")
        share_bytes = max(settings.size_bytes_max // len(genesis.nodes), genesis.parameters.bundle_size_bytes_max)
        size_bytes = pool.size_bytes
        enough = size_bytes <= share_bytes * replica.state.node_count
        self._require(enough, 15, node, f"{size_bytes} bytes of bundles wait here")
