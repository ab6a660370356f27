"""A checkpoint of ours from Hugging Face folders: what `config.init.checkpoint` and the policy read.

    --vision DIR  --language DIR  ->  OUT/0/{state,meta}

It is written beside OUT under another name and renamed when complete, so OUT is whole or not there.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from agent_jax.checkpoint import Checkpoints
from agent_jax.config import (
    Config,
    InitConfig,
    ModelConfig,
    PretrainedConfig,
    VocabularyConfig,
    from_config_dict,
    to_config_dict,
)
from agent_jax.convert.account import Report
from agent_jax.convert.huggingface import config_from_huggingface, pretrained_params
from agent_jax.vocabulary import Vocabulary


def config_of(vision: str, language: str, overrides: Sequence[str] = ()) -> Config:
    """The config that fits the folders, exact CLIP and OPT, and the tokenizer that lies beside OPT's weights.

    Args:
        vision: a CLIP folder.
        language: an OPT folder.
        overrides: as on the command line of training, such as "--config.model.vision.positions=sincos".

    Raises:
        FileNotFoundError, ValueError: the folders, or an override that is no field or of another type.
    """
    vision_part, language_part = config_from_huggingface(vision, language)
    model = ModelConfig(vision=vision_part, language=language_part)
    config = Config(model=model, vocabulary=VocabularyConfig(tokenizer=language),
                    init=InitConfig(pretrained=PretrainedConfig(vision, language)))
    values = flags.FlagValues()
    line = ["from-hf", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", to_config_dict(config), flag_values=values, sys_argv=line)
        rest = values(line)[1:]
    except (flags.Error, AttributeError, TypeError) as error:
        raise ValueError(f"{' '.join(overrides)}: {error}") from error
    if rest:
        raise ValueError(f"{' '.join(rest)}: expected --vision DIR --language DIR OUT and --config.FIELD=VALUE")
    return from_config_dict(holder.value)


def write_checkpoint(config: Config, out: str | pathlib.Path) -> Report:
    """Port the folders of `config.init.pretrained` and write step 0 of a new checkpoint directory.

    Args:
        config: of `config_of`; its `vocabulary_size` is filled in here.
        out: the directory to make.

    Returns:
        The report to print.

    Raises:
        FileExistsError: there is something at `out`.
        FileNotFoundError, ValueError: see `pretrained_params`; nothing is left behind.
    """
    out = pathlib.Path(out).expanduser().absolute()
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists already; name another OUT, or move it away")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such directory to make {out.name} in")
    vocabulary = Vocabulary.build(config.vocabulary.tokenizer, config.vocabulary.blocks)
    language = dataclasses.replace(config.model.language, vocabulary_size=vocabulary.size)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, language=language))
    params, report = pretrained_params(config, vocabulary, jax.random.key(config.seed))
    meta = {"config": dataclasses.asdict(config), "vocabulary": vocabulary.to_json(), "domains": {}, "data_state": None,
            "ema": ""}
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with Checkpoints(partial, keep_latest=1, keep_best=0) as checkpoints:
            checkpoints.save(0, {"params": jax.tree.map(jax.numpy.asarray, params)}, meta)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report
