"""What a quorum can decide: one canonical record per kind of action, each with its rule and its effect (S0-B3).

To add a kind, write its record beside the part of the state that it changes and name it in `_KINDS` here: proposals,
approvals, the command line and documents follow from it. Kind numbers are never used again.
"""

from dataclasses import fields
from typing import Any, ClassVar, Final, Protocol, Self, runtime_checkable

from ledger.contracts.membership import ActivateVersion, AdmitNode, LiftSuspension, RemoveNode, SetValidator
from ledger.contracts.policy_actions import LiftLinkSuspension, RemovePolicy, SetPolicy
from ledger.contracts.revocation import RevokeKey, RevokeKeyBlock, RevokeNode
from ledger.encoding import MalformedEncoding, as_array, pack, unpack
from ledger.state import State

ACTION_SIZE_BYTES_MAX: Final = 3072
"""Encoded. Leaves room for the rest of a proposal in a transaction of 4,096 bytes."""


class MalformedAction(ValueError):
    """An action that breaks its format or its own ranges; the message says what to give instead."""


@runtime_checkable
class Action(Protocol):
    """A frozen record of integers, text, byte strings and tuples; ranges checked on construction (ValueError)."""

    KIND: ClassVar[int]
    NAME: ClassVar[str]

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done in `state`, or None. Asked when it is proposed, and again at execution."""
        ...

    def execute(self, state: State) -> None:
        """Do it; only called where `fault` returned None. `state.height` is the height of the block."""
        ...

    def document(self) -> dict[str, Any]:
        """Return its members, JSON-ready."""
        ...

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read what a user gives. Raises ValueError with a message that says what to give."""
        ...


_KINDS: Final[tuple[Any, ...]] = (
    *(RevokeKeyBlock, RevokeKey, RevokeNode),
    *(SetPolicy, RemovePolicy, LiftLinkSuspension),
    *(AdmitNode, SetValidator, LiftSuspension, RemoveNode, ActivateVersion),
)
ACTIONS: Final[dict[int, Any]] = {kind.KIND: kind for kind in _KINDS}
NAMES: Final[dict[str, Any]] = {kind.NAME: kind for kind in _KINDS}


def encode_action(action: Action) -> bytes:
    """Return the canonical bytes: an array of the kind and the members in their order."""
    return pack((action.KIND, *(getattr(action, each.name) for each in fields(action))))  # type: ignore[arg-type]


def decode_action(data: bytes) -> Action:
    """Return the action of canonical bytes. Raises MalformedAction, and nothing else."""
    try:
        members = as_array(unpack(data))
        kind = ACTIONS.get(members[0]) if members and type(members[0]) is int else None
        if kind is None:
            raise MalformedAction("unknown kind of action")
        if len(members) != len(fields(kind)) + 1:
            raise MalformedAction(f"{kind.NAME} has {len(fields(kind))} members")
        action: Action = kind(*members[1:])
    except (MalformedEncoding, ValueError, TypeError) as error:
        raise MalformedAction(str(error)) from None
    return action


def action_from_document(name: str, document: dict[str, Any]) -> Action:
    """Return the action that a user describes. Raises MalformedAction."""
    kind = NAMES.get(name)
    if kind is None:
        raise MalformedAction(f"{name!r} is not an action; the actions are {', '.join(sorted(NAMES))}")
    try:
        action: Action = kind.from_document(document)
    except (MalformedEncoding, ValueError, TypeError) as error:
        raise MalformedAction(f"{name}: {error}") from None
    if len(encode_action(action)) > ACTION_SIZE_BYTES_MAX:
        raise MalformedAction(f"{name}: longer than {ACTION_SIZE_BYTES_MAX} bytes; make it shorter or split it")
    return action


def action_document(data: bytes) -> dict[str, Any]:
    """Return an encoded action, JSON-ready."""
    try:
        action = decode_action(data)
    except MalformedAction as error:
        return {"action": "unknown", "reason": str(error)}
    return {"action": action.NAME, **action.document()}
