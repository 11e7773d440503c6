"""What a scenario may say: frozen records with ranges, from which a run is made.

Decides names, units, ranges and relations. Reading files, `extends` and overrides are `loadtest.scenarios.load`'s;
what a fault or an attack does is `loadtest.disturbances`'. Times `…_s` count from the beginning of the measured phase.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ledger.contracts.document import PolicyError, policy_from_document
from protocol.quantum.eavesdropper import eavesdropper_kinds
from qnode.settings import SettingsError
from qnode.settings_tables import check_tables

NODES_MAX: Final = 1000
"""More daemons than any one machine holds; bounds a typing error."""
CASES_MAX: Final = 500
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(ge=0, le=60_000)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
NodeSettings = dict[str, dict[str, bool | int | float | str]]
Shape = Literal["line", "ring", "star", "mesh", "grid", "random_geometric", "scale_free", "road_grid"]
Arrival = Literal["constant", "poisson", "bursts"]
ClientKind = Literal["keys", "records", "messages"]
FaultKind = Literal["kill", "pause", "partition", "slow_link", "disk_full"]
AttackKind = Literal["eavesdropper", "jamming", "injection", "replay", "equivocation", "flood"]


class ScenarioError(ValueError):
    """A scenario that cannot run; the message names the place, the value, and what would be right."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a scenario."""


class Shaping(Record, frozen=True, kw_only=True):
    """The network between all peers, by `qnode.io.shaping`: each direction of each connection."""

    delay_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0
    loss: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    bandwidth_mbit_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0  # 0 is unlimited


class Network(Record, frozen=True, kw_only=True):
    """Which nodes there are and what joins them. `settings` goes into every node's file, table by table."""

    shape: Shape = "ring"
    validators: Annotated[int, Meta(ge=1, le=NODES_MAX)] = 31  # the first of the nodes; the rest follow
    profile: str = "lab"
    degree: Annotated[int, Meta(ge=1, le=50)] = (
        2  # scale_free: links of a new node; random_geometric: neighbours aimed at
    )
    settings: NodeSettings = {}
    link: dict[str, dict[str, bool | int | float | str]] = {}  # overrides of the profile: source, channel, detector, …
    block_pulses: Annotated[int, Meta(ge=10_000, le=100_000_000_000)] | None = None
    shaping: Shaping = Shaping()


class Client(Record, frozen=True, kw_only=True):
    """A stream of requests, open loop: sent when due, whatever became of the earlier ones.

    `keys`: an application gets a key over ETSI 014 and its partner fetches it. `records`: a key's life cycle goes to
    the chain, until it is committed. `messages`: two applications share a key and carry a message of `size_bytes`
    under it, as one-time pad while the largest key holds it, by AES-256-GCM beyond.
    """

    kind: ClientKind
    rate_per_s: Rate  # all nodes together
    arrival: Arrival = "poisson"
    burst: Annotated[int, Meta(ge=2, le=10_000)] = 10  # of `bursts`: requests at once, at the same mean rate
    between: Literal["neighbours", "any"] = "neighbours"
    size_bits: Annotated[int, Meta(ge=64, le=65_536)] = 256  # of a key
    size_bytes: Annotated[int, Meta(ge=1, le=1_000_000)] = 256  # of a message
    samples_min: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # the load lasts until so many requests are due
    name: str = ""  # of the traffic in the result (voice, video, …); the kind by default


class Event(Record, frozen=True, kw_only=True):
    """What faults and attacks share: when, how long, how often, at how many places."""

    at_s: Seconds = 0.0
    duration_s: Annotated[float, Meta(gt=0, le=86_400)] = 5.0
    every_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None  # again and again until the load ends
    count: Count = 1  # nodes or links at once
    targets: tuple[str, ...] = ()  # by name; drawn by the seed otherwise


class Fault(Event, frozen=True, kw_only=True):
    """Something breaks, and heals after `duration_s`."""

    kind: FaultKind
    share: Share = 0.5  # of a partition: how many nodes are on the smaller side
    delay_ms: Milliseconds = 200.0  # of a slow link
    loss: Annotated[float, Meta(ge=0, le=0.9)] = 0.0

    def __post_init__(self) -> None:
        if self.every_s is not None and self.every_s <= self.duration_s:
            raise ValueError(f"every_s ({self.every_s:g}) must exceed duration_s ({self.duration_s:g})")


class Attack(Event, frozen=True, kw_only=True):
    """Somebody attacks. `intensity` is a share: of pulses, of records, of the kind's largest rate."""

    kind: AttackKind
    intensity: Share = 1.0
    method: str = "intercept_resend"  # of an eavesdropper: any kind that links offer
    parameters: dict[str, float] = {}  # of the method; by default its share of pulses is the intensity
    rate_per_s: Rate = 2000.0  # of injection and flood at intensity 1

    def __post_init__(self) -> None:
        if self.every_s is not None and self.every_s <= self.duration_s:
            raise ValueError(f"every_s ({self.every_s:g}) must exceed duration_s ({self.duration_s:g})")
        if self.method not in eavesdropper_kinds():
            raise ValueError(f"method is {self.method!r}; the methods are {', '.join(eavesdropper_kinds())}")


