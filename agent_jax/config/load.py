"""Between a config file's ConfigDict and a checked `Config`.

A config file's `get_config()` starts from `to_config_dict(Config())` (configs/default.py) and changes what differs.
Commands turn the overridden ConfigDict into a `Config` at once with `from_config_dict`; nothing else sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from agent_jax.actions.vocabulary import BLOCKS
from agent_jax.config.checks import validate
from agent_jax.config.schema import Config
from agent_jax.fields import build_field


def to_config_dict(config: Any) -> ConfigDict:
    """The ConfigDict of a dataclass, field by field, locked: `get_config()` of a config file starts from it."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: convert(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        return value

    return ConfigDict(convert(config)).lock()


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> Config:
    """The checked `Config` of a ConfigDict or of a plain (JSON) mapping, without the domains it leaves out.

    Raises:
        ValueError: names the field, what was found and what was expected, for an unknown field (with the nearest known
            one), a wrong type, or values that contradict each other.
    """
    # A config file that could not be read is an object that says so at the first access to an attribute.
    plain = config if isinstance(config, Mapping) else config.to_dict()
    made = _without_left_out(build_field(Config, plain, "config"))
    validate(made)
    return made


def _without_left_out(config: Config) -> Config:
    """The config without the domains named in `config.data.leave_out`."""
    domains, names = dict(config.data.domains), config.data.leave_out
    for name in names:
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1) or sorted(domains)
            raise ValueError(f"config.data.leave_out={names}: found {name!r}, expected names of config.data.domains: "
                             f"{', '.join(near)}")
        del domains[name]
    data = dataclasses.replace(config.data, domains=domains, leave_out=())
    acting = {name: episodes for name, episodes in config.closed_loop.domains.items() if name not in names}
    # A block that only the specs of domains left out have would have no tokens.
    left, present = (_spec_blocks(specs) for specs in (config.data.declared_specs, data.declared_specs))
    blocks = tuple(name for name in config.vocabulary.blocks
                   if name in present or name not in left or name in BLOCKS)
    return dataclasses.replace(
        config, data=data, vocabulary=dataclasses.replace(config.vocabulary, blocks=blocks),
        closed_loop=dataclasses.replace(config.closed_loop, domains=acting))


def _spec_blocks(specs: Sequence[Mapping[str, Any]]) -> set[str]:
    return {str(spec["block"]) for spec in specs if "block" in spec}
