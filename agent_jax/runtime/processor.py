"""The processor, by /proc/cpuinfo; where there is none (macOS), by what Python knows; and the cores that we may use."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

# Of x86. Without one of these a product of bfloat16 is made by converting to f32, or by slow code.
_BFLOAT16_PRODUCTS = frozenset(("avx512_bf16", "amx_bf16"))


def processor_name() -> str:
    """Its model, as "AMD EPYC"."""
    return _fields().get("model name") or platform.processor() or platform.machine()


def cores() -> int:
    """How many of its cores this process may run on, where the system tells; else how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> frozenset[str]:
    """The names of its instruction sets, as "avx2"; empty if unknown."""
    fields = _fields()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())  # of x86, of ARM


def lacks_bfloat16_products() -> bool:
    """Whether it is known to have no instructions for products of bfloat16: an x86 without AVX-512 BF16 and AMX."""
    return "sse2" in instructions() and not instructions() & _BFLOAT16_PRODUCTS


def processor_fingerprint() -> str:
    """8 hexadecimal digits of its model and instruction sets."""
    fields = [f"{name}: {value}" for name, value in _fields().items()
              if name in ("model name", "flags", "Features") or name.startswith("CPU ")]
    text = "\n".join([platform.machine() + platform.processor(), *fields])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache  # a system of many cores takes milliseconds to write the file
def _fields() -> dict[str, str]:
    """Of its first core."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
