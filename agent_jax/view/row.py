"""`python -m agent_jax.view row`: one row of a data set or run as the model receives it.

    segment 1: [</s>] [g] [o] ...  [image 0: 49 visual tokens]  [STATE..]  [ACTION..]  ...   padding
               kinds are coloured; below each token its weight as a target, and the slot that predicts it

Everything shown is read from the laid-out row (`Batch` without its B axis), as training packs it in its first epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.batch import PADDING_CLIP
from agent_jax.checkpoints import checkpoint
from agent_jax.config import VisionConfig, from_config_dict
from agent_jax.data.inspect.config import complete, read_check_config, specs_of, train_split
from agent_jax.data.inspect.rows import any_length, windows_of
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Row, Window, row_size
from agent_jax.data.pipeline.loader import PackedRows
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.data.prepare.config import read_fields
from agent_jax.data.store.store import open_store
from agent_jax.evaluate.checkpoints import gathered_data
from agent_jax.evaluate.rerun_file import RerunFile
from agent_jax.view.page import image_uri, write_page

_SIDE = 112  # pixels of a thumbnail, at least


def write_row_page(path: Path, data: Path, index: int, *, config: str = "", overrides: Sequence[str] = (),
                   split: str = "", rerun: Path | None = None) -> str:
    """Write the page of one row.

    Args:
        path: of the page.
        data: directory of a data set, or the workdir of a run, whose mixture is packed as in training.
        index: of the row in the first epoch.
        config: of a data set: a file with the fields of a domain, or the config of a run (image size, patches,
            tokenizer).
        overrides: of a data set: `--config.FIELD=VALUE`.
        split: of a data set; "": the train split.
        rerun: of a recording for the Rerun viewer; None: none.

    Returns:
        A line for the terminal.

    Raises:
        FileNotFoundError, ValueError: nothing can be read there, or there is no row of this number.
        ModuleNotFoundError: `rerun` is given, and rerun-sdk is not installed.
    """
    if checkpoint.steps(data / "checkpoints"):
        if config or overrides or split:
            given = ["--config"] * bool(config) + ["--split"] * bool(split) + list(overrides)
            raise ValueError(f"{data}: is the workdir of a run, which has its own config and split; leave out "
                             f"{', '.join(given)}")
        rows, visual_tokens, split = _rows_of_run(data)
    else:
        rows, visual_tokens, split = _rows_of_data(data, config, overrides, split)
    count = len(rows.plan(0))
    if not 0 <= index < count:
        raise ValueError(f"--index={index}: {data}, split {split!r}, has {count:,} rows in its first epoch; expected 0 "
                         f"to {count - 1}")
    row, numbers = rows.row(0, index), rows.windows_of(0, index)
    windows = [rows.windows[domain].read(number, 0) for domain, number in numbers]
    segments = _segments(row, windows, rows, numbers, visual_tokens)
    used = {"slots": int((row["segment_BS"] > 0).sum()), "images": int((row["clip_BF"] != PADDING_CLIP).sum()),
            "targets": sum(len(one["targets"]) for one in segments)}
    size = rows.size
    if rerun:
        _write_rerun(rerun, segments, windows, [rows.windows[index].domain for index, _ in numbers])
    write_page(path, "row.html", title=f"Row {index} of {count:,}: {data.resolve().name}, {split}", segments=segments,
               used=used, size=dataclasses.asdict(size), visual_tokens=visual_tokens, seed=int(row["seed_B"]),
               label=int(row["label_B"]))
    return (f"row {index} of {count:,}: {len(windows)} samples, {used['slots']} of {size.slots} slots, "
            f"{used['images']} of {size.frames} images, {used['targets']} of {size.targets} targets")


def _write_rerun(path: Path, segments: Sequence[Mapping[str, Any]], windows: Sequence[Window],
                 domains: Sequence[Domain]) -> None:
    """Write the samples of a row: images by camera, state, action, texts, as they were laid out."""
    with RerunFile(path) as file:
        for segment, window, domain in zip(segments, windows, domains, strict=True):
            place = (f"sample {segment['number']}", domain.name)
            file.log(place, 0, {name: segment[name] for name in ("instruction", "answer") if segment[name]})
            if window.label >= 0:
                file.log(place, 0, {"label": window.label})
            for number, step in enumerate(window.steps):
                decoded = {name: spec.decode(ids) for name, spec, ids in (
                    ("state", domain.state, step.state_ids), ("action", domain.spec, step.action_ids))
                    if spec and len(ids)}
                file.log(place, number, {
                    **{f"images/{name}": frame for name, frame in zip(domain.camera_names, step.frames, strict=False)},
                    **{f"{name}/{key}": value for name, values in decoded.items() for key, value in values.items()},
                    **({"action_weight": step.action_weight} if "action" in decoded else {})})


def _rows_of_run(workdir: Path) -> tuple[PackedRows, int, str]:
    config = from_config_dict(checkpoint.read_meta(workdir / "checkpoints")["config"])
    train = open_data(config, gathered_data(config)).train
    return train, train.visual_tokens, "train"


def _rows_of_data(path: Path, file: str, overrides: Sequence[str], split: str) -> tuple[PackedRows, int, str]:
    given = read_fields(file, [], VisionConfig)
    of_model = given.get("model", {}).get("vision", {})
    vision = VisionConfig(**{name: of_model[name] for name in ("image_size", "patch_size") if name in of_model})
    store = open_store(path)
    config = complete(read_check_config(path, file, overrides), store)
    split = split or train_split(config, store)
    specs = specs_of(config, store)
    if config.layout == "actions" and specs is None:
        raise ValueError(f"{path}: has no ActionSpec, expected one in the data set or as config.action_spec; pass "
                         "--config FILE with the fields of its domain, or the config of a run on it")
    windows = windows_of(store, config if "model" in given else any_length(config), specs, split,
                         vision.image_size, given.get("vocabulary", {}).get("tokenizer", "bytes"))
    visual_tokens = 1 + vision.patches
    frames = given.get("data", {}).get("frames_per_row", 0) or windows.domain.images
    size = row_size([windows.domain], visual_tokens, frames)
    return PackedRows([windows], size, visual_tokens, vision.patches, given.get("seed", 0), fit=True), visual_tokens, \
        split


def _segments(row: Row, windows: Sequence[Window], rows: PackedRows, numbers: Sequence[tuple[int, int]],
              visual_tokens: int) -> list[dict[str, Any]]:
    """The samples of the row: each with its cells in the order of the slots."""
    by_slot: dict[int, dict[str, Any]] = {}  # targets by the slot of their id, which follows the slot that predicts it
    found, first_target = [], 0
    for number, (window, (domain_index, window_number)) in enumerate(zip(windows, numbers, strict=True), start=1):
        of_domain = rows.windows[domain_index]
        vocabulary = of_domain.domain.vocabulary
        slots = np.flatnonzero(row["segment_BS"] == number)
        count = sum(len(step.action_ids) for step in window.steps) + len(window.answer_ids) + (
            0 if window.prompt else len(window.text_ids) - 1)
        targets = range(first_target, first_target + count)
        first_target += count
        for t in targets:
            by_slot[int(row["slot_BT"][t]) + 1] = {
                "id": int(row["target_BT"][t]), "language": float(row["language_weight_BT"][t]),
                "action": float(row["action_weight_BT"][t]), "choice": int(row["choice_BT"][t]) >= 0}
        cells: list[dict[str, Any]] = []
        for slot, kind in zip(slots.tolist(), _kinds(window, visual_tokens), strict=True):
            visual = int(row["visual_BS"][slot])
            if visual >= 0 and cells and cells[-1].get("frame") == visual // visual_tokens:
                cells[-1]["last"] = slot
                continue
            cell: dict[str, Any] = {"kind": kind, "first": slot, "last": slot, "target": by_slot.get(slot),
                                    "position": int(row["position_BS"][slot])}
            if visual >= 0:
                frame = visual // visual_tokens
                cell |= {"frame": frame, "clip": int(row["clip_BF"][frame]),
                         "weight": float(row["frame_weight_BF"][frame]),
                         "uri": image_uri(row["frames_BFHWC"][frame], _SIDE)}
            else:
                cell["text"] = vocabulary.token(int(row["token_BS"][slot]))
            cells.append(cell)
        instruction, answer = (vocabulary.text.decode([int(i) for i in ids if i != 2])
                               for ids in (window.text_ids, window.answer_ids))
        found.append({
            "number": number, "domain": of_domain.domain.name, "instruction": instruction, "answer": answer,
            "label": window.label, "record": int(of_domain.record[window_number]), "window": window_number,
            "steps": len(window.steps), "cells": cells, "targets": targets, "slots": (int(slots[0]), int(slots[-1])),
            "denominator": float(row["denominator_BT"][targets[0]]) if count else None})
    return found


def _kinds(window: Window, visual_tokens: int) -> list[str]:
    """The kind of each slot of a window, in the order of its layout."""
    kinds = ["prompt" if window.prompt else "text"] * len(window.text_ids)
    for number, step in enumerate(window.steps):
        shared = window.video and number > 0  # the images of a clip have one CLS
        kinds += ["image"] * (len(step.frames) * (visual_tokens - shared))
        kinds += ["state"] * len(step.state_ids) + ["action"] * len(step.action_ids)
    return kinds + ["answer"] * len(window.answer_ids)
