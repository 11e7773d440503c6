"""Anti-entropy and catch-up: what a status says, what a neighbour lacks, and whom to ask for committed blocks.

Neighbours compare statuses about twice a second and push exactly the gap within a byte budget; a node that is behind
pulls committed blocks from one neighbour at a time (SPEC rule 8 and 6.2). Decides nothing about validity.
"""

from dataclasses import dataclass

from ledger.consensus import Consensus
from ledger.mempool import Mempool
from ledger.messages import BITMAP_SIZE_BYTES_MAX, Status
from ledger.state import State
from ledger.votes import CERTIFIED, Certificate, Kind, Statement, as_many_as_travel, bitmap_of, bits_of

STATEMENT_VIEWS = 3
"""Views before its own whose statements a status lists: a neighbour further behind is helped by certificates."""
VIEWS_MAX = 8 * BITMAP_SIZE_BYTES_MAX
NODES_PENDING_MAX = 2048


def make_status(consensus: Consensus, mempool: Mempool, state: State, neighbours: bytes) -> Status:
    """Return this node's status."""
    statements = []
    for view in _window(consensus.view):
        for kind in CERTIFIED:
            if signers := consensus.book.signers(kind, view):
                statements.append((int(kind), view, signers))
    pending: list[tuple[int, int]] = []
    for sender in mempool.senders():
        node = state.node(sender)
        if node is not None and len(pending) < NODES_PENDING_MAX:
            pending.append((node.index, mempool.contiguous(sender, node.sequence)))
    return Status(
        height=state.height,
        view=consensus.view,
        notarized_views=_views(list(consensus.notarizations)),
        nullified_views=_views(list(consensus.nullifications)),
        proposed_views=_views(list(consensus.proposals)),
        statements=tuple(statements),
        pending=tuple(pending),
        neighbours=neighbours,
    )


def _window(view: int) -> range:
    return range(max(0, view - STATEMENT_VIEWS), view + 2)


def _views(views: list[int]) -> bytes:
    return bitmap_of([view for view in views if view < VIEWS_MAX])


@dataclass(frozen=True, slots=True)
class Gap:
    """What a neighbour at the same height lacks and this node holds."""

    certificates: tuple[Certificate, ...]
    statements: tuple[Statement, ...]
    proposed_views: tuple[int, ...]


def gap_of(consensus: Consensus, status: Status) -> Gap:
    """Compare a neighbour's status of the same height with what is held here; newest views first."""
    notarized, nullified = set(bits_of(status.notarized_views)), set(bits_of(status.nullified_views))
    certificates = [c for view, c in consensus.notarizations.items() if view not in notarized]
    certificates += [c for view, c in consensus.nullifications.items() if view not in nullified]
    certificates.sort(key=lambda certificate: (-certificate.view, certificate.kind))
    if consensus.commit is not None:
        certificates.insert(0, consensus.commit)
    held = {(kind, view): signers for kind, view, signers in status.statements}
    statements: list[Statement] = []
    for view in sorted({*_window(status.view), *_window(consensus.view)}):
        for kind in CERTIFIED:
            if view in {Kind.VOTE: notarized, Kind.NULLIFY: nullified}.get(kind, ()):
                continue  # the certificate says it all
            statements += consensus.book.missing(kind, view, held.get((int(kind), view), b""))
    proposed = set(bits_of(status.proposed_views))
    views = [v for v in sorted({status.view, consensus.view}) if v in consensus.proposals and v not in proposed]
    return Gap(as_many_as_travel(certificates), tuple(statements), tuple(views))


class CatchUp:
    """Which neighbour was asked for committed blocks, and until when the answer is waited for."""

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns
        self._heights: dict[str, int] = {}
        self._asked: str | None = None
        self._deadline_ns = 0

    def learn(self, peer: str, height: int) -> None:
        """Take note of a neighbour's committed height."""
        self._heights[peer] = height

    def forget(self, peer: str) -> None:
        """The neighbour is gone, or gave nothing usable."""
        self._heights.pop(peer, None)
        if self._asked == peer:
            self._asked = None

    def forget_question(self, peer: str) -> None:
        """The neighbour gave another answer than blocks; ask elsewhere."""
        if self._asked == peer:
            self._asked = None

    def is_asked(self, peer: str) -> bool:
        """Say whether an answer of `peer` is awaited."""
        return self._asked == peer

    def answered(self) -> None:
        """The awaited answer is here."""
        self._asked = None

    def is_behind(self, height: int) -> bool:
        """Say whether a neighbour claims to be ahead."""
        return any(theirs > height for theirs in self._heights.values())

    def ask(self, height: int, now_ns: int) -> str | None:
        """Return the neighbour to ask now, or None if one is asked already or none is ahead."""
        self.expire(now_ns)
        if self._asked is not None:
            return None
        ahead = [peer for peer, theirs in sorted(self._heights.items()) if theirs > height]
        if not ahead:
            return None
        self._asked = max(ahead, key=lambda peer: self._heights[peer])
        self._deadline_ns = now_ns + self._timeout_ns
        return self._asked

    def expire(self, now_ns: int) -> None:
        """Pass over a neighbour that was asked and did not answer in time."""
        if self._asked is not None and now_ns >= self._deadline_ns:
            self.forget(self._asked)

    def deadline_ns(self) -> int | None:
        """Return when an unanswered question is given up."""
        return None if self._asked is None else self._deadline_ns
