"""What the chain has agreed on, and its commitment: nodes, links, applications, key blocks, deliveries.

Every entry is a (key, canonical value) pair of one Merkle trie, so that membership and absence can be proven against
the root in a block header (SPEC 2.3). Changes collect during a block and are folded into the trie once. This module
keeps and reads; which change a transaction makes is decided in `execution`. Every entry is restorable from its key and
value alone (`Restoration`), which is what snapshots are made of (SPEC 7.7).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ledger.block import FIRST_VERSION
from ledger.contracts.entries import ENTRIES, Entry, LinkWatch, Revocation
from ledger.encoding import (
    MalformedEncoding,
    as_array,
    as_bytes,
    as_integer,
    as_text,
    integer_key,
    pack,
    unpack,
    unpack_array,
)
from ledger.genesis import Genesis
from ledger.merkle import Node, TrieProof, trie_prove, trie_root, trie_update
from ledger.validators import SETS_KEY, Validators, choose_committee, sets_from_value, sets_value

_Entry = TypeVar("_Entry")
_Derived = TypeVar("_Derived")
AnyEntry = TypeVar("AnyEntry", bound=Entry)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A registered node; `sequence` is the number of its last committed bundle, `index` its place of registration.

    A suspended node is out of the committee until a governance quorum lifts it; a revoked one may do nothing any more.
    """

    node_id: str
    public_key: bytes
    validator: bool
    sequence: int = 0
    index: int = 0
    suspended: bool = False
    revoked: bool = False
    post_quantum_key: bytes = b""

    @property
    def vote_key(self) -> bytes:
        """What statements are checked under: the public key, then the post-quantum one where votes are hybrid."""
        return self.public_key + self.post_quantum_key

    @property
    def may_vote(self) -> bool:
        """Whether this node may be chosen into the committee."""
        return self.validator and not self.suspended and not self.revoked


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key that is not simply its node's from the beginning: in force for the bundles of blocks `first` to `last`.

    `last_height` is 0 while it is in force.
    """

    public_key: bytes
    node_id: str
    first_height: int
    last_height: int = 0
    post_quantum_key: bytes = b""

    @property
    def vote_key(self) -> bytes:
        """What statements were checked under."""
        return self.public_key + self.post_quantum_key

    @classmethod
    def decode(cls, value: bytes) -> "KeyState":
        """Read the value of a key's entry. Raises MalformedEncoding."""
        public_key, node_id, first, last, post_quantum = unpack_array(value, 5)
        return cls(as_bytes(public_key), as_text(node_id), as_integer(first), as_integer(last), as_bytes(post_quantum))


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link: its ends, whether an alarm is active, and what was recorded on it. `last_block_number` is −1 at first."""

    link_id: str
    transmitter: str
    receiver: str
    alarmed: bool = False
    alarm_reason: str = ""
    alarms_raised: int = 0
    blocks_recorded: int = 0
    last_block_number: int = -1
    last_qber_ppm: int = 0
    secret_bits: int = 0

    def joins(self, one: str, other: str) -> bool:
        """Say whether the two nodes are the ends of this link."""
        if one == self.transmitter:
            return other == self.receiver
        return one == self.receiver and other == self.transmitter


@dataclass(frozen=True, slots=True)
class SaeState:
    """An application and the node that serves it."""

    sae_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device, its node, the floor of its keys, whether it was revoked (which is for good), and its alarm."""

    device_id: str
    node_id: str
    public_key: bytes
    key_bits_min: int
    security_millibits_min: int
    revoked: bool = False
    alarmed: bool = False
    alarm_reason: str = ""
    alarms_raised: int = 0


@dataclass(frozen=True, slots=True)
class KeyBlockState:
    """A recorded block of key; `transaction_id` names the full record in the block of `height`."""

    link_id: str
    block_number: int
    height: int
    transaction_id: bytes
    secret_bits: int
    qber_ppm: int
    security_millibits: int
    commitment: bytes
    time_ns: int  # of the block of `height`


# ---- keys of entries; the first byte is the kind


def node_key(node_id: str) -> bytes:
    """Key of a node's entry."""
    return b"n" + pack(node_id)


