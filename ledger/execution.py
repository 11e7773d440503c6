"""The rules of the chain: what each transaction needs, what it changes, and the reason of every refusal.

A pure function of (state, block). A refused transaction stays in its block with a receipt that names the rule; it
changes nothing (SPEC 5). Carries SEED_MAP S0-B1 and S0-B4; the rules that a
governance quorum sets (S0-B3) are `ledger.contracts`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ledger.block import VERSIONS, Block
from ledger.bundle import Bundle
from ledger.contracts import block_rules, delivery_rules, device_rules, governance, retention, revocation
from ledger.encoding import pack
from ledger.genesis import Genesis
from ledger.membership import prove_equivocation, record_keys, rotate_key
from ledger.merkle import leaf_digest, list_root
from ledger.signatures import Verifier
from ledger.state import State
from ledger.state_entries import DeviceState, KeyBlockState, SaeState
from ledger.transactions import (
    AlarmRaised,
    DeviceAlarmCleared,
    DeviceAlarmRaised,
    DeviceRegistered,
    DeviceRevoked,
    EquivocationProven,
    GovernanceApproved,
    GovernanceProposed,
    GovernanceWithdrawn,
    Hop,
    KeyBlockRecorded,
    KeyBlockRevoked,
    KeyDelivered,
    KeyRotated,
    MalformedTransaction,
    SaeRegistered,
    Transaction,
    decode,
)


class Receipt(NamedTuple):
    """What became of one transaction. `transaction` is None if its bytes are malformed; `reason` is "" if accepted."""

    transaction: Transaction | None
    transaction_id: bytes
    sender: str
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rules need besides the state: the chain's name, to check the signatures inside records."""

    chain_id: str
    genesis_digest: bytes
    verifier: Verifier
    versions: frozenset[int] = VERSIONS
    """The versions of blocks and rules that this program knows (SPEC 5.5)."""

    @classmethod
    def of(cls, genesis: Genesis, verifier: Verifier, versions: frozenset[int] = VERSIONS) -> "Rules":
        """Return the rules of a chain."""
        return cls(genesis.chain_id, genesis.digest, verifier, versions)


def bundles_fault(state: State, bundles: Sequence[Bundle]) -> str | None:
    """Return why these bundles cannot follow `state` in this order, or None; part of block validity.

    Every sender is a registered node, and its sequence numbers continue without a gap: each bundle executes at most
    once and in its sender's order. Signatures are checked where bundles arrive.
    """
    following: dict[str, int] = {}
    for bundle in bundles:
        sender = state.node(bundle.sender)
        if sender is None:
            return f"bundle sender {bundle.sender!r} is not a node of this chain"
        if sender.revoked:
            return f"bundle sender {bundle.sender!r} was revoked"
        expected = following.get(bundle.sender, sender.sequence) + 1
        if bundle.sequence != expected:
            return f"bundle {bundle.sequence} of {bundle.sender} where {expected} is next"
        following[bundle.sender] = expected
    return None


def execute(state: State, block: Block, rules: Rules) -> list[Receipt]:
    """Apply a committed block to `state` and return the receipts in block order. About 15 µs a transaction."""
    assert bundles_fault(state, block.bundles) is None, "a committed block was checked before"
    state.begin(block.height, block.header.time_ns)
    governance.begin_block(state)
    retention.begin_block(state)
    receipts: list[Receipt] = []
    for bundle in block.bundles:
        for body, transaction_id in zip(bundle.transactions, bundle.transaction_ids, strict=True):
            receipts.append(_execute_one(state, rules, bundle.sender, body, transaction_id))
        state.put_sequence(bundle.sender, bundle.sequence)
    state.finish(block.digest, receipts_root(receipts))
    return receipts


def execute_proven(state: State, rules: Rules, height: int, time_ns: int, sender: str, body: bytes) -> Receipt:
    """Execute one transaction of a proven block of `height` again, on the part of the state that a proof shows.

    For checkers of proofs (SPEC 7.6); `state` is theirs alone.
    """
    state.height, state.time_ns = height, time_ns
    return _execute_one(state, rules, sender, body, leaf_digest(body))


def receipts_root(receipts: Sequence[Receipt]) -> bytes:
    """Return the commitment to which transactions of a block were refused, and why."""
    refused = [(i, receipt.reason) for i, receipt in enumerate(receipts) if not receipt.ok]
    return list_root([leaf_digest(pack(each)) for each in refused])


def _execute_one(state: State, rules: Rules, sender: str, body: bytes, transaction_id: bytes) -> Receipt:
    try:
        transaction = decode(body)
    except MalformedTransaction as error:
        return Receipt(None, transaction_id, sender, False, f"malformed: {error}")
    reason = _RULES[type(transaction)](state, rules, sender, transaction, transaction_id)
    return Receipt(transaction, transaction_id, sender, reason is None, reason or "")


