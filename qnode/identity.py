"""What the chain knows of nodes' keys, as this node's parts need it: its present signer, and whom connections may be.

Pure. Which key counts when is decided by the chain (ledger/SPEC.md 3.7); files and TLS are the shell's.
"""

from collections.abc import Callable
from typing import Final

from ledger.genesis import Genesis
from ledger.identity import OwnKeys
from ledger.membership import ROTATION_PAUSE_HEIGHTS
from ledger.signatures import HYBRID_KEY_SIZE_BYTES, PUBLIC_KEY_SIZE_BYTES, Signer
from ledger.state import State
from ledger.transactions import KeyRotated
from qnode.effects import UsePeerKeys

PEER_KEY_GRACE_HEIGHTS: Final = ROTATION_PAUSE_HEIGHTS
"""For so long a retired key may still connect: a node learns of its own rotation no later than it catches up."""
ROTATION_LIFETIME_HEIGHTS: Final = 1_000
"""A rotation that no block has taken up by then is refused, so that it cannot surprise anybody later."""


class RotationImpossible(ValueError):
    """This node cannot ask for a rotation now; the message says why and what to do."""


class PresentSigner:
    """Signs with the key by which the chain knows this node now; with its first one where the chain knows none."""

    def __init__(self, keys: OwnKeys, state: Callable[[], State]) -> None:
        self._keys = keys
        self._state = state

    def _present(self) -> Signer:
        return self._keys.present(self._state()) or self._keys.first

    @property
    def public_key(self) -> bytes:
        """The key that the next signature is of."""
        return self._present().public_key

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return self._present().sign(message)


def peer_keys(state: State, node_id: str) -> UsePeerKeys:
    """Return which keys connections may show, and whose they are; all other keys that the chain ever knew may not."""
    nodes = {node.node_id: node for node in state.nodes() if not node.revoked}
    accepted = {node.public_key: node.node_id for node in nodes.values()}
    refused = [node.public_key for node in state.nodes() if node.revoked]
    for key in state.all_keys():
        if key.public_key in accepted:
            continue
        if key.last_height + PEER_KEY_GRACE_HEIGHTS >= state.height and key.node_id in nodes:
            accepted[key.public_key] = key.node_id
        else:
            refused.append(key.public_key)
    own = nodes.get(node_id)
    return UsePeerKeys(b"" if own is None else own.public_key, tuple(accepted.items()), tuple(refused))


def grace_ends(state: State) -> int | None:
    """Return the height from which `peer_keys` answers otherwise although no key changes, or None."""
    ends = [key.last_height + PEER_KEY_GRACE_HEIGHTS + 1 for key in state.all_keys() if key.last_height]
    return min((height for height in ends if height > state.height), default=None)


def make_rotation(keys: OwnKeys, state: State, genesis: Genesis, new_key: bytes) -> KeyRotated:
    """Return the record that gives this node the key `new_key`, signed by both. Raises RotationImpossible."""
    node, present = state.node(keys.node_id), keys.present(state)
    if node is None or present is None:
        raise RotationImpossible("the chain does not know this node by a key that it holds; it cannot sign a rotation")
    if new_key == node.public_key:
        raise RotationImpossible("this is the present key already")
    old_voter, new_voter = keys.voter_with(node.public_key), keys.voter_with(new_key)
    assert old_voter is not None and new_voter is not None, "both keys are held"
    more = new_voter.public_key[PUBLIC_KEY_SIZE_BYTES:] if len(new_voter.public_key) == HYBRID_KEY_SIZE_BYTES else b""
    size_bytes = len(old_voter.sign(b""))
    expiry_height = state.height + ROTATION_LIFETIME_HEIGHTS
    members = (keys.node_id, node.public_key, new_key, more, expiry_height)
    unsigned = KeyRotated(*members, bytes(size_bytes), bytes(size_bytes))
    message = unsigned.signing_bytes(genesis.chain_id, genesis.digest)
    return KeyRotated(*members, old_voter.sign(message), new_voter.sign(message))
