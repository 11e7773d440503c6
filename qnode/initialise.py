"""Writes the configuration of a new cluster: identities, certificates, shared secrets, genesis, one TOML file per node.

Decides the layout of the directory:

    DIR/genesis.json            the chain, the same at every node
    DIR/ca/ca.crt, ca.key       the cluster's authority; keep the key away from the nodes
    DIR/node-1.toml             one node's configuration
    DIR/node-1/                 its identity, certificates, pre-shared secrets, and later its state and log
    DIR/clients/                certificates of applications (SAEs) and of the operator

A directory is written whole or not at all, and never over an existing one.
"""

import datetime
import os
import random
import shutil
import socket
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ledger.genesis import HYBRID_VOTES, Genesis, GenesisLink, GenesisNode, GenesisParameters, GenesisSae
from ledger.signatures import PUBLIC_KEY_SIZE_BYTES, Ed25519Signer, HybridSigner, post_quantum_seed
from protocol.entropy import Entropy
from qnode import topologies
from qnode.io.certificates import Authority, Identity, PrivateKey
from qnode.io.configuration import profiles
from qnode.layout import (
    Address,
    Contact,
    LinkEntry,
    NodeEntry,
    api_names,
    certificate_pem,
    key_pem,
    node_toml,
    write_file,
    write_pair,
)
from qnode.topologies import Topology, TopologyError

PRE_SHARED_SIZE_BYTES: Final = (
    65_536  # some 2,000 one-time tags of 32 bytes: far more than until the link's own key comes
)
VALIDATORS_MAX: Final = 31  # more would cost each height over 100 ms of signature checks on two cores
HYBRID_PARAMETERS: Final = GenesisParameters(vote_signatures=HYBRID_VOTES, transaction_size_bytes_max=16_384)
SAE_SUFFIXES: Final = ("a", "b")
# Below Linux's ephemeral range (32768…), so that no outgoing connection takes a port between `init` and `up`.
PORTS: Final = range(20_000, 32_000)


class InitialiseError(ValueError):
    """The cluster cannot be written; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write; see `qnode init --help`."""

    topology: Topology
    chain_id: str = "qnode"
    profile: str = "metro"
    host: str = "127.0.0.1"
    base_port: int | None = None
    server_names: tuple[str, ...] = ()
    log_level: str = "info"
    seed: int | None = None
    hybrid_votes: bool = False
    validators: int | None = None  # how many of the first nodes vote; all, up to VALIDATORS_MAX, without
    addresses: tuple[Address, ...] = ()  # where each node listens; free ports of `host` without


