"""A checkpoint to evaluate: its config, domains, parameters, policy and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from agent_jax.checkpoints.restore import ActingCheckpoint, load_to_act, restore_acting_parameters
from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import row_size
from agent_jax.data.pipeline.loader import PackedRows
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.store import Store, open_store
from agent_jax.envs import CLIPS, NAMES
from agent_jax.envs.collect import ensure_demonstrations
from agent_jax.help_pages import help_page
from agent_jax.models.agent import Params
from agent_jax.policy.domains import acting_domain, domains_of
from agent_jax.policy.policy import History, Policy


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """One step of a run's checkpoints, with the run's config and domains."""

    directory: Any  # of the checkpoints
    step: int
    config: Config
    domains: Mapping[str, Domain]
    passed_over: tuple[int, ...] = ()  # damaged newer steps
    loaded: ActingCheckpoint | None = None  # the parameters, if they were read already

    @classmethod
    def load(cls, path: str | Path, step: int | None = None) -> Self:
        """Load a workdir, its checkpoints directory, or one step in it; default: the newest undamaged step.

        Raises:
            FileNotFoundError: no checkpoint there.
            DamagedCheckpointError: the step is damaged, or every step is.
        """
        loaded = load_to_act(path, step)
        taken = loaded.taken
        return cls(taken.directory, taken.step, loaded.config, domains_of(loaded), taken.passed_over, loaded)

    def params(self) -> Params:
        """The parameters to evaluate: averaged ones if the run has them."""
        return self.loaded.params if self.loaded else restore_acting_parameters(self.directory, self.config, self.step)

    def policy(self, domain: str = "", *, temperature: float = 0.0, seed: int = 0, history: History = "sliding",
               flush_every: int = 0, replan_every: int = 0) -> Policy:
        """The policy of this step; arguments and errors as in `Policy.load`."""
        loaded = self.loaded or load_to_act(self.directory, self.step)
        return Policy.of(loaded, domain=domain, temperature=temperature, seed=seed, history=history,
                         flush_every=flush_every, replan_every=replan_every)

    def domain(self, name: str = "") -> Domain:
        """A domain by its name; "": the one to act in. Errors as in `acting_domain`."""
        return acting_domain(self.domains, name, self.directory)

    def open_store(self, domain: Domain, path: str = "") -> Store:
        """The data of a domain at `path`, by default at the run's path; demonstrations are collected again if missing.

        Raises:
            FileNotFoundError, ValueError: no data set there.
        """
        entry = self.config.data.domains.get(domain.name)
        path = path or (entry.path if entry else "")
        if path:
            return open_store(path)
        demonstrations = self.config.data.demonstrations_of(domain.name)
        if not demonstrations.environment:
            raise ValueError(f"domain {domain.name!r}: the checkpoint has no path of its data; pass it as "
                             f"--data {domain.name}=DIR")
        return open_store(_demonstrations(self.config, domain.name))

    def split(self, domain: Domain, name: str = "") -> str:
        """The split to evaluate on; default: the run's validation split."""
        entry = self.config.data.domains.get(domain.name)
        return name or (entry.validation_split if entry else "test")

    def training_split(self, domain: Domain) -> str:
        """The split that the domain was trained on."""
        entry = self.config.data.domains.get(domain.name)
        return entry.train_split if entry else "train"

    def check_held_out(self, domain: Domain, store: Store, split: str) -> None:
        """Check that no recording of a split is in the training split of the store or of the run's own data.

        The training split itself may be evaluated. Recordings are equal if their `recording_id` is, or without that
        field their first records are.

        Raises:
            ValueError: an unknown split, or a recording that is in both.
        """
        training, entry = self.training_split(domain), self.config.data.domains.get(domain.name)
        own = Path(entry.path).expanduser() if entry and entry.path else store.directory
        evaluated = _windows(domain, store, split).index.recording_N
        for trained_on in [store, *([open_store(own)] if own.is_dir() and own != store.directory else [])]:
            same = trained_on.directory == store.directory
            if not trained_on.splits.get(training) or (same and split == training):
                continue
            shared = np.isin(evaluated, _windows(domain, trained_on, training).index.recording_N)
            if shared.any():
                raise ValueError(
                    f"{store.directory}, split {split!r}: {len(np.unique(evaluated[shared]))} of its "
                    f"{len(np.unique(evaluated))} recordings are also in the training split {training!r} of "
                    f"{trained_on.directory}, the first as record {int(np.argmax(shared))} of {split!r}; expected "
                    "none. Evaluate a split of other recordings, or prepare the data again, which divides recordings "
                    "among splits" + help_page("guides/evaluation.md", "offline: predict recorded data"))

    def rows(self, domain: Domain, store: Store, split: str, recordings: int = 0) -> PackedRows:
        """The rows of a split, laid out as in validation: every step once, all visual tokens.

        Args:
            domain: of the checkpoint.
            store: its data.
            split: of the store.
            recordings: maximum number of recordings, drawn with the run's seed; 0: all.

        Raises:
            ValueError: an unknown split, or data that do not fit the domain.
        """
        model = self.config.model
        windows = _windows(domain, store, split)
        every = np.unique(windows.recordings)
        if 0 < recordings < len(every):
            chosen = np.random.default_rng(self.config.seed).choice(every, recordings, replace=False)
            windows = windows.subset(np.isin(windows.recordings, chosen))
        frames = self.config.data.frames_per_row or domain.images
        size = row_size([domain], 1 + model.vision.patches, max(frames, domain.images), model.language.positions)
        return PackedRows([windows], size, 1 + model.vision.patches, model.vision.patches, self.config.seed, fit=True)


def _windows(domain: Domain, store: Store, split: str) -> Windows:
    """The windows of a split, one after another."""
    store.split(split)  # raises the error of an unknown split
    return Windows(dataclasses.replace(domain, sampling="consecutive"), store, split)


def data_paths(values: Sequence[str], domains: Mapping[str, Domain]) -> dict[str, str]:
    """Directories by domain, from the values of --data: NAME=DIR, or DIR for the only domain.

    Raises:
        ValueError: an unknown domain, or no domain although there are several.
    """
    found = {}
    for text in values:
        name, separator, path = text.partition("=")
        if not separator and len(domains) == 1:
            name, path = next(iter(domains)), text
        if name not in domains or not path:
            raise ValueError(f"--data {text}: expected NAME=DIR with one of the domains {', '.join(sorted(domains))}")
        found[name] = path
    return found


def _demonstrations(config: Config, domain: str) -> Path:
    """The demonstrations of a domain of a checkpoint's config, collected again if they are missing.

    Raises:
        ValueError: of an environment that is not in this package: a checkpoint must not choose what is imported.
    """
    demonstrations = config.data.demonstrations_of(domain)
    if demonstrations.environment not in (*NAMES, CLIPS):
        raise ValueError(f"domain {domain!r}: its data were collected in {demonstrations.environment!r}, which is not "
                         f"an environment of this package and is not imported; pass the data as --data {domain}=DIR")
    return ensure_demonstrations(demonstrations, Path(config.data.directory).expanduser())


def gathered_data(config: Config) -> dict[str, Path]:
    """The demonstrations of every domain of a checkpoint's config that has no path; errors as `open_store`."""
    return {name: _demonstrations(config, name) for name in config.data.gathered}
