"""Memory of replaced models, given back to the system: glibc's allocator keeps it otherwise.

A model's arrays are a few blocks of tens of megabytes. Once glibc has freed one such block it takes the next ones from
its arenas, where small objects then lie between them: each swap leaves holes, which no later model fits into. Elsewhere
than on glibc nothing is done here.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers from glibc's malloc.h."""

_LARGE = 1 << 20
"""Bytes. While a model is made, blocks from here on are mapped by themselves, and so go back whole when freed."""

_USUAL_LARGE = 32 << 20
"""Else: glibc's upper bound, which it comes to by itself. The arrays of a batch, a few megabytes, are used again from
the arenas: mapping and unmapping them for each batch would cost more than computing them."""


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """What is allocated inside leaves no holes behind. Other threads' blocks, too, are mapped meanwhile."""
    option = _glibc("mallopt")
    if option is None:
        yield
        return
    option(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        option(_M_MMAP_THRESHOLD, _USUAL_LARGE)
        option(_M_TRIM_THRESHOLD, 2 * _USUAL_LARGE)


def give_back() -> None:
    """Free pages of all arenas go back to the system."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library in use; None: it is not glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - there is such a function in glibc only
        function: Callable[..., int] = getattr(library, name)
    except (OSError, AttributeError, TypeError):
        return None
    return function
