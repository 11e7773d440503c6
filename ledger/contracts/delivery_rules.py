"""What policies demand of deliveries: who, how many, over which nodes, from which blocks (SEED_MAP S0-B3, SPEC 9.7).

`delivery_fault` is the whole rule of the chain. The others are parts of it that a node can ask earlier: before it looks
for a way, and when it has one but no key yet.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ledger.contracts.block_rules import block_age_fault, figures_fault
from ledger.contracts.document import matches
from ledger.contracts.entries import BlockUse, QuotaUse
from ledger.contracts.routes import disjoint_paths, suspended_links
from ledger.contracts.selection import NS, Policy, pair_in, policies, predicates_on
from ledger.state import State
from ledger.state_entries import KeyBlockState
from ledger.transactions import KeyDelivered


def _whatever_the_way(state: State, master_sae: str, slave_sae: str) -> Iterator[Policy]:
    """Return the policies that hold for a pair before its way is known."""
    return (each for each in policies(state) if not each.names_a_way and each.selects_pair(master_sae, slave_sae))


def _on_the_way(
    state: State, master_sae: str, slave_sae: str, path: tuple[str, ...], links: tuple[str, ...]
) -> Iterator[Policy]:
    """Return the policies that hold for a pair on a way."""
    return (
        each for each in policies(state) if each.selects_pair(master_sae, slave_sae) and each.selects_way(path, links)
    )


def pair_fault(state: State, master_sae: str, slave_sae: str) -> str | None:
    """Return why two applications may share no key at all, whatever its way, or None."""
    for policy in _whatever_the_way(state, master_sae, slave_sae):
        if fault := _pair_fault(policy, master_sae, slave_sae):
            return fault
    return None


def _pair_fault(policy: Policy, master_sae: str, slave_sae: str) -> str | None:
    allowed, denied = policy.rules.get("delivery.pairs_allow"), policy.rules.get("delivery.pairs_deny", ())
    if pair_in(denied, master_sae, slave_sae):
        return policy.refuse("pair", f"{master_sae} and {slave_sae} may share no keys")
    if allowed is not None and not pair_in(allowed, master_sae, slave_sae):
        return policy.refuse("pair", f"{master_sae} and {slave_sae} are not among those who may share keys")
    return None


def quota_fault(state: State, master_sae: str, slave_sae: str, more: int) -> str | None:
    """Return why a pair may not have `more` keys now, or None; for quotas that hold whatever the way."""
    for policy in _whatever_the_way(state, master_sae, slave_sae):
        if fault := _quota_fault(state, policy, master_sae, slave_sae, more):
            return fault
    return None


def _quota_fault(state: State, policy: Policy, master_sae: str, slave_sae: str, more: int) -> str | None:
    quota = policy.rules.get("delivery.quota_keys")
    if quota is None:
        return None
    used, window = _quota_use(state, policy, master_sae, slave_sae), policy.rules["delivery.quota_window_blocks"]
    if used.keys + more <= quota:
        return None
    following = used.window_height + window
    return policy.refuse("quota", f"{used.keys} of {quota} keys were delivered; the next window begins at {following}")


def _quota_use(state: State, policy: Policy, master_sae: str, slave_sae: str) -> QuotaUse:
    """Return the count of the present window; windows begin at the multiples of their length."""
    window = policy.rules["delivery.quota_window_blocks"]
    begins = state.height // window * window
    used = state.entry(QuotaUse, policy.name, master_sae, slave_sae)
    if used is None or used.window_height != begins:
        return QuotaUse(policy.name, master_sae, slave_sae, begins, 0)
    return used


def path_fault(
    state: State, master_sae: str, slave_sae: str, path: tuple[str, ...], links: Iterable[str]
) -> str | None:
    """Return why a key may not take this way, or None."""
    links = tuple(links)
    for policy in _on_the_way(state, master_sae, slave_sae, path, links):
        if fault := _path_fault(state, policy, path):
            return fault
    return _suspension_fault(state, links)


def _path_fault(state: State, policy: Policy, path: tuple[str, ...]) -> str | None:
    wanted = policy.rules.get("route.disjoint_paths_min")
    fault = _relays_fault(policy, path)
    if fault is None and wanted is not None and len(path) > 1:
        away = avoided_nodes(state, policy.rules.get("route.avoid_nodes", ()))
        found = disjoint_paths(state, path[0], path[-1], away, wanted)
        if found < wanted:
            return policy.refuse("disjoint", f"{found} disjoint ways join {path[0]} and {path[-1]}; {wanted} must")
    return fault


def _relays_fault(policy: Policy, path: tuple[str, ...]) -> str | None:
    for node_id in path[1:-1]:
        if any(matches(each, node_id) for each in policy.rules.get("route.avoid_nodes", ())):
            return policy.refuse("avoid", f"no key may pass {node_id}")
    longest = policy.rules.get("route.hops_max")
    if longest is not None and len(path) - 1 > longest:
        return policy.refuse("hops", f"{len(path) - 1} hops are more than {longest}")
    return None


def avoided_nodes(state: State, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the nodes that patterns mean."""
    patterns = tuple(patterns)
    if not patterns:
        return ()
    return tuple(node.node_id for node in state.nodes() if any(matches(each, node.node_id) for each in patterns))


def avoided_relays(state: State, master_sae: str, slave_sae: str) -> frozenset[str]:
    """Return the nodes that no key of a pair may pass, by any policy that selects the pair."""
    selected = (each.rules for each in policies(state) if each.selects_pair(master_sae, slave_sae))
    rules = (each.get("route.avoid_nodes", ()) for each in selected)
    return frozenset(node_id for patterns in rules for node_id in avoided_nodes(state, patterns))


