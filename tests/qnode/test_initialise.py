"""`initialise` on real files: a cluster that its own checks accept, private keys private, nothing half written."""

import datetime
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from ledger.genesis import Genesis
from protocol.entropy import SeededEntropy
from qnode.initialise import InitialiseError, Plan, free_ports, initialise, read_topology
from qnode.io import configuration
from qnode.io.certificates import CertificateError, Identity, check_files, identity_of, node_public_key
from qnode.settings import SettingsError
from qnode.topologies import shaped

NOW = datetime.datetime.now(datetime.UTC)
CAMPUS = Path(__file__).parents[2] / "config" / "topologies" / "campus.toml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("init") / "city"
    initialise(directory, Plan(shaped("ring", 4), chain_id="city"), SeededEntropy(b"test"), NOW)
    return directory


def test_every_node_can_read_its_configuration(cluster: Path) -> None:
    genesis = Genesis.from_json((cluster / "genesis.json").read_text())
    assert [node.node_id for node in genesis.nodes] == ["node-1", "node-2", "node-3", "node-4"]
    ports = []
    for node in genesis.nodes:
        found = configuration.read_settings(cluster / f"{node.node_id}.toml")
        assert configuration.read_genesis(found).digest == genesis.digest
        configuration.check_certificates(found, NOW)
        certificate = ssl.PEM_cert_to_DER_cert(found.peer_to_peer.certificate.read_text())
        assert node_public_key(certificate) == node.public_key
        ports += [found.peer_to_peer.listen_port, found.api.listen_port]
    assert len(set(ports)) == 8


def test_both_ends_of_a_link_share_its_secret_and_no_other(cluster: Path) -> None:
    secrets = {path: path.read_bytes() for path in cluster.glob("node-*/*.psk")}
    assert len(secrets) == 8
    assert len(set(secrets.values())) == 4
    assert (cluster / "node-1/link-1-2.psk").read_bytes() == (cluster / "node-2/link-1-2.psk").read_bytes()


def test_private_files_are_private(cluster: Path) -> None:
    for path in cluster.rglob("*"):
        if path.suffix in (".key", ".psk"):
            assert path.stat().st_mode & 0o777 == 0o600, path
        if path.is_dir():
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_every_certificate_strictly(cluster: Path) -> None:
    for path in [*cluster.glob("clients/*.crt"), *cluster.glob("node-*/api.crt"), *cluster.glob("node-*/peer.crt")]:
        purpose = "sslserver" if path.name == "api.crt" else "sslclient"
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", cluster / "ca/ca.crt", path],
            check=True,
            capture_output=True,
        )


def test_an_existing_directory_is_not_touched(cluster: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in cluster.rglob("*"))
    with pytest.raises(InitialiseError, match="exists and is not empty"):
        initialise(cluster, Plan(shaped("ring", 4)), SeededEntropy(b"x"), NOW)
    assert sorted((path, path.stat().st_mtime_ns) for path in cluster.rglob("*")) == before


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken:
        def take(self, size_bytes: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InitialiseError, match="cannot be written"):
        initialise(tmp_path / "new", Plan(shaped("line", 2)), Broken(), NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_topology_file_names_nodes_and_links(tmp_path: Path) -> None:
    genesis = initialise(tmp_path / "campus", Plan(read_topology(str(CAMPUS), None)), SeededEntropy(b"x"), NOW)
    assert [link.link_id for link in genesis.links][:2] == ["ward-fibre", "laboratory--exchange"]
    assert ("sae-depot-a", "depot") in {(sae.sae_id, sae.node_id) for sae in genesis.saes}
    assert configuration.read_settings(tmp_path / "campus" / "hospital.toml").link("ward-fibre").profile == "metro"


@pytest.mark.parametrize(
    ("name", "nodes", "message"),
    [
        ("moebius", None, "not a topology; name one of ring, line"),
        ("none.toml", None, "cannot be read"),
        (str(CAMPUS), 4, "has 5 nodes; leave --nodes out"),
    ],
)
def test_a_bad_topology_is_refused(name: str, nodes: int | None, message: str) -> None:
    with pytest.raises(InitialiseError, match=message):
        read_topology(name, nodes)


def test_an_unknown_profile_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InitialiseError, match="'moon' is not a link profile; the profiles are"):
        initialise(tmp_path / "x", Plan(shaped("line", 2), profile="moon"), SeededEntropy(b"x"), NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InitialiseError, match=f"port {port} on 127.0.0.1 is in use"):
            free_ports("127.0.0.1", 1, port)
    with pytest.raises(InitialiseError, match="leaves no room"):
        free_ports("127.0.0.1", 8, 65_530)


