"""Freed memory stays mapped."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys
from agent_jax.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = c.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_freed_block_is_used_again_without_page_faults():
    assert faults("keep") < 100
    assert faults("default") > 10 * 100 or faults("default") > faults("keep")  # huge pages fault once in 2 MiB


RELEASE = """
import ctypes
from agent_jax.host_memory import release_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_freed_memory_is_given_back_when_asked_for():
    done = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 100e6
