"""Every code block of README.md and docs/ works: Python is executed, commands are parsed by their own parsers.

Commands that take seconds are run as well. A block that is not run says why in a comment before it; the tests print
these. The blocks of a page are executed in order, in one namespace and one directory, as a reader would.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lerobot_sets
import numpy as np
import pytest
import served
from code_blocks import Block, CommandParser, blocks_of, words_of
from data_stores import babyai_store
from dot_arms import dot_data, dot_episodes
from ml_collections import ConfigDict
from small_runs import smoke_run
from tiny_checkpoints import Made, make_checkpoint

from agent_jax import presets
from agent_jax.config import Config, from_config_dict, to_config_dict
from agent_jax.convert import to_onnx, to_pytorch
from agent_jax.data.prepare.config import read_prepare_config
from agent_jax.envs import babyai
from agent_jax.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SLOW = ("docs/guides/edge.md", "docs/guides/environments.md", "docs/guides/weights.md")  # export, or start a simulator
PYTHON = [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW), id=page)
          for page in dict.fromkeys(block.page for block in BLOCKS if block.python)]
# Commands of seconds that are run where everything they name is there.
RUN = re.compile(r"python -m agent_jax\.(data (prepare --source lerobot --path my_dataset|check|show)|doctor|"
                 r"evaluate (replay|offline|surprise)|view)")


@functools.cache
def agent(base: Path) -> Made:
    """A tiny agent that acts in BabyAI, generates texts and classifies; its directory is that of its checkpoints."""
    return make_checkpoint(base / "code_blocks" / "checkpoints", ("babyai", "caption", "ward"), classes=4,
                           domain_fields={"window": 9, "stride": 9, "max_text": 32, "max_answer": 16})


@functools.cache
def chunked_agent(base: Path) -> Made:
    """One that takes four actions for an image."""
    return make_checkpoint(base / "code_blocks" / "chunked", ("babyai",),
                           domain_fields={"window": 4, "stride": 4, "max_text": 32, "actions_per_image": 4})


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a reader: a checkout."""
    for place in ("agent_jax", "benchmarks", "configs", "docs", "examples", "launch", "tests", "setup.py"):
        (tmp_path / place).symlink_to(ROOT / place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Room:
    """The environment of a page."""

    def __init__(self) -> None:
        self._room = babyai.make("GoToObj", 56)
        self._room.reset(seed=3)

    def step(self, action: Any) -> None:
        self._room.step(action)


@contextlib.contextmanager
def at_hand(page: str, directory: Path, base: Path) -> Iterator[dict[str, Any]]:
    """What a page names without making it: files in the directory, and variables."""
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    names: dict[str, Any] = {"np": np, "presets": presets, "image": image, "images": [image],
                             "clip": np.stack([image] * 3), "nine_images": [image] * 9, "token": ""}
    with contextlib.ExitStack() as stack:
        if page in ("README.md", "docs/guides/acting.md"):
            (directory / "runs" / "babyai").mkdir(parents=True)
            shutil.copytree(agent(base).path, directory / "runs/babyai/checkpoints")
        if page in ("docs/guides/weights.md", "docs/guides/edge.md"):  # from the folder
            onnx, folder = page.endswith("edge.md"), directory / "OUT"
            to_onnx.export(agent(base).path, folder, windows=0) if onnx else to_pytorch.export(agent(base).path, folder)
            stack.enter_context(pytest.MonkeyPatch.context()).syspath_prepend(folder)
            stack.enter_context(contextlib.chdir(directory if onnx else folder))
        if page == "docs/guides/acting.md":
            (directory / "ORG").mkdir()
            for name in ("FOLDER", "ORG/NAME"):
                (directory / name).symlink_to(directory / "runs/babyai")
        if page == "docs/guides/serving.md":
            names["served_at"] = stack.enter_context(served.served(Policy.load(agent(base).path), surprise=4)).url
        yield names
        if "client" in names:
            names["client"].close()


def before(block: Block, names: dict[str, Any], base: Path) -> str:
    """Prepare for a block what the text before it asks for; returns its code."""
    config: Any = to_config_dict(Config()).unlock()
    config.data.domains = {name: presets.domain() for name in ("babyai", "vizdoom")}
    names["config"] = config
    if "k = 4" in block.text:
        names |= {"policy": Policy.load(chunked_agent(base).path), "environment": Room()}
    return block.text.replace("ws://server:8000", names.get("served_at", ""))


def after(block: Block, names: dict[str, Any], directory: Path) -> None:
    """Use what a block defines."""
    if "def get_config" in block.text:
        found = names["get_config"]()
        assert isinstance(found, ConfigDict)
        (directory / "my_robot.py").write_text(block.text)
        from_config_dict(found) if "train" in found else read_prepare_config("my_robot.py", [])
    elif "config." in block.text:
        from_config_dict(names["config"])
    if "def get_plan" in block.text:
        assert names["get_plan"]().name
    if "def long_episodes" in block.text:
        assert list(names["long_episodes"](dot_data(dot_episodes(4))))


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page: str, reader: Path, base: Path) -> None:
    with at_hand(page, reader, base) as names:
        for block in BLOCKS:
            if block.page == page and block.python and not block.reason:
                code = before(block, names, base)
                exec(compile("\n" * block.line + code, str(ROOT / page), "exec"), names)
                after(block, names, reader)


def test_every_command_is_one_that_its_program_accepts(reader: Path) -> None:
    parser = CommandParser()
    for block in BLOCKS:
        if block.python and "def get_config" in block.text:
            (reader / "my_robot.py").write_text(block.text)
        for command in block.commands:
            parser.add(block, command)
    parser.finish()
    assert not parser.mistakes, "\n".join(parser.mistakes)
    assert len(parser.parsed) > 130


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_a_block_that_is_not_run_says_why() -> None:
    """And one of Python is fenced as such, or it would be taken for a drawing."""
    reasons = [f"{block.name}: {block.reason}" for block in BLOCKS if block.reason]
    print(f"{len(BLOCKS)} blocks, of which {len(reasons)} are not run:", *reasons, sep="\n  ")
    for block in BLOCKS:
        if not (block.python or block.commands):
            assert not block.reason, f"{block.name}: nothing to run, so it needs no reason"
            assert not is_python(block.text), f"{block.name}: fence it as ```python"


def runnable(page: str, directory: Path) -> list[str]:
    """The commands of a page that match RUN and name only what is there."""
    found = [command for block in BLOCKS if block.page == page and not block.reason for command in block.commands]
    return [command for command in found if RUN.match(command) and not re.search(r"\[|\b[A-Z]{2,}\b", command)
            and all((directory / word).exists() for word in words_of(command) if word.startswith("runs/"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *(f"docs/guides/{name}.md" for name in (
    "doctor", "evaluation", "finetune", "quickstart", "view"))])
def test_the_commands_of_a_page_run(page: str, reader: Path, base: Path) -> None:
    (reader / "runs").mkdir()
    for name in ("babyai", "a", "b"):
        (reader / "runs" / name).symlink_to(smoke_run(base).workdir)
    for place in ("my_dataset", "path/to/lerobot_set"):
        lerobot_sets.version_3(reader / place, "image")
    commands = runnable(page, reader)
    if not any("prepare" in command for command in commands):
        babyai_store(reader / "my_data")
    assert len(commands) >= 2
    for command in commands:
        _, _, module, *words = words_of(command)
        status = importlib.import_module(f"{module}.__main__").main(words)
        assert status in ((0, 1) if module == "agent_jax.doctor" else (0,)), f"{page}: {command}"  # 1: found faults
