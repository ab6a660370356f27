"""A checkpoint of ours from CLIP and OPT of Hugging Face: what `config.init.checkpoint` and the policy read.

    --vision PATH  --language PATH  ->  OUT/0/{state,meta}

It is written beside OUT under another name and renamed when complete, so OUT is whole or not there.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.config import (
    Config,
    InitConfig,
    ModelConfig,
    PretrainedConfig,
    VocabularyConfig,
    from_config_dict,
    to_config_dict,
)
from agent_jax.convert.huggingface.load import config_from_huggingface, pretrained_params, pretrained_report
from agent_jax.convert.huggingface.load_report import LoadReport
from agent_jax.convert.huggingface.tokenizer_places import tokenizer_of
from agent_jax.convert.huggingface.weights_folder import config_path


def config_of(vision: str, language: str, overrides: Sequence[str] = ()) -> Config:
    """The config that fits the weights, exact CLIP and OPT, and the tokenizer that lies beside OPT's weights.

    Args:
        vision: folder, file or hub name of a CLIP.
        language: folder, file or hub name of an OPT.
        overrides: as on the command line of training, such as "--config.model.vision.positions=sincos".

    Raises:
        FileNotFoundError, ValueError: the folders, or an override that is no field or of another type.
    """
    vision_part, language_part = config_from_huggingface(vision, language)
    model = ModelConfig(vision=vision_part, language=language_part)
    config = Config(model=model, vocabulary=VocabularyConfig(tokenizer=str(config_path(language).parent)),
                    init=InitConfig(pretrained=PretrainedConfig(vision, language)))
    values = flags.FlagValues()
    line = ["from-hf", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", to_config_dict(config), flag_values=values, sys_argv=line)
        rest = values(line)[1:]
    except (flags.Error, AttributeError, TypeError) as error:
        raise ValueError(f"{' '.join(overrides)}: {error}") from error
    if rest:
        raise ValueError(f"{' '.join(rest)}: expected --vision PATH --language PATH OUT and --config.FIELD=VALUE")
    return from_config_dict(holder.value)


def dry_run(config: Config, out: str | pathlib.Path | None = None) -> LoadReport:
    """What `write_checkpoint` would do, and its refusals, from headers alone; nothing is written.

    Args:
        config: of `config_of`.
        out: the directory that would be made; None: not decided.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `write_checkpoint`, short of what only values can tell.
    """
    if out is not None:
        checked_out(out)
    return pretrained_report(*_with_vocabulary(config))


def write_checkpoint(config: Config, out: str | pathlib.Path) -> LoadReport:
    """Port the weights of `config.init.pretrained` and write step 0 of a new checkpoint directory.

    Args:
        config: of `config_of`; its `vocabulary_size` is filled in here.
        out: the directory to make.

    Returns:
        The report to print.

    Raises:
        FileExistsError: there is something at `out`.
        FileNotFoundError, ValueError: see `pretrained_params`; nothing is left behind.
    """
    out = checked_out(out)
    config, vocabulary = _with_vocabulary(config)
    params, report = pretrained_params(config, vocabulary, jax.random.key(config.seed))
    meta = {"config": dataclasses.asdict(config), "vocabulary": vocabulary.to_json(), "domains": {}, "data_state": None}
    leaves = flat(params)
    del params
    write_step(out, leaves, meta, step=0)
    return report


def write_step(out: pathlib.Path, leaves: dict[str, Any], meta: Mapping[str, Any], step: int) -> None:
    """Write a checkpoint directory of one step beside `out` and rename it when it is whole.

    Args:
        out: the directory to make.
        leaves: the parameters by path; NumPy arrays among them are replaced on the way.
        meta: of the step.
        step: its number.
    """
    for path in leaves:  # one by one: of a large model, a second copy would not fit
        leaves[path] = jax.numpy.asarray(leaves[path])
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with Checkpoints(partial, keep_latest=1, keep_best=0) as checkpoints:
            checkpoints.save(step, {"params": nested(leaves)}, meta)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checked_out(out: str | pathlib.Path) -> pathlib.Path:
    """The directory to make, which must not be there, in one that must."""
    out = pathlib.Path(out).expanduser().absolute()
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists already; name another OUT, or move it away")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such directory to make {out.name} in")
    return out


def _with_vocabulary(config: Config) -> tuple[Config, Vocabulary]:
    """The config with `vocabulary_size` filled in, and the vocabulary; its tokenizer is looked for if need be."""
    language = config.init.pretrained.language
    if language and config.vocabulary.tokenizer == str(config_path(language).parent):  # no other was named
        found = dataclasses.replace(config.vocabulary, tokenizer=tokenizer_of(language))
        config = dataclasses.replace(config, vocabulary=found)
    blocks = vocabulary_blocks(config.vocabulary.blocks, config.data.declared_specs)
    vocabulary = Vocabulary.build(config.vocabulary.tokenizer, blocks)
    return config.with_vocabulary_size(vocabulary.size), vocabulary
