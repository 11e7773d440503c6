"""A validator that may have lost its memory keeps quiet until its neighbours had time to tell it what it said.

A disk that lost what it had synced (wiped with the key kept, cut, or damaged in the last write, which looks like an
interrupted one) is the way to contradict oneself that the guard cannot see. A validator that starts without any record,
or after an end that was not orderly, therefore signs nothing until a neighbour shows that the chain has not begun, or
until one anti-entropy interval after it heard a neighbour or caught up: in that time the neighbours push the statements
of the height in progress, its own earlier ones among them, and those raise the guard's record (SPEC 7.5).
"""

from ledger.messages import Status


class Recall:
    """Whether to keep quiet, and until when."""

    def __init__(self, may_have_forgotten: bool, wait_ns: int) -> None:
        self._quiet = may_have_forgotten
        self._wait_ns = wait_ns
        self._until_ns: int | None = None

    def on_status(self, status: Status, now_ns: int) -> None:
        """A neighbour told where it is: at the very beginning, or somewhere that an earlier life may have been."""
        if not self._quiet or self._until_ns is not None:
            return
        if status.height == 0 and status.view == 0 and not status.statements and not status.proposed_views:
            self._quiet = False
        else:
            self._until_ns = now_ns + self._wait_ns

    def on_caught_up(self, now_ns: int) -> None:
        """Committed blocks arrived: what was said at the height after them is still to come."""
        self._until_ns = now_ns + self._wait_ns

    def is_quiet(self, now_ns: int) -> bool:
        """Say whether nothing may be signed yet."""
        if self._until_ns is not None and now_ns >= self._until_ns:
            self._quiet = False
        return self._quiet

    def deadline_ns(self) -> int | None:
        """Return when the quiet ends, if that is known."""
        return self._until_ns if self._quiet else None
