"""What the C library does with the memory of this process: huge pages, what is freed stays, pieces are set aside.

XLA's CPU backend allocates its temporaries anew in every call. glibc returns large blocks to the kernel when they are
freed, and each page that comes back costs a fault and a clear.
Measured on 2 cores (AMD EPYC, one block of width 96 over 16 rows of 256 slots, forward and backward, 2026-11-22):
14,600 faults and 94 ms a call by default, none and 66 ms with the settings below. Peak memory does not change, since a
step needs the same memory again.

A step of the full model goes through gigabytes; with pages of 4 KiB the processor looks up their addresses over and
over, and how long that takes depends on which ones the kernel had free. In huge ones, of 2 MiB, a step in bf16 takes
0.83 to 0.90 of the time (docs/design/performance.md). NumPy asks for them for its own large arrays, too.

XLA's compiler leaves tens of thousands of free pieces behind. glibc keeps those of 1 KiB and more in lists in order of
size, walks through them for every block it gives out, and each piece it looks at is a line of memory that no cache
holds: a tenth of a step in bf16, whose products take thousands of such blocks. So after a long compilation they are
taken out of the lists, and their pages given back to the kernel. Until the next large program is compiled, which has
them back, what is less than a page serves nobody.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from array import array
from typing import Any
from xml.etree import ElementTree

import jax

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

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # events of jax.monitoring: this one, then that
_COMPILED = "/jax/core/compile/backend_compile_duration"
_LARGE_S = 0.01  # lowering a program that is worth having the pieces back for, above
_LONG_S = 1.0  # a compilation that leaves enough of them, above
_PIECES = range(1 << 10, 1 << 20)  # bytes: smaller ones are in lists of one size, and there are few larger ones
_HEAD = 16  # bytes of a piece that are glibc's own, with what it rounds up by


def tune_heap() -> bool:
    """Have the heap in huge pages, what is freed kept in it, and what compiling leaves set aside.

    Call it before a CPU program's first computation.

    Where the kernel has no huge pages to give (/sys/kernel/mm/transparent_hugepage/enabled is "never", or the address
    space is limited), the heap has small ones.

    Returns:
        Whether freed memory is kept; False where the C library is not glibc.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    taken = [mallopt(parameter, value) for parameter, value in _SETTINGS.items()]
    _grow_in_huge_pages(int(_SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    _listen_to_compiling()
    return all(result == 1 for result in taken)


def release_freed_memory() -> bool:
    """Give back to the kernel what is freed: after a large computation, before another library's.

    Returns:
        Whether some was given back; False where the C library is not glibc.
    """
    malloc_trim = _function("malloc_trim")
    return malloc_trim is not None and malloc_trim(0) == 1


class PiecesAside:
    """Pieces of the heap that are free, and kept from being looked at."""

    def __init__(self) -> None:
        """None yet."""
        self._addresses = array("Q")
        self._lock = threading.Lock()

    def take(self) -> int:
        """Give the pages of what is free back to the kernel, and take pieces of 1 KiB to 1 MiB out of the heap.

        Returns:
            How many; 0 where the C library is not glibc.
        """
        malloc, malloc_trim = _function("malloc"), _function("malloc_trim")
        if malloc_trim is None or _function("malloc_info") is None:
            return 0
        malloc.restype, malloc.argtypes, malloc_trim.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_size_t,)
        with self._lock:
            had, before = len(self._addresses), sys.maxsize
            malloc_trim(sys.maxsize)  # of the end of the heap, keep everything
            # What a piece has more than its list's least size becomes another one, in a list of smaller ones. Where
            # there are no fewer after a round, it took them from another heap.
            while (found := _free_pieces()) and (left := sum(count for _, count in found)) < before:
                for size, count in reversed(found):
                    self._addresses.extend(malloc(size - _HEAD) or 0 for _ in range(count))
                before = left
            return len(self._addresses) - had

    def give_back(self) -> bool:
        """Give them back to the heap.

        Returns:
            Whether there were any.
        """
        free = _function("free")
        free.argtypes, free.restype = (ctypes.c_void_p,), None
        with self._lock:
            addresses, self._addresses = self._addresses, array("Q")
        for address in addresses:
            free(address)
        return bool(addresses)


@functools.cache  # once in a process
def _listen_to_compiling() -> None:
    pieces, returned = PiecesAside(), threading.Event()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _LOWERED and duration_secs >= _LARGE_S and pieces.give_back():
            returned.set()
        elif event == _COMPILED and (duration_secs >= _LONG_S or returned.is_set()) and jax.default_backend() == "cpu":
            returned.clear()
            pieces.take()

    jax.monitoring.register_event_duration_secs_listener(listen)


def _free_pieces() -> list[tuple[int, int]]:
    """(least size in bytes, count) of each list of free pieces in question, by malloc_info(3)."""
    open_memstream, malloc_info = _function("open_memstream"), _function("malloc_info")
    fclose, free = _function("fclose"), _function("free")
    open_memstream.restype = ctypes.c_void_p
    malloc_info.argtypes, fclose.argtypes = (ctypes.c_int, ctypes.c_void_p), (ctypes.c_void_p,)
    text, length = ctypes.c_void_p(), ctypes.c_size_t()
    stream = open_memstream(ctypes.byref(text), ctypes.byref(length))
    malloc_info(0, stream)
    fclose(stream)
    told = ElementTree.fromstring(ctypes.string_at(text, length.value))
    free(text)
    lists = told.findall("./heap[@nr='0']/sizes/*")
    sizes = [(int(each.attrib["from"]), int(each.attrib["count"])) for each in lists]
    return [(size, count) for size, count in sizes if size in _PIECES]


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
