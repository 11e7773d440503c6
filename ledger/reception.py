"""What neighbours send: decoded once, given to the part that it concerns, and kept if it is of the height to come.

Decides nothing about contents; what cannot be read is the neighbour's fault (SPEC 4.5, 6.5).
"""

from collections.abc import Callable

from ledger.anti_entropy import AntiEntropy
from ledger.block import MalformedBlock
from ledger.bodies import Bodies
from ledger.bundle import MalformedBundle
from ledger.core import Core
from ledger.encoding import MalformedEncoding
from ledger.listener import Listener
from ledger.messages import (
    BlocksMessage,
    BlocksWanted,
    BodyMessage,
    BodyWanted,
    BundleMessage,
    BundlesWanted,
    CertificatesMessage,
    Committed,
    Message,
    ProposalMessage,
    RangeMessage,
    RangeWanted,
    SnapshotOffer,
    SnapshotWanted,
    StatementMessage,
    Status,
    decode,
)
from ledger.recall import Recall
from ledger.snapshot_sync import SnapshotSync


class Reception:
    """Hands messages on. `on_blocks` takes committed blocks."""

    def __init__(
        self,
        core: Core,
        *,
        listener: Listener,
        bodies: Bodies,
        sync: AntiEntropy,
        snapshot_sync: SnapshotSync,
        recall: Recall,
        on_blocks: Callable[[str, tuple[tuple[bytes, bytes], ...]], None],
    ) -> None:
        self._core = core
        self._listener = listener
        self._bodies = bodies
        self._sync = sync
        self._snapshot_sync = snapshot_sync
        self._recall = recall
        self._on_blocks = on_blocks
        self._later: dict[bytes, tuple[str, Message]] = {}
        self._later_size_bytes = 0
        self._decision: tuple[int, bytes] = (0, b"")  # the last that was told about the height in progress

    def receive(self, peer: str, payload: bytes) -> None:
        """Take one message of a neighbour."""
        core = self._core
        if not core.overlay.is_up(peer):
            core.overlay.connect(peer)
        if payload == self._decision[1]:
            if self._decision[0] == core.height + 1:
                self._sync.on_committed(peer)
            return  # every neighbour tells the same, and reading it once is enough
        try:
            message = decode(payload)
            if isinstance(message, Committed) and message.header.height == core.height + 1:
                self._decision = (message.header.height, payload)
            self._hand_on(peer, message, len(payload))
        except (MalformedEncoding, MalformedBundle, MalformedBlock) as error:
            core.fault(peer, f"malformed message: {error}")

    def _hand_on(self, peer: str, message: Message, size_bytes: int) -> None:
        match message:
            case StatementMessage(statement):
                if self._is_current(peer, message, statement.height, size_bytes, statement.encoded):
                    self._listener.on_statement(peer, statement)
            case ProposalMessage(proposal, certificates):
                statement = proposal.statement
                if self._is_current(peer, message, statement.height, size_bytes, statement.encoded):
                    self._listener.on_proposal(peer, proposal, certificates)
            case Committed(header, _, certificate):
                if self._is_current(peer, message, header.height, size_bytes, certificate.encoded):
                    self._sync.on_committed(peer)
                    self._listener.on_committed(peer, message)
            case BundleMessage(bundle):
                self._bodies.on_bundle(peer, bundle)
            case CertificatesMessage(certificates):
                self._listener.on_certificates(peer, certificates)
            case Status():
                self._recall.on_status(message, self._core.now_ns)
                self._sync.on_status(peer, message)
            case BundlesWanted(digests):
                self._bodies.answer_bundles(peer, digests)
            case BodyWanted(height, block):
                if not self._bodies.answer_body(peer, block):
                    self._sync.answer_blocks(peer, height, 1)
            case BodyMessage(block):
                self._bodies.on_body(peer, block)
            case BlocksWanted(first_height, count):
                self._sync.answer_blocks(peer, first_height, count)
            case BlocksMessage(blocks):
                self._on_blocks(peer, blocks)
            case SnapshotWanted(height):
                self._snapshot_sync.answer_head(peer, height)
            case SnapshotOffer():
                self._sync.on_snapshot(peer, message)
            case RangeWanted():
                self._snapshot_sync.answer_range(peer, message)
            case RangeMessage():
                self._snapshot_sync.on_range(peer, message)

    def _is_current(self, peer: str, message: Message, height: int, size_bytes: int, name: bytes) -> bool:
        """Say whether a message is of the height in progress; keep it if it is of the next, learn if further."""
        core, settings = self._core, self._core.settings
        if height == core.height + 1:
            return True
        if height == core.height + 2:
            fits = self._later_size_bytes + size_bytes <= settings.later_size_bytes_max
            if fits and len(self._later) < settings.later_messages_max and name not in self._later:
                self._later[name] = (peer, message)
                self._later_size_bytes += size_bytes
        if height > core.height + 2:
            self._sync.catch_up.learn(peer, height - 2)
        return False

    # ---- what waits for the next height

    @property
    def later_count(self) -> int:
        """How many messages wait for the next height."""
        return len(self._later)

    def take_later(self) -> None:
        """The next height has come: take what waited for it."""
        later, self._later, self._later_size_bytes = self._later, {}, 0
        for peer, message in later.values():
            self._hand_on(peer, message, 0)

    def drop_later(self) -> None:
        """The next height was passed over."""
        self._later, self._later_size_bytes = {}, 0
