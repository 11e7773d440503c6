"""The rules of membership: suspension for proven equivocation, rotation of keys, and who may be what (SPEC 5.4).

Which committee follows from it is decided in `validators`, from the state alone. Carries SEED_MAP S0-B2.
"""

from dataclasses import replace
from typing import Final

from ledger.encoding import MalformedEncoding
from ledger.signatures import Verifier, verify_vote
from ledger.state import State
from ledger.state_entries import KeyState, NodeState
from ledger.transactions import EquivocationProven, KeyRotated
from ledger.votes import Evidence, Statement, contradict

EVIDENCE_HEIGHTS_MAX: Final = 10_000
"""Older contradictions count no more, so that a key that was rotated away can harm its node for a bounded time only."""
RECORD_GRACE_HEIGHTS: Final = 2000
"""Records that were signed before a rotation stay good for so long: no shorter than records live."""
ROTATION_PAUSE_HEIGHTS: Final = 64
"""Between two rotations of one node: each may change the committee, which every later light proof must follow."""


def prove_equivocation(
    state: State, genesis_digest: bytes, verifier: Verifier, proven: EquivocationProven, transaction_id: bytes
) -> str | None:
    """Record a contradiction and suspend its signer, unless nobody could vote then; returns the refusal or None."""
    try:
        one, other = Statement.decode(proven.one), Statement.decode(proven.other)
    except MalformedEncoding as error:
        return f"equivocation.statements: {error}"
    if not contradict(one, other):
        return "equivocation.statements: they do not contradict each other"
    signer = state.node(one.signer)
    if signer is None or one.height > state.height:
        return f"equivocation.signer: {one.signer} cannot have voted at that height"
    if one.height + EVIDENCE_HEIGHTS_MAX < state.height:
        return f"equivocation.expired: height {one.height} is more than {EVIDENCE_HEIGHTS_MAX} heights ago"
    if state.equivocation(one.signer, one.height) is not None:
        return f"equivocation.known: {one.signer} is recorded for height {one.height}"
    evidence = Evidence(one, other, proven.validators_digest)
    if not any(evidence.is_signed(key, genesis_digest, verifier) for key in vote_keys(state, signer)):
        return f"equivocation.signature: not both signed by {one.signer}"
    state.put_equivocation(one.signer, one.height, transaction_id)
    if state.leaves_voters(without=one.signer):
        state.put_node(replace(signer, suspended=True))
    return None


def vote_keys(state: State, node: NodeState) -> list[bytes]:
    """Return every key that a node's statements within the reach of evidence may be signed with, the present first."""
    floor = state.height - EVIDENCE_HEIGHTS_MAX
    retired = [key.vote_key for key in state.keys_of(node.node_id) if key.last_height >= max(floor, 1)]
    return [node.vote_key, *reversed(retired)]


def record_keys(state: State, node_id: str) -> list[bytes]:
    """Return the keys that a node's signature inside a record may be of: the present, and lately retired ones."""
    node = state.node(node_id)
    if node is None or node.revoked:
        return []
    floor = max(state.height - RECORD_GRACE_HEIGHTS, 1)
    return [node.public_key, *(key.public_key for key in state.keys_of(node_id) if key.last_height >= floor)]


def rotate_key(
    state: State, chain_id: str, genesis_digest: bytes, verifier: Verifier, sender: str, record: KeyRotated
) -> str | None:
    """Give a node a new key, in force for bundles from the next height; returns the refusal or None."""
    node = state.node(record.node_id)
    if node is None or record.node_id != sender:
        return f"key_rotation.sender: {sender} cannot rotate the key of {record.node_id}"
    if record.old_key != node.public_key:
        return f"key_rotation.old: that is not the present key of {sender}"
    if state.height > record.expiry_height:
        return f"key_rotation.expired: height {state.height} is past {record.expiry_height}"
    if state.is_key_known(record.new_key):
        return "key_rotation.used: this key is in use, or was; make a new one"
    if bool(record.post_quantum_key) != bool(node.post_quantum_key):
        return "key_rotation.post_quantum: a post-quantum key is for chains of hybrid votes, and there it must be new"
    opened = next((key for key in state.keys_of(sender) if key.public_key == node.public_key), None)
    first_height = 0 if opened is None else opened.first_height
    if first_height and state.height < first_height + ROTATION_PAUSE_HEIGHTS:
        return f"key_rotation.pause: wait until height {first_height + ROTATION_PAUSE_HEIGHTS}"
    message = record.signing_bytes(chain_id, genesis_digest)
    new_vote_key = record.new_key + record.post_quantum_key
    pairs = ((node.vote_key, record.old_signature), (new_vote_key, record.new_signature))
    if not all(verify_vote(verifier, key, message, signature) for key, signature in pairs):
        return "key_rotation.signature: not signed by both the present and the new key"
    state.put_key(KeyState(node.public_key, sender, first_height, state.height, node.post_quantum_key))
    state.put_key(KeyState(record.new_key, sender, state.height + 1, 0, record.post_quantum_key))
    state.put_node(replace(node, public_key=record.new_key, post_quantum_key=record.post_quantum_key))
    return None
