"""Offline verification of a stored chain: everything is checked and executed again, nothing is believed (SPEC 7.3).

Unlike the replay at a node's start this checks every signature: commit certificates, bundles, and the records inside.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ledger.block import Block, Header, MalformedBlock
from ledger.chain import Chain, CorruptLedger, StoredBlock
from ledger.encoding import MalformedEncoding, integer_key
from ledger.execution import Rules
from ledger.genesis import Genesis
from ledger.set_change import SetChange, follow
from ledger.signatures import Ed25519Verifier, Verifier
from ledger.snapshot import restore_state
from ledger.snapshot_head import SnapshotHead
from ledger.votes import Certificate


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found: `fault` is None if every block holds, else why the block after `height` does not.

    `first_height` is the first block that was executed; above 1 the audit rests on a snapshot with its certificate.
    `digests` maps every height that was checked to its block.
    """

    first_height: int
    height: int
    transactions: int
    refused: int
    signatures_checked: int
    tip: bytes
    state_root: bytes
    fault: str | None
    digests: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """Whether every block holds."""
        return self.fault is None

    def document(self) -> dict[str, Any]:
        """Return a JSON-ready document."""
        return {
            "ok": self.ok,
            "first_height": self.first_height,
            "height": self.height,
            "transactions": self.transactions,
            "refused": self.refused,
            "signatures_checked": self.signatures_checked,
            "tip": self.tip.hex(),
            "state_root": self.state_root.hex(),
            "fault": self.fault,
        }


class _CountingVerifier:
    """Counts the checks of another verifier."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.count = 0

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        self.count += 1
        return self._verifier.verify(public_key, message, signature)


def verify_chain(
    genesis: Genesis,
    rows: Iterable[tuple[bytes, bytes]],
    verifier: Verifier | None = None,
    snapshot: tuple[SnapshotHead, Iterable[tuple[bytes, bytes]], Iterable[tuple[bytes, bytes]]] | None = None,
) -> AuditReport:
    """Verify the rows of the table `ledger.block`, in key order; stops at the first fault.

    From the genesis on, or, where older blocks are not kept, from a `snapshot`: its head, its rows, and the rows of
    `ledger.set_change`, which lead from the validators of the genesis to those that committed it. About 30 µs a
    transaction and 60 µs a signature.
    """
    counting = _CountingVerifier(verifier or Ed25519Verifier())
    chain = Chain(genesis, Rules.of(genesis, counting), None, recent_blocks_max=1)
    transactions = refused = 0
    digests: dict[int, str] = {}
    fault = None if snapshot is None else _begin_at(chain, counting, *snapshot)
    first_height = chain.height + 1
    below: Header | None = None
    for key, row in rows:
        if fault is not None:
            break
        try:
            stored = StoredBlock.decode(row)
            block = Block.decode(stored.block, genesis.parameters)
            certificate = Certificate.decode(stored.certificate)
        except (MalformedEncoding, MalformedBlock) as error:
            fault = f"block {chain.height + 1} is malformed: {error}"
            break
        if block.height < first_height:
            fault = _link_fault(chain, below, block)
            below = block.header
            continue
        fault = _block_fault(chain, counting, key, block, certificate)
        if fault is not None:
            break
        receipts, again = chain.append(block, certificate)
        digests[block.height] = block.digest.hex()
        transactions += len(receipts)
        refused += sum(1 for receipt in receipts if not receipt.ok)
        if again != row:
            fault = f"block {chain.height}: the stored receipts are not those of its execution"
    return AuditReport(
        first_height=first_height,
        height=chain.height,
        transactions=transactions,
        refused=refused,
        signatures_checked=counting.count,
        tip=chain.tip_digest,
        state_root=chain.state.root,
        fault=fault,
        digests=digests,
    )


def _link_fault(chain: Chain, before: Header | None, block: Block) -> str | None:
    """Check a block that is kept below the snapshot: it is tied to the certified one by hashes, and not executed."""
    if before is not None and (block.header.previous, block.height) != (before.digest, before.height + 1):
        return f"block {block.height} does not follow block {before.height}"
    if block.height == chain.height and block.digest != chain.tip_digest:
        return f"block {block.height} is not the one of the snapshot"
    return None


def _begin_at(
    chain: Chain,
    verifier: Verifier,
    head: SnapshotHead,
    rows: Iterable[tuple[bytes, bytes]],
    set_changes: Iterable[tuple[bytes, bytes]],
) -> str | None:
    """Set the chain to a snapshot; returns why it is not proven to be this chain's, or None."""
    genesis = chain.genesis
    try:
        changes = [SetChange.decode(row) for _, row in set_changes]
        state = restore_state(genesis, head, rows, verifier)
    except (MalformedEncoding, CorruptLedger) as error:
        return str(error)
    below = [change for change in changes if change.header.height <= head.height]
    validators = follow(chain.state.validators(), below, genesis.digest, verifier)
    if isinstance(validators, str):
        return validators
    if fault := head.fault(genesis.digest, validators, verifier):
        return fault
    chain.resume_at(state, head.header)
    return None


def _block_fault(chain: Chain, verifier: Verifier, key: bytes, block: Block, certificate: Certificate) -> str | None:
    height = chain.height + 1
    if reason := chain.upgrade_needed():
        return reason
    if key != integer_key(height):
        return f"block {height} is missing: the next row has the key {key.hex()}"
    if reason := chain.block_fault(block) or chain.certificate_fault(block, certificate):
        return f"block {height}: {reason}"
    genesis = chain.genesis
    for bundle in block.bundles:
        sender = chain.state.node(bundle.sender)
        assert sender is not None, "block_fault looks at the senders"
        if not bundle.is_signed_by(sender.public_key, genesis.chain_id, genesis.digest, verifier):
            return f"block {height}: bundle {bundle.sequence} of {bundle.sender} is not signed by it"
    return None
