"""The simulators of the package: each module has every name of the interface."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from agent_jax.envs import NAMES, EnvironmentModule

INTERFACE = {*EnvironmentModule.__annotations__,
             *(name for name, value in vars(EnvironmentModule).items() if callable(value) and name[0] != "_")}


def names_of(path: Path) -> set[str]:
    """Names that a file assigns, defines or imports at its top level; it is read, not imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_simulator_of_the_package_has_every_name_of_the_interface(name: str, root: Path) -> None:
    path = root / "agent_jax" / "envs" / f"{name}.py"
    without_expert = {"Expert"} if "HAS_EXPERT = False" in path.read_text(encoding="utf-8") else set()
    missing = INTERFACE - without_expert - names_of(path)
    assert not missing, f"agent_jax/envs/{name}.py lacks {sorted(missing)}; see EnvironmentModule in envs/__init__.py"
