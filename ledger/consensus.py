"""One height of the commit protocol: Simplex with re-proposals (SPEC 4, rules 1 to 7) (row S0-B2).

Decides what to say, when to move to the next view and when the height is done. It neither signs nor sends: the replica
performs one `Action` at a time and feeds the result back. Safety rests on the rules alone, never on the timers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ledger.block import Block, Header
from ledger.validators import Validators
from ledger.votes import FRESH, NO_DIGEST, Book, Certificate, Kind, Statement, as_many_as_travel

VIEW_WINDOW = 16
"""Statements are kept for this many views around one's own: beyond it certificates carry the news (floods end here)."""


@dataclass(frozen=True)
class Proposal:
    """A leader's signed PROPOSE with the header of the block and the digests of its bundles."""

    statement: Statement
    header: Header
    bundle_digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Say:
    """Sign this (if the guard allows), keep it durably with what it rests on, send it to all."""

    kind: Kind
    view: int
    block: bytes
    justified: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Propose in `view`: a fresh block when `block` is None, else `block` again, justified by N(`justified`)."""

    view: int
    block: Block | None
    justified: int


@dataclass(frozen=True, slots=True)
class FetchBody:
    """Get the bundles of the block `block`: a decision waits for them."""

    block: bytes


@dataclass(frozen=True, slots=True)
class PullStatus:
    """Ask peers for certificates: the justification of this view has holes."""


@dataclass(frozen=True, slots=True)
class RefuseBlock:
    """The proposal of `view` is invalid; it acts as a timeout."""

    view: int
    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """The height is decided."""

    block: Block
    certificate: Certificate


Action = Say | Propose | FetchBody | PullStatus | RefuseBlock | Commit


@dataclass(frozen=True, slots=True)
class Timing:
    """The timers of one height; safety never depends on them."""

    view_timeout_ns: int
    """T0: at least three message delays plus the time to check a block."""
    finalize_timeout_ns: int
    """T_f: about two message delays."""
    heartbeat_ns: int
    """How long a leader may hold back an empty block."""
    block_interval_ns: int
    """How long a leader may hold back one that is not full."""
    lost_leader_timeout_ns: int
    """The view timer when the leader was connected to this node and is gone: the wait for it is in vain."""

    @property
    def collection_ns(self) -> int:
        """How long the leader may take to certify a vote that only he was told: T0 / 3 (SPEC 6.8)."""
        return self.view_timeout_ns // 3

    def view_ns(self, view: int, leader_lost: bool) -> int:
        """Return T(v) = T0 · min(1.4^v, 60)."""
        base_ns = min(self.lost_leader_timeout_ns, self.view_timeout_ns) if leader_lost else self.view_timeout_ns
        return int(base_ns * min(1.4 ** min(view, 64), 60.0))


class Consensus:
    """The state machine of one node for one height; `node_id` outside the set only watches.

    `block_fault(block, fresh)` returns why a complete block must not be voted for, or None; `fresh` adds the clock
    window. `is_lost(node_id)` says whether a node was connected to this one and is gone.
    """

    def __init__(
        self,
        *,
        height: int,
        node_id: str,
        validators: Validators,
        timing: Timing,
        now_ns: int,
        block_fault: Callable[[Block, bool], str | None],
        is_lost: Callable[[str], bool],
    ) -> None:
        self.height = height
        self.validators = validators
        self.view = 0
        self.book = Book(validators)
        self.notarizations: dict[int, Certificate] = {}
        self.nullifications: dict[int, Certificate] = {}
        self.commit: Certificate | None = None
        self.proposals: dict[int, Proposal] = {}
        self.bodies: dict[bytes, Block] = {}
        self.work_waiting = False
        self.block_full = False
        """Work for a whole block waits."""
        self.muted = False
        """Follow, and say nothing (SPEC 7.5)."""
        self.started_ns = now_ns
        self._node_id = node_id
        self._is_validator = node_id in validators.indices
        self.timing = timing
        self._block_fault = block_fault
        self._is_lost = is_lost
        self._said: dict[Kind, set[int]] = {kind: set() for kind in Kind}
        self._view_deadline_ns: int | None = None
        self._finalize_deadline_ns: int | None = None
        self._fetched: set[bytes] = set()
        self._pulled: set[int] = set()
        self._refused: set[int] = set()
        self._done = False

    # ---- what arrives

    def restore(self, statement: Statement) -> None:
        """Take back an own statement from before a crash."""
        self.book.add(statement)
        self._said[statement.kind].add(statement.view)
        self.view = max(self.view, statement.view)

    def admits(self, statement: Statement) -> bool:
        """Say whether a statement is worth checking: of a member, in the window, and not yet decided."""
        if statement.signer not in self.validators.indices or abs(statement.view - self.view) > VIEW_WINDOW:
            return False
        held = self.book.get(statement.kind, statement.view, statement.signer)
        return held is None and not self.is_certified(statement.kind, statement.view)

    def is_certified(self, kind: Kind, view: int) -> bool:
        """Say whether a certificate of this kind and view is held."""
        if kind is Kind.FINALIZE:
            return self.commit is not None
        return view in (self.notarizations if kind is Kind.VOTE else self.nullifications) and kind is not Kind.PROPOSE

    def on_statement(self, statement: Statement) -> Certificate | None:
        """Take a verified statement of a member; returns the certificate that it completed, or None."""
        self.book.add(statement)
        if statement.kind is Kind.PROPOSE or self.is_certified(statement.kind, statement.view):
            return None
        certificate = self.book.certificate(statement.kind, statement.view)
        if certificate is not None:
            self.on_certificate(certificate)
        return certificate

    def on_certificate(self, certificate: Certificate) -> None:
        """Take a verified certificate of this height."""
        if certificate.kind is Kind.VOTE:
            self.notarizations.setdefault(certificate.view, certificate)
        elif certificate.kind is Kind.NULLIFY:
            self.nullifications.setdefault(certificate.view, certificate)
        elif self.commit is None:
            self.commit = certificate

    def on_proposal(self, proposal: Proposal) -> None:
        """Take a proposal whose PROPOSE statement is verified and of the view's leader; the first one counts."""
        self.book.add(proposal.statement)
        self.proposals.setdefault(proposal.statement.view, proposal)

    def on_body(self, block: Block) -> None:
        """Take a complete block of this height whose bundles are verified."""
        self.bodies[block.digest] = block

    def leader(self, view: int) -> str:
        """Return the leader of `view` at this height."""
        return self.validators.leader(self.height, view)

    def has_said(self, kind: Kind, view: int) -> bool:
        """Say whether this node has said a statement of this kind in `view`."""
        return view in self._said[kind]

    # ---- what to do

    def next_action(self, now_ns: int) -> Action | None:
        """Return the next thing to do, or None until something arrives or a deadline passes.

        Every returned action changes this machine, so that calling in a loop ends.
        """
        if self._done:
            return None
        if self.commit is not None:
            return self._finish()
        while self._move(now_ns):
            pass
        self._arm(now_ns)
        if self.muted:
            return None
        return self._finalize(now_ns) or self._propose(now_ns) or self._vote(now_ns) or self._nullify(now_ns) or None

    def next_deadline_ns(self) -> int | None:
        """Return when time alone changes something."""
        if self._done or self.commit is not None:
            return None
        if self.view == 0 and self._view_deadline_ns is None:
            return self._interval_end_ns if self.work_waiting else self._heartbeat_deadline_ns
        deadlines: list[int | None] = []
        if self.view in self.notarizations:
            deadlines = [self._finalize_deadline_ns, self._view_deadline_ns]
        elif self._can_say(Kind.NULLIFY):
            deadlines = [self._view_deadline_ns]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def _interval_end_ns(self) -> int:
        return self.started_ns + min(self.timing.block_interval_ns, self.timing.heartbeat_ns)

    def _is_due(self, now_ns: int) -> bool:
        """Whether it is time for the first proposal of this height (rule 9)."""
        if self.work_waiting and (self.block_full or now_ns >= self._interval_end_ns):
            return True
        return now_ns >= self._heartbeat_deadline_ns

    @property
    def _heartbeat_deadline_ns(self) -> int:
        return self.started_ns + self.timing.heartbeat_ns

    def _finish(self) -> Action | None:
        """Rule 7."""
        assert self.commit is not None
        body = self.bodies.get(self.commit.block)
        if body is None:
            return self._fetch(self.commit.block)
        self._done = True
        return Commit(body, self.commit)

    def _fetch(self, block: bytes) -> FetchBody | None:
        if block in self._fetched:
            return None
        self._fetched.add(block)
        return FetchBody(block)

    def _move(self, now_ns: int) -> bool:
        """Rule 6: take one step towards the highest view that a certificate justifies."""
        nullified = max(self.nullifications, default=FRESH)
        notarized = max(self.notarizations, default=FRESH)
        if nullified >= self.view and nullified >= notarized:
            return self._enter(nullified + 1, now_ns)
        if notarized > self.view:
            return self._enter(notarized, now_ns)
        if notarized == self.view and self._may_leave(now_ns):
            return self._enter(notarized + 1, now_ns)
        return False

    def _may_leave(self, now_ns: int) -> bool:
        """Whether this notarized view is over: nullified by me, or finalized (by whoever may) and waited for."""
        if self._is_validator and self.view in self._said[Kind.NULLIFY]:
            return True
        if self._is_validator and self.view not in self._said[Kind.FINALIZE]:
            return False
        return _passed(self._finalize_deadline_ns, now_ns) or _passed(self._view_deadline_ns, now_ns)

    def _enter(self, view: int, now_ns: int) -> bool:
        """Rule 1."""
        self.view = view
        self._finalize_deadline_ns = None
        self._view_deadline_ns = now_ns + self.timing.view_ns(view, self._is_lost(self.leader(view)))
        self.book.forget_before(view - VIEW_WINDOW)
        return True

    def _arm(self, now_ns: int) -> None:
        """Rules 1 and 9: in view 0 the timer starts when there is something to wait for."""
        if self._view_deadline_ns is not None:
            return
        waiting = self.view > 0 or self.view in self.proposals
        if waiting or self._is_due(now_ns) or self.book.speakers(0) > self.validators.faulty_max:
            self._view_deadline_ns = now_ns + self.timing.view_ns(self.view, self._is_lost(self.leader(self.view)))

    def hurry(self, now_ns: int) -> None:
        """Shorten the armed timer: the leader of this view was lost."""
        if self._view_deadline_ns is not None and self._is_lost(self.leader(self.view)):
            soon = now_ns + self.timing.view_ns(self.view, True)
            self._view_deadline_ns = min(self._view_deadline_ns, soon)

    def _finalize(self, now_ns: int) -> Action | None:
        """Rule 4."""
        notarization = self.notarizations.get(self.view)
        if notarization is None or not self._can_say(Kind.FINALIZE):
            if notarization is not None and self._finalize_deadline_ns is None:
                self._finalize_deadline_ns = now_ns + self.timing.finalize_timeout_ns
            return None
        self._said[Kind.FINALIZE].add(self.view)
        self._finalize_deadline_ns = now_ns + self.timing.finalize_timeout_ns
        return Say(Kind.FINALIZE, self.view, notarization.block, FRESH)

    def _can_say(self, kind: Kind) -> bool:
        """Whether this node has not yet said this, or what excludes it, in its view."""
        if not self._is_validator or self.view in self._said[kind] or self.view in self._said[Kind.NULLIFY]:
            return False
        return self.view not in self._said[Kind.FINALIZE]

    def _propose(self, now_ns: int) -> Action | None:
        """Rule 2, with rule 9 for a block in view 0 that can wait."""
        if self.leader(self.view) != self._node_id or self.view in self._said[Kind.PROPOSE]:
            return None
        if not self._can_say(Kind.VOTE):
            return None
        for earlier in range(self.view - 1, -1, -1):
            notarization = self.notarizations.get(earlier)
            if notarization is not None:
                return self._repropose(notarization)
            if earlier not in self.nullifications:
                return self._pull()
        if self.view == 0 and not self._is_due(now_ns):
            return None
        self._said[Kind.PROPOSE].add(self.view)
        return Propose(self.view, None, FRESH)

    def _repropose(self, notarization: Certificate) -> Action | None:
        body = self.bodies.get(notarization.block)
        if body is None:
            return self._fetch(notarization.block)
        self._said[Kind.PROPOSE].add(self.view)
        return Propose(self.view, body, notarization.view)

    def _pull(self) -> PullStatus | None:
        if self.view in self._pulled:
            return None
        self._pulled.add(self.view)
        return PullStatus()

    def _vote(self, now_ns: int) -> Action | None:
        """Rule 3."""
        proposal = self.proposals.get(self.view)
        if proposal is None or not self._can_say(Kind.VOTE) or self.view in self._refused:
            return None
        statement = proposal.statement
        if not self.is_justified(statement):
            return self._pull()
        body = self.bodies.get(statement.block)
        if body is None:
            return self._fetch(statement.block)
        if reason := self._block_fault(body, statement.justified == FRESH):
            self._refused.add(self.view)
            self._view_deadline_ns = now_ns
            return RefuseBlock(self.view, reason)
        self._said[Kind.VOTE].add(self.view)
        return Say(Kind.VOTE, self.view, statement.block, statement.justified)

    def is_justified(self, statement: Statement) -> bool:
        """Rule 3: N(pv) is for the block, or it is fresh; and every view between was nullified."""
        if statement.justified != FRESH:
            notarization = self.notarizations.get(statement.justified)
            if notarization is None or notarization.block != statement.block:
                return False
        return all(view in self.nullifications for view in range(statement.justified + 1, statement.view))

    def justification(self, statement: Statement) -> tuple[Certificate, ...]:
        """Return what travels with a proposal: N(pv) and the newest of the X between (rule 2)."""
        views = range(statement.view - 1, statement.justified, -1)
        needed = [self.nullifications[view] for view in views if view in self.nullifications]
        if statement.justified in self.notarizations:
            needed.insert(0, self.notarizations[statement.justified])
        return as_many_as_travel(needed)

    def _nullify(self, now_ns: int) -> Action | None:
        """Rule 5."""
        if not _passed(self._view_deadline_ns, now_ns) or self.view in self.notarizations:
            return None
        if not self._can_say(Kind.NULLIFY):
            return None
        self._said[Kind.NULLIFY].add(self.view)
        return Say(Kind.NULLIFY, self.view, NO_DIGEST, FRESH)

    def forget_fetches(self) -> None:
        """Let unanswered fetches and pulls be asked again (called at each anti-entropy round)."""
        self._fetched.clear()
        self._pulled.clear()


def _passed(deadline_ns: int | None, now_ns: int) -> bool:
    return deadline_ns is not None and now_ns >= deadline_ns
