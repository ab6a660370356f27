"""One case of train_step.py in a process of its own: it builds a step, then takes one whenever it is told to.

    ours           agent_jax.train.step with AdamW, as `python -m agent_jax.train` runs it
    unrolled       the same with all layers in one piece of the scan (config.model.unroll), so no scan
    exported       agent_jax.convert.pytorch.torch_agent.Agent, the module of an exported folder, with torch.optim.AdamW
    transformers   the same, its blocks replaced by CLIPEncoderLayer and OPTDecoderLayer of transformers
    square         no model: one matrix product of each framework, for the roofline (product_rates.py)
    products       no model: the matrix products of our step, each alone (product_rates.py)

All models start from the same parameters and see the same rows; the first step of all hides the same patches, so that
the losses of the first two steps must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from machine import end_with_parent
from product_rates import products_of_step, square_product, torch_device

# Imports of JAX and PyTorch stand in the functions: the peak memory of a process is to be that of its own framework.

OUR_MODELS = ("ours", "unrolled")
# XLA:CPU frees a step's temporaries on another thread, just after the step: a call that comes sooner takes as much
# again. In a run the next rows come between.
TEMPORARIES_FREED_S = 0.005
WARM_STEPS = 2  # the first compiles, and their losses are compared


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What every case of a run works on."""

    size: str  # of the model: full, babyai or tiny
    frames: int  # images of a row
    batch: int  # rows
    text: int  # text tokens of a row
    actions: int  # action tokens an image
    remat: str = "none"
    unroll: int = 1
    depth: int = 0  # layers of each stack; 0: as many as the model has
    attention: str = "auto"  # config.model.attention of ours


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The flags of `Sizes`."""
    parser.add_argument("--size", choices=("full", "babyai", "tiny"), default="full")
    parser.add_argument("--frames", type=int, default=4, help="images of a row")
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--text", type=int, default=32, help="text tokens of a row")
    parser.add_argument("--actions", type=int, default=12, help="action tokens an image")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots", help="of ours")
    parser.add_argument("--unroll", type=int, default=1, help="layers in one piece of ours' scan")
    parser.add_argument("--depth", type=int, default=0, help="layers of each stack; 0: as many as the model has")
    parser.add_argument("--attention", choices=("auto", "xla", "cpu", "cudnn", "splash"), default="auto",
                        help="of ours in bf16")


def sizes_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Sizes:
    """What they say; a size below 1 ends the program."""
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})
    for flag in ("frames", "batch", "text", "actions", "unroll"):
        if getattr(sizes, flag) < 1:
            parser.error(f"--{flag}: found {getattr(sizes, flag)}, expected at least 1")
    return sizes


@dataclasses.dataclass(frozen=True)
class Case:
    """What one worker runs."""

    model: str  # ours, unrolled, exported or transformers
    precision: str  # f32 or bf16
    compiled: bool
    mode: str  # visible or all

    @property
    def framework(self) -> str:
        """jax or torch."""
        return "jax" if self.model in OUR_MODELS else "torch"

    @property
    def name(self) -> str:
        """As `--only` has it."""
        return "-".join([self.model, self.precision] + ["compiled"] * (self.compiled and self.framework == "torch"))


def run_config(sizes: Sizes, case: Case) -> Any:
    """The Config of a run of this size; dropout is off, since two frameworks draw different masks."""
    from agent_jax.config import Config, from_config_dict, presets, to_config_dict

    draft: presets.Draft = to_config_dict(Config()).unlock()
    model = draft.model
    model.language.vocabulary_size = 51_578  # text of OPT, the paper's action tokens and two
    if sizes.size == "babyai":  # as configs/babyai.py, with two heads in the language model as well
        presets.small_model(draft, image_size=56, patch_size=8, width=64, heads=2, vision_depth=1, language_depth=3,
                            positions=256)
        model.mae.width, model.mae.mlp_width, model.language.vocabulary_size = 32, 64, 270
        model.unroll = 4
    elif sizes.size == "tiny":
        presets.small_model(draft, image_size=32, patch_size=8, width=16, heads=2, vision_depth=1, language_depth=1,
                            positions=256)
        model.language.vocabulary_size = 300
    for part in (model.vision, model.language, model.mae):
        part.depth = sizes.depth or part.depth
    model.language.dropout = 0.0
    model.visual_tokens = case.mode
    model.dtype = {"f32": "float32", "bf16": "bfloat16"}[case.precision]
    model.remat, model.attention = sizes.remat, sizes.attention if case.precision == "bf16" else "auto"
    layers = max(model.vision.depth, model.language.depth, model.mae.depth)
    model.unroll = layers if case.model == "unrolled" else max(sizes.unroll, model.unroll)
    draft.train.batch_size = sizes.batch
    draft.train.steps = 1_000
    return from_config_dict(draft)


def fake_batch(sizes: Sizes, config: Any) -> Any:
    """The rows that all cases see, as a Batch of NumPy arrays."""
    from agent_jax.batch import Batch, RowSize
    from agent_jax.models.agent import training_visual_tokens

    V = training_visual_tokens(config.model)
    tokens = sizes.text + sizes.frames * sizes.actions
    row = RowSize(sizes.frames, config.model.vision.image_size, sizes.frames * V + tokens, tokens - 1)
    return Batch.fake(row, sizes.batch, visual_tokens=V, vocabulary_size=config.model.language.vocabulary_size)


def prepare(sizes: Sizes, modes: tuple[str, ...], folder: Path) -> dict[str, int]:
    """Write the first parameters and masks for the PyTorch cases; returns the FLOPs of the model's step by mode."""
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    from agent_jax.checkpoints.exported.tensors import in_module, to_tensors
    from agent_jax.models.agent import init_params
    from agent_jax.models.mae import random_mask
    from agent_jax.models.random_keys import INIT_KEY, MASK_KEY, STEP_KEY, purpose_key, row_keys
    from agent_jax.plan.flops import total_flops

    flops = {}
    for mode in modes:
        config = run_config(sizes, Case("ours", "f32", True, mode))
        flops[mode] = total_flops(model_products(sizes, config))
        model, batch = config.model, fake_batch(sizes, config)
        first_key = jax.random.fold_in(purpose_key(config.seed, STEP_KEY), 0)
        keys_B = row_keys(first_key, jnp.asarray(batch.seed_B), MASK_KEY)
        mask = random_mask(keys_B, jnp.asarray(batch.clip_BF), model.vision.patches, model.mae.mask_ratio)
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(mask, field.name), np.int64)
                                  for field in dataclasses.fields(mask)}
        np.savez(folder / f"mask-{mode}.npz", **arrays)
    config = run_config(sizes, Case("ours", "f32", True, modes[0]))
    params = jax.jit(lambda: init_params(config.model, purpose_key(config.seed, INIT_KEY)))()
    tensors = in_module(dict(to_tensors(params, config.model)))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "params.safetensors")
    return flops


