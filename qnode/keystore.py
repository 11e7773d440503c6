"""The keys of a node: pending → available → reserved → delivered → destroyed, each step durable before it is acted on.

Decides which bits exist, who may start using which of them, and when they are destroyed. Does not decide who may
have a key (`delivery`) nor how it travels (`relay`).

Both ends of a link hold the same block of key. So that both can take from it without asking, each block has two
halves: the transmitter's node starts transfers from the first, the receiver's node from the second. A mark per half
says how far it is used; marks only grow, and are stored before a bit below them leaves the node.

    pending    the session ended, this end signed the record; not usable until the chain commits it
    available  the record is committed: above the half's mark
    reserved   taken for a transfer: below the mark; the bits live in memory until the transfer ends
    held       at the slave's node: a whole key that waits for its application
    delivered  handed to the application once; the row is deleted before the answer leaves
    destroyed  overwritten in memory and deleted from storage
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgpack

from protocol.keys import KeyMaterial
from qnode.effects import Delete, Put
from qnode.vault import Vault, VaultError
from qnode.wire import Region

PENDING_TABLE: Final = "key.pending"
CHUNK_TABLE: Final = "key.chunk"
MARK_TABLE: Final = "key.mark"
HELD_TABLE: Final = "key.held"
TABLES: Final = (PENDING_TABLE, CHUNK_TABLE, MARK_TABLE, HELD_TABLE)

CHUNK_BYTES: Final = 1024
"""Stored key is deleted in pieces of this size as it is used: small enough that little used key outlives its use."""

HELD_KEYS_MAX: Final = 100_000
"""Keys waiting for applications at one node (about 30 MB): beyond it new transfers are refused, nothing is dropped."""

RESERVE_BYTES: Final = 1024
"""So far the stored mark of a node's own half runs ahead of use: sixteen keys of 256 bits wait for one sync instead of
sixteen, and a restart burns at most that much key of a link."""

TRANSMITTER: Final = 0
RECEIVER: Final = 1

Write = Put | Delete
Stored = Mapping[str, Sequence[tuple[bytes, bytes]]]


def block_key(link_id: str, block_number: int) -> bytes:
    """Return the storage key of a block: link, NUL, block number in order."""
    return link_id.encode() + b"\0" + block_number.to_bytes(8, "big")


def _split_block_key(key: bytes) -> tuple[str, int]:
    link_id, _, rest = key.partition(b"\0")
    return link_id.decode(), int.from_bytes(rest[:8], "big")


@dataclass(slots=True)
class _Half:
    """One half of a block: bytes [start, start + size) of it; bytes below `mark` are used and overwritten.

    After a crash everything below `stored_mark` counts as used.
    """

    start: int
    bits: bytearray
    mark: int
    stored_mark: int

    @property
    def end(self) -> int:
        return self.start + len(self.bits)

    @property
    def available_bytes(self) -> int:
        return self.end - self.mark

    def take(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes [offset, offset + size) and overwrite everything below their end: skipped bytes are burned."""
        low, first = offset - self.start, self.mark - self.start
        taken = bytes(self.bits[low : low + size_bytes])
        done = low + size_bytes
        self.bits[first:done] = bytes(done - first)
        self.mark = offset + size_bytes
        return taken


@dataclass(frozen=True, slots=True)
class PendingBlock:
    """A distilled block before its record is committed: the key, and the refills of the two authentication streams."""

    link_id: str
    block_number: int
    expiry_height: int
    refill_transmitter: KeyMaterial
    refill_receiver: KeyMaterial
    key: KeyMaterial


@dataclass(slots=True)
class HeldKey:
    """A key that waits here for the slave SAEs that it was made for."""

    key_id: bytes
    key: KeyMaterial
    master_sae: str
    waiting_saes: tuple[str, ...]
    expires_ns: int


@dataclass(slots=True)
class _Pool:
    """The committed blocks of one link, oldest first."""

    own_half: int
    blocks: dict[int, tuple[_Half, _Half]] = field(default_factory=dict)


