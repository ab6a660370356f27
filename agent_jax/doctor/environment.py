"""`python -m agent_jax.doctor`: checks of this machine, one line each."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import agent_jax
from agent_jax.actions.text_tokenizer import load_tokenizer
from agent_jax.config import ModelConfig
from agent_jax.config.kernels import kernel_on
from agent_jax.convert.huggingface.tokenizer_places import FAMILY
from agent_jax.envs import NAMES, load
from agent_jax.hub import cached_folders
from agent_jax.runtime.extras import install
from agent_jax.runtime.processor import cores, processor_name

PYTHON = ((3, 11), (3, 14))  # from, below; as setup.py has it
LITTLE_MEMORY = 4e9  # bytes: the default job takes about 2 GB
LITTLE_DISK = 5e9  # bytes: checkpoints of the full model take 3 GB each
NO_DISK = 2e8  # bytes: a small run does not finish
_ACCELERATORS = {"/dev/nvidia0": "cuda", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}  # device file -> extra
_DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
_VIDEO_CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4")
_PICTURE_FORMATS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "avif": "AVIF"}  # Pillow's feature -> name


@dataclasses.dataclass(frozen=True)
class Check:
    """One line about the machine."""

    name: str
    state: Literal["ok", "missing", "broken"]  # missing: some runs lack it; broken: no run works
    found: str
    advice: str = ""

    def line(self) -> str:
        """For the terminal."""
        return f"{self.state:8} {self.name:14} {self.found}{f'; {self.advice}' if self.advice else ''}"

    def to_json(self) -> dict[str, str]:
        """The fields."""
        return dataclasses.asdict(self)


def examine_machine() -> list[Check]:
    """All checks; one that fails unexpectedly is a broken line of its own."""
    found: list[Check] = []
    for check in (_versions, _extras, _processor, _devices, _codecs, _simulators, _tokenizer, _disk):
        try:
            found += check()
        except Exception as error:  # noqa: BLE001 - the other lines are still wanted
            found.append(Check(check.__name__.strip("_"), "broken", f"{type(error).__name__}: {_first_line(error)}",
                               "report it with the output of this command"))
    return found


def _versions() -> Iterator[Check]:
    version = platform.python_version()
    good = PYTHON[0] <= sys.version_info[:2] < PYTHON[1]
    yield Check("python", "ok" if good else "broken", f"{version} at {sys.executable}", "" if good else
                "expected 3.11 to 3.13; make a virtual environment of one of them")
    yield Check("agent_jax", "ok", f"{agent_jax.__version__} at {Path(agent_jax.__file__).parent}")
    wrong = [text for line in _requirements("") if (text := _unmet(line))]
    yield Check("libraries", "broken" if wrong else "ok", "; ".join(wrong) or
                ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax", "numpy")),
                "pip install -e ." if wrong else "")


def _extras() -> Iterator[Check]:
    for extra in ("data", "serve", "evaluate", "torch", "gcs"):
        wrong = [text for line in _requirements(extra) if (text := _unmet(line))]
        yield Check(f"extra {extra}", "missing" if wrong else "ok", "; ".join(wrong) or "all libraries found",
                    install(extra) if wrong else "")


def _requirements(extra: str) -> list[str]:
    """The requirements of the package, or of an extra of it, as "jax<0.13,>=0.10.2"."""
    try:
        lines = importlib.metadata.requires("agent_jax") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
        return [f"{name}" for name in ("jax", "flax", "optax", "numpy")] if not extra else []
    wanted = f'extra == "{extra}"'
    return [line.partition(";")[0].strip() for line in lines
            if (wanted in line if extra else "extra ==" not in line)]


def _unmet(line: str) -> str:
    """What is wrong with a requirement, or ""."""
    from packaging.requirements import Requirement  # of transformers

    requirement = Requirement(line)
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    return "" if requirement.specifier.contains(found, prereleases=True) else (
        f"found {requirement.name} {found}, expected {requirement.specifier}")


def _processor() -> Iterator[Check]:
    total, free = _memory()
    low = 0 < free < LITTLE_MEMORY
    yield Check("processor", "ok", f"{processor_name()}, {cores()} cores")
    yield Check("memory", "missing" if low else "ok", f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB" if total else
                "unknown", "close other programs, or train a smaller model" if low else "")


def _memory() -> tuple[int, int]:
    """Bytes of memory: total and available; zeros where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return 0, 0


