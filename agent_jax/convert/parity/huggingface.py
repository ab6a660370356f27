"""Parity check of Hugging Face weights: our models against transformers', with the same files and inputs.

    folder -> transformers' torch model       -> hidden states, logits
           -> our parameters -> our model     -> hidden states, logits -> table of differences, verdict

Both run in f32 on fixed inputs. Two kinds of comparisons: hidden states of the whole stack, each model on its own; and
every block alone, with the input of the torch model. Hooks on transformers' modules record the states.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.config import LanguageConfig, ModelConfig, VisionConfig
from agent_jax.convert.huggingface.architecture import language_config, model_kind, vision_config
from agent_jax.convert.huggingface.load import load_language, load_vision
from agent_jax.convert.huggingface.weights_folder import config_path, read_config
from agent_jax.convert.parity.tolerance import BLOCK, STACK, Comparison, compare, table
from agent_jax.json_files import write_json
from agent_jax.models.attention import attend, attend_causally
from agent_jax.models.language import LanguageModel
from agent_jax.models.transformer import BlockConfig, TransformerBlock
from agent_jax.models.vision import PIXEL_MEAN, PIXEL_STD, VisionEncoder, patchify

SEED = 0


def find_folders(directory: str | pathlib.Path) -> dict[pathlib.Path, str]:
    """The CLIP and OPT folders that `directory` is or contains, with their kinds.

    Raises:
        FileNotFoundError: there is none.
    """
    place = pathlib.Path(directory).expanduser()
    candidates = [place, *sorted(item for item in place.iterdir() if item.is_dir())] if place.is_dir() else []
    folders = {item: model_kind(read_config(item)) for item in candidates if (item / "config.json").is_file()}
    if not (known := {item: kind for item, kind in folders.items() if kind}):
        raise FileNotFoundError(f"{place}: found {len(folders)} folders with a config.json, none of a CLIP or an OPT; "
                                "expected a Hugging Face folder of one, or a directory that holds such folders")
    return known


def verify_folders(directory: str | pathlib.Path, json_path: pathlib.Path | None = None) -> bool:
    """Compare every folder, print a table for each, and write the figures to `json_path`.

    Returns:
        Whether all comparisons are within their tolerance.

    Raises:
        FileNotFoundError, ValueError: there is no folder, or one cannot be loaded.
        ImportError: torch is not installed.
    """
    verified = {}
    for folder, kind in find_folders(directory).items():
        rows = verify_vision(folder) if kind == "vision" else verify_language(folder)
        verified[folder] = rows
        within = sum(row.passed for row in rows)
        print(f"{folder}\n{table(rows)}\n{'parity' if within == len(rows) else 'NO PARITY'}: "
              f"{within} of {len(rows)} within tolerance\n")
    passed = all(row.passed for rows in verified.values() for row in rows)
    if json_path is not None:
        content = {"passed": passed, "versions": _versions(),
                   "folders": {str(folder): [row.to_dict() for row in rows] for folder, rows in verified.items()}}
        write_json(json_path, content)
    return passed


def verify_vision(directory: str | pathlib.Path, images: int = 1) -> list[Comparison]:
    """Our encoder against CLIPVisionModel: hidden states, each block alone, the post-normed CLS."""
    import torch
    from transformers import CLIPVisionModel

    config = vision_config(directory)
    params, _ = load_vision(directory, ModelConfig(vision=config, language=LanguageConfig(vocabulary_size=1)))
    shape = (1, images, config.image_size, config.image_size, 3)
    frames = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    # As in CLIPImageProcessor.
    mean, std = np.asarray(PIXEL_MEAN, np.float32), np.asarray(PIXEL_STD, np.float32)
    pixels = (frames[0].astype(np.float32) / 255 - mean) / std
    pixels_FCHW = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    model = _torch_model(CLIPVisionModel, directory)
    modules = [model.pre_layrnorm, *model.encoder.layers]
    with torch.inference_mode():
        states, output = _record(modules, lambda: model(pixel_values=pixels_FCHW))
    with jax.default_matmul_precision("highest"):
        encoder = VisionEncoder(config)
        patches = patchify(jnp.asarray(frames), config.patch_size)
        clips = jnp.arange(images, dtype=jnp.int32)[None]
        encode = jax.jit(lambda params: encoder.apply({"params": params}, patches, clips, collect="hidden"))
        tokens, hidden = encode(params)
        rows = _stack_rows("vision", [state[0] for state in np.asarray(hidden)], states)
        rows.append(compare("vision: post-normed CLS", tokens[0, :, 0], output.pooler_output, STACK))
        return rows + _block_rows("vision", config, params["blocks"], states)


def verify_language(directory: str | pathlib.Path, tokens: int = 160) -> list[Comparison]:
    """Our language model against OPTForCausalLM: hidden states, each block alone, logits.

    Three rows: one without padding, one padded on the right, one on the left, which ours takes as segments and
    positions. At the default length our causal attention has several blocks.
    """
    import torch
    from transformers import OPTForCausalLM

    config = language_config(directory)
    text_rows = read_config(directory).get("vocab_size", 50272)
    if isinstance(text_rows, bool) or not isinstance(text_rows, int) or text_rows < 1:
        raise ValueError(f"{config_path(directory)}: vocab_size={text_rows!r}, expected a whole number of at least 1")
    config = dataclasses.replace(config, vocabulary_size=text_rows, vocabulary_multiple=1)
    params, _ = load_language(directory, ModelConfig(language=config), text_rows)
    length = min(tokens, config.positions)
    token_BS = np.random.default_rng(SEED).integers(0, text_rows, (3, length))
    real_BS = np.ones((3, length), bool)
    real_BS[1, length - length // 3 :] = False
    real_BS[2, : length // 3] = False

    model = _torch_model(OPTForCausalLM, directory)
    decoder = model.model.decoder
    with torch.inference_mode():
        ids, mask = torch.from_numpy(token_BS), torch.from_numpy(real_BS.astype(np.int64))
        states, output = _record([*decoder.layers, decoder.final_layer_norm],
                                 lambda: model(input_ids=ids, attention_mask=mask, use_cache=False), first_input=True)
    normed = states.pop()
    with jax.default_matmul_precision("highest"):
        language = LanguageModel(config)
        segment_BS = jnp.asarray(real_BS, jnp.int32)
        position_BS = jnp.where(real_BS, jnp.cumsum(segment_BS, axis=1) - 1, 0)

        def run(language: LanguageModel) -> Any:
            out, hidden = language(language.embed(jnp.asarray(token_BS)), position_BS, segment_BS, collect="hidden")
            return out, hidden, language.logits(out)

        out, hidden, logits = jax.jit(lambda params: language.apply({"params": params}, method=run))(params)
        # Padding has no meaning in either model, so only real slots are compared.
        rows = _stack_rows("language", [state[real_BS] for state in np.asarray(hidden)], [x[real_BS] for x in states])
        rows.append(compare("language: final norm", out[real_BS], normed[real_BS], STACK))
        rows.append(compare("language: logits", logits[real_BS], output.logits[torch.from_numpy(real_BS)], STACK))
        return rows + _block_rows("language", config, params["blocks"], states, segment_BS, real_BS)


def _torch_model(kind: Any, directory: str | pathlib.Path) -> Any:
    """A model of transformers in f32 with all weights from the folder; ValueError if some are missing."""
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(
            str(directory), dtype=torch.float32, attn_implementation="eager", local_files_only=True,
            # A .bin is read by torch.load(weights_only=True).
            use_safetensors=any(pathlib.Path(directory).glob("*.safetensors")), output_loading_info=True)
    except (OSError, ImportError):
        raise
    except Exception as error:  # a wrong config.json can raise anything
        raise ValueError(f"{directory}: {kind.__name__} of transformers cannot be made of config.json and weights: "
                         f"{type(error).__name__}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"{directory}: {kind.__name__} of transformers did not find all its weights: {report}")
    return model.eval()


def _record(modules: list[Any], run: Any, *, first_input: bool = False) -> tuple[list[np.ndarray], Any]:
    """(output of each module, with `first_input` after the first module's input; result of `run`)."""
    states: list[np.ndarray] = []
    record = lambda state: states.append(state.numpy().copy())  # noqa: E731
    hooks = [module.register_forward_hook(lambda _, inputs, output: record(output)) for module in modules]
    if first_input:
        hooks.append(modules[0].register_forward_pre_hook(lambda _, inputs: record(inputs[0])))
    try:
        output = run()
    finally:
        for hook in hooks:
            hook.remove()
    return states, output


def _stack_rows(part: str, ours: list[np.ndarray], reference: list[np.ndarray]) -> list[Comparison]:
    """Comparisons of the embedded input and of the output of every block in the stack."""
    assert len(ours) == len(reference), (len(ours), len(reference))
    rows = [compare(f"{part}: embeddings", ours[0], reference[0], BLOCK)]
    return rows + [compare(f"{part}: after block {layer}", mine, theirs, STACK)
                   for layer, (mine, theirs) in enumerate(zip(ours[1:], reference[1:], strict=True), start=1)]


def _block_rows(part: str, config: VisionConfig | LanguageConfig, stacked: dict[str, Any], states: list[np.ndarray],
                segment_BS: jax.Array | None = None, real_BS: np.ndarray | None = None) -> list[Comparison]:
    """Comparisons of every block alone, with the torch model's input; causal if there are segments."""
    sizes = BlockConfig(config.width, config.heads, config.mlp_width, config.activation, config.layer_norm_eps)
    block = TransformerBlock(sizes, spatial=attend if segment_BS is None else attend_causally)
    run = jax.jit(lambda params, x: block.apply({"params": params}, x, jnp.int32(0), segment_BS, None)[0])
    rows = []
    for layer, (x, expected) in enumerate(itertools.pairwise(states)):
        out = np.asarray(run(jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked), x))
        if real_BS is not None:
            out, expected = out[real_BS], expected[real_BS]
        rows.append(compare(f"{part}: block {layer + 1} alone", out, expected, BLOCK))
    return rows


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {module.__name__: module.__version__ for module in (jax, torch, transformers)}
