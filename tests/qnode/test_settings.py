"""Settings: every key known, typed, in range; messages that name key, value and way out; the written table."""

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.quantum.link import LinkParameters
from protocol.quantum.plan import plan_link
from qnode import settings_reference, settings_tables
from qnode.io import configuration
from qnode.settings import NodeSettings, SettingsError

BASE = Path("/cluster")
PROFILES: dict[str, dict[str, Any]] = {
    "metro": {"block_pulses": 20_000, "channel": {"length_km": 25.0, "kind": "fibre"}},
    "bare": {},
}
DOCUMENT: dict[str, Any] = {
    "node_id": "node-1",
    "genesis": "genesis.json",
    "state_directory": "node-1/state",
    "identity_key": "/secrets/identity.key",
    "peer_to_peer": {"listen_port": 7400, "ca": "ca.crt", "certificate": "peer.crt"},
    "api": {"listen_port": 7401, "ca": "ca.crt", "certificate": "api.crt", "key": "api.key"},
    "peers": [{"node_id": "node-2", "host": "localhost", "port": 7402}],
    "link": {"link-1-2": {"pre_shared_secret": "link.psk", "channel": {"length_km": 40.0}}},
}


def read(document: dict[str, Any]) -> NodeSettings:
    return settings_tables.from_mapping(document, BASE, PROFILES)


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


def test_a_whole_document_is_read() -> None:
    found = read(DOCUMENT)
    assert found.genesis == BASE / "genesis.json"
    assert found.identity_key == Path("/secrets/identity.key")
    assert found.seed is None
    assert found.pool.default_key_size_bits == 256
    assert found.peers[0].port == 7402
    link = found.link("link-1-2")
    assert link.block_pulses == 20_000
    assert link.physics == {"source": {}, "channel": {"kind": "fibre", "length_km": 40.0}, "detector": {}}
    assert link.distillation == {}


def test_a_link_may_override_the_profiles_block() -> None:
    found = read(changed(lambda d: d["link"]["link-1-2"].update(block_pulses=50_000)))
    assert found.link("link-1-2").block_pulses == 50_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(nod_id="x"),
            "unknown key 'nod_id' in the top level; the valid keys are api, devices, entropy, genesis",
        ),
        (lambda d: d["api"].update(prot=1), r"unknown key 'prot' in \[api\]; the valid keys are ca, certificate, key"),
        (lambda d: d["peers"][0].update(prot=1), r"unknown key 'prot' in \[peers\[0\]\]"),
        (lambda d: d["link"]["link-1-2"].update(chanel={}), r"unknown key 'chanel' in \[link.link-1-2\]"),
        (lambda d: d["link"]["link-1-2"].update(profile="moon"), "'moon'; the profiles are bare, metro"),
        (lambda d: d["link"]["link-1-2"].update(channel=3), r"\[link.link-1-2.channel\] must be a table"),
        (lambda d: d["link"]["link-1-2"].pop("pre_shared_secret"), "link.link-1-2.pre_shared_secret is missing"),
        (lambda d: d["link"].update({"a/b": {}}), "'a/b' is not a valid name"),
        (lambda d: d.pop("genesis"), "genesis is missing; add it"),
        (lambda d: d["api"].pop("key"), "api.key is missing"),
        (lambda d: d["api"].update(listen_port=70_000), "api.listen_port is 70000 port; it must be from 0 to 65,535"),
        (lambda d: d["api"].update(listen_port="7401"), "api.listen_port is '7401'; it must be a whole number"),
        (lambda d: d["api"].update(listen_port=True), "api.listen_port is True; it must be a whole number"),
        (lambda d: d["api"].update(listen_port=1.5), "it must be a whole number"),
        (lambda d: d["peer_to_peer"].update(ping_interval_s=math.nan), "ping_interval_s is nan"),
        (lambda d: d["peer_to_peer"].update(ping_interval_s=30), r"\[peer_to_peer\] idle_timeout_s must exceed"),
        (lambda d: d.update(pool={"default_key_size_bits": 257}), r"\[pool\] default_key_size_bits must be a multiple"),
        (lambda d: d.update(pool={"min_key_size_bits": 512}), "min_key_size_bits ≤ default_key_size_bits"),
        (lambda d: d.update(log_level="loud"), "log_level is 'loud'; it must be one of debug, info"),
        (lambda d: d.update(node_id="../x"), "node_id is '../x'; a name has"),
        (lambda d: d.update(node_id=""), "node_id is empty"),
        (lambda d: d.update(peers={"node_id": "x"}), r"\[\[peers\]\] must be a list"),
        (lambda d: d["peers"].append(dict(d["peers"][0])), "lists node-2 more than once"),
        (lambda d: d["peers"][0].update(node_id="node-1"), "lists this node itself"),
        (lambda d: d.update(api=7), r"\[api\] must be a table"),
        (lambda d: d.update(link=[1]), "must be tables"),
    ],
)
def test_what_cannot_run_is_refused_with_the_way_out(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(changed(change))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*DOCUMENT, "pool", "log_level", "seed"]), JSON)
def test_any_value_is_read_or_refused(key: str, value: Any) -> None:
    with contextlib.suppress(SettingsError):
        assert isinstance(read({**DOCUMENT, key: value}), NodeSettings)


def test_an_unknown_link_is_named() -> None:
    with pytest.raises(SettingsError, match=r"\[link.x\] is missing; this node configures link-1-2"):
        read(DOCUMENT).link("x")


def test_every_default_is_in_its_range() -> None:
    for table, key, field, described in settings_reference.describe():
        if isinstance(field.default, int | float) and field.default is not None:
            assert described.low is not None and described.high is not None, f"{table}.{key} has no range"
            assert described.low <= field.default <= described.high


def test_the_written_table_is_the_one_the_code_has() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
    start, end = text.index("<!-- settings -->"), text.index("<!-- end of settings -->")
    assert text[start:end].removeprefix("<!-- settings -->\n") == settings_reference.markdown_tables()


def test_every_profile_of_the_package_gives_key() -> None:
    assert "metro" in configuration.profiles()
    for name in configuration.profiles():
        table = {"pre_shared_secret": "x", "profile": name}
        found = settings_tables.from_mapping({**DOCUMENT, "link": {"l": table}}, BASE, configuration.profiles())
        parameters = LinkParameters.from_mapping(found.link("l").physics)
        assert plan_link(parameters, found.link("l").block_pulses).key_length.bits > 10_000, name


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"node_id = ", "not valid TOML"), (b"\xff", "not valid TOML"), (b"", "genesis is missing|node_id is missing")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        configuration.read_settings(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file; `qnode init DIR`"):
        configuration.read_settings(tmp_path / "none.toml")
