"""What a benchmark runs on: processor, cores, memory, system, accelerators, load, versions; alone, it prints it."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
from pathlib import Path
from typing import Any

from agent_jax import json_files
from agent_jax.runtime.processor import cores, instructions, processor_name

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch", "transformers", "tensorflow")
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
VENDORS = ("amd", "genuine", "intel", "r", "tm", "cpu", "virtual", "processor")  # words before the family's name


def describe(*, accelerators: bool = True) -> dict[str, Any]:
    """The machine as JSON; call it before measuring, since it says how busy others keep it.

    Args:
        accelerators: ask JAX for its devices, which starts its backend; False: leave them out.
    """
    found = {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    return {**found, "accelerators": _accelerators()} if accelerators else found


def family(processor: str = "") -> str:
    """The processor's family as the name of a folder: "epyc" of "AMD EPYC 7B13", "xeon" of "Intel(R) Xeon(R) ...".

    Args:
        processor: its name; empty: that of this machine.
    """
    words = re.findall(r"[a-z0-9]+", (processor or processor_name()).lower())
    return next((word for word in words if word not in VENDORS), "machine")


def write_json(path: Path, machine: dict[str, Any], figures: dict[str, Any]) -> None:
    """The figures of a benchmark with the machine under "machine", replacing the file as a whole."""
    json_files.write_json(path, {"machine": machine, **figures})


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends, even by SIGKILL: it may hold an accelerator."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _accelerators() -> list[str]:
    import jax

    return [f"{device.platform} {device.device_kind}" for device in jax.devices() if device.platform != "cpu"]


def _cpu_name() -> str:
    """The model, and the widest vector instructions that matter here."""
    wide = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in instructions()]
    return " ".join([processor_name(), *(f"({', '.join(wide)})" for _ in wide[:1])])


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(json.dumps(describe(), indent=1))
