"""Finds and reads scenarios: shipped ones by name, others by path, with `extends` and overrides from the command line.

Every mistake is an error that names the file, the place, and what would be right.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtest.scenarios.model import Scenario, ScenarioError

DEPTH_MAX: Final = 8
"""Scenarios that extend each other; more is a circle."""


def shipped() -> dict[str, str]:
    """Return the shipped scenarios, name → text of the file."""
    entries = resources.files("loadtest.scenarios").iterdir()
    found = {e.name.removesuffix(".toml"): e.read_text("utf-8") for e in entries if e.name.endswith(".toml")}
    return dict(sorted(found.items()))


def load(name: str, overrides: Sequence[str] = (), nodes: Sequence[int] | None = None) -> Scenario:
    """Return the scenario called `name` (shipped, or a path ending in .toml) with `key.path=value` overrides.

    Raises ScenarioError.
    """
    document = _document(name, 0)
    if nodes is not None:
        document["nodes"] = list(nodes)
    for override in overrides:
        _override(document, override)
    return from_document(document, name)


def from_document(document: Mapping[str, Any], name: str = "scenario") -> Scenario:
    """Return the scenario that plain values describe. Raises ScenarioError."""
    try:
        return msgspec.convert(document, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{name}: {_explained(str(error), document)}") from None


def _document(name: str, depth: int) -> dict[str, Any]:
    if depth > DEPTH_MAX:
        raise ScenarioError(f"{name}: more than {DEPTH_MAX} scenarios extend each other; is it a circle?")
    text, beside = _text(name)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{name}: not valid TOML: {error}") from None
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise ScenarioError(f"{name}: extends must be the name of a scenario or a file ending in .toml, in quotes")
    if base.endswith(".toml") and beside is not None:
        base = str(beside / base)
    return _merged(_document(base, depth + 1), document)


def _text(name: str) -> tuple[str, Path | None]:
    if not name.endswith(".toml"):
        scenarios = shipped()
        if name not in scenarios:
            raise ScenarioError(
                f"{name!r} is not a scenario; there are {', '.join(scenarios)} (`python -m loadtest list`), "
                "or give the path of a file ending in .toml"
            )
        return scenarios[name], None
    try:
        return Path(name).read_text("utf-8"), Path(name).resolve().parent
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; every other value, lists too, replaces the one below it."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _override(document: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value`; numbers in the path are places in a list; the value is TOML, or bare text."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ScenarioError(f"--set {override}: write KEY=VALUE, such as --set duration_s=60 or clients.0.rate_per_s=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = path.split(".")
    place: Any = document
    for at, step in enumerate(parents):
        place = _step(place, step, ".".join(parents[: at + 1]), override)
    if isinstance(place, list):
        _step(place, last, path, override)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ScenarioError(f"--set {override}: nothing is below {'.'.join(parents)}")


def _step(place: Any, step: str, path: str, override: str) -> Any:
    if isinstance(place, list):
        if not step.isdigit() or int(step) >= len(place):
            raise ScenarioError(f"--set {override}: {path} is not there; the list has {len(place)} entries, from 0 on")
        return place[int(step)]
    if not isinstance(place, dict):
        raise ScenarioError(f"--set {override}: nothing is below {path.rpartition('.')[0]}")
    return place.setdefault(step, {})


def _explained(error: str, document: Mapping[str, Any]) -> str:
    """Add to the library's message the valid keys of the table it speaks of."""
    message, _, where = error.partition(" - at `$")
    place = where.rstrip("`").lstrip(".") or "the top level"
    if "unknown field" not in message:
        return f"{place}: {message}"
    kind = _record_at(place)
    known = ", ".join(kind.__struct_fields__) if kind is not None else "in docs/loadtest.md"
    return f"{place}: {message.replace('Object contains unknown field', 'unknown key')}; the valid keys are {known}"


def _record_at(place: str) -> type[msgspec.Struct] | None:
    """Return the record type of a place such as `clients[0]` or `network.shaping`."""
    current: type[msgspec.Struct] | None = Scenario
    if place == "the top level":
        return current
    for step in place.replace("[...]", "").split("."):
        name = step.partition("[")[0]
        if current is None:
            return None
        fields = {field.name: field.type for field in msgspec.structs.fields(current)}
        current = next(iter(_structs(fields.get(name))), None)
    return current


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for argument in getattr(hint, "__args__", ()):
        yield from _structs(argument)
