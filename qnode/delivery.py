"""Which application may get which key, and how many there are (ETSI GS QKD 014, the rules behind the interface).

Decides permission and ranges, chooses key IDs, and has every delivery recorded on the chain. How a key travels is
`relay`, how bits are kept is `keystore`, how HTTP says it is `api.etsi014`.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.state import State
from ledger.state_entries import SaeState
from ledger.transactions import KeyDelivered
from qnode.context import Context
from qnode.effects import Respond
from qnode.gathering import Gathering
from qnode.inputs import (
    Answer,
    DeliveredKey,
    GetKeys,
    GetKeysWithIds,
    GetStatus,
    KeysAnswer,
    RequestError,
    StatusAnswer,
)
from qnode.keystore import KeyStore
from qnode.relay import Relay, TransferFailed, Transferred, fresh_key_ids
from qnode.rules import ChainRules
from qnode.wire import Region

NOT_FOUND = RequestError(400, "one or more keys specified are not found on KME")
"""Fixed by the standard; the same for keys of others and for keys that never were, so that nobody can probe."""


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """What the interface offers; sizes in bits, multiples of 8."""

    default_key_size_bits: int
    min_key_size_bits: int
    max_key_size_bits: int
    max_key_per_request: int
    max_key_count: int


@dataclass(slots=True)
class DeliveryFigures:
    """Counts since the start of the process."""

    keys_delivered_as_master: int = 0
    keys_delivered_as_slave: int = 0
    requests_refused: int = 0


class Delivery:
    """The three methods of the interface, for one node."""

    def __init__(
        self,
        context: Context,
        keys: KeyStore,
        relay: Relay,
        gathering: Gathering,
        state: Callable[[], State],
        rules: ChainRules,
        limits: DeliveryLimits,
        carried_by: Callable[[bytes], tuple[Region, ...]],
    ) -> None:
        """`carried_by` returns the pieces of key that the chain's record of a delivered key names, if there is one."""
        self._context = context
        self._keys = keys
        self._relay = relay
        self._gathering = gathering
        self._state = state
        self._rules = rules
        self._limits = limits
        self._carried_by = carried_by
        self.figures = DeliveryFigures()

    def handle(self, request_id: int, request: GetStatus | GetKeys | GetKeysWithIds) -> None:
        """Answer a request, in this step or a later one."""
        match request:
            case GetStatus():
                self._get_status(request_id, request)
            case GetKeys():
                self._get_keys(request_id, request)
            case GetKeysWithIds():
                self._respond(request_id, self._get_keys_with_ids(request))

    # ---- status

    def _get_status(self, request_id: int, request: GetStatus) -> None:
        slave = self._pair(request.caller_sae, request.slave_sae)
        if isinstance(slave, RequestError):
            self._respond(request_id, slave)
            return

        def counted(available_bytes: int) -> None:
            self._respond(request_id, self._status(request, slave, available_bytes))

        pair = (request.caller_sae, request.slave_sae)
        if self._rules.quota_fault(*pair, 1):
            counted(0)
            return
        self._relay.probe(slave.node_id, counted, pair)

    def _status(self, request: GetStatus, slave: SaeState, available_bytes: int) -> StatusAnswer:
        limits = self._limits
        # Each request also takes a tag key; one key a request is the worst case, so the count can be delivered.
        stored = available_bytes // (limits.default_key_size_bits // 8 + 32)
        return StatusAnswer(
            source_kme_id=self._context.node_id,
            target_kme_id=slave.node_id,
            master_sae_id=request.caller_sae,
            slave_sae_id=request.slave_sae,
            key_size_bits=limits.default_key_size_bits,
            stored_key_count=min(stored, limits.max_key_count),
            max_key_count=limits.max_key_count,
            max_key_per_request=limits.max_key_per_request,
            max_key_size_bits=limits.max_key_size_bits,
            min_key_size_bits=limits.min_key_size_bits,
            max_sae_id_count=0,
        )

    # ---- enc_keys

    def _get_keys(self, request_id: int, request: GetKeys) -> None:
        slave = self._pair(request.caller_sae, request.slave_sae)
        error = slave if isinstance(slave, RequestError) else self._check_amount(request)
        if error is None and (fault := self._rules.quota_fault(request.caller_sae, request.slave_sae, request.number)):
            error = RequestError(503, f"no key can be delivered now: {fault}")
        if error is not None:
            self._respond(request_id, error)
            return
        assert isinstance(slave, SaeState)
        size_bits = self._limits.default_key_size_bits if request.size_bits is None else request.size_bits
        key_ids = fresh_key_ids(self._context.entropy, request.number)

        def done(outcome: Transferred | TransferFailed) -> None:
            if isinstance(outcome, TransferFailed):
                message = f"no key can be delivered now: {outcome.reason}; try again when the link has made more"
                self._respond(request_id, RequestError(503, message))
                return
            records = _records(request, size_bits, outcome)
            if fault := self._rules.delivery_fault(records):
                for _, key in outcome.keys:  # the far node holds copies whose IDs nobody learns, until they expire
                    key.wipe()
                self._respond(request_id, RequestError(503, f"no key can be delivered now: {fault}"))
                return
            for record in records:
                self._rules.delivered(record)
                self._context.submit(record)
            self.figures.keys_delivered_as_master += len(outcome.keys)
            self._respond(request_id, _answer(outcome.keys))

        self._gathering.transfer(key_ids, size_bits // 8, request.caller_sae, request.slave_sae, slave.node_id, done)

    def _check_amount(self, request: GetKeys) -> RequestError | None:
        limits, size_bits = self._limits, request.size_bits
        if request.additional_slave_saes:
            return RequestError(
                400, "additional_slave_SAE_IDs: this KME shares a key with one slave (max_SAE_ID_count 0)"
            )
        if not 1 <= request.number <= limits.max_key_per_request:
            return RequestError(400, f"number shall be from 1 to {limits.max_key_per_request}")
        if size_bits is None:
            return None
        if size_bits % 8:
            return RequestError(400, "size shall be a multiple of 8")
        if not limits.min_key_size_bits <= size_bits <= limits.max_key_size_bits:
            return RequestError(
                400, f"size shall be from {limits.min_key_size_bits} to {limits.max_key_size_bits} bits"
            )
        return None

    # ---- dec_keys

    def _get_keys_with_ids(self, request: GetKeysWithIds) -> Answer:
        caller = self._state().sae(request.caller_sae)
        if caller is None or caller.node_id != self._context.node_id:
            return self._unauthorised(request.caller_sae)
        if not 1 <= len(request.key_ids) <= self._limits.max_key_per_request:
            return RequestError(400, f"key_IDs shall hold from 1 to {self._limits.max_key_per_request} IDs")
        try:
            key_ids = [uuid.UUID(key_id).bytes for key_id in request.key_ids]
        except ValueError:
            return NOT_FOUND
        if fault := self._rules.pair_fault(request.master_sae, request.caller_sae):
            return RequestError(401, fault)
        if self._destroy_forbidden(key_ids):
            return NOT_FOUND
        delivered = self._keys.deliver(request.caller_sae, request.master_sae, key_ids)
        if delivered is None:
            return NOT_FOUND
        keys, writes = delivered
        self._context.write(writes)
        self.figures.keys_delivered_as_slave += len(keys)
        return _answer(keys)

    def _destroy_forbidden(self, key_ids: Sequence[bytes]) -> bool:
        """Destroy those of the keys that a contract has forbidden since they were made; say whether there was one."""
        if not self._rules.are_any():
            return False
        found = False
        for key_id in key_ids:
            fault = self._rules.key_fault(key_id, self._carried_by(key_id), self._context.now_ns)
            if fault is not None:
                found = True
                self._context.write(self._keys.destroy_held(key_id))
                self._context.log("warning", "key destroyed", key_id=str(uuid.UUID(bytes=key_id)), reason=fault)
        return found

    # ---- both

    def _pair(self, master_sae: str, slave_sae: str) -> SaeState | RequestError:
        """Return the slave's registration, or why this pair gets no keys here."""
        state, node_id = self._state(), self._context.node_id
        master, slave = state.sae(master_sae), state.sae(slave_sae)
        if master is None or master.node_id != node_id:
            return self._unauthorised(master_sae)
        if slave is None:
            return RequestError(400, f"slave_SAE_ID {slave_sae!r} is not known in this network")
        if slave.node_id == node_id:
            return RequestError(
                400, f"slave_SAE_ID {slave_sae!r} is served by this same KME: no quantum link joins them"
            )
        if fault := self._rules.pair_fault(master_sae, slave_sae):
            return RequestError(401, fault)
        return slave

    def _unauthorised(self, sae: str) -> RequestError:
        return RequestError(401, f"{sae!r} is not an SAE of {self._context.node_id}: ask the KME that serves it")

    def _respond(self, request_id: int, answer: Answer) -> None:
        if isinstance(answer, RequestError):
            self.figures.requests_refused += 1
        self._context.do(Respond(request_id, answer))


def _records(request: GetKeys, size_bits: int, outcome: Transferred) -> list[KeyDelivered]:
    """Return what the chain is to say of every key; `hops` name the stretch that the whole transfer used."""
    hops = tuple((link, number, 8 * offset, 8 * size) for link, number, offset, size in outcome.regions)
    return [
        KeyDelivered(key_id, request.caller_sae, request.slave_sae, size_bits, outcome.path, hops)
        for key_id, _ in outcome.keys
    ]


def _answer(keys: Sequence[tuple[bytes, Any]]) -> KeysAnswer:
    return KeysAnswer(tuple(DeliveredKey(str(uuid.UUID(bytes=key_id)), key) for key_id, key in keys))
