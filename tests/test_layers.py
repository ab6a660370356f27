"""The rooms of the package, from the bottom up, and the test that holds the imports to their order.

A module may import from its own room and from those below it. Files are read, not imported: an import inside a function
or under TYPE_CHECKING counts as well.
"""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "agent_jax"

# Bottom to top. The modules in the root are rooms of their own.
ROOMS = [
    "agent_jax",  # __init__.py alone: what it names is imported when it is asked for
    "agent_jax.bundled",
    "agent_jax.help_pages",
    "agent_jax.json_files",
    "agent_jax.text_table",
    "agent_jax.plain_pickle",
    "agent_jax.fields",
    "agent_jax.hub",
    "agent_jax.actions",
    "agent_jax.config",
    "agent_jax.runtime",
    "agent_jax.client",
    "agent_jax.batch",
    "agent_jax.models",
    "agent_jax.data",
    "agent_jax.checkpoints",
    "agent_jax.policy",
    "agent_jax.envs",
    "agent_jax.evaluate",
    "agent_jax.convert",
    "agent_jax.serve",
    "agent_jax.view",
    "agent_jax.train",
    "agent_jax.plan",
    "agent_jax.study",
    "agent_jax.demo",
    "agent_jax.doctor",
]

# Libraries that only some modules may import.
ALLOWED = {
    "flax": ["agent_jax.models"],
    "orbax": ["agent_jax.checkpoints.checkpoint", "agent_jax.checkpoints.arrays", "agent_jax.checkpoints.retention"],
    "onnx": ["agent_jax.convert.onnx.graphs", "agent_jax.convert.onnx.quantise"],
    "onnxruntime": ["agent_jax.convert.onnx"],
    "torch": [
        "agent_jax.convert.onnx.graphs",
        "agent_jax.convert.to_onnx",
        "agent_jax.convert.parity.huggingface",
        "agent_jax.convert.parity.pytorch",
        "agent_jax.convert.pytorch",
    ],
    "minigrid": ["agent_jax.envs.babyai", "agent_jax.envs.babyai_rooms", "agent_jax.envs.clips"],
    "gymnasium": ["agent_jax.envs"],
    "metaworld": ["agent_jax.envs.metaworld"],
    "mujoco": ["agent_jax.envs.metaworld"],
    "vizdoom": ["agent_jax.envs.vizdoom"],
    "grain": ["agent_jax.data"],
    "array_record": ["agent_jax.data"],
    "tensorflow_datasets": ["agent_jax.data"],
    "av": ["agent_jax.data.prepare.sources.video.decode", "agent_jax.evaluate.rollout_video",
           "agent_jax.doctor.environment"],
    "google_crc32c": ["agent_jax.data.prepare.sources"],
    "simplejpeg": ["agent_jax.data.images"],
    "cykooz_resizer": ["agent_jax.data.images"],
    "tqdm": ["agent_jax.runtime.progress_bar", "agent_jax.doctor.data"],
    "pydicom": ["agent_jax.data.prepare.sources.video.dicom", "agent_jax.data.prepare.sources.video.dicom_grey"],
    "pyarrow": ["agent_jax.data.prepare.sources"],
    "h5py": ["agent_jax.data.prepare.sources.robomimic.hdf5_file"],
    "yaml": ["agent_jax.data.prepare.sources.calvin.calvin"],
    "safetensors": ["agent_jax.checkpoints.exported", "agent_jax.convert"],
    "tensorboardX": ["agent_jax.train.tensorboard_events"],
    "wandb": ["agent_jax.train.wandb_run"],
    "rerun": ["agent_jax.evaluate.rerun_file"],
    "websockets": ["agent_jax.client", "agent_jax.demo.server", "agent_jax.serve"],
    "msgpack": ["agent_jax.client"],
    "scipy": ["agent_jax.evaluate", "agent_jax.study.statistics", "agent_jax.view.attention",
              "agent_jax.doctor.detectors"],
    "jinja2": ["agent_jax.view.page"],
    "markupsafe": ["agent_jax.view.charts"],
    "sacrebleu": ["agent_jax.evaluate.recording_sums"],
    "tokenizers": [
        "agent_jax.actions.text_tokenizer",
        "agent_jax.convert.exported.domain",
        "agent_jax.convert.pytorch.folder",
    ],
    "transformers": ["agent_jax.convert"],
    "huggingface_hub": ["agent_jax.hub"],
    "ml_collections": [
        "agent_jax.config",
        "agent_jax.convert.from_huggingface",
        "agent_jax.study.run_config",
        "agent_jax.fields",
        "agent_jax.runtime.command_line",
    ],
    "pickle": ["agent_jax.plain_pickle"],
    # Not dependencies, or not safe: nowhere.
    "tensorflow": [],
    "matplotlib": ["agent_jax.study.plots"],
    "cloudpickle": [],
    "dill": [],
    "joblib": [],
    "marshal": [],
    "shelve": [],
}
# What describes the data and the rows is NumPy alone: a machine that only prepares data needs no accelerator library.
NUMPY_ALONE = [
    "agent_jax.actions",
    "agent_jax.client",
    "agent_jax.config",
    "agent_jax.convert.exported",
    "agent_jax.convert.onnx.folder_policy",
    "agent_jax.convert.onnx.onnx_agent",
    "agent_jax.data.prepare",
    "agent_jax.data.store",
    "agent_jax.envs",
    "agent_jax.fields",
    "agent_jax.json_files",
    "agent_jax.serve",
    "agent_jax.text_table",
]
TESTS_MAY_NOT = ["tensorflow", "matplotlib", "cloudpickle", "dill", "joblib", "marshal", "shelve"]


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: where, what, and when it is executed."""

    importer: str
    line: int
    name: str
    at_runtime: bool  # not under TYPE_CHECKING
    at_once: bool  # when the importer is imported, not when one of its functions is called

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.name}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room_of(module: str) -> str | None:
    rooms = [room for room in ROOMS if module == room or (within(module, room) and room != PACKAGE)]
    return rooms[-1] if rooms else None


def read_imports(source: str, module: str, *, is_package: bool, known: frozenset[str] = frozenset()) -> list[Import]:
    """Every import of a source text; `from package import name` names the module where there is one of that name."""

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__") and node.args:
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value

    def visit(node: ast.AST, *, at_runtime: bool, at_once: bool) -> Iterator[Import]:
        for name in names(node):
            yield Import(module, getattr(node, "lineno", 0), name, at_runtime, at_once)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, at_runtime=False, at_once=False)
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
            at_once = at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in children:
            yield from visit(child, at_runtime=at_runtime, at_once=at_once)

    return list(visit(ast.parse(source), at_runtime=True, at_once=True))


def read_package(root: Path) -> dict[str, list[Import]]:
    """The imports of every module of agent_jax, by the module's name."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = frozenset(files)
    return {
        module: read_imports(
            path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py", known=known
        )
        for module, path in files.items()
    }


