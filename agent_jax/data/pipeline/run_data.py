"""The data of a run: its domains, its vocabulary, and the rows for training and validation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.batch import Batch, RowSize
from agent_jax.config import Config, DomainConfig
from agent_jax.data.pipeline.domain_specs import find_specs
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import row_size
from agent_jax.data.pipeline.loader import PackedRows, validation_batches
from agent_jax.data.pipeline.mixture_table import check_labels, mixture_table
from agent_jax.data.pipeline.spec_check import check_specs
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.store import Store, open_store
from agent_jax.models.agent import training_visual_tokens


@dataclasses.dataclass(frozen=True)
class RunData:
    """The opened data of a run."""

    vocabulary: Vocabulary
    domains: tuple[Domain, ...]  # by index
    train: PackedRows  # with the visual tokens that the language model gets in training
    validation: PackedRows  # with all visual tokens
    size: RowSize  # of a training row
    spec_lines: tuple[str, ...] = ()  # for the log: specs compared with the data
    epochs: float = 1.0  # of the mixture in the whole run

    def validation_batches(self, config: Config, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """The same batches at every validation of the run, of `config.train.batch_size` rows."""
        return validation_batches(self.validation, config.train.batch_size, config.train.validation_batches,
                                  process_index=process_index, process_count=process_count)

    def first_validation_rows(self, config: Config, count: int) -> Batch:
        """The first rows of the first validation batch, at most `count`; no other row is read."""
        return next(validation_batches(self.validation, min(count, config.train.batch_size), 1))

    def facts(self) -> dict[str, Any]:
        """Properties of the data that all processes of a run must agree on, by name."""
        digest = lambda value: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]  # noqa: E731
        found: dict[str, Any] = {"vocabulary": digest(self.vocabulary.to_json()), "row": dataclasses.asdict(self.size)}
        for domain, train, validation in zip(self.domains, self.train.counts, self.validation.counts, strict=True):
            found |= {f"windows of {domain.name}": [train, validation],
                      f"specs and fields of {domain.name}": digest(domain.to_meta())}
        return found

    def summary(self) -> str:
        """Lines for the log: how full the rows are, the domains of the mixture, and their specs."""
        fill = self.train.fill()
        per_row = fill.pop("windows_per_row")
        shares = ", ".join(f"{name} {share:.1%}" for name, share in fill.items())
        head = (f"data: {len(self.train.plan(0)):,} rows an epoch of {per_row:.2f} windows each, {self.epochs:,.2f} "
                f"epochs in the run; used of a row: {shares}")
        return "\n".join([head, *mixture_table(self.train.windows, self.epochs), *self.spec_lines])


def open_data(config: Config, gathered: Mapping[str, Path] | None = None) -> RunData:
    """Open every data set of the config.

    Args:
        config: of the run.
        gathered: by domain, the data sets of domains without a path.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: a data set cannot be read, lacks a field or split, or does not fit the model.
    """
    if not config.data.domains:
        raise ValueError("config.data.domains: empty, expected at least one data set")
    entries = sorted(config.data.domains.items())
    stores = {name: _open_store(name, entry, (gathered or {}).get(name)) for name, entry in entries}
    specs = {name: find_specs(name, entry, stores[name]) for name, entry in entries if entry.layout == "actions"}
    declared = [spec.to_dict() for found in specs.values() for spec in found.specs]
    vocabulary = Vocabulary.build(config.vocabulary.tokenizer, vocabulary_blocks(config.vocabulary.blocks, declared))
    domains, train, validation, spec_lines = [], [], [], []
    for index, (name, entry) in enumerate(entries):
        store = stores[name]
        domain = Domain.from_config(name, index, entry, store, vocabulary, config.model.vision.image_size,
                                    specs.get(name))
        domains.append(domain)
        bound = [spec for spec in (domain.spec, domain.state) if spec]
        if bound:
            spec_lines += check_specs(name, specs[name], bound, config.data.out_of_bounds)
        train.append(Windows(domain, store, entry.train_split, config.seed))
        # Validation reads the same windows every time, every step once.
        consecutive = dataclasses.replace(domain, sampling="consecutive")
        validation.append(Windows(consecutive, store, entry.validation_split))
        if domain.layout == "label":
            for windows in (train[-1], validation[-1]):
                check_labels(windows, config.model.classes)
    patches, positions = config.model.vision.patches, config.model.language.positions
    frames = config.data.frames_per_row or max(domain.images for domain in domains)

    def rows(windows: list[Windows], visual_tokens: int) -> PackedRows:
        size = row_size(domains, visual_tokens, frames, positions)
        return PackedRows(windows, size, visual_tokens, patches, config.seed, fit=True)

    train_rows, validation_rows = rows(train, training_visual_tokens(config.model)), rows(validation, 1 + patches)
    epochs = config.train.steps * config.train.batch_size / len(train_rows.plan(0))
    return RunData(vocabulary, tuple(domains), train_rows, validation_rows, train_rows.size, tuple(spec_lines), epochs)


def _open_store(name: str, entry: DomainConfig, gathered: Path | None) -> Store:
    """The data set of a domain."""
    path = os.path.expanduser(entry.path) or gathered
    if not path:
        raise ValueError(f"config.data.domains.{name}.path: empty; give the directory of the data set by "
                         f"--config.data.domains.{name}.path=DIR")
    return open_store(path)
