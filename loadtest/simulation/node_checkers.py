"""What must hold of whole nodes, whatever network, disks, eavesdroppers and peers do (docs/simulation.md, K1 to K10).

The checkers see what leaves a node, what callers are answered, and what the chain holds. They keep their own plain
account of every bit of key and never ask the code under test whether it was right.
"""

import hashlib
import uuid
from dataclasses import dataclass, field

from loadtest.simulation.checkers import Violation
from loadtest.simulation.node_world import Host, NodeWorld
from protocol.authentication import HASH_KEY_BYTES, PAD_BYTES
from qnode import wire
from qnode.effects import SendTo
from qnode.inputs import Answer, GetKeys, GetKeysWithIds, KeysAnswer, Request
from qnode.links import Link
from qnode.node import Node

BLOCK_TABLE = "ledger.block"


@dataclass
class _Session:
    """The key that one end of a session has used, as its frames show it."""

    start: int
    messages: int = 0
    said: list[bytes] = field(default_factory=list)
    """What this end sealed, in order."""
    arrived: int = 0
    """How many of them have reached the other end in their order."""

    @property
    def end(self) -> int:
        return self.start + HASH_KEY_BYTES + PAD_BYTES * self.messages


class NodeCheckers:
    """All of them, over one run."""

    def __init__(self) -> None:
        self.world: NodeWorld
        self.checks = 0
        self.sessions = 0
        self.keys: dict[bytes, bytes] = {}  # key ID → the key as the master got it
        self.retrieved: dict[bytes, bytes] = {}  # key ID → the key as the slave got it
        self.transfers = 0
        self._tips: dict[int, tuple[bytes, bytes]] = {}
        self._heights: dict[str, int] = {}
        self._streams: dict[tuple[str, str], dict[bytes, _Session]] = {}
        self._regions: dict[tuple[str, int], list[tuple[int, int, bytes]]] = {}

    def _require(self, condition: bool, name: str, host: Host, text: str) -> None:
        self.checks += 1
        if not condition:
            raise Violation(f"{name} at {self.world.now_ns / 1e6:.3f} ms, {host.node_id}: {text}")

    # ---- what the world reports

    def on_start(self, host: Host) -> None:
        """A restarted node has at most the chain that it had, and the same."""
        self._check_chain(host)

    def on_step(self, host: Host) -> None:
        """K1: one chain at all nodes."""
        assert host.node is not None
        if host.node.state.height != self._heights.get(host.node_id):
            self._check_chain(host)
        for link in host.node._links.values():
            self._check_opened(host, link)

    def _check_opened(self, host: Host, link: Link) -> None:
        """K10: a session takes for true only what its peer said, all of it, in order."""
        session = link.session
        if session is not None:
            peers = self._streams.get((link.link_id, link.peer), {}).get(session.nonce)
            opened = session.machine.authenticator.opened_messages
            said = 0 if peers is None else peers.arrived
            self._require(opened <= said, "K10", host, f"a session on {link.link_id} took a false message for true")

    def on_arrive(self, host: Host, peer: str, frame: bytes) -> None:
        """Note how far a session's messages have come, whatever false ones came between."""
        record = wire.decode(frame)
        if isinstance(record, wire.SessionFrame):
            session = self._streams.get((record.link_id, peer), {}).get(record.nonce)
            if session is not None and session.said[session.arrived : session.arrived + 1] == [record.sealed]:
                session.arrived += 1

    def _check_chain(self, host: Host) -> None:
        assert host.node is not None
        chain = host.node.chain
        self._heights[host.node_id] = chain.height
        found = chain.tip_digest, chain.state.root
        known = self._tips.setdefault(chain.height, found)
        self._require(known == found, "K1", host, f"another block or state at height {chain.height}")

    def on_send(self, host: Host, effect: SendTo) -> None:
        """K2 and K3: look at the key that a frame uses."""
        frame = wire.decode(effect.frame)
        if isinstance(frame, wire.SessionFrame):
            self._on_session_frame(host, frame)
        elif isinstance(frame, wire.KeyTransfer):
            self._on_transfer(host, frame)

    def _on_session_frame(self, host: Host, frame: wire.SessionFrame) -> None:
        """K2: no byte of authentication key covers two messages, over crashes and sessions."""
        stream = self._streams.setdefault((frame.link_id, host.node_id), {})
        session = stream.get(frame.nonce)
        if session is None:
            session = stream[frame.nonce] = _Session(frame.stream_offset)
            self.sessions += 1
        same = session.start == frame.stream_offset
        self._require(same, "K2", host, f"a session on {frame.link_id} moves to other authentication key")
        session.messages += 1
        session.said.append(frame.sealed)
        for nonce, other in stream.items():
            apart = nonce == frame.nonce or session.end <= other.start or other.end <= session.start
            text = f"authentication key of {frame.link_id} used twice, bytes {session.start} to {session.end}"
            self._require(apart, "K2", host, text)

    def _on_transfer(self, host: Host, frame: wire.KeyTransfer) -> None:
        """K3 and K4: no bit of key carries two transfers, and none is used before the chain has its block."""
        assert host.node is not None
        self.transfers += 1
        for link_id, number, offset, size in frame.regions:
            committed = host.node.state.key_block(link_id, number) is not None
            self._require(committed, "K4", host, f"uses key of block {number} of {link_id}, which is not on the chain")
            used = self._regions.setdefault((link_id, number), [])
            for begin, end, transfer_id in used:
                apart = transfer_id == frame.transfer_id or offset + size <= begin or end <= offset
                self._require(apart, "K3", host, f"bytes {offset} to {offset + size} of block {number} used twice")
            used.append((offset, offset + size, frame.transfer_id))

    def on_answer(self, host: Host, request: Request, answer: Answer) -> None:
        """K5 and K6: one key under one ID, handed to each side once."""
        if not isinstance(answer, KeysAnswer):
            return
        side = {GetKeys: self.keys, GetKeysWithIds: self.retrieved}.get(type(request))
        assert side is not None, f"{type(request).__name__} was answered with keys"
        for each in answer.keys:
            key_id, key = uuid.UUID(each.key_id).bytes, each.key.reveal()
            self._require(key_id not in side, "K6", host, f"delivers key {each.key_id} a second time")
            side[key_id] = key
            equal = self.keys.get(key_id, key) == self.retrieved.get(key_id, key)
            self._require(equal, "K5", host, f"another key under ID {each.key_id} at the other end")

    # ---- at the end

    def check_at_the_end(self, world: NodeWorld) -> None:
        """K5 for all that is stored, K7: secrecy of the chain, K8: replay."""
        for link in world.genesis.links:
            self._check_pools(world, link.link_id, world.hosts[link.transmitter], world.hosts[link.receiver])
        for host in world.hosts.values():
            self._check_disk(host)

    def _check_pools(self, world: NodeWorld, link_id: str, one: Host, other: Host) -> None:
        """Where both ends hold unused key of a block, it is the same."""
        assert one.node is not None and other.node is not None
        ours, theirs = _unused_key(one.node, link_id), _unused_key(other.node, link_id)
        for number, begin, key in ours:
            for other_number, other_begin, other_key in theirs:
                low = max(begin, other_begin)
                size = min(begin + len(key), other_begin + len(other_key)) - low
                if number == other_number and size > 0:
                    same = key[low - begin :][:size] == other_key[low - other_begin :][:size]
                    self._require(same, "K5", one, f"the ends of {link_id} hold different key in block {number}")

    def _check_disk(self, host: Host) -> None:
        """K7: no delivered key is on any chain; K8: what the disk holds replays to this chain."""
        rows = host.disk.tables.get(BLOCK_TABLE, {})
        for key_id, key in self.keys.items():
            found = any(key in row for row in rows.values())
            self._require(not found, "K7", host, f"the chain holds the key {uuid.UUID(bytes=key_id)}")
        assert host.node is not None
        again = self.world.reborn(host).chain
        same = again.height != host.node.chain.height or again.tip_digest == host.node.chain.tip_digest
        self._require(same, "K8", host, f"the disk replays to another block at height {again.height}")

    def missing_keys(self) -> list[bytes]:
        """Return the IDs of keys that masters have and slaves have not fetched."""
        return [key_id for key_id in self.keys if key_id not in self.retrieved]

    def digest(self) -> str:
        """Return a hash of every delivered key: equal seeds, equal keys."""
        total = hashlib.blake2b(digest_size=16)
        for key_id in sorted(self.keys):
            total.update(key_id + self.keys[key_id] + self.retrieved.get(key_id, b"-"))
        return total.hexdigest()


def _unused_key(node: Node, link_id: str) -> list[tuple[int, int, bytes]]:
    """Return (block, offset, bytes) of the key that an end may still use, each half of a block by itself."""
    blocks = node._keys._pools[link_id].blocks  # nobody but a checker may look at key that was not delivered
    return [
        (number, half.mark, bytes(half.bits[half.mark - half.start :]))
        for number, halves in blocks.items()
        for half in halves
    ]
