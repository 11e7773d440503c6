"""Keys on their way from the master's node to the slave's, hop by hop over trusted nodes.

The key of a transfer *is* QKD key of the first link; every further hop carries it under a one-time pad of that link's
key (row S0-E13), and each hop's message has a tag under a one-time key from the same region. Every region is marked
as used, durably, before the message that rests on it leaves; a transfer that fails anywhere burns what it took and is
tried on another way. The far node stores the keys before it says so; only then does the near node hand out its copy,
so a key exists at both ends or is delivered at none.

Decides how keys travel; who may have them is `delivery`'s business.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from ledger.state import State
from ledger.transactions import HOPS_MAX
from protocol.entropy import Entropy
from protocol.keys import KeyMaterial
from qnode.context import Context
from qnode.effects import Delete, Put, TrafficClass
from qnode.keystore import HeldKey, KeyStore
from qnode.routing import shortest_path
from qnode.rules import ChainRules
from qnode.wire import KeyTransfer, KeyTransferred, PathProbe, PathProbed, PeerFault, Region

TAG_KEY_BYTES: Final = 32
TRANSFER_DEADLINE_NS: Final = 5_000_000_000
"""A transfer whose answer takes longer has failed: hundreds of round trips on any sane path."""
ATTEMPTS_MAX: Final = 3
TRANSFERS_MAX: Final = 4096
"""Transfers under way at one node, own and relayed; beyond it new ones are refused (about 30 MB)."""
KEYS_PER_TRANSFER_MAX: Final = 4096
PATH_NODES_MAX: Final = 64
BLOCK_BYTES_MAX: Final = 1 << 32
"""Offsets that a relay may claim in a block: far above any block, far below what the chain's records can say."""
RECORD_REGIONS_BYTES_MAX: Final = 3072
"""What the pieces of key may take in a record of the chain, which has 4096 at most; a piece's numbers take 20."""
REGION_BYTES: Final = 20
HELD_LIFETIME_NS: Final = 3600 * 10**9
"""A key that its application does not fetch within an hour is destroyed."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """The keys of a transfer, both ends hold them; `regions` of all hops in path order."""

    keys: tuple[tuple[bytes, KeyMaterial], ...]
    path: tuple[str, ...]
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """No way led to the far node; nothing was delivered. `is_late`: an answer was waited for in vain."""

    reason: str
    is_late: bool = False


Done = Callable[[Transferred | TransferFailed], None]


@dataclass(slots=True)
class _Own:
    """A transfer that began here."""

    key_ids: tuple[bytes, ...]
    size_bytes: int
    master_sae: str
    slave_sae: str
    target: str
    done: Done
    attempts: int = 0
    excluded: set[str] = field(default_factory=set)
    path: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    secret: bytes = field(default=b"", repr=False)
    first_link: str = ""
    deadline_ns: int = 0
    last_reason: str = "no link leads there"
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class _Passing:
    """A transfer that this node relays: where its answer comes from and goes, and what this hop used."""

    asked: str
    back_to: str
    regions: tuple[Region, ...]
    deadline_ns: int


@dataclass(frozen=True, slots=True)
class _Probe:
    deadline_ns: int
    back_to: str | None
    done: Callable[[int], None] | None


class Relay:
    """Transfers and probes of one node. `links` maps each neighbour to the links that lead to it."""

    def __init__(
        self,
        context: Context,
        keys: KeyStore,
        state: Callable[[], State],
        rules: ChainRules,
        links: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._context = context
        self._keys = keys
        self._state = state
        self._rules = rules
        self._links = links
        self._own: dict[bytes, _Own] = {}
        self._passing: dict[bytes, _Passing] = {}
        self._probes: dict[bytes, _Probe] = {}

    # ---- from this node

    def transfer(
        self, key_ids: tuple[bytes, ...], size_bytes: int, master_sae: str, slave_sae: str, target: str, done: Done
    ) -> None:
        """Make keys shared with the node `target`; `done` is called once, now or in a later step."""
        if len(self._own) + len(self._passing) >= TRANSFERS_MAX:
            done(TransferFailed("the node has as many key transfers under way as it may; try again"))
            return
        self._attempt(_Own(key_ids, size_bytes, master_sae, slave_sae, target, done))

    def _attempt(self, own: _Own) -> None:
        """Try the shortest way that is left; give up when there is none."""
        total_bytes = TAG_KEY_BYTES + own.size_bytes * len(own.key_ids)
        rules, pair = self._rules, (own.master_sae, own.slave_sae)
        while own.attempts < ATTEMPTS_MAX:
            usable = rules.usable_links()
            avoided = rules.avoided_relays(*pair)
            path = shortest_path(usable, self._context.node_id, own.target, own.excluded, avoided)
            if path is None or len(path) > PATH_NODES_MAX:
                break
            if fault := rules.path_fault(*pair, path):
                own.last_reason = fault  # a longer way breaks no rule that the shortest keeps to
                break
            own.attempts += 1
            link_id = self._usable_link(path[1], own.excluded)
            reserved = self._reserve(link_id, total_bytes, *pair, len(own.key_ids))
            if link_id is None or reserved is None:
                own.last_reason = f"not enough key on the links to {path[1]}, or it is out of reach"
                own.excluded.update(self._links.get(path[1], ()))
                continue
            own.path, own.first_link = path, link_id
            own.regions, taken, writes = reserved
            if own.attempts > 1:  # the far node may hold the keys of an earlier attempt, whose answer was lost
                own.key_ids = fresh_key_ids(self._context.entropy, len(own.key_ids))
            own.secret = taken[TAG_KEY_BYTES:]
            own.deadline_ns = self._context.now_ns + TRANSFER_DEADLINE_NS
            self._context.write(writes)
            transfer_id = self._context.entropy.take(16)
            self._own[transfer_id] = own
            message = KeyTransfer(
                transfer_id,
                own.key_ids,
                own.size_bytes,
                own.master_sae,
                (own.slave_sae,),
                path,
                0,
                own.regions,
                b"",
                b"",
            )
            self._send_transfer(path[1], message, taken[:TAG_KEY_BYTES])
            return
        own.done(TransferFailed(own.last_reason, own.is_late))

    def _reserve(
        self, link_id: str | None, size_bytes: int, master_sae: str, slave_sae: str, keys: int
    ) -> tuple[tuple[Region, ...], bytes, list[Put | Delete]] | None:
        """Take key for a pair from the blocks that its policies allow; None if there is not that much."""
        if link_id is None:
            return None

        def allowed(number: int) -> bool:
            return self._rules.is_block_allowed(master_sae, slave_sae, link_id, number, keys)

        return self._keys.reserve(link_id, size_bytes, allowed)

    def _usable_link(self, neighbour: str, excluded: set[str]) -> str | None:
        """Of the links to a neighbour that is connected, the one with most key, none that is alarmed or excluded."""
        if neighbour not in self._context.connected:
            return None
        state = self._state()
        usable = []
        for link_id in self._links.get(neighbour, ()):
            link = state.link(link_id)
            if self._rules.is_usable(link) and link_id not in excluded:
                usable.append(link_id)
        return max(usable, key=self._keys.available_bytes) if len(usable) > 1 else next(iter(usable), None)

    def _send_transfer(self, peer: str, message: KeyTransfer, tag_key: bytes) -> None:
        tag = Poly1305.generate_tag(tag_key, _tagged_bytes(message))
        self._context.send(peer, TrafficClass.SESSION, replace(message, tag=tag))

    # ---- from peers

    def transfer_received(self, peer: str, message: KeyTransfer) -> PeerFault | None:
        """One hop arrived: store the keys if this is the end of the path, or carry them on."""
        fault = self._check(peer, message)
        if fault is not None:
            return fault
        link_id = message.regions[0][0]
        taken = self._keys.take_peers(link_id, message.regions)
        if isinstance(taken, str):
            self._answer(peer, message.transfer_id, f"{self._context.node_id}: {taken}")
            return None
        secret, writes = taken
        self._context.write(writes)
        try:
            mac = Poly1305(secret[:TAG_KEY_BYTES])
            mac.update(_tagged_bytes(message))
            mac.verify(message.tag)
        except InvalidSignature:
            self._answer(peer, message.transfer_id, f"{self._context.node_id}: false tag")
            return PeerFault("a key transfer with a false tag")
        secret = secret[TAG_KEY_BYTES:]
        if message.hop > 0:
            secret = _xor(secret, message.ciphertext)
        if message.path[-1] == self._context.node_id:
            self._store(peer, message, secret)
        else:
            self._carry_on(peer, message, secret)
        return None

    def _check(self, peer: str, message: KeyTransfer) -> PeerFault | None:
        """Refuse what no correct node sends."""
        size_bytes = message.size_bytes * len(message.key_ids)
        path, hop = message.path, message.hop
        fits = (
            len(message.transfer_id) == 16
            and 0 < len(message.key_ids) <= KEYS_PER_TRANSFER_MAX
            and all(len(key_id) == 16 for key_id in message.key_ids)
            and len(set(message.key_ids)) == len(message.key_ids)
            and message.size_bytes > 0
            and len(message.slave_saes) == 1
            and 2 <= len(path) <= PATH_NODES_MAX
            and len(set(path)) == len(path)
            and 0 <= hop < len(path) - 1
            and path[hop] == peer
            and path[hop + 1] == self._context.node_id
            and bool(message.regions)
            and message.regions[0][0] in self._links.get(peer, ())
            and sum(region[3] for region in message.regions) == TAG_KEY_BYTES + size_bytes
            and len(message.ciphertext) == (size_bytes if hop else 0)
        )
        return None if fits else PeerFault("a key transfer that contradicts itself")

    def _store(self, peer: str, message: KeyTransfer, secret: bytes) -> None:
        """The end of the path: keep the keys for the slave, then say so."""
        state = self._state()
        slave, master = state.sae(message.slave_saes[0]), state.sae(message.master_sae)
        served = slave is not None and slave.node_id == self._context.node_id
        if not served or master is None or master.node_id != message.path[0]:
            self._answer(peer, message.transfer_id, f"{self._context.node_id}: an SAE is served elsewhere")
            return
        pair = (message.master_sae, message.slave_saes[0])
        if fault := self._rules.pair_fault(*pair) or self._rules.path_fault(*pair, message.path):
            self._answer(peer, message.transfer_id, f"{self._context.node_id}: {fault}")
            return
        expires = self._context.now_ns + HELD_LIFETIME_NS
        size = message.size_bytes
        held = [
            HeldKey(
                key_id,
                KeyMaterial(secret[index * size : (index + 1) * size]),
                message.master_sae,
                message.slave_saes,
                expires,
            )
            for index, key_id in enumerate(message.key_ids)
        ]
        writes = self._keys.hold(held)
        if isinstance(writes, str):
            self._answer(peer, message.transfer_id, f"{self._context.node_id}: {writes}")
            return
        self._context.write(writes)
        answer = KeyTransferred(message.transfer_id, True, "", ())
        self._context.send(peer, TrafficClass.SESSION, answer)

    def _carry_on(self, peer: str, message: KeyTransfer, secret: bytes) -> None:
        """A trusted node in the middle: the next hop's pad over the key."""
        neighbour = message.path[message.hop + 2]
        node_id = self._context.node_id
        if message.transfer_id in self._passing or len(self._own) + len(self._passing) >= TRANSFERS_MAX:
            self._answer(peer, message.transfer_id, f"{node_id}: too many transfers, or one of this ID")
            return
        link_id = self._usable_link(neighbour, set())
        pair = (message.master_sae, message.slave_saes[0])
        reserved = self._reserve(link_id, TAG_KEY_BYTES + len(secret), *pair, len(message.key_ids))
        if reserved is None:
            self._answer(peer, message.transfer_id, f"{node_id}: not enough key towards {neighbour}, or out of reach")
            return
        regions, pad, writes = reserved
        self._context.write(writes)
        deadline_ns = self._context.now_ns + TRANSFER_DEADLINE_NS
        self._passing[message.transfer_id] = _Passing(neighbour, peer, regions, deadline_ns)
        onward = replace(
            message, hop=message.hop + 1, regions=regions, ciphertext=_xor(secret, pad[TAG_KEY_BYTES:]), tag=b""
        )
        self._send_transfer(neighbour, onward, pad[:TAG_KEY_BYTES])

    def _answer(self, peer: str, transfer_id: bytes, reason: str) -> None:
        self._context.send(peer, TrafficClass.SESSION, KeyTransferred(transfer_id, False, reason[:200], ()))

    def transferred(self, peer: str, answer: KeyTransferred) -> None:
        """The far node's answer, on its way back or here at last. Only the neighbour that was asked may answer."""
        own = self._own.get(answer.transfer_id)
        if own is not None:
            if own.path[1] == peer:
                del self._own[answer.transfer_id]
                self._finish(own, answer)
            return
        passing = self._passing.get(answer.transfer_id)
        if passing is not None and passing.asked == peer:
            del self._passing[answer.transfer_id]
            onward = replace(answer, regions=passing.regions + answer.regions) if answer.stored else answer
            self._context.send(passing.back_to, TrafficClass.SESSION, onward)

    def _finish(self, own: _Own, answer: KeyTransferred) -> None:
        if not answer.stored:
            own.last_reason = answer.reason
            self._exclude_failed(own, answer.reason)
            self._attempt(own)
            return
        regions = own.regions + answer.regions
        if not self._carried(own, regions):
            own.done(TransferFailed("the relays name no pieces of key that a record could hold; ask for fewer keys"))
            return
        size = own.size_bytes
        keys = tuple(
            (key_id, KeyMaterial(own.secret[index * size : (index + 1) * size]))
            for index, key_id in enumerate(own.key_ids)
        )
        own.secret = b""
        own.done(Transferred(keys, own.path, regions))

    def _carried(self, own: _Own, regions: Sequence[Region]) -> bool:
        """Whether the pieces that the relays claim can have carried the transfer: hop by hop, each of its size."""
        state, path = self._state(), own.path
        total_bytes = TAG_KEY_BYTES + own.size_bytes * len(own.key_ids)
        hop, carried = 0, 0
        for link_id, _, offset, size in regions:
            if carried == total_bytes:
                hop, carried = hop + 1, 0
            link = state.link(link_id)
            fits = link is not None and hop + 1 < len(path) and link.joins(path[hop], path[hop + 1])
            if not fits or size <= 0 or offset + size > BLOCK_BYTES_MAX:
                return False
            carried += size
        named_bytes = sum(len(link_id.encode()) + REGION_BYTES for link_id, *_ in regions)
        recordable = len(regions) <= HOPS_MAX and named_bytes <= RECORD_REGIONS_BYTES_MAX
        return recordable and hop == len(path) - 2 and carried == total_bytes

    def _exclude_failed(self, own: _Own, reason: str) -> None:
        """Avoid the hop that failed next time: the one behind the node that answered, else the first."""
        failed_at = reason.partition(":")[0]
        index = own.path.index(failed_at) if failed_at in own.path[:-1] else 0
        ends = own.path[index], own.path[index + 1]
        if index == 0:
            own.excluded.add(own.first_link)
        else:
            own.excluded.update(link.link_id for link in self._state().links() if link.joins(*ends))

    # ---- how much could go

    def probe(self, target: str, done: Callable[[int], None], pair: tuple[str, str] | None = None) -> None:
        """Ask how many key bytes could be relayed to `target` now; `done` is called once (0 when nobody answers).

        For a pair of applications only ways count that its policies allow.
        """
        avoided = self._rules.avoided_relays(*pair) if pair else ()
        path = shortest_path(self._rules.usable_links(), self._context.node_id, target, (), avoided)
        if path is not None and pair is not None and self._rules.path_fault(*pair, path):
            path = None
        link_id = self._usable_link(path[1], set()) if path else None
        if path is None or link_id is None or len(self._probes) >= TRANSFERS_MAX:
            done(0)
            return
        available = self._keys.available_bytes(link_id)
        if len(path) == 2:
            done(available)
            return
        probe_id = self._context.entropy.take(16)
        self._probes[probe_id] = _Probe(self._context.now_ns + TRANSFER_DEADLINE_NS // 5, None, done)
        self._context.send(path[1], TrafficClass.SESSION, PathProbe(probe_id, path, 0, available), after_sync=False)

    def probe_received(self, peer: str, probe: PathProbe) -> PeerFault | None:
        """Add this hop's key to a probe and pass it on; the last node before the target turns it back."""
        path, hop = probe.path, probe.hop
        fits = 3 <= len(path) <= PATH_NODES_MAX and 0 <= hop < len(path) - 2 and len(probe.probe_id) == 16
        if not fits or path[hop] != peer or path[hop + 1] != self._context.node_id:
            return PeerFault("a path probe that contradicts itself")
        link_id = self._usable_link(path[hop + 2], set())
        available = min(probe.available_bytes, self._keys.available_bytes(link_id) if link_id else 0)
        if hop + 3 == len(path) or available == 0 or len(self._probes) >= TRANSFERS_MAX:
            self._context.send(peer, TrafficClass.SESSION, PathProbed(probe.probe_id, available), after_sync=False)
            return None
        self._probes[probe.probe_id] = _Probe(self._context.now_ns + TRANSFER_DEADLINE_NS // 5, peer, None)
        onward = PathProbe(probe.probe_id, path, hop + 1, available)
        self._context.send(path[hop + 2], TrafficClass.SESSION, onward, after_sync=False)
        return None

    def probed(self, answer: PathProbed) -> None:
        """A probe came back."""
        probe = self._probes.pop(answer.probe_id, None)
        if probe is None:
            return
        if probe.done is not None:
            probe.done(answer.available_bytes)
        elif probe.back_to is not None:
            self._context.send(probe.back_to, TrafficClass.SESSION, answer, after_sync=False)

    # ---- time

    def tick(self) -> None:
        """Give up what took too long, try the next way for own transfers."""
        now_ns = self._context.now_ns
        for transfer_id in [key for key, own in self._own.items() if own.deadline_ns <= now_ns]:
            own = self._own.pop(transfer_id)
            own.last_reason, own.is_late = f"no answer from {own.target} in time", True
            own.excluded.add(own.first_link)
            self._attempt(own)
        for transfer_id in [key for key, passing in self._passing.items() if passing.deadline_ns <= now_ns]:
            del self._passing[transfer_id]
        for probe_id in [key for key, probe in self._probes.items() if probe.deadline_ns <= now_ns]:
            probe = self._probes.pop(probe_id)
            if probe.done is not None:
                probe.done(0)

    def peer_lost(self, peer: str) -> None:
        """Transfers whose first hop is gone cannot be answered any more: try another way at once."""
        for transfer_id in [key for key, own in self._own.items() if own.path[1] == peer]:
            own = self._own.pop(transfer_id)
            own.last_reason = f"the connection with {peer} was lost"
            own.excluded.update(self._links.get(peer, ()))
            self._attempt(own)

    def next_deadline_ns(self) -> int | None:
        """When `tick` must be called next."""
        deadlines = [each.deadline_ns for each in self._own.values()]
        deadlines += [each.deadline_ns for each in self._passing.values()]
        deadlines += [each.deadline_ns for each in self._probes.values()]
        return min(deadlines, default=None)


def fresh_key_ids(entropy: Entropy, count: int) -> tuple[bytes, ...]:
    """Return key IDs (UUIDs of version 4, 16 bytes each) that no other key has."""
    return tuple(uuid.UUID(bytes=entropy.take(16), version=4).bytes for _ in range(count))


def _tagged_bytes(message: KeyTransfer) -> bytes:
    """What a hop's tag covers: everything but the tag, each part with its length."""
    parts = (
        b"qnode key transfer v1",
        message.transfer_id,
        b"".join(message.key_ids),
        message.size_bytes.to_bytes(8, "big"),
        message.master_sae.encode(),
        "\0".join(message.slave_saes).encode(),
        "\0".join(message.path).encode(),
        message.hop.to_bytes(4, "big"),
        repr(message.regions).encode(),
        message.ciphertext,
    )
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")
