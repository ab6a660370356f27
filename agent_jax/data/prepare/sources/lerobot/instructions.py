"""Finds the instruction of a LeRobot step: the task, a column of texts, or a column of task indices.

    tasks.jsonl    {"task_index": 1, "task": "pick the pear"}
    task_index     [1, 1, ...]                  the task: the default
    annotation.human.action.task_description    [1, 1, ...], as in Isaac-GR00T: likewise
    language_instruction                        ["pick the pear", ...]

If there is an annotation, it is the default: the task may then be no more than "valid". meta/modality.json, if present,
may map an annotation to a column of another name (`original_key`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import nearest
from agent_jax.data.prepare.sources.lerobot.info import LARGEST_INDEX, Features
from agent_jax.data.prepare.sources.parquet import column_texts, column_whole, is_text
from agent_jax.json_files import read_json_object

_TASK = "task_index"
_ANNOTATION = "annotation."
_NO_TEXT = "validity"  # last part of the name of an annotation that rates a step instead of describing it
_DESCRIPTION = "task_description"


@dataclasses.dataclass(frozen=True)
class InstructionColumn:
    """The column that instructions are read from."""

    name: str  # "": config.instruction_text is the instruction of all
    notes: tuple[str, ...] = ()  # how it was chosen, if the config leaves it open and it is not the task

    def texts(self, table: pa.Table, tasks: Mapping[int, str], where: str) -> list[str]:
        """The instruction of each row.

        Raises:
            BadDataError: a value is neither a text nor the index of a task; names the row.
        """
        if is_text(table.schema.field(self.name).type):
            return column_texts(table, self.name, where)
        numbers = column_whole(table, self.name, where, LARGEST_INDEX)
        for row, number in enumerate(numbers):
            if number not in tasks:
                raise BadDataError(f"{where}, row {row}: has {self.name} {number}, which is none of the {len(tasks)} "
                                   "tasks of the metadata")
        return [tasks[number] for number in numbers]


def instruction_column(path: Path, config: PrepareConfig, features: Features) -> InstructionColumn:
    """The column that `config.instruction` chooses, or the default.

    Raises:
        ValueError: no such column, or several candidates and none chosen.
        BadDataError: modality.json is damaged.
    """
    if config.instruction_text:
        return InstructionColumn("")
    there = {*features.texts, *features.indices}
    originals = _original_keys(path)
    if config.instruction:
        name = originals.get(config.instruction, config.instruction)
        if name not in there:
            known = sorted({*there, *originals} - {"frame_index", "episode_index", "index"})
            raise ValueError(f"config.instruction={config.instruction!r}: no feature that holds a text or an index of "
                             f"a task; {nearest(config.instruction, known)}. Leave it empty to take the default")
        return InstructionColumn(name)
    described = sorted({name for name in (*there, *originals) if name.startswith(_ANNOTATION)
                        and name.rpartition(".")[2] != _NO_TEXT and originals.get(name, name) in there})
    described = [name for name in described if name.endswith(_DESCRIPTION)] or described
    if len(described) > 1:
        raise ValueError(f"config.instruction: the data have the annotations {', '.join(described)}; choose one, as in "
                         f"--config.instruction={described[0]}, or the task by --config.instruction={_TASK}")
    if not described:
        return InstructionColumn(_TASK)
    return InstructionColumn(originals.get(described[0], described[0]), (
        f"instruction: {described[0]} (config.instruction={_TASK} takes the task instead)",))


def _original_keys(path: Path) -> dict[str, str]:
    """The column of each annotation that modality.json lists."""
    file = path / "meta" / "modality.json"
    if not file.is_file():
        return {}
    with bad_data():
        listed = read_json_object(file).get("annotation")
    found = {}
    for name, about in (listed.items() if isinstance(listed, dict) else ()):
        original = about.get("original_key") if isinstance(about, dict) else None
        found[f"{_ANNOTATION}{name}"] = original if isinstance(original, str) else f"{_ANNOTATION}{name}"
    return found
