"""Fetching a snapshot from several neighbours at once, and giving one (SPEC 10.4, 10.5).

A node too far behind asks for the head of a snapshot, checks its commit certificate, and then fetches the state in
sixteen lanes, each a sixteenth of all paths, walked from its beginning to its end in verified ranges. A range that does
not hold is charged to its sender, and the lane goes on elsewhere. What was fetched is stored as it comes, so that a
restart goes on where it was; the state is switched in one atomic write when the last lane ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ledger.core import SNAPSHOT_FETCH_TABLE, SNAPSHOT_TABLE, Core
from ledger.encoding import MalformedEncoding, as_array, pack, unpack_array
from ledger.messages import SET_CHANGES_MAX, RangeMessage, RangeWanted, SnapshotOffer, SnapshotWanted
from ledger.outputs import Erase
from ledger.restoration import MalformedEntry, Restoration
from ledger.set_change import SetChange, follow
from ledger.snapshot import (
    Snapshots,
    Stored,
    decode_range_row,
    following_path,
    range_key,
    range_row,
)
from ledger.snapshot_head import SnapshotHead
from ledger.state import State
from ledger.trie_range import cut_range, range_fault

LANES = 16
PEER_QUESTIONS_MAX = 2
"""Ranges asked of one neighbour at a time: one is on its way while the other is checked."""
_FETCH_KEY = b"head"


@dataclass(slots=True)
class _Lane:
    """The paths from `first` to `last` that are still to come; None when all are here."""

    first: bytes | None
    last: bytes
    asked: str | None = None
    deadline_ns: int = 0


def _lanes() -> list[_Lane]:
    step = (1 << 256) // LANES
    return [_Lane((i * step).to_bytes(32, "big"), ((i + 1) * step - 1).to_bytes(32, "big")) for i in range(LANES)]


class SnapshotFetch:
    """One snapshot on its way here: what is missing, who has it, and the state that grows from it."""

    def __init__(self, core: Core, snapshots: Snapshots, head: SnapshotHead, changes: tuple[SetChange, ...]) -> None:
        self.head = head
        self.changes = changes
        self.sources: dict[str, None] = {}
        self.liars: set[str] = set()
        self.keys: list[bytes] = []
        self._core = core
        self._snapshots = snapshots
        self._restoration = Restoration(core.genesis)
        self._lanes = _lanes()

    def resume(self, stored: Stored) -> None:
        """Take up what an earlier life fetched: the beginning of every lane; the root is checked at the end."""
        for key, row in stored.get(SNAPSHOT_TABLE, ()):
            last = key[8:]
            lane = self._lanes[last[0] * LANES // 256]
            if not key.startswith(range_key(self.head.height, b"")):
                continue
            self.keys.append(key)
            try:
                first, entries = decode_range_row(row)
                if first == lane.first:
                    self._restoration.add(entries)
                    self._advance(lane, last)
            except (MalformedEncoding, MalformedEntry):
                continue  # fetched again; what is not a part of the whole shows in the root

    def _advance(self, lane: _Lane, last: bytes) -> None:
        lane.first = None if last == lane.last else following_path(last)
        lane.asked = None

    @property
    def is_complete(self) -> bool:
        """Whether every lane has come to its end."""
        return all(lane.first is None for lane in self._lanes)

    @property
    def share(self) -> float:
        """How much of all paths is here, from 0 to 1."""
        missing = sum(
            int.from_bytes(lane.last, "big") - int.from_bytes(lane.first, "big") + 1
            for lane in self._lanes
            if lane.first is not None
        )
        return 1 - missing / (1 << 256)

    def finish(self) -> State | None:
        """Return the state; None if what lay on the disk was not what had been checked."""
        if self._restoration.root != self.head.state_root:
            return None
        return self._restoration.finish(self.head.height)

    # ---- asking

    def ask(self) -> None:
        """Ask for the next range of every idle lane, of whoever has fewest questions open."""
        core = self._core
        for lane in self._lanes:
            if lane.asked is not None and core.now_ns >= lane.deadline_ns:
                self.forget(lane.asked)
        for lane in self._lanes:
            if lane.first is None or lane.asked is not None:
                continue
            open_questions = {peer: sum(each.asked == peer for each in self._lanes) for peer in self.sources}
            peer = min(open_questions, key=lambda name: open_questions[name], default=None)
            if peer is None or open_questions[peer] >= PEER_QUESTIONS_MAX:
                return
            lane.asked, lane.deadline_ns = peer, core.now_ns + core.settings.catch_up_timeout_ns
            wanted = RangeWanted(self.head.height, lane.first, lane.last)
            core.send(peer, wanted, urgent=False, after_sync=False)

    def forget(self, peer: str) -> None:
        """A neighbour is gone, slow, or lies: its lanes go on elsewhere."""
        self.sources.pop(peer, None)
        for lane in self._lanes:
            if lane.asked == peer:
                lane.asked = None

    def deadline_ns(self) -> int | None:
        """Return when the first unanswered question is given up."""
        return min((lane.deadline_ns for lane in self._lanes if lane.asked is not None), default=None)

    def take(self, peer: str, message: RangeMessage) -> None:
        """Check and store a range that was asked for."""
        core, found = self._core, message.found
        lane = next((each for each in self._lanes if each.asked == peer and each.first == found.first), None)
        if lane is None or message.height != self.head.height:
            return  # late, and asked elsewhere meanwhile
        fault = range_fault(self.head.state_root, found)
        if fault is None and (found.last > lane.last or (found.last < lane.last and not found.entries)):
            fault = "the range is not the one that was asked for"
        if fault is not None:
            core.fault(peer, f"a part of a snapshot that is none: {fault}")
            self.liars.add(peer)
            self.forget(peer)
            return
        try:
            self._restoration.add(found.entries)
        except MalformedEntry as error:
            raise AssertionError(f"the chain certified an entry that this version cannot read: {error}") from None
        key = range_key(self.head.height, found.last)
        self._snapshots.store(key, range_row(found.first, found.entries))
        self.keys.append(key)
        self._advance(lane, found.last)


class SnapshotSync:
    """The questions for snapshots, both ways. `adopt` switches the replica to a fetched state."""

    def __init__(self, core: Core, snapshots: Snapshots, adopt: Callable[[SnapshotFetch, State], None]) -> None:
        self.fetch: SnapshotFetch | None = None
        self._core = core
        self._snapshots = snapshots
        self._adopt = adopt
        self._asked: dict[str, int] = {}
        self._hope_until_ns: int | None = None

    def resume(self, stored: Stored) -> None:
        """Go on with what an earlier life was fetching."""
        rows = dict(stored.get(SNAPSHOT_FETCH_TABLE, ()))
        if _FETCH_KEY not in rows:
            return
        members, more = unpack_array(rows[_FETCH_KEY], 2)
        head = SnapshotHead.from_members(members)
        changes = tuple(SetChange.from_members(each) for each in as_array(more))
        if head.height > self._core.height and head.link_fault(self._core.genesis.digest) is None:
            self.fetch = SnapshotFetch(self._core, self._snapshots, head, changes)
            self.fetch.resume(stored)
        else:
            self._core.outputs.append(Erase(SNAPSHOT_FETCH_TABLE, _FETCH_KEY))

    # ---- giving

    def answer_head(self, peer: str, height: int) -> None:
        """Tell a neighbour of the newest snapshot if it is above its height; nothing if there is none."""
        core, offer = self._core, self._snapshots.newest
        if offer is None or offer.head.height <= height:
            return
        changes = [
            each for each in core.chain.set_changes() if height < each.header.height < offer.head.following.height
        ]
        message = SnapshotOffer(offer.head, tuple(changes[:SET_CHANGES_MAX]))
        core.send(peer, message, urgent=False, after_sync=True)

    def answer_range(self, peer: str, wanted: RangeWanted) -> None:
        """Send the next range of a snapshot; a newer head if that one is gone."""
        offer = self._snapshots.offers.get(wanted.height)
        if offer is None:
            self.answer_head(peer, 0)
        elif wanted.first <= wanted.last:
            found = cut_range(offer.trie, wanted.first, wanted.last)
            self._core.send(peer, RangeMessage(wanted.height, found), urgent=False, after_sync=True)

    # ---- fetching

    def want(self, peer: str) -> None:
        """Ask a neighbour for the head of its newest snapshot, not more often than questions time out."""
        core = self._core
        if core.now_ns >= self._asked.get(peer, 0):
            self._asked[peer] = core.now_ns + core.settings.catch_up_timeout_ns
            if self._hope_until_ns is None:
                self._hope_until_ns = self._asked[peer]
            core.send(peer, SnapshotWanted(core.height), urgent=False, after_sync=False)

    def expects(self, peer: str) -> bool:
        """Whether a neighbour was asked for a snapshot's head just now, or a newer one may be needed."""
        return self.fetch is not None or self._core.now_ns < self._asked.get(peer, 0)

    @property
    def takes_precedence(self) -> bool:
        """Whether blocks need not be asked for: a snapshot is coming, or its first offer may be on its way."""
        return self.fetch is not None or (self._hope_until_ns or 0) > self._core.now_ns

    def on_status(self, peer: str, height: int) -> None:
        """A neighbour told its height: too far ahead for block after block, or a source of what is being fetched."""
        core = self._core
        far = height > core.height + core.settings.snapshot_distance
        fetch = self.fetch
        joins = fetch is not None and peer not in fetch.sources and peer not in fetch.liars
        if far or (fetch is not None and joins and height > fetch.head.height):
            self.want(peer)

    def on_head(self, peer: str, offer: SnapshotOffer) -> None:
        """A neighbour offers a snapshot: join it to the sources, or begin, if this node is behind it."""
        core, fetch, head = self._core, self.fetch, offer.head
        if head.height <= core.height or (fetch is not None and peer in fetch.liars):
            return
        if fetch is not None and head.following.digest == fetch.head.following.digest:
            fetch.sources[peer] = None
            return
        if fetch is not None and (fetch.sources or head.height <= fetch.head.height):
            return
        changes = tuple(each for each in offer.changes if each.header.height > core.height)
        validators = follow(core.state.validators(), changes, core.genesis.digest, core.verifier)
        if isinstance(validators, str):
            core.fault(peer, validators)
        elif head.following.validators_digest != validators.digest:
            core.note(
                "warning", "snapshot_not_followed", height=head.height, reason="its validators are not known here"
            )
        elif fault := head.fault(core.genesis.digest, validators, core.verifier):
            core.fault(peer, fault)
        else:
            self._begin(peer, head, changes)

    def _begin(self, peer: str, head: SnapshotHead, changes: tuple[SetChange, ...]) -> None:
        """Start on a snapshot; one that nobody has any more is given up for it."""
        core = self._core
        if self.fetch is not None:
            self._snapshots.give_up(self.fetch.head.height, self.fetch.keys)
        self.fetch = SnapshotFetch(core, self._snapshots, head, changes)
        self.fetch.sources[peer] = None
        self._hope_until_ns = 0  # fulfilled: when the fetch has ended, the blocks above it are asked for at once
        row = pack((head.members(), tuple(each.members() for each in changes)))
        core.store(SNAPSHOT_FETCH_TABLE, _FETCH_KEY, row)
        core.note("info", "snapshot_fetch_begun", height=head.height, own_height=core.height, peer=peer)

    def on_range(self, peer: str, message: RangeMessage) -> None:
        """A part of a snapshot came."""
        if self.fetch is not None:
            self.fetch.take(peer, message)

    def forget(self, peer: str) -> None:
        """A neighbour is gone."""
        self._asked.pop(peer, None)
        if self.fetch is not None:
            self.fetch.forget(peer)

    def tick(self) -> None:
        """Ask for what is missing, switch when nothing is."""
        fetch = self.fetch
        if fetch is None:
            return
        if fetch.head.height <= self._core.height:  # blocks were faster
            self._end(fetch, keep=False)
        elif fetch.is_complete:
            state = fetch.finish()
            self._end(fetch, keep=state is not None)
            if state is None:
                self._core.note("error", "snapshot_spoilt", height=fetch.head.height, what_to_do="check the disk")
            else:
                self._snapshots.adopted(fetch.head, state.trie, fetch.keys)
                self._adopt(fetch, state)
        else:
            fetch.ask()

    def _end(self, fetch: SnapshotFetch, keep: bool) -> None:
        self.fetch = None
        self._core.outputs.append(Erase(SNAPSHOT_FETCH_TABLE, _FETCH_KEY))
        if not keep:
            self._snapshots.give_up(fetch.head.height, fetch.keys)

    def document(self) -> dict[str, object] | None:
        """Return what is being fetched as a JSON-ready document, or None."""
        fetch = self.fetch
        if fetch is None:
            return None
        return {"height": fetch.head.height, "share": round(fetch.share, 4), "sources": list(fetch.sources)}

    def deadline_ns(self) -> int | None:
        """Return when an unanswered question is given up."""
        return None if self.fetch is None else self.fetch.deadline_ns()
