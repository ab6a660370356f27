"""Exports the network of a checkpoint as StableHLO, for programs that run it by XLA on a CPU, GPU or TPU.

    OUT/encoder.stablehlo    params, frames_BFHWC, clip_BF                                  -> visual_BFVD
    OUT/prefill.stablehlo    params, token_BC visual_BC visual_BGD position_BC last_B ids_A -> logits_BA, cache
    OUT/decode.stablehlo     params, token_BC position_BC last_B ids_A, cache, visible_BZ   -> logits_BA, cache of C
    OUT/params.safetensors   the arguments `params`, by path; OUT/agent.json the sizes, domains and preprocessing

The files are artefacts of `jax.export`, which keeps them readable by later versions of JAX (6 months) and for all of
`PLATFORMS`. B, C, F, G, A and Z are free. `jax.export.deserialize(file).call(params, ...)` runs one.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.numpy import save

import agent_jax
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.convert.from_huggingface import checked_out, renamed_when_complete
from agent_jax.convert.pytorch import folder as torch_folder
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.models.agent import Agent, Params
from agent_jax.models.attention import LayerCache
from agent_jax.models.compute import Compute
from agent_jax.models.language import LanguageModel, VisibleCache
from agent_jax.models.transformer import layers_apart

PLATFORMS = ("cpu", "cuda", "tpu")
_PARTS = ("vision", "connector", "language")


def export(path: str | pathlib.Path, out: str | pathlib.Path) -> dict[str, Any]:
    """Write the folder of a checkpoint.

    Args:
        path: a workdir, its checkpoints directory, or one step in it; of several steps the newest undamaged one.
        out: the folder to write.

    Returns:
        The content of stablehlo.json: versions, platforms and the largest difference from the network in this process.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, DamagedCheckpointError: there is no undamaged checkpoint.
        RuntimeError: a graph does not compute what the network does; nothing is written.
    """
    out = checked_out(out)
    trained = TrainedRun.load(path)
    model = trained.config.model
    params: Params = layers_apart({part: jax.tree.map(np.asarray, trained.params()[part]) for part in _PARTS})
    compute = Compute(jnp.dtype(model.dtype), scan=None, attention="xla")
    agent, language = Agent(model, compute), LanguageModel(model.language, compute)

    def encoder(params: Params, frames_BFHWC: jax.Array, clip_BF: jax.Array) -> Any:
        return agent.apply({"params": params}, frames_BFHWC, clip_BF, method="encode")

    def read(params: Params, x_BCD: Any, position_BC: Any, last_B: Any, ids_A: Any, past: Any = ()) -> Any:
        bound: Any = language.bind({"params": params["language"]})
        hidden_BD, cache = bound.read(x_BCD, position_BC, last_B, past)
        return bound.logits_of(hidden_BD, ids_A), cache

    def embed(params: Params, token_BC: jax.Array) -> Any:
        bound: Any = language.bind({"params": params["language"]})
        return bound.embed(token_BC)

    def prefill(params: Params, token_BC: Any, visual_BC: Any, visual_BGD: Any, position_BC: Any, last_B: Any,
                ids_A: Any) -> Any:
        visual_BCD = jnp.take_along_axis(visual_BGD, jnp.maximum(visual_BC, 0)[..., None], axis=1)
        x_BCD = jnp.where((visual_BC >= 0)[..., None], visual_BCD, embed(params, token_BC))
        return read(params, x_BCD, position_BC, last_B, ids_A)

    def decode(params: Params, token_BC: Any, position_BC: Any, last_B: Any, ids_A: Any, cache: Any, visible_BZ: Any
               ) -> Any:
        past = VisibleCache(tuple(LayerCache(*layer) for layer in cache), visible_BZ)
        return read(params, embed(params, token_BC), position_BC, last_B, ids_A, (past,))

    B, C, F, G, A, Z = jax_export.symbolic_shape("B, C, F, G, A, Z")
    size, whole = model.vision.image_size, jnp.int32
    width, heads = model.language.width, model.language.heads
    kv: Any = jax.ShapeDtypeStruct((B, heads, Z, width // heads), compute.dtype)
    ints = {"BC": (B, C), "BF": (B, F), "B": (B,), "A": (A,)}
    spec = {name: jax.ShapeDtypeStruct(shape, whole) for name, shape in ints.items()}
    graphs: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "encoder": (encoder, (jax.ShapeDtypeStruct((B, F, size, size, 3), jnp.uint8), spec["BF"])),
        "prefill": (prefill, (spec["BC"], spec["BC"], jax.ShapeDtypeStruct((B, G, width), compute.dtype), spec["BC"],
                              spec["B"], spec["A"])),
        "decode": (decode, (spec["BC"], spec["BC"], spec["B"], spec["A"],
                            ((kv, kv),) * model.language.depth, jax.ShapeDtypeStruct((B, Z), jnp.bool_)))}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    differences = {}
    with renamed_when_complete(out) as partial:
        partial.mkdir()
        for name, (function, arguments) in graphs.items():
            plain = jax.jit(lambda *given, function=function: jax.tree.leaves(function(*given)))
            made = jax_export.export(plain, platforms=PLATFORMS)(abstract, *arguments)
            content = made.serialize()
            (partial / f"{name}.stablehlo").write_bytes(content)
            differences[name] = _difference(bytes(content), plain, params, arguments)
            if not differences[name] <= (1e-4 if compute.dtype == jnp.float32 else 0.1):
                raise RuntimeError(f"{out} was not written: {name} differs from the network by up to "
                                   f"{differences[name]:.2e}, expected at most 1e-4 (0.1 in bfloat16)")
        (partial / "params.safetensors").write_bytes(
            save({path: np.ascontiguousarray(leaf) for path, leaf in flat(params).items()}))
        source = {"checkpoint": str(trained.directory), "step": trained.step, "agent_jax": agent_jax.__version__}
        (partial / "agent.json").write_text(torch_folder.agent_json(trained.config, trained.domains, source))
        report = {"format": 1, "jax": jax.__version__, "platforms": list(PLATFORMS), "dtype": model.dtype,
                  "calling_convention": jax_export.maximum_supported_calling_convention_version,
                  "params": list(flat(params)), "largest_differences": differences}
        (partial / "stablehlo.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _difference(content: bytes, function: Any, params: Params, arguments: tuple[Any, ...]) -> float:
    """The largest difference of an artefact's outputs from the function's, on random inputs of other sizes."""
    random, sizes = np.random.default_rng(0), {"B": 2, "C": 4, "F": 2, "G": 6, "A": 5, "Z": 3}

    def filled(spec: Any) -> Any:
        shape = tuple(sizes[str(length)] if str(length) in sizes else int(length) for length in spec.shape)
        if spec.dtype == jnp.bool_:
            return np.ones(shape, bool)
        return (random.integers(0, 4, shape) if spec.dtype in (jnp.int32, jnp.uint8)
                else random.normal(size=shape)).astype(spec.dtype)

    given = jax.tree.map(filled, arguments)
    read: Any = jax_export.deserialize(bytearray(content))
    pairs = zip(read.call(params, *given), function(params, *given), strict=True)
    return max(float(np.max(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32))))
               for one, other in pairs)
