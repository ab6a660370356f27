"""The code blocks of a document, and the parsers of the commands in them.

    <!-- not run: needs a TPU -->       the reason why a block is not run, before it

Blocks fenced as `python` are Python. In all other blocks, a line that begins with a program is a command, and what
follows up to the next one is its output; blocks without a program are drawings or formats.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from agent_jax.config import DomainConfig
from agent_jax.data.prepare.config import read_fields, read_prepare_config
from agent_jax.runtime.command_line import read_config

ROOT = Path(__file__).resolve().parent.parent.parent
REASON = re.compile(r"<!-- not run: (\S.*\S) -->")
_PROGRAM = re.compile(r"(\$ )?([A-Z_]+=\S+ )*(\S*/)?(python[\d.]*|pip|mkdocs|jupytext|cat|cp|\.|export|nohup|tail|curl|"
                      r"npm|rerun|sbatch|scancel|sky|gcsfuse|hf|docker|kubectl|gcloud|\w+\.sh)\s")
_INSTALL = re.compile(r"\. \S+/bin/activate|(\S*/)?(python[\d.]* -m (venv|pip)|pip) ")  # test_extras.py reads them
_ABSL = ("agent_jax.train", "agent_jax.plan")  # parsed by absl, whose flags are global


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block."""

    page: str
    line: int
    text: str
    python: bool
    reason: str  # why it is not run; "": it is

    @property
    def name(self) -> str:
        """PAGE:LINE."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands, each on one line; [] in Python and in drawings."""
        lines = [] if self.python else re.sub(r" *\\\n *", " ", self.text).splitlines()
        return [part.strip() for line in lines if _PROGRAM.match(line) for part in line.removeprefix("$ ").split("&&")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a document, in order."""
    found, reason = [], ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map
            found.append(Block(str(page.relative_to(ROOT)), token.map[0] + 1, token.content,
                               token.info.strip() == "python", reason))
        matched = REASON.search(token.content) if token.type == "html_block" else None
        reason = matched[1] if matched else ""
    return found


def words_of(command: str) -> list[str]:
    """The arguments of a command; of a synopsis, with all that is optional, and the first of several choices."""
    words = []
    for word in shlex.split(command, comments=True):
        if not re.search(r"[\"'({]", word):  # a value in quotes is no synopsis
            word = re.sub(r"[\[\]]", "", word.replace("...", "")).partition("|")[0]
            word = {"N": "1", "FILE:VARIANT": "configs/babyai.py:smoke"}.get(word, word)
            word = word.replace("configs/NAME.py", "configs/babyai.py")
        if word and not word.startswith(("--config.FIELD=", ">", "2>")) and word != "&":
            words.append(word)
    return words


class _Parsed(Exception):  # noqa: N818 - no error
    pass


class CommandParser:
    """Parses commands as their programs do, in the current directory; collects what they do not accept."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.parsed: list[str] = []
        self._absl: dict[str, list[tuple[str, list[str]]]] = {module: [] for module in _ABSL}

    def add(self, block: Block, command: str) -> None:
        """Parse a command, if it is one of this package; another one is a mistake in a block without a reason."""
        while re.match(r"[A-Z_]+=\S* ", command):
            command = command.partition(" ")[2]
        program, *words = words_of(command)
        flags = next((shlex.split(word.removeprefix("FLAGS=")) for word in words if word.startswith("FLAGS=")), words)
        where = f"{block.name}: {command}"
        try:
            if _INSTALL.match(command):
                pass
            elif Path(program).name.startswith("python") and words[:1] == ["-m"] and words[1].startswith("agent_jax"):
                self._module(where, words[1], words[2:], block)
            elif Path(program).name.startswith("python") and words[0].startswith(("benchmarks/", "examples/")):
                self._script(Path(words[0]), words[1:])
            elif words[0].endswith("_agent.py"):  # of an exported folder, which it takes
                pass
            elif program == "mkdocs":
                _mkdocs(words)
            elif any(flag.startswith("--config") for flag in flags):  # launch/ and its schedulers pass them on
                first = next(n for n, flag in enumerate(flags) if flag.startswith("--config"))
                self._module(where, "agent_jax.train", flags[first:], block)
            elif not block.reason:
                raise ValueError("not a program of this package, so a comment must say why it is not run")
            else:
                return
            self.parsed.append(where)
        except (ValueError, OSError, ImportError) as error:
            self.mistakes.append(f"{where}: {error}")

    def finish(self) -> None:
        """Parse what absl parses: in a process for each program, which forks for each command."""
        for module, commands in self._absl.items():
            if commands:
                given = json.dumps([arguments for _, arguments in commands])
                done = subprocess.run([sys.executable, "-c", _IN_CHILD, f"{module}.__main__"], input=given, text=True,
                                      capture_output=True, check=True)
                refused = json.loads(done.stdout.splitlines()[-1])
                messages = done.stderr.split("-- ")
                self.mistakes += [f"{commands[number][0]}: {messages[number + 1]}" for number in refused]

    def _module(self, where: str, module: str, words: list[str], block: Block) -> None:
        if module in _ABSL:
            file = re.search(r"--config[= ]([^: ]+)", " ".join(words))
            if not (block.reason and file and not Path(file[1]).exists()):  # its package is not installed
                self._absl[module].append((where, words))
            return
        main = importlib.import_module(module if module == "agent_jax.envs.collect" else f"{module}.__main__").main
        options, overrides = parsed(main, words)
        if unknown := [word for word in overrides if not word.startswith("--config.")]:
            raise ValueError(f"unrecognized arguments: {' '.join(unknown)}")
        command, file = getattr(options, "command", ""), getattr(options, "config", "")
        if (module, command) == ("agent_jax.data", "prepare"):
            read_prepare_config("", overrides)
        elif command in ("check", "show", "row"):
            read_fields("", overrides, DomainConfig)
        elif overrides or Path(file).is_file():
            read_config(file if Path(file).is_file() else str(ROOT / "configs/default.py"), overrides)

    def _script(self, script: Path, words: list[str]) -> None:
        if script.parent.name == "examples":
            if words or not script.is_file():
                raise ValueError("expected an example, which takes no arguments")
            return
        main = importlib.import_module(script.stem).main
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), *words])
            _, rest = parsed(main)
        if rest:
            raise ValueError(f"unrecognized arguments: {' '.join(rest)}")


