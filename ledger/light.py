"""The light client: which headers a checker believes that has the genesis, or a trusted height, and nothing else.

It knows the validator sets that it was shown a certified chain of changes to (SPEC 7.8), and the keys of nodes that
were proven to it. Decides what a proof must rest on; what the proofs say is in `proofs` and `delivery_proof`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from ledger.block import Header
from ledger.encoding import DIGEST_SIZE_BYTES, MalformedEncoding, as_bytes, as_integer
from ledger.genesis import Genesis
from ledger.merkle import TrieProof, trie_check
from ledger.set_change import SetChange
from ledger.signatures import Ed25519Verifier, Verifier
from ledger.state import State
from ledger.state_entries import KeyState, public_key_key
from ledger.validators import Validators
from ledger.votes import Certificate, Kind

TRUSTED_FORMAT: Final = "qnode trusted height 1"


class ProofError(ValueError):
    """A proof that does not hold, or cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class TrustedHeight:
    """A block that its holder believes in, and the validators that committed it: where to start instead of the genesis.

    Whoever once held the keys of a quorum of some old set could make up another history from there; a checker that
    starts from a height it trusts believes no header before it.
    """

    genesis_digest: bytes
    height: int
    block: bytes
    validators: Validators

    def to_json(self) -> str:
        """Return the text of trusted.json."""
        members = zip(self.validators.node_ids, self.validators.public_keys, strict=True)
        document = {
            "format": TRUSTED_FORMAT,
            "genesis": self.genesis_digest.hex(),
            "height": self.height,
            "block": self.block.hex(),
            "validators": [{"node_id": node_id, "vote_key": key.hex()} for node_id, key in members],
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read trusted.json. Raises ProofError."""
        try:
            document = json.loads(text)
            if document["format"] != TRUSTED_FORMAT:
                raise ValueError("unknown format")
            pairs = [(entry["node_id"], bytes.fromhex(entry["vote_key"])) for entry in document["validators"]]
            members = (tuple(node_id for node_id, _ in pairs), tuple(key for _, key in pairs))
            return cls(
                genesis_digest=as_bytes(bytes.fromhex(document["genesis"]), DIGEST_SIZE_BYTES),
                height=as_integer(document["height"], 1),
                block=as_bytes(bytes.fromhex(document["block"]), DIGEST_SIZE_BYTES),
                validators=Validators.from_members(members),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProofError(
                f"this is not a trusted height that `qnode ledger check --write-trusted` wrote ({type(error).__name__})"
            ) from None


class LightClient:
    """See the module. A set counts from the height at which it is known to be in force."""

    def __init__(
        self, genesis: Genesis, verifier: Verifier | None = None, trusted: TrustedHeight | None = None
    ) -> None:
        """Start from the genesis, or from a trusted height of its chain. Raises ProofError if that is of another."""
        self.genesis = genesis
        self.verifier = verifier or Ed25519Verifier()
        self._trusted = trusted
        self._sets: dict[bytes, tuple[int, Validators]] = {}
        self._keys: dict[str, list[KeyState]] = {}
        if trusted is None:
            beginning = State(genesis)
            self._know(1, beginning.validators())
            self._know(2, beginning.validators_after())
        elif trusted.genesis_digest != genesis.digest:
            raise ProofError("the trusted height is of another chain than the genesis")
        else:
            self._know(trusted.height, trusted.validators)

    @classmethod
    def of(cls, trust: "Genesis | LightClient", verifier: Verifier | None = None) -> "LightClient":
        """Return a light client: the given one, or a new one of a genesis."""
        return trust if isinstance(trust, LightClient) else cls(trust, verifier)

    def _know(self, height: int, validators: Validators) -> None:
        self._sets.setdefault(validators.digest, (height, validators))

    def set_of(self, header: Header) -> Validators:
        """Return the set that a header is under, if it is known for its height. Raises ProofError."""
        since, validators = self._sets.get(header.validators_digest, (0, None))
        if validators is None:
            raise ProofError(
                f"the header of height {header.height} is under a validator set that no proven change leads to"
            )
        if header.height < since:
            raise ProofError(f"the header of height {header.height} is under a set that counts from {since} on")
        return validators

    def check(self, header: Header, certificate: Certificate) -> None:
        """Raise ProofError unless a quorum of a known set committed this header of this chain."""
        if header.genesis_digest != self.genesis.digest:
            raise ProofError("the header is of another chain; use the genesis of the chain that made the proof")
        if self._trusted is not None and header.height < self._trusted.height:
            height = self._trusted.height
            raise ProofError(f"the header of height {header.height} is older than the trusted height {height}")
        if self._trusted is not None and header.height == self._trusted.height and header.digest != self._trusted.block:
            raise ProofError(f"the header of height {header.height} is not the trusted block")
        validators = self.set_of(header)
        if (certificate.kind, certificate.height, certificate.block) != (Kind.FINALIZE, header.height, header.digest):
            raise ProofError("the certificate is not for this header")
        if not certificate.is_valid(validators, self.genesis.digest, self.verifier):
            raise ProofError("the certificate is not signed by a quorum")

    def follow(self, changes: Iterable[SetChange]) -> None:
        """Take changes of the validator set, in order of height. Raises ProofError at the first that does not hold.

        Those before a trusted height are passed over: what they would prove is not asked for.
        """
        last_height = 0
        for change in changes:
            height = change.header.height
            if height <= last_height:
                raise ProofError(f"the change of validators at height {height} is out of order")
            last_height = height
            if self._trusted is not None and height < self._trusted.height:
                continue
            self.check(change.header, change.certificate)
            following = change.following()
            if following is None:
                raise ProofError(f"the change of validators at height {height} is not in the state that it names")
            self._know(height + 1, following)

    def learn_key(self, public_key: bytes, trie: TrieProof, header: Header) -> KeyState:
        """Take the entry of a node's key under the state root of a header that was checked. Raises ProofError."""
        good, value = trie_check(header.state_root, public_key_key(public_key), trie)
        if not good or value is None:
            raise ProofError("a node's key is not in the state that the proof names")
        try:
            key = KeyState.decode(value)
        except MalformedEncoding as error:
            raise ProofError(f"a node's key is malformed: {error}") from None
        self._keys.setdefault(key.node_id, []).append(key)
        return key

    def sender_keys(self, node_id: str, height: int) -> list[bytes]:
        """Return the keys that a node's bundle in the block of `height` may be signed with, as far as proven."""
        proven = self._keys.get(node_id, [])
        found = [key.public_key for key in proven if key.first_height <= height <= (key.last_height or height)]
        ended = {key.public_key for key in proven if key.last_height and key.last_height < height}
        first = [node.public_key for node in self.genesis.nodes if node.node_id == node_id]
        return found + [key for key in first if key not in ended and key not in found]

    def trusted_at(self, header: Header) -> TrustedHeight:
        """Return a checked header as a height to trust from now on. Raises ProofError."""
        return TrustedHeight(self.genesis.digest, header.height, header.digest, self.set_of(header))
