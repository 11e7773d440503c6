"""Typed records as MessagePack arrays: the codec that every message of the protocol shares (SPEC part 4).

A record travels as one array: its kind, then its fields in order. `decode_record` accepts exactly what `encode_record`
makes (types, counts, bounds) and raises MalformedMessage for everything else, whatever the bytes. Free of numpy, so
that a small device can load it.
"""

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


def _read(kind: object, value: Any) -> Any:
    """Return `value` as the field type `kind` (int, str, bytes, bool, or a tuple of those). Raises MalformedMessage."""
    if kind is int:
        good = type(value) is int and 0 <= value <= INTEGER_MAX
    elif kind is str:
        good = type(value) is str and len(value) <= TEXT_LENGTH_MAX
    elif kind is bytes or kind is bool:
        good = type(value) is kind
    else:
        return _read_tuple(get_args(kind), value)
    if not good:
        raise MalformedMessage("a field is out of range or of another type")
    return value


def _read_tuple(kinds: tuple[object, ...], value: Any) -> tuple[Any, ...]:
    if type(value) is not list or len(value) > TUPLE_ITEMS_MAX:
        raise MalformedMessage("a field is no list, or too long a one")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise MalformedMessage("a list has another length")
    return tuple(_read(kind, item) for kind, item in zip(kinds, value, strict=True))


def encode_record(record: Record) -> bytes:
    """Return the one encoding of a record."""
    values = [getattr(record, field.name) for field in fields(record)]
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
    expected = fields(kind)
    if len(values) - 1 != len(expected):
        raise MalformedMessage(f"{kind.__name__} has {len(expected)} fields, these bytes {len(values) - 1}")
    return kind(*(_read(field.type, value) for field, value in zip(expected, values[1:], strict=True)))
