"""The typed records of a result: what a run was, on which machine, and everything that it measured.

Decides what a result holds. How it lies on disk is `writer` and `reader`; what it means is `loadtest.measure.figures`
and `loadtest.statistics`. Times named `…_s` count seconds from the start of the run by the monotonic clock, unless
the name says otherwise. A *case* is one point of the run: one network size (or load), one repetition, one seed.
"""

from typing import Final, Literal

import msgspec

FORMAT: Final = "qnode-loadtest-result"
FORMAT_VERSION: Final = 1
Scalar = bool | int | float | str | None
RunStatus = Literal["running", "complete", "partial"]
CaseStatus = Literal["running", "complete", "failed"]
EventKind = Literal["phase", "fault", "heal", "attack", "attack_end", "alarm", "failure", "recovered", "note"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that refuses what it does not know."""


class Machine(Record, frozen=True):
    """Where the harness ran. No host name, no address: results are published."""

    cores: int
    memory_mib: int
    kernel: str
    cpu_model: str
    platform: str


class Versions(Record, frozen=True):
    """What was measured, and with what. `git_commit` ends in "+" when the work tree had changes."""

    qnode: str
    python: str
    libraries: dict[str, str]
    git_commit: str | None = None


class EnergyProfile(Record, frozen=True):
    """The stated model that turns work into energy (S0-E24); `source` says where its numbers come from."""

    name: str
    joules_per_cpu_second: float
    joules_per_byte: float
    source: str


class Case(Record, frozen=True):
    """One point of a run. `parameters` are what varies besides: rate, intensity of an attack, topology."""

    case: int
    nodes: int
    repetition: int
    seed: int
    parameters: dict[str, Scalar] = {}
    started_s: float = 0.0
    ended_s: float | None = None
    status: CaseStatus = "running"
    reason: str | None = None


class Phase(Record, frozen=True):
    """A stretch of a case: "start", "warm-up", "measure", "attack", …; `ended_s` is None when the run was cut off."""

    case: int
    name: str
    started_s: float
    ended_s: float | None = None


class Check(Record, frozen=True):
    """One promise that the run was held to. `found` is what was measured, `limit` what was asked, in words."""

    name: str
    passed: bool
    found: Scalar
    limit: str
    message: str = ""
    case: int | None = None


class Overhead(Record, frozen=True):
    """What measuring cost the machine: the sampler's own processor time, and how often it could look."""

    cpu_share: float
    samples: int
    seconds: float
    interval_s_mean: float


class Run(Record, frozen=True):
    """run.json: everything but the measurements. `status` "running" in a file that nobody writes means: cut off."""

    run_id: str
    scenario: str
    started_at: str
    versions: Versions
    machine: Machine
    scenario_document: dict[str, object] = {}
    overrides: dict[str, object] = {}
    command: list[str] = []
    energy: EnergyProfile | None = None
    format: Literal["qnode-loadtest-result"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    status: RunStatus = "running"
    reason: str | None = None
    ended_at: str | None = None
    duration_s: float | None = None
    cases: list[Case] = []
    phases: list[Phase] = []
    checks: list[Check] = []
    overhead: Overhead | None = None
    notes: list[str] = []


class Event(Record, frozen=True):
    """Something that happened: a fault and its healing, an attack and its end, an alarm, a failure.

    `subject` is the node or link. An alarm counts as the detection of an attack on the same subject.
    """

    time_s: float
    case: int
    kind: EventKind
    subject: str
    detail: dict[str, Scalar] = {}


class Commit(Record, frozen=True):
    """A height when the harness first saw it anywhere, and the records gained since the last such row.

    Heights between two rows were committed in between; `commit_ms` where something timed it.
    """

    time_s: float
    case: int
    height: int
    transactions: int
    commit_ms: float | None = None


class NodeSample(Record, frozen=True):
    """One look at one node: its own figures of its process, and what its status says. Counters are since its start."""

    time_s: float
    case: int
    node_id: str
    group: str = "all"
    cpu_s: float | None = None
    rss_mib: float | None = None
    pss_mib: float | None = None
    open_files: int | None = None
    threads: int | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    frames_sent: int | None = None
    frames_received: int | None = None
    frames_dropped: int | None = None
    disk_syncs: int | None = None
    handshakes: int | None = None
    height: int | None = None
    mempool: int | None = None
    peers: int | None = None
    key_bytes: int | None = None
    checksum_failures: int | None = None
    security_failures: int | None = None
    uptime_s: float | None = None


class LinkSample(Record, frozen=True):
    """One look at one quantum link, from one of its ends. `blocks` and `aborts` are counters."""

    time_s: float
    case: int
    link_id: str
    qber: float | None = None
    key_bytes: int | None = None
    blocks: int | None = None
    aborts: int | None = None
    alarmed: bool | None = None


class Latency(Record, frozen=True):
    """One histogram: HdrHistogram V2 text, in µs, of requests counted from when they were due."""

    case: int
    kind: str
    phase: str
    group: str
    count: int
    failures: int
    saturated: int
    histogram: str


class Window(Record, frozen=True):
    """The latencies of the requests of one kind that were answered in one stretch of time; `time_s` is its middle."""

    time_s: float
    case: int
    kind: str
    phase: str
    count: int
    ms_p50: float
    ms_p95: float


class Profile(Record, frozen=True):
    """What share of a node's processor time one function took in a phase: itself, and with all that it called.

    `cpu_s` is the node's processor time in the phase. Of the kind "room", `function` names a part of the node
    (`loadtest.fleet.rooms`), whose shares add up to those of all functions.
    """

    case: int
    phase: str
    node_id: str
    group: str
    cpu_s: float
    function: str
    own_share: float
    total_share: float
    kind: Literal["function", "room"] = "function"


class Figures(Record, frozen=True):
    """The figures of one case, by name; `loadtest.results.figure_names` gives each name's unit and better direction."""

    case: int
    values: dict[str, float | None]


class TopologyNode(Record, frozen=True):
    """A node of the picture; `x` and `y` in any unit, None where the harness has no place for it."""

    node_id: str
    group: str = "all"
    x: float | None = None
    y: float | None = None


class TopologyLink(Record, frozen=True):
    """A link of the picture."""

    link_id: str
    first: str
    second: str
    quantum: bool = True


class Topology(Record, frozen=True):
    """The network of one case."""

    case: int
    nodes: list[TopologyNode]
    links: list[TopologyLink]
