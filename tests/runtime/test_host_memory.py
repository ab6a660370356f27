"""Freed memory stays mapped, in huge pages, or is given back."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt and malloc_trim")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

C = """
import ctypes, resource, sys
from agent_jax.runtime.host_memory import release_freed_memory, tune_heap
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
"""
USE = C + """
if sys.argv[1] == "tuned":
    assert tune_heap()
def use():
    block = c.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE = C + """
assert tune_heap()
block = c.malloc(256 << 20)
ctypes.memset(block, 1, 256 << 20)
[huge] = [line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages:")]
print(huge)
"""
LIMITED = C + """
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
assert tune_heap()
block = c.malloc(256 << 20)
ctypes.memset(block, 1, 256 << 20)
print(len(ctypes.string_at(block, 256 << 20)))
"""
RELEASE = C + """
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [c.malloc(100_000) for _ in range(2000)]  # below the size that is mapped on its own
for block in blocks:
    ctypes.memset(block, 1, 100_000)
last = c.malloc(100_000)  # stands at the end of the heap, which then cannot shrink by itself
for block in blocks:
    c.free(block)
before = resident()
assert release_freed_memory()
print(before - resident())
"""

def run(code: str, *arguments: str) -> int:
    """The number that a program prints."""
    line = [sys.executable, "-c", code, *arguments]
    return int(subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_a_freed_block_is_used_again_without_page_faults():
    tuned, default = run(USE, "tuned"), run(USE, "default")
    assert tuned < 100
    assert default > 10 * 100 or default > tuned  # huge pages fault once in 2 MiB


@pytest.mark.skipif(not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here")
def test_large_blocks_are_in_huge_pages():
    assert run(HUGE) > 64 << 10  # KiB of 256 MiB: the kernel may have no more at hand


def test_a_heap_that_may_not_grow_so_far_works_with_small_pages():
    assert run(LIMITED) == 256 << 20


def test_freed_memory_is_given_back_when_asked_for():
    assert run(RELEASE) > 100e6
