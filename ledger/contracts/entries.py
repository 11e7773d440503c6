"""The state entries of contracts: plain records whose canonical bytes are all there is to them (SPEC 2.3, 9).

An entry's key is its prefix and the canonical array of its first `NAMED` members, its value the array of all members,
so that a snapshot restores it from (key, value) alone. Records only; what changes them is decided elsewhere.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Self

from ledger.encoding import MalformedEncoding, pack, unpack

OPEN: Final = "open"
EXECUTED: Final = "executed"
FAILED: Final = "failed"
EXPIRED: Final = "expired"
WITHDRAWN: Final = "withdrawn"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; members are integers, text, byte strings, and tuples of them."""

    PREFIX: ClassVar[bytes]
    NAMED: ClassVar[int] = 1

    @property
    def name(self) -> tuple[Any, ...]:
        """The members that identify the entry among those of its kind."""
        return tuple(getattr(self, each.name) for each in fields(self)[: self.NAMED])

    @property
    def key(self) -> bytes:
        """The key in the trie."""
        return self.key_of(*self.name)

    @classmethod
    def key_of(cls, *name: Any) -> bytes:
        """Return the key of the entry with this name."""
        return cls.PREFIX + pack(name)

    @property
    def value(self) -> bytes:
        """The canonical value in the trie."""
        return pack(tuple(getattr(self, each.name) for each in fields(self)))

    @classmethod
    def from_value(cls, value: bytes) -> Self:
        """Return the entry of a value that the chain certified. Raises MalformedEncoding."""
        members = unpack(value)
        if type(members) is not tuple or len(members) != len(fields(cls)):
            raise MalformedEncoding(f"not the members of a {cls.__name__}")
        return cls(*members)


@dataclass(frozen=True, slots=True)
class Proposal(Entry):
    """An action that was proposed, who approved it, and what became of it; `status` is one of the words above."""

    PREFIX = b"g"

    proposal_id: bytes
    proposer: str
    action: bytes
    proposed_height: int
    expiry_height: int
    approvals: tuple[str, ...]
    status: str = OPEN
    decided_height: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Revocation(Entry):
    """The end of the trust in a subject, for good: ("block", link, number), ("key", key ID), ("node", node)."""

    PREFIX = b"r"

    subject: tuple[Any, ...]
    height: int
    reason: str
    decided_by: str  # the link end that revoked its block, or "governance"


@dataclass(frozen=True, slots=True)
class PolicyEntry(Entry):
    """A key policy in force: its canonical document, and the height that set it, which names its version."""

    PREFIX = b"p"

    policy: str
    height: int
    document: bytes


@dataclass(frozen=True, slots=True)
class PolicyIndex(Entry):
    """The names of all policies in force, sorted: what a light proof needs to show that it names every one."""

    PREFIX = b"x"
    NAMED = 0

    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinkWatch(Entry):
    """What a policy's suspension rule has seen of a link; `suspended_height` is 0 while the link is not suspended."""

    PREFIX = b"u"
    NAMED = 2

    link_id: str
    policy: str
    suspended_height: int
    abort_heights: tuple[int, ...]
    clean_blocks: int


@dataclass(frozen=True, slots=True)
class QuotaUse(Entry):
    """Keys delivered to a pair of applications under a policy's quota, in the window that begins at a height."""

    PREFIX = b"q"
    NAMED = 3

    policy: str
    master_sae: str
    slave_sae: str
    window_height: int
    keys: int


@dataclass(frozen=True, slots=True)
class BlockUse(Entry):
    """Keys that a block of key has carried, counted while a policy bounds them."""

    PREFIX = b"y"
    NAMED = 2

    link_id: str
    block_number: int
    uses: int


_KINDS: Final[tuple[type[Entry], ...]] = (
    *(Proposal, Revocation, PolicyEntry, PolicyIndex),
    *(LinkWatch, QuotaUse, BlockUse),
)
ENTRIES: Final[dict[bytes, type[Entry]]] = {kind.PREFIX: kind for kind in _KINDS}
"""Every kind of entry by its prefix: what a snapshot restores them with."""
