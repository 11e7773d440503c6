"""The log: one JSON object per line, and no way for a secret into it."""

import io
import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from protocol.keys import KeyMaterial
from qnode import telemetry

SECRET = b"\x13\x37SECRETKEYBITS"
SECRETS = st.sampled_from([SECRET, bytearray(SECRET), memoryview(SECRET), KeyMaterial(SECRET)])
NESTED = st.recursive(
    SECRETS | st.text(max_size=5) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), NESTED, max_size=4))
def test_no_secret_passes_however_deep(event: dict[str, object]) -> None:
    text = json.dumps(
        telemetry.refuse_secrets(None, "info", dict(event)), default=lambda value: pytest.fail(str(value))
    )
    assert "SECRETKEYBITS" not in text
    assert SECRET.hex() not in text


def test_a_refused_value_is_named() -> None:
    clean = telemetry.refuse_secrets(None, "info", {"a": {"key": KeyMaterial(SECRET)}, "b": [1, SECRET]})
    assert clean == {
        "a": {"key": "<KeyMaterial, refused>"},
        "b": [1, "<bytes, refused>"],
        "refused": ["a.key", "b[1]"],
    }


def test_an_object_is_shown_by_its_type_alone() -> None:
    class Holder:
        def __repr__(self) -> str:
            return "SECRETKEYBITS"

    assert telemetry.refuse_secrets(None, "info", {"x": Holder()}) == {"x": "<Holder>"}


def test_lines_are_json_with_level_time_and_node() -> None:
    stream, handlers = io.StringIO(), logging.getLogger().handlers[:]
    try:
        log = telemetry.configure("info", "node-7", stream)
        log.debug("not this")
        log.log(20, "block distilled", link="link-1-2", qber=0.01)
        logging.getLogger("asyncio").error("from a library: %s", "x")
        try:
            raise RuntimeError("boom")
        except RuntimeError as error:
            log.error("failed", exc_info=error)
    finally:
        logging.getLogger().handlers[:] = handlers
        structlog.reset_defaults()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["block distilled", "from a library: x", "failed"]
    assert {line["node"] for line in lines} == {"node-7"}
    assert lines[0]["level"] == "info"
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[1]["library"] == "asyncio"
    assert "RuntimeError: boom" in lines[2]["exception"]
