"""Catching up with committed blocks: which ranges are asked of whom, and what came before its turn (SPEC 6.2).

Several neighbours are asked at once, one range each, so that neither a slow neighbour nor the way to it sets the pace.
Blocks that arrive early wait within a bound. Decides nothing about validity: a block whose turn comes is checked by the
replica, and one that does not hold takes everything of its sender with it.
"""

from dataclasses import dataclass

from ledger.block import Block
from ledger.votes import Certificate

RANGE_BLOCKS = 64
"""Blocks of one question: a second of work at most, so that what one neighbour holds up is little."""
WINDOW_BLOCKS = 512
"""Heights ahead of the tip that are asked for: eight questions at once."""
EARLY_SIZE_BYTES_MAX = 33_554_432
"""Blocks that wait for their turn: sixteen of the largest; beyond it those of the highest heights are dropped."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A block that waits for its turn."""

    peer: str
    block: Block
    certificate: Certificate
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Question:
    first: int
    count: int
    deadline_ns: int

    def covers(self, height: int) -> bool:
        return self.first <= height < self.first + self.count


class CatchUp:
    """What neighbours claim to have, the open questions, and the blocks that came early."""

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns
        self._heights: dict[str, int] = {}
        self._floors: dict[str, int] = {}  # of neighbours that lack older blocks
        self._questions: dict[str, _Question] = {}
        self._early: dict[int, Arrived] = {}
        self._early_size_bytes = 0

    def learn(self, peer: str, height: int) -> None:
        """Take note of a neighbour's committed height."""
        self._heights[peer] = height

    def height_of(self, peer: str) -> int:
        """Return the height that a neighbour said it had committed, 0 if it said nothing."""
        return self._heights.get(peer, 0)

    def forget(self, peer: str) -> None:
        """The neighbour is gone, or gave nothing usable."""
        self._heights.pop(peer, None)
        self._floors.pop(peer, None)
        self._questions.pop(peer, None)

    def refused(self, peer: str, snapshot_height: int) -> None:
        """The neighbour answered a question with a snapshot: of the blocks up to it ask others."""
        if self._questions.pop(peer, None) is not None:
            self._floors[peer] = snapshot_height + 1

    def expire(self, now_ns: int) -> None:
        """Give up questions that were not answered in time: their neighbours are asked again when they speak."""
        for peer in [peer for peer, question in self._questions.items() if now_ns >= question.deadline_ns]:
            self.forget(peer)

    def is_behind(self, height: int) -> bool:
        """Say whether a neighbour claims to be ahead."""
        return any(theirs > height for theirs in self._heights.values())

    def without_source(self, height: int) -> list[str]:
        """Return the neighbours that are ahead if none of them is known to have the next block; else none."""
        ahead = [peer for peer, theirs in self._heights.items() if theirs > height]
        return [] if any(self._floors.get(peer, 0) <= height + 1 for peer in ahead) else ahead

    def deadline_ns(self) -> int | None:
        """Return when the first unanswered question is given up."""
        return min((question.deadline_ns for question in self._questions.values()), default=None)

    # ---- asking

    def ask(self, height: int, now_ns: int) -> list[tuple[str, int, int]]:
        """Return the questions to ask now, as (neighbour, first height, count): the lowest gaps first."""
        idle = sorted(
            (peer for peer, theirs in self._heights.items() if theirs > height and peer not in self._questions),
            key=lambda peer: (-self._heights[peer], peer),
        )
        asked = []
        for peer in idle:
            below = max(height, self._floors.get(peer, 0) - 1)
            first = self._first_gap(below, min(self._heights[peer], height + WINDOW_BLOCKS))
            if first is None:
                continue
            count = 1
            while count < RANGE_BLOCKS and first + count <= self._heights[peer] and not self._is_covered(first + count):
                count += 1
            self._questions[peer] = _Question(first, count, now_ns + self._timeout_ns)
            asked.append((peer, first, count))
        return asked

    def _first_gap(self, height: int, last: int) -> int | None:
        return next((each for each in range(height + 1, last + 1) if not self._is_covered(each)), None)

    def _is_covered(self, height: int) -> bool:
        return height in self._early or any(question.covers(height) for question in self._questions.values())

    # ---- what arrives

    def has_asked(self, peer: str, block_height: int) -> bool:
        """Say whether a block was asked of `peer`."""
        question = self._questions.get(peer)
        return question is not None and question.covers(block_height)

    def expects(self, peer: str, block_height: int, height: int) -> bool:
        """Say whether a block of `peer` was asked of it, or is one of the next two, which anybody may bring."""
        return block_height <= height + 2 or self.has_asked(peer, block_height)

    def keep(self, arrived: Arrived) -> None:
        """Let a block wait for its turn."""
        height = arrived.block.height
        if height in self._early:
            return
        self._early[height] = arrived
        self._early_size_bytes += arrived.size_bytes
        while self._early_size_bytes > EARLY_SIZE_BYTES_MAX:
            self._drop(max(self._early))

    def answered(self, peer: str) -> None:
        """The answer to the question of `peer` is here; what it lacked is asked again."""
        self._questions.pop(peer, None)

    def has(self, height: int) -> bool:
        """Say whether the block of a height is here."""
        return height in self._early

    def take(self, height: int) -> Arrived | None:
        """Return the block of a height if it is here, and drop what lies below."""
        for below in [each for each in self._early if each < height]:
            self._drop(below)
        return self._drop(height)

    def drop_all_of(self, peer: str) -> None:
        """A block of this neighbour did not hold: believe nothing of what it sent."""
        self.forget(peer)
        for height in [height for height, arrived in self._early.items() if arrived.peer == peer]:
            self._drop(height)

    def _drop(self, height: int) -> Arrived | None:
        arrived = self._early.pop(height, None)
        if arrived is not None:
            self._early_size_bytes -= arrived.size_bytes
        return arrived
