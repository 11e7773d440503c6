"""What the chain's contracts let this node do now (SEED_MAP S0-B3): asked before anything is promised.

The chain refuses what breaks a rule when it executes the record; by then a key would be out. So the node asks the
very same functions first, counts its own deliveries that the chain has not recorded yet, and keeps some lifetime back.
Decides what is allowed; links, relay, delivery and the key store act on it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

from ledger.contracts import block_rules, delivery_rules, revocation
from ledger.contracts.entries import LinkWatch, PolicyEntry, Revocation
from ledger.contracts.routes import is_usable, suspended_links
from ledger.contracts.selection import policies
from ledger.execution import Receipt
from ledger.state import State
from ledger.state_entries import LinkState
from ledger.transactions import KeyBlockRecorded, KeyDelivered
from qnode.wire import Region


class ChainRules:
    """The rules of one node's chain, and the node's deliveries that are on their way into it."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._unrecorded: dict[bytes, KeyDelivered] = {}
        self._pair_counts: Counter[tuple[str, str]] = Counter()
        self._block_counts: Counter[tuple[str, int]] = Counter()
        self._seen: tuple[object, ...] = ()

    # ---- links

    def is_usable(self, link: LinkState | None) -> bool:
        """Say whether a link may carry key: no alarm, no suspension, no revoked end."""
        return link is not None and is_usable(self._state(), link)

    def usable_links(self) -> Iterator[LinkState]:
        """Iterate over the links that may carry key."""
        state = self._state()
        return (link for link in state.links() if is_usable(state, link))

    def suspended_by(self, link_id: str) -> str | None:
        """Return the policy that suspends a link, or None."""
        return suspended_links(self._state()).get(link_id)

    def counts_aborts(self, link_id: str) -> bool:
        """Say whether every abort of a link is to be reported, not the first alone: until it is suspended."""
        state = self._state()
        link = state.link(link_id)
        if link is None or link_id in suspended_links(state):
            return False
        return any("suspension.aborts" in policy.rules and policy.selects_link(link) for policy in policies(state))

    def qber_max(self, link_id: str) -> float | None:
        """Return the least error rate that the policies of a link allow at most, or None."""
        state = self._state()
        link = state.link(link_id)
        selected = (policy.rules for policy in policies(state) if link is not None and policy.selects_link(link))
        limits = [rules["key_block.qber_max"] for rules in selected if "key_block.qber_max" in rules]
        return min(limits) / 1e6 if limits else None

    def key_block_fault(self, record: KeyBlockRecorded) -> str | None:
        """Return why the chain would not record a block, or None."""
        state = self._state()
        link = state.link(record.link_id)
        assert link is not None, "the genesis has every link of this node"
        return revocation.key_block_fault(state, link, record.block_number) or block_rules.key_block_fault(
            state, link, record
        )

    # ---- deliveries

    def pair_fault(self, master_sae: str, slave_sae: str) -> str | None:
        """Return why two applications may share no keys, or None."""
        return delivery_rules.pair_fault(self._state(), master_sae, slave_sae)

    def quota_fault(self, master_sae: str, slave_sae: str, number: int) -> str | None:
        """Return why a pair may not have so many keys now, or None."""
        waiting = self._pair_counts[master_sae, slave_sae]
        return delivery_rules.quota_fault(self._state(), master_sae, slave_sae, waiting + number)

    def path_fault(self, master_sae: str, slave_sae: str, path: tuple[str, ...]) -> str | None:
        """Return why a key may not go over these nodes, or None."""
        state = self._state()
        if not policies(state):
            return None
        steps = list(pairwise(path))
        links = [link.link_id for link in self.usable_links() if any(link.joins(*step) for step in steps)]
        return delivery_rules.path_fault(state, master_sae, slave_sae, path, links)

    def avoided_relays(self, master_sae: str, slave_sae: str) -> frozenset[str]:
        """Return the nodes that may not relay keys of a pair."""
        return delivery_rules.avoided_relays(self._state(), master_sae, slave_sae)

    def is_block_allowed(self, master_sae: str, slave_sae: str, link_id: str, block_number: int, keys: int) -> bool:
        """Say whether so many keys of a pair may be taken from a block."""
        state = self._state()
        if not policies(state):
            return True
        block = state.key_block(link_id, block_number)
        if block is None:
            return False  # it has left the state: the chain would refuse the delivery
        waiting = self._block_counts[link_id, block_number]
        return delivery_rules.block_fault(state, master_sae, slave_sae, block, waiting + keys, early=True) is None

    def delivery_fault(self, records: list[KeyDelivered]) -> str | None:
        """Return why the chain would refuse one of these deliveries of one request, or None."""
        state = self._state()
        first = records[0]
        waiting = self._pair_counts[first.master_sae, first.slave_sae]
        uses = max((self._block_counts[hop[0], hop[1]] for hop in first.hops), default=0)
        return revocation.delivery_fault(state, first) or delivery_rules.delivery_fault(
            state, first, more_keys=waiting + len(records), more_uses=uses + len(records)
        )

    def delivered(self, record: KeyDelivered) -> None:
        """Count a delivery until the chain has recorded it."""
        self._unrecorded[record.key_id] = record
        self._count(record, 1)

    def recorded(self, receipt: Receipt) -> None:
        """The chain has recorded (or refused) a delivery: it counts there now."""
        record = receipt.transaction
        if isinstance(record, KeyDelivered) and (mine := self._unrecorded.pop(record.key_id, None)) is not None:
            self._count(mine, -1)

    def adopted(self) -> None:
        """The chain went on by a snapshot: what it knows of these deliveries counts there, or is too old to count."""
        state = self._state()
        for key_id, record in list(self._unrecorded.items()):
            gone = any(state.key_block(hop[0], hop[1]) is None for hop in record.hops)
            if gone or state.delivery(key_id) is not None:
                del self._unrecorded[key_id]
                self._count(record, -1)

    def _count(self, record: KeyDelivered, keys: int) -> None:
        pair = (record.master_sae, record.slave_sae)
        self._pair_counts[pair] += keys
        if not self._pair_counts[pair]:
            del self._pair_counts[pair]
        for block in dict.fromkeys((link_id, number) for link_id, number, _, _ in record.hops):
            self._block_counts[block] += keys
            if not self._block_counts[block]:
                del self._block_counts[block]

    # ---- what must be destroyed

    def have_changed(self) -> bool:
        """Say whether policies or revocations changed since the last call: then stored key is to be judged again."""
        state = self._state()
        now = (state.entries(PolicyEntry), state.entries(Revocation))
        changed = self._seen != now and (self._seen != () or any(now))
        self._seen = now
        return changed

    def have_lifetimes(self) -> bool:
        """Say whether key expires by itself."""
        return any(
            "lifetime.blocks" in policy.rules or "lifetime.seconds" in policy.rules
            for policy in policies(self._state())
        )

    def lasts(self, link_id: str, block_number: int) -> bool:
        """Say whether key of a committed block need not be replaced yet, for its lifetime is far from its end."""
        state = self._state()
        link, block = state.link(link_id), state.key_block(link_id, block_number)
        return link is not None and block is not None and not block_rules.is_fading(state, link, block)

    def stored_block_fault(self, link_id: str, block_number: int, now_ns: int) -> str | None:
        """Return why nothing of a committed block may ever be delivered, or None."""
        state = self._state()
        link, block = state.link(link_id), state.key_block(link_id, block_number)
        if link is None:
            return None
        if block is None:
            return f"block {block_number} of {link_id} has left the chain's state"
        return (
            revocation.node_fault(state, link.transmitter, link.receiver)
            or revocation.block_fault(state, link_id, block_number)
            or block_rules.block_fault(state, link, block, state.height, max(now_ns, state.time_ns))
        )

    def key_fault(self, key_id: bytes, regions: tuple[Region, ...], now_ns: int) -> str | None:
        """Return why a key that waits for its application may not be handed out, or None."""
        state = self._state()
        if fault := revocation.key_fault(state, key_id):
            return fault
        faults = (self.stored_block_fault(region[0], region[1], now_ns) for region in regions)
        return next((fault for fault in faults if fault is not None), None)

    def are_any(self) -> bool:
        """Say whether the chain has any contract that could forbid handing a key out."""
        state = self._state()
        return bool(state.entries(PolicyEntry) or state.entries(Revocation) or state.entries(LinkWatch))
