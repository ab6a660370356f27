"""The config of `check` and `show`: the fields of a domain, completed from the data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agent_jax.config import DomainConfig
from agent_jax.data.pipeline.domain_specs import DomainSpecs, find_specs
from agent_jax.data.prepare.config import PrepareConfig, read_fields
from agent_jax.data.prepare.sources.rlds.features import FeatureNames
from agent_jax.data.store.store import Store
from agent_jax.fields import build_field


def read_check_config(path: Path, file: str, overrides: Sequence[str]) -> DomainConfig:
    """The domain config of a file with its fields, or of the config of a run.

    Args:
        path: of the data set; selects the domain in the config of a run.
        file: FILE.json or FILE.py with `get_config()`; "": the defaults.
        overrides: `--config.FIELD=VALUE`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown field, a wrong type, or the config of a run without a domain for `path`.
    """
    given = read_fields(file, [], DomainConfig)
    if isinstance(given.get("data"), Mapping) and "domains" in given["data"]:
        given = _domain_of(path, given["data"]["domains"], file)
    given = {"cameras": (), **given, **read_fields("", overrides, DomainConfig, given)}
    return build_field(DomainConfig, given, "config")


def complete(config: DomainConfig, store: Store) -> DomainConfig:
    """The config, with fields that are left at their defaults found in the data set.

    The instruction is the field of a common name. The cameras are those that agent_jax.json lists, or else the one of a
    common name, or all images. Data without an ActionSpec get the layout of their answers or labels.

    Raises:
        ValueError: the data set has no field of a common name.
    """
    names = FeatureNames(str(store.directory), store.fields, PrepareConfig())
    default = DomainConfig()
    if config.instruction == default.instruction and config.instruction not in store.fields:
        config = dataclasses.replace(config, instruction=names.instruction())
    if not config.cameras or (config.cameras == default.cameras and config.cameras[0] not in store.fields):
        config = dataclasses.replace(config, cameras=_cameras(store, names))
    if config.layout == default.layout and not (config.action_spec or store.metadata.get("action_spec")):
        layouts: tuple[tuple[Literal["answer", "label"], str, str], ...] = (
            ("answer", config.answer, "text"), ("label", config.label, "array"))
        found = (layout for layout, path, kind in layouts if path in store.fields and store.fields[path].kind == kind)
        config = dataclasses.replace(config, layout=next(found, config.layout))
    store.text_fields(config.instruction)
    for path in config.cameras:
        store.field(path)
    return config


def _cameras(store: Store, names: FeatureNames) -> tuple[str, ...]:
    """Paths of the cameras, if the config names none."""
    listed = store.metadata.get("cameras")
    stored = [path for path in listed if isinstance(path, str)] if isinstance(listed, list) else []
    if stored and all(path in store.fields for path in stored):
        return tuple(stored)
    default = DomainConfig().cameras
    if default[0] in store.fields:
        return default
    try:
        return tuple(names.cameras().values())
    except ValueError as error:  # no camera has a common name
        images = [path for path, field in store.fields.items() if field.kind == "image" and field.per_step]
        if not images:
            raise ValueError(f"{store.directory}: found no image among the fields of its steps, "
                             f"{', '.join(store.fields)}; expected at least one camera") from error
        return tuple(images)


def specs_of(config: DomainConfig, store: Store) -> DomainSpecs | None:
    """The specs of the config or the data set, if there are any; raises as `find_specs`."""
    if config.layout != "actions" or not (config.action_spec or store.metadata.get("action_spec")):
        return None
    return find_specs("data", dataclasses.replace(config, train_split=train_split(config, store)), store)


def train_split(config: DomainConfig, store: Store) -> str:
    """The config's train split, or the first split if that one is missing or empty."""
    return config.train_split if store.splits.get(config.train_split) else next(iter(store.splits))


def _domain_of(path: Path, domains: Mapping[str, Any], file: str) -> dict[str, Any]:
    same = [name for name, domain in domains.items() if domain.get("path") and Path(domain["path"]) == path]
    chosen = same or (list(domains) if len(domains) == 1 else [])
    if len(chosen) != 1:
        raise ValueError(f"--config={file}: found the domains {', '.join(domains) or 'none'}, expected exactly one "
                         f"with path={path}, or a file with the fields of one domain")
    return dict(domains[chosen[0]])
