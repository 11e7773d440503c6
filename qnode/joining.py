"""Writes the directory of a node that joins a running chain, and signs certificate requests.

Decides what a new node needs before a quorum admits it (`admit-node`, ledger/SPEC.md 9.4): an identity, two
certificates of the cluster's authority or requests for them, and whom it dials. A node that the chain admits has no
quantum links, which only the genesis names: it follows, executes, serves and, if it is made a validator, votes.
"""

import datetime
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ledger.genesis import Genesis, GenesisError
from protocol.entropy import Entropy
from qnode.cluster import Cluster, ClusterError
from qnode.initialise import VALIDATORS_MAX, InitialiseError, free_ports, public_keys
from qnode.io.certificates import Authority, CertificateError, Identity, issue_requested, request_certificate
from qnode.layout import Address, Contact, NodeEntry, api_names, certificate_pem, key_pem, node_toml, write_file
from qnode.settings import NAME_PATTERN

CONTACTS_MAX: Final = VALIDATORS_MAX
"""Peers that a new node dials: one hop from every vote of a full committee, never a fleet's worth of connections."""
POST_QUANTUM_KEY_FILE: Final = "post_quantum_key.hex"


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What to write; see `qnode node new --help`."""

    node_id: str
    host: str = "127.0.0.1"
    base_port: int | None = None
    server_names: tuple[str, ...] = ()
    contacts: tuple[Contact, ...] = ()  # those of the cluster's other nodes without any
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Joining:
    """What was written."""

    node_id: str
    config: Path
    public_key: bytes
    post_quantum_key: bytes
    requests: tuple[Path, ...]  # certificate requests that the authority has still to sign

    def proposal(self, *, validator: bool) -> list[str]:
        """Return the arguments of `qnode` that propose the node's admission."""
        members = [f"node_id={self.node_id}", f"public_key={self.public_key.hex()}", f"validator={int(validator)}"]
        if self.post_quantum_key:
            members.append(f"post_quantum_key={self.post_quantum_key.hex()}")
        return ["governance", "propose", "admit-node", *(part for member in members for part in ("--set", member))]


def join(directory: Path, newcomer: Newcomer, entropy: Entropy, now: datetime.datetime) -> Joining:
    """Write a new node into the cluster directory `directory`, which needs genesis.json and ca/ca.crt at least.

    With ca/ca.key at hand its certificates are issued at once; without, requests for them lie beside its keys. The
    TOML file is written last. Raises InitialiseError, CertificateError; nothing of the node is left behind then.
    """
    genesis = _genesis(directory)
    _check(directory, newcomer, genesis)
    contacts = (newcomer.contacts or known_contacts(directory))[:CONTACTS_MAX]
    if not contacts:
        raise InitialiseError(f"{directory} has no node to join through; name some with --peer NODE=HOST:PORT")
    ports = free_ports(newcomer.host, 2, newcomer.base_port)
    address = Address(newcomer.host, ports[0], ports[1])
    target, partial = directory / newcomer.node_id, directory / f".{newcomer.node_id}.partial-{os.getpid()}"
    entry = NodeEntry(genesis.chain_id, newcomer.node_id, address, contacts, log_level=newcomer.log_level, joins=True)
    try:
        partial.mkdir(mode=0o700)
        seed = entropy.take(32)
        requests = _write_keys(partial, directory / "ca", newcomer, seed, now)
        classical, post_quantum = public_keys(seed, genesis.parameters.hybrid_votes)
        if post_quantum:
            write_file(partial, POST_QUANTUM_KEY_FILE, post_quantum.hex().encode(), private=False)
        partial.rename(target)
        write_file(directory, f"{newcomer.node_id}.toml", node_toml(entry).encode(), private=False)
    except OSError as error:
        raise InitialiseError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    config = directory / f"{newcomer.node_id}.toml"
    return Joining(newcomer.node_id, config, classical, post_quantum, tuple(target / name for name in requests))


