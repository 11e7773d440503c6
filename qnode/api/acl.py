"""Who may say and hear what on the broker: Mosquitto's ACL files, written and read (row S4-1.1).

Mosquitto reads the file itself; the embedded broker asks `Acl`. Pure. A rule grants, nothing takes away, and what no
rule grants is refused. Decides no topics (`qnode.api.mqtt`).
"""

from dataclasses import dataclass, field
from typing import Final, Literal

Access = Literal["read", "write"]
RULES_MAX: Final = 100_000
"""Of one file: far above a node's devices, whose rules are two patterns anyway."""
_ACCESSES: Final[dict[str, tuple[Access, ...]]] = {
    "read": ("read",),
    "write": ("write",),
    "readwrite": ("read", "write"),
}
_USER: Final = "%u"


class AclError(ValueError):
    """The file is not what this reader understands; the message names the line."""


@dataclass(frozen=True, slots=True)
class Acl:
    """The rules of one file: (access, filter) of every user, and patterns in which %u is the user."""

    users: dict[str, list[tuple[Access, str]]] = field(default_factory=dict)
    patterns: list[tuple[Access, str]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> "Acl":
        """Read a file: comments, `user NAME`, `topic ACCESS FILTER` below a user, `pattern ACCESS FILTER`.

        Raises AclError: a line that is not understood must not be one that would have refused something.
        """
        read = cls()
        section: list[tuple[Access, str]] | None = None
        for number, line in enumerate(text.splitlines(), 1):
            match line.split():
                case []:
                    continue
                case [first, *_] if first.startswith("#"):
                    continue
                case ["user", name]:
                    section = read.users.setdefault(name, [])
                case ["topic", access, rule] if section is not None and access in _ACCESSES and _is_filter(rule):
                    section += [(each, rule) for each in _ACCESSES[access]]
                case ["pattern", access, rule] if access in _ACCESSES and _is_filter(rule):
                    read.patterns.extend((each, rule) for each in _ACCESSES[access])
                case _:
                    raise AclError(
                        f"line {number}: expected `user NAME`, `topic read|write|readwrite FILTER` below a user, or "
                        "`pattern read|write|readwrite FILTER`; `qnode mqtt acl` prints such a file"
                    )
            if number > RULES_MAX:
                raise AclError(f"more than {RULES_MAX} lines")
        return read

    def allows(self, user: str, access: Access, topic: str) -> bool:
        """Say whether `user` may write to, or read from, one topic (which has no wildcards)."""
        return "+" not in topic and "#" not in topic and self.covers(user, access, topic)

    def covers(self, user: str, access: Access, wanted: str) -> bool:
        """Say whether one rule grants every topic that the filter `wanted` stands for."""
        return any(granted == access and _covers(rule, wanted) for granted, rule in self._rules(user))

    def _rules(self, user: str) -> list[tuple[Access, str]]:
        rules = list(self.users.get(user, ()))
        if not set(user) & set("+#/"):  # Mosquitto's rule as well: such a name would widen a pattern
            rules += [(access, rule.replace(_USER, user)) for access, rule in self.patterns]
        return rules


def _covers(rule: str, wanted: str) -> bool:
    if wanted.startswith("$") != rule.startswith("$"):
        return False  # wildcards do not reach the broker's own topics
    rules, levels = rule.split("/"), wanted.split("/")
    for index, granted in enumerate(rules):
        if granted == "#":
            return True
        if index >= len(levels) or levels[index] == "#":
            return False
        if granted not in ("+", levels[index]):
            return False
    return len(rules) == len(levels)


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    return all(
        ("#" not in level or (level == "#" and index == len(levels) - 1)) and ("+" not in level or level == "+")
        for index, level in enumerate(levels)
    )
