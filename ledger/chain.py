"""The committed chain of one node (row S0-B1): its tip, its state, how a block is appended, replayed and looked up.

Decides whether a header extends the tip and keeps recent blocks at hand; older ones are read through an `Archive`.
Replay at start executes every stored block again (about 20 µs a transaction), without signature checks: the bytes were
checked before they were stored, and hashes, roots and receipts are compared again (SPEC 5.3).
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from ledger.block import Block, Header, MalformedBlock, limits_fault
from ledger.encoding import MalformedEncoding, as_array, as_bytes, as_integer, integer_key, pack, unpack_array
from ledger.execution import Receipt, Rules, bundles_fault, execute
from ledger.genesis import Genesis
from ledger.set_change import SetChange
from ledger.state import State
from ledger.transactions import MalformedTransaction, decode, transaction_id
from ledger.validators import SETS_KEY
from ledger.votes import Certificate, Kind

BLOCK_TABLE = "ledger.block"
SET_CHANGE_TABLE = "ledger.set_change"
RECENT_BLOCKS_MAX = 512
"""Blocks kept in memory when an archive is there to read older ones from: some minutes of full load at most."""


class CorruptLedger(Exception):
    """The stored chain is not one that this node wrote; the message names the height and the way out."""


class UpgradeNeeded(Exception):
    """The stored chain goes on in a version that this program does not know; the message says what to do."""


class Archive(Protocol):
    """Reads what was stored; synchronous, since a block is one indexed read."""

    def read(self, table: str, key: bytes) -> bytes | None:
        """Return the value stored under (table, key), or None."""
        ...


class StoredBlock(NamedTuple):
    """One row of the block table: the block, its commit certificate, and (index, reason) of refused transactions."""

    block: bytes
    certificate: bytes
    refused: tuple[tuple[int, str], ...]

    def encoded(self) -> bytes:
        """The canonical bytes."""
        return pack((self.block, self.certificate, self.refused))

    @classmethod
    def decode(cls, row: bytes) -> "StoredBlock":
        """Read canonical bytes. Raises MalformedEncoding."""
        block, certificate, refused = unpack_array(row, 3)
        pairs = [as_array(entry, 2) for entry in as_array(refused)]
        return cls(as_bytes(block), as_bytes(certificate), tuple((as_integer(i), str(reason)) for i, reason in pairs))


class Chain:
    """The tip and everything below it; `append` is the only way forward."""

    def __init__(
        self, genesis: Genesis, rules: Rules, archive: Archive | None, recent_blocks_max: int | None = None
    ) -> None:
        """Start at the genesis. Without an archive all blocks stay in memory, unless `recent_blocks_max` says not."""
        self.genesis = genesis
        self.state = State(genesis)
        self.tip_digest = genesis.digest
        self.tip_time_ns = genesis.time_ns
        self.floor = 1
        self._rules = rules
        self._archive = archive
        self._recent: dict[int, StoredBlock] = {}
        self.set_change_heights: list[int] = []
        self.new_set_changes: list[tuple[bytes, bytes]] = []
        """Rows of `SET_CHANGE_TABLE` that the owner of this chain has not taken to store yet."""
        self._set_changes: dict[int, bytes] = {}
        self._recent_max = RECENT_BLOCKS_MAX if recent_blocks_max is None and archive is not None else recent_blocks_max

    @property
    def height(self) -> int:
        """The last committed height; 0 is the genesis."""
        return self.state.height

    def header_fault(self, header: Header) -> str | None:
        """Return why a header cannot follow the tip, or None: part of block validity, without clocks."""
        expected = (
            ("version", header.version, self.state.version(self.height + 1)),
            ("chain", header.genesis_digest, self.genesis.digest),
            ("height", header.height, self.height + 1),
            ("previous block", header.previous, self.tip_digest),
            ("state root", header.state_root, self.state.root),
            ("validator set", header.validators_digest, self.state.validators().digest),
        )
        for name, found, wanted in expected:
            if found != wanted:
                return f"the block's {name} is not this chain's"
        return None if header.time_ns > self.tip_time_ns else "the block's time is not after its parent's"

    def block_fault(self, block: Block) -> str | None:
        """Return why a complete block cannot follow the tip, or None; signatures of bundles are checked elsewhere."""
        return (
            self.header_fault(block.header)
            or limits_fault(block.bundles, self.genesis.parameters)
            or bundles_fault(self.state, block.bundles)
        )

    def certificate_fault(self, block: Block, certificate: Certificate) -> str | None:
        """Return why `certificate` does not commit `block` at the next height, or None."""
        if certificate.kind is not Kind.FINALIZE or certificate.height != block.height:
            return "the certificate is not a commit of this height"
        if certificate.block != block.digest:
            return "the certificate is for another block"
        if not certificate.is_valid(self.state.validators(), self.genesis.digest, self._rules.verifier):
            return "the certificate is not signed by a quorum"
        return None

    def append(self, block: Block, certificate: Certificate) -> tuple[list[Receipt], bytes]:
        """Execute a checked block; returns its receipts and the row to store."""
        receipts = execute(self.state, block, self._rules)
        if block.header.validators_digest != self.state.validators().digest:
            self._note_set_change(block, certificate)
        self.tip_digest = block.digest
        self.tip_time_ns = block.header.time_ns
        refused = tuple((i, receipt.reason) for i, receipt in enumerate(receipts) if not receipt.ok)
        stored = StoredBlock(block.encoded, certificate.encoded, refused)
        self._remember(block.height, stored)
        return receipts, stored.encoded()

    def _note_set_change(self, block: Block, certificate: Certificate) -> None:
        """Keep what proves that another set follows this block's: only now is the path to the entry at hand."""
        trie = self.state.prove(SETS_KEY, previous=True)
        row = SetChange(block.header, certificate, trie).encoded
        self.set_change_heights.append(block.height)
        self.new_set_changes.append((integer_key(block.height), row))
        if self._archive is None:
            self._set_changes[block.height] = row

    def set_changes(self) -> list[SetChange]:
        """Return the proofs of every change of the validator set up to the tip, in order (SPEC 7.8)."""
        rows = [self._set_change_row(height) for height in self.set_change_heights]
        return [SetChange.decode(row) for row in rows if row is not None]

    def _set_change_row(self, height: int) -> bytes | None:
        if self._archive is None:
            return self._set_changes.get(height)
        fresh = dict(self.new_set_changes)
        return fresh.get(integer_key(height)) or self._archive.read(SET_CHANGE_TABLE, integer_key(height))

    @property
    def known_versions(self) -> frozenset[int]:
        """The versions that this program knows."""
        return self._rules.versions

    def upgrade_needed(self) -> str | None:
        """Return why this program must not go on to the next height, or None: its version is not known here."""
        version = self.state.version(self.height + 1)
        if version in self._rules.versions:
            return None
        known = max(self._rules.versions)
        return f"blocks from height {self.height + 1} on have version {version}, this program knows up to {known}"

    def _remember(self, height: int, stored: StoredBlock) -> None:
        self._recent[height] = stored
        if self._recent_max is not None and len(self._recent) > self._recent_max:
            self._recent.pop(next(iter(self._recent)))

    def resume_at(self, state: State, header: Header) -> None:
        """Go on from the state after the block of `header`: a snapshot's, whose root the caller has checked."""
        assert state.height == header.height
        self.state = state
        self.tip_digest = header.digest
        self.tip_time_ns = header.time_ns

    def take_set_change(self, key: bytes, row: bytes) -> None:
        """Take a change of the validator set that happened in blocks that are not executed here."""
        height = int.from_bytes(key, "big")
        self.set_change_heights.append(height)
        self.new_set_changes.append((key, row))
        if self._archive is None:
            self._set_changes[height] = row

    def raise_floor(self, floor: int) -> None:
        """Forget the blocks below `floor`."""
        self._recent = {height: stored for height, stored in self._recent.items() if height >= floor}
        self.floor = max(self.floor, floor)

    def replay(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Execute the stored blocks above the present state, in key order. Raises CorruptLedger."""
        start_key = integer_key(self.height + 1)
        for key, row in rows:
            height = self.height + 1
            try:
                if key < start_key:  # below the snapshot that the state came from
                    self._keep(key, row)
                else:
                    self._replay_one(key, row)
            except (MalformedEncoding, MalformedBlock) as error:
                raise CorruptLedger(_corrupt(height, str(error))) from None

    def _keep(self, key: bytes, row: bytes) -> None:
        """Remember a stored block without executing it, where there is no archive to read it from."""
        if self._archive is None and key >= integer_key(self.floor):
            self._remember(int.from_bytes(key, "big"), StoredBlock.decode(row))

    def _replay_one(self, key: bytes, row: bytes) -> None:
        height = self.height + 1
        if reason := self.upgrade_needed():
            raise UpgradeNeeded(f"{reason}; install a newer qnode on this node")
        stored = StoredBlock.decode(row)
        block = Block.decode(stored.block, self.genesis.parameters)
        certificate = Certificate.decode(stored.certificate)
        fault = None if key == integer_key(height) else "it is not the next height"
        fault = fault or self.block_fault(block)
        if fault is None and (certificate.kind, certificate.block) != (Kind.FINALIZE, block.digest):
            fault = "its certificate is for another block"
        if fault is not None:
            raise CorruptLedger(_corrupt(height, fault))
        _, again = self.append(block, certificate)
        if again != row:
            raise CorruptLedger(_corrupt(height, "it executes differently than before"))

    def stored_block(self, height: int) -> StoredBlock | None:
        """Return a committed block's row, or None."""
        stored = self._recent.get(height)
        if stored is None and self._archive is not None and self.floor <= height <= self.height:
            row = self._archive.read(BLOCK_TABLE, integer_key(height))
            stored = None if row is None else StoredBlock.decode(row)
        return stored

    def transaction(self, height: int, transaction_id: bytes) -> bytes | None:
        """Return the bytes of a committed transaction, or None. Decodes a block: milliseconds where it is full."""
        stored = self.stored_block(height)
        if stored is None:
            return None
        for bundle in Block.decode(stored.block, self.genesis.parameters).bundles:
            if transaction_id in bundle.transaction_ids:
                return bundle.transactions[bundle.transaction_ids.index(transaction_id)]
        return None

    def summary(self, height: int) -> dict[str, Any] | None:
        """Return a committed block as a JSON-ready document, or None."""
        stored = self.stored_block(height)
        if stored is None:
            return None
        block = Block.decode(stored.block, self.genesis.parameters)
        certificate = Certificate.decode(stored.certificate)
        refused = dict(stored.refused)
        bodies = [(bundle.sender, body) for bundle in block.bundles for body in bundle.transactions]
        return {
            "height": height,
            "digest": block.digest.hex(),
            "previous": block.header.previous.hex(),
            "state_root_before": block.header.state_root.hex(),
            "time_ns": block.header.time_ns,
            "view": certificate.view,
            "signers": certificate.indices(),
            "bundles": [
                {"sender": b.sender, "sequence": b.sequence, "transactions": len(b.transactions)} for b in block.bundles
            ],
            "transactions": [
                transaction_document(sender, body, refused.get(i)) for i, (sender, body) in enumerate(bodies)
            ],
        }


def transaction_document(sender: str, body: bytes, refused: str | None) -> dict[str, Any]:
    """Return a transaction as a JSON-ready document, byte strings in hexadecimal."""
    document: dict[str, Any] = {"id": transaction_id(body).hex(), "sender": sender, "ok": refused is None}
    if refused is not None:
        document["reason"] = refused
    try:
        transaction = decode(body)
    except MalformedTransaction:
        return document | {"kind": "malformed"}
    members = {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(transaction).items()}
    return document | {"kind": type(transaction).__name__, **members}


def _corrupt(height: int, reason: str) -> str:
    return (
        f"the stored block of height {height} cannot be used: {reason}; "
        "move the node's data directory away and start again: it catches up from its peers"
    )
