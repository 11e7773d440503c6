"""What travels between nodes: bytes ↔ frame records, or a peer's fault. Nothing is decoded twice.

Each frame wraps what one of the cores says; the cores' own codecs read the payloads. The relay's records live here
because key relay is the daemon's own protocol.
"""

from dataclasses import dataclass
from typing import Final

from ledger.messages import is_bundle
from protocol.messages import MalformedMessage, Record, decode_record, encode_record


@dataclass(frozen=True, slots=True)
class PeerFault:
    """A peer sent what no correct node sends."""

    reason: str


@dataclass(frozen=True, slots=True)
class LedgerFrame(Record):
    """One message of the commit protocol or of gossip (`ledger`)."""

    KIND = 1
    payload: bytes


@dataclass(frozen=True, slots=True)
class SessionFrame(Record):
    """One sealed message of a QKD session.

    `stream_offset` is where the sender's window of authentication key starts; `reply_offset` is where the peer's
    stream starts that the sender still accepts. Neither needs a tag: a false one only burns key or ends the session.
    """

    KIND = 2
    link_id: str
    block_number: int
    nonce: bytes
    stream_offset: int
    reply_offset: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class LightFrame(Record):
    """What the channel delivers: opaque to all but the emulated receiver. Not authenticated, as light is not."""

    KIND = 3
    link_id: str
    block_number: int
    chunk: int
    last: bool
    light: bytes


@dataclass(frozen=True, slots=True)
class SessionRefused(Record):
    """Bob cannot open this session; `stream_offset` and `block_number_last` are where his side stands."""

    KIND = 4
    link_id: str
    block_number: int
    reason: str
    stream_offset: int
    block_number_last: int


Region = tuple[str, int, int, int]
"""A piece of a link's key: (link ID, block number, offset in bytes, size in bytes)."""


@dataclass(frozen=True, slots=True)
class KeyTransfer(Record):
    """One hop of a key's way: the sender's key bits at `regions` carry it to the next node of `path`.

    The first 32 bytes of the regions are the one-time key of `tag`, the rest is the key itself on the first hop
    (`ciphertext` empty), or the one-time pad under which `ciphertext` holds it on later hops.
    """

    KIND = 5
    transfer_id: bytes
    key_ids: tuple[bytes, ...]
    size_bytes: int
    master_sae: str
    slave_saes: tuple[str, ...]
    path: tuple[str, ...]
    hop: int
    regions: tuple[Region, ...]
    ciphertext: bytes
    tag: bytes


@dataclass(frozen=True, slots=True)
class KeyTransferred(Record):
    """The answer, back along the path: the keys wait at the far node (then `regions` are all hops'), or why not."""

    KIND = 6
    transfer_id: bytes
    stored: bool
    reason: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class PathProbe(Record):
    """How many key bytes could be relayed along this path now?"""

    KIND = 7
    probe_id: bytes
    path: tuple[str, ...]
    hop: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class PathProbed(Record):
    """The least of what every hop of the probed path has."""

    KIND = 8
    probe_id: bytes
    available_bytes: int


@dataclass(frozen=True, slots=True)
class LightTaken(Record):
    """The receiver has measured one more chunk of light: the transmitter may emit another (flow control only)."""

    KIND = 9
    link_id: str
    block_number: int
    chunk: int


FRAMES: Final[dict[int, type[Record]]] = {
    frame.KIND: frame
    for frame in (
        LedgerFrame,
        SessionFrame,
        LightFrame,
        SessionRefused,
        KeyTransfer,
        KeyTransferred,
        PathProbe,
        PathProbed,
        LightTaken,
    )
}

_LEDGER_HEAD: Final = encode_record(LedgerFrame(b""))[:2]
_LENGTH_BYTES: Final = {b"\xc4": 1, b"\xc5": 2, b"\xc6": 4}
"""Bytes that tell the length of a byte string in MessagePack, by the one before them."""


def encode(frame: Record) -> bytes:
    """Return the bytes of a frame."""
    return encode_record(frame)


def brings_records(data: bytes) -> bool:
    """Say by its first bytes whether a frame, if it is well formed, brings records to the mempool."""
    length_bytes = _LENGTH_BYTES.get(data[2:3])
    return (
        data[:2] == _LEDGER_HEAD and length_bytes is not None and is_bundle(data[3 + length_bytes : 8 + length_bytes])
    )


def decode(data: bytes) -> Record | PeerFault:
    """Return the frame, or the fault of whoever sent these bytes."""
    try:
        return decode_record(data, FRAMES)
    except MalformedMessage as error:
        return PeerFault(str(error))
