"""What only the operator can mend: a program too old for the chain, a clock far off, a vote key that is not here.

Tells of it, and well before it stops this node where that is possible (SPEC 5.5).
"""

from ledger.block import Block
from ledger.core import Core

CLOCK_NOTE_HEIGHTS = 100
"""One line per hundred blocks is enough."""


class Upkeep:
    """`upgrade_needed`: why this node does not go on to the next height, if so: its program is too old."""

    def __init__(self, core: Core, versions: frozenset[int]) -> None:
        self.upgrade_needed: str | None = None
        self._core = core
        self._versions = versions
        self._version_noted: tuple[int, int] | None = None
        self._clock_noted_height = 0

    def watch_versions(self) -> None:
        """Stop at a version that this program does not know, and tell the operator well before."""
        core = self._core
        self.upgrade_needed = core.chain.upgrade_needed()
        coming = [(height, version) for height, version in core.state.versions() if version not in self._versions]
        if coming and coming[0] != self._version_noted:
            self._version_noted = coming[0]
            text = "install a newer qnode on this node before that height; without it the node stops there"
            core.note("error", "upgrade_needed", height=coming[0][0], version=coming[0][1], what_to_do=text)

    def watch_clock(self, block: Block, *, is_behind: bool) -> None:
        """Tell the operator when a quorum's time is far from this node's: its votes are missing then."""
        core = self._core
        distance_ns = block.header.time_ns - core.wall_ns
        is_near = abs(distance_ns) <= core.settings.clock_window_ns
        if is_behind or is_near or block.height < self._clock_noted_height:
            return
        self._clock_noted_height = block.height + CLOCK_NOTE_HEIGHTS
        text = "this node's clock is far from that of the quorum; set it (for example with NTP)"
        core.note("error", "clock_off", block_time_ahead_s=distance_ns / 1e9, what_to_do=text)

    def miss_vote_key(self) -> None:
        """The committee of the next height knows this node by a key that is not here."""
        text = "give it the key that the chain knows, or rotate it again; until then it watches"
        self._core.note("error", "vote_key_missing", height=self._core.height + 1, what_to_do=text)
