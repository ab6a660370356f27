"""glibc's allocator set up for XLA's CPU backend: freed memory stays mapped, in huge pages.

XLA's CPU backend allocates its temporaries in every call. By default glibc returns large blocks to the kernel when they
are freed, so each call faults and clears the same pages again. Huge pages (2 MiB) save address translations in a step
that goes through gigabytes. Peak memory does not change.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# Parameters of mallopt(3), from glibc's malloc.h.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: take no block by mmap, which free() would unmap
    -1: -1,  # M_TRIM_THRESHOLD: keep all of it; a step of the full model takes one block of several GiB
    -2: 64 << 20,  # M_TOP_PAD: grow in steps of 64 MiB
    -8: 1,  # M_ARENA_MAX: one heap, for XLA's threads allocate what others free
}
_MADV_HUGEPAGE = 14  # of madvise(2)
_HUGE = 2 << 20  # the least address that a huge page of x86 and of most ARM begins at
_SHARE_OF_MEMORY = 0.75  # the kernel refuses a block of more than all

def tune_heap() -> bool:
    """Keep freed memory in the heap, and let the heap grow in huge pages; call it before a program's first computation.

    Where the kernel gives no huge pages (/sys/kernel/mm/transparent_hugepage/enabled is "never", or the address space
    is limited), the heap has small ones.

    Returns:
        Whether freed memory is kept; False where the C library is not glibc.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    taken = [mallopt(parameter, value) for parameter, value in _SETTINGS.items()]
    _grow_in_huge_pages(int(_SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return all(result == 1 for result in taken)


def release_freed_memory() -> bool:
    """Give back to the kernel what is freed: after a large computation, before another library's.

    Returns:
        Whether some was given back; False where the C library is not glibc.
    """
    malloc_trim = _function("malloc_trim")
    return malloc_trim is not None and malloc_trim(0) == 1


def _grow_in_huge_pages(size: int) -> None:
    """Let the heap grow by so many bytes of addresses, which take no memory until they are used: then in huge pages.

    A block of them is taken and freed; what the settings above keep is what later blocks come from.
    """
    malloc, free, madvise = _function("malloc"), _function("free"), _function("madvise")
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if block := malloc(size):
        begin, end = -(-block // _HUGE) * _HUGE, (block + size) // _HUGE * _HUGE
        madvise(begin, end - begin, _MADV_HUGEPAGE)  # advice: if it is not taken, nothing is lost
        free(block)


def _function(name: str) -> Any:
    """A function of the C library of this process; None if it has no such."""
    return getattr(ctypes.CDLL(None), name, None)
