"""A node that joins: its directory, its certificates or the requests for them, and what is refused."""

import datetime
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ledger.contracts.actions import action_from_document
from ledger.contracts.membership import AdmitNode
from ledger.genesis import Genesis
from qnode import cli
from qnode.initialise import InitialiseError, Plan, initialise, read_topology
from qnode.io.certificates import (
    Authority,
    CertificateError,
    Identity,
    check_files,
    issue_requested,
    request_certificate,
)
from qnode.io.configuration import check_certificates, read_genesis, read_settings
from qnode.io.entropy import OperatingSystemEntropy
from qnode.joining import Joining, Newcomer, join, known_contacts, sign_request
from qnode.layout import Contact, certificate_pem

NOW = datetime.datetime.now(datetime.UTC)
PEER = Contact("node-1", "10.0.0.1", 20_000)


def cluster(tmp_path: Path, *, hybrid_votes: bool = False) -> Path:
    directory = tmp_path / "there"
    plan = Plan(read_topology("ring", 3), hybrid_votes=hybrid_votes)
    initialise(directory, plan, OperatingSystemEntropy(), NOW)
    return directory


def joined(directory: Path, newcomer: Newcomer) -> Joining:
    return join(directory, newcomer, OperatingSystemEntropy(), NOW)


def elsewhere(tmp_path: Path, directory: Path) -> Path:
    """Another machine, which has what is public of the cluster."""
    other = tmp_path / "elsewhere"
    (other / "ca").mkdir(parents=True)
    (other / "genesis.json").write_bytes((directory / "genesis.json").read_bytes())
    (other / "ca" / "ca.crt").write_bytes((directory / "ca" / "ca.crt").read_bytes())
    return other


def admission(joining: Joining) -> AdmitNode:
    """What the printed proposal means."""
    action, *rest = joining.proposal(validator=True)[2:]
    found = action_from_document(action, dict(text.split("=", 1) for text in rest[1::2]))
    assert isinstance(found, AdmitNode)
    return found


@pytest.mark.parametrize("hybrid_votes", [False, True])
def test_beside_the_authority_the_node_can_start_at_once(tmp_path: Path, hybrid_votes: bool) -> None:
    directory = cluster(tmp_path, hybrid_votes=hybrid_votes)
    joining = joined(directory, Newcomer("node-4"))
    settings = read_settings(joining.config)
    check_certificates(settings, NOW)
    genesis = read_genesis(settings)
    assert [peer.node_id for peer in settings.peers] == [node.node_id for node in genesis.nodes]
    assert settings.links == () and joining.requests == ()
    action = admission(joining)
    assert (action.node_id, action.public_key, action.validator) == ("node-4", joining.public_key, 1)
    assert bool(action.post_quantum_key) == hybrid_votes
    assert {path.stat().st_mode & 0o777 for path in (directory / "node-4").glob("*.key")} == {0o600}


def test_elsewhere_the_authority_signs_requests(tmp_path: Path) -> None:
    directory = cluster(tmp_path)
    other = elsewhere(tmp_path, directory)
    joining = joined(other, Newcomer("node-4", server_names=("kme.example",), contacts=(PEER,)))
    settings = read_settings(joining.config)
    with pytest.raises(CertificateError, match=r"peer\.crt"):
        check_certificates(settings, NOW)
    arguments = ["ca", "sign", *map(str, joining.requests), "--cluster", str(directory)]
    assert CliRunner().invoke(cli.cli, arguments).exit_code == 0
    check_certificates(settings, NOW)
    api = check_files(settings.api.certificate, settings.api.key, settings.api.ca, NOW)
    names = api.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kme.example" in names.get_values_for_type(x509.DNSName)
    with pytest.raises(CertificateError, match="exists already"):
        sign_request(joining.requests[0], directory, NOW)


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    directory = cluster(tmp_path)
    before = sorted(directory.rglob("*"))
    for name, reason in (("node-1", "already"), ("ca", "not a name"), ("../x", "not a name")):
        with pytest.raises(InitialiseError, match=reason):
            joined(directory, Newcomer(name))
    (directory / "ca" / "ca.key").rename(tmp_path / "kept")
    (directory / "ca" / "ca.key").write_text("no key")
    with pytest.raises(CertificateError):
        joined(directory, Newcomer("node-4"))
    assert sorted(directory.rglob("*")) == before
    other = elsewhere(tmp_path, directory)
    with pytest.raises(InitialiseError, match="--peer"):
        joined(other, Newcomer("node-4"))
    (other / "ca" / "ca.crt").unlink()
    with pytest.raises(InitialiseError, match=r"ca\.crt is missing"):
        joined(other, Newcomer("node-4", contacts=(PEER,)))
    with pytest.raises(InitialiseError, match="needs the genesis"):
        joined(tmp_path, Newcomer("node-4", contacts=(PEER,)))


def test_what_others_dial_counts_more_than_where_a_node_listens(tmp_path: Path) -> None:
    directory = cluster(tmp_path)
    config = directory / "node-1.toml"
    config.write_text(config.read_text().replace('listen_host = "127.0.0.1"', 'listen_host = "0.0.0.0"'))
    assert {contact.host for contact in known_contacts(directory)} == {"127.0.0.1"}


def test_requests_that_are_not_a_nodes_are_refused() -> None:
    authority = Authority.create("test", NOW)
    identity_key, api_key = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    node = Identity("node", "node-4")
    good = certificate_pem(request_certificate(node, identity_key))
    assert issue_requested(authority, good, NOW).public_key() == identity_key.public_key()
    refused = [
        (certificate_pem(request_certificate(Identity("operator", "me"), api_key)), "does not name one node"),
        (certificate_pem(request_certificate(node, api_key)), "Ed25519 key without"),
        (certificate_pem(request_certificate(node, identity_key, ["name"])), "Ed25519 key without"),
        (b"nothing", "not a certificate request"),
    ]
    for pem, reason in refused:
        with pytest.raises(CertificateError, match=reason):
            issue_requested(authority, pem, NOW)


def test_the_command_prints_what_to_do(tmp_path: Path) -> None:
    directory = cluster(tmp_path, hybrid_votes=True)
    result = CliRunner().invoke(cli.cli, ["node", "new", "node-4", "--cluster", str(directory)])
    assert result.exit_code == 0, result.output
    assert "governance propose admit-node --set node_id=node-4" in result.output
    assert f"$(cat {directory}/node-4/post_quantum_key.hex)" in result.output
    genesis = Genesis.from_json((directory / "genesis.json").read_text())
    assert "node-4" not in {node.node_id for node in genesis.nodes}
    wrong = CliRunner().invoke(cli.cli, ["node", "new", "node-5", "--cluster", str(directory), "--peer", "node-1"])
    assert wrong.exit_code == 2 and "NODE=HOST:PORT" in wrong.output
    as_json = CliRunner().invoke(cli.cli, ["node", "new", "node-5", "--cluster", str(directory), "--json"])
    assert json.loads(as_json.output)["proposal"][2] == "admit-node"
