"""How a node answers its devices: with frames, or with a refusal that says why and is counted by its kind."""

import json
from typing import Any

from protocol.lightweight.enrolment import EnrolmentRefused
from protocol.records import encode_record
from qnode.context import Context
from qnode.effects import Respond
from qnode.inputs import DeviceReply


class DeviceAnswers:
    """Answers, and the count of refusals."""

    def __init__(self, context: Context) -> None:
        self.refusals: dict[str, int] = {}
        self._context = context

    def respond(self, request_id: int, answer: Any) -> None:
        """Answer a request."""
        self._context.do(Respond(request_id, answer))

    def frames(self, request_id: int, *messages: tuple[str, bytes], reading: dict[str, Any] | None = None) -> None:
        """Send a device its answers; the `reading` that its frame brought goes to whoever listens."""
        self.respond(request_id, DeviceReply(messages, reading))

    def refuse(self, request_id: int, reason: str) -> None:
        """Tell a device why it is not served."""
        self.count(reason)
        self.frames(request_id, ("refused", json.dumps({"reason": reason}).encode()))

    def refuse_enrolment(self, request_id: int, reason: str) -> None:
        """Tell a device why it is not enrolled."""
        self.count(f"enrolment: {reason}")
        self.frames(request_id, ("enrolled", encode_record(EnrolmentRefused(reason[:200]))))

    def count(self, reason: str) -> None:
        """Count refusals by their kind: the words before the first colon, so that strangers cannot grow the table."""
        kind = reason.partition(":")[0]
        self.refusals[kind] = self.refusals.get(kind, 0) + 1
