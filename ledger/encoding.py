"""The one canonical byte form of the chain: MessagePack arrays of integers, byte strings, text and arrays.

No floats, maps, extension types or nil ever enter it, so that equal values have equal bytes on every machine. Decoding
accepts exactly what `pack` makes: any other spelling of the same value is refused (SPEC 1.1). Every digest and every
signature is over a domain-separated value, so that bytes made for one purpose never pass for another.
"""

import hashlib
from typing import Any

import msgpack

DIGEST_SIZE_BYTES = 32
INTEGER_MAX = 2**63 - 1
"""Largest integer of any record: fits a signed 64-bit column of any database and any other language's parser."""
BUFFER_SIZE_BYTES = 4096
"""What encoding starts with, and grows from: the library's own quarter of a megabyte may cost 13 µs of mapping memory
per message, ten times the encoding itself."""


class MalformedEncoding(ValueError):
    """Bytes that `pack` would never make; the message says what is wrong and never repeats the bytes."""


def pack(value: Any) -> bytes:
    """Return the canonical bytes of nested tuples (or lists) of int, bytes, str."""
    packed: bytes = msgpack.Packer(use_bin_type=True, buf_size=BUFFER_SIZE_BYTES).pack(
        value
    )  # `packb` takes 0.4 µs more
    return packed


def unpack(data: bytes) -> Any:
    """Return the value of canonical bytes, arrays as tuples. Raises MalformedEncoding, and nothing else."""
    try:
        value = msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=True)
        canonical = pack(value) == data
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MalformedEncoding(f"not a MessagePack value: {type(error).__name__}") from None
    if not canonical:
        raise MalformedEncoding("not in the canonical form")
    return value


def unpack_array(data: bytes, length: int) -> tuple[Any, ...]:
    """Return the members of a canonical array of exactly `length` members. Raises MalformedEncoding."""
    return as_array(unpack(data), length)


def as_array(value: Any, length: int | None = None) -> tuple[Any, ...]:
    """Return `value` if it is an array (of `length` members, if given). Raises MalformedEncoding."""
    if type(value) is not tuple or (length is not None and len(value) != length):
        raise MalformedEncoding(f"expected an array of {'any number of' if length is None else length} members")
    return value


def as_integer(value: Any, low: int = 0, high: int = INTEGER_MAX) -> int:
    """Return `value` if it is an integer in low…high. Raises MalformedEncoding."""
    if type(value) is not int or not low <= value <= high:
        raise MalformedEncoding(f"expected an integer from {low} to {high}")
    return value


def as_bytes(value: Any, size_bytes: int | None = None) -> bytes:
    """Return `value` if it is a byte string (of `size_bytes`, if given). Raises MalformedEncoding."""
    if type(value) is not bytes or (size_bytes is not None and len(value) != size_bytes):
        raise MalformedEncoding(f"expected {'any number of' if size_bytes is None else size_bytes} bytes")
    return value


def as_text(value: Any, length_max: int = 128) -> str:
    """Return `value` if it is text of 1…length_max characters. Raises MalformedEncoding."""
    if type(value) is not str or not 1 <= len(value) <= length_max:
        raise MalformedEncoding(f"expected text of 1 to {length_max} characters")
    return value


def digest(domain: str, *members: Any) -> bytes:
    """Return SHA-256 of the canonical tuple (domain, *members)."""
    return hashlib.sha256(pack((domain, *members))).digest()


def integer_key(*values: int) -> bytes:
    """Return a storage key whose byte order is the order of the (unsigned, 64-bit) values."""
    return b"".join(value.to_bytes(8, "big") for value in values)