@pytest.fixture(scope="module")
def imports(root: Path) -> dict[str, list[Import]]:
    return read_package(root)


def test_every_module_has_a_room(imports: dict[str, list[Import]]) -> None:
    homeless = [module for module in imports if room_of(module) is None]
    assert not homeless, f"add a row to ROOMS in {__file__} for {homeless}, or move them into a room"


def test_every_row_of_the_tables_is_about_a_module_or_a_library_there_is(imports: dict[str, list[Import]]) -> None:
    rows = [*ROOMS, *NUMPY_ALONE, *(module for allowed in ALLOWED.values() for module in allowed)]
    gone = sorted({row for row in rows if not any(within(module, row) for module in imports)})
    assert not gone, f"no such module: {gone}"


def upward(imports: dict[str, list[Import]]) -> list[str]:
    wrong = []
    for module, found in imports.items():
        for item in found:
            mine, theirs = room_of(module), room_of(item.name)
            if item.name.endswith(".__main__") and not module.endswith(".__main__"):
                wrong.append(f"{item}, a command")
            if mine is None or theirs is None or mine == PACKAGE or ROOMS.index(theirs) <= ROOMS.index(mine):
                continue
            wrong.append(f"{item} of {theirs}, which stands above {mine}")
    return wrong


def test_imports_run_downwards_only(imports: dict[str, list[Import]]) -> None:
    assert upward(imports) == []


