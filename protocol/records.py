"""Typed records as MessagePack arrays: the codec that every message of the protocol shares (SPEC part 4).

A record travels as one array: its kind, then its fields in order. `decode_record` accepts exactly what `encode_record`
makes (types, counts, bounds) and raises MalformedMessage for everything else, whatever the bytes. Free of numpy, so
that a small device can load it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, TypeVar, cast, get_args

import msgpack

INTEGER_MAX: Final = 2**63 - 1
TEXT_LENGTH_MAX: Final = 256
"""Characters of a text field: the longest are SAE identities, which the certificate standard bounds at 64."""
TUPLE_ITEMS_MAX: Final = 1024
"""Items of a list field: the longest are the key IDs of one transfer (at most 128) and the nodes of a path."""
BUFFER_SIZE_BYTES: Final = 4096
"""What encoding starts with, and grows from: the library's own quarter of a megabyte may cost 13 µs of mapping memory
per message, ten times the encoding itself."""


class MalformedMessage(ValueError):
    """Bytes that are no record of this protocol."""


@dataclass(frozen=True, slots=True)
class Record:
    """What every record has: a kind number, unique in its family. Fields: int, str, bytes, bool, tuples of those."""

    KIND: ClassVar[int]


RecordType = TypeVar("RecordType", bound=Record)


Reader = Callable[[Any], Any]
"""Returns a field's value from what MessagePack made of it. Raises MalformedMessage."""


def _malformed() -> MalformedMessage:
    return MalformedMessage("a field is out of range or of another type")


def _read_integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise _malformed()
    return value


def _read_text(value: Any) -> str:
    if type(value) is not str or len(value) > TEXT_LENGTH_MAX:
        raise _malformed()
    return value


def _read_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise _malformed()
    return value


def _read_flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _malformed()
    return value


_READERS: Final[dict[object, Reader]] = {
    int: _read_integer,
    str: _read_text,
    bytes: _read_bytes,
    bool: _read_flag,
}


def _reader(kind: object) -> Reader:
    """Return the reader of a field type: int, str, bytes, bool, or a tuple of those."""
    return _READERS[kind] if kind in _READERS else _tuple_reader(get_args(kind))


def _tuple_reader(kinds: tuple[object, ...]) -> Reader:
    is_even = len(kinds) == 2 and kinds[1] is Ellipsis
    readers = tuple(_reader(kind) for kind in kinds if kind is not Ellipsis)

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > TUPLE_ITEMS_MAX:
            raise MalformedMessage("a field is no list, or too long a one")
        if is_even:
            return tuple(map(readers[0], value))
        if len(readers) != len(value):
            raise MalformedMessage("a list has another length")
        return tuple([read(item) for read, item in zip(readers, value, strict=True)])

    return read


_FIELDS: Final[dict[type[Record], tuple[tuple[str, Reader], ...]]] = {}


def _fields(kind: type[Record]) -> tuple[tuple[str, Reader], ...]:
    """Return name and reader of every field of a kind of record: looked up once, not for every message."""
    found = _FIELDS.get(kind)
    if found is None:
        found = _FIELDS[kind] = tuple((field.name, _reader(field.type)) for field in fields(kind))
    return found


def encode_record(record: Record) -> bytes:
    """Return the one encoding of a record."""
    values = [getattr(record, name) for name, _ in _fields(type(record))]
    return cast(bytes, msgpack.packb([record.KIND, *values], use_bin_type=True, buf_size=BUFFER_SIZE_BYTES))


def decode_record(data: bytes, family: dict[int, type[RecordType]]) -> RecordType:
    """Return the record that `data` encodes, one of `family` (kind → class). Raises MalformedMessage."""
    try:
        values = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0, max_map_len=0)
    except Exception as error:  # the library raises its own errors and ValueError, UnicodeDecodeError, RecursionError
        raise MalformedMessage(f"not a MessagePack array: {type(error).__name__}") from None
    if type(values) is not list or not values or type(values[0]) is not int or values[0] not in family:
        raise MalformedMessage("not a known kind of record")
    kind = family[values[0]]
    expected = _fields(kind)
    if len(values) - 1 != len(expected):
        raise MalformedMessage(f"{kind.__name__} has {len(expected)} fields, these bytes {len(values) - 1}")
    return kind(*[read(value) for (_, read), value in zip(expected, values[1:], strict=True)])
