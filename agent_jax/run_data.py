"""The data of a run: its domains, its vocabulary, and the rows for training and validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_jax.batch import Batch, RowSize
from agent_jax.config import Config
from agent_jax.data.domains import Domain
from agent_jax.data.layout import row_size
from agent_jax.data.loader import PackedRows, validation_batches
from agent_jax.data.store import open_store
from agent_jax.data.windows import Windows
from agent_jax.models.agent import training_visual_tokens
from agent_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class RunData:
    """What the loop needs of the data."""

    vocabulary: Vocabulary
    domains: tuple[Domain, ...]  # by index
    train: PackedRows  # laid out for what the language model sees in training
    validation: PackedRows  # laid out for all visual tokens
    size: RowSize  # of a training row

    def validation_batches(self, config: Config, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """The same batches at every validation of the run, of `config.train.batch_size` rows."""
        return validation_batches(self.validation, config.train.batch_size, config.train.validation_batches,
                                  process_index=process_index, process_count=process_count)

    def summary(self) -> str:
        """Lines for the log: what is in the data, and how full the rows are."""
        fill = self.train.fill()
        lines = [f"  {domain.name}: {count:,} windows of up to {domain.window} steps, {domain.spec.spec.name} actions"
                 for domain, count in zip(self.domains, self.train.counts, strict=True)]
        used = ", ".join(f"{name} {share:.0%}" for name, share in fill.items())
        return "\n".join([f"data: {len(self.train.plan(0)):,} rows an epoch; used of a row: {used}", *lines])


def with_vocabulary(config: Config, vocabulary: Vocabulary) -> Config:
    """The config with the vocabulary's size filled in."""
    language = dataclasses.replace(config.model.language, vocabulary_size=vocabulary.size)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, language=language))


def open_data(config: Config, demonstrations: Path | None = None) -> RunData:
    """Open every data set of the config.

    Args:
        config: of the run.
        demonstrations: the data set of domains that name no path.

    Raises:
        FileNotFoundError: a data set that is not there.
        ValueError: one that is no data set of ours, lacks a field or split, or does not fit the model.
    """
    if not config.data.domains:
        raise ValueError("config.data.domains: empty, expected at least one data set")
    vocabulary = Vocabulary.build(config.vocabulary.tokenizer, config.vocabulary.blocks)
    domains, train, validation = [], [], []
    for index, (name, entry) in enumerate(sorted(config.data.domains.items())):
        path: Any = entry.path or demonstrations
        if not path:
            raise ValueError(f"config.data.domains.{name}.path: empty; give the directory of the data set by "
                             f"--config.data.domains.{name}.path=DIR")
        store = open_store(path)
        domain = Domain.from_config(name, index, entry, store, vocabulary, config.model.vision.image_size)
        domains.append(domain)
        train.append(Windows(domain, store, entry.train_split))
        validation.append(Windows(domain, store, entry.validation_split))
    patches, positions = config.model.vision.patches, config.model.language.positions
    frames = config.data.frames_per_row or max(domain.window for domain in domains)

    def rows(windows: list[Windows], visual_tokens: int) -> tuple[PackedRows, RowSize]:
        size = row_size(domains, visual_tokens, frames, positions)
        return PackedRows(windows, size, visual_tokens, patches, config.seed), size

    train_rows, size = rows(train, training_visual_tokens(config.model))
    validation_rows, _ = rows(validation, 1 + patches)
    return RunData(vocabulary, tuple(domains), train_rows, validation_rows, size)
