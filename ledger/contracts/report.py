"""What the chain's contracts say now, as JSON-ready documents for operators; decides nothing."""

from typing import Any

from ledger.contracts.actions import action_document
from ledger.contracts.entries import Proposal, Revocation
from ledger.contracts.governance import electorate
from ledger.contracts.routes import suspended_links
from ledger.contracts.selection import policies
from ledger.state import State


def governance_document(state: State) -> dict[str, Any]:
    """Return who decides, every proposal in the state, and every revocation."""
    deciding = electorate(state)
    return {
        "height": state.height,
        "electorate": list(deciding.node_ids),
        "quorum": deciding.quorum,
        "proposals": [_proposal(each) for each in sorted(state.entries(Proposal), key=_age)],
        "policies": [
            {"name": each.name, "height": each.height, "policy": each.document.described()} for each in policies(state)
        ],
        "suspended_links": suspended_links(state),
        "revocations": [_revocation(each) for each in state.entries(Revocation)],
    }


def _age(proposal: Proposal) -> tuple[int, bytes]:
    return proposal.proposed_height, proposal.proposal_id


def _proposal(proposal: Proposal) -> dict[str, Any]:
    return {
        "proposal": proposal.proposal_id.hex(),
        "proposer": proposal.proposer,
        **action_document(proposal.action),
        "proposed_height": proposal.proposed_height,
        "expiry_height": proposal.expiry_height,
        "approvals": list(proposal.approvals),
        "status": proposal.status,
        "decided_height": proposal.decided_height,
        "refusal": proposal.reason,
    }


def _revocation(revocation: Revocation) -> dict[str, Any]:
    subject = [each.hex() if isinstance(each, bytes) else each for each in revocation.subject]
    return {
        "subject": subject,
        "height": revocation.height,
        "reason": revocation.reason,
        "by": revocation.decided_by,
    }
