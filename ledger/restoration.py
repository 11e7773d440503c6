"""A state from its entries: what snapshots are read back with, and proofs are executed on (SPEC 7.7).

Every kind of entry has its reader here. Decides nothing about whom to trust: what the entries are is checked elsewhere,
against a certified state root.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from ledger.contracts.entries import ENTRIES
from ledger.encoding import MalformedEncoding, as_array, as_bytes, as_integer, unpack, unpack_array
from ledger.genesis import Genesis
from ledger.state import State
from ledger.state_entries import (
    CHAIN_KEY,
    KEY_ID_SIZE_BYTES,
    VERSIONS_KEY,
    DeviceState,
    KeyBlockState,
    KeyState,
    LinkState,
    NodeState,
    SaeState,
)
from ledger.validators import SETS_KEY, sets_from_value


class MalformedEntry(ValueError):
    """An entry that no state of this chain holds."""


class Restoration:
    """A state under construction from its entries, which may come in any order and in any number of parts.

    Nothing but (key, value) bytes goes in: an entry of a kind that is missing in `_RESTORERS` is refused, so that a
    snapshot can never lose what the chain agreed on. What the entries are is checked elsewhere, against a state root.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._state = State.blank(genesis)

    @property
    def root(self) -> bytes:
        """The root of what is here so far."""
        return self._state.root

    def add(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Take entries in. About 8 µs each. Raises MalformedEntry."""
        state = self._state
        for key, value in entries:
            restore = _RESTORERS.get(key[:1])
            try:
                if restore is None:
                    raise MalformedEncoding("no entry of the chain is of this kind")
                restore(state, key, value)
            except (MalformedEncoding, TypeError, ValueError, KeyError) as error:
                raise MalformedEntry(f"entry {key[:40].hex()}: {error}") from None
            if state.pending(key) != value:
                raise MalformedEntry(f"entry {key[:40].hex()} does not restore to itself")
        state.fold()

    def finish(self, height: int) -> State:
        """Return the state after `height`; ends the restoration."""
        self._state.settle_at(height)
        return self._state


def _restore_node(state: State, key: bytes, value: bytes) -> None:
    node_id, public_key, validator, sequence, index, suspended, revoked, more = unpack_array(value, 8)
    standing = (bool(suspended), bool(revoked), more)
    state.put_node(NodeState(node_id, public_key, bool(validator), sequence, index, *standing))


def _restore_key(state: State, key: bytes, value: bytes) -> None:
    state.put_key(KeyState.decode(value))


def _restore_sets(state: State, key: bytes, value: bytes) -> None:
    state.put_sets(*sets_from_value(value))


def _restore_versions(state: State, key: bytes, value: bytes) -> None:
    for entry in as_array(unpack(value)):
        height, version = as_array(entry, 2)
        state.put_version(as_integer(height), as_integer(version))


def _restore_link(state: State, key: bytes, value: bytes) -> None:
    link_id, transmitter, receiver, alarmed, reason, alarms, blocks, following, qber, bits = unpack_array(value, 10)
    ends = (link_id, transmitter, receiver)
    state.put_link(LinkState(*ends, bool(alarmed), reason, alarms, blocks, following - 1, qber, bits))


def _restore_sae(state: State, key: bytes, value: bytes) -> None:
    state.put_sae(SaeState(*unpack_array(value, 2)))


def _restore_device(state: State, key: bytes, value: bytes) -> None:
    device_id, node_id, public_key, bits_min, security_min, revoked, alarmed, reason, alarms = unpack_array(value, 9)
    known = DeviceState(device_id, node_id, public_key, bits_min, security_min, bool(revoked))
    state.put_device(replace(known, alarmed=bool(alarmed), alarm_reason=reason, alarms_raised=alarms))


def _restore_key_block(state: State, key: bytes, value: bytes) -> None:
    state.put_key_block(KeyBlockState(*unpack_array(value, 9)))


def _restore_delivery(state: State, key: bytes, value: bytes) -> None:
    height, transaction_id = unpack_array(value, 2)
    state.height = as_integer(height)
    state.put_delivery(as_bytes(key[1:], KEY_ID_SIZE_BYTES), transaction_id)


def _restore_equivocation(state: State, key: bytes, value: bytes) -> None:
    node_id, height, recorded, transaction_id = unpack_array(value, 4)
    state.height = as_integer(recorded)
    state.put_equivocation(node_id, height, transaction_id)


def _restore_chain(state: State, key: bytes, value: bytes) -> None:
    as_array(unpack(value), 3)
    state.put_chain(value)


def _restore_contract(state: State, key: bytes, value: bytes) -> None:
    state.put_entry(ENTRIES[key[:1]].from_value(value))


_RESTORERS: dict[bytes, Callable[[State, bytes, bytes], None]] = {
    b"n": _restore_node,
    b"l": _restore_link,
    b"s": _restore_sae,
    b"i": _restore_device,
    b"b": _restore_key_block,
    b"d": _restore_delivery,
    b"e": _restore_equivocation,
    b"k": _restore_key,
    SETS_KEY: _restore_sets,
    VERSIONS_KEY: _restore_versions,
    CHAIN_KEY: _restore_chain,
    **dict.fromkeys(ENTRIES, _restore_contract),
}
