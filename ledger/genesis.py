"""The agreed beginning of a chain: who takes part, which links and applications exist, and the limits of blocks.

`genesis.json` is the same file on every node; its digest enters every signature, so that nodes of two chains can never
be confused. Decides nothing after height 0: later changes are transactions.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Final, Self, TypeVar

from ledger.encoding import digest
from ledger.signatures import POST_QUANTUM_KEY_SIZE_BYTES, PUBLIC_KEY_SIZE_BYTES

Record = TypeVar("Record")
NAME_LENGTH_MAX = 64
"""Characters of an identifier: long enough for host names, short enough for a record of about 200 bytes."""


ED25519_VOTES: Final = "ed25519"
HYBRID_VOTES: Final = "ed25519+ml-dsa-65"
HYBRID_TRANSACTION_SIZE_BYTES_MIN: Final = 10_240
"""A rotation of keys has two hybrid signatures and a post-quantum key: 8.8 KB; a proof of equivocation 7.3."""


class GenesisError(ValueError):
    """A genesis that cannot start a chain; the message says which member is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class GenesisNode:
    """A node of the network; `validator` nodes vote, all nodes execute. Hybrid votes need a `post_quantum_key`."""

    node_id: str
    public_key: bytes
    validator: bool = True
    post_quantum_key: bytes = b""


@dataclass(frozen=True, slots=True)
class GenesisLink:
    """A quantum link; the transmitter holds the source (Alice), the receiver the detectors (Bob)."""

    link_id: str
    transmitter: str
    receiver: str


@dataclass(frozen=True, slots=True)
class GenesisSae:
    """An application and the node that serves it."""

    sae_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class GenesisParameters:
    """Limits that decide validity, so every node must share them. At a limit the block or bundle is invalid."""

    bundle_transactions_max: int = 4096  # one signature is amortised to nothing well before; keeps one bundle < 1 MiB
    bundle_size_bytes_max: int = 1_048_576  # fits one frame together with its envelope
    transaction_size_bytes_max: int = 4096  # a delivery over a path of some thirty hops
    block_transactions_max: int = 16_384  # executes in well under a view timeout
    block_size_bytes_max: int = 2_097_152  # two full bundles; one block must fit one catch-up frame
    block_bundles_max: int = 1024  # bounds the references in a proposal to 32 KiB
    committee_max: int = 31  # more validators would cost each height over 100 ms of signature checks on two cores
    epoch_heights: int = 10_000  # hours to a day; every change of the committee is a link in light proofs
    vote_signatures: str = ED25519_VOTES
    sender_block_transactions_max: int = (
        8192  # half a block: one sender's flood leaves room for the others in every one
    )
    sender_block_size_bytes_max: int = 1_048_576  # the same in bytes; the largest bundle fits

    def __post_init__(self) -> None:
        kinds = (ED25519_VOTES, HYBRID_VOTES)
        if self.vote_signatures not in kinds:
            raise GenesisError(f"parameters.vote_signatures is {self.vote_signatures!r}; give {' or '.join(kinds)}")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "vote_signatures":
                continue
            if type(value) is not int or not 1 <= value <= 2**31:
                raise GenesisError(f"parameters.{each.name} is {value!r}; give an integer from 1 to {2**31}")
        if self.bundle_size_bytes_max > self.block_size_bytes_max:
            raise GenesisError("parameters.bundle_size_bytes_max exceeds block_size_bytes_max; lower it")
        if self.bundle_transactions_max > self.block_transactions_max:
            raise GenesisError("parameters.bundle_transactions_max exceeds block_transactions_max; lower it")
        if self.bundle_size_bytes_max > self.sender_block_size_bytes_max:
            raise GenesisError("parameters.bundle_size_bytes_max exceeds sender_block_size_bytes_max; lower it")
        if self.bundle_transactions_max > self.sender_block_transactions_max:
            raise GenesisError("parameters.bundle_transactions_max exceeds sender_block_transactions_max; lower it")
        if self.hybrid_votes and self.transaction_size_bytes_max < HYBRID_TRANSACTION_SIZE_BYTES_MIN:
            smallest = HYBRID_TRANSACTION_SIZE_BYTES_MIN
            raise GenesisError(f"hybrid votes need parameters.transaction_size_bytes_max of at least {smallest}")

    @property
    def hybrid_votes(self) -> bool:
        """Whether statements carry an ML-DSA-65 signature besides the Ed25519 one."""
        return self.vote_signatures == HYBRID_VOTES

    def members(self) -> tuple[tuple[str, Any], ...]:
        """Return the canonical members.

        A parameter that joined later counts only where it is not its default, so that older chains keep their name.
        """
        named = [(each.name, getattr(self, each.name), each.default) for each in fields(self)]
        return tuple((name, value) for name, value, default in named if name in _FIRST_PARAMETERS or value != default)


_FIRST_PARAMETERS: Final = tuple(each.name for each in fields(GenesisParameters))[:6]


