"""Records on their way into the mempool: this node's own, and those of callers, who are told what became of them.

Gives every submission its token; what the replica answers under it ends here. Decides nothing about what is recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ledger import inputs as ledger_inputs
from ledger.execution import Receipt
from ledger.transactions import KeyDelivered, Transaction, transaction_id
from qnode.context import Context
from qnode.effects import Respond
from qnode.inputs import DocumentAnswer, RequestError, SubmitTransactions
from qnode.records import OwnRecords


@dataclass(frozen=True, slots=True)
class _Submitter:
    """A request that brought `count` records.

    `awaited` is the transaction whose block answers it, empty if admission does.
    """

    request_id: int
    awaited: bytes
    count: int
    arrived_ns: int


class Submitting:
    """Hands records to the replica by `tell`, which may answer at once."""

    def __init__(
        self,
        context: Context,
        records: OwnRecords,
        tell: Callable[[ledger_inputs.Input], None],
        delivery_patience_ns: int,
    ) -> None:
        self.admissions: list[tuple[int, int]] = []
        """What this step took into the mempool of callers, and of other nodes: (count, when it arrived)."""
        self._context = context
        self._records = records
        self._tell = tell
        self._delivery_patience_ns = delivery_patience_ns
        self._last_token = 0
        self._submitters: dict[int, _Submitter] = {}  # by token, until the submission is admitted
        self._committers: dict[bytes, int] = {}  # last transaction of a submission → request that waits for its block

    def submit_own(self) -> None:
        """Hand over the records that came up in this step, until none is left; what is not admitted is stored."""
        while transactions := self._context.take_transactions():
            self._submit(tuple(transactions))
        self._records.keep()

    def _submit(self, transactions: tuple[Transaction, ...]) -> None:
        token = self._token()
        self._records.submit(token, transactions)
        delivered = all(isinstance(each, KeyDelivered) for each in transactions)
        patience_ns = self._delivery_patience_ns if delivered else 0
        self._tell(ledger_inputs.TransactionsSubmitted(token, transactions, patience_ns))

    def submit_waiting(self) -> None:
        """Offer again what the mempool had no room for, oldest first, until it has none."""
        for number in self._records.waiting():
            token = self._token()
            records = self._records.submit_again(token, number)
            self._tell(ledger_inputs.TransactionsSubmitted(token, records))
            if self._records.is_waiting(number):
                break

    def submit_for(self, request_id: int, request: SubmitTransactions, arrived_ns: int) -> None:
        """Submit a caller's records; he hears when they are admitted, or when the last of them is committed."""
        if not request.transactions:
            self._context.do(Respond(request_id, RequestError(400, "there are no transactions to submit")))
            return
        token = self._token()
        awaited = transaction_id(request.transactions[-1]) if request.until_committed else b""
        self._submitters[token] = _Submitter(request_id, awaited, len(request.transactions), arrived_ns)
        if awaited:
            self._committers[awaited] = request_id
        self._tell(ledger_inputs.EncodedTransactionsSubmitted(token, request.transactions))

    def _token(self) -> int:
        self._last_token += 1
        return self._last_token

    def answered(self, token: int, refusal: str | None) -> None:
        """The replica has admitted what came under `token`, or refused it."""
        submitter = self._submitters.pop(token, None)
        if submitter is None:
            if refusal is None:
                self._records.admitted(token)
            else:
                self._records.refused(token, refusal)
        elif refusal is not None:
            self._committers.pop(submitter.awaited, None)
            self._context.do(Respond(submitter.request_id, RequestError(503, refusal)))
        else:
            self.admissions.append((submitter.count, submitter.arrived_ns))
            if not submitter.awaited:
                self._context.do(Respond(submitter.request_id, DocumentAnswer({"admitted": True})))

    def recorded(self, receipt: Receipt, height: int) -> None:
        """A block holds a record: tell whoever waits for it."""
        if self._committers and (request_id := self._committers.pop(receipt.transaction_id, None)) is not None:
            document = {"committed": True, "height": height, "ok": receipt.ok, "reason": receipt.reason}
            self._context.do(Respond(request_id, DocumentAnswer(document)))
