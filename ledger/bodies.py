"""Bundles and block bodies: taking them in, putting blocks together from them, and asking for what is missing.

A bundle's signature is checked once, here; a proposal names its bundles by digest (SPEC 3.2, 3.3, 6.4).
"""

from dataclasses import dataclass

from ledger.block import Block, Header
from ledger.bundle import Bundle
from ledger.core import BODY_TABLE, Core
from ledger.encoding import integer_key
from ledger.messages import (
    DIGESTS_WANTED_MAX,
    MESSAGE_SIZE_BYTES_MAX,
    BodyMessage,
    BodyWanted,
    BundleMessage,
    BundlesWanted,
)


@dataclass(frozen=True, slots=True)
class Outline:
    """A block without its bundles, and the neighbour who told of it."""

    header: Header
    bundle_digests: tuple[bytes, ...]
    told_by: str


class Bodies:
    """What is at hand for the blocks of the height in progress."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._committed: dict[bytes, Bundle] = {}
        self.forget_height(())

    def forget_height(self, committed: tuple[Bundle, ...]) -> None:
        """Start on the next height; the bundles of the last stay here for neighbours who have yet to execute it."""
        self._committed = {bundle.digest: bundle for bundle in committed}
        self.stored: set[bytes] = set()
        self._fetched: dict[bytes, Bundle] = {}
        self._wanted: set[bytes] = set()
        self._outlines: dict[bytes, Outline] = {}

    # ---- bundles

    def on_bundle(self, peer: str, encoded: bytes) -> None:
        """Take a bundle of any node, new or wanted. Raises MalformedBundle."""
        core = self._core
        bundle = Bundle.parse(encoded, core.limits)
        sender = core.state.node(bundle.sender)
        if sender is None or sender.revoked:
            return  # the chain may have admitted it further on, or revoked it since: no fault
        wanted = bundle.digest in self._wanted
        refusal = core.mempool.refusal(bundle.sender, bundle.sequence, bundle.size_bytes, sender.sequence)
        if refusal is not None and not wanted:
            return
        bundle.check_contents(core.limits)
        if not self._is_signed(bundle):
            if self._is_forged(bundle, sender.sequence):
                core.fault(peer, "a bundle with a wrong signature")
            return
        if refusal is None:
            core.mempool.add(bundle, sender.sequence, core.height)
            core.received_transactions += len(bundle.transactions)
            core.spread_bundle(bundle, peer)
        if wanted:
            self._fetched[bundle.digest] = bundle
            self._wanted.discard(bundle.digest)
            for block in self._outlines:
                self.assemble(block)

    def _is_signed(self, bundle: Bundle) -> bool:
        core = self._core
        sender = core.state.node(bundle.sender)
        name = (core.genesis.chain_id, core.genesis.digest)
        return sender is not None and bundle.is_signed_by(sender.public_key, *name, core.verifier)

    def _is_forged(self, bundle: Bundle, committed: int) -> bool:
        """Whether no correct node sends this: neither under a key that came meanwhile, nor under one that went.

        A node signs with a new key only what follows its last bundle in the block that brought the key; who does not
        know that block yet lacks at least one bundle before it (SPEC 3.7).
        """
        core = self._core
        if bundle.sequence > committed + 1:
            return False
        name = (core.genesis.chain_id, core.genesis.digest)
        former = [key.public_key for key in core.state.keys_of(bundle.sender) if key.last_height]
        return not any(bundle.is_signed_by(key, *name, core.verifier) for key in former)

    def _bundle(self, digest: bytes) -> Bundle | None:
        return self._core.mempool.get(digest) or self._fetched.get(digest)

    # ---- putting blocks together

    def on_outline(self, peer: str, header: Header, bundle_digests: tuple[bytes, ...]) -> None:
        """Remember what a verified proposal or decision says of a block; make the block if its bundles are here."""
        self._outlines.setdefault(header.digest, Outline(header, bundle_digests, peer))
        self.assemble(header.digest)

    def assemble(self, block: bytes) -> bool:
        """Make an outlined block from the bundles at hand; False while some are missing."""
        consensus = self._core.consensus
        if block in consensus.bodies:
            return True
        outline = self._outlines[block]
        bundles = [self._bundle(digest) for digest in outline.bundle_digests]
        complete = tuple(bundle for bundle in bundles if bundle is not None)
        if len(complete) < len(bundles):
            return False
        consensus.on_body(Block(outline.header, complete))
        return True

    def store(self, block: Block) -> None:
        """Make a body durable, once, before anything that rests on it is said."""
        if block.digest not in self.stored:
            self.stored.add(block.digest)
            self._core.store_for_height(BODY_TABLE, integer_key(block.height) + block.digest, block.encoded)

    # ---- asking and answering

    def fetch(self, block: bytes) -> None:
        """Ask for what a needed block lacks: single bundles if its outline is known, else the whole body."""
        core = self._core
        outline = self._outlines.get(block)
        if outline is None:
            for peer in core.some_peers():
                core.send(peer, BodyWanted(core.height + 1, block), urgent=True, after_sync=False)
        elif not self.assemble(block):
            self._fetch_bundles(outline)

    def _fetch_bundles(self, outline: Outline) -> None:
        """Ask the outline's bringer first, and others when that did not help."""
        core = self._core
        missing = [digest for digest in outline.bundle_digests if self._bundle(digest) is None]
        again = bool(self._wanted.intersection(missing))
        self._wanted.update(missing)
        peers = core.some_peers() if again or not core.overlay.is_up(outline.told_by) else [outline.told_by]
        for peer in peers:
            core.send(peer, BundlesWanted(tuple(missing[:DIGESTS_WANTED_MAX])), urgent=True, after_sync=False)

    def answer_bundles(self, peer: str, digests: tuple[bytes, ...]) -> None:
        """Send the wanted bundles that are here, within the size of one message."""
        budget_bytes = MESSAGE_SIZE_BYTES_MAX
        for digest in dict.fromkeys(digests):
            bundle = self._bundle(digest) or self._committed.get(digest) or self._of_a_body(digest)
            if bundle is not None and bundle.size_bytes <= budget_bytes:
                budget_bytes -= bundle.size_bytes
                self._core.send(peer, BundleMessage(bundle.encoded), urgent=False, after_sync=False)

    def _of_a_body(self, digest: bytes) -> Bundle | None:
        """Look in the bodies of the height: one that was voted for is durable, while the bundles beside it are not."""
        bodies = self._core.consensus.bodies.values()
        return next((bundle for body in bodies for bundle in body.bundles if bundle.digest == digest), None)

    def answer_body(self, peer: str, block: bytes) -> bool:
        """Send a body of the height in progress; False if it is not here."""
        body = self._core.consensus.bodies.get(block)
        if body is not None:
            self._core.send(peer, BodyMessage(body.encoded), urgent=False, after_sync=False)
        return body is not None

    def on_body(self, peer: str, encoded: bytes) -> None:
        """Take a whole block if a certificate of this height is about it. Raises MalformedBlock."""
        core, consensus = self._core, self._core.consensus
        block = Block.decode(encoded, core.limits)
        certified = [certificate.block for certificate in consensus.notarizations.values()]
        certified += [] if consensus.commit is None else [consensus.commit.block]
        if block.digest in consensus.bodies or block.digest not in certified:
            return
        if not all(self._is_signed(bundle) for bundle in block.bundles):
            core.fault(peer, "a block body with a wrongly signed bundle")
            return
        consensus.on_body(block)
