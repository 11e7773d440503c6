"""Certificates: making a cluster's small authority, checking a node's own at start, reading a caller's identity.

Identities are URIs in the subject alternative name, `urn:qnode:node:<id>`, `urn:qnode:sae:<id>` and
`urn:qnode:operator:<name>`, percent-encoded; the common name repeats the ID for people. A certificate without such a
URI (one from another authority's routine) stands for the SAE of its common name. Node certificates hold the Ed25519
identity key itself, so that a connection is as strong as a vote; all others hold ECDSA P-256 keys, which every TLS
client knows.
"""

import datetime
import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825  # what strict TLS clients accept at most
_URI_PREFIX: Final = "urn:qnode:"
_COMMON_NAME_LENGTH_MAX: Final = 64
Kind = Literal["node", "sae", "operator"]
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class CertificateError(ValueError):
    """A certificate or key file that cannot serve; the message names the file and the way out."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate stands for."""

    kind: Kind
    name: str

    @property
    def uri(self) -> str:
        """The subject alternative name that carries this identity."""
        return f"{_URI_PREFIX}{self.kind}:{quote(self.name, safe='')}"


@dataclass(frozen=True, slots=True)
class Authority:
    """A cluster's own certificate authority: its certificate and its private key (ECDSA P-256)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str, now: datetime.datetime) -> Self:
        """Make a new authority that can sign end certificates only."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_LENGTH_MAX])])
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Self:
        """Read an authority back from its PEM files. Raises CertificateError."""
        private = load_private_key(key)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{key}: an authority's key is ECDSA P-256; use the ca.key that `qnode init` wrote")
        return cls(load_certificate(certificate), private)

    def issue(
        self, identity: Identity, public_key: PublicKey, now: datetime.datetime, *, server_names: Sequence[str] = ()
    ) -> x509.Certificate:
        """Sign a certificate for `identity`.

        A node's identity key serves both ends of peer connections; with `server_names` the certificate is for a server
        only, without them an SAE's or operator's is for a client only: neither can stand in for the other.
        """
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, identity.name[:_COMMON_NAME_LENGTH_MAX])
        if server_names:
            alternatives = [_alternative(name) for name in server_names]
            purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
        else:
            alternatives = [x509.UniformResourceIdentifier(identity.uri)]
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
            if identity.kind == "node":
                purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = _builder(x509.Name([common_name]), self.certificate.subject, public_key, now, CERTIFICATE_DAYS)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage(purposes), False),
            (x509.SubjectAlternativeName(alternatives), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


def request_certificate(
    identity: Identity, key: PrivateKey, server_names: Sequence[str] = ()
) -> x509.CertificateSigningRequest:
    """Ask for a certificate (PKCS #10) as `issue` makes it: of a node's identity, or with `server_names` of its API."""
    alternatives = [x509.UniformResourceIdentifier(identity.uri), *(_alternative(name) for name in server_names)]
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, identity.name[:_COMMON_NAME_LENGTH_MAX])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([common_name]))
    builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    return builder.sign(key, hashes.SHA256())


