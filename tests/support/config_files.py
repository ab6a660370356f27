"""Config files, read as the command line reads them."""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags


def load_config(root: Path, name: str, *overrides: str) -> ConfigDict:
    """The ConfigDict that `--config configs/NAME OVERRIDES` leads to, as train/loop.py gets it."""
    arguments = ["program", f"--config={root / 'configs' / name}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return values["config"].value
