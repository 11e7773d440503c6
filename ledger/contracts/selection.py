"""The policies in force, and whom each is meant for (SEED_MAP S0-B3, SPEC 9.5).

Those of the state when a transaction is executed, also for blocks of key that were recorded under others. They are
asked in the order of their names, and the first refusal is the answer: `policy.<rule>: <policy>: why`. A chain without
policies pays one look into a table. The node asks the same functions before it promises anything.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ledger.contracts.document import PolicyDocument, decode_policy, matches
from ledger.contracts.entries import PolicyEntry
from ledger.contracts.predicates import Predicate
from ledger.state import State
from ledger.state_entries import LinkState

POLICIES_MAX: Final = 32
"""In force at once: each costs every transaction that it selects some microseconds."""
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy in force, made ready for questions."""

    name: str
    height: int
    document: PolicyDocument
    rules: dict[str, Any]

    def refuse(self, rule: str, why: str) -> str:
        """Return a refusal that names rule and policy."""
        return f"policy.{rule}: {self.name}: {why}"

    def selects_link(self, link: LinkState) -> bool:
        """Say whether the rules for blocks and aborts of a link are meant for this one."""
        rules = self.rules
        if "select.pairs" in rules or "select.devices" in rules:
            return False
        return self._has_link((link.link_id,)) and self._has_node((link.transmitter, link.receiver))

    def selects_pair(self, master_sae: str, slave_sae: str) -> bool:
        """Say whether deliveries between two applications are meant, whatever their way."""
        pairs = self.rules.get("select.pairs")
        return "select.devices" not in self.rules and (pairs is None or pair_in(pairs, master_sae, slave_sae))

    def selects_way(self, path: tuple[str, ...], links: Iterable[str]) -> bool:
        """Say whether deliveries over these nodes and links are meant."""
        return self._has_node(path) and self._has_link(links)

    def selects_device(self, device_id: str, node_id: str) -> bool:
        """Say whether a device of a node is meant."""
        rules = self.rules
        if "select.pairs" in rules or "select.links" in rules or not self._has_node((node_id,)):
            return False
        return any(matches(each, device_id) for each in rules.get("select.devices", ("*",)))

    @property
    def names_a_way(self) -> bool:
        """Whether it is meant for some links or nodes only."""
        return "select.links" in self.rules or "select.nodes" in self.rules

    def _has_node(self, node_ids: Iterable[str]) -> bool:
        patterns = self.rules.get("select.nodes")
        return patterns is None or any(matches(each, node_id) for each in patterns for node_id in node_ids)

    def _has_link(self, link_ids: Iterable[str]) -> bool:
        patterns = self.rules.get("select.links")
        return patterns is None or any(matches(each, link_id) for link_id in link_ids for each in patterns)


def pair_in(pairs: Iterable[tuple[str, str]], master_sae: str, slave_sae: str) -> bool:
    """Say whether a pair of applications is meant by one of the pairs of patterns, in either direction."""
    return any(
        (matches(one, master_sae) and matches(other, slave_sae))
        or (matches(one, slave_sae) and matches(other, master_sae))
        for one, other in pairs
    )


def policies(state: State) -> tuple[Policy, ...]:
    """Return the policies in force, in the order of their names."""
    return state.derived(PolicyEntry, _ready)


def _ready(entries: tuple[PolicyEntry, ...]) -> tuple[Policy, ...]:
    ready = []
    for entry in sorted(entries, key=lambda each: each.policy):
        document = decode_policy(entry.document)
        ready.append(Policy(entry.policy, entry.height, document, dict(document.values)))
    return tuple(ready)


def predicates_on(policy: Policy, subject: str) -> Iterator[Predicate]:
    """Return the custom predicates of a policy on a subject."""
    return (each for each in policy.document.predicates if each.subject == subject)


def policy_named(state: State, name: str) -> Policy | None:
    """Return the policy of this name, or None."""
    return next((each for each in policies(state) if each.name == name), None)
