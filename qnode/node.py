"""The heart of the daemon: one deterministic state machine, `step(now_ns, input) → effects`.

It owns no decision of its own: it hands each input to the part that does (the chain's replica, the links, the relay,
the delivery), translates what they return, and passes on what one part's news means to the others. The driver is its
only caller.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ledger import inputs as ledger_inputs
from ledger import outputs as ledger_outputs
from ledger.chain import Archive, Chain
from ledger.contracts.report import governance_document
from ledger.contracts.selection import policies
from ledger.genesis import Genesis
from ledger.identity import OwnKeys
from ledger.membership import record_keys
from ledger.replica import Replica, ReplicaSettings
from ledger.signatures import Verifier
from ledger.state import State
from ledger.transactions import KeyBlockRecorded
from ledger.transactions import encode as encode_transaction
from protocol.entropy import Entropy
from protocol.parameters import ParameterError
from qnode import wire
from qnode.context import Context
from qnode.custody import Custody
from qnode.delivery import Delivery, DeliveryLimits
from qnode.device_plane import DevicePlane
from qnode.devices import Devices
from qnode.effects import Delete, Disconnect, Effect, Put, Respond, SendTo, TrafficClass
from qnode.gathering import Gathering
from qnode.identity import PresentSigner, RotationImpossible, grace_ends, make_rotation, peer_keys
from qnode.inputs import (
    DeviceFrame,
    DocumentAnswer,
    FrameReceived,
    GetBlocks,
    GetDevices,
    GetGovernance,
    GetIdentity,
    GetKeys,
    GetKeysWithIds,
    GetNodeStatus,
    GetProof,
    GetReadings,
    GetStatus,
    Input,
    IssueEnrolment,
    JobDone,
    PeerConnected,
    PeerLost,
    Request,
    Requested,
    RequestError,
    RevokeDevice,
    RotateKey,
    SetAttack,
    SetDeviceAttack,
    SubmitTransactions,
    Ticked,
)
from qnode.keystore import RECEIVER, TRANSMITTER, KeyStore
from qnode.link_setup import LinkConfiguration, LinkServices
from qnode.links import Link
from qnode.proving import Proving
from qnode.records import OwnRecords
from qnode.relay import Relay
from qnode.rules import ChainRules
from qnode.submitting import Submitting
from qnode.vault import Vault

FAULTS_MAX: Final = 3
"""Faults after which a peer is disconnected (and kept away for a while by the transport): one may be an old version's
message, three in a connection are a broken or hostile peer."""

HOUSEKEEPING_NS: Final = 1_000_000_000
"""How often expired keys are looked for."""

IDLE_HOUSEKEEPING_NS: Final = 10 * HOUSEKEEPING_NS
"""The same while nothing can expire and nobody asks for anything: a wake-up costs as much as a message."""

BLOCKS_PER_REQUEST_MAX: Final = 1000

DELIVERY_PATIENCE_NS: Final = 100_000_000
"""So long the record of a delivery waits for others: at 100 keys a second ten share a block, which costs every node
milliseconds. The key is out already; nobody waits but who asks for its proof."""

Stored = Mapping[str, list[tuple[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """Everything a node is given at its birth; nothing else reaches it but inputs."""

    node_id: str
    genesis: Genesis
    identity_seed: bytes = field(repr=False)
    keys: OwnKeys
    verifier: Verifier
    entropy: Entropy
    jitter: random.Random
    physics: Callable[[str], np.random.Generator]
    links: tuple[LinkConfiguration, ...]
    limits: DeliveryLimits
    replica: ReplicaSettings = field(default_factory=ReplicaSettings)
    delivery_patience_ns: int = DELIVERY_PATIENCE_NS
    devices: DevicePlane | None = None
    may_have_forgotten: bool = False  # whether the disk may hold less than an earlier life synced
    archive: Archive | None = None  # where old blocks are read back from; without one they all stay in memory


class Node:
    """One node. `stored` is what the effects `Put` and `Delete` have left, per table, in key order."""

    def __init__(self, setup: NodeSetup, stored: Stored, now_ns: int) -> None:
        self._setup = setup
        self._context = Context(setup.node_id, setup.entropy, setup.jitter)
        self._context.begin(now_ns)
        self._started_ns = now_ns
        self._replica = Replica(
            genesis=setup.genesis,
            keys=setup.keys,
            verifier=setup.verifier,
            settings=setup.replica,
            jitter=setup.jitter,
            stored=stored,
            archive=setup.archive,
            may_have_forgotten=setup.may_have_forgotten,
        )
        vault = Vault(setup.identity_seed, setup.entropy)
        roles = {link.link_id: TRANSMITTER if link.transmitter == setup.node_id else RECEIVER for link in setup.links}
        self._keys = KeyStore(vault, roles, stored)
        self._rules = ChainRules(lambda: self._replica.state)
        self._custody = Custody(self._context, self._keys, self._rules, lambda: self._replica.chain)
        self._replica.keep_blocks_for(self._custody.needed_height)
        self._proving = Proving(self._context, lambda: self._replica.chain)
        services = LinkServices(
            self._context,
            self._keys,
            setup.genesis,
            PresentSigner(setup.keys, lambda: self._replica.state),
            setup.verifier,
            vault,
            setup.physics,
            self._is_alarmed,
            self._rules,
            lambda node_id: record_keys(self._replica.state, node_id),
        )
        self._links = {link.link_id: Link(link, services, stored) for link in setup.links}
        by_neighbour: dict[str, tuple[str, ...]] = {}
        for link in self._links.values():
            by_neighbour[link.peer] = (*by_neighbour.get(link.peer, ()), link.link_id)
        self._relay = Relay(self._context, self._keys, lambda: self._replica.state, self._rules, by_neighbour)
        self._gathering = Gathering(self._context, self._relay)
        self._delivery = Delivery(
            self._context,
            self._keys,
            self._relay,
            self._gathering,
            lambda: self._replica.state,
            self._rules,
            setup.limits,
            self._custody.carried_by,
        )
        self._devices = (
            None
            if setup.devices is None
            else Devices(
                self._context,
                vault,
                setup.devices,
                (setup.genesis.chain_id, setup.genesis.digest),
                lambda: self._replica.state,
                setup.verifier,
                setup.physics,
                stored,
            )
        )
        self._faults: dict[str, int] = {}
        self._fault_count = 0
        self._broadcast: tuple[bytes, bytes] = (b"", b"")  # the last message of the ledger, and its frame
        self._records = OwnRecords(self._context, stored)
        self._submitting = Submitting(self._context, self._records, self._tell_replica, setup.delivery_patience_ns)
        self._housekeeping_ns = now_ns + HOUSEKEEPING_NS
        self._peer_keys_until: int | None = None
        self._use_peer_keys()
        self._tell_replica(ledger_inputs.Started())
        self._submitting.submit_own()

    @property
    def state(self) -> State:
        """The chain's state as this node has executed it; read only."""
        return self._replica.state

    @property
    def chain(self) -> Chain:
        """The committed chain; read only."""
        return self._replica.chain

    @property
    def admissions(self) -> list[tuple[int, int]]:
        """What the last step took into the mempool: (transactions, when their frame or request arrived)."""
        return self._submitting.admissions

    def take_birth_effects(self) -> list[Effect]:
        """Return what the construction wants done; call once, before the first step."""
        return self._context.take()

    def step(self, now_ns: int, happened: Input) -> list[Effect]:
        """Let one thing happen and return what is to be done about it. Never raises for what others did."""
        self._context.begin(now_ns)
        self._submitting.admissions.clear()
        match happened:
            case FrameReceived(peer, frame, arrived_ns):
                held = self._replica.received_transactions
                self._frame(peer, frame)
                if (count := self._replica.received_transactions - held) > 0:
                    self._submitting.admissions.append((count, arrived_ns))
            case JobDone(job_id, result, error):
                self._context.finish_job(job_id, result, error)
            case PeerConnected(peer):
                self._faults[peer] = 0
                self._context.connected[peer] = None
                self._tell_replica(ledger_inputs.PeerUp(peer))
            case PeerLost(peer):
                self._peer_lost(peer)
            case Requested(request_id, RotateKey() as request):
                self._rotate_key(request_id, request)
            case Requested(request_id, GetIdentity()):
                self._context.do(Respond(request_id, self._identity()))
            case Requested(request_id, SubmitTransactions() as request, arrived_ns):
                self._submitting.submit_for(request_id, request, arrived_ns)
            case Requested(request_id, request):
                self._request(request_id, request)
            case Ticked():
                pass
        if not isinstance(happened, Ticked | FrameReceived):
            self._stir()
        self._tick()
        self._submitting.submit_own()
        return self._context.take()

    def next_deadline_ns(self) -> int:
        """When `step` must be called with `Ticked` unless something happens before."""
        deadlines = [self._housekeeping_ns, self._replica.next_deadline_ns(), self._relay.next_deadline_ns()]
        deadlines.append(self._gathering.next_deadline_ns())
        deadlines += [link.next_deadline_ns() for link in self._links.values()]
        return min(deadline for deadline in deadlines if deadline is not None)

    # ---- time

    def _tick(self) -> None:
        now_ns = self._context.now_ns
        deadline = self._replica.next_deadline_ns()
        if deadline is not None and deadline <= now_ns:
            self._tell_replica(ledger_inputs.TimePassed())
        self._relay.tick()
        self._gathering.tick()
        for link in self._links.values():
            link.tick()
        if now_ns >= self._housekeeping_ns:
            self._keep_house()

    def _keep_house(self) -> None:
        more_may_expire = self._custody.expire()
        self._submitting.submit_waiting()
        for link in self._links.values():
            link.look_at_pool()
        is_busy = more_may_expire or self._records.waiting_count > 0
        self._housekeeping_ns = self._context.now_ns + (HOUSEKEEPING_NS if is_busy else IDLE_HOUSEKEEPING_NS)

    def _stir(self) -> None:
        """Something happened that housekeeping may have to look after."""
        self._housekeeping_ns = min(self._housekeeping_ns, self._context.now_ns + HOUSEKEEPING_NS)

    # ---- peers

    def _peer_lost(self, peer: str) -> None:
        self._context.connected.pop(peer, None)
        self._tell_replica(ledger_inputs.PeerDown(peer))
        self._relay.peer_lost(peer)
        for link in self._links.values():
            if link.peer == peer:
                link.peer_lost()

    def _frame(self, peer: str, data: bytes) -> None:
        frame = wire.decode(data)
        fault: wire.PeerFault | None = None
        match frame:
            case wire.PeerFault():
                fault = frame
            case wire.LedgerFrame(payload):
                self._tell_replica(ledger_inputs.MessageReceived(peer, payload))
                return  # what it changes, `_committed` says
            case wire.SessionFrame() | wire.LightFrame() | wire.SessionRefused() | wire.LightTaken():
                fault = self._link_frame(peer, frame)
            case wire.KeyTransfer():
                fault = self._relay.transfer_received(peer, frame)
            case wire.KeyTransferred():
                self._relay.transferred(peer, frame)
            case wire.PathProbe():
                fault = self._relay.probe_received(peer, frame)
            case wire.PathProbed():
                self._relay.probed(frame)
        self._stir()
        if fault is not None:
            self._fault(peer, fault.reason)

    def _link_frame(
        self, peer: str, frame: wire.SessionFrame | wire.LightFrame | wire.SessionRefused | wire.LightTaken
    ) -> wire.PeerFault | None:
        link = self._links.get(frame.link_id)
        if link is None or link.peer != peer:
            return wire.PeerFault(f"a message for the link {frame.link_id!r}, which does not join us")
        match frame:
            case wire.SessionFrame():
                link.session_frame(frame)
            case wire.LightFrame():
                link.light_frame(frame)
            case wire.SessionRefused():
                link.refused(frame)
            case wire.LightTaken():
                link.light_taken(frame)
        return None

    def _fault(self, peer: str, reason: str) -> None:
        """Count what no correct node does; three times and the connection ends."""
        self._fault_count += 1
        self._faults[peer] = self._faults.get(peer, 0) + 1
        self._context.log("warning", "peer fault", peer=peer, reason=reason, count=self._faults[peer])
        if self._faults[peer] >= FAULTS_MAX:
            self._faults[peer] = 0
            self._context.do(Disconnect(peer, reason))

    # ---- the chain

    def _is_alarmed(self, link_id: str) -> bool:
        link = self._replica.state.link(link_id)
        return link is not None and link.alarmed

    def _tell_replica(self, happened: ledger_inputs.Input) -> None:
        for output in self._replica.step(self._context.now_ns, happened):
            self._replica_output(output)

    def _replica_output(self, output: ledger_outputs.Output) -> None:
        context = self._context
        match output:
            case ledger_outputs.Store(table, key, value):
                context.do(Put(table, key, value))
            case ledger_outputs.Erase(table, key):
                context.do(Delete(table, key))
            case ledger_outputs.SendMessage(peer, payload, urgent, after_sync):
                traffic = TrafficClass.CONSENSUS if urgent else TrafficClass.GOSSIP
                if payload is not self._broadcast[0]:  # one message to many peers is encoded once
                    self._broadcast = (payload, wire.encode(wire.LedgerFrame(payload)))
                context.do(SendTo(peer, traffic, self._broadcast[1], after_sync))
            case ledger_outputs.BlockCommitted():
                self._committed(output)
            case ledger_outputs.SnapshotAdopted(height):
                self._adopted(height)
            case ledger_outputs.TransactionsAdmitted(token):
                self._submitting.answered(token, None)
            case ledger_outputs.TransactionsRefused(token, reason):
                self._submitting.answered(token, reason)
            case ledger_outputs.PeerFaulted(peer, reason):
                self._fault(peer, reason)
            case ledger_outputs.Noted(level, event, fields):
                context.log(level, event, **dict(fields))

    def _committed(self, news: ledger_outputs.BlockCommitted) -> None:
        """A block is final: key blocks of this node's links become available, expired ones are destroyed."""
        self._context.height = news.height
        until = self._peer_keys_until
        if self.state.changed_nodes or (until is not None and news.height >= until):
            self._use_peer_keys()
        for receipt in news.receipts:
            self._submitting.recorded(receipt, news.height)
            if self._devices is not None:
                self._devices.recorded(receipt)
            self._rules.recorded(receipt)
            record = receipt.transaction
            if not isinstance(record, KeyBlockRecorded) or record.link_id not in self._links:
                continue
            self._stir()
            link = self._links[record.link_id]
            if receipt.ok:
                link.recorded(record.block_number, record.secret_bits)
            elif link.role == TRANSMITTER:
                link.refused_by_chain(record, receipt.reason)
        self._expire_pending(news.height)
        if self._rules.have_changed():
            self._stir()
            self._custody.destroy_forbidden()
        self._proving.committed()

    def _adopted(self, height: int) -> None:
        """The chain went on by a snapshot: key blocks recorded in what was not executed here become available."""
        self._stir()
        self._context.height = height
        for link_id, block_number, _ in sorted(self._keys.pending_blocks()):
            link, recorded = self.state.link(link_id), self.state.key_block(link_id, block_number)
            if recorded is not None:
                self._links[link_id].recorded(block_number, recorded.secret_bits)
            elif link is not None and link.last_block_number == block_number:  # recorded, and gone by its age
                self._links[link_id].recorded(block_number, 0)
        self._expire_pending(height)
        if self._devices is not None:
            self._devices.adopted()
        self._rules.adopted()
        self._custody.destroy_forbidden()

    def _expire_pending(self, height: int) -> None:
        for link_id, block_number, expiry_height in self._keys.pending_blocks():
            if expiry_height < height:
                self._context.write(self._keys.discard(link_id, block_number))
                self._links[link_id].forget_unrecorded(block_number)

    # ---- requests

    def _request(self, request_id: int, request: Request) -> None:
        match request:
            case GetStatus() | GetKeys() | GetKeysWithIds():
                self._delivery.handle(request_id, request)
            case DeviceFrame() | IssueEnrolment() | RevokeDevice() | GetDevices() | GetReadings() | SetDeviceAttack():
                if self._devices is not None:
                    self._devices.handle(request_id, request)
                else:
                    refusal = RequestError(404, "this node serves no devices; configure [devices]")
                    self._context.do(Respond(request_id, refusal))
            case GetNodeStatus():
                self._context.do(Respond(request_id, DocumentAnswer(self._status())))
            case GetGovernance():
                self._context.do(Respond(request_id, DocumentAnswer(governance_document(self.state))))
            case SetAttack():
                self._context.do(Respond(request_id, self._set_attack(request)))
            case GetBlocks(first_height, count):
                blocks = self._replica.blocks(first_height, min(count, BLOCKS_PER_REQUEST_MAX))
                self._context.do(Respond(request_id, DocumentAnswer({"blocks": blocks})))
            case GetProof(key_id):
                self._proving.ask(request_id, key_id)

    def _use_peer_keys(self) -> None:
        self._context.do(peer_keys(self.state, self._setup.node_id))
        self._peer_keys_until = grace_ends(self.state)

    def _identity(self) -> DocumentAnswer:
        node = self.state.node(self._setup.node_id)
        present = [] if node is None else [(node.public_key, True)]
        former = [(key.public_key, False) for key in self.state.keys_of(self._setup.node_id) if key.last_height]
        keys = [{"public_key": key.hex(), "present": in_force} for key, in_force in present + former]
        return DocumentAnswer({"node_id": self._setup.node_id, "keys": keys})

    def _rotate_key(self, request_id: int, request: RotateKey) -> None:
        """Hold a new key, and ask the chain to know this node by it."""
        keys, genesis = self._setup.keys, self._setup.genesis
        held = [keys.add_seed(seed, genesis.parameters.hybrid_votes) for seed in request.seeds]
        if request.public_key not in held:
            answer = RequestError(409, "this node holds no such key; make one with `qnode node rotate-key`")
            self._context.do(Respond(request_id, answer))
            return
        try:
            record = make_rotation(keys, self.state, genesis, request.public_key)
        except RotationImpossible as error:
            self._context.do(Respond(request_id, RequestError(409, str(error))))
            return
        self._submitting.submit_for(
            request_id, SubmitTransactions((encode_transaction(record),), True), self._context.now_ns
        )

    def _set_attack(self, request: SetAttack) -> DocumentAnswer | RequestError:
        link = self._links.get(request.link_id)
        if link is None:
            return RequestError(404, f"this node has no link {request.link_id!r}; it has {', '.join(self._links)}")
        if link.role != TRANSMITTER:
            return RequestError(
                409, f"the channel of {request.link_id} is emulated at its transmitter: ask {link.peer}"
            )
        try:
            link.set_attack(request.kind, dict(request.parameters))
        except ParameterError as error:
            return RequestError(400, str(error))
        self._context.log("warning", "attack set", link=request.link_id, kind=request.kind)
        return DocumentAnswer({"link_id": request.link_id, "attack": request.kind})

    def _status(self) -> dict[str, Any]:
        delivery = self._delivery.figures
        return {
            "node_id": self._setup.node_id,
            "chain_id": self._setup.genesis.chain_id,
            "genesis": self._setup.genesis.digest.hex(),
            "uptime_s": round((self._context.now_ns - self._started_ns) / 1e9, 3),
            "peers": list(self._context.connected),
            "peer_faults": self._fault_count,
            "ledger": self._replica.status(),
            "links": [link.status() for link in self._links.values()],
            "chain_links": [
                {
                    "link_id": link.link_id,
                    "alarmed": link.alarmed,
                    "alarms_raised": link.alarms_raised,
                    "last_block_number": link.last_block_number,
                }
                for link in self.state.links()
            ],
            "devices_alarmed": self._devices.alarmed() if self._devices is not None else [],
            "policies": [policy.name for policy in policies(self.state)],
            "keys": {
                "held": self._keys.held_count,
                "pending_blocks": len(self._keys.pending_blocks()),
                "delivered_as_master": delivery.keys_delivered_as_master,
                "delivered_as_slave": delivery.keys_delivered_as_slave,
                "requests_refused": delivery.requests_refused,
                "destroyed_bytes": self._custody.destroyed_bytes,
            },
        }
