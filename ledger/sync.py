"""Anti-entropy: what a status says, and what a neighbour lacks.

Neighbours compare statuses about twice a second and push exactly the gap within a byte budget (SPEC rule 8). Decides
nothing about validity.
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


def gap_of(consensus: Consensus, status: Status, *, collects: bool = False) -> Gap:
    """Compare a neighbour's status of the same height with what is held here; newest views first.

    `collects`: the leader of view 0 has its votes, and tells what becomes of them.
    """
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
            if collects and view == 0 and kind is not Kind.NULLIFY:
                continue
            statements += consensus.book.missing(kind, view, held.get((int(kind), view), b""))
    proposed = set(bits_of(status.proposed_views))
    views = [v for v in sorted({status.view, consensus.view}) if v in consensus.proposals and v not in proposed]
    return Gap(as_many_as_travel(certificates), tuple(statements), tuple(views))
