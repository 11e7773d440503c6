"""What SQLite's write-ahead log says beyond what SQLite tells: whether it lost something that was synced (row S0-E18).

SQLite takes a log up to its last whole transaction and silently drops the rest. That is right for a write that a crash
interrupted, and wrong where the medium changed a transaction that was synced long ago: then later ones, synced as well,
would vanish with it. A transaction is written only after the one before it is synced, so whole frames of a later
transaction after the place where SQLite stopped show damage, not an interruption. Only the headers of frames are read.
Format: https://www.sqlite.org/fileformat2.html, section 4.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
SALT_BITS_FLIPPED_MAX: Final = 8
"""Of 64: two generations come so close once in a hundred million."""
_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}


@dataclass(frozen=True, slots=True)
class LogFrames:
    """The frames of a log's present generation: for each whole place in the file, whether a transaction ends there.

    None stands for bytes that are no frame of this generation. `damaged` says that the log's own header is broken.
    """

    ends: tuple[bool | None, ...]
    damaged: bool = False

    def loss_fault(self, recovered: int) -> str | None:
        """Return why more than an interrupted write was lost if SQLite recovered so many frames, or None."""
        if self.damaged:
            return "the header of its write-ahead log is damaged"
        rest = self.ends[recovered:]
        if True in rest and any(each is not None for each in rest[rest.index(True) + 1 :]):
            return f"frame {recovered + 1} of its write-ahead log is damaged, and later transactions depend on it"
        return None


NO_FRAMES: Final = LogFrames(())


def read_frames(path: Path) -> LogFrames:
    """Read the log at `path` before SQLite does; a missing or empty one has no frames."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            size_bytes = file.seek(0, 2)
            if len(header) < HEADER_BYTES:
                return NO_FRAMES
            magic, _, page_bytes, _ = struct.unpack(">4I", header[:16])
            if magic not in _MAGIC or _checksum(header[:24], _MAGIC[magic]) != struct.unpack(">2I", header[24:]):
                return LogFrames((), damaged=size_bytes > HEADER_BYTES + FRAME_HEADER_BYTES)
            frame_bytes = FRAME_HEADER_BYTES + page_bytes
            ends: list[bool | None] = []
            for start in range(HEADER_BYTES, size_bytes - frame_bytes + 1, frame_bytes):
                file.seek(start)
                frame = file.read(FRAME_HEADER_BYTES)
                _, database_pages = struct.unpack(">2I", frame[:8])
                ends.append(database_pages != 0 if _is_salt(frame[8:16], header[16:24]) else None)
            return LogFrames(tuple(ends))
    except FileNotFoundError:
        return NO_FRAMES


def _is_salt(found: bytes, salt: bytes) -> bool:
    """Say whether a frame has the log's salt, but for a few bits; another generation's differs in half of them."""
    return (int.from_bytes(found, "big") ^ int.from_bytes(salt, "big")).bit_count() <= SALT_BITS_FLIPPED_MAX


def _checksum(data: bytes, order: str) -> tuple[int, int]:
    one, other = 0, 0
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for i in range(0, len(words), 2):
        one = (one + words[i] + other) & 0xFFFFFFFF
        other = (other + words[i + 1] + one) & 0xFFFFFFFF
    return one, other
