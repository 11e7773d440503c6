"""What this validator says: statements signed through the guard, stored before they leave, and blocks proposed.

`consensus` decides what is to be said; here it is signed, or refused because an earlier life said more (SPEC rule 10,
7.5), and a leader's fresh block is made of what waits in the mempool (SPEC rule 2).
"""

from collections.abc import Mapping

from ledger.block import Block, Header, transaction_root
from ledger.bodies import Bodies
from ledger.collection import VoteCollection
from ledger.consensus import Proposal
from ledger.core import SIGNER_TABLE, STATEMENT_TABLE, Core
from ledger.encoding import integer_key
from ledger.guard import STEPS, Guard, Record
from ledger.identity import OwnKeys
from ledger.messages import ProposalMessage
from ledger.votes import Kind, Statement

_RECORD_KEY = b"record"


class Speaker:
    """Signs and tells this node's statements about the height in progress."""

    def __init__(
        self, core: Core, keys: OwnKeys, bodies: Bodies, collection: VoteCollection, signed: Mapping[bytes, bytes]
    ) -> None:
        """`signed` holds what earlier lives stored in SIGNER_TABLE."""
        record = Record.decode(signed[_RECORD_KEY]) if _RECORD_KEY in signed else Record()
        self.guard = Guard(core.node_id, core.genesis.digest, record)
        self._core = core
        self._keys = keys
        self._bodies = bodies
        self._collection = collection

    def say(self, kind: Kind, view: int, block: bytes, justified: int) -> Statement | None:
        """Vote, finalize or nullify; returns what was said, None if an earlier life said more than it stored."""
        statement = self._sign(kind, view, block, justified)
        if statement is None:
            return None
        if kind is Kind.VOTE:
            self._bodies.store(self._core.consensus.bodies[block])
        self._collection.say(statement)
        return statement

    def propose(self, view: int, block: Block | None, justified: int) -> None:
        """Propose a block that is bound, or a fresh one."""
        core, consensus = self._core, self._core.consensus
        block = block or self._fresh_block()
        statement = self._sign(Kind.PROPOSE, view, block.digest, justified)
        if statement is None:
            return
        self._bodies.store(block)
        proposal = Proposal(statement, block.header, tuple(bundle.digest for bundle in block.bundles))
        consensus.on_body(block)
        consensus.on_proposal(proposal)
        core.spread_statement(ProposalMessage(proposal, consensus.justification(statement)), statement, None)

    def _fresh_block(self) -> Block:
        core = self._core
        bundles = core.mempool.select(core.state)
        header = Header(
            genesis_digest=core.genesis.digest,
            height=core.height + 1,
            previous=core.chain.tip_digest,
            state_root=core.state.root,
            validators_digest=core.consensus.validators.digest,
            transaction_root=transaction_root([bundle.digest for bundle in bundles]),
            time_ns=max(core.wall_ns, core.chain.tip_time_ns + 1),
            version=core.state.version(core.height + 1),
        )
        return Block(header, bundles)

    def _sign(self, kind: Kind, view: int, block: bytes, justified: int) -> Statement | None:
        """Sign through the guard and store record and statement; None if an earlier life said more than it stored."""
        height = self._core.height + 1
        if not self.guard.allows(kind, height, view):
            self._core.note("warning", "signing_refused", kind=kind.name, height=height, view=view)
            return None
        validators = self._core.consensus.validators
        signer = self._keys.voter(validators)
        assert signer is not None, "only a node that can sign is asked for statements"
        statement = self.guard.sign(signer, validators, kind, height, view, block, justified)
        self._store(statement)
        return statement

    def _store(self, statement: Statement) -> None:
        self._core.store(SIGNER_TABLE, _RECORD_KEY, self.guard.record.encoded())
        key = integer_key(statement.height, statement.view, statement.kind)
        self._core.store_for_height(STATEMENT_TABLE, key, statement.encoded)

    # ---- what an earlier life said

    def remember(self, statement: Statement) -> None:
        """Take back an own statement that only the neighbours remembered: never contradict it (SPEC 7.5)."""
        record = Record(statement.height, statement.view, STEPS[statement.kind])
        self.guard.record = max(self.guard.record, record)
        self._store(statement)
        self._core.consensus.restore(statement)
        self._core.note("warning", "statement_recalled", kind=statement.kind.name, height=statement.height)

    def resume(self, statement: Statement) -> None:
        """Take back an own statement about the height in progress that was stored."""
        consensus = self._core.consensus
        consensus.restore(statement)
        block = consensus.bodies.get(statement.block)
        if statement.kind is Kind.PROPOSE and block is not None:
            digests = tuple(bundle.digest for bundle in block.bundles)
            consensus.on_proposal(Proposal(statement, block.header, digests))
