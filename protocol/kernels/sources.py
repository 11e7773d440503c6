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


KERNELS: tuple[Kernel, ...] = ()
