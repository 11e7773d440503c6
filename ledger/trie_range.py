"""Ranges of the state trie: its entries between two paths, with a proof that these are all of them and nothing else.

What makes snapshots verifiable piece by piece (SPEC 7.7): every range is checked against the state root of a certified
header alone, so that a bad one is blamed on whoever sent it. The proof is the digest of every largest subtree that lies
outside the range, and at each edge the entry, if any, that lies outside while its position reaches in; together
with the entries inside they must add up to the root. Paths are compared as hexadecimal text, whose order is theirs, and
whose prefixes are the trie's positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from ledger.encoding import DIGEST_SIZE_BYTES, MalformedEncoding, as_array, as_bytes
from ledger.merkle import (
    EMPTY_TRIE_ROOT,
    PATH_SIZE_BYTES,
    Node,
    branch_digest,
    leaf_entry,
    trie_leaf_digest,
    trie_path,
)

DIGITS = "0123456789abcdef"
FIRST_PATH = bytes(PATH_SIZE_BYTES)
LAST_PATH = b"\xff" * PATH_SIZE_BYTES
ENTRIES_MAX = 512
"""Entries of one range: cutting or checking it takes some 5 ms, so that the loop is never held up noticeably."""
SIZE_BYTES_MAX = 65_536
"""Keys and values of one range; the last entry may pass it by its own size."""
OUTSIDE_MAX = 2 * 64 * 15
"""Subtrees outside a range: at most fifteen beside each step of its two edges."""

Entry = tuple[bytes, bytes]
"""The key and the value of one entry of the state."""


@dataclass(frozen=True, slots=True)
class TrieRange:
    """All entries with paths from `first` to `last`, in path order, and what shows that.

    `edges`: entries outside that stand at a position which reaches in, one at each end at most; `outside`: (position,
    digest) of the largest subtrees that lie outside.
    """

    first: bytes
    last: bytes
    entries: tuple[Entry, ...]
    edges: tuple[Entry, ...]
    outside: tuple[tuple[bytes, bytes], ...]

    def members(self) -> tuple[Any, ...]:
        """Return the canonical members."""
        return self.first, self.last, self.entries, self.edges, self.outside

    @classmethod
    def from_members(cls, value: Any) -> Self:
        """Read what `members` returned. Raises MalformedEncoding."""
        first, last, entries, edges, outside = as_array(value, 5)
        sizes = [len(as_array(each)) for each in (entries, edges, outside)]
        if sizes[0] > ENTRIES_MAX or sizes[1] > 2 or sizes[2] > OUTSIDE_MAX:
            raise MalformedEncoding(f"a range has at most {ENTRIES_MAX} entries and {OUTSIDE_MAX} subtrees beside it")
        return cls(
            first=as_bytes(first, PATH_SIZE_BYTES),
            last=as_bytes(last, PATH_SIZE_BYTES),
            entries=tuple(_pair(entry) for entry in entries),
            edges=tuple(_pair(entry) for entry in edges),
            outside=tuple(_outside(entry) for entry in outside),
        )


def _pair(value: Any) -> Entry:
    key, content = as_array(value, 2)
    return as_bytes(key), as_bytes(content)


def _outside(value: Any) -> tuple[bytes, bytes]:
    position, found = as_array(value, 2)
    if len(as_bytes(position)) > 2 * PATH_SIZE_BYTES or any(digit not in DIGITS.encode() for digit in position):
        raise MalformedEncoding("a position in the trie is at most 64 hexadecimal digits")
    return position, as_bytes(found, DIGEST_SIZE_BYTES)


# ---- cutting


def entries_from(node: Node | None, first: bytes, last: bytes = LAST_PATH) -> Iterator[tuple[bytes, Entry]]:
    """Iterate over (path, entry) from `first` to `last` in path order; the trie may be an old one."""
    if node is not None:
        yield from _walk(node, "", first.hex(), last.hex())


def _walk(node: Node, position: str, first: str, last: str) -> Iterator[tuple[bytes, Entry]]:
    if len(node) == 2:
        path = node[1][:PATH_SIZE_BYTES]
        if first <= path.hex() <= last:
            yield path, leaf_entry(node)
        return
    for digit, child in zip(DIGITS, node[1], strict=True):
        below = position + digit
        if child is not None and _meets(below, first, last):
            yield from _walk(child, below, first, last)


def _meets(position: str, first: str, last: str) -> bool:
    """Say whether any path below a position lies in the range."""
    return position <= last and position.ljust(2 * PATH_SIZE_BYTES, "f") >= first


def cut_range(
    node: Node | None,
    first: bytes,
    last: bytes = LAST_PATH,
    entries_max: int = ENTRIES_MAX,
    size_bytes_max: int = SIZE_BYTES_MAX,
) -> TrieRange:
    """Return the range from `first` on, ending at `last` or at the entry that fills it. some 4 ms when full."""
    taken: list[Entry] = []
    size_bytes = 0
    for path, (key, value) in entries_from(node, first, last):
        taken.append((key, value))
        size_bytes += len(key) + len(value)
        if len(taken) >= entries_max or size_bytes >= size_bytes_max:
            last = path
            break
    edges: list[Entry] = []
    outside: list[tuple[bytes, bytes]] = []
    if node is not None:
        _beside(node, "", first.hex(), last.hex(), edges, outside)
    return TrieRange(first, last, tuple(taken), tuple(edges), tuple(outside))


def _beside(
    node: Node, position: str, first: str, last: str, edges: list[Entry], outside: list[tuple[bytes, bytes]]
) -> None:
    """Collect what lies outside the range, in order."""
    if not _meets(position, first, last):
        outside.append((position.encode(), node[0][1:]))
    elif len(node) == 3:
        for digit, child in zip(DIGITS, node[1], strict=True):
            if child is not None:
                _beside(child, position + digit, first, last, edges, outside)
    elif not first <= node[1][:PATH_SIZE_BYTES].hex() <= last:
        edges.append(leaf_entry(node))


# ---- checking


class _Piece(NamedTuple):
    """A part of the trie at `position`: a leaf (its whole path), or a subtree of which only the digest is known."""

    position: str
    digest: bytes
    is_leaf: bool


def range_fault(root: bytes, found: TrieRange) -> str | None:
    """Return why `found` is not the complete contents of its range in the trie of `root`, or None. Some 5 ms."""
    first, last = found.first.hex(), found.last.hex()
    inside = [_leaf(entry) for entry in found.entries]
    edges = [_leaf(entry) for entry in found.edges]
    beside = [_Piece(position.decode(), digest, False) for position, digest in found.outside]
    if any(not first <= piece.position <= last for piece in inside):
        return "an entry lies outside the range"
    if any(first <= piece.position <= last for piece in edges):
        return "an entry of the range is named as one beside it"
    if any(_meets(piece.position, first, last) for piece in beside):
        return "a hidden subtree reaches into the range"
    pieces = sorted(inside + edges + beside)
    if any(pieces[i].position == pieces[i + 1].position for i in range(len(pieces) - 1)):
        return "a position is named twice"
    if _digest(pieces) != root:
        return "the entries do not add up to the state root"
    return None


def _leaf(entry: Entry) -> _Piece:
    path = trie_path(entry[0])
    return _Piece(path.hex(), trie_leaf_digest(path, entry[1]), True)


def _digest(pieces: Sequence[_Piece]) -> bytes | None:
    return _digest_at(pieces, 0) if pieces else EMPTY_TRIE_ROOT


def _digest_at(pieces: Sequence[_Piece], depth: int) -> bytes | None:
    """Return the digest of the node that holds these pieces; None if they cannot share one."""
    if len(pieces) == 1 and (pieces[0].is_leaf or len(pieces[0].position) == depth):
        return pieces[0].digest
    children: list[bytes | None] = [None] * 16
    start = 0
    while start < len(pieces):
        if len(pieces[start].position) <= depth:
            return None
        digit = pieces[start].position[depth]
        end = start + 1
        while end < len(pieces) and pieces[end].position[depth : depth + 1] == digit:
            end += 1
        child = _digest_at(pieces[start:end], depth + 1)
        if child is None:
            return None
        children[int(digit, 16)] = child
        start = end
    return branch_digest(children)