def link_key(link_id: str) -> bytes:
    """Key of a link's entry."""
    return b"l" + pack(link_id)


def sae_key(sae_id: str) -> bytes:
    """Key of an application's entry."""
    return b"s" + pack(sae_id)


def device_key(device_id: str) -> bytes:
    """Key of a device's entry."""
    return b"i" + pack(device_id)


def key_block_key(link_id: str, block_number: int) -> bytes:
    """Key of a key block's entry."""
    return b"b" + integer_key(block_number) + pack(link_id)


def delivery_key(key_id: bytes) -> bytes:
    """Key of a delivery's entry."""
    return b"d" + key_id


def equivocation_key(node_id: str, height: int) -> bytes:
    """Key of the proof that a validator contradicted itself at a height."""
    return b"e" + integer_key(height) + pack(node_id)


def public_key_key(public_key: bytes) -> bytes:
    """Key of the entry that says whose key this is, or was, and when."""
    return b"k" + public_key


CHAIN_KEY = b"c"
VERSIONS_KEY = b"f"
KEY_ID_SIZE_BYTES = 16


class State:
    """The state after `height`; mutable, one per replica. Older roots stay provable through `previous`."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._clear()
        for index, node in enumerate(genesis.nodes):
            more = node.post_quantum_key
            self.put_node(NodeState(node.node_id, node.public_key, node.validator, 0, index, post_quantum_key=more))
        for link in genesis.links:
            self.put_link(LinkState(link.link_id, link.transmitter, link.receiver))
        for sae in genesis.saes:
            self.put_sae(SaeState(sae.sae_id, sae.node_id))
        self._following = self._choose(1)
        self._after = self._choose(2)
        self._membership_changed = False
        self.put_sets(self._following, self._after)
        self._fold()

    def _clear(self) -> None:
        self.height = 0
        self._nodes: dict[str, NodeState] = {}
        self._links: dict[str, LinkState] = {}
        self._saes: dict[str, SaeState] = {}
        self._devices: dict[str, DeviceState] = {}
        self._key_blocks: dict[tuple[str, int], KeyBlockState] = {}
        self._deliveries: dict[bytes, bytes] = {}
        self._equivocations: dict[tuple[str, int], bytes] = {}
        self._entries: dict[type[Entry], dict[bytes, Entry]] = {}
        self._sorted_entries: dict[type[Entry], tuple[Entry, ...]] = {}
        self._versions: list[tuple[int, int]] = []
        self._keys: dict[bytes, KeyState] = {}
        self._keys_of: dict[str, list[bytes]] = {}
        self._derived: dict[Any, Any] = {}
        self.routes: dict[Any, int] = {}  # what `contracts.routes` found, while the links are as they are
        self.time_ns = 0
        self._changes: dict[bytes, bytes | None] = {}
        self._trie: Node | None = None
        self._previous_trie: Node | None = None
        self._membership_changed = False
        self.changed_nodes: list[str] = []
        """Nodes that the last block admitted or revoked, or gave another key."""

    # ---- reading

    @property
    def root(self) -> bytes:
        """The commitment to every entry after `height`."""
        return trie_root(self._trie)

    @property
    def previous_root(self) -> bytes:
        """The commitment after `height` − 1: the one in the header of `height`."""
        return trie_root(self._previous_trie)

    @property
    def trie(self) -> Node | None:
        """The trie of `root`: it stays whole while the state goes on, so that a snapshot is a reference to it."""
        return self._trie

    def node(self, node_id: str) -> NodeState | None:
        """Return a node, or None."""
        return self._nodes.get(node_id)

    def known_node(self, node_id: str) -> NodeState:
        """Return a node that is registered."""
        return self._nodes[node_id]

    @property
    def node_count(self) -> int:
        """How many nodes were ever registered: the place of the next."""
        return len(self._nodes)

    @property
    def hybrid_votes(self) -> bool:
        """Whether the statements of this chain carry two signatures."""
        return self._genesis.parameters.hybrid_votes

    def link(self, link_id: str) -> LinkState | None:
        """Return a link, or None."""
        return self._links.get(link_id)

    def sae(self, sae_id: str) -> SaeState | None:
        """Return an application, or None."""
        return self._saes.get(sae_id)

    def device(self, device_id: str) -> DeviceState | None:
        """Return a device, or None."""
        return self._devices.get(device_id)

    def key_block(self, link_id: str, block_number: int) -> KeyBlockState | None:
        """Return a recorded key block, or None."""
        return self._key_blocks.get((link_id, block_number))

    def delivery(self, key_id: bytes) -> tuple[int, bytes] | None:
        """Return (height, transaction id) of a delivered key, or None."""
        value = self._deliveries.get(key_id)
        if value is None:
            return None
        height, transaction_id = unpack_array(value, 2)
        return as_integer(height), transaction_id

    def nodes(self) -> Iterator[NodeState]:
        """Iterate over the nodes, those of the genesis first and in its order."""
        return iter(self._nodes.values())

    def links(self) -> Iterator[LinkState]:
        """Iterate over the links, those of the genesis first and in its order."""
        return iter(self._links.values())

    def saes(self) -> Iterator[SaeState]:
        """Iterate over the applications, those of the genesis first and in its order."""
        return iter(self._saes.values())

    def equivocation(self, node_id: str, height: int) -> bytes | None:
        """Return the id of the transaction that proved an equivocation of a validator at a height, or None."""
        return self._equivocations.get((node_id, height))

    def entry(self, kind: type[AnyEntry], *name: Any) -> AnyEntry | None:
        """Return an entry of contracts by its name, or None."""
        found = self._entries.get(kind)
        return found.get(kind.key_of(*name)) if found else None  # type: ignore[return-value]

    def entries(self, kind: type[AnyEntry]) -> tuple[AnyEntry, ...]:
        """Return all entries of contracts of one kind in the order of their keys, whatever their history."""
        found = self._sorted_entries.get(kind)
        if found is None:
            entries = self._entries.get(kind, {})
            found = self._sorted_entries[kind] = tuple(entries[key] for key in sorted(entries))
        return found  # type: ignore[return-value]

    def derived(self, kind: type[AnyEntry], build: Callable[[tuple[AnyEntry, ...]], _Derived]) -> _Derived:
        """Return `build`, a plain function, of all entries of a kind: computed once until one of them changes."""
        found = self._derived.get((kind, build))
        if found is None:
            found = self._derived[kind, build] = build(self.entries(kind))
        return found

    def _changed(self, kind: type[Entry]) -> None:
        self._sorted_entries.pop(kind, None)
        for key in [key for key in self._derived if key[0] is kind]:
            del self._derived[key]
        if kind in (LinkWatch, Revocation):
            self.routes.clear()

    def counts(self) -> dict[str, int]:
        """Return how many entries of each kind there are."""
        return {
            "nodes": len(self._nodes),
            "links": len(self._links),
            "saes": len(self._saes),
            "devices": len(self._devices),
            "key_blocks": len(self._key_blocks),
            "deliveries": len(self._deliveries),
            "equivocations": len(self._equivocations),
            "contract_entries": sum(len(entries) for entries in self._entries.values()),
            "keys": len(self._keys),
        }

    def key(self, public_key: bytes) -> KeyState | None:
        """Return whose key this is or was, if it is not simply a node's of the genesis that never changed."""
        return self._keys.get(public_key)

    def keys_of(self, node_id: str) -> list[KeyState]:
        """Return the entries of a node's keys, in the order of their heights."""
        found = [self._keys[public_key] for public_key in self._keys_of.get(node_id, ())]
        return sorted(found, key=lambda key: key.first_height)

    def all_keys(self) -> Iterator[KeyState]:
        """Iterate over the entries of keys."""
        return iter(self._keys.values())

    def is_key_known(self, public_key: bytes) -> bool:
        """Say whether any node has this key, or ever had it: a key is never used twice."""
        return public_key in self._keys or any(node.public_key == public_key for node in self._nodes.values())

    def validators(self) -> Validators:
        """Return the validators of height + 1."""
        return self._following

    def validators_after(self) -> Validators:
        """Return the validators of height + 2: what this state decided (SPEC 4.7)."""
        return self._after

    def _choose(self, height: int) -> Validators:
        """Choose the committee of `height`; where none may vote, as no accepted record can bring about, it stays."""
        limits = self._genesis.parameters
        nodes = self._nodes.values()
        found = choose_committee(nodes, height, self._genesis.digest, limits.committee_max, limits.epoch_heights)
        assert found is not None, "the rules keep at least one node that may vote"
        return found

    def version(self, height: int) -> int:
        """Return the version that a block of `height` must have, as far as this state knows."""
        return next((version for since, version in reversed(self._versions) if since <= height), FIRST_VERSION)

    def versions(self) -> list[tuple[int, int]]:
        """Return (first height, version) of every activation, past and to come, in order."""
        return list(self._versions)

    def leaves_voters(self, without: str) -> bool:
        """Say whether somebody may still vote without this node."""
        return any(node.may_vote for node in self._nodes.values() if node.node_id != without)

    def prove(self, key: bytes, previous: bool = False) -> TrieProof:
        """Return the proof that `key` is or is not an entry of `root` (or of `previous_root`)."""
        return trie_prove(self._previous_trie if previous else self._trie, key)

    # ---- changing; only `execution` calls these

    def put_node(self, node: NodeState) -> None:
        """Set a node's entry."""
        known = self._nodes.get(node.node_id)
        self._nodes[node.node_id] = node
        if known is None or (known.public_key, known.revoked) != (node.public_key, node.revoked):
            self.changed_nodes.append(node.node_id)
            self.routes.clear()
        if known is None or (known.may_vote, known.vote_key) != (node.may_vote, node.vote_key):
            self._membership_changed = True
        value = (node.node_id, node.public_key, int(node.validator), node.sequence, node.index)
        standing = (int(node.suspended), int(node.revoked), node.post_quantum_key)
        self._changes[node_key(node.node_id)] = pack((*value, *standing))

    def put_sequence(self, node_id: str, sequence: int) -> None:
        """Set the number of a node's last bundle."""
        self.put_node(replace(self._nodes[node_id], sequence=sequence))

    def put_key(self, key: KeyState) -> None:
        """Set the entry of a key that came after the genesis, or went."""
        if key.public_key not in self._keys:
            self._keys_of.setdefault(key.node_id, []).append(key.public_key)
        self._keys[key.public_key] = key
        heights = (key.first_height, key.last_height)
        self._changes[public_key_key(key.public_key)] = pack(
            (key.public_key, key.node_id, *heights, key.post_quantum_key)
        )

    def put_link(self, link: LinkState) -> None:
        """Set a link's entry."""
        before = self._links.get(link.link_id)
        if before is None or before.alarmed != link.alarmed:
            self.routes.clear()
        self._links[link.link_id] = link
        self._changes[link_key(link.link_id)] = pack(
            (
                *(link.link_id, link.transmitter, link.receiver),
                *(int(link.alarmed), link.alarm_reason, link.alarms_raised),
                *(link.blocks_recorded, link.last_block_number + 1, link.last_qber_ppm, link.secret_bits),
            )
        )

    def put_sae(self, sae: SaeState) -> None:
        """Set an application's entry."""
        self._saes[sae.sae_id] = sae
        self._changes[sae_key(sae.sae_id)] = pack((sae.sae_id, sae.node_id))

    def put_device(self, device: DeviceState) -> None:
        """Set a device's entry."""
        self._devices[device.device_id] = device
        value = (device.device_id, device.node_id, device.public_key)
        floor = (device.key_bits_min, device.security_millibits_min)
        alarm = (int(device.alarmed), device.alarm_reason, device.alarms_raised)
        self._changes[device_key(device.device_id)] = pack((*value, *floor, int(device.revoked), *alarm))

    def put_sets(self, following: Validators, after: Validators) -> None:
        """Set the validators of the next two heights."""
        self._following, self._after = following, after
        self._changes[SETS_KEY] = sets_value(following, after)

    def put_version(self, height: int, version: int) -> None:
        """Let `version` count from `height` on; both exceed those of every earlier activation."""
        self._versions.append((height, version))
        self._changes[VERSIONS_KEY] = pack(tuple(self._versions))

    def put_key_block(self, block: KeyBlockState) -> None:
        """Set a key block's entry."""
        self._key_blocks[block.link_id, block.block_number] = block
        self._changes[key_block_key(block.link_id, block.block_number)] = key_block_value(block)

    def put_delivery(self, key_id: bytes, transaction_id: bytes) -> None:
        """Set a delivery's entry."""
        value = pack((self.height, transaction_id))
        self._deliveries[key_id] = value
        self._changes[delivery_key(key_id)] = value

    def put_equivocation(self, node_id: str, height: int, transaction_id: bytes) -> None:
        """Set the entry of a proven equivocation."""
        self._equivocations[node_id, height] = transaction_id
        self._changes[equivocation_key(node_id, height)] = pack((node_id, height, self.height, transaction_id))

    def put_entry(self, entry: Entry) -> None:
        """Set an entry of contracts."""
        key = entry.key
        self._entries.setdefault(type(entry), {})[key] = entry
        self._changed(type(entry))
        self._changes[key] = entry.value

    def remove_entry(self, entry: Entry) -> None:
        """Remove an entry of contracts."""
        key = entry.key
        entries = self._entries[type(entry)]
        del entries[key]
        if not entries:
            del self._entries[type(entry)]
        self._changed(type(entry))
        self._changes[key] = None

    def begin(self, height: int, time_ns: int = 0) -> None:
        """Start on the block of `height`, which must be the next, with the time of its header."""
        assert height == self.height + 1 and not self._changes, (height, self.height)
        self.changed_nodes = []
        self.height = height
        self.time_ns = time_ns

    def finish(self, block_digest: bytes, receipts_root: bytes) -> None:
        """Choose the validators of the height after the next, and fold the changes of the block into the trie."""
        self._advance_validators()
        self._changes[CHAIN_KEY] = pack((self.height, block_digest, receipts_root))
        self._fold()

    def _advance_validators(self) -> None:
        before, self._following = self._following, self._after
        if self._membership_changed or (self.height + 1) % self._genesis.parameters.epoch_heights == 0:
            self._after = self._choose(self.height + 2)
            self._membership_changed = False
        if before != self._following or self._following != self._after:
            self.put_sets(self._following, self._after)

    def _fold(self) -> None:
        self._previous_trie = self._trie
        self._trie = trie_update(self._trie, self._changes)
        self._changes = {}


