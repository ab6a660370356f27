"""Exports a checkpoint as a folder for PyTorch and transformers, after a parity check of the folder.

checkpoint -> .OUT.partial/ { vision/ language/ agent.safetensors agent.json ... } -> parity.json -> OUT

vision/         config.json  model.safetensors  preprocessor_config.json                   CLIPVisionModel
language/       config.json  model.safetensors  generation_config.json  tokenizer files    OPTForCausalLM
agent.safetensors                                connector, temporal attention, masked-autoencoder decoder
agent.json  vocabulary.json                      config, domains with their specs, ids
torch_agent.py                                   the whole agent in PyTorch, to train, act and answer
parity.json  README.md                           the parity report, and how to use the folder
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import agent_jax
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.exported.tensors import to_tensors
from agent_jax.checkpoints.meta import is_averaged
from agent_jax.checkpoints.restore import load_to_act
from agent_jax.config import Config
from agent_jax.convert import model_card
from agent_jax.convert.card_of_run import run_lines
from agent_jax.convert.from_huggingface import checked_out, renamed_when_complete
from agent_jax.convert.one_file import one_file
from agent_jax.convert.parity.pytorch import Parity, check_parity
from agent_jax.convert.parity.tolerance import ParityError
from agent_jax.convert.pytorch import folder as torch_folder
from agent_jax.convert.pytorch import torch_agent
from agent_jax.data.pipeline.domains import Domain
from agent_jax.help_pages import help_page
from agent_jax.models.agent import Params

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}


def export(path: str | pathlib.Path, out: str | pathlib.Path, *, dtype: str = "float32",
           weights: str = "averaged", name: str = "") -> Parity:
    """Write the folder of a checkpoint.

    Args:
        path: a workdir, its checkpoints directory, or one step in it; of several steps the newest undamaged one. Or an
            exported folder.
        out: the folder to write.
        dtype: of the stored tensors, a key of `DTYPES`; in bfloat16 the rounded parameters are compared.
        weights: "averaged", if the run has an average, or "raw".
        name: title of the model card; by default the folder's name.

    Returns:
        The parity report; all comparisons are within their tolerance.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, DamagedCheckpointError: there is no undamaged checkpoint.
        ValueError: a parameter is NaN or infinite, or CLIP and OPT cannot represent the model.
        ParityError: a comparison is beyond its tolerance; names all such comparisons.
    """
    out = checked_out(out)
    loaded = load_to_act(path, averaged=weights != "raw")
    meta, config, params, taken = loaded.meta, loaded.config, loaded.params, loaded.taken
    vocabulary = Vocabulary.from_json(meta["vocabulary"])
    domains = {name: Domain.from_meta(entry, vocabulary) for name, entry in meta["domains"].items()}
    kind = "averaged" if weights == "averaged" and is_averaged(meta) else "raw"
    source = {"checkpoint": str(taken.directory), "step": taken.step,
              "damaged_steps_passed_over": list(taken.passed_over), "weights": kind, "dtype": dtype,
              "agent_jax": agent_jax.__version__}
    with renamed_when_complete(out) as partial:
        partial.mkdir()
        params = _write_tensors(partial, params, config, DTYPES[dtype])
        _write_descriptions(partial, config, vocabulary, domains, source)
        parity = check_parity(partial, params, config, vocabulary, domains)
        (partial / "parity.json").write_text(json.dumps({"source": source, **parity.to_dict()}, indent=1) + "\n")
        if not parity.passed:
            raise ParityError(f"{out} was not written: PyTorch does not compute what the checkpoint computes"
                              f"{help_page('guides/weights.md', 'to-pytorch')}\n{parity.failures()}")
        (partial / "README.md").write_text(model_card.text(
            name or out.name, source, config, domains, parity, run_lines(taken.directory, taken.step, config)))
    return parity


def _write_tensors(folder: pathlib.Path, params: Params, config: Config, dtype: np.dtype[Any]) -> Params:
    """Write the three files of tensors; returns the parameters as stored."""
    files: dict[str, dict[str, np.ndarray]] = {}
    for section, tensors in to_tensors(params, config.model):
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                bad = tensor.size - np.count_nonzero(np.isfinite(tensor))
                raise ValueError(f"{section.part}: {bad:,} of the {tensor.size:,} values of {name} are NaN or "
                                 "infinite; export a step before the run diverged, by the path of its directory")
        files.setdefault(section.file, {}).update(tensors)
    for file, tensors in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        stored = {name: np.ascontiguousarray(tensor, dtype) for name, tensor in tensors.items()}
        save_file(stored, folder / file, {"format": "pt"})  # required by transformers
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # the library lets only the owner read it
    if dtype == np.float32:
        return params
    return {part: _rounded(tree, dtype) for part, tree in params.items()}


def _rounded(tree: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _rounded(branch, dtype) for name, branch in tree.items()}
    return np.asarray(tree).astype(dtype).astype(np.float32)


def _write_descriptions(folder: pathlib.Path, config: Config, vocabulary: Vocabulary, domains: Mapping[str, Domain],
                        source: Mapping[str, Any]) -> None:
    """Write the text files."""
    vision, language = config.model.vision, config.model.language
    ids = {name: value for name, value in torch_folder.language_json(language).items() if name.endswith("_token_id")}
    described = {
        "vision/config.json": torch_folder.vision_json(vision),
        "vision/preprocessor_config.json": torch_folder.preprocessor_json(vision),
        "language/config.json": torch_folder.language_json(language),
        "language/generation_config.json": ids,
        "language/tokenizer_config.json": torch_folder.TOKENIZER_CONFIG,
        "vocabulary.json": vocabulary.to_json(),
    }
    for file, content in described.items():
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "language" / "tokenizer.json").write_text(torch_folder.tokenizer_json(vocabulary.text), encoding="utf-8")
    (folder / "agent.json").write_text(torch_folder.agent_json(config, domains, source), encoding="utf-8")
    (folder / "torch_agent.py").write_text(one_file(torch_agent), encoding="utf-8")