def parsed(main: Any, *arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the ArgumentParser of a program's `main` returns: options, and the rest.

    Raises:
        ValueError: the parser refuses the arguments; with its message.
    """
    found: list[Any] = []
    depth = [0]
    whole = argparse.ArgumentParser.parse_known_args

    def parse(parser: Any, *given: Any, **named: Any) -> Any:
        depth[0] += 1
        try:
            result = whole(parser, *given, **named)
        finally:
            depth[0] -= 1
        if depth[0]:  # of a subcommand
            return result
        found.append(result)
        raise _Parsed

    def error(parser: Any, message: str) -> Any:
        raise ValueError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        patch.setattr(argparse.ArgumentParser, "error", error)
        with pytest.raises(_Parsed):
            main(*arguments)
    return found[0]


def _mkdocs(words: list[str]) -> None:
    import click
    from mkdocs.__main__ import cli

    try:
        cli.commands[words[0]].make_context(words[0], words[1:]).close()
    except click.ClickException as error:
        raise ValueError(error.format_message()) from error


_IN_CHILD = """
import importlib, json, os, sys
module = importlib.import_module(sys.argv[1])
from agent_jax.config import from_config_dict
from agent_jax.runtime.command_line import parse_flags
refused = []
for number, arguments in enumerate(json.load(sys.stdin)):
    print("-- ", file=sys.stderr, flush=True)
    sys.argv = [sys.argv[0], *arguments]
    child = os.fork()
    if not child:
        status = 1
        try:
            parse_flags(sys.argv)
            from_config_dict(module._CONFIG.value)
            status = 0
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
        except SystemExit:
            pass
        os._exit(status)
    if os.waitpid(child, 0)[1]:
        refused.append(number)
print(json.dumps(refused))
"""
