"""Key policies as data (SEED_MAP S0-B3, SPEC 9.5): what a policy document may say, its canonical bytes, its checks.

Users write TOML or JSON with tables; the chain holds integers and text only: a sorted array of (rule, value). What the
rules do is in `policies`; what custom predicates may say is in `predicates`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from ledger.contracts.predicates import (
    PREDICATES_MAX,
    SEMANTICS,
    Predicate,
    PredicateError,
)
from ledger.encoding import MalformedEncoding, as_array, pack, unpack
from ledger.genesis import NAME_LENGTH_MAX

FORMAT: Final = 1
DOCUMENT_SIZE_BYTES_MAX: Final = 2800
"""Fits an action, and that a proposal, and that a transaction of 4,096 bytes."""
NAMES_MAX: Final = 64
"""Entries of one list: what needs more is better said by a pattern or by a second policy."""
HEIGHTS_MAX: Final = 1 << 40
DOCUMENTS_CACHED: Final = 128
RETENTION_LIFETIMES_MIN: Final = 2
"""A key may be delivered until its block's lifetime ends, and its proof names that block."""


class PolicyError(ValueError):
    """A policy document that cannot be; the message names the member and says what to give."""


Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a rule is written and stored. `scale` turns the user's number into the stored integer."""

    kind: str  # "number", "names", "pairs"
    low: int = 0
    high: int = 2**62
    scale: int = 1
    fraction: bool = False  # whether the user's number may have a fraction


_HEIGHTS = _Rule("number", 1, HEIGHTS_MAX)
_COUNT = _Rule("number", 1, 2**40)
_SECURITY = _Rule("number", 0, 1_000_000, 1000, True)
RULES: Final[dict[str, _Rule]] = {
    "select.links": _Rule("names"),
    "select.nodes": _Rule("names"),
    "select.pairs": _Rule("pairs"),
    "select.devices": _Rule("names"),
    "key_block.qber_max": _Rule("number", 0, 1_000_000, 1_000_000, True),
    "key_block.secret_bits_min": _COUNT,
    "key_block.security_bits_min": _SECURITY,
    "key_block.pulses_min": _COUNT,
    "lifetime.blocks": _HEIGHTS,
    "lifetime.seconds": _Rule("number", 1, 10**10),
    "retention.blocks": _HEIGHTS,
    "delivery.quota_keys": _COUNT,
    "delivery.quota_window_blocks": _HEIGHTS,
    "delivery.block_uses_max": _COUNT,
    "delivery.pairs_allow": _Rule("pairs"),
    "delivery.pairs_deny": _Rule("pairs"),
    "route.avoid_nodes": _Rule("names"),
    "route.hops_max": _Rule("number", 1, 63),
    "route.disjoint_paths_min": _Rule("number", 2, 8),
    "suspension.aborts": _Rule("number", 1, 64),
    "suspension.window_blocks": _HEIGHTS,
    "suspension.clean_blocks": _Rule("number", 1, 1000),
    "device.key_bits_min": _Rule("number", 1, 4096),
    "device.security_bits_min": _SECURITY,
}
_TOGETHER: Final = (
    ("delivery.quota_keys", "delivery.quota_window_blocks"),
    ("suspension.aborts", "suspension.window_blocks"),
    ("suspension.window_blocks", "suspension.aborts"),
    ("suspension.clean_blocks", "suspension.aborts"),
    ("delivery.quota_window_blocks", "delivery.quota_keys"),
    ("retention.blocks", "lifetime.blocks"),
)


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """One policy, checked on construction: `values` maps rules to stored values, in their order."""

    name: str
    values: tuple[tuple[str, Any], ...]
    predicates: tuple[Predicate, ...] = ()

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        if [rule for rule, _ in self.values] != sorted({rule for rule, _ in self.values}):
            raise PolicyError("rules must be sorted, each once")
        for rule, value in self.values:
            if rule not in RULES:
                raise PolicyError(f"{rule!r} is not a rule; the rules are {', '.join(RULES)}")
            _CHECKS[RULES[rule].kind](rule, value)
        given = {rule for rule, _ in self.values}
        for one, other in _TOGETHER:
            if one in given and other not in given:
                raise PolicyError(f"{one} needs {other} as well")
        self._check_retention()
        if not self.predicates and all(rule.startswith("select.") for rule in given):
            raise PolicyError(f"it rules nothing; the rules are {', '.join(RULES)} and [[predicate]]")
        if len(self.predicates) > PREDICATES_MAX:
            raise PolicyError(f"predicate: at most {PREDICATES_MAX}")

    def _check_retention(self) -> None:
        kept, lifetime = self.value("retention.blocks"), self.value("lifetime.blocks")
        if kept is None:
            return
        if any(rule.startswith("select.") for rule, _ in self.values):
            raise PolicyError("retention.blocks is for the whole chain: put it into a policy without [select]")
        if kept < RETENTION_LIFETIMES_MIN * lifetime:
            raise PolicyError(
                f"retention.blocks is {kept}; it must be {RETENTION_LIFETIMES_MIN} lifetimes "
                f"({RETENTION_LIFETIMES_MIN * lifetime}) at least, so that the latest delivery is kept for one"
            )

    def value(self, rule: str) -> Any:
        """Return a rule's stored value, or None."""
        return dict(self.values).get(rule)

    @property
    def encoded(self) -> bytes:
        """The canonical bytes, with the version of the predicates' semantics."""
        predicates = tuple((each.name, each.subject, each.expression) for each in self.predicates)
        return pack((FORMAT, SEMANTICS if predicates else "", self.name, self.values, predicates))

    def described(self) -> dict[str, Any]:
        """Return the document as a user writes it."""
        document: dict[str, Any] = {"name": self.name}
        for rule, value in self.values:
            table, _, member = rule.partition(".")
            document.setdefault(table, {})[member] = _shown(RULES[rule], value)
        if self.predicates:
            document["predicate"] = [
                {"name": each.name, "on": each.subject, "expression": each.expression} for each in self.predicates
            ]
        return document


