"""How validators decide: they propose, approve, withdraw, and a quorum of them executes (S0-B3, SPEC 9.1).

The electorate is every registered validator that is not suspended, not a height's committee alone: decisions bind all.
Approvals are counted when one is executed, against the validators of that moment.
"""

from dataclasses import dataclass, replace
from typing import Final

from ledger.contracts.actions import ACTION_SIZE_BYTES_MAX, MalformedAction, decode_action
from ledger.contracts.entries import EXECUTED, EXPIRED, FAILED, OPEN, WITHDRAWN, Proposal
from ledger.state import State
from ledger.transactions import GovernanceApproved, GovernanceProposed, GovernanceWithdrawn

OPEN_PER_PROPOSER_MAX: Final = 8
"""Bounds the open proposals by the number of validators, so that none can keep another from proposing."""
LIFETIME_HEIGHTS_MAX: Final = 1_000_000
"""Hours at full speed, two months at one heartbeat block in five seconds: nobody approves what is older."""
RESULTS_KEPT: Final = 256
"""Decided proposals in the state; older ones remain in the blocks, where their transactions are."""
REASON_LENGTH_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Electorate:
    """Who decides now, in the order of registration."""

    node_ids: tuple[str, ...]

    @property
    def quorum(self) -> int:
        """Approvals that decide: n − ⌊(n−1)/3⌋."""
        return len(self.node_ids) - (len(self.node_ids) - 1) // 3


def electorate(state: State) -> Electorate:
    """Return who decides in this state."""
    return Electorate(tuple(node.node_id for node in state.nodes() if node.may_vote))


def propose(state: State, sender: str, record: GovernanceProposed, proposal_id: bytes) -> str | None:
    """Execute a proposal; the proposer approves with it. Returns the refusal, or None."""
    if record.proposer != sender:
        return f"governance.proposer: {record.proposer} is not the sender {sender}"
    if sender not in electorate(state).node_ids:
        return f"governance.validator: {sender} is not a validator that may decide"
    if state.entry(Proposal, proposal_id) is not None:
        return "governance.known: this was proposed before; to propose it again choose another expiry height"
    if not state.height <= record.expiry_height <= state.height + LIFETIME_HEIGHTS_MAX:
        return f"governance.expiry: expiry_height must be from {state.height} to {LIFETIME_HEIGHTS_MAX} blocks later"
    mine = sum(1 for each in state.entries(Proposal) if each.status == OPEN and each.proposer == sender)
    if mine >= OPEN_PER_PROPOSER_MAX:
        return f"governance.open: {sender} has {mine} open proposals; withdraw one first"
    if len(record.action) > ACTION_SIZE_BYTES_MAX:
        return f"governance.action: longer than {ACTION_SIZE_BYTES_MAX} bytes"
    try:
        fault = decode_action(record.action).fault(state)
    except MalformedAction as error:
        fault = str(error)
    if fault is not None:
        return f"governance.action: {fault}"
    expiry = record.expiry_height
    _tally(state, Proposal(proposal_id, sender, record.action, state.height, expiry, (sender,)))
    return None


def approve(state: State, sender: str, record: GovernanceApproved) -> str | None:
    """Execute an approval, and the action if the quorum is reached. Returns the refusal, or None."""
    if record.approver != sender:
        return f"governance.approver: {record.approver} is not the sender {sender}"
    if sender not in electorate(state).node_ids:
        return f"governance.validator: {sender} is not a validator that may decide"
    proposal = state.entry(Proposal, record.proposal)
    if proposal is None:
        return "governance.unknown: there is no such proposal"
    if proposal.status != OPEN:
        return f"governance.closed: the proposal is {proposal.status}"
    if sender not in proposal.approvals:
        proposal = replace(proposal, approvals=(*proposal.approvals, sender))
    elif _approvals(state, proposal) < electorate(state).quorum:
        return f"governance.approved: {sender} has approved already"  # else the electorate has shrunk meanwhile
    _tally(state, proposal)
    return None


def withdraw(state: State, sender: str, record: GovernanceWithdrawn) -> str | None:
    """Execute the withdrawal of an own proposal. Returns the refusal, or None."""
    proposal = state.entry(Proposal, record.proposal)
    if proposal is None:
        return "governance.unknown: there is no such proposal"
    if proposal.proposer != sender or record.proposer != sender:
        return f"governance.proposer: {sender} did not propose it"
    if proposal.status != OPEN:
        return f"governance.closed: the proposal is {proposal.status}"
    _close(state, proposal, WITHDRAWN)
    return None


def begin_block(state: State) -> None:
    """Close the proposals whose time is over; called before the first transaction of every block."""
    for proposal in state.entries(Proposal):
        if proposal.status == OPEN and proposal.expiry_height < state.height:
            _close(state, proposal, EXPIRED)


def _approvals(state: State, proposal: Proposal) -> int:
    deciding = electorate(state).node_ids
    return sum(1 for node_id in proposal.approvals if node_id in deciding)


def _tally(state: State, proposal: Proposal) -> None:
    """Keep the proposal, or carry it out if enough of those who decide now have approved."""
    if _approvals(state, proposal) < electorate(state).quorum:
        state.put_entry(proposal)
        return
    action = decode_action(proposal.action)
    fault = action.fault(state)
    if fault is None:
        action.execute(state)
    _close(state, proposal, EXECUTED if fault is None else FAILED, fault or "")


def _close(state: State, proposal: Proposal, status: str, reason: str = "") -> None:
    closed = replace(proposal, status=status, decided_height=state.height, reason=reason[:REASON_LENGTH_MAX])
    state.put_entry(closed)
    results = [each for each in state.entries(Proposal) if each.status != OPEN]
    if len(results) > RESULTS_KEPT:
        state.remove_entry(min(results, key=lambda each: (each.decided_height, each.proposal_id)))
