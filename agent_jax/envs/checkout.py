"""Simulators that are not on a package registry: an environment variable names the user's checkout.

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
    """The source of a simulator and how to recognise its directory."""

    name: str  # of the environment
    variable: str  # the environment variable with the directory
    url: str  # of the repository
    marker: str  # a path that must exist below the directory
    roots: tuple[str, ...]  # folders below the directory to add to sys.path
    install: str  # the command that installs its requirements

    def directory(self) -> Path:
        """The checkout's directory; adds its packages to sys.path.

        Raises:
            FileNotFoundError: the variable is unset or wrong; the message says what to clone, install and set.
        """
        value = os.environ.get(self.variable, "")
        path = Path(value).expanduser()
        if not value or not (path / self.marker).exists():
            found = f"{self.variable}={value} has no {self.marker}" if value else f"{self.variable} is not set"
            raise FileNotFoundError(f'the environment "{self.name}" needs a checkout of its simulator: {found}. {self}')
        for root in reversed(self.roots):
            folder = str((path / root).resolve())
            if folder not in sys.path:
                sys.path.insert(0, folder)
        return path

    def version(self) -> str:
        """Name and commit of the checkout, which has no other version."""
        command = ["git", "-C", str(self.directory()), "rev-parse", "--short=10", "HEAD"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or a copy without history
            return f"{self.name} (a checkout)"
        return f"{self.name} (a checkout at {commit})"

    def module(self, name: str) -> ModuleType:
        """Import a module of the checkout.

        Raises:
            FileNotFoundError: as `directory`.
            ModuleNotFoundError: a package that it imports is not installed.
        """
        self.directory()
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            message = (f'the environment "{self.name}" needs {error.name}, which its checkout imports, and it is '
                       f"not installed. {self}")
            raise ModuleNotFoundError(message, name=error.name) from error

    def __str__(self) -> str:
        return (f"To set it up: git clone --recurse-submodules {self.url} DIR; {self.install}; "
                f"export {self.variable}=DIR")
