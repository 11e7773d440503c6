"""What time and the chain's contracts do to key that is stored here: it expires, is destroyed, or its proof is needed.

Decides nothing about who gets key (`delivery`) or which rules hold (`rules`); does what they say to the key store.
"""

import uuid
from collections.abc import Callable

from ledger.chain import Chain
from ledger.transactions import KeyDelivered, decode
from qnode.context import Context
from qnode.keystore import KeyStore
from qnode.rules import ChainRules
from qnode.wire import Region


class Custody:
    """The key of one node. `destroyed_bytes` counts what the contracts took back."""

    def __init__(self, context: Context, keys: KeyStore, rules: ChainRules, chain: Callable[[], Chain]) -> None:
        self.destroyed_bytes = 0
        self._context = context
        self._keys = keys
        self._rules = rules
        self._chain = chain

    def expire(self) -> bool:
        """Destroy what nobody fetched in time and what policies let last no longer; say whether more may expire."""
        have_lifetimes = self._rules.have_lifetimes()
        self._context.write(self._keys.expire_held(self._context.now_ns))
        if have_lifetimes:
            self.destroy_forbidden()
        return have_lifetimes or self._keys.held_count > 0

    def destroy_forbidden(self) -> None:
        """Destroy the key that the chain's contracts let nobody have any more: revoked, expired, below the limits."""
        context = self._context
        for link_id, number in self._keys.available_blocks():
            fault = self._rules.stored_block_fault(link_id, number, context.now_ns)
            if fault is not None:
                size_bytes, writes = self._keys.destroy_block(link_id, number)
                self.destroyed_bytes += size_bytes
                context.write(writes)
                context.log("warning", "key block destroyed", link=link_id, block=number, reason=fault)
        for key_id in self._keys.held_ids():
            fault = self._rules.key_fault(key_id, self.carried_by(key_id), context.now_ns)
            if fault is not None:
                context.write(self._keys.destroy_held(key_id))
                context.log("warning", "key destroyed", key_id=str(uuid.UUID(bytes=key_id)), reason=fault)

    def carried_by(self, key_id: bytes) -> tuple[Region, ...]:
        """Return the pieces of key that the chain's record of a delivery names; none before it is recorded."""
        found = self._chain().state.delivery(key_id)
        record = None if found is None else self._chain().transaction(*found)
        if record is None:
            return ()
        delivered = decode(record)
        assert isinstance(delivered, KeyDelivered), "a delivery's entry names its record"
        return tuple((link_id, number, 0, 0) for link_id, number, _, _ in delivered.hops)

    def needed_height(self) -> int | None:
        """Return the lowest height whose block proves a key that this node may still deliver, or None."""
        found = [self._chain().state.key_block(*name) for name in self._keys.available_blocks()]
        return min((block.height for block in found if block is not None), default=None)
