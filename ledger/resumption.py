"""Taking up exactly where the stored tables end (SPEC 7): the chain, and what was held or said for the next height."""

from ledger.block import Block
from ledger.bodies import Bodies
from ledger.chain import BLOCK_TABLE, SET_CHANGE_TABLE
from ledger.core import (
    BODY_TABLE,
    CERTIFICATE_TABLE,
    FLOOR_TABLE,
    SNAPSHOT_HEAD_TABLE,
    SNAPSHOT_TABLE,
    STATEMENT_TABLE,
    Core,
)
from ledger.encoding import integer_key
from ledger.snapshot import FLOOR_KEY, Snapshots, Stored, newest_head, restore_state
from ledger.snapshot_sync import SnapshotSync
from ledger.speaker import Speaker
from ledger.votes import Certificate, Statement


def resume_chain(core: Core, snapshots: Snapshots, snapshot_sync: SnapshotSync, stored: Stored) -> None:
    """Restore the newest snapshot and execute the blocks after it; go on with a snapshot that was being fetched."""
    chain = core.chain
    head = newest_head(stored.get(SNAPSHOT_HEAD_TABLE, ()))
    floor = dict(stored.get(FLOOR_TABLE, ())).get(FLOOR_KEY)
    if floor is not None:
        chain.raise_floor(int.from_bytes(floor, "big"))
    if head is not None:
        state = restore_state(core.genesis, head, stored.get(SNAPSHOT_TABLE, ()), core.verifier)
        chain.resume_at(state, head.header)
        for key, row in stored.get(SET_CHANGE_TABLE, ()):
            if key <= integer_key(head.height):
                chain.take_set_change(key, row)
    snapshot_trie = chain.state.trie
    chain.replay(stored.get(BLOCK_TABLE, ()))
    for node in chain.state.nodes():
        core.overlay.register(node.node_id, node.index)
    core.store_set_changes(dict(stored.get(SET_CHANGE_TABLE, ())))
    snapshot_sync.resume(stored)
    fetch = snapshot_sync.fetch
    snapshots.resume(head, snapshot_trie, stored, None if fetch is None else fetch.head.height)


def resume_height(core: Core, bodies: Bodies, speaker: Speaker, stored: Stored) -> None:
    """Restore what was held or said for the height after the tip; rows of other heights are leftovers."""
    for table in (BODY_TABLE, CERTIFICATE_TABLE, STATEMENT_TABLE):
        for key, value in stored.get(table, ()):
            core.height_keys.append((table, key))
            _resume_row(core, bodies, speaker, table, value)


def _resume_row(core: Core, bodies: Bodies, speaker: Speaker, table: str, value: bytes) -> None:
    height = core.height + 1
    if table == BODY_TABLE:
        block = Block.decode(value, core.limits)
        if block.height == height:
            core.consensus.on_body(block)
            bodies.stored.add(block.digest)
    elif table == CERTIFICATE_TABLE:
        certificate = Certificate.decode(value)
        if certificate.height == height:
            core.consensus.on_certificate(certificate)
    else:
        statement = Statement.decode(value)
        if statement.height == height:
            speaker.resume(statement)