@dataclass(frozen=True)
class Genesis:
    """Height 0. Checked on construction; raises GenesisError."""

    chain_id: str
    time_ns: int
    nodes: tuple[GenesisNode, ...]
    links: tuple[GenesisLink, ...] = ()
    saes: tuple[GenesisSae, ...] = ()
    parameters: GenesisParameters = field(default_factory=GenesisParameters)

    def __post_init__(self) -> None:
        _check_name("chain_id", self.chain_id)
        _require(type(self.time_ns) is int and 0 <= self.time_ns < 2**63, "time_ns must be nanoseconds since 1970")
        _require(any(node.validator for node in self.nodes), "nodes has no validator; mark at least one")
        self._check_nodes()
        node_ids = {node.node_id for node in self.nodes}
        _check_unique("links", [link.link_id for link in self.links])
        for link in self.links:
            known = link.transmitter in node_ids and link.receiver in node_ids
            _require(known, f"link {link.link_id} names a node that is not in nodes")
            _require(link.transmitter != link.receiver, f"link {link.link_id} joins a node with itself")
        _check_unique("saes", [sae.sae_id for sae in self.saes])
        for sae in self.saes:
            _require(sae.node_id in node_ids, f"sae {sae.sae_id} names a node that is not in nodes")

    def _check_nodes(self) -> None:
        _check_unique("nodes", [node.node_id for node in self.nodes])
        for node in self.nodes:
            good = type(node.public_key) is bytes and len(node.public_key) == PUBLIC_KEY_SIZE_BYTES
            _require(good, f"node {node.node_id}: public_key must be {PUBLIC_KEY_SIZE_BYTES} bytes")
            _require(type(node.validator) is bool, f"node {node.node_id}: validator must be true or false")
            size_bytes = POST_QUANTUM_KEY_SIZE_BYTES if self.parameters.hybrid_votes else 0
            good = type(node.post_quantum_key) is bytes and len(node.post_quantum_key) == size_bytes
            _require(good, f"node {node.node_id}: post_quantum_key must have {size_bytes} bytes on this chain")
        keys = {node.public_key for node in self.nodes}
        _require(len(keys) == len(self.nodes), "two nodes share a public_key; make an identity for each")

    @cached_property
    def digest(self) -> bytes:
        """The 32-byte name of this chain: it enters every signature and is the parent of block 1."""
        return digest(
            "qnode/genesis/1",
            self.chain_id,
            self.time_ns,
            tuple(_node_members(node) for node in self.nodes),
            tuple((link.link_id, link.transmitter, link.receiver) for link in self.links),
            tuple((sae.sae_id, sae.node_id) for sae in self.saes),
            self.parameters.members(),
        )

    def to_json(self) -> str:
        """Return the text of genesis.json, keys in hexadecimal."""
        document = {
            "chain_id": self.chain_id,
            "time_ns": self.time_ns,
            "nodes": [_node_document(node) for node in self.nodes],
            "links": [asdict(link) for link in self.links],
            "saes": [asdict(sae) for sae in self.saes],
            "parameters": dict(self.parameters.members()),
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read genesis.json; unknown and missing members are refused. Raises GenesisError."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GenesisError(f"genesis is not JSON ({error}); copy the file `qnode init` wrote") from None
        names = {each.name for each in fields(cls)}
        _check_members("genesis", document, names)
        return cls(
            chain_id=document["chain_id"],
            time_ns=document["time_ns"],
            nodes=tuple(_read_node(entry) for entry in _list("nodes", document)),
            links=tuple(_read(GenesisLink, "links", entry) for entry in _list("links", document)),
            saes=tuple(_read(GenesisSae, "saes", entry) for entry in _list("saes", document)),
            parameters=_read(GenesisParameters, "parameters", document["parameters"], _FIRST_PARAMETERS),
        )


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise GenesisError(reason)


def _check_name(what: str, value: Any) -> None:
    good = type(value) is str and 1 <= len(value) <= NAME_LENGTH_MAX and value.isprintable()
    _require(good, f"{what} must be printable text of 1 to {NAME_LENGTH_MAX} characters")


def _check_unique(what: str, names: list[Any]) -> None:
    for name in names:
        _check_name(f"every identifier in {what}", name)
    twice = sorted({name for name in names if names.count(name) > 1})
    _require(not twice, f"{what} names {', '.join(twice)} twice; rename one")


def _check_members(what: str, document: Any, names: set[str], needed: set[str] | None = None) -> None:
    _require(type(document) is dict, f"{what} must be a JSON object")
    unknown = sorted(set(document) - names)
    missing = sorted((names if needed is None else needed) - set(document))
    _require(not unknown, f"{what} has unknown members {', '.join(unknown)}; known are {', '.join(sorted(names))}")
    _require(not missing, f"{what} lacks {', '.join(missing)}; copy the file `qnode init` wrote")


def _list(what: str, document: dict[str, Any]) -> list[Any]:
    entries = document[what]
    if type(entries) is not list:
        raise GenesisError(f"{what} must be a JSON array")
    return entries


def _read(record: type[Record], what: str, entry: Any, needed: Sequence[str] | None = None) -> Record:
    names = {each.name for each in fields(record)}  # type: ignore[arg-type]
    _check_members(f"an entry of {what}", entry, names, None if needed is None else set(needed))
    return record(**entry)


def _node_members(node: GenesisNode) -> tuple[Any, ...]:
    members = (node.node_id, node.public_key, int(node.validator))
    return (*members, node.post_quantum_key) if node.post_quantum_key else members


def _node_document(node: GenesisNode) -> dict[str, Any]:
    document = {"node_id": node.node_id, "public_key": node.public_key.hex(), "validator": node.validator}
    return document | ({"post_quantum_key": node.post_quantum_key.hex()} if node.post_quantum_key else {})


def _read_node(entry: Any) -> GenesisNode:
    needed = {"node_id", "public_key", "validator"}
    _check_members("an entry of nodes", entry, {*needed, "post_quantum_key"}, needed)
    return GenesisNode(
        node_id=entry["node_id"],
        public_key=_read_key(entry, "public_key"),
        validator=entry["validator"],
        post_quantum_key=_read_key(entry, "post_quantum_key"),
    )


def _read_key(entry: dict[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(entry.get(name, ""))
    except (TypeError, ValueError):
        raise GenesisError(f"node {entry['node_id']}: {name} is not hexadecimal") from None
