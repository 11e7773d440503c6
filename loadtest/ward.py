"""The network of one case: its files, its nodes wherever the launcher runs them, and an operator who can ask them all.

Decides how a scenario's network becomes configuration. Nothing here assumes one machine: nodes are reached by their
addresses.
"""

import asyncio
import dataclasses
import datetime
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp

from loadtest.fleet.launcher import FleetError, Launcher, NodeSpec, Place
from loadtest.intruders import Middleman
from loadtest.local import extend
from loadtest.results.records import Topology, TopologyLink, TopologyNode
from loadtest.scenarios.model import Scenario
from loadtest.scenarios.topology import Laid, lay
from qnode.cluster import Cluster
from qnode.initialise import Plan, initialise
from qnode.io.certificates import client_context
from qnode.io.entropy import OperatingSystemEntropy
from qnode.layout import Address

T = TypeVar("T")
ASKING_MAX: Final = 32
"""Nodes asked at once: each answer costs its node a millisecond, and the first one a TLS handshake."""
ANSWER_TIMEOUT_S: Final = 60.0  # hundreds of nodes on a few cores answer late, and that is a figure, not an error


class NodeSilent(RuntimeError):
    """A node did not answer, or refused; the message says which and how."""


class Operator:
    """Asks nodes over their operator's door, by keep-alive connections; an asynchronous context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self._urls = {
            member.settings.node_id: f"https://{member.settings.api.listen_host}:{member.settings.api.listen_port}"
            for member in cluster.members
        }
        stem = cluster.directory / "clients"
        self.context = client_context(stem / "operator.crt", stem / "operator.key", cluster.directory / "ca" / "ca.crt")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self.context, limit=0, keepalive_timeout=60.0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def url(self, node_id: str) -> str:
        """Return `https://host:port` of a node."""
        return self._urls[node_id]

    async def call(self, node_id: str, method: str, path: str, document: Any = None) -> dict[str, Any]:
        """Ask one node. Raises NodeSilent."""
        assert self._session is not None, "used outside of `async with`"
        try:
            async with self._session.request(method, self._urls[node_id] + path, json=document) as response:
                answer: dict[str, Any] = await response.json()
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NodeSilent(f"{node_id}: {str(error) or type(error).__name__}") from None
        if response.status != 200:
            raise NodeSilent(f"{node_id}: {response.status} {answer.get('message', '')}")
        return answer

    async def status(self, node_id: str) -> dict[str, Any]:
        """Return a node's status document. Raises NodeSilent."""
        return await self.call(node_id, "GET", "/admin/v1/status")

    async def each(self, node_ids: Sequence[str], ask: Callable[[str], Awaitable[T]]) -> dict[str, T | NodeSilent]:
        """Ask many nodes, some at a time; a silent one has its error as its answer."""
        room = asyncio.Semaphore(ASKING_MAX)

        async def one(node_id: str) -> T | NodeSilent:
            async with room:
                try:
                    return await ask(node_id)
                except NodeSilent as silent:
                    return silent

        answers = await asyncio.gather(*(one(node_id) for node_id in node_ids))
        return dict(zip(node_ids, answers, strict=True))

    async def statuses(self, node_ids: Sequence[str]) -> dict[str, dict[str, Any] | NodeSilent]:
        """Return the status documents of many nodes."""
        return await self.each(node_ids, self.status)


