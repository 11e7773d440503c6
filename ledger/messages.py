"""What replicas say to each other, and its bytes: typed records, decoded once, or MalformedEncoding.

Consensus and bundles carry their origin's signature and are relayed; statuses, wishes and answers are between
neighbours and rest on the authenticated connection alone (SPEC 6).
"""

from dataclasses import dataclass
from typing import Any, Final

from ledger.block import Header
from ledger.consensus import Proposal
from ledger.encoding import (
    DIGEST_SIZE_BYTES,
    MalformedEncoding,
    as_array,
    as_bytes,
    as_integer,
    pack,
    unpack,
)
from ledger.merkle import PATH_SIZE_BYTES
from ledger.set_change import SetChange
from ledger.snapshot_head import SnapshotHead
from ledger.trie_range import TrieRange
from ledger.votes import CERTIFICATES_MAX, Certificate, Kind, Statement

MESSAGE_SIZE_BYTES_MAX = 4_194_304
"""No payload is larger: twice the largest block, since one block with its certificate must fit."""
DIGESTS_WANTED_MAX = 1024
SET_CHANGES_MAX = 256
"""Changes of the validator set in one offer, some kilobytes each; a node that missed more of them executes blocks."""
BITMAP_SIZE_BYTES_MAX = 1024
"""Views or nodes that a status can name: 8,192; beyond it gaps are filled by certificates and blocks alone."""
STATUS_ENTRIES_MAX = 4096