def _record_key_block(state: State, rules: Rules, sender: str, record: KeyBlockRecorded, tx_id: bytes) -> str | None:
    link = state.link(record.link_id)
    if link is None:
        return f"key_block.link: {record.link_id} is not a link of this chain"
    if sender not in (link.transmitter, link.receiver):
        return f"key_block.sender: {sender} is not an end of {record.link_id}"
    if record.block_number <= link.last_block_number:
        return f"key_block.number: {record.block_number} is not above {link.last_block_number}"
    if state.height > record.expiry_height:
        return f"key_block.expired: height {state.height} is past {record.expiry_height}"
    if reason := revocation.key_block_fault(state, link, record.block_number):
        return reason
    message = record.signing_bytes(rules.chain_id, rules.genesis_digest)
    ends = ((link.transmitter, record.transmitter_signature), (link.receiver, record.receiver_signature))
    for node_id, signature in ends:
        if not any(rules.verifier.verify(key, message, signature) for key in record_keys(state, node_id)):
            return f"key_block.signature: not signed by {node_id}"
    if reason := block_rules.key_block_fault(state, link, record):
        return reason
    block_rules.observe_key_block(state, link.link_id)
    state.put_link(
        replace(
            link,
            alarmed=False,
            alarm_reason="",
            blocks_recorded=link.blocks_recorded + 1,
            last_block_number=record.block_number,
            last_qber_ppm=record.qber_ppm,
            secret_bits=link.secret_bits + record.secret_bits,
        )
    )
    state.put_key_block(
        KeyBlockState(
            link_id=record.link_id,
            block_number=record.block_number,
            height=state.height,
            transaction_id=tx_id,
            secret_bits=record.secret_bits,
            qber_ppm=record.qber_ppm,
            security_millibits=record.security_millibits,
            commitment=record.commitment,
            time_ns=state.time_ns,
        )
    )
    return None


def _raise_alarm(state: State, rules: Rules, sender: str, alarm: AlarmRaised, tx_id: bytes) -> str | None:
    link = state.link(alarm.link_id)
    if link is None:
        return f"alarm.link: {alarm.link_id} is not a link of this chain"
    if alarm.reporter != sender:
        return f"alarm.reporter: {alarm.reporter} is not the sender {sender}"
    if sender not in (link.transmitter, link.receiver):
        return f"alarm.sender: {sender} is not an end of {alarm.link_id}"
    state.put_link(
        replace(
            link,
            alarmed=True,
            alarm_reason=alarm.reason,
            alarms_raised=link.alarms_raised + 1,
            last_qber_ppm=alarm.qber_ppm,
        )
    )
    block_rules.observe_alarm(state, link)
    return None


def _deliver_key(state: State, rules: Rules, sender: str, delivered: KeyDelivered, tx_id: bytes) -> str | None:
    path = delivered.path
    if sender != path[0]:
        return f"delivery.sender: {sender} is not the first node of the path"
    master, slave = state.sae(delivered.master_sae), state.sae(delivered.slave_sae)
    if master is None or master.node_id != path[0]:
        return f"delivery.master: {delivered.master_sae} is not registered at {path[0]}"
    if slave is None or slave.node_id != path[-1]:
        return f"delivery.slave: {delivered.slave_sae} is not registered at {path[-1]}"
    if state.delivery(delivered.key_id) is not None:
        return "delivery.key_id: this key was delivered before"
    if reason := revocation.delivery_fault(state, delivered):
        return reason
    if reason := _hops_fault(state, path, delivered.hops, delivered.size_bits):
        return reason
    if reason := delivery_rules.delivery_fault(state, delivered):
        return reason
    delivery_rules.observe_delivery(state, delivered)
    state.put_delivery(delivered.key_id, tx_id)
    return None


def _hops_fault(state: State, path: tuple[str, ...], hops: tuple[Hop, ...], size_bits: int) -> str | None:
    """Each edge of the path is carried, in order, by recorded key bits of one of its links, `size_bits` at least."""
    edge, carried = 0, 0
    for link_id, block_number, offset_bits, hop_bits in hops:
        link, block = state.link(link_id), state.key_block(link_id, block_number)
        if link is None or block is None:
            return f"delivery.hop: block {block_number} of {link_id} is not recorded"
        if offset_bits + hop_bits > block.secret_bits:
            return f"delivery.hop: block {block_number} of {link_id} has only {block.secret_bits} bits"
        if carried >= size_bits and edge + 2 < len(path) and not link.joins(path[edge], path[edge + 1]):
            edge, carried = edge + 1, 0
        if edge + 1 >= len(path) or not link.joins(path[edge], path[edge + 1]):
            return f"delivery.path: {link_id} does not carry the next step of the path"
        carried += hop_bits
    last_edge = max(len(path) - 2, 0)
    if edge != last_edge or (len(path) > 1 and carried < size_bits):
        return "delivery.path: the hops do not carry the key to the last node"
    return None


