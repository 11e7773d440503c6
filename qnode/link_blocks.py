"""The blocks of a link between their sessions and the key store: what the two ends sign, and what the chain says to it.

A block is kept as pending before this end signs its record, becomes available when the chain commits the record, and
is destroyed when the chain refuses it. Decides what a record says and whether its two signatures are of the same
block (rows S0-E1 and S0-E17); whether the chain takes it, the chain decides.
"""

from dataclasses import replace
from typing import Final

from ledger.transactions import KeyBlockRecorded
from protocol.session import DistilledBlock
from qnode.keystore import PendingBlock
from qnode.link_setup import LinkServices

UNRECORDED_MAX: Final = 4
"""Blocks that wait for the chain: one being voted on, one in the next proposal, and what comes of them in between."""


class LinkBlocks:
    """One end's blocks of one link."""

    def __init__(self, link_id: str, peer: str, pool_target_bits: int, services: LinkServices) -> None:
        self._link_id = link_id
        self._peer = peer
        self._pool_target_bits = pool_target_bits
        self._services = services
        self._unrecorded: dict[int, KeyBlockRecorded] = {}

    @property
    def pool_bits(self) -> int:
        """Key of this link that either end may still start using, and not only for a last while, in bits."""
        keys, rules, link_id = self._services.keys, self._services.rules, self._link_id
        lasts = (lambda number: rules.lasts(link_id, number)) if rules.have_lifetimes() else None
        return 8 * sum(keys.available_bytes(link_id, own=own, counted=lasts) for own in (True, False))

    @property
    def pool_is_full(self) -> bool:
        """Whether there is as much key as the link is to keep."""
        return self.pool_bits >= self._pool_target_bits

    def has_enough_pending(self) -> bool:
        """Whether the chain is behind: what it has yet to record fills the pool, or is more than is kept at once."""
        pending_bits = sum(record.secret_bits for record in self._unrecorded.values())
        fills = pending_bits > 0 and self.pool_bits + pending_bits >= self._pool_target_bits
        return fills or len(self._unrecorded) >= UNRECORDED_MAX

    # ---- from the session

    def keep(self, number: int, block: DistilledBlock) -> str | None:
        """Store a distilled block as pending; if the chain would refuse it, destroy it and return why."""
        if fault := self._services.rules.key_block_fault(self._record(number, block)):
            for secret in (block.key, block.refill_transmitter, block.refill_receiver):
                secret.wipe()
            return fault
        pending = PendingBlock(
            self._link_id, number, block.expiry_height, block.refill_transmitter, block.refill_receiver, block.key
        )
        self._services.context.write(self._services.keys.add_pending(pending))
        return None

    def sign(self, number: int, block: DistilledBlock) -> bytes:
        """Bob: return the signature of the record of a block that is kept."""
        return self._services.signer.sign(self._signing_bytes(self._record(number, block)))

    def countersign(self, number: int, block: DistilledBlock, signature: bytes) -> bool:
        """Alice: add the own signature to Bob's and let the chain record the block; False destroys it.

        False means that Bob signed another record.
        """
        services, record = self._services, self._record(number, block)
        signing_bytes = self._signing_bytes(record)
        peer_keys = services.record_keys(self._peer)
        if not any(services.verifier.verify(key, signing_bytes, signature) for key in peer_keys):
            services.context.write(services.keys.discard(self._link_id, number))
            return False
        own = services.signer.sign(signing_bytes)
        self._unrecorded[number] = replace(record, transmitter_signature=own, receiver_signature=signature)
        services.context.submit(self._unrecorded[number])
        return True

    def _record(self, number: int, block: DistilledBlock) -> KeyBlockRecorded:
        unsigned = bytes(64)
        return KeyBlockRecorded(
            link_id=self._link_id,
            block_number=number,
            pulses=block.pulses,
            detections=block.detections,
            sifted_bits=block.sifted_bits,
            sample_bits=block.sample_bits,
            qber_ppm=block.qber_ppm,
            leaked_bits=block.leaked_bits,
            verification_bits=block.verification_bits,
            authentication_bits=block.authentication_bits,
            secret_bits=block.secret_bits,
            security_millibits=block.security_millibits,
            proof=block.proof,
            method=block.method,
            commitment=block.commitment,
            expiry_height=block.expiry_height,
            transmitter_signature=unsigned,
            receiver_signature=unsigned,
        )

    def _signing_bytes(self, record: KeyBlockRecorded) -> bytes:
        genesis = self._services.genesis
        return record.signing_bytes(genesis.chain_id, genesis.digest)

    # ---- from the chain

    def recorded(self, number: int) -> PendingBlock | None:
        """The chain committed a block: make its key available and return it, if this end holds it."""
        services = self._services
        self._unrecorded.pop(number, None)
        pending, writes = services.keys.activate(self._link_id, number)
        services.context.write(writes)
        if pending is None:
            services.context.log(
                "error",
                "key block committed that this node does not hold",
                link=self._link_id,
                block=number,
                remedy="its key is unusable; give the link a new pre-shared secret if its sessions fail from now on",
            )
        return pending

    def refused_by_chain(self, record: KeyBlockRecorded, reason: str) -> None:
        """The chain refused this end's record: the block's key is destroyed. What others submit changes nothing."""
        if self._unrecorded.get(record.block_number) != record:
            return
        del self._unrecorded[record.block_number]
        self._services.context.write(self._services.keys.discard(self._link_id, record.block_number))
        self._services.context.log(
            "warning", "key block refused by the chain", link=self._link_id, block=record.block_number, reason=reason
        )

    def forget_unrecorded(self, number: int) -> None:
        """The record of this block has expired."""
        self._unrecorded.pop(number, None)
