"""Where the microseconds of a record go: every stage of its way through a node, timed alone, in one process.

`python -m loadtest.profile_ledger` prints processor time per record: of the node that submits it, of every other node,
and of all nodes. Records are deliveries as in `qnode bench ledger`, 1,000 to a bundle, blocks of four bundles. What it
leaves out is what differs between machines: TLS, sockets, the disk's waiting.
"""

import asyncio
import base64
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from ledger.block import Block, Header, transaction_root
from ledger.bundle import Bundle, make_bundle
from ledger.chain import BLOCK_TABLE, Chain
from ledger.encoding import integer_key
from ledger.execution import Rules
from ledger.genesis import Genesis, GenesisLink, GenesisNode, GenesisSae
from ledger.signatures import Ed25519Verifier
from ledger.state import State
from ledger.transactions import KeyDelivered, decode, encode
from ledger.votes import NO_DIGEST, Certificate, Kind
from loadtest.profile_records import key_block, signer_of
from qnode.effects import Put
from qnode.io.storage import Storage

RECORDS: Final = 1000
BUNDLES: Final = 4
ROUNDS: Final = 8
NAMES: Final = ("node-1", "node-2", "node-3", "node-4")

Value = TypeVar("Value")


class Stages:
    """Processor time by stage, of all threads; the fastest round counts, which neighbours on the machine bend least."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, float]] = []

    def begin_round(self) -> None:
        """Start over; at the end the best of all rounds is reported."""
        self._rounds.append({})

    def timed(self, name: str, work: Callable[[], Value]) -> Value:
        """Do the work and add its time to a stage."""
        begin = time.process_time_ns()
        result = work()
        self.add(name, time.process_time_ns() - begin)
        return result

    def add(self, name: str, spent_ns: int) -> None:
        """Add to a stage of this round."""
        self._rounds[-1][name] = self._rounds[-1].get(name, 0.0) + spent_ns

    def microseconds(self, records: int) -> dict[str, float]:
        """Return microseconds per record of each stage."""
        return {name: round(min(each[name] for each in self._rounds) / records / 1e3, 2) for name in self._rounds[0]}


def _genesis() -> Genesis:
    return Genesis(
        chain_id="profile",
        time_ns=1,
        nodes=tuple(GenesisNode(name, signer_of(name).public_key) for name in NAMES),
        links=(GenesisLink("link-1-2", "node-1", "node-2"),),
        saes=tuple(GenesisSae(f"sae-{name}", name) for name in NAMES),
    )


def _record(round_number: int, bundle: int, number: int) -> KeyDelivered:
    key_id = hashlib.sha256(b"%d %d %d" % (round_number, bundle, number)).digest()[:16]
    return KeyDelivered(key_id, "sae-node-1", "sae-node-2", 256, ("node-1", "node-2"), (("link-1-2", 0, 0, 512),))


@contextmanager
def _finish_timed(stages: Stages) -> Any:
    """Tell the trie's share of an execution apart."""
    real = State.finish

    def finish(state: State, block_digest: bytes, receipts: bytes) -> None:
        stages.timed("all: of that, state trie", lambda: real(state, block_digest, receipts))

    State.finish = finish  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        State.finish = real  # type: ignore[method-assign]


class _Profile:
    """One chain that every stage works on."""

    def __init__(self) -> None:
        self.stages = Stages()
        self._genesis = _genesis()
        self._verifier = Ed25519Verifier()
        self._chain = Chain(self._genesis, Rules.of(self._genesis, self._verifier), None)
        self._sequence = 0
        self._append(self._block((self._bundle([encode(key_block(self._genesis, "link-1-2", "node-1", "node-2"))]),)))

    def _bundle(self, bodies: list[bytes]) -> Bundle:
        self._sequence += 1
        name = (self._genesis.chain_id, self._genesis.digest, "node-1", self._sequence)
        return make_bundle(signer_of("node-1"), *name, tuple(bodies))

    def _block(self, bundles: tuple[Bundle, ...]) -> Block:
        chain = self._chain
        root = transaction_root([bundle.digest for bundle in bundles])
        validators = chain.state.validators().digest
        tip = (chain.tip_digest, chain.state.root, validators, root, chain.tip_time_ns + 1)
        return Block(Header(self._genesis.digest, chain.height + 1, *tip), bundles)

    def _append(self, block: Block) -> bytes:
        signers = bytes([0b1111])
        said = (Kind.FINALIZE, block.height, 0, block.digest or NO_DIGEST, -1)
        receipts, row = self._chain.append(block, Certificate(*said, signers, (bytes(64),) * 4))
        assert all(receipt.ok for receipt in receipts), "what is refused costs less"
        return row

    def submit(self, bodies: list[bytes]) -> Bundle:
        """The submitting node."""
        timed = self.stages.timed
        text = json.dumps({"transactions": [base64.b64encode(body).decode() for body in bodies]})
        parsed = timed(
            "submitting: JSON and base64",
            lambda: [base64.b64decode(entry, validate=True) for entry in json.loads(text)["transactions"]],
        )
        timed("submitting: check every record", lambda: [decode(body) for body in parsed])
        bundle = timed("submitting: Merkle root and signature", lambda: self._bundle(parsed))
        timed("submitting: encode", lambda: bundle.encoded)
        return bundle

    def receive(self, data: bytes) -> Bundle:
        """Every other node."""
        timed, limits = self.stages.timed, self._genesis.parameters
        bundle = timed("others: decode", lambda: Bundle.parse(data, limits))
        timed("others: Merkle root", lambda: bundle.check_contents(limits))
        name = (signer_of("node-1").public_key, self._genesis.chain_id, self._genesis.digest, self._verifier)
        assert timed("others: signature", lambda: bundle.is_signed_by(*name))
        return bundle

    async def execute(self, bundles: tuple[Bundle, ...], storage: Storage) -> None:
        """Every node, once a quorum has committed."""
        block = self._block(bundles)
        fault = self.stages.timed("all: block rules", lambda: self._chain.block_fault(block))
        assert fault is None, fault
        row = self.stages.timed("all: execute and encode the row", lambda: self._append(block))
        begin = time.process_time_ns()
        await storage.commit([Put(BLOCK_TABLE, integer_key(block.height), row)])
        self.stages.add("all: disk", time.process_time_ns() - begin)


async def run() -> dict[str, float]:
    """Return microseconds of processor time per record, by stage."""
    profile = _Profile()
    with tempfile.TemporaryDirectory() as directory, _finish_timed(profile.stages):
        storage = await Storage.open(Path(directory))
        for round_number in range(ROUNDS):
            profile.stages.begin_round()
            bundles = []
            for bundle in range(BUNDLES):
                bodies = [encode(_record(round_number, bundle, number)) for number in range(RECORDS)]
                bundles.append(profile.receive(profile.submit(bodies).encoded))
            await profile.execute(tuple(bundles), storage)
        await storage.close()
    return profile.stages.microseconds(RECORDS * BUNDLES)


def main() -> None:
    """Print the table, and the figures as one JSON object."""
    figures = asyncio.run(run())
    for name, microseconds in figures.items():
        print(f"{name:42} {microseconds:8.2f} µs", file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
