"""Who votes at a height: the committee, how it is chosen, and its canonical bytes (row S0-B2).

The validators of height h are chosen from the state after height h − 2 and kept in the state, in the entry `v`: the
sets of the next two heights. The header of h − 1, certified by validators that are known already, so commits through
its state root to the set of h, and a checker follows every change from the genesis with headers alone (SPEC 4.7).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

from ledger.encoding import MalformedEncoding, as_array, as_bytes, as_text, digest, pack, unpack_array

SETS_KEY = b"v"
"""Key of the state entry that holds the sets of the next two heights."""


class Candidate(Protocol):
    """What the choice looks at; `ledger.state.NodeState` has it all."""

    @property
    def node_id(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def vote_key(self) -> bytes: ...
    @property
    def may_vote(self) -> bool: ...


@dataclass(frozen=True)
class Validators:
    """The voting nodes of one height, in the order of their registration; leaders rotate over it (SPEC 4)."""

    node_ids: tuple[str, ...]
    public_keys: tuple[bytes, ...]
    """The keys that statements are checked under: Ed25519, followed by ML-DSA-65 on a chain of hybrid votes."""

    @property
    def quorum(self) -> int:
        """The number of distinct validators that decides: n − ⌊(n−1)/3⌋."""
        return len(self.node_ids) - self.faulty_max

    @property
    def faulty_max(self) -> int:
        """How many of them may be faulty: ⌊(n−1)/3⌋."""
        return (len(self.node_ids) - 1) // 3

    @cached_property
    def digest(self) -> bytes:
        """The validator-set hash that enters headers and statements."""
        return digest("qnode/validators/1", self.node_ids, self.public_keys)

    @cached_property
    def indices(self) -> dict[str, int]:
        """The place of every member."""
        return {node_id: index for index, node_id in enumerate(self.node_ids)}

    def leader(self, height: int, view: int) -> str:
        """Return the leader of a view: V[(height + view) mod n]."""
        return self.node_ids[(height + view) % len(self.node_ids)]

    def key_of(self, node_id: str) -> bytes | None:
        """Return the key that a member's statements are checked under, or None for a node that is no member."""
        index = self.indices.get(node_id)
        return None if index is None else self.public_keys[index]

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return self.node_ids, self.public_keys

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        node_ids, public_keys = as_array(value, 2)
        found = cls(tuple(as_text(x) for x in as_array(node_ids)), tuple(as_bytes(x) for x in as_array(public_keys)))
        if not found.node_ids or len(found.node_ids) != len(found.public_keys):
            raise MalformedEncoding("a validator set has a key for each of its one or more members")
        if len(set(found.node_ids)) != len(found.node_ids):
            raise MalformedEncoding("a validator set names each member once")
        return found


def sets_value(following: Validators, after: Validators) -> bytes:
    """Return the value of the entry `v`: the sets of the next height and of the one after it."""
    return pack((following.members(), after.members()))


def sets_from_value(value: bytes) -> tuple[Validators, Validators]:
    """Read what `sets_value` made. Raises MalformedEncoding."""
    following, after = unpack_array(value, 2)
    return Validators.from_members(following), Validators.from_members(after)


def choose_committee(
    nodes: Iterable[Candidate], height: int, genesis_digest: bytes, committee_max: int, epoch_heights: int
) -> Validators | None:
    """Return the validators of `height`, at most `committee_max` of the nodes that may vote; None if there are none.

    If more may vote, the committee changes with every epoch: those whose H(genesis, epoch, node id) is lowest. No
    proposer can grind it, since nothing in the hash is of a proposer's choosing: names enter by the genesis or by a
    governance quorum, and a name that is lucky in one epoch is as any other in the next. That it can be foreseen is no
    loss, for members are not anonymous; that it needs no randomness of blocks keeps it a function of the state alone.
    """
    eligible = sorted((node for node in nodes if node.may_vote), key=lambda node: node.index)
    if len(eligible) > committee_max:
        epoch = (height - 1) // epoch_heights
        prefix = hashlib.sha256(b"qnode/committee/1" + genesis_digest + epoch.to_bytes(8, "big"))
        eligible.sort(key=lambda node: _rank(prefix, node.node_id))
        eligible = sorted(eligible[:committee_max], key=lambda node: node.index)
    if not eligible:
        return None
    return Validators(tuple(node.node_id for node in eligible), tuple(node.vote_key for node in eligible))


def _rank(prefix: "hashlib._Hash", node_id: str) -> bytes:
    ranked = prefix.copy()
    ranked.update(node_id.encode())
    return ranked.digest()