def test_files_of_two_clusters_do_not_mix(cluster: Path, tmp_path: Path) -> None:
    initialise(tmp_path / "other", Plan(shaped("line", 2)), SeededEntropy(b"other"), NOW)
    node, other = cluster / "node-1", tmp_path / "other" / "node-1"
    with pytest.raises(CertificateError, match="does not belong to the private key"):
        check_files(node / "peer.crt", other / "identity.key", node / "ca.crt", NOW)
    with pytest.raises(CertificateError, match="not signed by"):
        check_files(node / "peer.crt", node / "identity.key", other / "ca.crt", NOW)


@pytest.mark.parametrize(("days", "message"), [(900, "expired on"), (-2, "valid only from")])
def test_dates_are_checked_with_the_clock_in_mind(cluster: Path, days: int, message: str) -> None:
    node = cluster / "node-1"
    with pytest.raises(CertificateError, match=f"{message}.*clock"):
        check_files(node / "api.crt", node / "api.key", node / "ca.crt", NOW + datetime.timedelta(days=days))


def test_unusable_files_are_named(cluster: Path, tmp_path: Path) -> None:
    node, junk = cluster / "node-1", tmp_path / "junk"
    junk.write_text("junk")
    for certificate, key in ((junk, node / "api.key"), (node / "api.crt", junk), (tmp_path / "no", node / "api.key")):
        with pytest.raises(CertificateError, match=re.escape(str(tmp_path))):
            check_files(certificate, key, node / "ca.crt", NOW)


def test_a_genesis_of_another_cluster_is_refused(cluster: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cluster, copy)
    initialise(tmp_path / "other", Plan(shaped("line", 2)), SeededEntropy(b"other"), NOW)
    shutil.copy(tmp_path / "other" / "genesis.json", copy / "genesis.json")
    with pytest.raises(SettingsError, match=r"node-3.*is not in .*genesis\.json"):
        configuration.read_genesis(configuration.read_settings(copy / "node-1.toml"))
    (copy / "genesis.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"genesis\.json"):
        configuration.read_genesis(configuration.read_settings(copy / "node-1.toml"))


def test_identities_of_certificates() -> None:
    def certificate(*uris: str, common_names: tuple[str, ...] = ("cn",)) -> dict[str, object]:
        return {
            "subject": tuple((("commonName", name),) for name in common_names),
            "subjectAltName": tuple(("URI", uri) for uri in uris),
        }

    odd = Identity("sae", "a/b ü:c")
    assert identity_of(certificate(odd.uri)) == odd
    assert identity_of(certificate("urn:qnode:operator:ops", "https://other")) == Identity("operator", "ops")
    assert identity_of(certificate()) == Identity("sae", "cn")
    assert identity_of(certificate("urn:qnode:sae:a", "urn:qnode:sae:b")) is None
    assert identity_of(certificate("urn:qnode:king:a")) is None
    assert identity_of(certificate("urn:qnode:sae:")) is None
    assert identity_of(certificate(common_names=("a", "b"))) is None
    assert identity_of(None) is None
    assert identity_of({}) is None
    assert node_public_key(b"junk") is None
