"""Load an environment of the user, outside of this package, by the name of its module or file.

    --env my_lab.pusht        a module: installed, on PYTHONPATH, or below the current directory
    --env pusht.py            a file; it can import files from its folder
    --env pusht.py:PushT      a class in either, whose constructor takes the arguments of `make`

The module has the interface `EnvironmentModule`, and `custom_interface.py` adds the defaults. Only names from the
command line or a config file are imported, never a name from a data set or a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from agent_jax.envs import EnvironmentModule
from agent_jax.envs.custom_interface import CustomModule, describe_error
from agent_jax.help_pages import help_page


def load_custom(reference: str) -> CustomModule:
    """Import and check the environment with this name.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: no such module, or one that it imports is not installed.
        ValueError: a malformed name, importing it fails, no such class, or a part of the interface is missing.
    """
    source, _, name = reference.partition(":")
    module = (_import_file(reference, Path(source).expanduser()) if is_file(source) else
              _import_module(reference, source))
    if not name:
        return CustomModule(reference, module)
    cls: Any = getattr(module, name, None)
    if not isinstance(cls, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)
                   and (value.__module__, value.__name__) == (module.__name__, key)]
        raise ValueError(f"environment {reference!r}: {source} has no class {name!r}; its classes: "
                         f"{', '.join(classes) or 'none'}")
    return CustomModule(reference, module, cls)


def is_file(source: str) -> bool:
    """Whether a name without its class is a path, not a module's name."""
    return source.endswith(".py") or "/" in source


def same_environment(one: str, other: str) -> bool:
    """Whether two names mean the same environment, e.g. a relative and an absolute path."""
    return _canonical(one) == _canonical(other)


def _canonical(reference: str) -> str:
    source, colon, name = reference.partition(":")
    return f"{Path(source).expanduser().resolve()}{colon}{name}" if is_file(source) else reference


def try_out(module: EnvironmentModule, task: str, image_size: int = 0) -> None:
    """Take one step in an environment of the user, to find errors before a long run; those of the package have tests.

    Raises:
        ValueError: `make`, `reset` or `step` do not follow the interface.
    """
    if not isinstance(module, CustomModule):
        return
    with contextlib.closing(module.make(task, image_size)) as environment:
        environment.reset(seed=0)
        _ = environment.instruction
        environment.step(module.NOISE[0])


def _import_file(reference: str, path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"environment {reference!r}: {path} is not a file; expected a Python file with an "
                                "environment" + help_page("guides/environments.md", "Your own environment"))
    # A unique name, so that a file named like a package (gym_pusht.py) and the package do not replace each other.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"environment {reference!r}: {path} is not a Python file; expected a name that ends in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_error(reference, error) from error
    return module


def _import_module(reference: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"environment {reference!r}: expected MODULE, FILE.py, MODULE:CLASS or FILE.py:CLASS")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):  # the module itself or a package above it
            raise ModuleNotFoundError(
                f"environment {reference!r}: Python finds no module {error.name!r}. Expected one that is installed, on "
                f"PYTHONPATH, or below {Path.cwd()}; or the path of a file, e.g. ./{name.rpartition('.')[2]}.py",
                name=error.name) from error
        raise _import_error(reference, error) from error
    except Exception as error:
        raise _import_error(reference, error) from error


def _import_error(reference: str, error: Exception) -> Exception:
    """The error to raise where an import failed."""
    message = f"environment {reference!r}: importing it failed: {describe_error(error)}"
    if isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(message, name=error.name)
    return ValueError(message)
