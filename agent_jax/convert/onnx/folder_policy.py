"""The policy of an exported folder with the interface of `agent_jax.policy.Policy`; needs neither JAX nor PyTorch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.convert.exported.policy import Prepared
from agent_jax.convert.exported.prompted import GeneratedText
from agent_jax.convert.onnx import onnx_agent
from agent_jax.data.pipeline.domains import Domain


class FolderPolicy:
    """Acts and generates text for the server and for evaluation; `domain` and `domains` are those of the run."""

    def __init__(self, folder: str | Path, **options: Any) -> None:
        """Load a folder.

        Args:
            folder: of `to-onnx`.
            options: of `onnx_agent.Policy`.

        Raises:
            FileNotFoundError, ValueError: as `onnx_agent.Policy`.
        """
        self.exported = onnx_agent.Policy(folder, **options)
        vocabulary = Vocabulary.from_json(json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8")))
        self.domains = {name: Domain.from_meta(meta, vocabulary)
                        for name, meta in self.exported.description["domains"].items()}
        self.domain = self.domains[self.exported.domain.name]
        self.replan_every = self.domain.actions_per_image
        self.step_number: int = self.exported.description["source"]["step"]
        self.reset, self.forget, self.step = self.exported.reset, self.exported.forget, self.exported.step
        self.act, self.follow, self.prepare = self.exported.act, self.exported.follow, self.exported.prepare

    def say(self, images: Sequence[Any], prompts: Sequence[str], **options: Any) -> list[GeneratedText]:
        """As `Policy.say`: ids are arrays."""
        return [dataclasses.replace(text, ids=np.array(text.ids, np.int32))
                for text in self.exported.say(images, prompts, **options)]

    def surprise_of(self, frames: Sequence[Sequence[np.ndarray]], *, masks: int = 1) -> np.ndarray:
        """Refused: a folder has no MAE decoder.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"surprise of {len(frames)} observations by {masks} masks: an exported folder has no MAE "
                         "decoder; serve the checkpoint")

    def check_acts(self, call: str) -> None:
        """Refuse `call`, which needs actions, in a domain without any; ValueError names the domains that have some."""
        if self.domain.spec is None:
            acting = ", ".join(self.exported.description["acting"]) or "there is none"
            raise ValueError(f"{call}: domain {self.domain.name!r} has the layout {self.domain.layout!r}, which "
                             f"predicts no actions; expected a domain of the layout 'actions': {acting}")

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Act once on a black image, so that the first action of a robot finds everything in memory."""
        size = self.domain.image_size
        images = dict.fromkeys(self.domain.camera_names, np.zeros((size, size, 3), np.uint8))
        state: Mapping[str, Any] | None = None
        if codec := self.exported.domain.state:
            state = codec.decode(codec.first())
        prepared: Prepared = self.prepare(images, "", state)
        for number in {1, max(batch_sizes)}:
            names = [("warm up", i) for i in range(number)]
            self.step([prepared] * number, names)
            self.forget(names)