def _devices() -> Iterator[Check]:
    try:
        import jax
        import jax.numpy as jnp

        devices = jax.local_devices()
        ones = jnp.ones((8, 8))
        works = float((ones @ ones)[0, 0]) == 8
    except Exception as error:  # noqa: BLE001 - of any plugin
        yield Check("devices", "broken", _first_line(error), "JAX finds no usable device; try JAX_PLATFORMS=cpu, or "
                    f"install the accelerator's package: {install('cuda')} or {install('tpu')}")
        return
    first = devices[0]
    yield Check("devices", "ok" if works else "broken", f"{len(devices)} x {first.platform} ({first.device_kind})",
                "" if works else "a matrix product is wrong on this device; do not use it")
    limit = (first.memory_stats() or {}).get("bytes_limit", 0) if first.platform != "cpu" else 0
    if limit:
        yield Check("device memory", "ok", f"{limit / 1e9:.1f} GB for JAX on each device")
    unused = {extra for file, extra in _ACCELERATORS.items() if Path(file).exists()} if first.platform == "cpu" else ()
    for extra in unused:
        yield Check("accelerator", "missing", f"this machine has one ({extra}), but JAX uses the CPU",
                    f"{install(extra)}; JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', 'not set')}")
    yield _attention(first)


def _attention(device: Any) -> Check:
    """The kernel that `auto` stands for, after a run of it."""
    import jax.numpy as jnp

    from agent_jax.models.attention_kernels import KERNELS

    names = {dtype: kernel_on(device, ModelConfig(dtype=dtype)) for dtype in _DTYPES}
    for dtype, kernel in names.items():
        try:
            qkv = [jnp.ones((1, 16, 2, 64), dtype)] * 3
            KERNELS[kernel].causally(*qkv, jnp.ones((1, 16), jnp.int32)).block_until_ready()
        except Exception as error:  # noqa: BLE001 - of any compiler
            return Check("attention", "broken", f"kernel {kernel} of {dtype} fails: {_first_line(error)}",
                         "pass --config.model.attention=xla")
    return Check("attention", "ok", ", ".join(f"{kernel} in {dtype}" for dtype, kernel in names.items())
                 + " (config.model.attention=auto)")


def _codecs() -> Iterator[Check]:
    from PIL import features

    lacking = [name for feature, name in _PICTURE_FORMATS.items() if not features.check(feature)]
    broken = {"JPEG", "PNG"} & set(lacking)
    yield Check("image codecs", "broken" if broken else "missing" if lacking else "ok",
                ", ".join(name for name in _PICTURE_FORMATS.values() if name not in lacking),
                f"no {', '.join(lacking)}: pip install --force-reinstall pillow" if lacking else "")
    try:
        import av
    except ImportError as error:
        yield Check("video codecs", "missing", _first_line(error), f"to read videos: {install('data')}")
        return
    there = [name for name in _VIDEO_CODECS if name in av.codecs_available or f"lib{name}" in av.codecs_available]
    lacking = [name for name in _VIDEO_CODECS if name not in there]
    yield Check("video codecs", "missing" if lacking else "ok", f"{', '.join(there)} (PyAV {av.__version__})",
                f"no {', '.join(lacking)}: pip install --force-reinstall av" if lacking else "")


def _simulators() -> Iterator[Check]:
    for name in NAMES:
        try:
            yield Check(f"env {name}", "ok", load(name).version())
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            text = _first_line(error)
            found, _, advice = text.partition(". To set it up: ") if "To set it up" in text else text.partition(": ")
            yield Check(f"env {name}", "missing", found, advice)


def _tokenizer() -> Iterator[Check]:
    for folder in cached_folders(FAMILY, "merges.txt"):
        try:
            size = load_tokenizer(str(folder)).size
        except (OSError, ValueError):
            continue
        yield Check("tokenizer", "ok", f"OPT's in the cache, {size:,} ids: --config.vocabulary.tokenizer={folder}")
        return
    yield Check("tokenizer", "missing", "`bytes` is always there; OPT's is not in the Hugging Face cache",
                "to fine-tune OPT: hf download facebook/opt-125m vocab.json merges.txt")


def _disk() -> Iterator[Check]:
    for name, folder in (("disk here", Path.cwd()), ("disk temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
        state = "broken" if not writable or free < NO_DISK else "missing" if free < LITTLE_DISK else "ok"
        advice = f"pass --workdir and --config.data.directory on another disk than that of {folder}"
        yield Check(name, state, f"{free / 1e9:.1f} GB free at {folder}{'' if writable else ', not writable'}",
                    advice if state != "ok" else "")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:600]