class Limits(Record, frozen=True, kw_only=True):
    """Promises that the figures are held to; None is not checked. A broken one fails the run."""

    start_s: float | None = None
    pss_mib_per_node: float | None = None
    commit_ms_p95: float | None = None
    key_ms_p95: float | None = None
    recovery_s_max: float | None = None
    detection_rate: float | None = None


class Size(Record, frozen=True, kw_only=True):
    """What differs from `from_nodes` nodes on, up to the next such table: large networks share the same few cores."""

    from_nodes: Annotated[int, Meta(ge=2, le=NODES_MAX)]
    rate_factor: Rate = 1.0  # on every client's rate
    settings: NodeSettings = {}  # of every node, over those of [network.settings]
    warm_up_s: Seconds | None = None
    saturate_s: Seconds | None = None
    ready_timeout_s: Seconds | None = None


class Scenario(Record, frozen=True, kw_only=True):
    """A whole scenario: every size × load × repetition is one case with a fresh network."""

    title: str
    description: str = ""
    nodes: Annotated[tuple[Annotated[int, Meta(ge=2, le=NODES_MAX)], ...], Meta(min_length=1, max_length=50)] = (4,)
    loads: Annotated[tuple[Rate, ...], Meta(min_length=1, max_length=50)] = (1.0,)  # factors on every client's rate
    repetitions: Annotated[int, Meta(ge=1, le=1000)] = 1
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1
    start_timeout_s: Seconds = 300.0
    ready_timeout_s: Seconds = 300.0  # until every link has key; with `links_rest` until all of them rest
    links_rest: bool = False  # nothing is measured before every pool is full, no session runs and the chain stands
    warm_up_s: Seconds = 5.0
    duration_s: Seconds = 20.0
    saturate_s: Seconds = 0.0  # afterwards, as many records as the chain takes
    drain_s: Seconds = 60.0  # at most, until all nodes agree again
    network: Network = Network()
    policies: Annotated[tuple[dict[str, Any], ...], Meta(max_length=8)] = ()  # of key, in force before the warm-up
    clients: tuple[Client, ...] = ()
    faults: tuple[Fault, ...] = ()
    attacks: tuple[Attack, ...] = ()
    limits: Limits = Limits()
    sizes: tuple[Size, ...] = ()
    profiled_nodes: Annotated[int, Meta(ge=0, le=50)] = 0  # of each group: they tell what their processor time goes to
    may_grow: bool = True  # false: memory, descriptors or latency that grow over the load fail the run

    def __post_init__(self) -> None:
        cases = len(self.nodes) * len(self.loads) * self.repetitions
        if cases > CASES_MAX:
            raise ValueError(f"nodes × loads × repetitions make {cases} cases; at most {CASES_MAX}")
        if len({size.from_nodes for size in self.sizes}) < len(self.sizes):
            raise ValueError("two [[sizes]] tables have the same from_nodes; merge them")
        for at, policy in enumerate(self.policies):
            try:
                policy_from_document(policy)
            except PolicyError as error:
                raise ValueError(f"policies[{at}]: {error}") from None
        for where, settings in (("network", {}), *((f"from_nodes {x.from_nodes}", x.settings) for x in self.sizes)):
            try:
                check_tables(_with_settings(self.network, settings).settings)
            except SettingsError as error:
                raise ValueError(f"settings of {where}: {error}") from None
        liars = max((a.count for a in self.attacks if a.kind == "equivocation"), default=0)
        validators = min(self.network.validators, min(self.nodes))
        if 3 * liars >= validators and liars:
            raise ValueError(
                f"{liars} equivocating of {validators} validators: fewer than a third may lie, "
                f"so {3 * liars + 1} validators are needed"
            )


def at_size(scenario: Scenario, nodes: int) -> Scenario:
    """Return the scenario as it is for a network of so many nodes."""
    size = max(
        (each for each in scenario.sizes if each.from_nodes <= nodes), key=lambda each: each.from_nodes, default=None
    )
    if size is None:
        return scenario
    clients = tuple(
        msgspec.structs.replace(each, rate_per_s=each.rate_per_s * size.rate_factor) for each in scenario.clients
    )
    return msgspec.structs.replace(
        scenario,
        clients=clients,
        network=_with_settings(scenario.network, size.settings),
        warm_up_s=scenario.warm_up_s if size.warm_up_s is None else size.warm_up_s,
        saturate_s=scenario.saturate_s if size.saturate_s is None else size.saturate_s,
        ready_timeout_s=scenario.ready_timeout_s if size.ready_timeout_s is None else size.ready_timeout_s,
    )


def _with_settings(network: Network, settings: NodeSettings) -> Network:
    merged = {table: {**network.settings.get(table, {}), **settings.get(table, {})} for table in settings}
    return msgspec.structs.replace(network, settings={**network.settings, **merged})


def document(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario as plain values, for the result."""
    plain: dict[str, Any] = msgspec.to_builtins(scenario)
    return plain