@dataclass
class Ward:
    """One case's network. `specs` says what runs where; `liars` are nodes that break the rules just now."""

    scenario: Scenario
    cluster: Cluster
    laid: Laid
    launcher: Launcher
    operator: Operator
    specs: dict[str, NodeSpec]
    places: dict[str, Place]
    random: random.Random
    liars: set[str] = field(default_factory=set)
    shapes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    middlemen: dict[str, Middleman] = field(default_factory=dict)  # by link: those whose connection somebody sits in
    flood: Callable[[str, float], Awaitable[None]] | None = None  # (node, records per second): set once links have key

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All nodes, in order; the first `validators` of them vote."""
        return self.laid.topology.node_ids

    @property
    def validators(self) -> tuple[str, ...]:
        """The nodes that vote from the genesis on."""
        return self.node_ids[: self.scenario.network.validators]

    def group(self, node_id: str) -> str:
        """Return the group of a node in the result."""
        return "validators" if node_id in self.validators else "followers"

    def watched_links(self, node_id: str) -> list[str]:
        """Return the links of a node in whose connection somebody repeats bytes now."""
        links = {link.link_id: link for link in self.laid.topology.links}
        return [
            link_id
            for link_id, middleman in self.middlemen.items()
            if middleman.active and node_id in (links[link_id].transmitter, links[link_id].receiver)
        ]

    async def shape(self, node_id: str, peer: str, values: Mapping[str, Any] | None) -> None:
        """Change how one node treats what it sends to a peer; None goes back to the scenario's network."""
        table = self.shapes.setdefault(node_id, {})
        if values is None:
            table.pop(peer, None)
        else:
            table[peer] = {**self.base_shape(), **values}
        await self.push_shapes(node_id)

    def base_shape(self) -> dict[str, Any]:
        """Return the scenario's shaping of every connection."""
        shaping = self.scenario.network.shaping
        return {name: getattr(shaping, name) for name in shaping.__struct_fields__}

    async def push_shapes(self, node_id: str) -> None:
        """Tell a node its whole table: after a change, and after its restart. Raises NodeSilent."""
        base = self.base_shape()
        table = {**({"*": base} if any(base.values()) else {}), **self.shapes.get(node_id, {})}
        await self.operator.call(node_id, "PUT", "/admin/v1/shaping", {"peers": table})

    async def restart(self, node_id: str, program: str | None = None) -> None:
        """Start a node that does not run, as `program` or what it was, and shape it as before. Raises FleetError."""
        if program is not None:
            spec = self.specs[node_id]
            self.specs[node_id] = dataclasses.replace(spec, program=program)
        await self.launcher.start([self.specs[node_id]], self.scenario.start_timeout_s)
        if self.shapes.get(node_id) or any(self.base_shape().values()):
            await self.push_shapes(node_id)

    @property
    def profiled(self) -> list[str]:
        """Return the nodes that tell what they spend their processor time on: evenly from each group."""
        count, groups = self.scenario.profiled_nodes, (self.validators, self.node_ids[len(self.validators) :])
        return [group[n * len(group) // count] for group in groups for n in range(count) if n < len(group)]

    def drawing(self, case: int) -> Topology:
        """Return the network as the report draws it."""
        places = self.laid.places
        nodes = [
            TopologyNode(node_id=each, group=self.group(each), x=places[each][0], y=places[each][1])
            for each in self.node_ids
        ]
        links = [
            TopologyLink(link_id=link.link_id, first=link.transmitter, second=link.receiver)
            for link in self.laid.topology.links
        ]
        return Topology(case=case, nodes=nodes, links=links)


async def write(scenario: Scenario, nodes: int, seed: int, directory: Path, launcher: Launcher) -> Ward:
    """Write the files of a case's network into `directory` and return it; nothing runs yet.

    Raises FleetError, InitialiseError, SettingsError.
    """
    places = await launcher.reserve(nodes)
    if len(places) != nodes:
        raise FleetError(f"the launcher has room for {len(places)} nodes, not {nodes}; choose fewer")
    cluster, laid = await asyncio.to_thread(_write, scenario, nodes, seed, directory, tuple(places))
    specs = {member.settings.node_id: NodeSpec(member.settings.node_id, member.config) for member in cluster.members}
    located = dict(zip(laid.topology.node_ids, places, strict=True))
    ward = Ward(scenario, cluster, laid, launcher, Operator(cluster), specs, located, random.Random(seed))
    specs.update({each: dataclasses.replace(specs[each], profiled=True) for each in ward.profiled})
    await _sit_between(ward, seed)
    return ward


async def _sit_between(ward: Ward, seed: int) -> None:
    """Have somebody in the middle of the classical connection of every link that a replay may be aimed at."""
    replays = [attack for attack in ward.scenario.attacks if attack.kind == "replay"]
    links = {link.link_id: link for link in ward.laid.topology.links}
    chosen = [target for attack in replays for target in attack.targets if target in links]
    wanted = max((attack.count for attack in replays if not attack.targets), default=0)
    chosen += ward.random.sample(sorted(links), min(wanted, len(links)))
    for link_id in dict.fromkeys(chosen):
        middleman = ward.middlemen[link_id] = Middleman(seed)
        ends = links[link_id].transmitter, links[link_id].receiver
        for dialling, dialled in (ends, ends[::-1]):
            port = await middleman.open(ward.places[dialled].host, ward.places[dialled])
            _redirect(ward.specs[dialling].config, dialled, port)


def _redirect(config: Path, peer: str, port: int) -> None:
    """Have a node dial one of its peers at another port."""
    lines = config.read_text("utf-8").splitlines()
    at = lines.index(f"node_id = {json.dumps(peer)}", lines.index("[[peers]]"))
    port_at = next(n for n in range(at, len(lines)) if lines[n].startswith("port = "))
    lines[port_at] = f"port = {port}"
    config.write_text("\n".join(lines) + "\n", "utf-8")


def _write(
    scenario: Scenario, nodes: int, seed: int, directory: Path, places: tuple[Place, ...]
) -> tuple[Cluster, Laid]:
    network = scenario.network
    laid = lay(network, nodes, seed)
    plan = Plan(
        laid.topology,
        chain_id="loadtest",
        profile=network.profile,
        log_level="info",
        seed=seed,
        validators=min(network.validators, nodes),
        addresses=tuple(Address(place.host, place.peer_port, place.api_port) for place in places),
    )
    initialise(directory, plan, OperatingSystemEntropy(), datetime.datetime.now(datetime.UTC))
    cluster = Cluster.open(directory)
    for member in cluster.members:
        extend(member.config, _tables(scenario, laid))
    for member in cluster.members:
        _ = member.settings  # a setting that cannot be is told before any node starts
    return cluster, laid


def _tables(scenario: Scenario, laid: Laid) -> dict[str, dict[str, str]]:
    """Return the scenario's keys as TOML text, by table of a node's file."""
    network = scenario.network
    tables = {name: _toml(keys) for name, keys in network.settings.items()}
    for link in laid.topology.links:
        table = f"link.{json.dumps(link.link_id)}"
        if network.block_pulses is not None:
            tables[table] = {"block_pulses": str(network.block_pulses)}
        tables |= {f"{table}.{part}": _toml(keys) for part, keys in network.link.items()}
    return tables


def _toml(keys: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in keys.items()}  # scalars are spelled the same in both
