"""The actions on key policies: set (or replace), remove, lift the suspension of a link (SEED_MAP S0-B3, SPEC 9.5)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ledger.contracts import policies
from ledger.contracts.document import PolicyError, decode_policy, policy_from_document
from ledger.contracts.documents import Documented
from ledger.contracts.entries import PolicyEntry
from ledger.contracts.routes import suspended_links
from ledger.contracts.selection import POLICIES_MAX
from ledger.encoding import as_text
from ledger.genesis import NAME_LENGTH_MAX
from ledger.state import State


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Put a policy in force, in place of the one of its name."""

    KIND: ClassVar[int] = 32
    NAME: ClassVar[str] = "set-policy"

    policy: bytes

    def __post_init__(self) -> None:
        if type(self.policy) is not bytes:
            raise PolicyError("policy must be the bytes of a policy document")
        decode_policy(self.policy)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        name = decode_policy(self.policy).name
        in_force = state.entries(PolicyEntry)
        if state.entry(PolicyEntry, name) is None and len(in_force) >= POLICIES_MAX:
            return f"{len(in_force)} policies are in force, as many as may be; remove one first"
        return None

    def execute(self, state: State) -> None:
        """Put it in force."""
        policies.set_policy(state, decode_policy(self.policy))

    def document(self) -> dict[str, Any]:
        """Return the policy as a user writes it."""
        return {"policy": decode_policy(self.policy).described()}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read {"policy": tables}. Raises PolicyError."""
        if set(document) != {"policy"}:
            raise PolicyError("give a policy file: `qnode policy set FILE`")
        return cls(policy_from_document(document["policy"]).encoded)


@dataclass(frozen=True, slots=True)
class RemovePolicy(Documented):
    """Take a policy out of force."""

    KIND: ClassVar[int] = 33
    NAME: ClassVar[str] = "remove-policy"

    policy: str

    def __post_init__(self) -> None:
        as_text(self.policy, NAME_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        return None if state.entry(PolicyEntry, self.policy) else f"no policy {self.policy!r} is in force"

    def execute(self, state: State) -> None:
        """Take it out of force."""
        policies.remove_policy(state, self.policy)


@dataclass(frozen=True, slots=True)
class LiftLinkSuspension(Documented):
    """Let a suspended link carry keys again at once."""

    KIND: ClassVar[int] = 34
    NAME: ClassVar[str] = "lift-link-suspension"

    link_id: str

    def __post_init__(self) -> None:
        as_text(self.link_id, NAME_LENGTH_MAX)

    def fault(self, state: State) -> str | None:
        """Return why this cannot be done, or None."""
        return None if self.link_id in suspended_links(state) else f"{self.link_id} is not suspended"

    def execute(self, state: State) -> None:
        """Lift it."""
        policies.lift_suspension(state, self.link_id)
