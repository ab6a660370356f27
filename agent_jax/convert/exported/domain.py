"""A domain of agent.json: its texts and images as the model reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from agent_jax.convert.exported.codec import Codec

EOS = 2  # </s>, the first token of every row
PREDICTED = {"actions": "actions", "answer": "text", "label": "class"}  # by layout of a domain


@dataclass
class Domain:
    """How one data set maps to tokens, from agent.json."""

    name: str
    window: int  # steps of a sample
    max_text: int  # tokens of an instruction or prompt, </s> included
    first_position: int  # of the first step; 0: right after the instruction
    video: bool  # the images of a camera form one clip
    image_size: int
    cameras: Sequence[str]  # names, in the order of a step's images
    actions: Codec | None  # None in the layouts "answer" and "label"
    state: Codec | None
    tokenizer: Tokenizer
    layout: str = "actions"  # "actions", "answer" (a text after the images) or "label" (a class of the clip)
    max_answer: int = 0  # tokens of an answer, </s> included
    text_ids_end: int = 0  # the ids from here on are those of actions and states
    silent_ids: Sequence[int] = ()  # text ids that decode to no text
    actions_per_image: int = 1  # k: only every k-th step of a sample has images and state

    @classmethod
    def load(cls, folder: str | Path, name: str = "", layout: str = "") -> Domain:
        """The domain of an exported folder.

        Args:
            folder: with agent.json.
            name: may be empty if there is only one of the layout.
            layout: that the domain must have; "": any, and "actions" for an empty name.

        Raises:
            ValueError: there is no such domain, or `name` is empty and there are several; names those that fit.
        """
        folder = Path(folder)
        description = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        domains = {**description["acting"], **description.get("prompted", {})}
        layouts = {key: fields.get("layout", "actions") for key, fields in domains.items()}
        wanted = layout or ("" if name else "actions")
        fitting = [key for key, found in layouts.items() if wanted in ("", found)]
        if not name and len(fitting) == 1:
            [name] = fitting
        if name in layouts and name not in fitting:
            raise ValueError(f"domain {name!r} of {folder} has the layout {layouts[name]!r}, which predicts no "
                             f"{PREDICTED[wanted]}; expected a domain of the layout {wanted!r}: "
                             f"{', '.join(fitting) or 'there is none'}")
        if not fitting:
            found = ", ".join(f"{key} ({of_domain!r})" for key, of_domain in layouts.items()) or "no domains"
            raise ValueError(f"{folder} has no domain of the layout {wanted!r}; found {found}")
        if name not in fitting:
            raise ValueError(f"domain {name!r}: {folder} has {', '.join(fitting)}; name one")
        fields = {"actions": None, "state": None, **domains[name]}
        actions, state = (fields.pop(key) for key in ("actions", "state"))
        tokenizer = Tokenizer.from_file(str(folder / "language" / "tokenizer.json"))
        return cls(name=name, actions=Codec(actions) if actions else None, state=Codec(state) if state else None,
                   tokenizer=tokenizer, **fields)

    def text_ids(self, instruction: str) -> list[int]:
        """</s> and the instruction or prompt; ValueError if longer than `max_text`."""
        ids = [EOS, *self.tokenizer.encode(instruction, add_special_tokens=False).ids]
        if len(ids) > self.max_text:
            raise ValueError(f"domain {self.name!r}: {instruction!r} has {len(ids)} tokens with </s>, expected at most "
                             f"{self.max_text}")
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """The answer and </s>; ValueError if longer than `max_answer`."""
        ids = [*self.tokenizer.encode(answer, add_special_tokens=False).ids, EOS]
        if len(ids) > self.max_answer:
            raise ValueError(f"domain {self.name!r}: the answer {answer!r} has {len(ids)} tokens with </s>, expected "
                             f"at most {self.max_answer}")
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode([token for token in ids if token not in self.silent_ids], skip_special_tokens=True)

    def step_images(self, given: Any) -> list[np.ndarray]:
        """The images of one step, in the cameras' order and resized for the encoder.

        Args:
            given: an image, or one of each camera: a sequence in their order or a mapping by their names.

        Raises:
            ValueError: another number of images, or an image of another dtype or shape.
        """
        if isinstance(given, np.ndarray) and given.ndim == 3:
            given = [given]
        if isinstance(given, Mapping):
            given = [given[name] for name in self.cameras if name in given]
        if len(given) != len(self.cameras):
            raise ValueError(f"found {len(given)} images, expected one of each camera: {', '.join(self.cameras)}")
        return [self.image(image) for image in given]

    def clip_images(self, given: Any) -> list[list[np.ndarray]]:
        """The images of a clip's steps, as `step_images`.

        Args:
            given: one step, or a sequence of 1 to `window` of them.

        Raises:
            ValueError: another number of steps; or as `step_images`.
        """
        if isinstance(given, (str, bytes)) or not isinstance(given, (Mapping, Sequence, np.ndarray)):
            raise ValueError(f"domain {self.name!r}: found a {type(given).__name__}, expected an image uint8 (height, "
                             f"width, 3) or a sequence of 1 to {self.window} of them")
        several = len(self.cameras) > 1
        if isinstance(given, Mapping) or _is_image(given) or (several and all(map(_is_image, given))):
            given = [given]
        if not 1 <= len(given) <= self.window:
            raise ValueError(f"domain {self.name!r}: found a clip of {len(given)} images"
                             f"{' of each camera' if several else ''}, expected 1 to {self.window}")
        return [self.step_images(step) for step in given]

    def image(self, image: np.ndarray) -> np.ndarray:
        """The image resized for the encoder: bilinear, antialiased, no crop; ValueError for another dtype or shape."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            raise ValueError(f"domain {self.name!r}: found {found}, expected images uint8 (height, width, 3)")
        size = (self.image_size, self.image_size)
        if image.shape[:2] == size:
            return image
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _is_image(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.ndim == 3
