"""What policies demand of blocks of key and of links: figures, lifetime, suspension after aborts (S0-B3, SPEC 9.6).

A suspended link goes on making key: good blocks are recorded and lift the suspension; nothing is delivered over it.
"""

from dataclasses import replace
from typing import Any, Final

from ledger.contracts.entries import LinkWatch
from ledger.contracts.selection import NS, Policy, policies, policy_named, predicates_on
from ledger.state import State
from ledger.state_entries import KeyBlockState, LinkState
from ledger.transactions import KeyBlockRecorded

EARLY_BLOCKS: Final = 16
EARLY_NS: Final = 2 * NS
"""A node stops taking key of a block this long before its end: records wait some blocks for theirs."""

_FIGURES: Final = (
    ("key_block.qber_max", "qber", "qber_ppm", "ppm", True),
    ("key_block.secret_bits_min", "secret_bits", "secret_bits", "bits", False),
    ("key_block.security_bits_min", "security", "security_millibits", "millibits", False),
    ("key_block.pulses_min", "pulses", "pulses", "pulses", False),
)


def figures_fault(policy: Policy, block: KeyBlockRecorded | KeyBlockState) -> str | None:
    """Return which limit a block's figures break, or None; the state keeps all figures but the pulses."""
    for rule, name, figure, unit, is_upper in _FIGURES:
        limit, value = policy.rules.get(rule), getattr(block, figure, None)
        if limit is None or value is None or (value <= limit if is_upper else value >= limit):
            continue
        return policy.refuse(name, f"{value} {unit} is {'above' if is_upper else 'below'} {limit}")
    return None


def key_block_fault(state: State, link: LinkState, record: KeyBlockRecorded) -> str | None:
    """Return why a block may not be recorded, or None."""
    for policy in policies(state):
        if not policy.selects_link(link):
            continue
        if fault := figures_fault(policy, record):
            return fault
        for predicate in predicates_on(policy, "key_block"):
            if why := predicate.refusal(_block_values(state, link, record)):
                return policy.refuse("predicate", f"{predicate.name}: {why}")
    return None


def _block_values(state: State, link: LinkState, record: KeyBlockRecorded) -> dict[str, Any]:
    names = ("block_number", "pulses", "detections", "sifted_bits", "sample_bits", "qber_ppm", "leaked_bits")
    more = ("secret_bits", "security_millibits", "proof", "method")
    return {
        **{name: getattr(record, name) for name in (*names, *more)},
        "link": link.link_id,
        "transmitter": link.transmitter,
        "receiver": link.receiver,
        "height": state.height,
        "time_s": state.time_ns // NS,
    }


def observe_key_block(state: State, link_id: str) -> None:
    """Count a good block for the suspension of its link; enough of them lift it."""
    for watch in watches_of(state, link_id):
        policy = policy_named(state, watch.policy)
        window = policy.rules.get("suspension.window_blocks", 0) if policy else 0
        enough = policy.rules.get("suspension.clean_blocks") if policy else 1
        recent = tuple(height for height in watch.abort_heights if height > state.height - window)
        kept = replace(watch, abort_heights=recent, clean_blocks=watch.clean_blocks + 1)
        lifted = enough is not None and kept.clean_blocks >= enough
        if lifted or (not watch.suspended_height and not recent):
            state.remove_entry(watch)
        else:
            state.put_entry(kept)


def observe_alarm(state: State, link: LinkState) -> None:
    """Count an abort; enough of them in a policy's window suspend the link."""
    for policy in policies(state):
        enough = policy.rules.get("suspension.aborts")
        if enough is None or not policy.selects_link(link):
            continue
        watch = state.entry(LinkWatch, link.link_id, policy.name)
        before = watch.abort_heights if watch else ()
        floor = state.height - policy.rules["suspension.window_blocks"]
        recent = (*(height for height in before if height > floor), state.height)[-enough:]
        since = watch.suspended_height if watch else 0
        if not since and len(recent) >= enough:
            since = state.height
        state.put_entry(LinkWatch(link.link_id, policy.name, since, recent, 0))


def watches_of(state: State, link_id: str) -> tuple[LinkWatch, ...]:
    """Return what the policies have seen of a link."""
    return state.derived(LinkWatch, _by_link).get(link_id, ())


def _by_link(watches: tuple[LinkWatch, ...]) -> dict[str, tuple[LinkWatch, ...]]:
    found: dict[str, tuple[LinkWatch, ...]] = {}
    for watch in watches:
        found[watch.link_id] = (*found.get(watch.link_id, ()), watch)
    return found


def block_age_fault(
    policy: Policy, block: KeyBlockState, height: int, time_ns: int, *, early: bool = False
) -> str | None:
    """Return why a block has outlived a policy at a height and time, or None.

    `early` is for a node that takes key now for a record that the chain executes some blocks later.
    """
    blocks, seconds = policy.rules.get("lifetime.blocks"), policy.rules.get("lifetime.seconds")
    if blocks is not None and height > block.height + blocks - (min(blocks // 4, EARLY_BLOCKS) if early else 0):
        return policy.refuse("expired", f"block {block.block_number} of {block.link_id} lived {blocks} heights")
    lifetime_ns = None if seconds is None else seconds * NS
    if lifetime_ns is not None and time_ns > block.time_ns + lifetime_ns - (
        min(lifetime_ns // 4, EARLY_NS) if early else 0
    ):
        return policy.refuse("expired", f"block {block.block_number} of {block.link_id} lived {seconds} s")
    return None


def is_fading(state: State, link: LinkState, block: KeyBlockState) -> bool:
    """Say whether a block is in the last quarter of its lifetime: time to make new key in its place."""
    for rules in (policy.rules for policy in policies(state) if policy.selects_link(link)):
        blocks, seconds = rules.get("lifetime.blocks"), rules.get("lifetime.seconds")
        if blocks is not None and 4 * (state.height - block.height) > 3 * blocks:
            return True
        if seconds is not None and 4 * (state.time_ns - block.time_ns) > 3 * seconds * NS:
            return True
    return False


def block_fault(state: State, link: LinkState, block: KeyBlockState, height: int, time_ns: int) -> str | None:
    """Return why no key of a recorded block may be delivered any more to anyone, or None."""
    for policy in policies(state):
        if not policy.selects_link(link):
            continue
        if fault := figures_fault(policy, block) or block_age_fault(policy, block, height, time_ns):
            return fault
    return None