@dataclass(frozen=True, slots=True)
class StatementMessage:
    """A statement of its signer; relayed."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class ProposalMessage:
    """A proposal of its leader with the certificates that justify it; relayed."""

    proposal: Proposal
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class BundleMessage:
    """An encoded bundle of its sender; relayed."""

    bundle: bytes


@dataclass(frozen=True, slots=True)
class CertificatesMessage:
    """Certificates that a neighbour lacks."""

    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """What was decided, without the bundles: the header, their digests, and the commit certificate."""

    header: Header
    bundle_digests: tuple[bytes, ...]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Status:
    """Where a node is and what it holds for its current height, so that a neighbour can push exactly the gap.

    `height` is the last committed one; bitmaps are little-endian. `statements` lists (kind, view, signers);
    `pending` (node index, last sequence held without a gap) for senders with bundles in wait; `neighbours` are
    indices of directly connected nodes, in genesis order.
    """

    height: int
    view: int
    notarized_views: bytes
    nullified_views: bytes
    proposed_views: bytes
    statements: tuple[tuple[int, int, bytes], ...]
    pending: tuple[tuple[int, int], ...]
    neighbours: bytes


@dataclass(frozen=True, slots=True)
class BundlesWanted:
    """Send these bundles, if you hold them."""

    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BodyWanted:
    """Send the complete block of `height` with this digest, if you hold it."""

    height: int
    block: bytes


@dataclass(frozen=True, slots=True)
class BodyMessage:
    """A complete block that was wanted, uncommitted as far as the sender knows."""

    block: bytes


@dataclass(frozen=True, slots=True)
class BlocksWanted:
    """Send committed blocks from `first_height`, at most `count` and as many as fit one message."""

    first_height: int
    count: int


@dataclass(frozen=True, slots=True)
class BlocksMessage:
    """Committed blocks in order, each with its commit certificate; empty when there is none."""

    blocks: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """Tell of your newest snapshot, if it is above `height`, where the asker knows the validators."""

    height: int


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """A snapshot that can be fetched here; also the answer to a wish for blocks that are no longer kept.

    `changes` lead from the validators that the asker knows to those that committed the snapshot.
    """

    head: SnapshotHead
    changes: tuple[SetChange, ...]


@dataclass(frozen=True, slots=True)
class RangeWanted:
    """Send the entries of the snapshot of `height` with paths from `first` on, as many as fit, none after `last`."""

    height: int
    first: bytes
    last: bytes


@dataclass(frozen=True, slots=True)
class RangeMessage:
    """A range of the snapshot of `height`, provable against its state root."""

    height: int
    found: TrieRange


Message = (
    StatementMessage
    | ProposalMessage
    | BundleMessage
    | CertificatesMessage
    | Status
    | BundlesWanted
    | BodyWanted
    | BodyMessage
    | BlocksWanted
    | BlocksMessage
    | SnapshotWanted
    | SnapshotOffer
    | RangeWanted
    | RangeMessage
    | Committed
)


_BUNDLE_HEAD: Final = pack((3, b""))[:2]


def encode(message: Message) -> bytes:
    """Return the canonical bytes: an array of the tag and the members."""
    match message:
        case StatementMessage(statement):
            return pack((1, statement.members()))
        case ProposalMessage(proposal, certificates):
            parts = (proposal.statement.members(), proposal.header.members(), proposal.bundle_digests)
            return pack((2, *parts, tuple(each.members() for each in certificates)))
        case BundleMessage(bundle):
            return pack((3, bundle))
        case CertificatesMessage(certificates):
            return pack((4, tuple(each.members() for each in certificates)))
        case Status(height, view, notarized, nullified, proposed, statements, pending, neighbours):
            return pack((5, height, view, notarized, nullified, proposed, statements, pending, neighbours))
        case BundlesWanted(digests):
            return pack((6, digests))
        case BodyWanted(height, block):
            return pack((7, height, block))
        case BodyMessage(block):
            return pack((8, block))
        case BlocksWanted(first_height, count):
            return pack((9, first_height, count))
        case BlocksMessage(blocks):
            return pack((10, blocks))
        case SnapshotWanted(height):
            return pack((11, height))
        case SnapshotOffer(head, changes):
            return pack((12, head.members(), tuple(each.members() for each in changes)))
        case RangeWanted(height, first, last):
            return pack((13, height, first, last))
        case RangeMessage(height, found):
            return pack((14, height, found.members()))
        case Committed(header, digests, certificate):
            return pack((15, header.members(), digests, certificate.members()))


def is_bundle(payload: bytes) -> bool:
    """Say by its first bytes whether a payload, if it is well formed, is a BundleMessage."""
    return payload[:2] == _BUNDLE_HEAD


def decode(payload: bytes) -> Message:
    """Return the message of a payload. Raises MalformedEncoding, and nothing else."""
    if len(payload) > MESSAGE_SIZE_BYTES_MAX:
        raise MalformedEncoding(f"a message has at most {MESSAGE_SIZE_BYTES_MAX} bytes")
    members = as_array(unpack(payload))
    if not members or type(members[0]) is not int or members[0] not in _DECODERS:
        raise MalformedEncoding("unknown message")
    decoder, length = _DECODERS[members[0]]
    message: Message = decoder(*as_array(members[1:], length))
    return message


def _statement(statement: Any) -> StatementMessage:
    return StatementMessage(Statement.from_members(statement))


def _proposal(statement: Any, header: Any, digests: Any, certificates: Any) -> ProposalMessage:
    proposal = Proposal(
        Statement.from_members(statement), Header.from_members(header), _digests(digests, DIGESTS_WANTED_MAX)
    )
    if proposal.statement.kind is not Kind.PROPOSE or proposal.statement.block != proposal.header.digest:
        raise MalformedEncoding("a proposal whose statement is not about its header")
    if proposal.statement.height != proposal.header.height:
        raise MalformedEncoding("a proposal whose statement is of another height")
    return ProposalMessage(proposal, _certificates(certificates).certificates)


def _certificates(certificates: Any) -> CertificatesMessage:
    values = as_array(certificates)
    if len(values) > CERTIFICATES_MAX:
        raise MalformedEncoding(f"at most {CERTIFICATES_MAX} certificates")
    return CertificatesMessage(tuple(Certificate.from_members(each) for each in values))


def _committed(header: Any, digests: Any, certificate: Any) -> Committed:
    found = Committed(
        Header.from_members(header), _digests(digests, DIGESTS_WANTED_MAX), Certificate.from_members(certificate)
    )
    about = found.certificate
    if about.kind is not Kind.FINALIZE or (about.height, about.block) != (found.header.height, found.header.digest):
        raise MalformedEncoding("a decision whose certificate is not about its header")
    return found


def _digests(value: Any, count_max: int) -> tuple[bytes, ...]:
    digests = as_array(value)
    if len(digests) > count_max:
        raise MalformedEncoding(f"at most {count_max} digests")
    return tuple(as_bytes(each, DIGEST_SIZE_BYTES) for each in digests)


def _status(
    height: Any, view: Any, notarized: Any, nullified: Any, proposed: Any, held: Any, pending: Any, neighbours: Any
) -> Status:
    if len(as_array(held)) + len(as_array(pending)) > STATUS_ENTRIES_MAX:
        raise MalformedEncoding(f"a status has at most {STATUS_ENTRIES_MAX} entries")
    statements = []
    for entry in as_array(held):
        kind, of_view, signers = as_array(entry, 3)
        statements.append((as_integer(kind, 1, 3), as_integer(of_view), _bitmap(signers)))
    waiting = []
    for entry in as_array(pending):
        index, sequence = as_array(entry, 2)
        waiting.append((as_integer(index), as_integer(sequence)))
    views = (_bitmap(notarized), _bitmap(nullified), _bitmap(proposed))
    return Status(as_integer(height), as_integer(view), *views, tuple(statements), tuple(waiting), _bitmap(neighbours))


def _bitmap(value: Any) -> bytes:
    bitmap = as_bytes(value)
    if len(bitmap) > BITMAP_SIZE_BYTES_MAX:
        raise MalformedEncoding(f"a bitmap has at most {BITMAP_SIZE_BYTES_MAX} bytes")
    return bitmap


def _blocks(value: Any) -> BlocksMessage:
    pairs = [as_array(entry, 2) for entry in as_array(value)]
    return BlocksMessage(tuple((as_bytes(block), as_bytes(certificate)) for block, certificate in pairs))


def _snapshot_offer(head: Any, changes: Any) -> SnapshotOffer:
    values = as_array(changes)
    if len(values) > SET_CHANGES_MAX:
        raise MalformedEncoding(f"at most {SET_CHANGES_MAX} changes of the validator set")
    return SnapshotOffer(SnapshotHead.from_members(head), tuple(SetChange.from_members(each) for each in values))


def _range_wanted(height: Any, first: Any, last: Any) -> RangeWanted:
    return RangeWanted(as_integer(height, 1), as_bytes(first, PATH_SIZE_BYTES), as_bytes(last, PATH_SIZE_BYTES))


_DECODERS: dict[int, tuple[Any, int]] = {
    1: (_statement, 1),
    2: (_proposal, 4),
    3: (lambda bundle: BundleMessage(as_bytes(bundle)), 1),
    4: (_certificates, 1),
    5: (_status, 8),
    6: (lambda digests: BundlesWanted(_digests(digests, DIGESTS_WANTED_MAX)), 1),
    7: (lambda height, block: BodyWanted(as_integer(height, 1), as_bytes(block, DIGEST_SIZE_BYTES)), 2),
    8: (lambda block: BodyMessage(as_bytes(block)), 1),
    9: (lambda first_height, count: BlocksWanted(as_integer(first_height, 1), as_integer(count, 1)), 2),
    10: (_blocks, 1),
    11: (lambda height: SnapshotWanted(as_integer(height)), 1),
    12: (_snapshot_offer, 2),
    13: (_range_wanted, 3),
    14: (lambda height, found: RangeMessage(as_integer(height, 1), TrieRange.from_members(found)), 2),
    15: (_committed, 3),
}
