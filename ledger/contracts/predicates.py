"""Custom predicates of policies: CEL, cut down until it is deterministic and bounded (SEED_MAP S0-B3, SPEC 9.8).

The library is `common-expression-language` (Rust), pinned exactly: its behaviour is consensus, and SEMANTICS enters
every policy that uses it. Before it sees an expression, the tokens are checked here: whole numbers, plain text, known
variables, comparison, arithmetic and logic, and `all`/`exists` over the lists of the subject, not nested; lists are
asked, never joined. So evaluation costs at most as many steps as the expression has tokens times the longest list. An
expression that fails when it is evaluated (a division by zero, an overflow, a wrong type) or is not true or false
refuses the transaction.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

SEMANTICS: Final = "cel 0.10.0"
PREDICATES_MAX: Final = 8
EXPRESSION_LENGTH_MAX: Final = 512
TOKENS_MAX: Final = 128
DEPTH_MAX: Final = 12
"""Of brackets: the parser recurses, and gives up well above this."""
PROGRAMS_CACHED: Final = 256
NAME_LENGTH_MAX: Final = 64

SUBJECTS: Final[dict[str, dict[str, str]]] = {
    "key_block": {
        **dict.fromkeys(("link", "transmitter", "receiver", "proof", "method"), "text"),
        **dict.fromkeys(("block_number", "pulses", "detections", "sifted_bits", "sample_bits", "qber_ppm"), "number"),
        **dict.fromkeys(("leaked_bits", "secret_bits", "security_millibits", "height", "time_s"), "number"),
    },
    "delivery": {
        **dict.fromkeys(("master", "slave"), "text"),
        **dict.fromkeys(("path", "links"), "list of text"),
        **dict.fromkeys(("size_bits", "hops", "qber_ppm_max", "security_millibits_min"), "number"),
        **dict.fromkeys(("age_blocks_max", "height", "time_s"), "number"),
    },
    "device": {
        **dict.fromkeys(("device", "node"), "text"),
        **dict.fromkeys(("key_bits_min", "security_millibits_min", "height", "time_s"), "number"),
    },
}
"""What an expression may look at: subject → variable → type."""

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[0-9]{1,18})(?![0-9A-Za-z_.])|(?P<text>'[^'\\\r\n]*'|\"[^\"\\\r\n]*\")"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%<>!()\[\],?:.]))"
)
_SAMPLES: Final[dict[str, Any]] = {"text": "x", "number": 1, "list of text": ["x"]}
_METHODS: Final = ("startsWith", "endsWith", "contains")
_MACROS: Final = ("all", "exists")
_AFTER_SEARCH: Final = ("", ")", "]", ",", "&&", "||", "?", ":", "==", "!=")
"""What may follow `… in list`: nothing that binds tighter."""
_ITEM: Final = "item"
"""The one variable that `all` and `exists` may bind."""


class PredicateError(ValueError):
    """An expression that may not stand in a policy; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class Predicate:
    """One custom rule: what it is called, what it looks at, and the expression that must be true."""

    name: str
    subject: str
    expression: str

    def __post_init__(self) -> None:
        if type(self.name) is not str or not 1 <= len(self.name) <= NAME_LENGTH_MAX or not self.name.isprintable():
            raise PredicateError(f"a predicate's name is printable text of 1 to {NAME_LENGTH_MAX} characters")
        if type(self.subject) is not str or self.subject not in SUBJECTS:
            raise PredicateError(f"predicate {self.name}: on is one of {', '.join(SUBJECTS)}")
        if type(self.expression) is not str:
            raise PredicateError(f"predicate {self.name}: expression must be text")
        if reason := fault(self.subject, self.expression):
            raise PredicateError(f"predicate {self.name}: {reason}")

    def refusal(self, values: Mapping[str, Any]) -> str | None:
        """Return why the subject with these values does not pass, or None. Some 5 µs."""
        try:
            result = _program(self.expression)(dict(values))
        except BaseException as error:
            return f"the expression fails: {_failure(error)}"
        if result is True:
            return None
        return "the expression is not true" if result is False else "the expression is neither true nor false"


@lru_cache(maxsize=PROGRAMS_CACHED)
def fault(subject: str, expression: str) -> str | None:
    """Return why an expression is not allowed, or None: from its text alone, then by compiling it."""
    if len(expression) > EXPRESSION_LENGTH_MAX or not expression.isascii():
        return f"at most {EXPRESSION_LENGTH_MAX} characters of ASCII"
    try:
        tokens = _tokens(expression)
        _check_tokens(tokens, SUBJECTS[subject])
        sample = _program(expression)({name: _SAMPLES[kind] for name, kind in SUBJECTS[subject].items()})
        if not isinstance(sample, bool):
            return "it is neither true nor false"
    except (ArithmeticError, LookupError):
        return None  # it parses, and has no value for the sample
    except PredicateError as error:
        return str(error)
    except BaseException as error:
        failure = _failure(error)
        return f"it does not parse: {str(error).splitlines()[0][:120] if str(error) else failure}"
    return None


