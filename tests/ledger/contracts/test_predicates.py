"""SPEC 9.8: what expressions may say, that every other text is refused, and what evaluation answers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.contracts.predicates import SEMANTICS, SUBJECTS, Predicate, PredicateError, fault

VALUES: dict[str, Any] = {
    "master": "a",
    "slave": "b",
    "path": ["a", "c", "b"],
    "links": ["a-c", "c-b"],
    "size_bits": 256,
    "hops": 2,
    "qber_ppm_max": 20_000,
    "security_millibits_min": 33_000,
    "age_blocks_max": 3,
    "height": 10,
    "time_s": 100,
}


def test_the_library_is_the_pinned_one() -> None:
    from importlib.metadata import version

    assert f"cel {version('common-expression-language')}" == SEMANTICS


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("true", True),
        ("size_bits >= 256", True),
        ("size_bits % 256 == 1", False),
        ("master == 'a' && !(slave == \"a\")", True),
        ("path.all(item, item != 'd') && links.exists(item, item.startsWith('c-'))", True),
        ("path.exists(item, item == 'd')", False),
        ("size(path) - 1 == hops", True),
        ("path[1] == 'c'", True),
        ("'c' in path", True),
        ("master in ['x', 'y']", False),
        ("hops > 1 ? qber_ppm_max < 30000 : true", True),
        ("-7 / 2 == -3 && -7 % 2 == -1", True),
        ("false && 1 / 0 == 1 || true", True),
        ("1 / 0 == 1 || true", True),
    ],
)
def test_expressions(expression: str, passes: bool) -> None:
    assert (Predicate("x", "delivery", expression).refusal(VALUES) is None) == passes


@pytest.mark.parametrize(
    "expression",
    [
        "1 / 0 == 1",
        "1 % 0 == 1",
        "path[9] == 'x'",
        "999999999999999999 * 999999999999999999 > 0",
        "hops > 1 ? hops : true",
    ],
)
def test_what_fails_or_is_no_answer_refuses(expression: str) -> None:
    assert Predicate("x", "delivery", expression).refusal(VALUES) is not None


@pytest.mark.parametrize(
    "expression",
    [
        *("", "1.5 < 2", "1e3 > 2", "1u == 1", "0x10 == 16", "9999999999999999999 > 1", "unknown == 1", "qber_ppm > 1"),
        *("now() > 1", "timestamp('2026-01-01T00:00:00Z') > 1", "duration('1s')", "double(1) > 2", "string(1) == '1'"),
        *("master.matches('a+')", "matches(master, 'a')", "master.size() == 1", "size(master) == 1", "has(path.x)"),
        *("path.map(item, item)", "path.filter(item, true)", "[1, 2].all(item, true)", "{'a': 1}.a == 1"),
        *(
            "path.all(x, true)",
            "path.all(item, links.all(item, true))",
            "item == 1",
            "'a\\n' == master",
            "'ä' == master",
        ),
        *("path.all(item, true) && item == 'a'", "r'a' == master", "b'a' == master", "'a'.startsWith('a')"),
        *("master.x", "master . x", "size", "size(1)", "true true", "(true", "true)", "== 1", "&&", "hops == 1 ;"),
        *(
            "path + path == path",
            "path.all(item, item in path)",
            "'a' in path + links",
            "'a' in (path)",
            "path == links",
        ),
        *("[path] == [path]", "-(hops) == 1", "1 - -(hops) == 1", "--1 == 1", "-"),
        *("null == 1", "type(hops) == int", "dyn(hops) == 1", "true" + " && true" * 70, "(" * 13 + "true" + ")" * 13),
        *(
            "'" + "x" * 600 + "' == master",
            "master.startsWith",
            "import('os')",
            "hops",
            "hops + 1",
            "__class__",
            "path.__class__",
        ),
    ],
)
def test_everything_else_is_refused(expression: str) -> None:
    with pytest.raises(PredicateError):
        Predicate("x", "delivery", expression)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_variable_of_a_subject_has_its_type(subject: str) -> None:
    asked = {"text": "{} == 'x'", "number": "{} == 1", "list of text": "'x' in {}"}
    values: dict[str, Any] = {"text": "x", "number": 1, "list of text": ["x"]}
    for name, kind in SUBJECTS[subject].items():
        predicate = Predicate("x", subject, asked[kind].format(name))
        assert predicate.refusal({name: values[kind] for name, kind in SUBJECTS[subject].items()}) is None


class Panic(BaseException):
    """What the library's own failures are: not an Exception."""


def test_a_panic_of_the_library_refuses_and_an_interrupt_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    predicate = Predicate("x", "delivery", "hops == 2")
    for raised in (Panic(), KeyboardInterrupt()):

        def fails(values: dict[str, Any], raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr("ledger.contracts.predicates._program", lambda expression, fails=fails: fails)
        if isinstance(raised, Panic):
            assert predicate.refusal(VALUES) == "the expression fails: Panic"
        else:
            with pytest.raises(KeyboardInterrupt):
                predicate.refusal(VALUES)


@given(st.text(alphabet="()[]'\"&|!=<>+-*/%?:,. item path all size 019 true master", max_size=60))
def test_any_text_is_allowed_or_refused_and_then_answers(expression: str) -> None:
    """Nothing that passes the check ever does more than answer: no exception leaves `refusal`."""
    if fault("delivery", expression) is None:
        predicate = Predicate("x", "delivery", expression)
        assert predicate.refusal(VALUES) == predicate.refusal(dict(reversed(VALUES.items())))
