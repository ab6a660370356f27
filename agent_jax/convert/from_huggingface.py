"""Makes a checkpoint from Hugging Face's CLIP and OPT, for `config.init.checkpoint` and the policy.

    --vision PATH  --language PATH  ->  OUT/0/{state,meta}

It is written under a temporary name and renamed when complete, so OUT is complete or absent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from agent_jax.convert.huggingface.architecture import language_config, vision_config
from agent_jax.convert.huggingface.load import pretrained_params, pretrained_report
from agent_jax.convert.huggingface.load_report import LoadReport
from agent_jax.convert.huggingface.tokenizer_places import tokenizer_of
from agent_jax.convert.huggingface.weights_folder import config_path


def config_of(vision: str, language: str, overrides: Sequence[str] = ()) -> Config:
    """The config of the weights' sizes, with the tokenizer in OPT's folder.

    Args:
        vision: folder, file or hub name of a CLIP.
        language: folder, file or hub name of an OPT.
        overrides: as on the command line of training, such as "--config.model.vision.positions=sincos".

    Raises:
        FileNotFoundError, ValueError: the folders, or an override of an unknown field or another type.
    """
    model = ModelConfig(vision=vision_config(vision), language=language_config(language))
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
    """The report and the errors of `write_checkpoint`, from headers alone; nothing is written.

    Args:
        config: from `config_of`.
        out: the directory to write; None: not decided.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `write_checkpoint`, except for errors in values.
    """
    if out is not None:
        checked_out(out)
    return pretrained_report(*_with_vocabulary(config))


def write_checkpoint(config: Config, out: str | pathlib.Path) -> LoadReport:
    """Port the weights of `config.init.pretrained` and write step 0 of a new checkpoint directory.

    Args:
        config: from `config_of`; its `vocabulary_size` is filled in here.
        out: the directory to write.

    Returns:
        The report to print.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, ValueError: see `pretrained_params`; nothing is written.
    """
    out = checked_out(out)
    config, vocabulary = _with_vocabulary(config)
    params, report = pretrained_params(config, vocabulary, jax.random.key(config.seed))
    meta = {"config": dataclasses.asdict(config), "vocabulary": vocabulary.to_json(), "domains": {}, "data_state": None}
    leaves = flat(params)
    del params  # so that write_step can free the NumPy arrays
    write_step(out, leaves, meta, step=0)
    return report


def write_step(out: pathlib.Path, leaves: dict[str, Any], meta: Mapping[str, Any], step: int) -> None:
    """Write a checkpoint directory of one step under a temporary name and rename it to `out`.

    Args:
        out: the directory to write.
        leaves: the parameters by path; NumPy arrays among them are replaced by JAX arrays.
        meta: of the step.
        step: its number.
    """
    for path in leaves:  # one by one: two copies of a large model may not fit
        leaves[path] = jax.numpy.asarray(leaves[path])
    with renamed_when_complete(out) as partial, Checkpoints(partial, keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(step, {"params": nested(leaves)}, meta)


@contextlib.contextmanager
def renamed_when_complete(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path that is renamed to `out` after the block, and removed on an error."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checked_out(out: str | pathlib.Path) -> pathlib.Path:
    """The directory to write: it must not exist, and its parent must."""
    out = pathlib.Path(out).expanduser().absolute()
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists already; choose another OUT, or move it away")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such directory to write {out.name} into")
    return out


def _with_vocabulary(config: Config) -> tuple[Config, Vocabulary]:
    """The config with `vocabulary_size` filled in, and the vocabulary; searches for the tokenizer if none is set."""
    language = config.init.pretrained.language
    if language and config.vocabulary.tokenizer == str(config_path(language).parent):  # not set by the user
        part = dataclasses.replace(config.vocabulary, tokenizer=tokenizer_of(language))
        config = dataclasses.replace(config, vocabulary=part)
    blocks = vocabulary_blocks(config.vocabulary.blocks, config.data.declared_specs)
    vocabulary = Vocabulary.build(config.vocabulary.tokenizer, blocks)
    return config.with_vocabulary_size(vocabulary.size), vocabulary
