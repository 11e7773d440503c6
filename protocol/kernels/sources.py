"""Which C kernels exist: the C files, and the functions that Python may call in them.

Read by setup.py before the package is installed, so it imports nothing but the standard library.
"""

from typing import NamedTuple


class Kernel(NamedTuple):
    """One extension module `protocol.kernels.<module>` made of `c_files` and declared by `header`."""

    module: str
    header: str
    c_files: tuple[str, ...]
    declarations: str


EMULATION = Kernel(
    module="_emulation",
    header="emulation.h",
    c_files=("emulation.c",),
    declarations="""
        size_t emulation_propose(const double *, size_t, double, uint64_t, uint64_t, uint64_t *);
        size_t emulation_emit(const uint64_t *, const uint64_t *, const uint64_t *, size_t, const uint64_t *,
                              const double *, double, uint64_t *, uint8_t *);
        void emulation_split_choices(const uint64_t *, size_t, const uint64_t *, uint8_t *, uint8_t *, uint8_t *);
        size_t emulation_detect(const uint64_t *, const uint8_t *, const uint64_t *, const uint64_t *, size_t,
                                size_t *, const double *, uint64_t, uint64_t, uint64_t, double, double, int,
                                uint64_t *, uint64_t *, uint8_t *, uint8_t *, size_t);
    """,
)

KERNELS: tuple[Kernel, ...] = (EMULATION,)
