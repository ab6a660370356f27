"""Instructions of LeRobot data: the task, a text column, and index columns as in Isaac-GR00T."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lerobot_sets import info, rows, table, version_2, version_3, write_info, write_table

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import Source

DESCRIPTION, VALIDITY = "annotation.human.action.task_description", "annotation.human.validity"


def texts_of(source: Source) -> list[str]:
    return [episode.instruction for recording in source.recordings() for episode in source.read(recording)]


def opened(path: Path, **config: Any) -> Source:
    return open_source("lerobot", path, PrepareConfig(**config))


def annotated(path: Path, columns: dict[str, list[int]], modality: Any = None) -> Path:
    """A set whose task is "valid" throughout, with a column of an index for each episode."""
    version_2(path, "image")
    content = info("v2.1", "image")
    content["features"] |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in columns}
    write_info(path, content)
    tasks = ("valid", "pick the pear", "pick the squash", "pick the plum")
    (path / "meta" / "tasks.jsonl").write_text("".join(
        json.dumps({"task_index": number, "task": task}) + "\n" for number, task in enumerate(tasks)))
    for episode in range(3):
        made = table([episode], "image", task_index=[0] * len(rows(episode)))
        for name, indices in columns.items():
            made = made.append_column(name, pa.array([indices[episode]] * len(made), pa.int64()))
        write_table(path / f"data/chunk-000/episode_{episode:06d}.parquet", made)
    if modality is not None:
        (path / "meta" / "modality.json").write_text(json.dumps(modality))
    return path


def test_instructions_come_from_a_text_column_or_the_config(tmp_path: Path) -> None:
    path = version_3(tmp_path / "set", "image")
    assert texts_of(opened(path, instruction="words")) == ["words 0", "words 1", "words 2"]
    assert set(texts_of(opened(path, instruction_text="fold"))) == {"fold"}
    with pytest.raises(ValueError, match=r"config\.instruction='wods': .*did you mean 'words'"):
        opened(path, instruction="wods")


def test_annotation_is_the_default_and_the_task_can_be_chosen(tmp_path: Path) -> None:
    path = annotated(tmp_path / "set", {DESCRIPTION: [1, 2, 3], VALIDITY: [0, 0, 0]})
    expected = ["pick the pear", "pick the squash", "pick the plum"]
    source = opened(path)
    assert texts_of(source) == expected
    note = f"instruction: {DESCRIPTION} (config.instruction=task_index takes the task instead)"
    assert note in source.schema.notes
    chosen = opened(path, instruction=DESCRIPTION)
    assert texts_of(chosen) == expected
    assert not any("instruction" in note for note in chosen.schema.notes)
    assert texts_of(opened(path, instruction="task_index")) == ["valid"] * 3


def test_several_annotations_default_to_the_description_or_require_a_choice(tmp_path: Path) -> None:
    path = annotated(tmp_path / "a", {DESCRIPTION: [1, 2, 3], "annotation.human.coarse_action": [3, 3, 3]})
    assert texts_of(opened(path))[0] == "pick the pear"
    path = annotated(tmp_path / "b", {"annotation.human.one": [1, 2, 3], "annotation.human.two": [3, 3, 3]})
    with pytest.raises(ValueError, match=r"the annotations annotation\.human\.one, annotation\.human\.two; .*"
                                         r"--config\.instruction=annotation\.human\.one, .*=task_index"):
        opened(path)
    assert set(texts_of(opened(path, instruction="annotation.human.two"))) == {"pick the plum"}


def test_modality_json_maps_an_annotation_to_another_column(tmp_path: Path) -> None:
    path = annotated(tmp_path / "set", {"coarse": [1, 2, 3]},
                     {"annotation": {"human.coarse": {"original_key": "coarse"}, "human.gone": {}}})
    assert texts_of(opened(path)) == texts_of(opened(path, instruction="annotation.human.coarse"))
    assert texts_of(opened(path)) == ["pick the pear", "pick the squash", "pick the plum"]
    (path / "meta" / "modality.json").write_text("{")
    with pytest.raises(BadDataError, match=r"modality\.json: is not JSON"):
        opened(path)


def test_index_without_task_is_reported_with_its_row(tmp_path: Path) -> None:
    path = annotated(tmp_path / "set", {DESCRIPTION: [1, 2, 4]})
    with pytest.raises(BadDataError, match=rf"episode_000002\.parquet, episode 2, row 0: has {DESCRIPTION} 4, which is "
                                           "none of the 4 tasks"):
        texts_of(opened(path))
