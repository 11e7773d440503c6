"""Builds the optional C parts, kernels and the fleet's pages; every setting of the package is in pyproject.toml.

A kernel that cannot be compiled is left out: its numpy twin serves, and `qnode version` says so.
"""

import importlib.util
import pathlib
import sys

from setuptools import Extension, setup

try:
    from cffi import FFI
except ImportError:  # a source install on an interpreter without cffi still works, on the twins
    FFI = None

KERNELS = pathlib.Path("protocol", "kernels")


def extensions() -> list:
    """Read protocol/kernels/sources.py, which lists the kernels, without importing the package."""
    if FFI is None:
        return []
    spec = importlib.util.spec_from_file_location("kernel_sources", KERNELS / "sources.py")
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    found = []
    for kernel in sources.KERNELS:
        ffi = FFI()
        ffi.cdef(kernel.declarations)
        ffi.set_source(
            f"protocol.kernels.{kernel.module}",
            f'#include "{kernel.header}"',
            sources=[str(KERNELS / name) for name in kernel.c_files],
            include_dirs=[str(KERNELS)],
            depends=[str(KERNELS / kernel.header)],
            extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-std=c11"],
        )
        extension = ffi.distutils_extension()
        extension.optional = True
        found.append(extension)
    return found


def pages() -> list:
    """Return what lets nodes of a fleet share memory again; it asks Linux for it."""
    if not sys.platform.startswith("linux"):
        return []
    source = pathlib.Path("loadtest", "fleet", "_pages.c")
    return [Extension("loadtest.fleet._pages", [str(source)], optional=True, extra_compile_args=["-O2", "-std=gnu11"])]


setup(ext_modules=extensions() + pages())
