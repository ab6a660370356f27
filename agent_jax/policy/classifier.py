"""Classifies clips, in one domain of the layout "label"."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.agent import Params
from agent_jax.policy.buckets import split
from agent_jax.policy.clips import Clip, batch_of, prepare_clip
from agent_jax.policy.row_reader import RowReader


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """The class of a clip."""

    label: int  # the most probable class
    probabilities: np.ndarray  # f32 (classes,)


class ClipClassifier:
    """One domain of one model; holds no parameters."""

    def __init__(self, config: Config, domain: Domain) -> None:
        """Prepare; the first call compiles."""
        self._domain = domain
        reader = RowReader(config, video=domain.video and config.model.vision.temporal_attention)

        def probabilities(params: Params, frames_BFHWC: jax.Array, clip_BF: jax.Array) -> jax.Array:
            logits_BY: Any = reader.agent.apply({"params": params}, frames_BFHWC, clip_BF, method="classify_images")
            return jax.nn.softmax(logits_BY)

        self._probabilities = jax.jit(probabilities, compiler_options=reader.compiler_options)

    def __call__(self, params: Params, images: Sequence[Clip]) -> list[Classification]:
        """The class of each clip; `Policy.classify` describes the arguments and errors."""
        clips = [prepare_clip(self._domain, clip, "classify") for clip in images]
        found: list[Classification] = []
        for members, rows in split(clips):
            probabilities_BY = np.asarray(self._probabilities(params, *batch_of(self._domain, members, rows)))
            if not np.isfinite(probabilities_BY[: len(members)]).all():
                raise ValueError("classify: the model's logits are NaN or infinite, expected finite numbers: its "
                                 "parameters are damaged or their training diverged; load another step")
            found += [Classification(int(np.argmax(row)), row) for row in probabilities_BY[: len(members)]]
        return found