def model_products(sizes: Sizes, config: Any) -> list[Any]:
    """The matrix products of a step, forward and backward, without what a backward pass recomputes."""
    import jax

    from agent_jax.models.agent import abstract_params
    from agent_jax.plan.flops import operations
    from agent_jax.runtime.sharding import make_mesh
    from agent_jax.train.optimizer import make_optimizer
    from agent_jax.train.state import abstract_state
    from agent_jax.train.step import make_train_step

    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none", attention="xla"))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    step: Any = make_train_step(config, mesh, optimizer)
    return operations(step.trace(abstract_state(config, mesh, optimizer), fake_batch(sizes, config)).jaxpr)


def our_program(sizes: Sizes, case: Case) -> tuple[Any, Any, Any]:
    """Our train step for this machine, lowered, and its first arguments: the state, which it takes over, and rows."""
    import jax

    from agent_jax.models.agent import abstract_params
    from agent_jax.runtime.host_memory import tune_heap
    from agent_jax.runtime.sharding import make_mesh, shard_batch
    from agent_jax.train.optimizer import make_optimizer
    from agent_jax.train.state import init_state
    from agent_jax.train.step import make_train_step

    tune_heap()
    config = run_config(sizes, case)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    state = init_state(config, mesh, optimizer)
    batch = shard_batch(fake_batch(sizes, config), mesh)
    return make_train_step(config, mesh, optimizer).lower(state, batch), state, batch


def compiled(lowered: Any, sizes: Sizes) -> Any:
    """The compiled step of `our_program`; compiled quickly where its speed does not matter: of tiny size on a CPU."""
    import jax

    from agent_jax.runtime.compiler_options import QUICKLY_COMPILED, compiler_options

    [device] = jax.devices()[:1]
    if sizes.size != "tiny" or device.platform != "cpu":
        return lowered.compile()
    return lowered.compile(compiler_options(device, np.float32) | QUICKLY_COMPILED)  # f32: XLA's older, quicker code


