"""`python -m agent_jax.data check`: what a data set holds, and in words what is wrong with it.

    every record --once--> lengths, texts, numbers, heads of images, damage --> figures, problems --> text

A record that cannot be read is a problem with its name; the pass goes on. Exit status 1 says that there are problems.
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
_MOST_NUMBERS = 2**24  # of a key: kept for the histograms, 64 MiB; of what is beyond, only the records are checked


@dataclasses.dataclass
class CheckReport:
    """What `check` found."""

    figures: dict[str, Any]  # JSON
    problems: list[str]
    lines: list[str]

    def text(self) -> str:
        """All of it for the terminal, the problems last."""
        verdict = [f"wrong: {problem}" for problem in self.problems] or ["nothing is wrong"]
        return "\n".join([*self.lines, "", *verdict])


def check(path: Path, config: DomainConfig, *, images: bool = False) -> CheckReport:
    """Read a data set once and judge it.

    Args:
        path: its directory.
        config: what its fields are called and mean; specs left empty are the data's own.
        images: decode every image, rather than read only its header.

    Raises:
        FileNotFoundError, ValueError: there is no data set, or it lacks a field of the config.
    """
    store = open_store(path)
    config = complete(config, store)
    found, no_specs = _specs(config, store)
    specs = found.specs if found else []
    keys = [key for spec in specs for key in spec.fields] or _number_keys(store)
    seen = DataSummary()
    for split in (name for name, count in store.splits.items() if count):
        for where, episode in _records(store, split, seen):
            try:
                _look(episode, where, split, config, keys, store, seen, images=images)
            except ValueError as error:
                seen.damage.append(_placed(where, error))
    values = {key: np.concatenate(of_key) for key, of_key in seen.values.items() if of_key}
    drawn = (specs or config.layout != "actions") and not seen.damage
    rows, row_problem = first_rows(store, config) if drawn else ([], "")
    problems = [*problems_of(store, found, values, seen), *filter(None, (no_specs, row_problem))]
    return CheckReport(figures_of(store, specs, values, seen, problems), problems,
                       [*lines_of(store, config, specs, values, seen), *rows])


def _specs(config: DomainConfig, store: Store) -> tuple[DomainSpecs | None, str]:
    """The specs, if there are any, and why they cannot be used; bounds that are open are found in the data."""
    try:
        return specs_of(config, store), ""
    except _UNREADABLE as error:
        return None, f"the specs cannot be used: {error}"


def _number_keys(store: Store) -> list[str]:
    """Paths of the numbers of steps that may be actions or states."""
    return [path for path, field in store.fields.items()
            if field.per_step and field.kind == "array" and -1 not in field.shape and field.dtype.kind in "fiu"
            and np.prod(field.shape) <= 32 and path.removeprefix("steps/") not in ("reward", "discount")]


def _records(store: Store, split: str, seen: DataSummary) -> Iterator[tuple[str, Episode]]:
    """The records that can be read; the others are noted."""
    source = store.split(split)
    for number in range(len(source)):
        where = f"split {split!r}, record {number}"
        try:
            yield where, source[number]
        except _UNREADABLE as error:
            seen.damage.append(_placed(where, error))


def _look(episode: Episode, where: str, split: str, config: DomainConfig, keys: list[str], store: Store,
          seen: DataSummary, *, images: bool) -> None:
    """Add what a record holds; raises ValueError for what is wrong with it."""
    seen.records[split] += 1
    if not episode.steps:
        raise ValueError("no steps, expected at least one")
    seen.steps[split] += episode.steps
    names = {name: bytes(episode.value(name)) for name in ("episode_id", "recording_id") if name in store.fields}
    name = names.get("episode_id", b"").decode("utf-8", "replace")
    whole = f"{split}/{name or where}"  # of which the record is a segment
    seen.lengths[whole] += episode.steps
    if "recording_id" in names:
        seen.splits_of.setdefault(names["recording_id"], set()).add(split)
    seen.told.update(dict.fromkeys((whole, text) for text in episode.texts(config.instruction)))
    for key in keys:
        path = key if key in store.fields else store.step_field(key).path
        numbers = np.asarray(episode.values(path, 0, episode.steps))
        if len(numbers) != episode.steps:
            raise ValueError(f"{path} has {len(numbers)} values, expected one for each of {episode.steps} steps")
        if seen.kept[key] < _MOST_NUMBERS:
            seen.values.setdefault(key, []).append(numbers)
            seen.kept[key] += numbers.size
        if not np.isfinite(numbers).all():
            step = int(np.argwhere(~np.isfinite(numbers.reshape(len(numbers), -1)))[0][0])
            raise ValueError(f"episode {name!r}, step {step}: {path} is {numbers[step].tolist()}, expected finite "
                             "numbers")
    for path in ("steps/is_last", "steps/action_weight"):  # what training reads beside the keys
        if path in store.fields:
            episode.values(path, 0, episode.steps)
    for camera in config.cameras:
        for t, image in enumerate(episode.values(camera, 0, episode.steps)):
            try:
                size, turned = _size(image, decode=images)
                seen.sizes.setdefault(camera, Counter())[size] += 1
                seen.turned[camera] += turned
            except ValueError as error:
                raise ValueError(f"episode {name!r}, step {t}, {camera}: {error}") from error


def _size(image: bytes | np.ndarray, *, decode: bool) -> tuple[tuple[int, int], bool]:
    """Height and width of the upright image, and whether its EXIF orientation turns it."""
    header = read_header(image) if isinstance(image, bytes) else None
    turned = header is not None and header.orientation != 1
    if header and not decode:
        return header.size, turned
    height, width, _ = prepare_image(image, 0).shape
    return (height, width), turned


def _placed(where: str, error: Exception) -> str:
    text = str(error)
    return text if where in text else f"{where}: {text}"
