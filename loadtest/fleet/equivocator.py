"""A validator that votes twice: for the block that it got, and for one that does not exist, and tells everybody both.

The rest of the node is the product's own. Used by processes of the fleet only; `take_over` changes the process that it
is called in for good.
"""

import secrets
from typing import Any

import ledger.speaker
import qnode.node
from ledger.guard import Guard
from ledger.inputs import Input
from ledger.messages import StatementMessage, encode
from ledger.outputs import Output, SendMessage
from ledger.replica import Replica
from ledger.signatures import Signer
from ledger.validators import Validators
from ledger.votes import Kind, Statement, statement_bytes

UNSAID_MAX = 16
"""Contradictions that wait for the node's next word; one is enough to be caught."""


class TwoTonguedGuard(Guard):
    """Keeps the honest record, and makes a second vote beside every vote."""

    unsaid: list[Statement]

    def sign(
        self, signer: Signer, validators: Validators, kind: Kind, height: int, view: int, block: bytes, justified: int
    ) -> Statement:
        """Sign what was asked, and the contrary of a vote."""
        if kind is Kind.VOTE:
            other = secrets.token_bytes(len(block))
            message = statement_bytes(self._genesis_digest, validators.digest, kind, height, view, other, justified)
            said = Statement(kind, height, view, other, justified, self._node_id, signer.sign(message))
            self.unsaid = [*getattr(self, "unsaid", []), said][-UNSAID_MAX:]
        return super().sign(signer, validators, kind, height, view, block, justified)


class EquivocatingReplica(Replica):
    """Sends the second votes along with the first."""

    def step(self, now_ns: int, happened: Input) -> list[Output]:
        """Do what an honest replica does, and contradict it."""
        outputs: list[Output] = list(super().step(now_ns, happened))
        peers = dict.fromkeys(each.peer for each in outputs if isinstance(each, SendMessage) and each.urgent)
        unsaid: list[Statement] = getattr(self._speaker.guard, "unsaid", [])
        if peers and unsaid:
            payloads = [encode(StatementMessage(statement)) for statement in unsaid]
            unsaid.clear()
            outputs += [SendMessage(peer, payload, True, True) for payload in payloads for peer in peers]
        return outputs


def take_over() -> None:
    """Make every replica of this process lie."""
    speaker: Any = ledger.speaker
    node: Any = qnode.node
    speaker.Guard = TwoTonguedGuard
    node.Replica = EquivocatingReplica
