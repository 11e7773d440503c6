"""A node's own keys, present and past: which one signs what, since a key counts from a height on (SPEC 3.7).

Holds signers only; when a new key begins to count is decided by the state that the chain has agreed on.
"""

from collections.abc import Iterable, Mapping

from ledger.signatures import PUBLIC_KEY_SIZE_BYTES, Ed25519Signer, HybridSigner, Signer, post_quantum_seed
from ledger.state import State
from ledger.validators import Validators


class OwnKeys:
    """The signers of one node, by public key; `seeds` maps a public key to its ML-DSA-65 seed on hybrid chains."""

    def __init__(self, node_id: str, signers: Iterable[Signer], seeds: Mapping[bytes, bytes] | None = None) -> None:
        self.node_id = node_id
        self._signers: dict[bytes, Signer] = {}
        self._voters: dict[bytes, Signer] = {}
        for signer in signers:
            self.add(signer, (seeds or {}).get(signer.public_key))

    def __repr__(self) -> str:
        return f"<OwnKeys of {self.node_id}: {len(self._signers)}>"

    def add(self, signer: Signer, seed: bytes | None = None) -> None:
        """Hold one more key."""
        self._signers[signer.public_key] = signer
        self._voters[signer.public_key] = signer
        if seed is not None:
            hybrid = HybridSigner(signer, seed)
            self._voters[hybrid.public_key] = hybrid

    @property
    def first(self) -> Signer:
        """The signer that was held first."""
        return next(iter(self._signers.values()))

    def is_own(self, state: State) -> bool:
        """Say whether the chain knows one of these keys as this node's; True where it does not know the node yet."""
        node = state.node(self.node_id)
        if node is None:
            return True
        known = {node.public_key, *(key.public_key for key in state.keys_of(self.node_id))}
        return not known.isdisjoint(self._signers)

    def present(self, state: State) -> Signer | None:
        """Return the signer of this node's bundles and records now; None if the chain knows another key, or no node."""
        node = state.node(self.node_id)
        return None if node is None or node.revoked else self._signers.get(node.public_key)

    def voter(self, validators: Validators) -> Signer | None:
        """Return the signer of this node's statements under a validator set; None if it is no member, or lacks the key.

        A node whose committee knows a key that it does not hold watches: it never halts.
        """
        vote_key = validators.key_of(self.node_id)
        return None if vote_key is None else self._voters.get(vote_key)

    @classmethod
    def of_seeds(cls, node_id: str, seeds: Iterable[bytes], hybrid: bool) -> "OwnKeys":
        """Return the keys of Ed25519 seeds; on a chain of hybrid votes each seed also makes an ML-DSA-65 key."""
        keys = cls(node_id, ())
        for seed in seeds:
            keys.add_seed(seed, hybrid)
        return keys

    def add_seed(self, seed: bytes, hybrid: bool) -> bytes:
        """Hold the key of one more seed; returns its Ed25519 public key."""
        signer = Ed25519Signer(seed)
        self.add(signer, post_quantum_seed(seed) if hybrid else None)
        return signer.public_key

    def voter_with(self, public_key: bytes) -> Signer | None:
        """Return the signer of statements whose Ed25519 key this is: the hybrid one where there is one."""
        held = (key for key in self._voters if key[:PUBLIC_KEY_SIZE_BYTES] == public_key)
        vote_key = max(held, key=len, default=None)
        return None if vote_key is None else self._voters[vote_key]
