"""Calls a node's HTTPS doors from the command line: an ETSI 014 client and an operator, by certificate.

Synchronous, on the standard library alone, so that a command starts fast. Finds host, port and certificates in a
cluster's directory, or takes them as given.
"""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from qnode.io import certificates

TIMEOUT_S: Final = 35.0  # a little more than the node's own limit, so that its answer is heard
_UNSPECIFIED: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound


class CallFailed(Exception):
    """The node was not reached, or gave an error; `status` is 0 when there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class NodeClient:
    """One node's API as one identity."""

    host: str
    port: int
    context: ssl.SSLContext

    @classmethod
    def from_files(cls, url: str, certificate: Path, key: Path, ca: Path) -> Self:
        """Make a client for `https://host:port`. Raises CertificateError, CallFailed for a URL that is none."""
        parts = urlsplit(url if "//" in url else f"https://{url}")
        try:
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            host, port = None, 0
        if parts.scheme != "https" or not host:
            raise CallFailed(0, f"{url!r} is not the URL of a node; give https://HOST:PORT")
        return cls(host, port, certificates.client_context(certificate, key, ca))

    @classmethod
    def for_listener(cls, host: str, port: int, certificate: Path, key: Path, ca: Path) -> Self:
        """Make a client for a node whose listen address is known from its configuration."""
        reached = "127.0.0.1" if host in _UNSPECIFIED else host
        return cls(reached, port, certificates.client_context(certificate, key, ca))

    def call(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        """Send one request and return the JSON object of the answer. Raises CallFailed."""
        body = None if document is None else json.dumps(document)
        headers = {"Content-Type": "application/json"} if body else {}
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=self.context)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise CallFailed(0, f"{self.host}:{self.port}: {_reason(error)}") from None
        finally:
            connection.close()
        return _document(status, content)

    def status(self, slave_sae: str) -> dict[str, Any]:
        """014 status."""
        return self.call("GET", f"/api/v1/keys/{quote(slave_sae, safe='')}/status")

    def get_keys(self, slave_sae: str, number: int, size_bits: int | None) -> dict[str, Any]:
        """014 enc_keys."""
        wanted = {"number": number} | ({} if size_bits is None else {"size": size_bits})
        return self.call("POST", f"/api/v1/keys/{quote(slave_sae, safe='')}/enc_keys", wanted)

    def get_keys_with_ids(self, master_sae: str, key_ids: list[str]) -> dict[str, Any]:
        """014 dec_keys."""
        wanted = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        return self.call("POST", f"/api/v1/keys/{quote(master_sae, safe='')}/dec_keys", wanted)


def _document(status: int, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CallFailed(
            status, f"the answer (HTTP {status}) is not a JSON object; is this the port of a node's [api]?"
        )
    if status != 200:
        raise CallFailed(status, str(document.get("message", f"HTTP {status}")))
    return document


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there; start the node with `qnode cluster up DIR` or `qnode run`"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the node's certificate is not accepted ({error.verify_message}); give the ca.crt of its cluster"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason}); the node accepts certificates of its own cluster's authority only"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
