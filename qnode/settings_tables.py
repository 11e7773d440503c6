"""From the tables of a parsed TOML file to the records of `qnode.settings`: every key known, typed and in range.

Decides only how a bad value is named; what is good, the records say.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from qnode.settings import (
    LINK_TABLES,
    NAME_PATTERN,
    PHYSICS_TABLES,
    LinkSettings,
    NodeSettings,
    Setting,
    SettingsError,
    listed,
    require,
)

_T = TypeVar("_T")


def from_mapping(
    document: Mapping[str, Any], base_directory: Path, profiles: Mapping[str, Mapping[str, Any]]
) -> NodeSettings:
    """Build the settings from a parsed TOML document.

    `base_directory` is what relative paths are relative to; `profiles` maps profile names to link tables. Raises
    SettingsError naming the key, the value and the valid names or range.
    """
    tables = dict(document)
    links = tables.pop("link", {})
    require(isinstance(links, Mapping), "[link.<link_id>] must be tables")
    built = tuple(_link(str(link_id), table, base_directory, profiles) for link_id, table in links.items())
    known = [name for name in _keys(NodeSettings) if name != "links"] + ["link"]
    _refuse_unknown(tables, known, "")
    return _record(NodeSettings, tables, base_directory, "", {"links": built})


def check_tables(tables: Mapping[str, Any]) -> None:
    """Check some tables of a node's file, in which keys that a node needs may be missing. Raises SettingsError."""
    hints = get_type_hints(NodeSettings)
    kinds = {
        name: next(filter(dataclasses.is_dataclass, (hint, *get_args(hint))), None) for name, hint in hints.items()
    }
    _refuse_unknown(tables, [name for name, kind in kinds.items() if kind is not None and name != "links"], "")
    for name, table in tables.items():
        cls = kinds[name]
        assert isinstance(cls, type)
        require(isinstance(table, Mapping), f"[{name}] must be a table")
        if not [key for key in _required(cls) if key not in table]:
            _value(table, cls, None, Path(), name)
            continue
        _refuse_unknown(table, _keys(cls), name)
        described = {field.name: field.metadata.get("setting") for field in dataclasses.fields(cls)}
        for key, value in table.items():
            _value(value, get_type_hints(cls)[key], described[key], Path(), f"{name}.{key}")


def _required(cls: type) -> list[str]:
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


def _link(link_id: str, table: Any, base_directory: Path, profiles: Mapping[str, Mapping[str, Any]]) -> LinkSettings:
    where = f"link.{link_id}"
    require(isinstance(table, Mapping), f"[{where}] must be a table")
    require(NAME_PATTERN.fullmatch(link_id) is not None, f"[{where}]: {link_id!r} is not a valid name")
    own = {key: value for key, value in table.items() if key not in LINK_TABLES}
    _refuse_unknown(table, ["pre_shared_secret", "block_pulses", "profile", *LINK_TABLES], where)
    profile_name = str(own.get("profile", "metro"))
    if profile_name not in profiles:
        raise SettingsError(f"{where}.profile is {profile_name!r}; the profiles are {listed(profiles)}")
    profile = profiles[profile_name]
    _refuse_unknown(profile, ["block_pulses", *LINK_TABLES], f"profile {profile_name}")
    physics = {name: _merged(profile, table, name, where) for name in PHYSICS_TABLES}
    distillation = _merged(profile, table, "distillation", where)
    given = {"link_id": link_id, "physics": physics, "distillation": distillation}
    own = {"profile": profile_name, **{k: profile[k] for k in ("block_pulses",) if k in profile}, **own}
    return _record(LinkSettings, own, base_directory, where, given)


def _merged(profile: Mapping[str, Any], table: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    override = table.get(name, {})
    require(isinstance(override, Mapping), f"[{where}.{name}] must be a table")
    return {**profile.get(name, {}), **override}


def _record(cls: type[_T], table: Mapping[str, Any], base: Path, where: str, given: Mapping[str, Any]) -> _T:
    """Build one settings record from its table: every key known, typed and in range."""
    hints = get_type_hints(cls)
    values = dict(given)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # every caller passes a record of `settings`
        if field.name in values:
            continue
        path = f"{where}.{field.name}" if where else field.name
        if field.name in table:
            values[field.name] = _value(table[field.name], hints[field.name], field.metadata.get("setting"), base, path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{path} is missing; add it to the configuration ({_meaning(field)})")
    try:
        return cls(**values)
    except SettingsError as error:
        raise SettingsError(f"[{where}] {error}" if where else str(error)) from None


def _value(value: Any, hint: Any, described: Setting | None, base: Path, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        require(isinstance(value, Mapping), f"[{path}] must be a table")
        _refuse_unknown(value, _keys(hint), path)
        return _record(hint, value, base, path, {})
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        require(isinstance(value, list), f"[[{path}]] must be a list of tables")
        return tuple(_value(each, item, described, base, f"{path}[{index}]") for index, each in enumerate(value))
    assert described is not None, f"{path} is declared without setting()"
    kind = next(each for each in (get_args(hint) or (hint,)) if each is not type(None))
    return _scalar(value, kind, described, base, path)


def _scalar(value: Any, kind: type, described: Setting, base: Path, path: str) -> Any:
    accepted: tuple[Any, ...] = {Path: (str,), float: (int, float)}.get(kind, (kind,))
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise SettingsError(f"{path} is {value!r}; it must be {_kind_name(kind)} ({described.unit})")
    if isinstance(value, int | float):
        low, high = described.low, described.high
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise SettingsError(f"{path} is {value} {described.unit}; it must be from {low:,} to {high:,}")
    elif not value:
        raise SettingsError(f"{path} is empty; it must be {_kind_name(kind)} ({described.unit})")
    elif described.choices and value not in described.choices:
        raise SettingsError(f"{path} is {value!r}; it must be one of {', '.join(described.choices)}")
    elif described.name and NAME_PATTERN.fullmatch(str(value)) is None:
        raise SettingsError(f"{path} is {value!r}; a name has 1 to 63 letters, digits, '.', '_' or '-'")
    if kind is Path:
        return base / str(value)
    return float(value) if kind is float else value


def _refuse_unknown(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in table:
        if key not in known:
            place = f"[{where}]" if where else "the top level"
            raise SettingsError(f"unknown key {key!r} in {place}; the valid keys are {listed(known)}")


def _keys(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _meaning(field: dataclasses.Field[Any]) -> str:
    described = field.metadata.get("setting")
    return f"{described.unit}: {described.why}" if described else "a table"


def _kind_name(kind: type) -> str:
    return {Path: "a path in quotes", str: "text in quotes", int: "a whole number", float: "a number"}[kind]
