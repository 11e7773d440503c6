"""What an operator may configure: one frozen record per table of a node's TOML file.

Decides names, units, ranges and relations; every field carries its unit, its range and its reason as data, from which
`docs/configuration.md` is made (`qnode.settings_reference`) and by which a bad value is refused
(`qnode.settings_tables`). Does not read files (`qnode.io.configuration` does) and does not know physics: the sub-tables
of a link go as plain mappings to the records of `protocol`.
"""

# ruff: noqa: RUF009 - `setting` stands for `dataclasses.field`, which the rule exempts by name only

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # file names, DNS labels and URIs carry it unescaped
PHYSICS_TABLES = ("source", "channel", "detector")
LINK_TABLES = (*PHYSICS_TABLES, "distillation")
_MIB = 1 << 20


class SettingsError(ValueError):
    """A configuration that cannot run; the message names the key, the value and what would be right."""


def listed(names: Iterable[str]) -> str:
    """Return names as a message tells them."""
    return ", ".join(sorted(names)) or "none"


def require(condition: bool, reason: str) -> None:
    """Raise SettingsError for `reason` unless `condition` holds."""
    if not condition:
        raise SettingsError(reason)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one key besides its type: the row of the configuration table, and the check."""

    unit: str
    why: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    name: bool = False


def setting(
    unit: str,
    why: str,
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    name: bool = False,
) -> Any:
    """Declare one key of a settings record; without `default` the key must be given."""
    described = Setting(unit, why, low, high, choices, name)
    return dataclasses.field(default=default, metadata={"setting": described})


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """Where another node listens for peers: one `[[peers]]` table."""

    node_id: str = setting("name", "must be a node of the genesis file", name=True)
    host: str = setting("host", "name or address to dial")
    port: int = setting("port", "its [peer_to_peer] listen_port", low=1, high=65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerToPeerSettings:
    """The node's own listener for peers, and the timing of its connections: `[peer_to_peer]`."""

    listen_host: str = setting("host", "loopback unless other machines take part", "127.0.0.1")
    listen_port: int = setting("port", "0 lets the system choose one, for tests", low=0, high=65535)
    ca: Path = setting("file", "the cluster's authority; it signs every node certificate")
    certificate: Path = setting("file", "holds the Ed25519 identity key that genesis lists; signed by `ca`")
    send_queue_mib: int = setting(
        "MiB",
        "per peer and traffic class; a slower peer loses frames beyond it, and they are counted",
        16,
        low=9,
        high=1024,
    )
    ping_interval_s: float = setting("s", "a silent peer is asked this often whether it lives", 5.0, low=0.1, high=300)
    idle_timeout_s: float = setting(
        "s",
        "a peer silent for so long counts as lost; longer than a routine pause of a busy host",
        20.0,
        low=0.2,
        high=900,
    )
    reconnect_first_s: float = setting(
        "s", "delay before the second dial; doubles, with jitter", 0.1, low=0.01, high=60
    )
    reconnect_max_s: float = setting(
        "s", "longest delay between dials: a returning peer is found within it", 10.0, low=0.05, high=600
    )

    def __post_init__(self) -> None:
        require(self.idle_timeout_s > self.ping_interval_s, "idle_timeout_s must exceed ping_interval_s")
        require(self.reconnect_max_s >= self.reconnect_first_s, "reconnect_max_s must be at least reconnect_first_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """The HTTPS listener of applications (ETSI GS QKD 014) and operators: `[api]`."""

    listen_host: str = setting("host", "loopback unless applications run elsewhere", "127.0.0.1")
    listen_port: int = setting("port", "0 lets the system choose one, for tests", low=0, high=65535)
    ca: Path = setting("file", "the authority that signs the certificates of SAEs and operators")
    certificate: Path = setting("file", "the server's certificate; its names are those that clients dial")
    key: Path = setting("file", "the private key of `certificate`; readable by its owner only")
    request_size_bytes_max: int = setting(
        "bytes",
        "largest request body; 128 key IDs need 8 KiB, a bundle of transactions more",
        _MIB,
        low=4096,
        high=16 * _MIB,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What applications may ask for, and how much key a node keeps: `[pool]`."""

    default_key_size_bits: int = setting("bits", "014 key_size: an AES-256 key", 256, low=64, high=65536)
    min_key_size_bits: int = setting(
        "bits", "014 min_key_size: below 64 bits nothing is worth a key ID", 64, low=8, high=65536
    )
    max_key_size_bits: int = setting(
        "bits", "014 max_key_size: bounds what one request can drain from a pool", 8192, low=64, high=65536
    )
    max_key_per_request: int = setting(
        "keys", "014 max_key_per_request: bounds one answer to some 180 KB", 128, low=1, high=4096
    )
    max_key_count: int = setting(
        "keys",
        "014 max_key_count: keys of default size that a pair of nodes keeps at most",
        4096,
        low=1,
        high=1_000_000,
    )
    target_bits: int = setting(
        "bits",
        "per link: distillation pauses when its pool holds this much secret key",
        1_048_576,
        low=4096,
        high=1 << 33,
    )
    probe_interval_s: float = setting(
        "s",
        "a link with so much key still measures its error rate this often: an eavesdropper is noticed within it",
        10.0,
        low=1.0,
        high=3600,
    )
    start_spread_s: float = setting(
        "s",
        "the first sessions begin at moments drawn from so long after the start; more where many nodes share few cores",
        0.0,
        low=0.0,
        high=3600,
    )

    def __post_init__(self) -> None:
        for field in ("default_key_size_bits", "min_key_size_bits", "max_key_size_bits"):
            require(getattr(self, field) % 8 == 0, f"{field} must be a multiple of 8")
        require(
            self.min_key_size_bits <= self.default_key_size_bits <= self.max_key_size_bits,
            "min_key_size_bits ≤ default_key_size_bits ≤ max_key_size_bits must hold",
        )
        require(self.target_bits >= self.max_key_size_bits, "target_bits must be at least max_key_size_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """What this node keeps of the chain, and how it starts: `[ledger]`. None of it decides validity."""

    snapshot_interval: int = setting(
        "blocks", "a restart executes at most the blocks after the last snapshot; 0 takes none", 1000, low=0, high=10**9
    )
    snapshot_distance: int = setting(
        "blocks",
        "a node further behind fetches a peer's snapshot; nearer, it executes every block itself",
        20_000,
        low=100,
        high=10**12,
    )
    keep_blocks: int = setting(
        "blocks",
        "0 keeps all, which a full audit needs; else older ones are erased once a snapshot lies above them",
        0,
        low=0,
        high=10**12,
    )
    status_interval_s: float = setting(
        "s",
        "four neighbours are told so often what this node holds; longer where many nodes share few cores",
        0.5,
        low=0.05,
        high=60,
    )
    block_interval_s: float = setting(
        "s",
        "a leader collects for so long what goes into a block; more where many nodes share few cores",
        0,
        low=0,
        high=5,
    )
    decision_spread_s: float = setting(
        "s",
        "nodes are told of a block at moments drawn from so long, voters of large committees within a quarter of it",
        0,
        low=0,
        high=5,
    )
    view_timeout_s: float = setting(
        "s", "the least wait for a leader's block; it grows by itself while heights are slow", 0.3, low=0.05, high=10
    )
    finalize_timeout_s: float = setting(
        "s", "after a quorum of votes, the wait for the commit before speaking again", 0.15, low=0.02, high=10
    )
    delivery_patience_s: float = setting(
        "s",
        "the record of a delivered key waits so long for others: fewer blocks, and a later proof of the key",
        0.1,
        low=0,
        high=1,
    )
    mempool_sender_bundles: int = setting(
        "bundles",
        "of one node that wait here for a block; more of its own are refused, others' are offered again later",
        256,
        low=8,
        high=65_536,
    )
    mempool_mib: int = setting(
        "MiB",
        "of all bundles that wait here; every node has an equal share, so that a flood of one displaces nobody else's",
        128,
        low=8,
        high=4096,
    )
    block_records: int = setting(
        "records",
        "a leader fills its block to so many, and takes one bundle at least: 2,048 execute for some 20 ms, for which "
        "all else waits; far smaller blocks cost more in votes",
        2048,
        low=1,
        high=2**31,
    )
    mempool_age_blocks: int = setting(
        "blocks",
        "another node's bundle that so many blocks went by without is let go; its origin keeps it and offers it again",
        1000,
        low=16,
        high=10**6,
    )

    def __post_init__(self) -> None:
        require(not 0 < self.keep_blocks < 1000, "keep_blocks below 1000 leaves no margin for peers; give 0 or more")
        pruning_without = self.keep_blocks and not self.snapshot_interval
        require(not pruning_without, "keep_blocks needs snapshots to start from; set snapshot_interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """The broker through which devices reach this node, and the emulated quantum channel to them: `[devices]`."""

    broker_host: str | None = setting("host", "an MQTT 5 broker; without it the node serves no devices", None)
    broker_port: int = setting("port", "8883 is MQTT over TLS", 8883, low=1, high=65535)
    security: str = setting("kind", "`none` is accepted on loopback only", "tls", choices=("tls", "none"))
    ca: Path | None = setting("file", "the authority that signs the broker's certificate", None)
    certificate: Path | None = setting("file", "what the node shows the broker; its common name is the node", None)
    key: Path | None = setting("file", "the private key of `certificate`", None)
    readings_file: Path | None = setting("file", "readings are appended here as JSON lines", None)
    readings_kept: int = setting(
        "readings", "the last ones of every device, kept at the node and shown by it", 256, low=0, high=10_000
    )
    readings_hours: float = setting("h", "older readings are destroyed at the node", 168.0, low=0.1, high=87_600.0)
    length_km: float = setting("km", "from the node's source to a device's receiver", 0.02, low=0.0, high=50.0)
    efficiency: float = setting(
        "share", "of a device's receiver: light is thinned where it is emitted", 0.6, low=0.01, high=1.0
    )
    depolarising: float = setting(
        "probability", "noise of the channel; the receiver adds its own", 0.01, low=0.0, high=0.2
    )

    def __post_init__(self) -> None:
        if self.broker_host is None:
            return
        if self.security == "none":
            loopback = self.broker_host in ("localhost", "127.0.0.1", "::1")
            require(loopback, f"security = 'none' sends to {self.broker_host} in the clear; use 'tls'")
        else:
            files = (self.ca, self.certificate, self.key)
            require(None not in files, "security = 'tls' needs ca, certificate and key")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """One quantum link of this node: `[link.<link_id>]`, with a profile and overrides of its sub-tables.

    `physics` maps each of PHYSICS_TABLES to plain values, profile and overrides merged, and `distillation` is a plain
    mapping likewise; the records of `protocol` check them.
    """

    link_id: str
    pre_shared_secret: Path = setting("file", "authenticates the first blocks; both ends hold the same file")
    block_pulses: int = setting(
        "pulses",
        "pulses per block: more give a better key fraction, fewer a shorter delay",
        10_000_000,
        low=10_000,
        high=100_000_000_000,
    )
    profile: str = setting("name", "a file of config/profiles, without .toml", "metro", name=True)
    physics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    distillation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Everything that one daemon is told: the top level of its TOML file. Paths are relative to that file."""

    node_id: str = setting("name", "must be a node of the genesis file", name=True)
    genesis: Path = setting("file", "the chain this node belongs to; the same bytes at every node")
    state_directory: Path = setting("directory", "all that must survive a crash; one daemon only")
    identity_key: Path = setting("file", "the node's Ed25519 private key: its votes, records and connections")
    members: str = setting(
        "source",
        "what node_id and [[peers]] may name: nodes of the genesis file alone, or also those that the chain admits",
        "genesis",
        choices=("genesis", "chain"),
    )
    log_level: str = setting(
        "level", "what is written to the log", "info", choices=("debug", "info", "warning", "error")
    )
    entropy: str = setting(
        "source",
        "where secret bits come from; the emulated quantum generator is conditioned and health-tested like a real one",
        "system",
        choices=("system", "emulated_qrng"),
    )
    seed: int | None = setting(
        "number", "makes the emulated physics reproducible; secret bits never depend on it", None, low=0, high=2**63 - 1
    )
    peer_to_peer: PeerToPeerSettings
    api: ApiSettings
    pool: PoolSettings = dataclasses.field(default_factory=PoolSettings)
    ledger: LedgerSettings = dataclasses.field(default_factory=LedgerSettings)
    devices: DeviceSettings = dataclasses.field(default_factory=DeviceSettings)
    peers: tuple[PeerSettings, ...] = ()
    links: tuple[LinkSettings, ...] = ()

    def __post_init__(self) -> None:
        names = [peer.node_id for peer in self.peers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        require(not doubled, f"[[peers]] lists {', '.join(doubled)} more than once")
        require(self.node_id not in names, f"[[peers]] lists this node itself ({self.node_id}); remove that table")

    def link(self, link_id: str) -> LinkSettings:
        """Return the settings of one link. Raises SettingsError when this node has no such link."""
        for link in self.links:
            if link.link_id == link_id:
                return link
        raise SettingsError(
            f"[link.{link_id}] is missing; this node configures {listed(x.link_id for x in self.links)}"
        )
