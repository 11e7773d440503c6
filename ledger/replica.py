"""The ledger of one node: a deterministic core that takes inputs and returns outputs (SPEC, all parts).

Joins mempool, consensus, chain and gossip. Does no input or output of its own: time comes in as `now_ns` (monotonic;
plus `wall_offset_ns` it is the wall clock that proposers stamp blocks with), what must survive goes out as `Store`.
`step` never raises for a peer's fault; it raises only for a bug of ours.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger.block import Block, Header, MalformedBlock, transaction_root
from ledger.bundle import Bundle, MalformedBundle, make_bundle
from ledger.chain import BLOCK_TABLE, Archive, Chain
from ledger.consensus import (
    VIEW_WINDOW,
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
from ledger.encoding import MalformedEncoding, integer_key
from ledger.execution import Rules
from ledger.genesis import Genesis
from ledger.gossip import Overlay
from ledger.guard import Guard, Record
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
from ledger.mempool import Mempool, MempoolSettings
from ledger.messages import (
    CERTIFICATES_MAX,
    DIGESTS_WANTED_MAX,
    MESSAGE_SIZE_BYTES_MAX,
    BlocksMessage,
    BlocksWanted,
    BodyMessage,
    BodyWanted,
    BundleMessage,
    BundlesWanted,
    CertificatesMessage,
    Message,
    ProposalMessage,
    StatementMessage,
    Status,
    decode,
    encode,
)
from ledger.outputs import (
    BlockCommitted,
    Erase,
    Noted,
    Output,
    PeerFaulted,
    SendMessage,
    Store,
    TransactionsAdmitted,
    TransactionsRefused,
)
from ledger.signatures import Signer, Verifier
from ledger.state import State
from ledger.submissions import Submissions
from ledger.sync import CatchUp, gap_of, make_status
from ledger.transactions import MalformedTransaction
from ledger.transactions import decode as decode_transaction
from ledger.transactions import encode as encode_transaction
from ledger.votes import FRESH, Certificate, Kind, Statement, decode_pair, encode_pair

MS = 1_000_000
SIGNER_TABLE = "ledger.signer"
STATEMENT_TABLE = "ledger.statement"
CERTIFICATE_TABLE = "ledger.certificate"
BODY_TABLE = "ledger.body"
PENDING_TABLE = "ledger.pending"
EVIDENCE_TABLE = "ledger.evidence"
TABLES = (
    BLOCK_TABLE,
    SIGNER_TABLE,
    STATEMENT_TABLE,
    CERTIFICATE_TABLE,
    BODY_TABLE,
    PENDING_TABLE,
    EVIDENCE_TABLE,
)
_RECORD_KEY = b"record"


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
    later_messages_max: int = 4096
    """Messages kept for the next height; more are dropped and come again by anti-entropy."""
    later_size_bytes_max: int = 8_388_608
    """The same in bytes."""
    mempool: MempoolSettings = field(default_factory=MempoolSettings)


class Replica:
    """See the module. `stored` maps each of `TABLES` to what earlier lives stored in it, in key order.

    `archive` reads old blocks back on demand; without it all blocks stay in memory. `wall_offset_ns` may be set again
    at any time when the clocks drift apart.
    """

    def __init__(
        self,
        *,
        genesis: Genesis,
        node_id: str,
        signer: Signer,
        verifier: Verifier,
        settings: ReplicaSettings | None = None,
        jitter: random.Random,
        stored: Mapping[str, Sequence[tuple[bytes, bytes]]],
        wall_offset_ns: int = 0,
        archive: Archive | None = None,
    ) -> None:
        self.genesis = genesis
        self.node_id = node_id
        self.wall_offset_ns = wall_offset_ns
        self._settings = settings or ReplicaSettings()
        self._signer = signer
        self._verifier = verifier
        self._jitter = jitter
        self._limits = genesis.parameters
        self._node_index = {node.node_id: i for i, node in enumerate(genesis.nodes)}
        self.chain = Chain(genesis, Rules.of(genesis, verifier), archive)
        own = self.state.node(node_id)
        if own is None or own.public_key != signer.public_key:
            raise ValueError(f"{node_id} with this key is not in the genesis; use the identity that `qnode init` made")
        self.mempool = Mempool(self._settings.mempool, self._limits, len(genesis.nodes))
        self.overlay = Overlay(node_id, [node.node_id for node in genesis.nodes])
        self.evidence: dict[bytes, tuple[Statement, Statement]] = {}
        self._submissions = Submissions(self._limits, self._settings.bundle_interval_ns)
        self._catch_up = CatchUp(self._settings.catch_up_timeout_ns)
        self._outputs: list[Output] = []
        self._now_ns = 0
        self._status_deadline_ns: int | None = None
        self._status_answered_ns: dict[str, int] = {}
        self._smoothed_height_ns = 0
        self._work_since_ns: int | None = None
        self._clock_noted_height = 0
        self._later: dict[bytes, tuple[str, Message]] = {}
        self._later_size_bytes = 0
        self._forget_height()
        self._resume(stored)

    # ---- what the driver uses

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

    def step(self, now_ns: int, input: Input) -> list[Output]:
        """Take one input at monotonic time `now_ns` and return what to do. Synchronous."""
        self._now_ns = max(self._now_ns, now_ns)
        match input:
            case MessageReceived(peer, payload):
                self._on_payload(peer, payload)
            case TransactionsSubmitted(token, transactions):
                self._submit(token, tuple(encode_transaction(each) for each in transactions))
            case EncodedTransactionsSubmitted(token, bodies):
                self._submit_encoded(token, bodies)
            case PeerUp(peer):
                self.overlay.connect(peer)
                self._send(peer, self._status(), urgent=True, after_sync=True)
                self._offer_own(peer)
            case PeerDown(peer):
                self.overlay.disconnect(peer)
                self._catch_up.forget(peer)
                self._status_answered_ns.pop(peer, None)
                self.consensus.hurry(self._now_ns)
            case Started():
                self.consensus.started_ns = self._now_ns
                self._status_deadline_ns = self._now_ns
            case TimePassed():
                pass
        self._pump()
        outputs, self._outputs = self._outputs, []
        return outputs

    def next_deadline_ns(self) -> int | None:
        """Return when `step` wants to be called with `TimePassed` at the latest."""
        deadlines = (
            self.consensus.next_deadline_ns(),
            self._status_deadline_ns,
            self._catch_up.deadline_ns(),
            self._submissions.deadline_ns(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def status(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
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
            "peers": self.overlay.peers,
            "mempool_bundles": len(self.mempool),
            "mempool_transactions": self.mempool.transaction_count,
            "mempool_size_bytes": self.mempool.size_bytes,
            "behind": self._catch_up.is_behind(self.height),
            "evidence": len(self.evidence),
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
        self.chain.replay(stored.get(BLOCK_TABLE, ()))
        rows = dict(stored.get(SIGNER_TABLE, ()))
        record = Record.decode(rows[_RECORD_KEY]) if _RECORD_KEY in rows else Record()
        self._guard = Guard(self._signer, self.node_id, self.genesis.digest, record)
        committed = self._committed_sequence(self.node_id)
        for _, value in stored.get(PENDING_TABLE, ()):
            bundle = Bundle.decode(value, self._limits)
            if bundle.sequence > committed:
                self._submissions.pending[bundle.sequence] = bundle
                self.mempool.add(bundle, committed)
        for key, value in stored.get(EVIDENCE_TABLE, ()):
            one, other = decode_pair(value)
            self.evidence[key] = (one, other)
        self.consensus = self._new_consensus()
        self._resume_height(stored)

    def _resume_height(self, stored: Mapping[str, Sequence[tuple[bytes, bytes]]]) -> None:
        """Restore what was said and held for the height after the tip."""
        for key, value in stored.get(BODY_TABLE, ()):
            block = Block.decode(value, self._limits)
            self._height_keys.append((BODY_TABLE, key))
            if block.height == self.height + 1:
                self.consensus.on_body(block)
                self._stored_bodies.add(block.digest)
        for key, value in stored.get(CERTIFICATE_TABLE, ()):
            certificate = Certificate.decode(value)
            self._height_keys.append((CERTIFICATE_TABLE, key))
            if certificate.height == self.height + 1:
                self.consensus.on_certificate(certificate)
        for key, value in stored.get(STATEMENT_TABLE, ()):
            statement = Statement.decode(value)
            self._height_keys.append((STATEMENT_TABLE, key))
            if statement.height == self.height + 1:
                self._restore_statement(statement)

    def _restore_statement(self, statement: Statement) -> None:
        self.consensus.restore(statement)
        block = self.consensus.bodies.get(statement.block)
        if statement.kind is Kind.PROPOSE and block is not None:
            digests = tuple(bundle.digest for bundle in block.bundles)
            self.consensus.on_proposal(Proposal(statement, block.header, digests))

    def _new_consensus(self) -> Consensus:
        settings = self._settings
        adapted_ns = min(4 * self._smoothed_height_ns, settings.view_timeout_max_ns)
        timeout_ns = max(settings.view_timeout_min_ns, adapted_ns)
        return Consensus(
            height=self.height + 1,
            node_id=self.node_id,
            validators=self.state.validators(),
            timing=Timing(
                view_timeout_ns=timeout_ns,
                finalize_timeout_ns=max(settings.finalize_timeout_ns, timeout_ns // 2),
                heartbeat_ns=settings.heartbeat_ns,
                lost_leader_timeout_ns=settings.lost_leader_timeout_ns,
            ),
            now_ns=self._now_ns,
            block_fault=self._block_fault,
            is_lost=self.overlay.is_lost,
        )

    def _forget_height(self) -> None:
        self._height_keys: list[tuple[str, bytes]] = []
        self._stored_bodies: set[bytes] = set()
        self._fetched_bundles: dict[bytes, Bundle] = {}
        self._wanted: set[bytes] = set()
        self._proposal_from: dict[bytes, str] = {}

    # ---- sending

    def _send(self, peer: str, message: Message, *, urgent: bool, after_sync: bool) -> None:
        self._outputs.append(SendMessage(peer, encode(message), urgent, after_sync))

    def _spread(self, message: Message, origin: str, received_from: str | None, *, urgent: bool) -> None:
        """Send an own message to all neighbours, or pass another's on; only own ones wait for the disk."""
        targets = self.overlay.targets(origin, received_from)
        if targets:
            payload = encode(message)
            after_sync = received_from is None
            self._outputs += [SendMessage(peer, payload, urgent, after_sync) for peer in targets]

    def _note(self, level: str, event: str, **fields: Any) -> None:
        self._outputs.append(Noted(level, event, tuple(fields.items())))

    def _fault(self, peer: str, reason: str) -> None:
        self._outputs.append(PeerFaulted(peer, reason))

    def _store(self, table: str, key: bytes, value: bytes) -> None:
        self._outputs.append(Store(table, key, value))

    def _store_for_height(self, table: str, key: bytes, value: bytes) -> None:
        self._height_keys.append((table, key))
        self._store(table, key, value)

    # ---- receiving

    def _on_payload(self, peer: str, payload: bytes) -> None:
        if not self.overlay.is_up(peer):
            self.overlay.connect(peer)
        try:
            self._on_message(peer, decode(payload), len(payload))
        except (MalformedEncoding, MalformedBundle, MalformedBlock) as error:
            self._fault(peer, f"malformed message: {error}")

    def _on_message(self, peer: str, message: Message, size_bytes: int) -> None:
        match message:
            case StatementMessage(statement):
                if self._is_current(peer, message, statement.height, size_bytes, statement.encoded):
                    self._on_statement(peer, statement)
            case ProposalMessage(proposal, certificates):
                statement = proposal.statement
                if self._is_current(peer, message, statement.height, size_bytes, statement.encoded):
                    self._on_proposal(peer, proposal, certificates)
            case BundleMessage(bundle):
                self._on_bundle(peer, bundle)
            case CertificatesMessage(certificates):
                self._on_certificates(peer, certificates)
            case Status():
                self._on_status(peer, message)
            case BundlesWanted(digests):
                self._answer_bundles(peer, digests)
            case BodyWanted(height, block):
                self._answer_body(peer, height, block)
            case BodyMessage(block):
                self._on_body(peer, block)
            case BlocksWanted(first_height):
                self._answer_blocks(peer, first_height)
            case BlocksMessage(blocks):
                self._on_blocks(peer, blocks)

    def _is_current(self, peer: str, message: Message, height: int, size_bytes: int, name: bytes) -> bool:
        """Say whether a message is of the height in progress; keep it if it is of the next, learn if further."""
        if height == self.height + 1:
            return True
        if height == self.height + 2:
            fits = self._later_size_bytes + size_bytes <= self._settings.later_size_bytes_max
            if fits and len(self._later) < self._settings.later_messages_max and name not in self._later:
                self._later[name] = (peer, message)
                self._later_size_bytes += size_bytes
        if height > self.height + 2:
            self._catch_up.learn(peer, height - 2)
        return False

    def _on_statement(self, peer: str, statement: Statement) -> None:
        consensus = self.consensus
        validators = consensus.validators
        if statement.signer not in validators.node_ids:
            self._fault(peer, "a statement of a node that is not a validator")
            return
        if statement.kind is Kind.PROPOSE:
            self._fault(peer, "a PROPOSE without its proposal")
            return
        contradicted = consensus.book.contradiction(statement)
        if contradicted is None and not consensus.admits(statement):
            return
        if not self._is_signed(statement):
            self._fault(peer, "a statement with a wrong signature")
            return
        if contradicted is not None:
            self._keep_evidence(contradicted, statement)
        if consensus.admits(statement):
            self._spread(StatementMessage(statement), statement.signer, peer, urgent=True)
            self._count(statement)

    def _is_signed(self, statement: Statement) -> bool:
        validators = self.consensus.validators
        public_key = validators.public_keys[validators.node_ids.index(statement.signer)]
        return statement.is_signed(public_key, self.genesis.digest, validators.digest, self._verifier)

    def _count(self, statement: Statement) -> None:
        certificate = self.consensus.on_statement(statement)
        if certificate is not None:
            self._keep_certificate(certificate)

    def _keep_certificate(self, certificate: Certificate) -> None:
        """Make a notarization or nullification durable before anything that rests on it is sent."""
        if certificate.kind is not Kind.FINALIZE:
            key = integer_key(certificate.height, certificate.kind, certificate.view)
            self._store_for_height(CERTIFICATE_TABLE, key, certificate.encoded)

    def _keep_evidence(self, one: Statement, other: Statement) -> None:
        """Keep the first contradiction of a signer at each height; an operator (later the chain) acts on it."""
        key = integer_key(one.height) + one.signer.encode()
        if key not in self.evidence:
            self.evidence[key] = (one, other)
            self._store(EVIDENCE_TABLE, key, encode_pair(one, other))
            kinds = f"{one.kind.name} and {other.kind.name}"
            self._note("error", "equivocation", signer=one.signer, height=one.height, view=one.view, kinds=kinds)

    def _on_proposal(self, peer: str, proposal: Proposal, certificates: tuple[Certificate, ...]) -> None:
        consensus, statement = self.consensus, proposal.statement
        if abs(statement.view - consensus.view) > VIEW_WINDOW:
            return
        if statement.signer != consensus.leader(statement.view):
            self._fault(peer, "a proposal that is not its leader's")
            return
        contradicted = consensus.book.contradiction(statement)
        if contradicted is None and statement.view in consensus.proposals:
            return
        if not self._is_signed(statement):
            self._fault(peer, "a proposal with a wrong signature")
            return
        if contradicted is not None:
            self._keep_evidence(contradicted, statement)
            return
        if transaction_root(proposal.bundle_digests) != proposal.header.transaction_root:
            self._fault(peer, "a proposal whose bundles are not its header's")
            return
        self._on_certificates(peer, certificates)
        self._proposal_from.setdefault(statement.block, peer)
        self._spread(ProposalMessage(proposal, certificates), statement.signer, peer, urgent=True)
        consensus.on_proposal(proposal)
        self._assemble(proposal)

    def _on_certificates(self, peer: str, certificates: tuple[Certificate, ...]) -> None:
        for certificate in certificates:
            consensus = self.consensus
            if certificate.height != consensus.height or consensus.is_certified(certificate.kind, certificate.view):
                continue
            if not certificate.is_valid(consensus.validators, self.genesis.digest, self._verifier):
                self._fault(peer, "an invalid certificate")
                return
            consensus.on_certificate(certificate)
            self._keep_certificate(certificate)

    # ---- bundles and bodies

    def _committed_sequence(self, sender: str) -> int:
        node = self.state.node(sender)
        return 0 if node is None else node.sequence

    def _on_bundle(self, peer: str, encoded: bytes) -> None:
        bundle = Bundle.parse(encoded, self._limits)
        sender = self.state.node(bundle.sender)
        if sender is None:
            self._fault(peer, "a bundle of a node that is not of this chain")
            return
        wanted = bundle.digest in self._wanted
        refusal = self.mempool.refusal(bundle.sender, bundle.sequence, bundle.size_bytes, sender.sequence)
        if refusal is not None and not wanted:
            return
        bundle.check_contents(self._limits)
        if not bundle.is_signed_by(sender.public_key, self.genesis.chain_id, self.genesis.digest, self._verifier):
            self._fault(peer, "a bundle with a wrong signature")
            return
        if refusal is None:
            self.mempool.add(bundle, sender.sequence)
            self._spread(BundleMessage(encoded), bundle.sender, peer, urgent=False)
        if wanted:
            self._fetched_bundles[bundle.digest] = bundle
            self._wanted.discard(bundle.digest)
            for proposal in list(self.consensus.proposals.values()):
                self._assemble(proposal)

    def _bundle(self, digest: bytes) -> Bundle | None:
        return self.mempool.get(digest) or self._fetched_bundles.get(digest)

    def _assemble(self, proposal: Proposal) -> bool:
        """Make the block of a proposal from the bundles at hand; False while some are missing."""
        if proposal.statement.block in self.consensus.bodies:
            return True
        bundles = [self._bundle(digest) for digest in proposal.bundle_digests]
        complete = tuple(bundle for bundle in bundles if bundle is not None)
        if len(complete) < len(bundles):
            return False
        self.consensus.on_body(Block(proposal.header, complete))
        return True

    def _fetch(self, block: bytes) -> None:
        """Ask for what a needed block lacks: single bundles if a proposal names them, else the whole body."""
        proposal = next((p for p in self.consensus.proposals.values() if p.statement.block == block), None)
        if proposal is None:
            for peer in self._some_peers():
                self._send(peer, BodyWanted(self.height + 1, block), urgent=True, after_sync=False)
            return
        if self._assemble(proposal):
            return
        missing = [digest for digest in proposal.bundle_digests if self._bundle(digest) is None]
        again = bool(self._wanted.intersection(missing))
        self._wanted.update(missing)
        source = self._proposal_from.get(block)
        peers = self._some_peers() if again or source is None or not self.overlay.is_up(source) else [source]
        for peer in peers:
            self._send(peer, BundlesWanted(tuple(missing[:DIGESTS_WANTED_MAX])), urgent=True, after_sync=False)

    def _answer_bundles(self, peer: str, digests: tuple[bytes, ...]) -> None:
        budget_bytes = MESSAGE_SIZE_BYTES_MAX
        for digest in dict.fromkeys(digests):
            bundle = self._bundle(digest)
            if bundle is not None and bundle.size_bytes <= budget_bytes:
                budget_bytes -= bundle.size_bytes
                self._send(peer, BundleMessage(bundle.encoded), urgent=False, after_sync=False)

    def _answer_body(self, peer: str, height: int, block: bytes) -> None:
        body = self.consensus.bodies.get(block)
        if body is not None:
            self._send(peer, BodyMessage(body.encoded), urgent=False, after_sync=False)
        elif 1 <= height <= self.height:
            self._answer_blocks(peer, height)

    def _on_body(self, peer: str, encoded: bytes) -> None:
        """Take a whole block if it is the body of a known certificate or proposal of this height."""
        block = Block.decode(encoded, self._limits)
        consensus = self.consensus
        certified = [c.block for c in consensus.notarizations.values()]
        certified += [] if consensus.commit is None else [consensus.commit.block]
        if block.digest in consensus.bodies or block.digest not in certified:
            return
        for bundle in block.bundles:
            sender = self.state.node(bundle.sender)
            if sender is None or not bundle.is_signed_by(
                sender.public_key, self.genesis.chain_id, self.genesis.digest, self._verifier
            ):
                self._fault(peer, "a block body with a wrongly signed bundle")
                return
        consensus.on_body(block)

    def _block_fault(self, block: Block, fresh: bool) -> str | None:
        """Rule 3. The smallest possible step of time passes any clock: after clocks were set back the chain goes on."""
        fault = self.chain.block_fault(block)
        if fault is None and fresh and block.header.time_ns != self.chain.tip_time_ns + 1:
            distance_ns = block.header.time_ns - self._wall_ns
            if abs(distance_ns) > self._settings.clock_window_ns:
                fault = f"the block's time is {distance_ns / 1e9:+.1f} s from this node's clock"
        return fault

    @property
    def _wall_ns(self) -> int:
        return self._now_ns + self.wall_offset_ns

    # ---- own transactions

    def _submit_encoded(self, token: int, bodies: tuple[bytes, ...]) -> None:
        try:
            for body in bodies:
                decode_transaction(body)
        except MalformedTransaction as error:
            self._outputs.append(TransactionsRefused(token, f"malformed transaction: {error}"))
            return
        self._submit(token, bodies)

    def _submit(self, token: int, bodies: tuple[bytes, ...]) -> None:
        if reason := self._submission_fault(bodies):
            self._outputs.append(TransactionsRefused(token, reason))
            return
        self._submissions.enqueue(token, bodies)

    def _submission_fault(self, bodies: tuple[bytes, ...]) -> str | None:
        if not bodies:
            return "no transactions; submit at least one"
        size_max = self._limits.transaction_size_bytes_max
        if any(len(body) > size_max for body in bodies):
            return f"a transaction has at most {size_max} bytes; split it"
        queued_bytes = self._submissions.queued_size_bytes + sum(len(body) + 5 for body in bodies) + 512
        ahead = (self._submissions.queued_count + len(bodies)) // self._limits.bundle_transactions_max
        sequence = self._next_sequence() + ahead
        return self.mempool.refusal(self.node_id, sequence, queued_bytes, self._committed_sequence(self.node_id))

    def _next_sequence(self) -> int:
        pending = self._submissions.pending
        return max(next(reversed(pending), 0), self._committed_sequence(self.node_id)) + 1

    def _flush_submissions(self) -> None:
        while (batch := self._submissions.take(self._now_ns)) is not None:
            name = (self.genesis.chain_id, self.genesis.digest, self.node_id, self._next_sequence())
            bundle = make_bundle(self._signer, *name, batch.transactions)
            self._submissions.pending[bundle.sequence] = bundle
            self._store(PENDING_TABLE, integer_key(bundle.sequence), bundle.encoded)
            self.mempool.add(bundle, self._committed_sequence(self.node_id))
            self._spread(BundleMessage(bundle.encoded), self.node_id, None, urgent=False)
            self._outputs += [TransactionsAdmitted(token) for token in batch.tokens]

    def _offer_own(self, peer: str) -> None:
        """Send a new neighbour what of ours waits for a block."""
        budget_bytes = self._settings.gap_size_bytes_max
        for bundle in self._submissions.pending.values():
            budget_bytes -= bundle.size_bytes
            if budget_bytes < 0:
                return
            self._send(peer, BundleMessage(bundle.encoded), urgent=False, after_sync=True)

    # ---- consensus

    def _pump(self) -> None:
        """Do everything that is due now."""
        self._flush_submissions()
        self._tick()
        while True:
            self.consensus.work_waiting = self.mempool.has_work(self.state)
            if self.consensus.work_waiting and self._work_since_ns is None:
                self._work_since_ns = self._now_ns
            action = self.consensus.next_action(self._now_ns)
            if action is None:
                break
            self._perform(action)
        self._ask_for_blocks()

    def _perform(self, action: Action) -> None:
        match action:
            case Say(kind, view, block, justified):
                self._say(kind, view, block, justified)
            case Propose(view, block, justified):
                self._propose(view, block, justified)
            case FetchBody(block):
                self._fetch(block)
            case PullStatus():
                for peer in self._some_peers():
                    self._send(peer, self._status(), urgent=True, after_sync=True)
            case RefuseBlock(view, reason):
                self._note("warning", "block_refused", height=self.height + 1, view=view, reason=reason)
            case Commit(block, certificate):
                self._commit(block, certificate)

    def _sign(self, kind: Kind, view: int, block: bytes, justified: int) -> Statement | None:
        """Sign through the guard and store record and statement; None if an earlier life said more than it stored."""
        height = self.height + 1
        if not self._guard.allows(kind, height, view):
            self._note("warning", "signing_refused", kind=kind.name, height=height, view=view)
            return None
        statement = self._guard.sign(kind, height, view, block, justified, self.consensus.validators.digest)
        self._store(SIGNER_TABLE, _RECORD_KEY, self._guard.record.encoded())
        self._store_for_height(STATEMENT_TABLE, integer_key(height, view, kind), statement.encoded)
        return statement

    def _say(self, kind: Kind, view: int, block: bytes, justified: int) -> None:
        statement = self._sign(kind, view, block, justified)
        if statement is None:
            return
        if kind is Kind.VOTE:
            self._store_body(self.consensus.bodies[block])
        self._spread(StatementMessage(statement), self.node_id, None, urgent=True)
        self._count(statement)

    def _store_body(self, block: Block) -> None:
        if block.digest not in self._stored_bodies:
            self._stored_bodies.add(block.digest)
            self._store_for_height(BODY_TABLE, integer_key(block.height) + block.digest, block.encoded)

    def _propose(self, view: int, block: Block | None, justified: int) -> None:
        block = block or self._fresh_block()
        statement = self._sign(Kind.PROPOSE, view, block.digest, justified)
        if statement is None:
            return
        self._store_body(block)
        proposal = Proposal(statement, block.header, tuple(bundle.digest for bundle in block.bundles))
        self.consensus.on_body(block)
        self.consensus.on_proposal(proposal)
        self._spread(ProposalMessage(proposal, self._justification(proposal)), self.node_id, None, urgent=True)

    def _justification(self, proposal: Proposal) -> tuple[Certificate, ...]:
        """Return N(pv) and the newest of the X between; a longer row of views travels by anti-entropy."""
        statement, consensus = proposal.statement, self.consensus
        views = range(statement.view - 1, statement.justified, -1)
        needed = [consensus.nullifications[view] for view in views if view in consensus.nullifications]
        if statement.justified != FRESH and statement.justified in consensus.notarizations:
            needed.insert(0, consensus.notarizations[statement.justified])
        return tuple(needed[:CERTIFICATES_MAX])

    def _fresh_block(self) -> Block:
        bundles = self.mempool.select(self.state)
        header = Header(
            genesis_digest=self.genesis.digest,
            height=self.height + 1,
            previous=self.tip,
            state_root=self.state.root,
            validators_digest=self.consensus.validators.digest,
            transaction_root=transaction_root([bundle.digest for bundle in bundles]),
            time_ns=max(self._wall_ns, self.chain.tip_time_ns + 1),
        )
        return Block(header, bundles)

    def _commit(self, block: Block, certificate: Certificate) -> None:
        """Rule 7: execute, store block, certificate and receipts in one atomic write, go to the next height."""
        assert self.chain.block_fault(block) is None, "a quorum committed a block that this node finds invalid"
        receipts, row = self.chain.append(block, certificate)
        self._store(BLOCK_TABLE, integer_key(block.height), row)
        self._outputs += [Erase(table, key) for table, key in self._height_keys]
        for bundle in block.bundles:
            self.mempool.forget(bundle.sender, bundle.sequence)
            if bundle.sender == self.node_id and self._submissions.settle(bundle):
                self._outputs.append(Erase(PENDING_TABLE, integer_key(bundle.sequence)))
        self._outputs.append(BlockCommitted(block.height, block, certificate, tuple(receipts)))
        self._watch_clock(block)
        self._adapt(block)
        self._forget_height()
        self.consensus = self._new_consensus()
        self._flush_submissions()
        self._take_later()

    def _adapt(self, block: Block) -> None:
        """Smooth the time that heights take while there is work, for the view timers."""
        if self._work_since_ns is not None and block.bundles:
            took_ns = self._now_ns - self._work_since_ns
            self._smoothed_height_ns += (took_ns - self._smoothed_height_ns) // 8
        self._work_since_ns = None

    def _watch_clock(self, block: Block) -> None:
        """Tell the operator when a quorum's time is far from this node's: its votes are missing then."""
        distance_ns = block.header.time_ns - self._wall_ns
        late = self._catch_up.is_behind(block.height)
        if late or abs(distance_ns) <= self._settings.clock_window_ns or block.height < self._clock_noted_height:
            return
        self._clock_noted_height = block.height + 100  # one line per hundred blocks is enough
        text = "this node's clock is far from that of the quorum; set it (for example with NTP)"
        self._note("error", "clock_off", block_time_ahead_s=distance_ns / 1e9, what_to_do=text)

    def _take_later(self) -> None:
        later, self._later, self._later_size_bytes = self._later, {}, 0
        for peer, message in later.values():
            self._on_message(peer, message, 0)

    # ---- anti-entropy and catch-up

    def _status(self) -> Status:
        bitmap = self.overlay.neighbours_bitmap()
        return make_status(self.consensus, self.mempool, self.state, self._node_index, bitmap)

    def _some_peers(self) -> list[str]:
        peers = self.overlay.peers
        count = min(len(peers), self._settings.anti_entropy_peers_max)
        return self._jitter.sample(peers, count)

    def _tick(self) -> None:
        """Rule 8: announce what is held, and let unanswered questions be asked again."""
        if self._status_deadline_ns is None or self._now_ns < self._status_deadline_ns:
            return
        self._status_deadline_ns = self._now_ns + int(self._settings.anti_entropy_ns * self._jitter.uniform(0.75, 1.25))
        self.consensus.forget_fetches()
        message = self._status()
        for peer in self._some_peers():
            self._send(peer, message, urgent=True, after_sync=True)

    def _on_status(self, peer: str, status: Status) -> None:
        self.overlay.learn(peer, status.neighbours)
        self._catch_up.learn(peer, status.height)
        if status.height == self.height:
            self._push_gap(peer, status)
        if abs(status.height - self.height) <= 1:
            self._push_bundles(peer, status)
        if status.height < self.height:
            answered_ns = self._status_answered_ns.get(peer)
            if answered_ns is None or self._now_ns - answered_ns >= self._settings.anti_entropy_ns // 4:
                self._status_answered_ns[peer] = self._now_ns
                self._send(peer, self._status(), urgent=True, after_sync=True)

    def _push_gap(self, peer: str, status: Status) -> None:
        gap = gap_of(self.consensus, status)
        if gap.certificates:
            self._send(peer, CertificatesMessage(gap.certificates), urgent=True, after_sync=True)
        for view in gap.proposed_views:
            proposal = self.consensus.proposals[view]
            message = ProposalMessage(proposal, self._justification(proposal))
            self._send(peer, message, urgent=True, after_sync=True)
        for statement in gap.statements:
            self._send(peer, StatementMessage(statement), urgent=True, after_sync=True)

    def _push_bundles(self, peer: str, status: Status) -> None:
        budget_bytes = self._settings.gap_size_bytes_max
        theirs = dict(status.pending)
        for sender in self.mempool.senders():
            committed = self._committed_sequence(sender)
            sequence = max(theirs.get(self._node_index.get(sender, -1), committed), committed) + 1
            while (bundle := self.mempool.held(sender, sequence)) is not None and sender != peer:
                budget_bytes -= bundle.size_bytes
                if budget_bytes < 0:
                    return
                self._send(peer, BundleMessage(bundle.encoded), urgent=False, after_sync=True)
                sequence += 1

    def _ask_for_blocks(self) -> None:
        peer = self._catch_up.ask(self.height, self._now_ns)
        if peer is not None:
            self._send(peer, BlocksWanted(self.height + 1), urgent=False, after_sync=False)

    def _answer_blocks(self, peer: str, first_height: int) -> None:
        blocks: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        height = first_height
        while (stored := self.chain.stored_block(height)) is not None:
            size_bytes += len(stored.block) + len(stored.certificate)
            if blocks and size_bytes > self._settings.answer_size_bytes_max:
                break
            blocks.append((stored.block, stored.certificate))
            height += 1
        self._send(peer, BlocksMessage(tuple(blocks)), urgent=False, after_sync=True)

    def _on_blocks(self, peer: str, blocks: tuple[tuple[bytes, bytes], ...]) -> None:
        """Append what follows the tip; every block must carry a valid commit certificate."""
        before = self.height
        if self._catch_up.is_asked(peer):
            self._catch_up.answered()
        for encoded, certificate_bytes in blocks:
            block, certificate = Block.decode(encoded, self._limits), Certificate.decode(certificate_bytes)
            if block.height <= self.height:
                continue
            fault = self.chain.certificate_fault(block, certificate) or self.chain.block_fault(block)
            if fault is not None:
                self._fault(peer, f"a committed block that is none: {fault}")
                self._catch_up.forget(peer)
                return
            self._commit(block, certificate)
        if self.height == before:
            self._catch_up.forget(peer)
