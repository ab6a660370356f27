"""An environment of one's own, which lies outside of this package, by the name of its module or file.

    --env my_lab.pusht        a module that Python finds: installed, on PYTHONPATH, or below the current directory
    --env pusht.py            a file; what lies beside it can be imported
    --env pusht.py:PushT      a class in either, whose constructor takes what `make` does

The module has what `EnvironmentModule` asks for; `own_interface.py` fills in what may be left out. Only names that the
user gives, on a command line or in a config file, are imported: never one that a data set or a checkpoint holds.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from agent_jax.envs.own_interface import OwnModule, told


def load_own(reference: str) -> OwnModule:
    """The environment that `reference` names, checked.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: no such module, or one that it imports is not installed.
        ValueError: the name is none, importing it fails, it has no such class, or it lacks a part of the interface.
    """
    place, _, name = reference.partition(":")
    module = _file(reference, Path(place).expanduser()) if is_file(place) else _module(reference, place)
    if not name:
        return OwnModule(reference, module)
    holder: Any = getattr(module, name, None)
    if not isinstance(holder, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)
                   and (value.__module__, value.__name__) == (module.__name__, key)]
        raise ValueError(f"environment {reference!r}: {place} has no class {name!r}; its classes: "
                         f"{', '.join(classes) or 'none'}")
    return OwnModule(reference, module, holder)


def is_file(place: str) -> bool:
    """Whether a name (without its class) is a path rather than a module's."""
    return place.endswith(".py") or "/" in place


def identity(reference: str) -> str:
    """The same text for every way to write an environment's name: a file's path is made absolute."""
    place, colon, name = reference.partition(":")
    return f"{Path(place).expanduser().resolve()}{colon}{name}" if is_file(place) else reference


def _file(reference: str, path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"environment {reference!r}: {path} is no file; expected a Python file that has an "
                                "environment (docs/guides/environments.md)")
    # Its own name, so that a file called like a package (gym_pusht.py) is not taken for it, nor the other way around.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"environment {reference!r}: {path} is no Python file; expected a name that ends in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(reference, error) from error
    return module


def _module(reference: str, place: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(f"environment {reference!r}: expected MODULE, FILE.py, or either with :CLASS behind it")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and f"{place}.".startswith(f"{error.name}."):  # it or a package that holds it
            raise ModuleNotFoundError(
                f"environment {reference!r}: Python finds no module {error.name!r}. Expected one that is installed, on "
                f"PYTHONPATH, or below {Path.cwd()}; or the path of a file, as in ./{place.rpartition('.')[2]}.py",
                name=error.name) from error
        raise _failed(reference, error) from error
    except Exception as error:
        raise _failed(reference, error) from error


def _failed(reference: str, error: Exception) -> Exception:
    """What to raise where importing failed."""
    message = f"environment {reference!r}: importing it failed: {told(error)}"
    if isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(message, name=error.name)
    return ValueError(message)

