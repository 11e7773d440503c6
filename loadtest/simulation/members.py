"""Who votes at a height, counted a second time in the plainest way from the records that were committed.

The oracle of the checkers: it asks no code of the ledger's state, governance or committee. Approvals are tallied, and
suspensions, admissions and rotations taken over, in the order of the blocks; the set of height h follows from the
members after height h − 2 (SPEC 4.7).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ledger.contracts.actions import decode_action
from ledger.contracts.membership import (
    ACTIVATION_HEIGHTS_MIN,
    ActivateVersion,
    AdmitNode,
    LiftSuspension,
    RemoveNode,
    SetValidator,
)
from ledger.encoding import digest
from ledger.execution import Receipt
from ledger.genesis import Genesis
from ledger.transactions import EquivocationProven, GovernanceApproved, GovernanceProposed, KeyRotated
from ledger.votes import Statement


@dataclass(frozen=True)
class Member:
    """A node as it stands; the place is its order of registration."""

    node_id: str
    public_key: bytes
    validator: bool
    place: int
    suspended: bool = False
    removed: bool = False

    @property
    def may_vote(self) -> bool:
        """Whether it can be chosen for a committee."""
        return self.validator and not self.suspended and not self.removed


@dataclass
class Ballot:
    """A proposal that was accepted, and who approved."""

    action: bytes
    approvals: list[str] = field(default_factory=list)
    decided: bool = False


class Members:
    """See the module. `voting` may be asked for heights up to two above the last one that was taken over."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self.now = {
            node.node_id: Member(node.node_id, node.public_key, node.validator, place)
            for place, node in enumerate(genesis.nodes)
        }
        self.height = 0
        self.activation_height: int | None = None
        """From this height on blocks are of a version that older programs do not know."""
        self.ballots: dict[bytes, Ballot] = {}
        self.changes = 0
        """How often the set of a height differs from the one before."""
        self._sets: dict[int, tuple[Member, ...]] = {1: self._choose(1), 2: self._choose(2)}

    def voting(self, height: int) -> tuple[Member, ...]:
        """Return the validators of a height, in their order."""
        return self._sets[height]

    def set_digest(self, height: int) -> bytes:
        """Return the hash of a height's validators that headers and statements name."""
        voting = self.voting(height)
        return digest("qnode/validators/1", tuple(m.node_id for m in voting), tuple(m.public_key for m in voting))

    def take(self, height: int, receipts: Iterable[Receipt]) -> None:
        """Take over what the block of a height did."""
        self.height = height
        for receipt in receipts:
            if receipt.ok:
                self._take(receipt)
        self._sets[height + 2] = self._choose(height + 2) or self._sets[height + 1]
        self.changes += self._sets[height + 2] != self._sets[height + 1]

    def _choose(self, height: int) -> tuple[Member, ...]:
        parameters = self._genesis.parameters
        able = [member for member in self.now.values() if member.may_vote]
        if len(able) > parameters.committee_max:
            epoch = ((height - 1) // parameters.epoch_heights).to_bytes(8, "big")
            prefix = b"qnode/committee/1" + self._genesis.digest + epoch
            drawn = sorted(able, key=lambda member: hashlib.sha256(prefix + member.node_id.encode()).digest())
            able = drawn[: parameters.committee_max]
        return tuple(sorted(able, key=lambda member: member.place))

    def _take(self, receipt: Receipt) -> None:
        match receipt.transaction:
            case EquivocationProven(one=one):
                signer = Statement.decode(one).signer
                if self._others_vote(signer):
                    self._set(signer, suspended=True)
            case KeyRotated(node_id=node_id, new_key=new_key):
                self._set(node_id, public_key=new_key)
            case GovernanceProposed(proposer=proposer, action=action):
                self.ballots[receipt.transaction_id] = Ballot(action)
                self._approve(receipt.transaction_id, proposer)
            case GovernanceApproved(proposal=proposal, approver=approver):
                self._approve(proposal, approver)

    def _approve(self, proposal: bytes, approver: str) -> None:
        ballot = self.ballots[proposal]
        ballot.approvals.append(approver)
        deciding = [member.node_id for member in self.now.values() if member.may_vote]
        count = sum(1 for node_id in deciding if node_id in ballot.approvals)
        if not ballot.decided and 3 * (len(deciding) - count) < len(deciding):
            ballot.decided = True
            self._execute(ballot.action)

    def _execute(self, encoded: bytes) -> None:
        action = decode_action(encoded)
        if isinstance(action, AdmitNode):
            if action.node_id not in self.now:
                member = Member(action.node_id, action.public_key, bool(action.validator), len(self.now))
                self.now[action.node_id] = member
        elif isinstance(action, SetValidator):
            if action.validator or self._others_vote(action.node_id):
                self._set(action.node_id, validator=bool(action.validator))
        elif isinstance(action, LiftSuspension):
            self._set(action.node_id, suspended=False)
        elif isinstance(action, ActivateVersion):
            if self.activation_height is None and action.height >= self.height + ACTIVATION_HEIGHTS_MIN:
                self.activation_height = action.height
        elif isinstance(action, RemoveNode) and self._others_vote(action.node_id):
            self._set(action.node_id, removed=True)

    def _set(self, node_id: str, **changes: bool | bytes) -> None:
        self.now[node_id] = replace(self.now[node_id], **changes)  # type: ignore[arg-type]

    def _others_vote(self, node_id: str) -> bool:
        return any(member.may_vote for member in self.now.values() if member.node_id != node_id)
