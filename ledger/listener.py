"""What other validators say about the height in progress: checked, counted, passed on, and kept where it must last.

Decides whose fault bad input is and what is evidence (SPEC 4.1, 4.6, 6.1, 6.5); what follows from the statements is
decided in `consensus`.
"""

from collections.abc import Callable

from ledger.block import transaction_root
from ledger.bodies import Bodies
from ledger.collection import VoteCollection
from ledger.consensus import VIEW_WINDOW, Proposal
from ledger.core import CERTIFICATE_TABLE, EVIDENCE_TABLE, Core
from ledger.encoding import integer_key
from ledger.membership import EVIDENCE_HEIGHTS_MAX
from ledger.messages import Committed, ProposalMessage, StatementMessage
from ledger.transactions import EquivocationProven, encode
from ledger.votes import Certificate, Evidence, Kind, Statement

EVIDENCE_MAX = 1024
"""Contradictions kept: the first suspends its signer within a few heights, so that more of it add nothing."""


class Listener:
    """Takes statements, proposals and certificates of the height in progress. `evidence` outlives heights."""

    def __init__(
        self,
        core: Core,
        bodies: Bodies,
        collection: VoteCollection,
        report: Callable[[bytes], bool],
        remember: Callable[[Statement], None],
    ) -> None:
        """`report` submits a transaction under this node's name, or says that it can't be done now; `remember` takes an
        own, forgotten statement."""
        self.evidence: dict[bytes, Evidence] = {}
        self._unreported: set[bytes] = set()
        self._core = core
        self._bodies = bodies
        self._collection = collection
        self._report = report
        self._remember = remember

    def resume(self, key: bytes, evidence: Evidence) -> None:
        """Take back stored evidence, and report it again if the chain still wants it and nothing of ours says so."""
        self.evidence[key] = evidence
        self._unreported.add(key)
        self.report_evidence()

    def report_evidence(self) -> None:
        """Report what could not be reported yet, for want of room or of a name on the chain: with every new height."""
        for key in sorted(self._unreported):
            evidence = self.evidence[key]
            one, body = evidence.one, _transaction(evidence)
            known = self._core.state.equivocation(one.signer, one.height) is not None
            useless = known or one.height + EVIDENCE_HEIGHTS_MAX <= self._core.height
            if useless or self._core.mempool.contains(self._core.node_id, body) or self._report(body):
                self._unreported.discard(key)

    def on_statement(self, peer: str, statement: Statement) -> None:
        """Take a VOTE, FINALIZE or NULLIFY of another validator."""
        core, consensus = self._core, self._core.consensus
        if statement.signer not in consensus.validators.indices:
            core.fault(peer, "a statement of a node that is not a validator")
            return
        if statement.kind is Kind.PROPOSE:
            core.fault(peer, "a PROPOSE without its proposal")
            return
        contradicted = consensus.book.contradiction(statement)
        if contradicted is None and not consensus.admits(statement):
            return
        if not self._is_signed(statement):
            core.fault(peer, "a statement with a wrong signature")
            return
        if contradicted is not None:
            self._keep_evidence(contradicted, statement)
        if consensus.admits(statement):
            if statement.signer == core.node_id:
                self._remember(statement)
            else:
                core.spread_statement(StatementMessage(statement), statement, peer)
            self.count(statement)

    def _is_signed(self, statement: Statement) -> bool:
        core, validators = self._core, self._core.consensus.validators
        public_key = validators.key_of(statement.signer)
        assert public_key is not None, "only members are listened to"
        return statement.is_signed(public_key, core.genesis.digest, validators.digest, core.verifier)

    def count(self, statement: Statement) -> None:
        """Add a verified statement, and keep the certificate that it completes."""
        certificate = self._core.consensus.on_statement(statement)
        if certificate is not None:
            self._keep_certificate(certificate)
            self._collection.on_completed(certificate)

    def _keep_certificate(self, certificate: Certificate) -> None:
        """Make a notarization or nullification durable before anything that rests on it is sent."""
        if certificate.kind is not Kind.FINALIZE:
            key = integer_key(certificate.height, certificate.kind, certificate.view)
            self._core.store_for_height(CERTIFICATE_TABLE, key, certificate.encoded)

    def _keep_evidence(self, one: Statement, other: Statement) -> None:
        """Keep the first contradiction of a signer at each height, and have it recorded on the chain."""
        key = integer_key(one.height) + one.signer.encode()
        if key not in self.evidence and len(self.evidence) < EVIDENCE_MAX:
            evidence = Evidence(one, other, self._core.consensus.validators.digest)
            self.evidence[key] = evidence
            self._core.store(EVIDENCE_TABLE, key, evidence.encoded)
            self._unreported.add(key)
            self.report_evidence()
            kinds = f"{one.kind.name} and {other.kind.name}"
            where = {"height": one.height, "view": one.view}
            self._core.note("error", "equivocation", signer=one.signer, kinds=kinds, **where)

    def on_proposal(self, peer: str, proposal: Proposal, certificates: tuple[Certificate, ...]) -> None:
        """Take a leader's proposal and the certificates that justify it.

        What is passed on are those held here, which are proven: of those that came with it, some may be known already,
        and these are not looked at again.
        """
        core, consensus, statement = self._core, self._core.consensus, proposal.statement
        if abs(statement.view - consensus.view) > VIEW_WINDOW:
            return
        contradicted = consensus.book.contradiction(statement)
        if contradicted is None and statement.view in consensus.proposals:
            return
        if reason := self._proposal_fault(proposal):
            core.fault(peer, reason)
            return
        if contradicted is not None:
            self._keep_evidence(contradicted, statement)
            return
        self.on_certificates(peer, certificates)
        if statement.signer == core.node_id:
            self._remember(statement)
        passed_on = ProposalMessage(proposal, consensus.justification(statement))
        core.spread_statement(passed_on, statement, peer)
        consensus.on_proposal(proposal)
        self._bodies.on_outline(peer, proposal.header, proposal.bundle_digests)

    def _proposal_fault(self, proposal: Proposal) -> str | None:
        if proposal.statement.signer != self._core.consensus.leader(proposal.statement.view):
            return "a proposal that is not its leader's"
        if not self._is_signed(proposal.statement):
            return "a proposal with a wrong signature"
        if transaction_root(proposal.bundle_digests) != proposal.header.transaction_root:
            return "a proposal whose bundles are not its header's"
        return None

    def on_certificates(self, peer: str, certificates: tuple[Certificate, ...]) -> None:
        """Take certificates of this height that are not held yet."""
        core, consensus = self._core, self._core.consensus
        for certificate in certificates:
            known = consensus.is_certified(certificate.kind, certificate.view)
            if certificate.height != consensus.height or known:
                continue
            if not certificate.is_valid(consensus.validators, core.genesis.digest, core.verifier):
                core.fault(peer, "an invalid certificate")
                return
            self._compare(certificate)
            consensus.on_certificate(certificate)
            self._keep_certificate(certificate)
            self._collection.on_told(certificate, peer)

    def _compare(self, certificate: Certificate) -> None:
        """Who said one thing to whoever made a certificate, and another here, contradicted himself."""
        consensus = self._core.consensus
        for statement in certificate.statements(consensus.validators):
            contradicted = consensus.book.contradiction(statement)
            if contradicted is not None:
                self._keep_evidence(contradicted, statement)

    def on_committed(self, peer: str, committed: Committed) -> None:
        """Take what the others decided: one certificate in place of all the statements that led to it (6.6)."""
        consensus, block = self._core.consensus, committed.header.digest
        if consensus.commit is not None and block in consensus.bodies:
            return
        if transaction_root(committed.bundle_digests) != committed.header.transaction_root:
            self._core.fault(peer, "a decision whose bundles are not its header's")
            return
        self.on_certificates(peer, (committed.certificate,))
        if consensus.commit is not None and consensus.commit.block == block:
            self._bodies.on_outline(peer, committed.header, committed.bundle_digests)


def _transaction(evidence: Evidence) -> bytes:
    return encode(EquivocationProven(evidence.one.encoded, evidence.other.encoded, evidence.validators_digest))