def read_topology(name: str, node_count: int | None) -> Topology:
    """Return a named shape over `node_count` nodes (4 by default), or the topology of the TOML file `name`.

    Raises InitialiseError.
    """
    try:
        if name in topologies.SHAPES:
            return topologies.shaped(name, 4 if node_count is None else node_count)
        if not name.endswith(".toml"):
            raise TopologyError(
                f"{name!r} is not a topology; name one of {', '.join(topologies.SHAPES)}, or a file ending in .toml"
            )
        found = topologies.from_mapping(tomllib.loads(Path(name).read_text("utf-8")))
    except (TopologyError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InitialiseError(f"topology {name}: {error}") from None
    except OSError as error:
        raise InitialiseError(f"topology {name}: cannot be read: {error.strerror}") from None
    if node_count not in (None, len(found.node_ids)):
        raise InitialiseError(f"topology {name} has {len(found.node_ids)} nodes; leave --nodes out, or change the file")
    return found


def initialise(directory: Path, plan: Plan, entropy: Entropy, now: datetime.datetime) -> Genesis:
    """Write the cluster into `directory`, which must not exist or be empty; return its genesis.

    Raises InitialiseError, and leaves nothing behind then.
    """
    _check(directory, plan)
    partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True, mode=0o700)
        genesis = _Writer(partial, plan, entropy, now).write()
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except OSError as error:
        raise InitialiseError(f"{directory}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return genesis


def _check(directory: Path, plan: Plan) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InitialiseError(f"{directory} exists and is not empty; choose a new directory, nothing was changed")
    for name in {plan.profile, *(link.profile for link in plan.topology.links if link.profile)}:
        if name not in profiles():
            raise InitialiseError(f"{name!r} is not a link profile; the profiles are {', '.join(sorted(profiles()))}")


class _Writer:
    """Writes one cluster below `root`."""

    def __init__(self, root: Path, plan: Plan, entropy: Entropy, now: datetime.datetime) -> None:
        self._root = root
        self._plan = plan
        self._entropy = entropy
        self._now = now
        self._authority = Authority.create(f"qnode {plan.chain_id} authority", now)

    def write(self) -> Genesis:
        ids = self._plan.topology.node_ids
        addresses = self._plan.addresses or self._free_addresses(len(ids))
        assert len(addresses) == len(ids), f"{len(addresses)} addresses for {len(ids)} nodes"
        validators = VALIDATORS_MAX if self._plan.validators is None else self._plan.validators
        contacts = topologies.contacts(self._plan.topology, validators)
        self._pair("ca/ca", self._authority.certificate, self._authority.key)
        saes = [(node_id, sae_id) for node_id in ids for sae_id in sae_ids(node_id)]
        for _, sae_id in saes:
            self._client(Identity("sae", sae_id))
        self._client(Identity("operator", "operator"))
        keys = {each: self._identity(each, at.host) for each, at in zip(ids, addresses, strict=True)}
        self._pre_shared_secrets()
        genesis = Genesis(
            chain_id=self._plan.chain_id,
            time_ns=int(self._now.timestamp() * 10**9),
            nodes=tuple(self._node(node_id, keys[node_id], n < validators) for n, node_id in enumerate(ids)),
            links=tuple(GenesisLink(x.link_id, x.transmitter, x.receiver) for x in self._plan.topology.links),
            saes=tuple(GenesisSae(sae_id, node_id) for node_id, sae_id in saes),
            parameters=HYBRID_PARAMETERS if self._plan.hybrid_votes else GenesisParameters(),
        )
        self._file("genesis.json", genesis.to_json().encode(), private=False)
        for n, node_id in enumerate(ids):
            text = node_toml(self._entry(n, contacts[node_id], addresses))
            self._file(f"{node_id}.toml", text.encode(), private=False)
        return genesis

    def _free_addresses(self, count: int) -> tuple[Address, ...]:
        """Ports come in pairs, peers first, then API."""
        host = self._plan.host
        ports = free_ports(host, 2 * count, self._plan.base_port)
        return tuple(Address(host, ports[2 * n], ports[2 * n + 1]) for n in range(count))

    def _node(self, node_id: str, seed: bytes, validator: bool) -> GenesisNode:
        """Return a node's entry in the genesis."""
        classical, post_quantum = public_keys(seed, self._plan.hybrid_votes)
        return GenesisNode(node_id, classical, validator, post_quantum)

    def _identity(self, node_id: str, host: str) -> bytes:
        """Write the identity of a node; returns its seed."""
        key = ed25519.Ed25519PrivateKey.from_private_bytes(self._entropy.take(32))
        public = key.public_key()
        self._file(f"{node_id}/identity.key", key_pem(key), private=True)
        peer = self._authority.issue(Identity("node", node_id), public, self._now)
        self._file(f"{node_id}/peer.crt", certificate_pem(peer), private=False)
        self._file(f"{node_id}/ca.crt", certificate_pem(self._authority.certificate), private=False)
        api_key = ec.generate_private_key(ec.SECP256R1())
        names = api_names(node_id, host, self._plan.server_names)
        api = self._authority.issue(Identity("node", node_id), api_key.public_key(), self._now, server_names=names)
        self._pair(f"{node_id}/api", api, api_key)
        return key.private_bytes_raw()

    def _client(self, identity: Identity) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._pair(f"clients/{identity.name}", self._authority.issue(identity, key.public_key(), self._now), key)

    def _pre_shared_secrets(self) -> None:
        for link in self._plan.topology.links:
            secret = self._entropy.take(PRE_SHARED_SIZE_BYTES)
            for end in (link.transmitter, link.receiver):
                self._file(f"{end}/{link.link_id}.psk", secret, private=True)

    def _entry(self, n: int, contacts: Sequence[str], addresses: Sequence[Address]) -> NodeEntry:
        plan, ids = self._plan, self._plan.topology.node_ids
        index = {each: at for at, each in enumerate(ids)}
        return NodeEntry(
            chain_id=plan.chain_id,
            node_id=ids[n],
            address=addresses[n],
            contacts=[Contact(x, addresses[index[x]].host, addresses[index[x]].peer_port) for x in contacts],
            links=[
                LinkEntry(link.link_id, link.transmitter, link.receiver, link.profile or plan.profile)
                for link in plan.topology.links
                if ids[n] in (link.transmitter, link.receiver)
            ],
            log_level=plan.log_level,
            seed=None if plan.seed is None else plan.seed + n,
        )

    def _pair(self, stem: str, certificate: x509.Certificate, key: PrivateKey) -> None:
        write_pair(self._root, stem, certificate, key)

    def _file(self, name: str, content: bytes, *, private: bool) -> None:
        write_file(self._root, name, content, private=private)


def public_keys(seed: bytes, hybrid_votes: bool) -> tuple[bytes, bytes]:
    """Return the Ed25519 key of an identity and, on a chain of hybrid votes, the ML-DSA-65 key of the same seed."""
    classical = Ed25519Signer(seed)
    if not hybrid_votes:
        return classical.public_key, b""
    return classical.public_key, HybridSigner(classical, post_quantum_seed(seed)).public_key[PUBLIC_KEY_SIZE_BYTES:]


def sae_ids(node_id: str) -> tuple[str, ...]:
    """Return the applications that `init` registers at a node: sae-1-a and sae-1-b at node-1."""
    return tuple(f"sae-{node_id.removeprefix('node-')}-{suffix}" for suffix in SAE_SUFFIXES)


def free_ports(host: str, count: int, base_port: int | None) -> list[int]:
    """Return `count` consecutive ports nobody listens on: from `base_port`, or from a random place in PORTS.

    Raises InitialiseError when a port from `base_port` on is taken, or none are free.
    """
    if base_port is not None:
        if not 1 <= base_port <= 65_536 - count:
            raise InitialiseError(f"--base-port {base_port} leaves no room for {count} ports below 65536; lower it")
        taken = [port for port in range(base_port, base_port + count) if not _is_free(host, port)]
        if taken:
            raise InitialiseError(f"port {taken[0]} on {host} is in use; choose another --base-port, or leave it out")
        return list(range(base_port, base_port + count))
    if count > len(PORTS):
        raise InitialiseError(f"one host has no {count} ports to spare; use fewer nodes, or several hosts")
    for _ in range(200):
        first = random.randrange(PORTS.start, PORTS.stop - count + 1)
        if all(_is_free(host, port) for port in range(first, first + count)):
            return list(range(first, first + count))
    raise InitialiseError(f"no {count} consecutive free ports on {host}; name a range with --base-port")


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InitialiseError(f"{host} is not an address of this machine: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a daemon's listener does, too
        try:
            probe.bind(address)
        except OSError:
            return False
    return True