class KeyStore:
    """All key material of a node outside running sessions.

    Methods that change anything return the writes that must be durable before the change is acted upon.
    """

    def __init__(self, vault: Vault, roles: Mapping[str, int], stored: Stored) -> None:
        """`roles` maps each of the node's links to TRANSMITTER or RECEIVER."""
        self._vault = vault
        self._pools = {link_id: _Pool(role) for link_id, role in roles.items()}
        self._pending: dict[tuple[str, int], PendingBlock] = {}
        self._held: dict[bytes, HeldKey] = {}
        self._restore(stored)

    # ---- blocks

    def add_pending(self, block: PendingBlock) -> list[Write]:
        """Remember a block whose record this end is about to sign."""
        self._pending[block.link_id, block.block_number] = block
        key = block_key(block.link_id, block.block_number)
        secret = msgpack.packb(
            [
                block.expiry_height,
                block.refill_transmitter.reveal(),
                block.refill_receiver.reveal(),
                block.key.reveal(),
            ]
        )
        return [Put(PENDING_TABLE, key, self._vault.seal(PENDING_TABLE, key, secret))]

    def activate(self, link_id: str, block_number: int) -> tuple[PendingBlock | None, list[Write]]:
        """The chain has committed a block's record: its key becomes available. None if this end does not hold it."""
        pending = self._pending.pop((link_id, block_number), None)
        if pending is None:
            return None, []
        key = pending.key.reveal()
        middle = len(key) // 2
        halves = (
            _Half(0, bytearray(key[:middle]), 0, 0),
            _Half(middle, bytearray(key[middle:]), middle, middle),
        )
        self._pools[link_id].blocks[block_number] = halves
        writes: list[Write] = [Delete(PENDING_TABLE, block_key(link_id, block_number))]
        for half in halves:
            for start in range(half.start, half.end, CHUNK_BYTES):
                row = _chunk_key(link_id, block_number, start)
                chunk = key[start : min(start + CHUNK_BYTES, half.end)]
                writes.append(Put(CHUNK_TABLE, row, self._vault.seal(CHUNK_TABLE, row, chunk)))
        writes.append(self._mark_write(link_id, block_number))
        return pending, writes

    def discard(self, link_id: str, block_number: int) -> list[Write]:
        """Destroy a pending block whose record was refused or can no longer be committed."""
        pending = self._pending.pop((link_id, block_number), None)
        if pending is None:
            return []
        for secret in (pending.key, pending.refill_transmitter, pending.refill_receiver):
            secret.wipe()
        return [Delete(PENDING_TABLE, block_key(link_id, block_number))]

    def pending_blocks(self) -> list[tuple[str, int, int]]:
        """Return (link, block, expiry height) of every block that waits for the chain."""
        return [(link, number, block.expiry_height) for (link, number), block in self._pending.items()]

    def available_blocks(self) -> list[tuple[str, int]]:
        """Return (link, block) of every committed block that still has key to give."""
        return [(link_id, number) for link_id, pool in self._pools.items() for number in pool.blocks]

    # ---- the pool of a link

    def available_bytes(self, link_id: str, *, own: bool = True, counted: Callable[[int], bool] | None = None) -> int:
        """Key that this node (own) or the peer may still start using on a link, in all blocks or those `counted`."""
        pool = self._pools[link_id]
        index = pool.own_half if own else 1 - pool.own_half
        return sum(
            halves[index].available_bytes
            for number, halves in pool.blocks.items()
            if counted is None or counted(number)
        )

    def reserve(
        self, link_id: str, size_bytes: int, allowed: Callable[[int], bool] | None = None
    ) -> tuple[tuple[Region, ...], bytes, list[Write]] | None:
        """Take `size_bytes` from this node's half of a link's blocks, oldest first; None if there is not that much.

        Blocks whose number is not `allowed` are passed over, and stay for others. No writes mean that what is taken
        counts as used already: the stored mark runs ahead by RESERVE_BYTES, so that most requests wait for no sync.
        """
        pool = self._pools[link_id]
        regions: list[Region] = []
        missing_bytes = size_bytes
        for number, halves in pool.blocks.items():
            half = halves[pool.own_half]
            size = min(half.available_bytes, missing_bytes)
            if size > 0 and (allowed is None or allowed(number)):
                regions.append((link_id, number, half.mark, size))
                missing_bytes -= size
            if not missing_bytes:
                break
        if missing_bytes:
            return None
        taken = bytearray()
        writes: list[Write] = []
        for _, number, offset, size in regions:
            half = pool.blocks[number][pool.own_half]
            taken += half.take(offset, size)
            writes += self._use(link_id, number, half, RESERVE_BYTES)
        return tuple(regions), bytes(taken), writes

    def take_peers(self, link_id: str, regions: Sequence[Region]) -> tuple[bytes, list[Write]] | str:
        """Take what the peer reserved from its half; a reason instead if it may not (used, foreign, unknown block)."""
        pool = self._pools[link_id]
        ends: dict[int, int] = {}
        for region_link, number, offset, size in regions:
            if region_link != link_id:
                return "the region belongs to another link"
            if number not in pool.blocks:
                return "the block is not available here (not committed yet, or used up)"
            half = pool.blocks[number][1 - pool.own_half]
            if size <= 0 or offset < max(half.mark, ends.get(number, 0)) or offset + size > half.end:
                return "the region lies outside the sender's unused key"
            ends[number] = offset + size
        taken = bytearray()
        writes: list[Write] = []
        for _, number, offset, size in regions:
            half = pool.blocks[number][1 - pool.own_half]
            taken += half.take(offset, size)
            writes += self._use(link_id, number, half, 0)  # what it makes is stored by the same sync
        return bytes(taken), writes

    def destroy_block(self, link_id: str, block_number: int) -> tuple[int, list[Write]]:
        """Destroy what is left of a committed block; returns how many bytes of key that was."""
        halves = self._pools[link_id].blocks.pop(block_number, None)
        if halves is None:
            return 0, []
        writes: list[Write] = [Delete(MARK_TABLE, block_key(link_id, block_number))]
        for half in halves:
            writes += [
                Delete(CHUNK_TABLE, _chunk_key(link_id, block_number, start))
                for start in range(half.start, half.end, CHUNK_BYTES)
            ]
            half.bits[:] = bytes(len(half.bits))
        return sum(half.available_bytes for half in halves), writes

    # ---- whole keys that wait for applications

    @property
    def held_count(self) -> int:
        return len(self._held)

    def hold(self, keys: Sequence[HeldKey]) -> list[Write] | str:
        """Keep keys for slave SAEs of this node; a reason instead if there is no room or an ID is taken."""
        if len(self._held) + len(keys) > HELD_KEYS_MAX:
            return "the node holds as many undelivered keys as it may"
        if any(key.key_id in self._held for key in keys):
            return "a key of this ID exists"
        writes: list[Write] = []
        for held in keys:
            self._held[held.key_id] = held
            writes.append(self._held_write(held))
        return writes

    def deliver(
        self, caller_sae: str, master_sae: str, key_ids: Sequence[bytes]
    ) -> tuple[list[tuple[bytes, KeyMaterial]], list[Write]] | None:
        """Hand out held keys, once per waiting SAE: all of them, or None if any is not there for this caller."""
        if len(set(key_ids)) != len(key_ids):
            return None
        found = [self._held.get(key_id) for key_id in key_ids]
        if any(held is None or held.master_sae != master_sae or caller_sae not in held.waiting_saes for held in found):
            return None
        delivered: list[tuple[bytes, KeyMaterial]] = []
        writes: list[Write] = []
        for held in found:
            assert held is not None
            delivered.append((held.key_id, KeyMaterial(held.key.reveal())))
            held.waiting_saes = tuple(sae for sae in held.waiting_saes if sae != caller_sae)
            writes.append(self._held_write(held) if held.waiting_saes else self._destroy_held(held))
        return delivered, writes

    def held_ids(self) -> list[bytes]:
        """Return the IDs of the keys that wait for their applications."""
        return list(self._held)

    def destroy_held(self, key_id: bytes) -> list[Write]:
        """Destroy a key that waits for its application."""
        held = self._held.get(key_id)
        return [] if held is None else [self._destroy_held(held)]

    def expire_held(self, now_ns: int) -> list[Write]:
        """Destroy held keys that nobody fetched in time."""
        return [self._destroy_held(held) for held in list(self._held.values()) if held.expires_ns <= now_ns]

    # ---- storage

    def _use(self, link_id: str, block_number: int, half: _Half, ahead_bytes: int) -> list[Write]:
        """Writes for a mark that moved on, if the stored one is behind it: mark, used chunks, a block used up.

        The stored mark never runs ahead over the last byte: a block without key is always known to have none.
        """
        if half.mark <= half.stored_mark:
            return []
        former, half.stored_mark = half.stored_mark, max(half.mark, min(half.mark + ahead_bytes, half.end - 1))
        first = half.start + (former - half.start) // CHUNK_BYTES * CHUNK_BYTES
        writes: list[Write] = [
            Delete(CHUNK_TABLE, _chunk_key(link_id, block_number, start))
            for start in range(first, half.stored_mark, CHUNK_BYTES)
            if min(start + CHUNK_BYTES, half.end) <= half.stored_mark
        ]
        halves = self._pools[link_id].blocks[block_number]
        if all(half.available_bytes == 0 for half in halves):
            del self._pools[link_id].blocks[block_number]
            writes.append(Delete(MARK_TABLE, block_key(link_id, block_number)))
        else:
            writes.append(self._mark_write(link_id, block_number))
        return writes

    def _mark_write(self, link_id: str, block_number: int) -> Put:
        first, second = self._pools[link_id].blocks[block_number]
        value = msgpack.packb([first.stored_mark, second.start, second.stored_mark, second.end])
        return Put(MARK_TABLE, block_key(link_id, block_number), value)

    def _held_write(self, held: HeldKey) -> Put:
        secret = msgpack.packb([held.key.reveal(), held.master_sae, list(held.waiting_saes), held.expires_ns])
        return Put(HELD_TABLE, held.key_id, self._vault.seal(HELD_TABLE, held.key_id, secret))

    def _destroy_held(self, held: HeldKey) -> Delete:
        held.key.wipe()
        del self._held[held.key_id]
        return Delete(HELD_TABLE, held.key_id)

    def _restore(self, stored: Stored) -> None:
        for key, value in stored.get(PENDING_TABLE, ()):
            link_id, number = _split_block_key(key)
            expiry, first, second, bits = msgpack.unpackb(self._vault.open(PENDING_TABLE, key, value))
            self._pending[link_id, number] = PendingBlock(
                link_id, number, expiry, KeyMaterial(first), KeyMaterial(second), KeyMaterial(bits)
            )
        chunks: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
        for key, value in stored.get(CHUNK_TABLE, ()):
            start = int.from_bytes(key[-8:], "big")
            chunks.setdefault(_split_block_key(key), []).append((start, self._vault.open(CHUNK_TABLE, key, value)))
        for key, value in sorted(stored.get(MARK_TABLE, ())):
            link_id, number = _split_block_key(key)
            first_mark, middle, second_mark, end = msgpack.unpackb(value)
            whole = bytearray(end)
            missing = set(range(first_mark, middle)) | set(range(second_mark, end))
            for start, chunk in chunks.get((link_id, number), ()):
                whole[start : start + len(chunk)] = chunk
                missing.difference_update(range(start, start + len(chunk)))
            if missing:
                raise VaultError(
                    f"unused key of block {number} of {link_id} is missing from storage: restore the state directory "
                    "from before the damage, or start with an empty one (its undelivered keys are then lost)"
                )
            whole[:first_mark] = bytes(first_mark)
            whole[middle:second_mark] = bytes(second_mark - middle)
            self._pools[link_id].blocks[number] = (
                _Half(0, whole[:middle], first_mark, first_mark),
                _Half(middle, whole[middle:], second_mark, second_mark),
            )
        for key, value in stored.get(HELD_TABLE, ()):
            secret, master, waiting, expires = msgpack.unpackb(self._vault.open(HELD_TABLE, key, value))
            self._held[key] = HeldKey(key, KeyMaterial(secret), master, tuple(waiting), expires)


def _chunk_key(link_id: str, block_number: int, start: int) -> bytes:
    return block_key(link_id, block_number) + start.to_bytes(8, "big")
