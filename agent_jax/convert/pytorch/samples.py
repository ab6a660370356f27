"""Lays out a batch of samples, for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_jax.convert.exported.domain import Domain


def lay_out(domain: Domain, samples: Sequence[tuple[Any, ...]], patches: int) -> dict[str, Tensor]:
    """A batch of one sample a row, for training.

    Args:
        domain: of all samples.
        samples: (text ids, steps) of each; in the layout "answer" (text ids, steps, answer ids), in the layout "label"
            (text ids, steps, class).
        patches: P.

    Returns:
        The fields of a batch: frames_BFHWC, frame_weight_BF, clip_BF, token_BS, visual_BS (index f * V + v of a visual
        token, -1 for a text token), segment_BS, position_BS, slot_BT, target_BT, language_weight_BT, action_weight_BT,
        denominator_BT, denominator_BF, domain_BF, domain_BT, label_B (-1: none). All text and action ids are targets;
        after a prompt only the answer's are.
    """
    rows = []
    for text, steps, *predicted in samples:
        texts = len(text) - 1 if domain.layout == "actions" else 0  # targets of the text
        answer = list(predicted[0]) if domain.layout == "answer" else []
        tokens, visual, slots, targets = list(text), [-1] * len(text), list(range(texts)), list(text[1 : 1 + texts])
        frames: list[np.ndarray] = []
        clips: list[int] = []
        for number, step in enumerate(steps):
            for camera, image in enumerate(step.images):
                first = 1 if domain.video and number else 0  # a clip has one CLS
                places = range(len(frames) * (1 + patches) + first, (len(frames) + 1) * (1 + patches))
                tokens, visual = tokens + [0] * len(places), visual + list(places)
                clips.append(camera if domain.video else len(frames))
                frames.append(image)
            tokens, visual = tokens + list(step.state_ids), visual + [-1] * len(step.state_ids)
            slots += range(len(tokens) - 1, len(tokens) - 1 + len(step.action_ids))
            targets += step.action_ids
            tokens, visual = tokens + list(step.action_ids), visual + [-1] * len(step.action_ids)
        slots += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
        targets += answer
        tokens, visual = tokens + answer, visual + [-1] * len(answer)
        language_T = np.full(len(targets), domain.layout == "answer")
        language_T[:texts] = True
        denominator = len(targets) + patches * len(frames)
        gap = domain.first_position - len(text) if domain.first_position else 0
        rows.append({"frames_BFHWC": np.stack(frames), "frame_weight_BF": np.ones(len(frames), np.float32),
                     "clip_BF": clips, "token_BS": tokens, "visual_BS": visual, "segment_BS": [1] * len(tokens),
                     "position_BS": [i if i < len(text) else i + gap for i in range(len(tokens))],
                     "slot_BT": slots, "target_BT": targets,
                     "language_weight_BT": language_T.astype(np.float32),
                     "action_weight_BT": (~language_T).astype(np.float32),
                     "denominator_BT": np.full(len(targets), denominator, np.float32),
                     "denominator_BF": np.full(len(frames), denominator, np.float32),
                     "domain_BF": [0] * len(frames), "domain_BT": [0] * len(targets)})  # one domain
    padding = {"clip_BF": -1, "visual_BS": -1, "denominator_BT": 1, "denominator_BF": 1}
    batch = {}
    for name in rows[0]:
        arrays = [np.asarray(row[name], None if len(row[name]) else np.int64) for row in rows]
        full = np.full((len(rows), max(map(len, arrays)), *arrays[0].shape[1:]), padding.get(name, 0), arrays[0].dtype)
        for place, array in zip(full, arrays, strict=True):
            place[: len(array)] = array
        batch[name] = torch.from_numpy(full)
    batch["label_B"] = torch.tensor([sample[2] if domain.layout == "label" else -1 for sample in samples])
    return batch
