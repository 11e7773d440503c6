"""The daemon's log: one JSON object per line, and no secret in any of them.

Decides the form of a line and what may not be in it: `KeyMaterial` and byte strings are replaced wherever they are in
an event, and the line says so under `refused`, so that the mistake is found without the secret.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import IO, Any, Final, cast

import structlog

from protocol.keys import KeyMaterial

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_DEPTH_MAX: Final = 6  # a log line is not a data structure; deeper values are cut
_EventDict = MutableMapping[str, Any]


def refuse_secrets(logger: Any, method: str, event: _EventDict) -> _EventDict:
    """Replace key material and bytes in a log event; a structlog processor."""
    refused: list[str] = []
    clean: _EventDict = {key: _cleaned(value, key, refused, 0) for key, value in event.items()}
    if refused:
        clean["refused"] = refused
    return clean


def _cleaned(value: Any, path: str, refused: list[str], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, KeyMaterial | bytes | bytearray | memoryview):
        refused.append(path)
        return f"<{type(value).__name__}, refused>"
    if depth >= _DEPTH_MAX:
        return "<too deep>"
    if isinstance(value, Mapping):
        return {str(key): _cleaned(each, f"{path}.{key}", refused, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(each, f"{path}[{n}]", refused, depth + 1) for n, each in enumerate(value)]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return f"<{type(value).__name__}>"  # its repr might show anything


def configure(level: str, node_id: str, stream: IO[str] | None = None) -> structlog.typing.FilteringBoundLogger:
    """Send the log to `stream` (standard error by default) and return the node's logger.

    Lines of libraries (asyncio's "Task exception was never retrieved", aiohttp) take the same form.
    """
    output = stream or sys.stderr
    minimum = LEVELS[level]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            refuse_secrets,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(minimum),
        logger_factory=structlog.WriteLoggerFactory(file=cast(Any, output)),
        cache_logger_on_first_use=True,
    )
    logger = cast("structlog.typing.FilteringBoundLogger", structlog.get_logger().bind(node=node_id))
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog(logger)]
    root.setLevel(max(minimum, logging.INFO))
    return logger


class _ToStructlog(logging.Handler):
    """Brings lines of the standard logging module into the one log."""

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= 40 else "warning" if record.levelno >= 30 else "info"
        getattr(self._logger, level)(record.getMessage(), library=record.name, exc_info=record.exc_info or None)
