"""How policies come into force and leave it; called by their actions alone (SEED_MAP S0-B3, SPEC 9.5)."""

from ledger.contracts.block_rules import watches_of
from ledger.contracts.document import PolicyDocument
from ledger.contracts.entries import BlockUse, LinkWatch, PolicyEntry, PolicyIndex, QuotaUse
from ledger.contracts.selection import policies
from ledger.state import State


def set_policy(state: State, document: PolicyDocument) -> None:
    """Put a policy in force, from the next transaction on; what its forerunner counted is forgotten."""
    _forget(state, document.name, keep_suspensions=document.value("suspension.aborts") is not None)
    state.put_entry(PolicyEntry(document.name, state.height, document.encoded))
    _index(state)
    _forget_uses(state)


def remove_policy(state: State, name: str) -> None:
    """Take a policy out of force, with its suspensions and counts."""
    entry = state.entry(PolicyEntry, name)
    assert entry is not None, "the action looked for it"
    _forget(state, name, keep_suspensions=False)
    state.remove_entry(entry)
    _index(state)
    _forget_uses(state)


def lift_suspension(state: State, link_id: str) -> None:
    """End the suspension of a link, and forget its aborts."""
    for watch in watches_of(state, link_id):
        state.remove_entry(watch)


def _index(state: State) -> None:
    names = tuple(sorted(entry.policy for entry in state.entries(PolicyEntry)))
    if names:
        state.put_entry(PolicyIndex(names))
    elif (known := state.entry(PolicyIndex)) is not None:
        state.remove_entry(known)


def _forget(state: State, name: str, *, keep_suspensions: bool) -> None:
    for quota in state.entries(QuotaUse):
        if quota.policy == name:
            state.remove_entry(quota)
    for watch in state.entries(LinkWatch):
        if watch.policy == name and not (keep_suspensions and watch.suspended_height):
            state.remove_entry(watch)


def _forget_uses(state: State) -> None:
    if not any("delivery.block_uses_max" in policy.rules for policy in policies(state)):
        for use in state.entries(BlockUse):
            state.remove_entry(use)
