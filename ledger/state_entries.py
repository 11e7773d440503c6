"""What an entry of the state says, and under which key it stands in the trie (SPEC 2.3).

Records and their keys only: `state` keeps them, `execution` decides how they change, `restoration` reads them back.
"""

from dataclasses import dataclass

from ledger.encoding import as_bytes, as_integer, as_text, integer_key, pack, unpack_array


@dataclass(frozen=True, slots=True)
class NodeState:
    """A registered node; `sequence` is the number of its last committed bundle, `index` its place of registration.

    A suspended node is out of the committee until a governance quorum lifts it; a revoked one may do nothing any more.
    """

    node_id: str
    public_key: bytes
    validator: bool
    sequence: int = 0
    index: int = 0
    suspended: bool = False
    revoked: bool = False
    post_quantum_key: bytes = b""

    @property
    def vote_key(self) -> bytes:
        """What statements are checked under: the public key, then the post-quantum one where votes are hybrid."""
        return self.public_key + self.post_quantum_key

    @property
    def may_vote(self) -> bool:
        """Whether this node may be chosen into the committee."""
        return self.validator and not self.suspended and not self.revoked


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key that is not simply its node's from the beginning: in force for the bundles of blocks `first` to `last`.

    `last_height` is 0 while it is in force.
    """

    public_key: bytes
    node_id: str
    first_height: int
    last_height: int = 0
    post_quantum_key: bytes = b""

    @property
    def vote_key(self) -> bytes:
        """What statements were checked under."""
        return self.public_key + self.post_quantum_key

    @classmethod
    def decode(cls, value: bytes) -> "KeyState":
        """Read the value of a key's entry. Raises MalformedEncoding."""
        public_key, node_id, first, last, post_quantum = unpack_array(value, 5)
        return cls(as_bytes(public_key), as_text(node_id), as_integer(first), as_integer(last), as_bytes(post_quantum))


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link: its ends, whether an alarm is active, and what was recorded on it. `last_block_number` is −1 at first."""

    link_id: str
    transmitter: str
    receiver: str
    alarmed: bool = False
    alarm_reason: str = ""
    alarms_raised: int = 0
    blocks_recorded: int = 0
    last_block_number: int = -1
    last_qber_ppm: int = 0
    secret_bits: int = 0

    def joins(self, one: str, other: str) -> bool:
        """Say whether the two nodes are the ends of this link."""
        if one == self.transmitter:
            return other == self.receiver
        return one == self.receiver and other == self.transmitter


@dataclass(frozen=True, slots=True)
class SaeState:
    """An application and the node that serves it."""

    sae_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device, its node, the floor of its keys, whether it was revoked (which is for good), and its alarm."""

    device_id: str
    node_id: str
    public_key: bytes
    key_bits_min: int
    security_millibits_min: int
    revoked: bool = False
    alarmed: bool = False
    alarm_reason: str = ""
    alarms_raised: int = 0


@dataclass(frozen=True, slots=True)
class KeyBlockState:
    """A recorded block of key; `transaction_id` names the full record in the block of `height`."""

    link_id: str
    block_number: int
    height: int
    transaction_id: bytes
    secret_bits: int
    qber_ppm: int
    security_millibits: int
    commitment: bytes
    time_ns: int  # of the block of `height`


# ---- keys of entries; the first byte is the kind


def node_key(node_id: str) -> bytes:
    """Key of a node's entry."""
    return b"n" + pack(node_id)


def link_key(link_id: str) -> bytes:
    """Key of a link's entry."""
    return b"l" + pack(link_id)


def sae_key(sae_id: str) -> bytes:
    """Key of an application's entry."""
    return b"s" + pack(sae_id)


def device_key(device_id: str) -> bytes:
    """Key of a device's entry."""
    return b"i" + pack(device_id)


def key_block_key(link_id: str, block_number: int) -> bytes:
    """Key of a key block's entry."""
    return b"b" + integer_key(block_number) + pack(link_id)


def delivery_key(key_id: bytes) -> bytes:
    """Key of a delivery's entry."""
    return b"d" + key_id


def equivocation_key(node_id: str, height: int) -> bytes:
    """Key of the proof that a validator contradicted itself at a height."""
    return b"e" + integer_key(height) + pack(node_id)


def public_key_key(public_key: bytes) -> bytes:
    """Key of the entry that says whose key this is, or was, and when."""
    return b"k" + public_key


CHAIN_KEY = b"c"
VERSIONS_KEY = b"f"
KEY_ID_SIZE_BYTES = 16


def key_block_value(block: KeyBlockState) -> bytes:
    """Return the canonical value of a key block's entry."""
    return pack(
        (
            *(block.link_id, block.block_number, block.height, block.transaction_id, block.secret_bits),
            *(block.qber_ppm, block.security_millibits, block.commitment, block.time_ns),
        )
    )
