"""Who is connected, and to whom a message of an origin is passed on.

Every signed message is relayed once by every node, so that consensus works over any connected overlay. A neighbour
that is known to be connected to the origin itself is spared, so that a full mesh relays nothing; a wrong claim harms
only its maker, and the anti-entropy fills whatever a broken connection swallowed (SPEC 6.1).

A validator that is connected to a quorum of validators is a hub: hubs are at most two hops apart, so that they decide
among themselves and tell everybody else what was decided (SPEC 6.6). Where leaders collect votes, bundles go to the
validators alone, and the decision brings them to everybody else (SPEC 6.9).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ledger.validators import Validators
from ledger.votes import bitmap_of, bits_of

BUNDLE_HUBS: Final = 2
"""Hubs that a node which does not vote gives a bundle to: one that is silent, or lies, does not hold it up."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the neighbours' lists say of the validators of a height."""

    validators: Validators
    hubs: tuple[str, ...]
    """Neighbours that are hubs, in a fixed order."""
    apart: frozenset[str]
    """Validators that are neither neighbours nor neighbours of hubs: what they learn goes by nodes that do not vote."""
    unseen: bool
    """Whether some of them are not even neighbours of neighbours."""


class Overlay:
    """The direct neighbours and what they said of theirs."""

    def __init__(self, node_id: str, node_ids: Sequence[str]) -> None:
        self._node_id = node_id
        self._node_ids = list(node_ids)
        self._index = {name: i for i, name in enumerate(node_ids)}
        self._adjacent: dict[str, frozenset[str]] = {}
        self._lost: set[str] = set()
        self._is_news = False
        self._surroundings: Surroundings | None = None  # until a neighbour comes, goes, or has other neighbours

    def register(self, node_id: str, index: int) -> None:
        """Take note of a node that the chain admitted; nodes are registered in the order of their indices."""
        if node_id not in self._index:
            assert index == len(self._node_ids), (node_id, index)
            self._node_ids.append(node_id)
            self._index[node_id] = index

    @property
    def peers(self) -> list[str]:
        """The connected neighbours, in a fixed order."""
        return sorted(self._adjacent)

    def is_up(self, peer: str) -> bool:
        """Say whether `peer` is connected."""
        return peer in self._adjacent

    def is_lost(self, node_id: str) -> bool:
        """Say whether `node_id` was connected and is gone."""
        return node_id in self._lost

    def connect(self, peer: str) -> None:
        """Add a neighbour; until it says otherwise it is connected to nobody else."""
        if peer not in self._adjacent:
            self._adjacent[peer] = frozenset()
            self._is_news = True
            self._surroundings = None
        self._lost.discard(peer)

    def disconnect(self, peer: str) -> None:
        """Remove a neighbour."""
        if self._adjacent.pop(peer, None) is not None:
            self._lost.add(peer)
            self._is_news = True
            self._surroundings = None

    def take_news(self) -> bool:
        """Say whether the neighbours changed since the last call: until all know, they relay too much or too little."""
        news, self._is_news = self._is_news, False
        return news

    def learn(self, peer: str, neighbours: bytes) -> None:
        """Take a neighbour's own list of neighbours (bitmap of the nodes' indices)."""
        if peer in self._adjacent:
            names = frozenset(self._node_ids[i] for i in bits_of(neighbours) if i < len(self._node_ids))
            if names != self._adjacent[peer]:
                self._adjacent[peer] = names
                self._surroundings = None

    def neighbours_bitmap(self) -> bytes:
        """Return this node's list of neighbours."""
        return bitmap_of([self._index[peer] for peer in self._adjacent if peer in self._index])

    def targets(self, origin: str, received_from: str | None) -> list[str]:
        """Return the neighbours that a message of `origin` goes to: all for an own one, else the uncovered."""
        if origin == self._node_id:
            return self.peers
        return [
            peer for peer in self.peers if peer not in (origin, received_from) and origin not in self._adjacent[peer]
        ]

    def uncovered_targets(self, origin: str, received_from: str | None) -> list[str]:
        """Return `targets` without the neighbours of whoever passed the message on, who passed it to them as well."""
        return [
            peer
            for peer in self.targets(origin, received_from)
            if received_from is None or received_from not in self._adjacent[peer]
        ]

    # ---- where decisions bring bundles to those who do not vote (SPEC 6.9)

    def bundle_targets(self, origin: str, received_from: str | None, validators: Validators) -> list[str]:
        """Return the neighbours that a bundle goes to, so that all validators have it soon."""
        around = self._around(validators)
        is_hub = self.is_hub(self._node_id, validators)
        if not is_hub and (not around.hubs or self._node_id in validators.indices or received_from in around.hubs):
            return self.uncovered_targets(origin, received_from)
        voted = received_from in validators.indices  # then its neighbours have it from there
        targets = [
            peer
            for peer in self.peers
            if peer not in (origin, received_from) and not (voted and received_from in self._adjacent[peer])
        ]
        if around.unseen:
            return targets
        if is_hub:
            return [peer for peer in targets if peer in validators.indices or around.apart & self._adjacent[peer]]
        first = self._index.get(origin, 0) % len(around.hubs)
        chosen = (around.hubs[first:] + around.hubs[:first])[:BUNDLE_HUBS]
        return [
            peer
            for peer in targets
            if peer in chosen
            or (peer in validators.indices and peer not in around.hubs)
            or around.apart & self._adjacent[peer]
        ]

    def teller(self, peer: str, height: int, leader: str, validators: Validators) -> str:
        """Return who tells a neighbour that does not vote what was decided at a height: one of its validators, in turn.

        Those that learn it themselves by nodes that do not vote are no tellers, and the leader, who has all others to
        tell, comes last. Of a neighbour without a teller everybody takes himself for it. Nodes that know different
        lists tell it twice, or not at all: then statuses do.
        """
        around = self._around(validators)
        adjacent = self._adjacent.get(peer, frozenset()) - around.apart
        tellers = {
            name
            for name in adjacent & validators.indices.keys()
            if name == self._node_id or name not in self._adjacent or name in around.hubs
        }
        tellers = tellers - {leader} or tellers
        if not tellers or not (around.hubs or self.is_hub(self._node_id, validators)):
            return self._node_id
        return sorted(tellers)[(height + self._index.get(peer, 0)) % len(tellers)]

    def _around(self, validators: Validators) -> Surroundings:
        around = self._surroundings
        if around is None or around.validators != validators:
            hubs = tuple(peer for peer in self.peers if self.is_hub(peer, validators))
            away = validators.indices.keys() - self._adjacent.keys() - self._lost - {self._node_id}
            apart = away.difference(*(self._adjacent[hub] for hub in hubs))
            unseen = apart.difference(*self._adjacent.values())
            around = self._surroundings = Surroundings(validators, hubs, frozenset(apart), bool(unseen))
        return around

    def are_joined(self, node_id: str, peer: str) -> bool:
        """Say whether another node is known to be connected to a neighbour."""
        return node_id in self._adjacent.get(peer, ())

    def is_hub(self, node_id: str, validators: Validators) -> bool:
        """Say whether this node or a neighbour is a validator that is connected to a quorum, itself counted."""
        members = validators.indices.keys()
        if node_id not in members:
            return False
        adjacent = self._adjacent if node_id == self._node_id else self._adjacent.get(node_id, {})
        joined = sum(map(members.__contains__, adjacent)) + (node_id not in adjacent)
        return joined >= validators.quorum
