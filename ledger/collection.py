"""Votes collected by the leader: in the good case a committee's votes travel to one node and come back as certificates.

Every validator telling every other one costs n² messages per round of votes, which is what a crowded machine dies of.
In committees of more than `direct_votes_max` a hub sends VOTE and FINALIZE of view 0 to the leader alone, who tells N
and then the decision (SPEC 6.8). Nothing rests on the leader: what he has not certified in time is spread as 6.6 says,
and all rules of votes and certificates stay as they are, so that safety is not touched. Three hops become five.
"""

from collections.abc import Collection

from ledger.core import Core
from ledger.messages import CertificatesMessage, StatementMessage
from ledger.votes import Certificate, Kind, Statement


class VoteCollection:
    """The own statements of the height in progress that only the leader was told, and until when."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._held_back: dict[Kind, tuple[Statement, int]] = {}  # at most a VOTE and a FINALIZE
        self._was_late = False

    def say(self, statement: Statement) -> None:
        """Send an own VOTE, FINALIZE or NULLIFY: to the leader if he collects, else to all that 6.6 names."""
        core = self._core
        leader = self._collector(statement)
        if leader is None:
            core.spread_statement(StatementMessage(statement), statement, None)
            return
        self._held_back[statement.kind] = (statement, core.now_ns + core.consensus.timing.collection_ns)
        if leader != core.node_id:
            core.send(leader, StatementMessage(statement), urgent=True, after_sync=True)

    def _collector(self, statement: Statement) -> str | None:
        """Return who collects this, or None: the leader, where both he and this node are hubs and neighbours."""
        core, validators = self._core, self._core.consensus.validators
        if statement.view > 0 or statement.kind is Kind.NULLIFY or not core.collects_votes or not core.is_hub:
            return None
        leader = core.consensus.leader(0)
        if leader == core.node_id:
            return leader
        return leader if core.overlay.is_up(leader) and core.overlay.is_hub(leader, validators) else None

    def on_completed(self, certificate: Certificate) -> None:
        """Statements that are held here have made a certificate: the leader tells it."""
        if self._core.node_id == self._core.consensus.leader(0):
            self._pass_on(certificate, None)
        else:
            self._release(certificate.kind)

    def on_told(self, certificate: Certificate, peer: str) -> None:
        """A neighbour told a certificate that is new here."""
        if peer != self._core.consensus.leader(0):
            self._release(certificate.kind)
        self._pass_on(certificate, peer)

    def _release(self, kind: Kind) -> None:
        """Say what was held back though it is certified: not by the leader, so that others may count on this node's."""
        if kind in self._held_back:
            statement, _ = self._held_back.pop(kind)
            self._core.spread_statement(StatementMessage(statement), statement, None)

    def _pass_on(self, certificate: Certificate, received_from: str | None) -> None:
        """Pass a new notarization of view 0 to the validators that the leader is not known to be connected to.

        From the leader himself that is all of them. Decisions are told by those who commit (6.6).
        """
        core, consensus = self._core, self._core.consensus
        if certificate.kind is not Kind.VOTE or certificate.view > 0 or not core.collects_votes or not core.is_hub:
            return
        targets = core.overlay.targets(consensus.leader(0), received_from)
        targets = [peer for peer in targets if peer in consensus.validators.indices]
        message = CertificatesMessage((certificate,))
        core.send_to_all(targets, message, urgent=True, after_sync=received_from is None)

    def deadline_ns(self) -> int | None:
        """Return when `tick` has something to do."""
        return min((until_ns for _, until_ns in self._held_back.values()), default=None)

    def tick(self) -> bool:
        """Spread what the leader has not certified in time, or lost; say whether there was any."""
        core = self._core
        is_lost = bool(self._held_back) and core.overlay.is_lost(core.consensus.leader(0))
        due = [each for each, until_ns in self._held_back.values() if is_lost or core.now_ns >= until_ns]
        for statement in due:
            del self._held_back[statement.kind]
        late = [each for each in due if not core.consensus.is_certified(each.kind, each.view)]
        for statement in late:
            core.spread_statement(StatementMessage(statement), statement, None)
        self._was_late |= bool(late)
        return bool(late)

    @property
    def goes_well(self) -> bool:
        """Whether this node has told the leader its vote of view 0 and he is in time so far.

        Only while it waits for him: a node that was restarted meanwhile holds nothing back, and must pass on what it
        said before.
        """
        consensus = self._core.consensus
        return bool(self._held_back) and not (
            self._was_late or consensus.view > 0 or consensus.has_said(Kind.NULLIFY, 0)
        )

    def leave_height(self, told_by: Collection[str]) -> None:
        """Start on the next height, of whose decision these neighbours told; where the leader did not, help others."""
        leader = self._core.consensus.leader(0)
        if leader != self._core.node_id and leader not in told_by:
            self._release(Kind.FINALIZE)
        self._held_back.clear()
        self._was_late = False
