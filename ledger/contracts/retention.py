"""What leaves the state by its age, where a policy says for how long it is kept (SEED_MAP S0-B3, SPEC 9.11).

Without one the state has every delivery for ever, and a network that delivers keys all day needs ever more memory. The
records themselves are not touched: they stay in the blocks, as long as those are kept.
"""

from typing import Final

from ledger.contracts.entries import BlockUse
from ledger.contracts.selection import policies
from ledger.state import State

RETIRED_MAX: Final = 2_000
"""Deliveries, and key blocks, that leave with one block (some 10 ms), but for the rest of the last one's height: a
policy that comes to an old chain takes effect bit by bit. One height at least leaves per block: nothing piles up."""


def retention_blocks(state: State) -> int | None:
    """Return for how many heights the state keeps key blocks and deliveries: the longest of all policies, or None."""
    rules = (policy.rules for policy in policies(state))
    return max((each["retention.blocks"] for each in rules if "retention.blocks" in each), default=None)


def begin_block(state: State) -> None:
    """Let what is older than the retention leave, before the first transaction of a block."""
    kept = retention_blocks(state)
    if kept is None or state.height <= kept:
        return
    for link_id, number in state.retire(state.height - kept, RETIRED_MAX):
        use = state.entry(BlockUse, link_id, number)
        if use is not None:
            state.remove_entry(use)
