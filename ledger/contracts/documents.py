"""Actions as users write them: members by name, byte strings in hexadecimal, tuples as lists."""

from dataclasses import MISSING, fields
from typing import Any, Self


class Documented:
    """Gives a record its JSON-ready form by the types of its members: int, str, bytes."""

    __slots__ = ()

    def document(self) -> dict[str, Any]:
        """Return the members by name."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))  # type: ignore[arg-type]
        return {name: value.hex() if isinstance(value, bytes) else value for name, value in named}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read members by name; a number may be given in digits. Raises ValueError."""
        known = {each.name: each.type for each in fields(cls)}  # type: ignore[arg-type]
        needed = [each.name for each in fields(cls) if each.default is MISSING]  # type: ignore[arg-type]
        unknown, missing = sorted(set(document) - set(known)), [name for name in needed if name not in document]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a member; the members are {', '.join(known)}")
        if missing:
            raise ValueError(f"{missing[0]} is missing; the members are {', '.join(known)}")
        return cls(**{name: _value(name, known[name], value) for name, value in document.items()})


def _value(name: str, kind: Any, value: Any) -> Any:
    try:
        if kind is int and isinstance(value, str):
            return int(value)
        if kind is bytes and isinstance(value, str):
            return bytes.fromhex(value.replace("-", ""))
    except ValueError:
        raise ValueError(f"{name} is {value!r}; give {'a whole number' if kind is int else 'hexadecimal'}") from None
    return value
