"""A four-node chain that tests share, and a driver that connects replicas without any delay."""

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ledger.block import VERSIONS
from ledger.genesis import Genesis, GenesisLink, GenesisNode, GenesisSae
from ledger.identity import OwnKeys
from ledger.inputs import Input, MessageReceived, PeerUp, Started, TimePassed
from ledger.outputs import BlockCommitted, Erase, Output, SendMessage, Store
from ledger.replica import Replica, ReplicaSettings
from ledger.signatures import Ed25519Signer, Ed25519Verifier
from ledger.transactions import KeyBlockRecorded, KeyRotated

MS = 1_000_000
WALL_NS = 1_800_000_000_000_000_000
NODES = ("alpha", "beta", "gamma", "delta")


def signer_of(name: str) -> Ed25519Signer:
    return Ed25519Signer(hashlib.sha256(name.encode()).digest())


def make_genesis(names: Iterable[str] = NODES) -> Genesis:
    names = tuple(names)
    return Genesis(
        chain_id="test",
        time_ns=WALL_NS - 1,
        nodes=tuple(GenesisNode(name, signer_of(name).public_key) for name in names),
        links=tuple(GenesisLink(f"{a}-{b}", a, b) for a, b in itertools.pairwise(names)),
        saes=tuple(GenesisSae(f"app-{name}", name) for name in names),
    )


def make_key_block(genesis: Genesis, number: int = 1, link: str = "alpha-beta", **changes: object) -> KeyBlockRecorded:
    """A good record, signed by both ends after `changes`."""
    record = KeyBlockRecorded(
        link_id=link,
        block_number=number,
        pulses=1_000_000,
        detections=20_000,
        sifted_bits=10_000,
        sample_bits=1_000,
        qber_ppm=21_000,
        leaked_bits=1_600,
        verification_bits=64,
        authentication_bits=256,
        secret_bits=4_096,
        security_millibits=33_219,
        proof="finite-key",
        method="cascade",
        commitment=hashlib.sha256(b"commitment").digest(),
        expiry_height=100,
        transmitter_signature=bytes(64),
        receiver_signature=bytes(64),
    )
    record = replace(record, **changes)  # type: ignore[arg-type]
    message = record.signing_bytes(genesis.chain_id, genesis.digest)
    transmitter, receiver = link.split("-")
    return replace(
        record,
        transmitter_signature=signer_of(transmitter).sign(message),
        receiver_signature=signer_of(receiver).sign(message),
    )


def rotation(
    genesis: Genesis, node: str, expiry_height: int, old: str | None = None, new: str | None = None
) -> KeyRotated:
    """A good rotation from the node's first key (or that of the seed `old`) to that of the seed `new`."""
    signers = signer_of(old or node), signer_of(new or f"{node} again")
    unsigned = KeyRotated(node, *(x.public_key for x in signers), b"", expiry_height, bytes(64), bytes(64))
    message = unsigned.signing_bytes(genesis.chain_id, genesis.digest)
    return replace(unsigned, old_signature=signers[0].sign(message), new_signature=signers[1].sign(message))


class Net:
    """Replicas with instant, ordered, reliable messages, driven by hand; disks are dictionaries."""

    def __init__(self, genesis: Genesis, names: Iterable[str] = NODES, **settings: Any) -> None:
        self.genesis = genesis
        self.settings = ReplicaSettings(**settings)
        self.now_ns = 0
        self.disks: dict[str, dict[str, dict[bytes, bytes]]] = {}
        self.outputs: list[tuple[str, Output]] = []
        self.filter: Callable[[str, str, bytes], bool] = lambda source, target, payload: True
        self.replicas: dict[str, Replica] = {}
        self.keys: dict[str, OwnKeys] = {}
        self.versions: dict[str, frozenset[int]] = {}
        self._queue: deque[tuple[str, Input]] = deque()
        for name in names:
            self.start(name)

    def start(self, name: str, wall_offset_ns: int = WALL_NS) -> Replica:
        """Make a replica from its disk and connect it to all that run."""
        tables = self.disks.setdefault(name, {})
        self.replicas[name] = Replica(
            genesis=self.genesis,
            keys=self.keys.setdefault(name, OwnKeys(name, (signer_of(name),))),
            verifier=Ed25519Verifier(),
            settings=self.settings,
            jitter=random.Random(name),
            stored={table: sorted(rows.items()) for table, rows in tables.items()},
            wall_offset_ns=wall_offset_ns,
            versions=self.versions.get(name, VERSIONS),
        )
        self.give(name, Started())
        for other in self.replicas:
            if other != name:
                self.give(name, PeerUp(other))
                self.give(other, PeerUp(name))
        return self.replicas[name]

    def stop(self, name: str) -> None:
        del self.replicas[name]

    def give(self, name: str, input: Input) -> list[Output]:
        """One step, its outputs carried out, and everything that follows from them at this moment."""
        outputs = self._step(name, input)
        self.settle()
        return outputs

    def _step(self, name: str, input: Input) -> list[Output]:
        if name not in self.replicas:
            return []
        outputs = self.replicas[name].step(self.now_ns, input)
        for output in outputs:
            self.outputs.append((name, output))
            if isinstance(output, Store):
                self.disks[name].setdefault(output.table, {})[output.key] = output.value
            elif isinstance(output, Erase):
                self.disks[name].get(output.table, {}).pop(output.key, None)
            elif isinstance(output, SendMessage) and self.filter(name, output.peer, output.payload):
                self._queue.append((output.peer, MessageReceived(name, output.payload)))
        return outputs

    def inject(self, target: str, source: str, payload: bytes) -> None:
        """Put a message on its way that `source` never sent."""
        self._queue.append((target, MessageReceived(source, payload)))

    def settle(self) -> None:
        while self._queue:
            self._step(*self._queue.popleft())

    def pass_time(self, duration_ns: int) -> None:
        """Wake every replica at its deadlines for a while."""
        end_ns = self.now_ns + duration_ns
        while True:
            deadlines = [(d, name) for name, r in self.replicas.items() if (d := r.next_deadline_ns()) is not None]
            when_ns, name = min(deadlines, default=(end_ns + 1, ""))
            if when_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, when_ns)
            self.give(name, TimePassed())
        self.now_ns = end_ns

    def commits(self, name: str) -> list[BlockCommitted]:
        return [output for of, output in self.outputs if of == name and isinstance(output, BlockCommitted)]

    def seen(self, kind: type, name: str | None = None) -> list[Output]:
        return [output for of, output in self.outputs if isinstance(output, kind) and name in (None, of)]
