"""Revocation of a block of key, a key, or a node: by governance, or by an end of the link for its own block (S0-B3).

A revocation is for good. Keys and blocks that the chain does not know (yet) can be revoked as well: what is feared may
never have been recorded.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ledger.contracts.documents import Documented
from ledger.contracts.entries import Revocation
from ledger.encoding import as_bytes, as_integer, as_text
from ledger.genesis import NAME_LENGTH_MAX
from ledger.state import State
from ledger.state_entries import LinkState
from ledger.transactions import KeyBlockRevoked, KeyDelivered

REASON_LENGTH_MAX: Final = 64
KEY_ID_SIZE_BYTES: Final = 16
GOVERNANCE: Final = "governance"


def block_subject(link_id: str, block_number: int) -> tuple[Any, ...]:
    """Return the subject of a block of key."""
    return ("block", link_id, block_number)


def key_subject(key_id: bytes) -> tuple[Any, ...]:
    """Return the subject of a key."""
    return ("key", key_id)


def node_subject(node_id: str) -> tuple[Any, ...]:
    """Return the subject of a node."""
    return ("node", node_id)


def _fault(state: State, subject: tuple[Any, ...]) -> str | None:
    known = state.entry(Revocation, subject)
    return None if known is None else f"revoked already at height {known.height}"


def _revoke(state: State, subject: tuple[Any, ...], reason: str, decided_by: str = GOVERNANCE) -> None:
    state.put_entry(Revocation(subject, state.height, reason, decided_by))


@dataclass(frozen=True, slots=True)
class RevokeKeyBlock(Documented):
    """Nothing of this block of key may be delivered any more, and what was is revoked with it."""

    KIND: ClassVar[int] = 1
    NAME: ClassVar[str] = "revoke-key-block"

    link_id: str
    block_number: int
    reason: str

    def __post_init__(self) -> None:
        as_text(self.link_id, NAME_LENGTH_MAX)
        as_integer(self.block_number)
        as_text(self.reason, REASON_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        if state.link(self.link_id) is None:
            return f"{self.link_id} is not a link of this chain"
        return _fault(state, block_subject(self.link_id, self.block_number))

    def execute(self, state: State) -> None:
        """Revoke it."""
        _revoke(state, block_subject(self.link_id, self.block_number), self.reason)


@dataclass(frozen=True, slots=True)
class RevokeKey(Documented):
    """A key, delivered or held, is not to be used or handed out any more."""

    KIND: ClassVar[int] = 2
    NAME: ClassVar[str] = "revoke-key"

    key_id: bytes
    reason: str

    def __post_init__(self) -> None:
        as_bytes(self.key_id, KEY_ID_SIZE_BYTES)
        as_text(self.reason, REASON_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        return _fault(state, key_subject(self.key_id))

    def execute(self, state: State) -> None:
        """Revoke it."""
        _revoke(state, key_subject(self.key_id), self.reason)


@dataclass(frozen=True, slots=True)
class RevokeNode(Documented):
    """A node is trusted with no key any more: its links give none, and no path leads over it or ends there."""

    KIND: ClassVar[int] = 3
    NAME: ClassVar[str] = "revoke-node-keys"

    node_id: str
    reason: str

    def __post_init__(self) -> None:
        as_text(self.node_id, NAME_LENGTH_MAX)
        as_text(self.reason, REASON_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        if state.node(self.node_id) is None:
            return f"{self.node_id} is not a node of this chain"
        return _fault(state, node_subject(self.node_id))

    def execute(self, state: State) -> None:
        """Revoke it."""
        _revoke(state, node_subject(self.node_id), self.reason)


def revoke_own_block(state: State, sender: str, record: KeyBlockRevoked) -> str | None:
    """Execute the revocation of a block by an end of its link. Returns the refusal, or None."""
    link, subject = state.link(record.link_id), block_subject(record.link_id, record.block_number)
    if link is None:
        return f"revocation.link: {record.link_id} is not a link of this chain"
    if record.revoker != sender or sender not in (link.transmitter, link.receiver):
        return f"revocation.sender: {sender} is not an end of {record.link_id}"
    if fault := _fault(state, subject):
        return f"revocation.known: {fault}"
    _revoke(state, subject, record.reason, sender)
    return None


def node_fault(state: State, *node_ids: str) -> str | None:
    """Return which of the nodes is revoked, or None."""
    for node_id in node_ids:
        known = state.entry(Revocation, node_subject(node_id))
        if known is not None:
            return f"revocation.node: {node_id} is revoked ({known.reason})"
    return None


def block_fault(state: State, link_id: str, block_number: int) -> str | None:
    """Return why nothing of a block may be used, or None."""
    known = state.entry(Revocation, block_subject(link_id, block_number))
    return None if known is None else f"revocation.block: block {block_number} of {link_id} is revoked ({known.reason})"


def key_fault(state: State, key_id: bytes) -> str | None:
    """Return why a key may not be used, or None."""
    known = state.entry(Revocation, key_subject(key_id))
    return None if known is None else f"revocation.key: the key is revoked ({known.reason})"


def key_block_fault(state: State, link: LinkState, block_number: int) -> str | None:
    """Return why a block may not be recorded, or None."""
    if not state.entries(Revocation):
        return None
    return node_fault(state, link.transmitter, link.receiver) or block_fault(state, link.link_id, block_number)


def delivery_fault(state: State, delivered: KeyDelivered) -> str | None:
    """Return why a key may not be delivered, or None."""
    for node_id in delivered.path:
        node = state.node(node_id)
        if node is not None and node.revoked:
            return f"revocation.node: {node_id} was removed"
    if not state.entries(Revocation):
        return None
    blocks = (block_fault(state, link_id, number) for link_id, number, _, _ in delivered.hops)
    return (
        key_fault(state, delivered.key_id)
        or node_fault(state, *delivered.path)
        or next((fault for fault in blocks if fault is not None), None)
    )
