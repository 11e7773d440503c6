"""The records of the chain and their canonical bytes: what a transaction says, not whether it is accepted.

Each record checks its own ranges on construction; `execution` decides what the state allows. Only commitments and sizes
of keys are ever recorded, never key bits (SEED_MAP S0-B4). Formats are pinned by tests/data; a change is a new kind.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ledger.encoding import (
    DIGEST_SIZE_BYTES,
    MalformedEncoding,
    as_array,
    as_bytes,
    as_integer,
    as_text,
    digest,
    pack,
    unpack,
)
from ledger.genesis import NAME_LENGTH_MAX
from ledger.merkle import leaf_digest
from ledger.signatures import (
    POST_QUANTUM_KEY_SIZE_BYTES,
    PUBLIC_KEY_SIZE_BYTES,
    SIGNATURE_SIZE_BYTES,
    VOTE_SIGNATURE_SIZES_BYTES,
)

COMMITMENT_SIZE_BYTES = 32
KEY_ID_SIZE_BYTES = 16
DEVICE_KEY_SIZE_BYTES = 32
REASON_LENGTH_MAX = 64
PATH_NODES_MAX = 64
"""Nodes of a relay path: far beyond any sensible chain of trusted nodes; bounds the work of one record."""
HOPS_MAX = 256
STATEMENT_SIZE_BYTES_MAX = 4096
"""An encoded statement has about 200 bytes, with a hybrid signature 3,500, with the longest node name 130 more."""
PPM = 1_000_000


class MalformedTransaction(ValueError):
    """A transaction that breaks its format or its own ranges."""


@dataclass(frozen=True, slots=True)
class KeyBlockRecorded:
    """Both ends of a link distilled a block of key (S0-B1): sizes, quality, and a commitment that reveals nothing.

    `authentication_bits` is the key consumed for authentication, `security_millibits` floor(−1000·log2 ε). The record
    is accepted up to `expiry_height`, when both link ends' node keys signed `signing_bytes`.
    """

    KIND: ClassVar[int] = 1

    link_id: str
    block_number: int
    pulses: int
    detections: int
    sifted_bits: int
    sample_bits: int
    qber_ppm: int
    leaked_bits: int
    verification_bits: int
    authentication_bits: int
    secret_bits: int
    security_millibits: int
    proof: str
    method: str
    commitment: bytes
    expiry_height: int
    transmitter_signature: bytes
    receiver_signature: bytes

    def __post_init__(self) -> None:
        _check_name("link_id", self.link_id)
        for name in _KEY_BLOCK_COUNTS:
            _check_integer(name, getattr(self, name))
        _check(self.qber_ppm <= PPM, f"qber_ppm exceeds {PPM}")
        _check(self.detections <= self.pulses, "detections exceeds pulses")
        _check(self.sifted_bits <= self.detections, "sifted_bits exceeds detections")
        _check(self.sample_bits <= self.sifted_bits, "sample_bits exceeds sifted_bits")
        _check(self.secret_bits <= self.sifted_bits - self.sample_bits, "secret_bits exceeds the bits that were kept")
        _check_name("proof", self.proof)
        _check_name("method", self.method)
        _check_bytes("commitment", self.commitment, COMMITMENT_SIZE_BYTES)
        _check_bytes("transmitter_signature", self.transmitter_signature, SIGNATURE_SIZE_BYTES)
        _check_bytes("receiver_signature", self.receiver_signature, SIGNATURE_SIZE_BYTES)

    def signing_bytes(self, chain_id: str, genesis_digest: bytes) -> bytes:
        """Return what both ends sign: every member but the signatures, bound to this chain and this purpose."""
        values = tuple(getattr(self, name) for name in _KEY_BLOCK_SIGNED)
        return digest("qnode/key block/1", chain_id, genesis_digest, values)


@dataclass(frozen=True, slots=True)
class AlarmRaised:
    """An end of a link reports that a block was aborted, and why (`qber`, `authentication`, …)."""

    KIND: ClassVar[int] = 2

    link_id: str
    block_number: int
    reason: str
    qber_ppm: int
    reporter: str

    def __post_init__(self) -> None:
        _check_name("link_id", self.link_id)
        _check_integer("block_number", self.block_number)
        _check_name("reason", self.reason, REASON_LENGTH_MAX)
        _check_integer("qber_ppm", self.qber_ppm)
        _check(self.qber_ppm <= PPM, f"qber_ppm exceeds {PPM}")
        _check_name("reporter", self.reporter)


Hop = tuple[str, int, int, int]
"""(link_id, block_number, offset_bits, size_bits): the stretch of a key block that carried a key over one link."""


@dataclass(frozen=True, slots=True)
class KeyDelivered:
    """A key was reserved for two applications; `hops` name, in path order, the key-block bits that carried it."""

    KIND: ClassVar[int] = 3

    key_id: bytes
    master_sae: str
    slave_sae: str
    size_bits: int
    path: tuple[str, ...]
    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        path, hops = self.path, self.hops
        _check_bytes("key_id", self.key_id, KEY_ID_SIZE_BYTES)
        _check_name("master_sae", self.master_sae)
        _check_name("slave_sae", self.slave_sae)
        if type(self.size_bits) is not int or not 0 < self.size_bits < 2**63:
            raise MalformedTransaction("size_bits: expected a positive integer")
        if type(path) is not tuple or not 1 <= len(path) <= PATH_NODES_MAX:
            raise MalformedTransaction(f"path: expected 1 to {PATH_NODES_MAX} nodes")
        for node_id in path:
            _check_name("a node of path", node_id)
        if len(set(path)) != len(path):
            raise MalformedTransaction("path visits a node twice")
        if type(hops) is not tuple or len(hops) > HOPS_MAX:
            raise MalformedTransaction(f"hops: expected at most {HOPS_MAX}")
        for hop in hops:
            _check_hop(hop)


def _check_hop(hop: Any) -> None:
    if type(hop) is not tuple or len(hop) != 4:
        raise MalformedTransaction("a hop is (link_id, block_number, offset_bits, size_bits)")
    link_id, block_number, offset_bits, size_bits = hop
    _check_name("a hop's link_id", link_id)
    _check_integer("a hop's block_number", block_number)
    _check_integer("a hop's offset_bits", offset_bits)
    if type(size_bits) is not int or not 0 < size_bits < 2**63:
        raise MalformedTransaction("a hop's size_bits: expected a positive integer")


@dataclass(frozen=True, slots=True)
class SaeRegistered:
    """A node takes on an application; the node must be the sender."""

    KIND: ClassVar[int] = 4

    sae_id: str
    node_id: str

    def __post_init__(self) -> None:
        _check_name("sae_id", self.sae_id)
        _check_name("node_id", self.node_id)


@dataclass(frozen=True, slots=True)
class EquivocationProven:
    """Two encoded statements of one validator that contradict each other; any node may report them.

    `validators_digest` names the set that both are signed for.
    """

    KIND: ClassVar[int] = 24

    one: bytes
    other: bytes
    validators_digest: bytes

    def __post_init__(self) -> None:
        for name, value in (("one", self.one), ("other", self.other)):
            good = type(value) is bytes and 1 <= len(value) <= STATEMENT_SIZE_BYTES_MAX
            _check(good, f"{name}: expected 1 to {STATEMENT_SIZE_BYTES_MAX} bytes")
        _check_bytes("validators_digest", self.validators_digest, DIGEST_SIZE_BYTES)


@dataclass(frozen=True, slots=True)
class KeyRotated:
    """A node takes a new key; the present and the new one sign, and with hybrid votes both post-quantum ones.

    It must be in a block of at most `expiry_height`. `post_quantum_key` is empty unless votes are hybrid.
    """

    KIND: ClassVar[int] = 25

    node_id: str
    old_key: bytes
    new_key: bytes
    post_quantum_key: bytes
    expiry_height: int
    old_signature: bytes
    new_signature: bytes

    def __post_init__(self) -> None:
        _check_name("node_id", self.node_id)
        _check_bytes("old_key", self.old_key, PUBLIC_KEY_SIZE_BYTES)
        _check_bytes("new_key", self.new_key, PUBLIC_KEY_SIZE_BYTES)
        hybrid = type(self.post_quantum_key) is bytes and len(self.post_quantum_key) > 0
        _check_bytes("post_quantum_key", self.post_quantum_key, POST_QUANTUM_KEY_SIZE_BYTES if hybrid else 0)
        _check_integer("expiry_height", self.expiry_height)
        size_bytes = VOTE_SIGNATURE_SIZES_BYTES[hybrid]
        _check_bytes("old_signature", self.old_signature, size_bytes)
        _check_bytes("new_signature", self.new_signature, size_bytes)

    def signing_bytes(self, chain_id: str, genesis_digest: bytes) -> bytes:
        """Return what both keys sign: every member but the signatures, bound to this chain and this purpose."""
        values = tuple(getattr(self, name) for name in _MEMBERS[self.KIND][:-2])
        return digest("qnode/key rotation/1", chain_id, genesis_digest, values)


@dataclass(frozen=True, slots=True)
class DeviceRegistered:
    """A node takes on a device that proved to hold its identity key (SEED_MAP S4-A1.3–6); the node must be the sender.

    The policy is the floor of the device's keys: `key_bits_min` bits, and floor(−1000·log2 ε) of at least
    `security_millibits_min` (S4-6.1). Rotating pseudonyms of vehicles (S0-G5) will be records of their own.
    """

    KIND: ClassVar[int] = 16

    device_id: str
    node_id: str
    public_key: bytes
    key_bits_min: int
    security_millibits_min: int
    device_signature: bytes

    def __post_init__(self) -> None:
        _check_name("device_id", self.device_id)
        _check_name("node_id", self.node_id)
        _check_bytes("public_key", self.public_key, DEVICE_KEY_SIZE_BYTES)
        _check_integer("key_bits_min", self.key_bits_min)
        _check_integer("security_millibits_min", self.security_millibits_min)
        _check_bytes("device_signature", self.device_signature, SIGNATURE_SIZE_BYTES)

    def signing_bytes(self, chain_id: str, genesis_digest: bytes) -> bytes:
        """Return what the device signs: every member but the signature, bound to this chain and this purpose."""
        values = tuple(getattr(self, name) for name in _MEMBERS[self.KIND][:-1])
        return digest("qnode/device/1", chain_id, genesis_digest, values)


@dataclass(frozen=True, slots=True)
class DeviceRevoked:
    """The node of a device ends its trust in it, for good; the node must be the sender (SEED_MAP S4-A1.3–6)."""

    KIND: ClassVar[int] = 17

    device_id: str
    reason: str

    def __post_init__(self) -> None:
        _check_name("device_id", self.device_id)
        _check_name("reason", self.reason, REASON_LENGTH_MAX)


@dataclass(frozen=True, slots=True)
class DeviceAlarmRaised:
    """The node of a device reports that a session with it was attacked, and how (`qber`, `forged`, `replayed`)."""

    KIND: ClassVar[int] = 18

    device_id: str
    reason: str
    qber_ppm: int

    def __post_init__(self) -> None:
        _check_name("device_id", self.device_id)
        _check_name("reason", self.reason, REASON_LENGTH_MAX)
        _check_integer("qber_ppm", self.qber_ppm)
        _check(self.qber_ppm <= PPM, f"qber_ppm exceeds {PPM}")


@dataclass(frozen=True, slots=True)
class DeviceAlarmCleared:
    """The node of a device has made a key with it again; the node must be the sender."""

    KIND: ClassVar[int] = 19

    device_id: str

    def __post_init__(self) -> None:
        _check_name("device_id", self.device_id)


@dataclass(frozen=True, slots=True)
class GovernanceProposed:
    """A validator proposes an action (S0-B3); its transaction id names the proposal. The proposer must be the sender.

    `action` is an encoded action of `ledger.contracts.actions`; approvals count up to `expiry_height`.
    """

    KIND: ClassVar[int] = 32

    proposer: str
    action: bytes
    expiry_height: int

    def __post_init__(self) -> None:
        _check_name("proposer", self.proposer)
        _check(type(self.action) is bytes and len(self.action) > 0, "action: expected bytes")
        _check_integer("expiry_height", self.expiry_height)


@dataclass(frozen=True, slots=True)
class GovernanceApproved:
    """A validator approves a proposal; the approver must be the sender."""

    KIND: ClassVar[int] = 33

    proposal: bytes
    approver: str

    def __post_init__(self) -> None:
        _check_bytes("proposal", self.proposal, DIGEST_SIZE_BYTES)
        _check_name("approver", self.approver)


@dataclass(frozen=True, slots=True)
class GovernanceWithdrawn:
    """The proposer takes an open proposal back."""

    KIND: ClassVar[int] = 34

    proposal: bytes
    proposer: str

    def __post_init__(self) -> None:
        _check_bytes("proposal", self.proposal, DIGEST_SIZE_BYTES)
        _check_name("proposer", self.proposer)


@dataclass(frozen=True, slots=True)
class KeyBlockRevoked:
    """An end of a link ends the trust in a block of its key, for good (S0-B3); the revoker must be the sender."""

    KIND: ClassVar[int] = 35

    link_id: str
    block_number: int
    reason: str
    revoker: str

    def __post_init__(self) -> None:
        _check_name("link_id", self.link_id)
        _check_integer("block_number", self.block_number)
        _check_name("reason", self.reason, REASON_LENGTH_MAX)
        _check_name("revoker", self.revoker)


Transaction = (
    KeyBlockRecorded
    | AlarmRaised
    | KeyDelivered
    | SaeRegistered
    | EquivocationProven
    | KeyRotated
    | DeviceRegistered
    | DeviceRevoked
    | DeviceAlarmRaised
    | DeviceAlarmCleared
    | GovernanceProposed
    | GovernanceApproved
    | GovernanceWithdrawn
    | KeyBlockRevoked
)
KINDS: dict[int, type[Transaction]] = {
    kind.KIND: kind
    for kind in (
        *(KeyBlockRecorded, AlarmRaised, KeyDelivered, SaeRegistered, EquivocationProven, KeyRotated),
        *(DeviceRegistered, DeviceRevoked, DeviceAlarmRaised, DeviceAlarmCleared),
        *(GovernanceProposed, GovernanceApproved, GovernanceWithdrawn, KeyBlockRevoked),
    )
}
_MEMBERS: dict[int, tuple[str, ...]] = {kind: tuple(f.name for f in fields(cls)) for kind, cls in KINDS.items()}
_KEY_BLOCK_SIGNED = _MEMBERS[KeyBlockRecorded.KIND][:-2]
_KEY_BLOCK_COUNTS = tuple(f.name for f in fields(KeyBlockRecorded) if f.type is int)


def encode(transaction: Transaction) -> bytes:
    """Return the canonical bytes: an array of the kind and the members in their order."""
    return pack((transaction.KIND, *(getattr(transaction, name) for name in _MEMBERS[transaction.KIND])))


def decode(data: bytes) -> Transaction:
    """Return the record of canonical bytes. Raises MalformedTransaction, and nothing else."""
    try:
        members: tuple[Any, ...] = as_array(unpack(data))
        record = KINDS.get(members[0]) if members and type(members[0]) is int else None
        if record is None:
            raise MalformedTransaction("unknown kind")
        if len(members) != len(_MEMBERS[record.KIND]) + 1:
            raise MalformedTransaction(f"a {record.__name__} has {len(_MEMBERS[record.KIND])} members")
        return record(*members[1:])
    except MalformedEncoding as error:
        raise MalformedTransaction(str(error)) from None


def transaction_id(encoded: bytes) -> bytes:
    """Return the 32-byte name of an encoded transaction: its leaf digest in its bundle's Merkle tree."""
    return leaf_digest(encoded)


def _check(condition: bool, reason: str) -> None:
    if not condition:
        raise MalformedTransaction(reason)


def _check_name(name: str, value: Any, length_max: int = NAME_LENGTH_MAX) -> None:
    if type(value) is not str or not 1 <= len(value) <= length_max:
        _refuse(as_text, name, value, length_max)


def _check_integer(name: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**63:
        _refuse(as_integer, name, value)


def _check_bytes(name: str, value: Any, size_bytes: int) -> None:
    if type(value) is not bytes or len(value) != size_bytes:
        _refuse(as_bytes, name, value, size_bytes)


def _refuse(check: Any, name: str, *arguments: Any) -> None:
    try:
        check(*arguments)
    except MalformedEncoding as error:
        raise MalformedTransaction(f"{name}: {error}") from None
