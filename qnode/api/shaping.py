"""The operator's door to the shaping of peer connections: for load tests, see `qnode.io.shaping`.

`PUT /admin/v1/shaping {"peers": {"node-2": {"delay_ms": 20, "cut": false}, "*": {…}}}` replaces the whole table of this
node ("*" is every peer that is not named); `GET` shows it. Nothing is kept over a restart.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from qnode.api.http import Call, CallError, Reply, document_reply
from qnode.io.shaping import Shape, ShapeError

KEYS: Final = ("delay_ms", "jitter_ms", "loss", "bandwidth_mbit_per_s", "cut")
PEERS_MAX: Final = 10_000  # more nodes than a chain has


class Shaped(Protocol):
    """What the door needs of the transport."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...
    def shape(self, shapes: Mapping[str, Shape]) -> None: ...


class ShapingAdmin:
    """`/admin/v1/shaping`."""

    prefix: tuple[str, ...] = ("admin", "v1", "shaping")

    def __init__(self, transport: Shaped) -> None:
        self._transport = transport

    async def handle(self, call: Call) -> Reply:
        """Answer one call of an operator. Raises CallError."""
        if call.caller is None or call.caller.kind != "operator":
            raise CallError(403, "an operator's certificate is needed here, such as clients/operator.crt")
        if call.segments:
            raise CallError(404, "unknown path; /admin/v1/shaping has nothing below it")
        call.require_method("GET", "PUT")
        call.parameters()
        if call.method == "PUT":
            self._transport.shape(_shapes((await call.members("peers")).get("peers")))
        shapes = self._transport.shapes
        return document_reply(
            {"peers": {peer: {key: getattr(shape, key) for key in KEYS} for peer, shape in shapes.items()}}
        )


def _shapes(table: Any) -> dict[str, Shape]:
    if not isinstance(table, dict) or len(table) > PEERS_MAX:
        raise CallError(400, 'peers must be an object such as {"node-2": {"delay_ms": 20}, "*": {}}')
    return {peer: _shape(peer, values) for peer, values in table.items()}


def _shape(peer: str, values: Any) -> Shape:
    where = f"peers.{peer[:64]}"
    if not isinstance(values, dict):
        raise CallError(400, f"{where} must be an object")
    for key, value in values.items():
        if key not in KEYS:
            raise CallError(400, f"{where} has an unknown key {key[:64]!r}; known here: {', '.join(KEYS)}")
        if type(value) not in ((bool,) if key == "cut" else (int, float)):
            raise CallError(400, f"{where}.{key} must be {'true or false' if key == 'cut' else 'a number'}")
    try:
        return Shape(**values)
    except ShapeError as error:
        raise CallError(400, f"{where}: {error}") from None