@lru_cache(maxsize=DOCUMENTS_CACHED)
def decode_policy(data: bytes) -> PolicyDocument:
    """Return the policy of canonical bytes. Raises PolicyError, and nothing else."""
    if len(data) > DOCUMENT_SIZE_BYTES_MAX:
        raise PolicyError(f"longer than {DOCUMENT_SIZE_BYTES_MAX} bytes; split it into two policies")
    try:
        version, semantics, name, values, predicates = as_array(unpack(data), 5)
        rules = tuple((_text(rule), value) for rule, value in map(_pair, as_array(values)))
        customs = tuple(Predicate(*as_array(each, 3)) for each in as_array(predicates))
        if version != FORMAT or semantics != (SEMANTICS if customs else ""):
            raise PolicyError("it was written for another version; propose it again with this one's `qnode policy set`")
        document = PolicyDocument(name, rules, customs)
    except (MalformedEncoding, PredicateError, TypeError, ValueError) as error:
        raise PolicyError(str(error)) from None
    if document.encoded != data:
        raise PolicyError("not in the canonical form")
    return document


def policy_from_document(document: Any) -> PolicyDocument:
    """Return the policy that a user wrote as tables. Raises PolicyError."""
    if not isinstance(document, dict):
        raise PolicyError("a policy is a table with a name and rules")
    tables = dict(document)
    name, predicates = tables.pop("name", None), tables.pop("predicate", [])
    tables.pop("description", None)
    values: dict[str, Any] = {}
    known = sorted({rule.partition(".")[0] for rule in RULES})
    for table, members in tables.items():
        if table not in known:
            raise PolicyError(f"[{table}] is unknown; the tables are {', '.join(known)}, [[predicate]] and name")
        if not isinstance(members, dict):
            raise PolicyError(f"[{table}] must be a table")
        for member, value in members.items():
            rule = f"{table}.{member}"
            if rule not in RULES:
                choices = ", ".join(each.partition(".")[2] for each in RULES if each.startswith(f"{table}."))
                raise PolicyError(f"{rule} is unknown; [{table}] has {choices}")
            values[rule] = _stored(rule, value)
    built = PolicyDocument(name or "", tuple(sorted(values.items())), tuple(map(_predicate, _list(predicates))))
    if len(built.encoded) > DOCUMENT_SIZE_BYTES_MAX:
        raise PolicyError(f"longer than {DOCUMENT_SIZE_BYTES_MAX} bytes; split it into two policies")
    return built


def matches(pattern: str, name: str) -> bool:
    """Say whether a name is meant by a pattern: equal, or beginning with it up to a final `*`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PolicyError("predicate must be an array of tables: [[predicate]]")
    return value


def _predicate(entry: Any) -> Predicate:
    if not isinstance(entry, dict) or set(entry) != {"name", "on", "expression"}:
        raise PolicyError("each [[predicate]] has name, on and expression")
    try:
        return Predicate(entry["name"], entry["on"], entry["expression"])
    except PredicateError as error:
        raise PolicyError(str(error)) from None


def _stored(rule: str, value: Any) -> Any:
    described = RULES[rule]
    if described.kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PolicyError(f"{rule} is {value!r}; it must be a number")
        if isinstance(value, float) and not described.fraction:
            raise PolicyError(f"{rule} is {value!r}; it must be a whole number")
        return round(value * described.scale)
    if not isinstance(value, list):
        raise PolicyError(f"{rule} must be a list")
    if described.kind == "pairs":
        return tuple(sorted(tuple(pair) if isinstance(pair, list) else pair for pair in value))
    return tuple(sorted(value))


def _shown(rule: _Rule, value: Any) -> Any:
    if rule.kind == "number":
        return value / rule.scale if rule.fraction else value
    return [list(each) if isinstance(each, tuple) else each for each in value]


def _pair(value: Any) -> tuple[Any, ...]:
    return as_array(value, 2)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise PolicyError("a rule's name must be text")
    return value


def _check_text(what: str, value: Any) -> None:
    if type(value) is not str or not 1 <= len(value) <= NAME_LENGTH_MAX or not value.isprintable():
        raise PolicyError(f"{what} must be printable text of 1 to {NAME_LENGTH_MAX} characters")


def _check_number(rule: str, value: Any) -> None:
    described = RULES[rule]
    if type(value) is not int or not described.low <= value <= described.high:
        low, high = described.low / described.scale, described.high / described.scale
        raise PolicyError(f"{rule} must be from {low:g} to {high:g}")


def _check_list(rule: str, value: Any) -> None:
    if type(value) is not tuple or not 1 <= len(value) <= NAMES_MAX or list(value) != sorted(set(value)):
        raise PolicyError(f"{rule} must list 1 to {NAMES_MAX} different entries")


def _check_names(rule: str, value: Any) -> None:
    for name in value if type(value) is tuple else ():
        _check_text(f"every entry of {rule}", name)
    _check_list(rule, value)


def _check_pairs(rule: str, value: Any) -> None:
    for pair in value if type(value) is tuple else ():
        if type(pair) is not tuple or len(pair) != 2:
            raise PolicyError(f"every entry of {rule} is [master SAE, slave SAE]")
        for name in pair:
            _check_text(f"every SAE of {rule}", name)
    _check_list(rule, value)


_CHECKS: Final[dict[str, Callable[[str, Any], None]]] = {
    "number": _check_number,
    "names": _check_names,
    "pairs": _check_pairs,
}
