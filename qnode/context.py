"""What the parts of a node share while one input is handled: where effects go, jobs, randomness, and the time.

Decides nothing. One `Context` belongs to one node; `begin` starts a step and `take` ends it.
"""

import random
from collections.abc import Callable
from typing import Any

from ledger.transactions import Transaction
from protocol.entropy import Entropy
from protocol.messages import Record
from qnode.effects import Delete, Effect, Log, Put, RunJob, SendTo, TrafficClass
from qnode.wire import encode

JobHandler = Callable[[Any, BaseException | None], None]


class Context:
    """The effects of the current step, the jobs under way, and what is injected.

    `now_ns` is the step's time: nanoseconds since 1970 as the node believed at its start, monotonic since.
    """

    def __init__(self, node_id: str, entropy: Entropy, jitter: random.Random) -> None:
        self.node_id = node_id
        self.entropy = entropy
        self.jitter = jitter
        self.now_ns = 0
        self.height = 0
        self.connected: dict[str, None] = {}  # peers, in the order of connection
        self._effects: list[Effect] = []
        self._transactions: list[Transaction] = []
        self._jobs: dict[int, JobHandler] = {}
        self._jobs_begun = 0

    def begin(self, now_ns: int) -> None:
        """Start a step; time never runs backwards for the node."""
        self.now_ns = max(self.now_ns, now_ns)

    def take(self) -> list[Effect]:
        """Return the effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def take_transactions(self) -> list[Transaction]:
        """Return the records to be submitted since the last call."""
        transactions, self._transactions = self._transactions, []
        return transactions

    def write(self, writes: "list[Put | Delete]") -> None:
        self._effects.extend(writes)

    def do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def send(self, peer: str, traffic: TrafficClass, frame: Record, *, after_sync: bool = True) -> None:
        self._effects.append(SendTo(peer, traffic, encode(frame), after_sync))

    def submit(self, transaction: Transaction) -> None:
        """Let the chain record this, under the node's name."""
        self._transactions.append(transaction)

    def run(self, work: Callable[[], Any], done: JobHandler) -> None:
        """Run `work` off the loop; `done(result, error)` is called in a later step."""
        self._jobs_begun += 1
        self._jobs[self._jobs_begun] = done
        self._effects.append(RunJob(self._jobs_begun, work))

    def finish_job(self, job_id: int, result: Any, error: BaseException | None) -> None:
        self._jobs.pop(job_id)(result, error)

    def log(self, level: str, event: str, **fields: Any) -> None:
        self._effects.append(Log(level, event, tuple(fields.items())))
