"""Instructions for recordings that hold none.

Either one text for all (`config.instruction_text`), or a table:

    name,instruction
    episode-17,chop a tree
"""

from __future__ import annotations

from pathlib import Path

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.table import read_table


class Instructions:
    """The instruction of each recording."""

    def __init__(self, root: Path, file: str, config: PrepareConfig):
        """Read the table, if `file` names one.

        Args:
            root: folder of the data, to which `file` is relative.
            file: CSV or JSONL with the columns `name` (of the recording) and `config.instruction` (default
                `instruction`); "": no table.
            config: of the command.

        Raises:
            ValueError: neither the table nor `config.instruction_text` is given, or both.
            BadDataError: the table names a recording twice, or has an empty text; file and line.
        """
        if bool(file) == bool(config.instruction_text):
            raise ValueError(f"instruction: found {'both' if file else 'neither'} of config.instruction_text and "
                             "config.options.instructions, expected one: a text for all recordings, or a CSV or JSONL "
                             "file with the columns name and instruction")
        self._text_for_all, self._path = config.instruction_text, root / file
        self.files = [self._path] if file else []
        self._texts: dict[str, str] = {}
        seen: dict[str, str] = {}
        column = config.instruction or "instruction"
        for row in read_table(self._path) if file else ():
            name, text = row.text("name"), row.text(column)
            if not name or not text:
                raise BadDataError(f"{row.where}: found {dict(row.values)}, expected a recording's `name` and its "
                                   f"`{column}`, neither empty")
            if name in seen:
                raise BadDataError(f"{row.where}: names the recording {name!r} again, after {seen[name]}")
            self._texts[name], seen[name] = text, row.where

    def text(self, name: str) -> str:
        """The instruction of a recording.

        Raises:
            BadDataError: the table has no row for it.
        """
        if self._text_for_all:
            return self._text_for_all
        if name not in self._texts:
            raise BadDataError(f"{self._path}: has no row for the recording {name!r}; add one, or leave it out")
        return self._texts[name]
