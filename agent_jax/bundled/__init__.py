"""Agents that come with the package, by name; each is a folder of `convert to-pytorch` without its torch_agent.py.

babyai-small    of an earlier configs/babyai.py; acts in GoToLocal and its smaller rooms (its README.md has the figures)
"""

from __future__ import annotations

import os
from pathlib import Path


def bundled_agent(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of the agent of this name; any other path, or one that exists, as it is."""
    name = str(path)
    folder = Path(__file__).parent / name
    return folder if Path(name).name == name and not Path(name).exists() and folder.is_dir() else path
