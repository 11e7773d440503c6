"""What the chain has agreed on, and its commitment: nodes, links, applications, key blocks, deliveries.

Every entry is a (key, canonical value) pair of one Merkle trie, so that membership and absence can be proven against
the root in a block header (SPEC 2.3). Changes collect during a block and are folded into the trie once. This module
keeps and reads; what the entries say is in `state_entries`, which change a transaction makes is decided in `execution`.
Every entry is restorable from its key and value alone (`restoration`), which is what snapshots are made of (SPEC 7.7).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from ledger.ages import Ages, oldest
from ledger.block import FIRST_VERSION
from ledger.contracts.entries import Entry, LinkWatch, Revocation
from ledger.encoding import as_integer, pack, unpack_array
from ledger.genesis import Genesis
from ledger.merkle import Node, TrieProof, trie_get, trie_prove, trie_root, trie_update
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
    delivery_key,
    device_key,
    equivocation_key,
    key_block_key,
    key_block_value,
    link_key,
    node_key,
    public_key_key,
    sae_key,
)
from ledger.validators import SETS_KEY, Validators, choose_committee, sets_value

_Entry = TypeVar("_Entry")
_Derived = TypeVar("_Derived")
AnyEntry = TypeVar("AnyEntry", bound=Entry)


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
        self.fold()

    @classmethod
    def blank(cls, genesis: Genesis) -> "State":
        """Return a state with no entry at all, to be restored from entries."""
        state = cls.__new__(cls)
        state._genesis = genesis
        state._clear()
        return state

    def _clear(self) -> None:
        self.height = 0
        self._nodes: dict[str, NodeState] = {}
        self._links: dict[str, LinkState] = {}
        self._saes: dict[str, SaeState] = {}
        self._devices: dict[str, DeviceState] = {}
        self._key_blocks: dict[tuple[str, int], KeyBlockState] = {}
        self._deliveries = Ages(KEY_ID_SIZE_BYTES)
        self.retired_count = 0  # key blocks and deliveries that left the state since this object began
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
        """Return (height, transaction id) of a delivered key, or None. Some 3 µs: deliveries are in the trie alone."""
        key = delivery_key(key_id)
        value = self._changes[key] if key in self._changes else trie_get(self._trie, key)
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
        """Set the entry of a delivery that the state does not have."""
        value = pack((self.height, transaction_id))
        self._deliveries.add(self.height, key_id)
        self._changes[delivery_key(key_id)] = value

    def retire(self, below_height: int, count_max: int) -> list[tuple[str, int]]:
        """Remove the oldest key blocks and deliveries of heights below one, `count_max` of each but for whole heights.

        Returns the names of those key blocks.
        """
        blocks = oldest(((block.height, name) for name, block in self._key_blocks.items()), below_height, count_max)
        for link_id, block_number in blocks:
            del self._key_blocks[link_id, block_number]
            self._changes[key_block_key(link_id, block_number)] = None
        key_ids = self._deliveries.take(below_height, count_max)
        self._changes |= {delivery_key(key_id): None for key_id in key_ids}
        self.retired_count += len(blocks) + len(key_ids)
        return blocks

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

    def put_chain(self, value: bytes) -> None:
        """Set the entry that says which block came last."""
        self._changes[CHAIN_KEY] = value

    def begin(self, height: int, time_ns: int = 0) -> None:
        """Start on the block of `height`, which must be the next, with the time of its header."""
        assert height == self.height + 1 and not self._changes, (height, self.height)
        self.changed_nodes = []
        self.height = height
        self.time_ns = time_ns

    def finish(self, block_digest: bytes, receipts_root: bytes) -> None:
        """Choose the validators of the height after the next, and fold the changes of the block into the trie."""
        self._advance_validators()
        self.put_chain(pack((self.height, block_digest, receipts_root)))
        self.fold()

    def _advance_validators(self) -> None:
        before, self._following = self._following, self._after
        if self._membership_changed or (self.height + 1) % self._genesis.parameters.epoch_heights == 0:
            self._after = self._choose(self.height + 2)
            self._membership_changed = False
        if before != self._following or self._following != self._after:
            self.put_sets(self._following, self._after)

    def fold(self) -> None:
        """Fold what was changed into the trie."""
        self._previous_trie = self._trie
        self._trie = trie_update(self._trie, self._changes)
        self._changes = {}

    # ---- restoring; only `restoration` calls these

    def pending(self, key: bytes) -> bytes | None:
        """Return the value that an entry gets with the next `fold`, or None."""
        return self._changes.get(key)

    def settle_at(self, height: int) -> None:
        """End a restoration: this is the state after `height`, with everything in the order that it always has."""
        genesis = self._genesis
        self.height = height
        self._previous_trie = None
        self._nodes = {node.node_id: node for node in sorted(self._nodes.values(), key=lambda node: node.index)}
        self._links = _in_order(self._links, [link.link_id for link in genesis.links])
        self._saes = _in_order(self._saes, [sae.sae_id for sae in genesis.saes])
        self._key_blocks = dict(sorted(self._key_blocks.items(), key=lambda item: item[1].height))
        self._deliveries.sort()
        self._membership_changed, self.changed_nodes = False, []  # the entry `v` says what followed from it


def _in_order(entries: dict[str, _Entry], first: list[str]) -> dict[str, _Entry]:
    known = [name for name in first if name in entries]
    return {name: entries[name] for name in (*known, *sorted(entries.keys() - set(known)))}
