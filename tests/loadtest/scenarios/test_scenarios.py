"""Scenarios: what may be said, how mistakes are told, and networks that follow the seed."""

from pathlib import Path
from typing import Any

import msgspec
import networkx
import pytest

from loadtest.runner import points
from loadtest.scenarios.load import from_document, load, shipped
from loadtest.scenarios.model import Network, ScenarioError, Size, at_size, document
from loadtest.scenarios.topology import lay

SHAPES = ("line", "ring", "star", "mesh", "grid", "random_geometric", "scale_free", "road_grid")


def test_every_shipped_scenario_can_run() -> None:
    assert set(shipped()) >= {"smoke", "scaling", "saturation", "soak", "chaos", "byzantine", "metro-qkd"}
    for name in shipped():
        scenario = load(name)
        assert points(scenario) and scenario.clients
        assert from_document(document(scenario)) == scenario


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"titel": "x"}, r"top level: unknown key `titel`; the valid keys are title, "),
        ({"network": {"shap": "ring"}}, r"network: unknown key `shap`; the valid keys are shape, "),
        ({"network": {"shaping": {"lag": 1}}}, r"network.shaping: unknown key `lag`; the valid keys are delay_ms, "),
        ({"clients": [{"kind": "keys", "rate_per_s": 1, "x": 1}]}, r"clients\[0\]: unknown key `x`; .* rate_per_s"),
        ({"clients": [{"kind": "kees", "rate_per_s": 1}]}, r"clients\[0\].kind: .*kees"),
        ({"nodes": [1]}, r"nodes\[0\]: Expected `int` >= 2"),
        ({"nodes": [4_000]}, r"nodes\[0\]: Expected `int` <= 1000"),
        ({"network": {"shape": "torus"}}, r"network.shape: .*torus"),
        ({"faults": [{"kind": "kill", "duration_s": 9, "every_s": 5}]}, r"faults\[0\]: every_s \(5\) must exceed"),
        ({"attacks": [{"kind": "eavesdropper", "method": "telepathy"}]}, r"attacks\[0\]: method .* intercept_resend"),
        ({"nodes": [3], "attacks": [{"kind": "equivocation"}]}, r"4 validators are needed"),
        (
            {"network": {"settings": {"ledger": {"view_timeout_s": 20}}}},
            r"settings of network: ledger.view_timeout_s is 20",
        ),
        ({"network": {"settings": {"peer_to_peer": {"ping_s": 20}}}}, r"unknown key 'ping_s' in \[peer_to_peer\]"),
        ({"network": {"settings": {"pol": {"target_bits": 20}}}}, r"unknown key 'pol'"),
        (
            {"sizes": [{"from_nodes": 8, "settings": {"pool": {"target_bits": 4_096}}}]},
            r"settings of from_nodes 8: \[pool\] target_bits must be at least max_key_size_bits",
        ),
        ({"repetitions": 1000, "loads": [1, 2]}, r"make 2000 cases; at most"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_would_be_right(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        from_document({"title": "t", **wrong})


def test_a_scenario_extends_another_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "smoke"\ntitle = "base"\n[network]\nvalidators = 3\n')
    own = tmp_path / "own.toml"
    own.write_text('extends = "base.toml"\nduration_s = 7\n')
    scenario = load(str(own), ["network.degree=5", "clients.0.rate_per_s=3.5", "network.shape=line"], [6, 9])
    assert (scenario.title, scenario.duration_s, scenario.nodes) == ("base", 7, (6, 9))
    assert (scenario.network.validators, scenario.network.degree, scenario.network.shape) == (3, 5, "line")
    assert scenario.clients[0].rate_per_s == 3.5 and scenario.clients[0].kind == "keys"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("duration_s", "write KEY=VALUE"),
        ("clients.9.rate_per_s=1", "the list has 3 entries"),
        ("title.x=1", "nothing is below title"),
        ("durations=1", "unknown key `durations`"),
    ],
)
def test_a_wrong_override_says_how_it_is_written(override: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        load("smoke", [override])


def test_unknown_names_circles_and_broken_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="there are byzantine, chaos"):
        load("smok")
    circle = tmp_path / "circle.toml"
    circle.write_text('extends = "circle.toml"\n')
    with pytest.raises(ScenarioError, match="circle"):
        load(str(circle))
    circle.write_text("title = \n")
    with pytest.raises(ScenarioError, match="not valid TOML"):
        load(str(circle))
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nodes", [2, 5, 40])
def test_networks_are_connected_drawn_and_the_same_for_the_same_seed(shape: Any, nodes: int) -> None:
    laid = lay(Network(shape=shape, degree=3), nodes, seed=4)
    assert lay(Network(shape=shape, degree=3), nodes, seed=4) == laid
    graph = networkx.Graph([(link.transmitter, link.receiver) for link in laid.topology.links])
    assert set(graph) == set(laid.topology.node_ids) == set(laid.places) and len(laid.places) == nodes
    assert networkx.is_connected(graph)
    assert len({link.link_id for link in laid.topology.links}) == len(laid.topology.links)


def test_random_networks_follow_the_seed() -> None:
    for shape in ("random_geometric", "scale_free", "road_grid"):
        assert lay(Network(shape=shape), 30, 1).topology != lay(Network(shape=shape), 30, 2).topology  # type: ignore[arg-type]


def test_large_networks_get_their_own_rates_and_phases() -> None:
    scenario = load("scaling", ["warm_up_s=5", "sizes=[]"])
    sizes = (Size(from_nodes=64, rate_factor=0.5), Size(from_nodes=128, rate_factor=0.25, warm_up_s=9, saturate_s=0))
    scenario = msgspec.structs.replace(scenario, sizes=sizes)
    rates = {n: at_size(scenario, n).clients[0].rate_per_s / scenario.clients[0].rate_per_s for n in (63, 64, 128, 300)}
    assert rates == {63: 1, 64: 0.5, 128: 0.25, 300: 0.25}
    assert [at_size(scenario, n).warm_up_s for n in (64, 200)] == [5, 9]
    assert at_size(scenario, 200).saturate_s == 0
    slow = Size(from_nodes=64, settings={"ledger": {"block_interval_s": 2.0}, "api": {"listen_port": 0}})
    slower = at_size(msgspec.structs.replace(scenario, sizes=(slow,)), 64).network.settings
    assert slower["ledger"] == {**scenario.network.settings["ledger"], "block_interval_s": 2.0}
    assert slower["pool"] == scenario.network.settings["pool"] and slower["api"] == {"listen_port": 0}
    with pytest.raises(ValueError, match="same from_nodes"):
        msgspec.structs.replace(scenario, sizes=(sizes[0], sizes[0]))