def key_block_value(block: KeyBlockState) -> bytes:
    """Return the canonical value of a key block's entry."""
    return pack(
        (
            *(block.link_id, block.block_number, block.height, block.transaction_id, block.secret_bits),
            *(block.qber_ppm, block.security_millibits, block.commitment, block.time_ns),
        )
    )


# ---- back from entries


class MalformedEntry(ValueError):
    """An entry that no state of this chain holds."""


class Restoration:
    """A state under construction from its entries, which may come in any order and in any number of parts.

    Nothing but (key, value) bytes goes in: an entry of a kind that is missing in `_RESTORERS` is refused, so that a
    snapshot can never lose what the chain agreed on. What the entries are is checked elsewhere, against a state root.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._state = State.__new__(State)
        self._state._genesis = genesis
        self._state._clear()

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
            if state._changes.get(key) != value:
                raise MalformedEntry(f"entry {key[:40].hex()} does not restore to itself")
        state._fold()

    def finish(self, height: int) -> State:
        """Return the state after `height`; ends the restoration."""
        state = self._state
        state.height = height
        state._previous_trie = None
        genesis = self._genesis
        state._nodes = {node.node_id: node for node in sorted(state._nodes.values(), key=lambda node: node.index)}
        state._links = _in_order(state._links, [link.link_id for link in genesis.links])
        state._saes = _in_order(state._saes, [sae.sae_id for sae in genesis.saes])
        state._membership_changed, state.changed_nodes = False, []  # the entry `v` says what followed from it
        return state


def _in_order(entries: dict[str, _Entry], first: list[str]) -> dict[str, _Entry]:
    known = [name for name in first if name in entries]
    return {name: entries[name] for name in (*known, *sorted(entries.keys() - set(known)))}


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
    state._changes[CHAIN_KEY] = value


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
