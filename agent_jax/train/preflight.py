"""Before anything is built: does this machine have what the config asks for? All that is missing, in one message."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from etils import epath

import agent_jax
from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import Config
from agent_jax.config.kernels import CUDNN_CAPABILITY, PLATFORM, has_no_cudnn
from agent_jax.convert.grow.source import located_checkpoint
from agent_jax.envs import CLIPS
from agent_jax.fields import by_name
from agent_jax.help_pages import help_page
from agent_jax.hub import located
from agent_jax.models.agent import abstract_params, training_visual_tokens
from agent_jax.runtime.extras import install
from agent_jax.runtime.sharding import AXES

# Package and extra of environments.
_SIMULATORS = {"babyai": ("minigrid", "babyai"), CLIPS: ("minigrid", "babyai"), "metaworld": ("metaworld", "metaworld"),
               "vizdoom": ("vizdoom", "vizdoom")}


def set_platform(config: Config, processes: int = 1) -> None:
    """Make the CPU backend what `config.mesh` asks for, fake devices included; call it before the first computation.

    Raises:
        ValueError: the devices do not divide among the processes.
    """
    mesh = config.mesh
    if mesh.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        sizes = {axis: getattr(mesh, axis) for axis in AXES}
        if -1 not in sizes.values():
            devices = math.prod(sizes.values())
            if devices % processes:
                said = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
                raise ValueError(f"config.mesh: {said}: {devices} CPU devices do not divide among {processes} "
                                 f"processes; choose a multiple of {processes}")
            jax.config.update("jax_num_cpu_devices", devices // processes)


def facts(config: Config, workdir: Any) -> dict[str, Any]:
    """What all processes of a run must have in common, by name: config, workdir, versions, every file of our code."""
    package = Path(agent_jax.__file__).parent
    code = {f"agent_jax/{path.relative_to(package)}": hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in sorted(package.rglob("*.py"))}
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")}
    return {**{f"config.{name}": value for name, value in by_name(dataclasses.asdict(config)).items()},
            "--workdir": str(workdir), "python": platform.python_version(), **versions, **code}


def check_machine(config: Config, *, resumes: bool = False) -> None:
    """Refuse a run that cannot begin here.

    Args:
        config: of the run.
        resumes: whether its workdir holds a step, so that `config.init` is not read.

    Raises:
        ValueError: one line for each thing that is missing, with the flag that gives it, and what the run would be.
    """
    missing = [*_missing_devices(config), *_missing_kernel(config), *_missing_files(config),
               *([] if resumes else _missing_weights(config))]
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise ValueError(f"this run cannot begin on this machine:\n{lines}\n{describe(config)}")


def describe(config: Config) -> str:
    """What the run would be, from its config alone."""
    mesh, train = config.mesh, config.train
    axes = ", ".join(f"{axis} {'all that is left' if size == -1 else size}"
                     for axis, size in ((axis, getattr(mesh, axis)) for axis in AXES))
    microbatches = (f"microbatches of at most {train.rows_per_device} row(s) a device" if train.rows_per_device else
                    f"{train.accumulation} microbatch(es)")
    vision, language = config.model.vision, config.model.language
    domains = ", ".join(f"{name} (window {entry.window})" for name, entry in sorted(config.data.domains.items()))
    lines = [
        "the plan of this run:",
        f"  mesh      {axes}; platform {mesh.platform or 'any'}, {config.model.dtype}, remat {config.model.remat}",
        f"  model     vision {vision.depth} x {vision.width}, language {language.depth} x {language.width}, MAE "
        f"decoder {config.model.mae.depth} x {config.model.mae.width}; {training_visual_tokens(config.model)} visual "
        f"tokens an image in training ({config.model.visual_tokens}){_parameters(config)}",
        f"  data      {domains or 'none'}; text by config.vocabulary.tokenizer={config.vocabulary.tokenizer}",
        f"  training  {train.steps:,} steps of {train.batch_size} rows in {microbatches}",
    ]
    return "\n".join(lines)


def _parameters(config: Config) -> str:
    tokenizer = config.vocabulary.tokenizer
    if tokenizer != "bytes" and not _exists(tokenizer):
        return ""
    try:
        blocks = vocabulary_blocks(config.vocabulary.blocks, config.data.declared_specs)
    except ValueError:  # a block of specs that lie with the data; or a wrong name, which opening the data tells
        return ""
    vocabulary = Vocabulary.build(tokenizer, blocks)
    shapes = abstract_params(config.with_vocabulary_size(vocabulary.size).model)
    return f"; {sum(leaf.size for leaf in jax.tree.leaves(shapes)):,} parameters"


def _missing_devices(config: Config) -> list[str]:
    wanted, found = config.mesh.platform, jax.default_backend()
    if not wanted or wanted == found:
        return []
    extra = {"tpu": "tpu", "gpu": "cuda"}.get(wanted)
    how = f"; there, install it with {install(extra)}" if extra else ""
    return [f"config.mesh.platform={wanted!r}, but JAX finds {jax.device_count()} device(s) of {found!r} here. Start "
            f"it on such a machine{how}; or pass --config.mesh.platform={found} to try it on this one, or the "
            "variant :smoke where the config has it"]


def _missing_kernel(config: Config) -> list[str]:
    """What a kernel of attention asks of the devices."""
    kernel, [device, *_] = config.model.attention, jax.local_devices()
    needs = PLATFORM.get(kernel, device.platform)
    if device.platform != needs:
        return [f"config.model.attention={kernel!r} runs on {needs!r}, but JAX finds {device.platform!r} here; pass "
                "--config.model.attention=xla"]
    if kernel == "cudnn" and has_no_cudnn(device):
        return ["config.model.attention='cudnn' needs an NVIDIA GPU of compute capability "
                f"{CUDNN_CAPABILITY} or more (Ampere), but {device.device_kind} has "
                f"{device.compute_capability}; pass --config.model.attention=xla"]
    return []


def _missing_files(config: Config) -> list[str]:
    lines, gathered = [], config.data.gathered
    for name, entry in sorted(config.data.domains.items()):
        flag = f"--config.data.domains.{name}.path=DIR"
        if not entry.path and name not in gathered:
            lines.append(f"no data for domain {name!r}: pass {flag}, the directory that holds its dataset_info.json, "
                         f"or leave it out by --config.data.leave_out=\"('{name}',)\"")
        elif entry.path and "://" not in entry.path and not _exists(entry.path):  # open_store tells of it
            lines.append(f"config.data.domains.{name}.path={entry.path}: not found; pass another {flag}, or leave it "
                         f"out by --config.data.leave_out=\"('{name}',)\"")
    tokenizer = config.vocabulary.tokenizer
    if tokenizer != "bytes" and not _exists(tokenizer):
        lines.append(f"config.vocabulary.tokenizer={tokenizer}: not found; pass another "
                     f"--config.vocabulary.tokenizer=PATH{help_page('guides/finetune.md', '3. Train')}")
    simulators = {config.closed_loop.environment, *(one.environment for one in gathered.values()),
                  *(config.data.demonstrations_of(name).environment for name in config.closed_loop.domains)}
    lines += [f"the simulator of {name} is not installed: {install(extra)}"
              for name, (package, extra) in _SIMULATORS.items()
              if name in simulators and importlib.util.find_spec(package) is None]
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        lines.append(f"config.log.wandb={config.log.wandb!r} needs wandb: {install('wandb')}; or leave it out by "
                     "--config.log.wandb=")
    if gathered and not os.access(_existing_parent(config.data.directory), os.W_OK):
        lines.append(f"config.data.directory={config.data.directory} cannot be written to; pass another "
                     "--config.data.directory=DIR")
    return lines


def _missing_weights(config: Config) -> list[str]:
    """What a first step begins with."""
    lines = []
    if config.init.checkpoint:
        try:
            located_checkpoint(config.init.checkpoint)
        except FileNotFoundError as error:
            lines.append(f"config.init.checkpoint={error}; pass another --config.init.checkpoint=PATH")
    for part in ("vision", "language"):
        if path := getattr(config.init.pretrained, part):
            try:
                located(path)
            except FileNotFoundError as error:
                field = f"config.init.pretrained.{part}"
                lines.append(f"{field}={error}; pass another --{field}=PATH")
    return lines


def _exists(path: str) -> bool:
    return epath.Path(path).expanduser().exists()


def _existing_parent(directory: str) -> epath.Path:
    path = epath.Path(directory).expanduser()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
