"""The configuration table that people read, made of the settings' own words."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from qnode.settings import (
    ApiSettings,
    DeviceSettings,
    LedgerSettings,
    LinkSettings,
    NodeSettings,
    PeerSettings,
    PeerToPeerSettings,
    PoolSettings,
    Setting,
)


def describe() -> Iterator[tuple[str, str, dataclasses.Field[Any], Setting]]:
    """Yield (table, key, field, setting) for every configuration key, in the order of the records."""
    tables = {
        "": NodeSettings,
        "peer_to_peer": PeerToPeerSettings,
        "api": ApiSettings,
        "pool": PoolSettings,
        "ledger": LedgerSettings,
        "devices": DeviceSettings,
        "[peers]": PeerSettings,
        "link.<link_id>": LinkSettings,
    }
    for table, cls in tables.items():
        for field in dataclasses.fields(cls):
            described = field.metadata.get("setting")
            if described is not None:
                yield table, field.name, field, described


def markdown_tables() -> str:
    """Return the configuration tables of `docs/configuration.md`, one per TOML table."""
    lines: list[str] = []
    current = None
    for table, key, field, described in describe():
        if table != current:
            current = table
            lines += ["", f"### {f'`[{table}]`' if table else 'Top level'}", ""]
            lines += ["| key | unit | range | default | why |", "|---|---|---|---|---|"]
        default = "required" if field.default is dataclasses.MISSING else _plain(field.default)
        lines.append(f"| `{key}` | {described.unit} | {_range(described)} | {default} | {described.why} |")
    return "\n".join([*lines[1:], ""])


def _range(described: Setting) -> str:
    if described.choices:
        return ", ".join(described.choices)
    if described.low is None or described.high is None:
        return "1–63 letters, digits, `.`, `_`, `-`" if described.name else "–"
    return f"{_plain(described.low)} – {_plain(described.high)}"


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int | float) else f"`{value}`"
