"""The config of one run of a study: a config file with other values, which come from a file of JSON.

A run's directory has values.json, {"config": FILE, "values": {"train.steps": 100, ...}}, and config.py, which is what
`python -m agent_jax.train --config` reads. Values replace whole fields, so a mapping may get other keys.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from agent_jax.config import from_config_dict
from agent_jax.fields import build_field
from agent_jax.json_files import read_json_object, write_json

CONFIG_FILE, VALUES_FILE = "config.py", "values.json"

_SOURCE = '''"""Written by agent_jax.study: the config of this run (values.json)."""

from pathlib import Path

from agent_jax.study.run_config import read_run_config


def get_config():
    """The config with the values of this run."""
    return read_run_config(Path(__file__).parent)
'''


def load_function(file: str, name: str) -> Callable[..., Any]:
    """A function of a Python file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: executing the file fails, or it lacks the function.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected a Python file with a function {name}()")
    spec = importlib.util.spec_from_file_location(f"agent_jax_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: not a Python file, expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}: executing it failed: {type(error).__name__}: {error}") from error
    if not callable(function := getattr(module, name, None)):
        raise ValueError(f"{file}: found no function {name}(), expected one")
    return function


def changed_config(file: str, values: Mapping[str, Any], where: str) -> ConfigDict:
    """The ConfigDict of a config file with other values of some fields, checked and locked.

    Args:
        file: FILE.py or FILE.py:VARIANT.
        values: by field, as "train.steps"; each replaces the whole field.
        where: beginning of messages.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: an unknown field, a wrong value, or values that contradict each other.
    """
    path, _, variant = file.partition(":")
    made = load_function(path, "get_config")
    config = ConfigDict(made(variant) if variant else made()).copy_and_resolve_references().unlock()
    for name, value in values.items():
        *groups, field = name.split(".")
        group: Any = config
        for part in groups:
            group = group.get(part) if isinstance(group, ConfigDict) else None
        if not isinstance(group, ConfigDict) or field not in group:
            near = difflib.get_close_matches(name, _fields(config), n=1)
            raise ValueError(f"{where}: found the field {name!r}, which {file} lacks"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
        del group[field]  # another type of value, or other keys
        group[field] = ConfigDict(value) if isinstance(value, Mapping) else tuple(value) if isinstance(
            value, list) else value
    try:
        from_config_dict(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return config.lock()


def _fields(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        names += [f"{prefix}{key}", *(_fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else ())]
    return names


def write_run_config(directory: Path, file: str, values: Mapping[str, Any]) -> None:
    """Write config.py and values.json of a run."""
    directory.mkdir(parents=True, exist_ok=True)
    path, colon, variant = file.partition(":")
    write_json(directory / VALUES_FILE, {"config": f"{Path(path).expanduser().resolve()}{colon}{variant}",
                                         "values": json.loads(json.dumps(values))})
    (directory / CONFIG_FILE).write_text(_SOURCE, encoding="utf-8")


def read_run_config(directory: Path) -> ConfigDict:
    """The config that `write_run_config` wrote."""
    found = read_json_object(directory / VALUES_FILE)
    values = build_field(Mapping[str, Any], found["values"], "values")
    return changed_config(found["config"], values, str(directory / VALUES_FILE))