def issue_requested(authority: Authority, pem: bytes, now: datetime.datetime) -> x509.Certificate:
    """Issue what a node asks for. An Ed25519 key is an identity, a P-256 key with names serves an API; nothing else is.

    A request for an application's or operator's certificate is refused: whoever signs means to let a node in.
    Raises CertificateError.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        genuine, key = request.is_signature_valid, request.public_key()
    except (ValueError, x509.ExtensionNotFound, UnsupportedAlgorithm):
        raise CertificateError("not a certificate request of `qnode node new`") from None
    if not genuine:
        raise CertificateError("the request is not signed by its own key; make it again")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    identity = _identity_from_uri(uris[0]) if len(uris) == 1 and uris[0].startswith(_URI_PREFIX) else None
    if identity is None or identity.kind != "node":
        raise CertificateError("the request does not name one node; `qnode node new` makes it so")
    servers = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    identifies = isinstance(key, ed25519.Ed25519PublicKey) and not servers
    serves = isinstance(key, ec.EllipticCurvePublicKey) and bool(servers)
    if not isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) or not (identifies or serves):
        raise CertificateError("an identity is an Ed25519 key without server names, an API's a P-256 key with some")
    return authority.issue(identity, key, now, server_names=servers)


def identity_of(peer_certificate: Mapping[str, Any] | None) -> Identity | None:
    """Return who a verified TLS peer is, from `ssl.SSLObject.getpeercert()`; None for nobody we know.

    Exactly one of our URIs decides; several make the certificate ambiguous, hence nobody's. Without one, the single
    common name is an SAE's ID.
    """
    if not peer_certificate:
        return None
    names = peer_certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI" and value.startswith(_URI_PREFIX)]
    if uris:
        return _identity_from_uri(uris[0]) if len(uris) == 1 else None
    common_names = [value for part in peer_certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return Identity("sae", common_names[0]) if len(common_names) == 1 and common_names[0] else None


def _identity_from_uri(uri: str) -> Identity | None:
    kind, _, name = uri.removeprefix(_URI_PREFIX).partition(":")
    if kind not in ("node", "sae", "operator") or not name:
        return None
    return Identity(kind, unquote(name))  # type: ignore[arg-type]  # mypy does not narrow `in` to the literals


def node_public_key(certificate_der: bytes | None) -> bytes | None:
    """Return the raw Ed25519 key that a peer's certificate holds; None for any other kind of key."""
    if not certificate_der:
        return None
    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
    except ValueError:
        return None
    return key.public_bytes_raw() if isinstance(key, ed25519.Ed25519PublicKey) else None


def load_certificate(path: Path) -> x509.Certificate:
    """Read one PEM certificate. Raises CertificateError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"{path}: the certificate cannot be read: {error.strerror}") from None
    except ValueError:
        raise CertificateError(f"{path}: not a PEM certificate; use the file that `qnode init` wrote") from None


def load_private_key(path: Path) -> PrivateKey:
    """Read one unencrypted PEM private key. Raises CertificateError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise CertificateError(f"{path}: the private key cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise CertificateError(f"{path}: not an unencrypted PEM private key; use the one `qnode init` wrote") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise CertificateError(f"{path}: the private key is neither Ed25519 nor ECDSA")
    return key


def check_files(certificate: Path, key: Path, authority: Path, now: datetime.datetime) -> x509.Certificate:
    """Check at start what TLS would only refuse later and without a reason: dates, key, issuer.

    Returns the certificate. Raises CertificateError naming the file and what to do.
    """
    own, issuer = load_certificate(certificate), load_certificate(authority)
    for path, checked in ((certificate, own), (authority, issuer)):
        if checked.not_valid_after_utc < now:
            raise CertificateError(
                f"{path}: expired on {checked.not_valid_after_utc:%Y-%m-%d}; "
                "issue a new one, or set the clock if it is wrong"
            )
        if checked.not_valid_before_utc > now:
            raise CertificateError(
                f"{path}: valid only from {checked.not_valid_before_utc:%Y-%m-%d %H:%M} UTC and the clock shows "
                f"{now:%Y-%m-%d %H:%M} UTC; set the clock, or issue a new certificate"
            )
    if load_private_key(key).public_key() != own.public_key():
        raise CertificateError(
            f"{certificate}: does not belong to the private key {key}; take both from one `qnode init`"
        )
    try:
        own.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateError(f"{certificate}: not signed by {authority}; take both from one `qnode init`") from None
    return own


def peer_contexts(certificate: Path, key: Path, authority: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the (server, client) TLS 1.3 contexts of peer connections; both sides must show a certificate.

    Host names are not checked: the identity key in the certificate is, and it is stronger. No session tickets, so that
    every connection proves the key afresh.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    server.num_tickets = 0
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        _load(context, certificate, key, authority)
    return server, client


def show(contexts: tuple[ssl.SSLContext, ssl.SSLContext], certificate: Path, key: Path) -> None:
    """Let the next connections of both contexts show another certificate. Raises CertificateError."""
    try:
        for context in contexts:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(f"{certificate} or {key} cannot be used for TLS: {error}") from None


def api_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Return the server context of the HTTPS listener: TLS 1.2 or newer, client certificate required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, certificate, key, authority)
    return context


def client_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Return the context of an application or operator that calls a node."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, certificate, key, authority)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path, authority: Path) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(f"{certificate}, {key} or {authority} cannot be used for TLS: {error}") from None


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # hosts of one cluster may disagree by so much
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
