"""What a quorum can decide about members and versions: admit, promote, demote, lift a suspension, remove, activate.

Each changes nodes or versions in the state; the committee follows from it two heights later (SPEC 4.7, 5.5, 9.4).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Final

from ledger.contracts.documents import Documented
from ledger.encoding import as_bytes, as_integer, as_text
from ledger.genesis import NAME_LENGTH_MAX
from ledger.signatures import POST_QUANTUM_KEY_SIZE_BYTES, PUBLIC_KEY_SIZE_BYTES
from ledger.state import State
from ledger.state_entries import KeyState, NodeState

NODES_MAX: Final = 8192
"""Places of nodes that the bitmaps of a status can name."""
ACTIVATION_HEIGHTS_MIN: Final = 100
"""From decision to activation: minutes at least, in which every node's log asks for the newer program."""
REASON_LENGTH_MAX: Final = 64
_NOBODY: Final = "nobody could vote any more; make another node a validator first"


@dataclass(frozen=True, slots=True)
class AdmitNode(Documented):
    """A new node takes part: as a full node, or with `validator` 1 as one that votes."""

    KIND: ClassVar[int] = 16
    NAME: ClassVar[str] = "admit-node"

    node_id: str
    public_key: bytes
    validator: int = 0
    post_quantum_key: bytes = b""

    def __post_init__(self) -> None:
        as_text(self.node_id, NAME_LENGTH_MAX)
        if not self.node_id.isprintable():
            raise ValueError("node_id must be printable")
        as_bytes(self.public_key, PUBLIC_KEY_SIZE_BYTES)
        as_integer(self.validator, 0, 1)
        as_bytes(self.post_quantum_key, POST_QUANTUM_KEY_SIZE_BYTES if self.post_quantum_key else 0)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        if state.node(self.node_id) is not None:
            return f"{self.node_id} is a node of this chain, or was; choose another name"
        if state.is_key_known(self.public_key):
            return "this key is a node's, or was; make a new identity"
        if bool(self.post_quantum_key) != state.hybrid_votes:
            return "a post-quantum key is for chains of hybrid votes, and needed there"
        return f"the chain has {NODES_MAX} nodes, and no room for more" if state.node_count >= NODES_MAX else None

    def execute(self, state: State) -> None:
        """Register the node at the next place."""
        keys = (self.public_key, self.post_quantum_key)
        index = state.node_count
        state.put_key(KeyState(keys[0], self.node_id, state.height + 1, 0, keys[1]))
        state.put_node(NodeState(self.node_id, keys[0], bool(self.validator), 0, index, post_quantum_key=keys[1]))


@dataclass(frozen=True, slots=True)
class SetValidator(Documented):
    """A node may be chosen to vote (1), or not (0)."""

    KIND: ClassVar[int] = 17
    NAME: ClassVar[str] = "set-validator"

    node_id: str
    validator: int

    def __post_init__(self) -> None:
        as_text(self.node_id, NAME_LENGTH_MAX)
        as_integer(self.validator, 0, 1)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        node = state.node(self.node_id)
        if node is None or node.revoked:
            return f"{self.node_id} is not a node of this chain"
        if node.validator == bool(self.validator):
            return f"{self.node_id} is {'a' if self.validator else 'no'} validator already"
        return None if self.validator or state.leaves_voters(without=self.node_id) else _NOBODY

    def execute(self, state: State) -> None:
        """Set the flag."""
        state.put_node(replace(state.known_node(self.node_id), validator=bool(self.validator)))


@dataclass(frozen=True, slots=True)
class LiftSuspension(Documented):
    """A node that was suspended for contradicting itself may be chosen to vote again."""

    KIND: ClassVar[int] = 18
    NAME: ClassVar[str] = "lift-suspension"

    node_id: str

    def __post_init__(self) -> None:
        as_text(self.node_id, NAME_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        node = state.node(self.node_id)
        return None if node is not None and node.suspended else f"{self.node_id} is not suspended"

    def execute(self, state: State) -> None:
        """Lift it."""
        state.put_node(replace(state.known_node(self.node_id), suspended=False))


@dataclass(frozen=True, slots=True)
class RemoveNode(Documented):
    """A node takes part no more, for good: no vote, no bundle, no connection."""

    KIND: ClassVar[int] = 19
    NAME: ClassVar[str] = "remove-node"

    node_id: str
    reason: str

    def __post_init__(self) -> None:
        as_text(self.node_id, NAME_LENGTH_MAX)
        as_text(self.reason, REASON_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        node = state.node(self.node_id)
        if node is None or node.revoked:
            return f"{self.node_id} is not a node of this chain"
        return None if state.leaves_voters(without=self.node_id) else _NOBODY

    def execute(self, state: State) -> None:
        """End its membership and its key."""
        node = state.known_node(self.node_id)
        known = state.key(node.public_key)
        first_height = 0 if known is None else known.first_height
        state.put_key(KeyState(node.public_key, node.node_id, first_height, state.height, node.post_quantum_key))
        state.put_node(replace(node, revoked=True))


@dataclass(frozen=True, slots=True)
class ActivateVersion(Documented):
    """Blocks and rules have `version` from `height` on; nodes that do not know it stop before that height."""

    KIND: ClassVar[int] = 20
    NAME: ClassVar[str] = "activate-version"

    version: int
    height: int

    def __post_init__(self) -> None:
        as_integer(self.version, 2)
        as_integer(self.height, 1)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        last = max((version for _, version in state.versions()), default=state.version(1))
        if self.version <= last:
            return f"version {self.version} is not above {last}, which is decided already"
        earliest = max((height for height, _ in state.versions()), default=0) + 1
        earliest = max(earliest, state.height + ACTIVATION_HEIGHTS_MIN)
        return None if self.height >= earliest else f"give a height of at least {earliest}, so that nodes can prepare"

    def execute(self, state: State) -> None:
        """Schedule it."""
        state.put_version(self.height, self.version)