def our_step(sizes: Sizes, case: Case) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that takes a step and returns the loss before it, and what building it told."""
    import jax

    lowered, state, batch = our_program(sizes, case)
    begun = time.perf_counter()
    step = compiled(lowered, sizes)
    told = {"compile_seconds": time.perf_counter() - begun, "device": jax.devices()[0].device_kind}

    def take() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        if told["device"] == "cpu":
            time.sleep(TEMPORARIES_FREED_S)
        return float(metrics.loss)

    return take, told


def torch_step(sizes: Sizes, case: Case, folder: Path) -> tuple[Callable[[], float], dict[str, Any]]:
    """The same in PyTorch."""
    import torch
    from safetensors.torch import load_file

    from agent_jax.convert.pytorch import torch_agent
    from agent_jax.convert.pytorch.folder import agent_json
    from agent_jax.train.optimizer import learning_rate_schedule

    device = torch_device()
    config = run_config(sizes, case)
    with torch.device("meta"):
        agent = torch_agent.Agent(json.loads(agent_json(config, {}, {})))
        if case.model == "transformers":
            _use_transformers(agent, config.model)
    agent.load_state_dict(load_file(folder / "params.safetensors"), assign=True)
    agent = agent.to(device).train()
    batch = {field.name: torch.from_numpy(np.asarray(getattr(found, field.name))).to(device)
             for found in [fake_batch(sizes, config)] for field in dataclasses.fields(found) if field.name != "seed_B"}
    stored = np.load(folder / f"mask-{case.mode}.npz")
    masks = [torch_agent.Mask(*(torch.from_numpy(stored[name]).to(device) for name in torch_agent.Mask._fields))]
    c = config.optimizer
    rate = learning_rate_schedule(c, config.train.steps)
    rates = [float(rate(count)) for count in range(config.train.steps)]
    optimizer = torch.optim.AdamW(torch_agent.parameter_groups(agent, c.weight_decay), lr=1.0, betas=(c.b1, c.b2),
                                  fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates.__getitem__)
    parameters = [p for p in agent.parameters() if p.requires_grad]

    def loss_of(mask: Any) -> Any:
        with (torch.autocast(device, torch.bfloat16) if case.precision == "bf16" else contextlib.nullcontext()):
            output = agent(batch, mask, case.mode)
        return torch_agent.losses(output, batch, agent.config["loss"])["total"]

    if case.compiled:
        loss_of = torch.compile(loss_of)

    def take() -> float:
        patches, ratio = config.model.vision.patches, config.model.mae.mask_ratio
        mask = masks.pop() if masks else torch_agent.random_mask(batch["clip_BF"], patches, ratio)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, c.clip_norm)
        optimizer.step()
        schedule.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    return take, {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}


def _use_transformers(agent: Any, model: Any) -> None:
    """Put transformers' blocks in the place of the exported agent's own; the names of their tensors are the same."""
    from torch import nn
    from transformers import CLIPVisionConfig, OPTConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer
    from transformers.models.opt.modeling_opt import OPTDecoderLayer

    from agent_jax.convert.pytorch.folder import language_json, vision_json

    class ClipLayer(CLIPEncoderLayer):
        def forward(self, x_BFVD: Any, clip_BF: Any) -> Any:
            return super().forward(x_BFVD.flatten(0, 1), None).unflatten(0, x_BFVD.shape[:2])

    def clip_layers(c: Any) -> Any:
        described = vision_json(model.vision) | {
            "hidden_size": c.width, "intermediate_size": c.mlp_width, "num_attention_heads": c.heads,
            "hidden_act": c.activation, "layer_norm_eps": c.layer_norm_eps, "attn_implementation": "sdpa"}
        return nn.ModuleList(ClipLayer(CLIPVisionConfig(**described)) for _ in range(c.depth))

    class OptLayer(OPTDecoderLayer):
        def forward(self, x_BSD: Any, mask: Any) -> Any:
            return super().forward(x_BSD)  # a row is one sample: causal without a mask, for which there is flash

    described = OPTConfig(**language_json(model.language), attn_implementation="sdpa")
    agent.vision.encoder.layers = clip_layers(model.vision)
    agent.mae.layers = clip_layers(model.mae)
    agent.language.layers = nn.ModuleList(OptLayer(described, layer) for layer in range(model.language.depth))


def serve(pipe: Connection, kind: str, arguments: tuple[Any, ...]) -> None:
    """Run in the worker: answer every message of the pipe until it is closed; an error is the last answer."""
    end_with_parent()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several workers share a GPU
    try:
        if kind == "prepare":
            pipe.send(prepare(*arguments))
        elif kind == "square":
            framework, precisions, size = arguments
            rates = {precision: square_product(framework, precision, size) for precision in precisions}
            _answer(pipe, lambda: {precision: rate() for precision, rate in rates.items()}, {})
        elif kind == "products":
            sizes, case = arguments
            _answer(pipe, products_of_step(model_products(sizes, run_config(sizes, case))), {})
        else:
            sizes, case, folder = arguments
            take, told = our_step(sizes, case) if case.framework == "jax" else torch_step(sizes, case, folder)
            begun = time.perf_counter()
            told["losses"] = [take()]
            told["first_step_seconds"] = time.perf_counter() - begun
            told["losses"] += [take() for _ in range(WARM_STEPS - 1)]
            _answer(pipe, take, told)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        pipe.send(error if isinstance(error, (ValueError, ImportError)) else RuntimeError(repr(error)))


def _answer(pipe: Connection, take: Callable[[], Any], told: dict[str, Any]) -> None:
    pipe.send(told)
    while count := pipe.recv():
        begun, spent = time.perf_counter(), time.process_time()
        for _ in range(count):
            value = take()
        pipe.send({"value": value, "seconds": (time.perf_counter() - begun) / count,
                   "cpu_seconds": (time.process_time() - spent) / count, **_peak()})


def _peak() -> dict[str, int]:
    """Peak memory of this process, and of its GPU where there is one."""
    found = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    import sys

    if "jax" in sys.modules and (stats := sys.modules["jax"].devices()[0].memory_stats()):
        found["peak_device_bytes"] = stats["peak_bytes_in_use"]
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        found["peak_device_bytes"] = sys.modules["torch"].cuda.max_memory_allocated()
    return found