def known_contacts(directory: Path) -> tuple[Contact, ...]:
    """Return where the nodes of a cluster directory are dialled, by their own and each other's files, in their order.

    What another node dials counts more than what a node listens on, which may be every address of its machine.
    """
    try:
        members = Cluster.open(directory).members
    except ClusterError:
        return ()
    found = {
        x.settings.node_id: Contact(
            x.settings.node_id, x.settings.peer_to_peer.listen_host, x.settings.peer_to_peer.listen_port
        )
        for x in members
    }
    for member in members:
        found |= {peer.node_id: Contact(peer.node_id, peer.host, peer.port) for peer in member.settings.peers}
    return tuple(found.values())


def sign_request(request: Path, directory: Path, now: datetime.datetime) -> Path:
    """Sign a node's request with the authority of `directory`; return the certificate's file, beside the request.

    Raises CertificateError.
    """
    authority = Authority.load(directory / "ca" / "ca.crt", directory / "ca" / "ca.key")
    certificate = request.with_suffix(".crt")
    try:
        issued = issue_requested(authority, request.read_bytes(), now)
        write_file(certificate.parent, certificate.name, certificate_pem(issued), private=False)
    except FileExistsError:
        raise CertificateError(f"{certificate} exists already; move it away to sign the request again") from None
    except OSError as error:
        raise CertificateError(f"{request}: {error.strerror}") from None
    except CertificateError as error:
        raise CertificateError(f"{request}: {error}") from None
    return certificate


def _genesis(directory: Path) -> Genesis:
    path = directory / "genesis.json"
    try:
        return Genesis.from_json(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InitialiseError(
            f"{path}: {error.strerror}; a new node needs the genesis.json and ca/ca.crt of its chain there"
        ) from None
    except (GenesisError, UnicodeDecodeError) as error:
        raise InitialiseError(f"{path}: {error}") from None


def _check(directory: Path, newcomer: Newcomer, genesis: Genesis) -> None:
    node_id = newcomer.node_id
    if NAME_PATTERN.fullmatch(node_id) is None or node_id in ("ca", "clients"):
        raise InitialiseError(f"{node_id!r} is not a name for a node: 1 to 63 letters, digits, '.', '_' or '-'")
    if node_id in {node.node_id for node in genesis.nodes}:
        raise InitialiseError(f"the genesis has a node {node_id} already; choose another name")
    for path in (directory / node_id, directory / f"{node_id}.toml"):
        if path.exists():
            raise InitialiseError(f"{path} exists; choose another name, or remove what an earlier attempt left")
    if not (directory / "ca" / "ca.crt").is_file():
        raise InitialiseError(
            f"{directory}/ca/ca.crt is missing; copy the authority's certificate of the cluster there"
        )


def _write_keys(
    root: Path, authority_directory: Path, newcomer: Newcomer, seed: bytes, now: datetime.datetime
) -> Sequence[str]:
    """Write both keys of a node, and their certificates or the requests for them; return the requests' names."""
    identity = Identity("node", newcomer.node_id)
    key, api_key = ed25519.Ed25519PrivateKey.from_private_bytes(seed), ec.generate_private_key(ec.SECP256R1())
    write_file(root, "identity.key", key_pem(key), private=True)
    write_file(root, "api.key", key_pem(api_key), private=True)
    certificate = authority_directory / "ca.crt"
    write_file(root, "ca.crt", certificate.read_bytes(), private=False)
    names = api_names(newcomer.node_id, newcomer.host, newcomer.server_names)
    if not (authority_directory / "ca.key").exists():
        peer, api = request_certificate(identity, key), request_certificate(identity, api_key, names)
        write_file(root, "peer.csr", certificate_pem(peer), private=False)
        write_file(root, "api.csr", certificate_pem(api), private=False)
        return "peer.csr", "api.csr"
    authority = Authority.load(certificate, authority_directory / "ca.key")
    issued = authority.issue(identity, key.public_key(), now)
    write_file(root, "peer.crt", certificate_pem(issued), private=False)
    issued = authority.issue(identity, api_key.public_key(), now, server_names=names)
    write_file(root, "api.crt", certificate_pem(issued), private=False)
    return ()