def _register_sae(state: State, rules: Rules, sender: str, registered: SaeRegistered, tx_id: bytes) -> str | None:
    if registered.node_id != sender:
        return f"sae.sender: {sender} cannot register an application for {registered.node_id}"
    known = state.sae(registered.sae_id)
    if known is not None and known.node_id != sender:
        return f"sae.taken: {registered.sae_id} is registered at {known.node_id}"
    state.put_sae(SaeState(registered.sae_id, sender))
    return None


def _prove_equivocation(
    state: State, rules: Rules, sender: str, proven: EquivocationProven, tx_id: bytes
) -> str | None:
    return prove_equivocation(state, rules.genesis_digest, rules.verifier, proven, tx_id)


def _rotate_key(state: State, rules: Rules, sender: str, record: KeyRotated, tx_id: bytes) -> str | None:
    return rotate_key(state, rules.chain_id, rules.genesis_digest, rules.verifier, sender, record)


def _register_device(state: State, rules: Rules, sender: str, record: DeviceRegistered, tx_id: bytes) -> str | None:
    if record.node_id != sender:
        return f"device.sender: {sender} cannot register a device for {record.node_id}"
    if state.device(record.device_id) is not None:
        return f"device.taken: {record.device_id} is registered, or was; choose another name"
    message = record.signing_bytes(rules.chain_id, rules.genesis_digest)
    if not rules.verifier.verify(record.public_key, message, record.device_signature):
        return f"device.signature: not signed by {record.device_id}"
    if reason := device_rules.device_fault(state, record):
        return reason
    floor = (record.key_bits_min, record.security_millibits_min)
    state.put_device(DeviceState(record.device_id, sender, record.public_key, *floor))
    return None


def _revoke_device(state: State, rules: Rules, sender: str, record: DeviceRevoked, tx_id: bytes) -> str | None:
    device = _own_device(state, sender, record.device_id)
    if isinstance(device, str):
        return device
    state.put_device(replace(device, revoked=True))
    return None


def _raise_device_alarm(state: State, rules: Rules, sender: str, record: DeviceAlarmRaised, tx_id: bytes) -> str | None:
    device = _own_device(state, sender, record.device_id)
    if isinstance(device, str):
        return device
    if device.alarmed:
        return f"device.alarmed: {record.device_id} stands under an alarm already"
    raised = device.alarms_raised + 1
    state.put_device(replace(device, alarmed=True, alarm_reason=record.reason, alarms_raised=raised))
    return None


def _clear_device_alarm(
    state: State, rules: Rules, sender: str, record: DeviceAlarmCleared, tx_id: bytes
) -> str | None:
    device = _own_device(state, sender, record.device_id)
    if isinstance(device, str):
        return device
    if not device.alarmed:
        return f"device.not_alarmed: {record.device_id} stands under no alarm"
    state.put_device(replace(device, alarmed=False, alarm_reason=""))
    return None


def _own_device(state: State, sender: str, device_id: str) -> DeviceState | str:
    """Return a device that its node may speak about, or the rule that forbids it."""
    device = state.device(device_id)
    if device is None:
        return f"device.unknown: {device_id} is not registered"
    if device.node_id != sender:
        return f"device.sender: {sender} is not the node of {device_id}"
    if device.revoked:
        return f"device.revoked: {device_id} is revoked already"
    return device


def _propose(state: State, rules: Rules, sender: str, record: GovernanceProposed, tx_id: bytes) -> str | None:
    return governance.propose(state, sender, record, tx_id)


def _approve(state: State, rules: Rules, sender: str, record: GovernanceApproved, tx_id: bytes) -> str | None:
    return governance.approve(state, sender, record)


def _withdraw(state: State, rules: Rules, sender: str, record: GovernanceWithdrawn, tx_id: bytes) -> str | None:
    return governance.withdraw(state, sender, record)


def _revoke_block(state: State, rules: Rules, sender: str, record: KeyBlockRevoked, tx_id: bytes) -> str | None:
    return revocation.revoke_own_block(state, sender, record)


_Rule = Callable[[State, Rules, str, Any, bytes], str | None]
_RULES: dict[type[Transaction], _Rule] = {
    KeyBlockRecorded: _record_key_block,
    AlarmRaised: _raise_alarm,
    KeyDelivered: _deliver_key,
    SaeRegistered: _register_sae,
    DeviceRegistered: _register_device,
    DeviceRevoked: _revoke_device,
    DeviceAlarmRaised: _raise_device_alarm,
    DeviceAlarmCleared: _clear_device_alarm,
    EquivocationProven: _prove_equivocation,
    GovernanceProposed: _propose,
    GovernanceApproved: _approve,
    GovernanceWithdrawn: _withdraw,
    KeyBlockRevoked: _revoke_block,
    KeyRotated: _rotate_key,
}
