"""Simulators that no registry has: found in a checkout of one's own, by an environment variable.

AGENT_JAX_LANGUAGE_TABLE=~/language-table    ->  its packages can be imported
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType


@dataclasses.dataclass(frozen=True)
class Checkout:
    """Where a simulator comes from, and how its directory is recognised."""

    name: str  # of the environment
    variable: str  # names the directory
    url: str  # of the repository
    marker: str  # a path below the directory that has to be there
    roots: tuple[str, ...]  # below the directory: what goes on the path of modules
    install: str  # a command that installs what it needs

    def directory(self) -> Path:
        """The checkout, whose packages can be imported from then on.

        Raises:
            FileNotFoundError: the variable is unset, or leads elsewhere; says what to clone, install and set.
        """
        value = os.environ.get(self.variable, "")
        path = Path(value).expanduser()
        if not value or not (path / self.marker).exists():
            found = f"{self.variable}={value} has no {self.marker}" if value else f"{self.variable} is not set"
            raise FileNotFoundError(f'the environment "{self.name}" needs a checkout of its simulator: {found}. {self}')
        for root in reversed(self.roots):
            place = str((path / root).resolve())
            if place not in sys.path:
                sys.path.insert(0, place)
        return path

    def version(self) -> str:
        """Name and commit of the checkout; it has no other version."""
        asked = ["git", "-C", str(self.directory()), "rev-parse", "--short=10", "HEAD"]
        try:
            commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or a copy without history
            return f"{self.name} (a checkout)"
        return f"{self.name} (a checkout at {commit})"

    def module(self, name: str) -> ModuleType:
        """A module of the checkout.

        Raises:
            FileNotFoundError: as `directory`.
            ModuleNotFoundError: a package that it imports is not installed; says how to install it.
        """
        self.directory()
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            message = (f'the environment "{self.name}" needs {error.name}, which its checkout imports and which is not '
                       f"installed. {self}")
            raise ModuleNotFoundError(message, name=error.name) from error

    def __str__(self) -> str:
        return (f"To set it up: git clone --recurse-submodules {self.url} DIR; {self.install}; "
                f"export {self.variable}=DIR")
