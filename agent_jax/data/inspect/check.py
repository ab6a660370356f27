"""`python -m agent_jax.data check`: describes a data set and lists its problems.

    every record --once--> lengths, texts, numbers, headers of images, damage --> figures, problems --> text

An unreadable record is reported as a problem and the pass continues. Exit status 1 means that there are problems.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.config import DomainConfig
from agent_jax.data.image_files import read_header
from agent_jax.data.images import prepare_image
from agent_jax.data.inspect.config import complete, specs_of
from agent_jax.data.inspect.report import DataSummary, figures_of, lines_of, problems_of
from agent_jax.data.inspect.rows import first_rows
from agent_jax.data.pipeline.domain_specs import DomainSpecs
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.store import Store, open_store

_UNREADABLE = (ValueError, IndexError, RuntimeError, OSError)  # of protobuf, and of array_record
_MOST_NUMBERS = 2**24  # of a key, in memory for the histograms: 64 MiB; values beyond are only checked


@dataclasses.dataclass
class CheckReport:
    """The result of `check`."""

    figures: dict[str, Any]  # JSON
    problems: list[str]
    lines: list[str]

    def text(self) -> str:
        """The report for the terminal, the problems last."""
        problems = [f"wrong: {problem}" for problem in self.problems] or ["nothing is wrong"]
        return "\n".join([*self.lines, "", *problems])


def check(path: Path, config: DomainConfig, *, images: bool = False) -> CheckReport:
    """Read a data set once and check it.

    Args:
        path: its directory.
        config: names and meaning of its fields; empty specs are those of the data set.
        images: decode every image instead of reading only its header.

    Raises:
        FileNotFoundError, ValueError: there is no data set, or it lacks a field of the config.
    """
    store = open_store(path)
    config = complete(config, store)
    domain_specs, spec_problem = _specs(config, store)
    specs = domain_specs.specs if domain_specs else []
    keys = [key for spec in specs for key in spec.fields] or _number_keys(store)
    summary = DataSummary()
    for split in (name for name, count in store.splits.items() if count):
        for where, episode in _records(store, split, summary):
            try:
                _add_record(episode, where, split, config, keys, store, summary, images=images)
            except ValueError as error:
                summary.damage.append(_with_place(where, error))
    values = {key: np.concatenate(of_key) for key, of_key in summary.values.items() if of_key}
    can_lay_out = (specs or config.layout != "actions") and not summary.damage
    rows, row_problem = first_rows(store, config, domain_specs) if can_lay_out else ([], "")
    problems = [*problems_of(store, domain_specs, values, summary), *filter(None, (spec_problem, row_problem))]
    return CheckReport(figures_of(store, specs, values, summary, problems), problems,
                       [*lines_of(store, config, specs, values, summary), *rows])


def _specs(config: DomainConfig, store: Store) -> tuple[DomainSpecs | None, str]:
    """The specs, if there are any, or the reason why they cannot be used."""
    try:
        return specs_of(config, store), ""
    except _UNREADABLE as error:
        return None, f"the specs cannot be used: {error}"


def _number_keys(store: Store) -> list[str]:
    """Paths of numeric step fields that may be actions or states."""
    return [path for path, field in store.fields.items()
            if field.per_step and field.kind == "array" and -1 not in field.shape and field.dtype.kind in "fiu"
            and np.prod(field.shape) <= 32 and path.removeprefix("steps/") not in ("reward", "discount")]


def _records(store: Store, split: str, summary: DataSummary) -> Iterator[tuple[str, Episode]]:
    """The readable records; the others are added to the damage."""
    source = store.split(split)
    for number in range(len(source)):
        where = f"split {split!r}, record {number}"
        try:
            yield where, source[number]
        except _UNREADABLE as error:
            summary.damage.append(_with_place(where, error))


def _add_record(episode: Episode, where: str, split: str, config: DomainConfig, keys: list[str], store: Store,
                summary: DataSummary, *, images: bool) -> None:
    """Add a record to the summary; raises ValueError for what is wrong with it."""
    summary.records[split] += 1
    if not episode.steps:
        raise ValueError("no steps, expected at least one")
    summary.steps[split] += episode.steps
    ids = {name: bytes(episode.value(name)) for name in ("episode_id", "recording_id") if name in store.fields}
    name = ids.get("episode_id", b"").decode("utf-8", "replace")
    episode_key = f"{split}/{name or where}"  # a record may be a segment of an episode
    summary.lengths[episode_key] += episode.steps
    if "recording_id" in ids:
        summary.splits_of.setdefault(ids["recording_id"], set()).add(split)
    summary.instructions.update(dict.fromkeys((episode_key, text) for text in episode.texts(config.instruction)))
    for key in keys:
        path = key if key in store.fields else store.step_field(key).path
        numbers = np.asarray(episode.values(path, 0, episode.steps))
        if len(numbers) != episode.steps:
            raise ValueError(f"{path} has {len(numbers)} values, expected one for each of {episode.steps} steps")
        if summary.value_counts[key] < _MOST_NUMBERS:
            summary.values.setdefault(key, []).append(numbers)
            summary.value_counts[key] += numbers.size
        if not np.isfinite(numbers).all():
            step = int(np.argwhere(~np.isfinite(numbers.reshape(len(numbers), -1)))[0][0])
            raise ValueError(f"episode {name!r}, step {step}: {path} is {numbers[step].tolist()}, expected finite "
                             "numbers")
    for path in ("steps/is_last", "steps/action_weight"):  # which training reads as well
        if path in store.fields:
            episode.values(path, 0, episode.steps)
    for camera in config.cameras:
        for t, image in enumerate(episode.values(camera, 0, episode.steps)):
            try:
                size, rotated = _size(image, decode=images)
                summary.sizes.setdefault(camera, Counter())[size] += 1
                summary.rotated[camera] += rotated
            except ValueError as error:
                raise ValueError(f"episode {name!r}, step {t}, {camera}: {error}") from error


def _size(image: bytes | np.ndarray, *, decode: bool) -> tuple[tuple[int, int], bool]:
    """Height and width of the upright image, and whether its EXIF orientation rotates or mirrors it."""
    header = read_header(image) if isinstance(image, bytes) else None
    rotated = header is not None and header.orientation != 1
    if header and not decode:
        return header.size, rotated
    height, width, _ = prepare_image(image, 0).shape
    return (height, width), rotated


def _with_place(where: str, error: Exception) -> str:
    text = str(error)
    return text if where in text else f"{where}: {text}"
