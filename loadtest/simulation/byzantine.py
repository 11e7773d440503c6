"""Nodes that lie: wrappers around an honest replica that add to, change or hold back what it says.

Each lie is one method, chosen by the seed; liars know their own keys only. They are the protocol's fault list as far
as it concerns messages; crashes, disks and the network are in `faults`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from ledger.bundle import Bundle, make_bundle
from ledger.consensus import Proposal
from ledger.inputs import MessageReceived
from ledger.messages import (
    BundleMessage,
    CertificatesMessage,
    Committed,
    Message,
    ProposalMessage,
    StatementMessage,
    Status,
    encode,
)
from ledger.outputs import Output, SendMessage
from ledger.transactions import SaeRegistered
from ledger.transactions import encode as encode_transaction
from ledger.votes import FRESH, NO_DIGEST, Certificate, Kind, Statement, bitmap_of, statement_bytes
from loadtest.simulation.checkers import decoded
from loadtest.simulation.network import MS
from loadtest.simulation.world import SimulatedNode, World

LIES = (
    "agree_with_all",
    "equivocate",
    "propose_fresh",
    "silent",
    "selective",
    "late",
    "garbage",
    "flood_views",
    "flood_bundles",
    "forge_certificates",
    "wrong_chain",
    "boast",
)
ODD_BUNDLES = 8
"""Of one liar, for every proposal that it hears."""


class Byzantine:
    """Takes over the voice of `node`; `lies` are names of `LIES`."""

    def __init__(self, world: World, node: SimulatedNode, lies: tuple[str, ...], generator: random.Random) -> None:
        self._world = world
        self._node = node
        self._random = generator
        self._lies = lies
        self._deaf = frozenset(generator.sample(world.node_ids, len(world.node_ids) // 2))
        self._answered: set[bytes] = set()
        node.byzantine = True
        node.corrupt = self._corrupt
        node.overhear = self._overhear

    # ---- signing whatever one likes

    def _statement(self, kind: Kind, height: int, view: int, block: bytes, justified: int = FRESH) -> Statement:
        replica = self._node.replica
        assert replica is not None, "only a running node lies"
        set_digest = replica.consensus.validators.digest
        genesis_digest = self._world.genesis.digest
        if "wrong_chain" in self._lies and self._random.random() < 0.5:
            genesis_digest = bytes(32)
        message = statement_bytes(genesis_digest, set_digest, kind, height, view, block, justified)
        signature = self._node.signer.sign(message)
        return Statement(kind, height, view, block, justified, self._node.node_id, signature)

    def _to_all(self, message: Message) -> list[Output]:
        payload = encode(message)
        return [self._to(peer, payload) for peer in self._world.network.neighbours(self._node.node_id)]

    def _to(self, peer: str, payload: bytes) -> SendMessage:
        return SendMessage(peer, payload, urgent=True, after_sync=False)

    # ---- adding to what is said

    def _overhear(self, received: MessageReceived) -> list[Output]:
        content = decoded(received.payload)
        if not isinstance(content, ProposalMessage):
            return []
        statement = content.proposal.statement
        if statement.encoded in self._answered:
            return []
        self._answered.add(statement.encoded)
        outputs: list[Output] = []
        if "agree_with_all" in self._lies:
            outputs += self._agree(statement)
        if "flood_views" in self._lies:
            outputs += self._flood(statement)
        if "flood_bundles" in self._lies:
            made = odd_bundles(self._world, self._node, ODD_BUNDLES, self._random)
            outputs += [output for bundle in made for output in self._to_all(BundleMessage(bundle.encoded))]
        if "forge_certificates" in self._lies:
            outputs += self._forge(content.proposal)
        return outputs

    def _agree(self, statement: Statement) -> list[Output]:
        """Vote for, finalize and nullify everything."""
        height, view, block = statement.height, statement.view, statement.block
        said = [
            self._statement(Kind.VOTE, height, view, block, statement.justified),
            self._statement(Kind.FINALIZE, height, view, block),
            self._statement(Kind.NULLIFY, height, view, NO_DIGEST),
        ]
        return [output for each in said for output in self._to_all(StatementMessage(each))]

    def _flood(self, statement: Statement) -> list[Output]:
        """Speak in forty views to come."""
        views = range(statement.view + 1, statement.view + 41)
        said = [self._statement(Kind.NULLIFY, statement.height, view, NO_DIGEST) for view in views]
        return [output for each in said for output in self._to_all(StatementMessage(each))]

    def _forge(self, proposal: Proposal) -> list[Output]:
        """Certificates of too few, or of one signer many times, alone and as decisions."""
        statement = proposal.statement
        assert self._node.replica is not None, "only a running node lies"
        count = len(self._node.replica.consensus.validators.node_ids)
        own = self._statement(Kind.FINALIZE, statement.height, statement.view, statement.block)
        all_signers = bitmap_of(list(range(count)), (count + 7) // 8)
        base = Certificate(Kind.FINALIZE, own.height, own.view, own.block, FRESH, all_signers, (own.signature,) * count)
        few = replace(base, signers=bitmap_of([0], (count + 7) // 8), signatures=(own.signature,))
        forged: list[Message] = [CertificatesMessage((base,)), CertificatesMessage((few,))]
        forged += [Committed(proposal.header, proposal.bundle_digests, each) for each in (base, few)]
        return [output for message in forged for output in self._to_all(message)]

    # ---- changing what is said

    def _corrupt(self, outputs: list[Output]) -> list[Output]:
        changes: list[tuple[str, Callable[[SendMessage], list[Output]]]] = [
            ("equivocate", self._equivocate),
            ("propose_fresh", self._propose_fresh),
            ("boast", self._boast),
            ("silent", lambda message: []),
            ("selective", lambda message: [] if message.peer in self._deaf else [message]),
            ("late", self._delay),
            ("garbage", self._garble),
        ]
        for lie, change in changes:
            if lie in self._lies:
                outputs = [
                    changed
                    for output in outputs
                    for changed in (change(output) if isinstance(output, SendMessage) else [output])
                ]
        return outputs

    def _own_proposal(self, message: SendMessage) -> ProposalMessage | None:
        content = decoded(message.payload)
        if isinstance(content, ProposalMessage) and content.proposal.statement.signer == self._node.node_id:
            return content
        return None

    def _twin(self, content: ProposalMessage) -> tuple[list[Message], Statement]:
        """A second, equally good block for the same view, with its PROPOSE, VOTE and FINALIZE."""
        proposal = content.proposal
        header = replace(proposal.header, time_ns=proposal.header.time_ns + 1)
        said = proposal.statement
        statement = self._statement(Kind.PROPOSE, said.height, said.view, header.digest)
        vote = self._statement(Kind.VOTE, said.height, said.view, header.digest)
        finalize = self._statement(Kind.FINALIZE, said.height, said.view, header.digest)
        twin = ProposalMessage(Proposal(statement, header, proposal.bundle_digests), content.certificates)
        return [twin, StatementMessage(vote), StatementMessage(finalize)], statement

    def _equivocate(self, message: SendMessage) -> list[Output]:
        """Half of the others get another block."""
        content = self._own_proposal(message)
        if content is None or message.peer not in self._deaf:
            return [message]
        messages, _ = self._twin(content)
        return [self._to(message.peer, encode(each)) for each in messages]

    def _propose_fresh(self, message: SendMessage) -> list[Output]:
        """In a view that must re-propose, propose a fresh block to everybody."""
        content = self._own_proposal(message)
        if content is None or content.proposal.statement.view == 0:
            return [message]
        messages, _ = self._twin(content)
        return [self._to(message.peer, encode(each)) for each in messages]

    def _boast(self, message: SendMessage) -> list[Output]:
        """Claim a height that does not exist."""
        content = decoded(message.payload)
        if not isinstance(content, Status):
            return [message]
        return [self._to(message.peer, encode(replace(content, height=content.height + 100)))]

    def _delay(self, message: SendMessage) -> list[Output]:
        """Say it up to two seconds later."""
        self._world.after(int(self._random.random() * 2_000 * MS), self._world.send, self._node.node_id, message)
        return []

    def _garble(self, message: SendMessage) -> list[Output]:
        """Flip a byte, cut the end, or send noise, now and then."""
        if self._random.random() > 0.2 or not message.payload:
            return [message]
        payload = bytearray(message.payload)
        payload[self._random.randrange(len(payload))] ^= 1 << self._random.randrange(8)
        cut = self._random.randrange(len(payload)) if self._random.random() < 0.3 else len(payload)
        return [self._to(message.peer, bytes(payload[:cut]))]


def odd_bundles(world: World, node: SimulatedNode, count: int, generator: random.Random) -> Iterator[Bundle]:
    """Yield bundles that a liar may make with its own key: good ones, doubles, gaps, far numbers, false signatures."""
    committed = 0
    if node.replica is not None and (known := node.replica.state.node(node.node_id)) is not None:
        committed = known.sequence
    limits, name = world.genesis.parameters, (world.genesis.chain_id, world.genesis.digest, node.node_id)
    for place in range(count):
        numbers = (committed + 1 + place, committed + 1, committed + 2 * place + 2, committed + 10_000, committed)
        (sequence,) = generator.choices(numbers, (6, 2, 2, 1, 1))
        bodies = [
            encode_transaction(SaeRegistered(f"flood-{generator.getrandbits(64)}", node.node_id))
            if generator.random() < 0.7
            else generator.randbytes(40)
            for _ in range(min(limits.bundle_transactions_max, 8))
        ]
        bundle = make_bundle(node.signer, *name, max(sequence, 1), tuple(bodies))
        yield replace(bundle, signature=bytes(64)) if generator.random() < 0.05 else bundle