def test_no_module_imports_itself_by_a_detour(imports: dict[str, list[Import]]) -> None:
    graph = {
        module: {item.name for item in found if item.at_runtime and item.at_once and item.name in imports} - {module}
        for module, found in imports.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def forbidden(imports: dict[str, list[Import]]) -> list[str]:
    wrong = []
    for module, found in imports.items():
        for item in found:
            allowed = ALLOWED.get(item.name.partition(".")[0])
            is_entry = module.endswith(".__main__") and item.name.partition(".")[0] == "ml_collections"
            if allowed is not None and not is_entry and not any(within(module, package) for package in allowed):
                wrong.append(f"{item}, which only {allowed or 'nobody'} may")
    return wrong


def test_libraries_are_imported_only_where_they_may_be(imports: dict[str, list[Import]]) -> None:
    assert forbidden(imports) == []


def imported_at_once(imports: dict[str, list[Import]], module: str) -> dict[str, str]:
    """Libraries that importing `module` imports through our own modules, each with the import that does it."""
    libraries, seen, waiting = {}, set(), [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        parents = current.split(".")
        waiting += [".".join(parents[:i]) for i in range(1, len(parents))]
        for item in imports.get(current, []):
            if not (item.at_runtime and item.at_once):
                continue
            if within(item.name, PACKAGE):
                waiting.append(item.name)
            else:
                libraries.setdefault(item.name.partition(".")[0], str(item))
    return libraries


# Work on the exported PyTorch agent, so need torch to be imported; commands import these when they are asked for.
ON_TORCH = ["agent_jax.convert.to_pytorch", "agent_jax.convert.onnx.quantise", "agent_jax.convert.model_card"]


def test_simulators_and_torch_are_imported_only_when_they_are_used(imports: dict[str, list[Import]]) -> None:
    optional = {"minigrid", "gymnasium", "metaworld", "mujoco", "vizdoom", "torch"}
    own = [*ON_TORCH, *(module for library in optional for module in ALLOWED[library])]
    for module in imports:
        if any(within(module, package) for package in own):
            continue
        found = imported_at_once(imports, module)
        assert not optional & set(found), [found[library] for library in optional & set(found)]


@pytest.mark.parametrize("contract", NUMPY_ALONE)
def test_contracts_of_the_host_do_not_import_jax(imports: dict[str, list[Import]], contract: str) -> None:
    for module in imports:
        if within(module, contract):
            found = imported_at_once(imports, module)
            assert not {"jax", "flax", "optax"} & set(found), found


def test_tests_and_configs_import_nothing_that_is_not_a_dependency(root: Path) -> None:
    files = [*(root / "tests").rglob("*.py"), *(root / "configs").rglob("*.py")]
    assert files
    for path in files:
        for item in read_imports(path.read_text(encoding="utf-8"), path.stem, is_package=False):
            assert item.name.partition(".")[0] not in TESTS_MAY_NOT, str(item)


def test_the_reader_of_imports_sees_every_way_to_import() -> None:
    source = """
from __future__ import annotations
import a.b, c as d
from . import near
from ..models import agent
from agent_jax.data import images, Nothing
if TYPE_CHECKING:
    import typed
def function():
    import inside
    importlib.import_module("by_name")
class Body:
    import in_class
"""
    found = read_imports(source, "agent_jax.convert.x", is_package=False, known=frozenset({"agent_jax.data.images"}))
    assert [item.name for item in found] == [
        "__future__", "a.b", "c", "agent_jax.convert", "agent_jax.models", "agent_jax.data.images", "agent_jax.data",
        "typed", "inside", "by_name", "in_class",
    ]  # fmt: skip
    assert [item.name for item in found if not item.at_runtime] == ["typed"]
    assert [item.name for item in found if item.at_runtime and not item.at_once] == ["inside", "by_name"]
    package = read_imports("from .agent import Agent", "agent_jax.models", is_package=True)
    assert [item.name for item in package] == ["agent_jax.models.agent"]


def test_an_upward_and_a_forbidden_import_are_found() -> None:
    def one(module: str, source: str) -> dict[str, list[Import]]:
        return {module: read_imports(source, module, is_package=False)}

    assert upward(one("agent_jax.models.losses", "def f():\n    from agent_jax.train.step import x"))
    assert not upward(one("agent_jax.train.step", "from agent_jax.models.losses import x"))
    assert upward(one("agent_jax.data.store.store", "import agent_jax.data.__main__"))
    assert forbidden(one("agent_jax.train.step", "import flax.linen as nn"))
    assert not forbidden(one("agent_jax.models.agent", "import flax.linen as nn"))
    assert forbidden(one("agent_jax.data.store.store", "import tensorflow as tf"))
    assert not forbidden(one("agent_jax.data.store.store", "import tensorflow_datasets as tfds"))
    assert forbidden(one("agent_jax.checkpoints.checkpoint", "import pickle"))
    assert not forbidden(one("agent_jax.data.__main__", "from ml_collections import config_flags"))


def test_every_library_that_is_imported_is_a_declared_dependency(root: Path, imports: dict[str, list[Import]]) -> None:
    declared = (root / "setup.py").read_text(encoding="utf-8").lower().replace("-", "_")
    names = {"orbax": "orbax_checkpoint", "pil": "pillow", "absl": "absl_py", "gymnasium": "minigrid",
             "yaml": "pyyaml", "google": "protobuf"}
    for found in imports.values():
        for item in found:
            library = item.name.partition(".")[0].lower()
            if library != PACKAGE and library not in sys.stdlib_module_names:
                assert f'"{names.get(library, library)}' in declared, f"{item}, which setup.py does not name"
