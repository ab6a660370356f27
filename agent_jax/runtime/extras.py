"""How messages tell a user to install an extra of the package."""

from __future__ import annotations


def install(extra: str) -> str:
    """The command that installs `extra`, in the checkout: the package is on no registry yet."""
    return f'pip install -e ".[{extra}]"'
