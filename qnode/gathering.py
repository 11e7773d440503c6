"""Key requests that wait together travel together: one transfer, one tag, one sync at each end for all of them.

A request that finds fewer than UNDER_WAY_MAX transfers of its kind (same applications, same key size) under way leaves
at once and alone. Those that find as many leave together when one ends, or after GATHER_NS_MAX, whatever comes first.
So nobody waits on an idle link, and under load a transfer's cost is shared by as many as came during the ones before.

Decides which requests share a transfer. What comes of it is as if each had been made by itself: a transfer that fails
for several (too little key for all, say) is tried again for each of them, in their order. How keys travel is `relay`.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from qnode.context import Context
from qnode.relay import Done, Relay, TransferFailed, Transferred

UNDER_WAY_MAX: Final = 2
"""Transfers of a kind that nobody needs to wait for: while the far node stores one, this node makes the next."""

GATHER_NS_MAX: Final = 5_000_000
"""So long a request waits for a transfer under way: some round trips of a near neighbour. On a far link, or when the
answer is lost, nobody waits longer behind others than that."""

GATHERED_KEYS_MAX: Final = 128
"""Keys of one shared transfer; a request for more travels alone. At 4 KiB a key its message stays below 1 MiB."""

Kind = tuple[int, str, str, str]
"""What requests must have in common to share a transfer: key size in bytes, master, slave, the slave's node."""


@dataclass(frozen=True, slots=True)
class _Request:
    key_ids: tuple[bytes, ...]
    done: Done
    arrived_ns: int


@dataclass(slots=True)
class _Lane:
    """The requests of one kind: `waiting` for one of the transfers `under_way` to end."""

    under_way: int = 0
    waiting: deque[_Request] = field(default_factory=deque)
    is_leaving: bool = False


class Gathering:
    """Puts the requests of one node on transfers. `transfer` has the signature of `Relay.transfer`."""

    def __init__(self, context: Context, relay: Relay) -> None:
        self._context = context
        self._relay = relay
        self._lanes: dict[Kind, _Lane] = {}

    def transfer(
        self, key_ids: tuple[bytes, ...], size_bytes: int, master_sae: str, slave_sae: str, target: str, done: Done
    ) -> None:
        """Make keys shared with the node `target`; `done` is called once, now or in a later step."""
        kind = (size_bytes, master_sae, slave_sae, target)
        lane = self._lanes.setdefault(kind, _Lane())
        lane.waiting.append(_Request(key_ids, done, self._context.now_ns))
        self._leave(kind, lane)

    def tick(self) -> None:
        """Let those go who have waited long enough."""
        for kind, lane in list(self._lanes.items()):
            while lane.waiting and lane.waiting[0].arrived_ns + GATHER_NS_MAX <= self._context.now_ns:
                self._start(kind, lane)

    def next_deadline_ns(self) -> int | None:
        """When `tick` must be called next."""
        waiting = (lane.waiting[0].arrived_ns for lane in self._lanes.values() if lane.waiting)
        return min((arrived_ns + GATHER_NS_MAX for arrived_ns in waiting), default=None)

    def _leave(self, kind: Kind, lane: _Lane) -> None:
        """Start transfers while there is room and somebody waits; those that fail at once come back in here."""
        if lane.is_leaving:
            return
        lane.is_leaving = True
        while lane.waiting and lane.under_way < UNDER_WAY_MAX:
            self._start(kind, lane)
        lane.is_leaving = False
        if not lane.under_way and not lane.waiting:
            self._lanes.pop(kind, None)

    def _start(self, kind: Kind, lane: _Lane) -> None:
        """Send off the oldest request and those behind it that fit, as one transfer."""
        requests = [lane.waiting.popleft()]
        count = len(requests[0].key_ids)
        while lane.waiting and count + len(lane.waiting[0].key_ids) <= GATHERED_KEYS_MAX:
            count += len(lane.waiting[0].key_ids)
            requests.append(lane.waiting.popleft())
        lane.under_way += 1

        def ended(outcome: Transferred | TransferFailed) -> None:
            lane.under_way -= 1
            self._hand_out(kind, requests, outcome)
            self._leave(kind, lane)

        key_ids = tuple(key_id for request in requests for key_id in request.key_ids)
        self._relay.transfer(key_ids, *kind, ended)

    def _hand_out(self, kind: Kind, requests: list[_Request], outcome: Transferred | TransferFailed) -> None:
        """Give every request its own part of what came, or try those of a failed transfer one by one."""
        if isinstance(outcome, Transferred):
            first = 0
            for request in requests:
                last = first + len(request.key_ids)
                request.done(Transferred(outcome.keys[first:last], outcome.path, outcome.regions))
                first = last
        elif len(requests) > 1 and not outcome.is_late:
            for request in requests:
                self._relay.transfer(request.key_ids, *kind, request.done)
        else:
            for request in requests:
                request.done(outcome)
