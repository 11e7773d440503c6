"""A validator that may have lost its memory keeps quiet until its neighbours had time to tell it what it said.

A disk that lost what it had synced (wiped with the key kept, cut, or damaged in the last write, which looks like an
interrupted one) is the way to contradict oneself that the guard cannot see. A validator that starts without any record,
or after an end that was not orderly, therefore signs nothing until a neighbour shows that the chain has not begun, or
until one anti-entropy interval after it heard a neighbour, and none claims to be ahead. The same again after every
catch-up, by blocks or by a snapshot, until it has taken part in a height: what it said was said at the tip, which a
neighbour that lags does not know. In that time the neighbours push the statements of the height in progress, its own
earlier ones among them, and those raise the guard's record (SPEC 7.5).
"""

from ledger.messages import Status

WAITS_BEHIND_MAX = 20
"""Waits that go by while a neighbour claims to be ahead: ten seconds, then it lies, or does not give its blocks."""


class Recall:
    """Whether to keep quiet, and until when."""

    def __init__(self, may_have_forgotten: bool, wait_ns: int) -> None:
        self._may_have_forgotten = may_have_forgotten
        self._quiet = may_have_forgotten
        self._wait_ns = wait_ns
        self._until_ns: int | None = None
        self._waits_behind = 0

    def on_status(self, status: Status, now_ns: int) -> None:
        """A neighbour told where it is: at the very beginning, or somewhere that an earlier life may have been."""
        if not self._quiet or self._until_ns is not None:
            return
        if status.height == 0 and status.view == 0 and not status.statements and not status.proposed_views:
            self._quiet = False
        else:
            self._until_ns = now_ns + self._wait_ns

    def on_caught_up(self, now_ns: int) -> bool:
        """Blocks or a snapshot arrived; say whether neighbours must tell what was said at the height after them."""
        if self._may_have_forgotten:
            self._quiet, self._until_ns, self._waits_behind = True, now_ns + self._wait_ns, 0
        return self._may_have_forgotten

    def on_commit(self) -> None:
        """A height ended in which this node was at the tip, and free to speak: its memory is whole from here on."""
        if not self.is_quiet:
            self._may_have_forgotten = False

    def tick(self, now_ns: int, is_behind: bool) -> None:
        """End the quiet when its time is over and nobody claims to be ahead."""
        if self._until_ns is None or now_ns < self._until_ns:
            return
        if is_behind and self._waits_behind < WAITS_BEHIND_MAX:
            self._waits_behind += 1
            self._until_ns = now_ns + self._wait_ns
        else:
            self._quiet = False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing may be signed yet."""
        return self._quiet

    def deadline_ns(self) -> int | None:
        """Return when the quiet ends, if that is known."""
        return self._until_ns if self._quiet else None
