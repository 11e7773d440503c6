"""What the doors share: a call as they see it, a reply as they give it, and strict JSON. No sockets here.

A door is a path prefix and a function from `Call` to `Reply`; `qnode.api.server` carries them over HTTPS. Every error
is a JSON body with `message` (and `details`), as ETSI GS QKD 014 asks of all 4xx and 5xx answers.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import parse_qsl, unquote

from qnode.inputs import Answer, Request, RequestError
from qnode.io.certificates import Identity

Ask = Callable[[Request], Awaitable[Answer]]
QUERY_FIELDS_MAX: Final = 32
JSON_HEADERS: Final = (("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("Server", "qnode"))


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class CallError(Exception):
    """A caller's fault, or what the node cannot do now: becomes an error reply."""

    def __init__(
        self, status: int, message: str, details: Sequence[tuple[str, str]] = (), allow: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = tuple(details)
        self.allow = tuple(allow)

    def reply(self) -> Reply:
        """Return the error as 014 wants it."""
        document: dict[str, Any] = {"message": self.message}
        if self.details:
            document["details"] = [{name: value} for name, value in self.details]
        headers = (("Allow", ", ".join(self.allow)),) if self.allow else ()
        return Reply(self.status, json.dumps(document).encode(), headers)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a door sees it; `segments` follow the door's prefix, decoded, and `caller` is authenticated."""

    method: str
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    caller: Identity | None
    read_body: Callable[[], Awaitable[bytes]]

    def require_method(self, *allowed: str) -> None:
        """Refuse other methods with 405."""
        if self.method not in allowed:
            raise CallError(405, f"method {self.method} is not allowed here; use {' or '.join(allowed)}", allow=allowed)

    def parameters(self, *known: str) -> dict[str, str]:
        """Return the query parameters. Raises CallError for one that is unknown or given twice."""
        found: dict[str, str] = {}
        for name, value in self.query:
            if name not in known:
                raise CallError(400, f"unknown query parameter {name[:64]!r}; known here: {', '.join(known) or 'none'}")
            if name in found:
                raise CallError(400, f"query parameter {name} is given more than once")
            found[name] = value
        return found

    async def members(self, *known: str) -> dict[str, Any]:
        """Return the members of the JSON object in the body; an empty body is an empty object."""
        body = await self.read_body()
        document = parse_json(body) if body.strip() else {}
        if not isinstance(document, dict):
            raise CallError(400, "the body must be a JSON object")
        for name in document:
            if name not in known:
                raise CallError(400, f"unknown member {name[:64]!r}; known here: {', '.join(known)}")
        return document


class Door(Protocol):
    """One interface behind the HTTPS listener."""

    prefix: tuple[str, ...]

    async def handle(self, call: Call) -> Reply:
        """Answer one call. Raises CallError."""
        ...


def split_target(target: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Cut a request target into decoded path segments and query pairs; `%2F` stays inside its segment.

    Raises CallError 400 for bytes that are not UTF-8 and for too many parameters.
    """
    if target.startswith(("http://", "https://")):
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    try:
        segments = tuple(unquote(part, errors="strict") for part in path.split("/")[1:])
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        raise CallError(400, "the path or query is not percent-encoded UTF-8, or has too many parameters") from None
    return segments, tuple(pairs)


def parse_json(body: bytes) -> Any:
    """Parse strict JSON: UTF-8, no duplicate members, no NaN or Infinity. Raises CallError 400."""
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise CallError(400, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise CallError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; brackets thousands deep
        raise CallError(400, "the body is JSON beyond all limits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CallError(400, "a JSON object has the same member twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise CallError(400, f"{name} is not JSON")


# Made once: `json.loads` and `json.dumps` make one for every call that is not quite usual, at half of its cost.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


def integer(value: Any, name: str, low: int, high: int) -> int:
    """Return a JSON integer within a range. Raises CallError 400; booleans and 3.0 are not integers."""
    if type(value) is not int:
        raise CallError(400, f"{name} must be an integer")
    if not low <= value <= high:
        raise CallError(400, f"{name} must be from {low} to {high}")
    return value


def decimal(text: str, name: str) -> int:
    """Return the integer of a query parameter. Raises CallError 400."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise CallError(400, f"{name} must be an integer")
    return int(text)


def document_reply(document: Any) -> Reply:
    """Return a 200 answer of one JSON document."""
    return Reply(200, _ENCODER.encode(document).encode())


def raise_refusal(answer: Answer) -> None:
    """Turn a RequestError of the node into a CallError; let every other answer pass."""
    if isinstance(answer, RequestError):
        raise CallError(answer.status, answer.message, answer.details)
