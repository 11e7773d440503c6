"""Proofs for callers: of a delivered key at once, or as soon as the block is there that makes it possible (S0-B4)."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ledger.chain import Chain
from ledger.delivery_proof import NotYetProvable, UnknownKey, prove_delivery
from ledger.light import ProofError
from qnode.context import Context
from qnode.effects import Respond
from qnode.inputs import DocumentAnswer, RequestError

PROOF_BLOCKS: Final = 2
"""For so many blocks the proof of an unknown key waits for its record: one is under way, the next has what is here."""

PROOF_WAIT_NS: Final = 2_000_000_000
"""And for so long at least, twice the most patience that any node may give the records of its deliveries."""


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A request for the proof of a key that no block records yet; given up in a block after both."""

    request_id: int
    key_id: bytes
    last_height: int
    until_ns: int


class Proving:
    """Answers requests for proofs; as many wait as requests are under way."""

    def __init__(self, context: Context, chain: Callable[[], Chain]) -> None:
        self._context = context
        self._chain = chain
        self._waiters: list[_Waiter] = []

    def ask(self, request_id: int, key_id: str) -> None:
        """Answer with the proof of a delivered key, or let the request wait."""
        try:
            wanted = uuid.UUID(key_id).bytes
        except ValueError:
            self._context.do(Respond(request_id, RequestError(400, "the key ID is not a UUID")))
        else:
            until_ns = self._context.now_ns + PROOF_WAIT_NS
            self._prove(_Waiter(request_id, wanted, self._chain().height + PROOF_BLOCKS, until_ns))

    def committed(self) -> None:
        """A block is final: try again what waits."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self._prove(waiter)

    def _prove(self, waiter: _Waiter) -> None:
        chain = self._chain()
        answer: DocumentAnswer | RequestError
        try:
            answer = DocumentAnswer(prove_delivery(chain, waiter.key_id).document(chain.genesis))
        except NotYetProvable:
            self._waiters.append(waiter)
            return
        except UnknownKey as error:
            if chain.height < waiter.last_height or self._context.now_ns < waiter.until_ns:
                self._waiters.append(waiter)
                return
            answer = RequestError(404, f"{error}; was it delivered by this network, and its record committed?")
        except ProofError as error:
            answer = RequestError(503, str(error))
        self._context.do(Respond(waiter.request_id, answer))