def _suspension_fault(state: State, links: Iterable[str]) -> str | None:
    suspended = suspended_links(state)
    for link_id in links if suspended else ():
        if link_id in suspended:
            return f"policy.suspended: {suspended[link_id]}: {link_id} is suspended after repeated aborts"
    return None


def delivery_fault(state: State, delivered: KeyDelivered, *, more_keys: int = 1, more_uses: int = 1) -> str | None:
    """Return why a key may not be delivered, or None; `state` has its key blocks.

    The chain counts one key and one use at a time; a node those that are on their way into the chain as well.
    """
    if not policies(state):
        return None
    links = tuple(dict.fromkeys(hop[0] for hop in delivered.hops))
    for policy in _on_the_way(state, delivered.master_sae, delivered.slave_sae, delivered.path, links):
        if fault := _delivery_fault(state, policy, delivered, links, more_keys, more_uses):
            return fault
    return _suspension_fault(state, links)


def _delivery_fault(
    state: State, policy: Policy, delivered: KeyDelivered, links: tuple[str, ...], more_keys: int, more_uses: int
) -> str | None:
    pair = (delivered.master_sae, delivered.slave_sae)
    if fault := _pair_fault(policy, *pair) or _path_fault(state, policy, delivered.path):
        return fault
    blocks = _blocks(state, delivered)
    for block in blocks:
        if not policy.selects_way(delivered.path, (block.link_id,)):
            continue
        if fault := _block_fault(state, policy, block, more_uses, early=False):
            return fault
    if fault := _quota_fault(state, policy, *pair, more_keys):
        return fault
    for predicate in predicates_on(policy, "delivery"):
        if why := predicate.refusal(_delivery_values(state, delivered, links, blocks)):
            return policy.refuse("predicate", f"{predicate.name}: {why}")
    return None


def objections(state: State, delivered: KeyDelivered) -> list[str]:
    """Return what the policies of a later state say against a delivered key: pair, relays, its blocks' figures and age.

    Quotas, uses, disjoint ways and predicates are questions of the moment of delivery.
    """
    found: list[str | None] = []
    links = tuple(dict.fromkeys(hop[0] for hop in delivered.hops))
    pair = (delivered.master_sae, delivered.slave_sae)
    for policy in _on_the_way(state, *pair, delivered.path, links):
        found += [_pair_fault(policy, *pair), _relays_fault(policy, delivered.path)]
        for block in _blocks(state, delivered):
            if policy.selects_way(delivered.path, (block.link_id,)):
                found += [figures_fault(policy, block), block_age_fault(policy, block, state.height, state.time_ns)]
    return [fault for fault in found if fault is not None]


def _block_fault(state: State, policy: Policy, block: KeyBlockState, more: int, *, early: bool) -> str | None:
    fault = figures_fault(policy, block) or block_age_fault(policy, block, state.height, state.time_ns, early=early)
    uses_max = policy.rules.get("delivery.block_uses_max")
    if fault is not None or uses_max is None:
        return fault
    used = state.entry(BlockUse, block.link_id, block.block_number)
    uses = used.uses if used else 0
    if uses + more <= uses_max:
        return None
    return policy.refuse("uses", f"block {block.block_number} of {block.link_id} has carried {uses} of {uses_max} keys")


def block_fault(
    state: State, master_sae: str, slave_sae: str, block: KeyBlockState, more: int, *, early: bool
) -> str | None:
    """Return why `more` keys of a pair may not be taken from a block, or None; for policies whatever their way."""
    for policy in policies(state):
        if not policy.selects_pair(master_sae, slave_sae):
            continue
        if fault := _block_fault(state, policy, block, more, early=early):
            return fault
    return None


def _blocks(state: State, delivered: KeyDelivered) -> list[KeyBlockState]:
    named = dict.fromkeys((link_id, number) for link_id, number, _, _ in delivered.hops)
    found = (state.key_block(*name) for name in named)
    return [block for block in found if block is not None]


def _delivery_values(
    state: State, delivered: KeyDelivered, links: tuple[str, ...], blocks: list[KeyBlockState]
) -> dict[str, Any]:
    """Return what a predicate sees; a delivery without hops has the best figures there are."""
    return {
        "master": delivered.master_sae,
        "slave": delivered.slave_sae,
        "size_bits": delivered.size_bits,
        "path": list(delivered.path),
        "links": list(links),
        "hops": len(delivered.path) - 1,
        "qber_ppm_max": max((block.qber_ppm for block in blocks), default=0),
        "security_millibits_min": min((block.security_millibits for block in blocks), default=2**62),
        "age_blocks_max": max((state.height - block.height for block in blocks), default=0),
        "height": state.height,
        "time_s": state.time_ns // NS,
    }


def observe_delivery(state: State, delivered: KeyDelivered) -> None:
    """Count an accepted delivery for quotas and uses."""
    in_force = policies(state)
    if not in_force:
        return
    links = tuple(dict.fromkeys(hop[0] for hop in delivered.hops))
    pair = (delivered.master_sae, delivered.slave_sae)
    for policy in _on_the_way(state, *pair, delivered.path, links):
        if "delivery.quota_keys" in policy.rules:
            used = _quota_use(state, policy, *pair)
            state.put_entry(replace(used, keys=used.keys + 1))
    if any("delivery.block_uses_max" in policy.rules for policy in in_force):
        for block in _blocks(state, delivered):
            found = state.entry(BlockUse, block.link_id, block.block_number)
            state.put_entry(BlockUse(block.link_id, block.block_number, (found.uses if found else 0) + 1))