def _failure(error: BaseException) -> str:
    """Return the name of a failure of an expression; the library's own panics derive from BaseException."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error
    return type(error).__name__


@lru_cache(maxsize=PROGRAMS_CACHED)
def _program(expression: str) -> Callable[[dict[str, Any]], Any]:
    import cel  # loaded by the first policy that has a predicate; no other chain pays for it

    execute: Callable[[dict[str, Any]], Any] = cel.compile(expression).execute
    return execute


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position, end = 0, len(expression.rstrip())
    while position < end:
        found = _TOKEN.match(expression, position)
        if found is None or found.lastgroup is None:
            rest = expression[position:].strip()[:12]
            raise PredicateError(
                f"{rest!r} is not allowed: whole numbers, plain text in quotes, names and operators are"
            )
        tokens.append((found.lastgroup, found[found.lastgroup]))
        position = found.end()
    if not 1 <= len(tokens) <= TOKENS_MAX:
        raise PredicateError(f"it has {len(tokens)} parts; 1 to {TOKENS_MAX} are allowed")
    return tokens


def _check_tokens(tokens: list[tuple[str, str]], variables: Mapping[str, str]) -> None:
    depth, deepest = 0, 0
    macro_ends: list[int] = []  # bracket depths at which an `all` or `exists` is open
    for index, (kind, text) in enumerate(tokens):
        if kind == "sign":
            depth += text in ("(", "[")
            depth -= text in (")", "]")
            deepest = max(deepest, depth)
            if macro_ends and depth < macro_ends[-1]:
                macro_ends.pop()
            if text == "-" and _is_unary(tokens, index):
                _check_negated(tokens[index + 1] if index + 1 < len(tokens) else ("", ""))
            if text == "." and (index + 1 >= len(tokens) or tokens[index + 1][1] not in (*_METHODS, *_MACROS)):
                raise PredicateError(f"after a point stand {', '.join((*_METHODS, *_MACROS))}, nothing else")
        elif kind == "word":
            _check_word(tokens, index, variables, bool(macro_ends))
            if text in _MACROS:
                macro_ends.append(depth + 1)
    if deepest > DEPTH_MAX:
        raise PredicateError(f"brackets are nested {deepest} deep; {DEPTH_MAX} are allowed")


def _check_word(tokens: list[tuple[str, str]], index: int, variables: Mapping[str, str], inside_macro: bool) -> None:
    text = tokens[index][1]
    before = tokens[index - 1] if index else ("", "")
    if before[1] == "." and before[0] == "sign":
        if text in _MACROS:
            subject = tokens[index - 2] if index >= 2 else ("", "")
            if inside_macro or subject[0] != "word" or variables.get(subject[1]) != "list of text":
                raise PredicateError(f"{text} is for a list of the subject, and not inside another")
            if [each[1] for each in tokens[index + 1 : index + 4]] != ["(", _ITEM, ","]:
                raise PredicateError(f"{text} reads {text}({_ITEM}, …)")
        else:
            _check_method(tokens, index, variables)
    elif text == _ITEM:
        if not inside_macro:
            raise PredicateError(f"{_ITEM} has a meaning inside all(…) and exists(…) only")
    elif text == "size":
        following = [each[1] for each in tokens[index + 1 : index + 4]]
        if len(following) < 3 or following[0] != "(" or variables.get(following[1]) != "list of text":
            raise PredicateError("size is for a list of the subject")
    elif variables.get(text) == "list of text":
        _check_list(tokens, index, inside_macro)
    elif text not in variables and text not in ("true", "false", "in"):
        names = ", ".join(f"{name} ({kind})" for name, kind in variables.items())
        raise PredicateError(f"{text!r} is not known here; the variables are {names}")


def _check_list(tokens: list[tuple[str, str]], index: int, inside_macro: bool) -> None:
    """A list is asked, never copied: `path + path` inside a loop would cost the cube of its length."""
    before = tokens[index - 1][1] if index else ""
    after = tokens[index + 1][1] if index + 1 < len(tokens) else ""
    sized = index >= 2 and [each[1] for each in tokens[index - 2 : index]] == ["size", "("] and after == ")"
    searched = before == "in" and after in _AFTER_SEARCH and not inside_macro
    if not (sized or searched or after in (".", "[")):
        name = tokens[index][1]
        raise PredicateError(
            f"{name} stands in {name}.all|exists(…), size({name}), {name}[…], and outside of these in: … in {name}"
        )


def _check_negated(following: tuple[str, str]) -> None:
    """A negated bracket could be −(−2⁶³), which builds of the library answer differently; a variable cannot."""
    if following[0] not in ("number", "word"):
        raise PredicateError("a minus sign that stands alone is for a number or a variable; write 0 - (…)")


def _is_unary(tokens: list[tuple[str, str]], index: int) -> bool:
    before = tokens[index - 1] if index else ("sign", "(")
    return before == ("word", "in") or (before[0] == "sign" and before[1] not in (")", "]"))


def _check_method(tokens: list[tuple[str, str]], index: int, variables: Mapping[str, str]) -> None:
    text, subject = tokens[index][1], tokens[index - 2] if index >= 2 else ("", "")
    is_text = subject[0] == "word" and (subject[1] == _ITEM or variables.get(subject[1]) == "text")
    if text not in _METHODS or not is_text or tokens[index + 1 : index + 2] != [("sign", "(")]:
        raise PredicateError(f"after a point stands {', '.join(_METHODS)}, of a variable that is text, and (…)")
