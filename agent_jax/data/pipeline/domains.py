"""A domain: how one data set maps to tokens; training writes it into the checkpoint, acting reads it.

config + data set --from_config--> Domain --to_meta--> checkpoint --from_meta--> Domain
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_jax.actions import ActionSpec, BoundSpec, StateSpec
from agent_jax.actions.vocabulary import EOS, Vocabulary
from agent_jax.config import DomainConfig
from agent_jax.data.pipeline.domain_specs import DomainSpecs
from agent_jax.help_pages import help_page

if TYPE_CHECKING:
    from agent_jax.data.store.schema import Field
    from agent_jax.data.store.store import Store


@dataclasses.dataclass(frozen=True)
class Domain:
    """How a data set's steps become ids and its episodes windows.

    Layouts: "actions" predicts the action of each step, "answer" a text after the images, "label" a class of the clip.
    Only "actions" has an ActionSpec.
    """

    name: str
    index: int  # in Batch.domain_*
    spec: BoundSpec | None  # of actions; None in the other layouts
    state: BoundSpec | None  # of proprioceptive state, input only
    vocabulary: Vocabulary
    window: int  # M, steps of a sample
    stride: int  # steps between the starts of windows
    max_text: int  # tokens of an instruction, </s> included
    cameras: tuple[str, ...]  # paths of the image fields, in order, e.g. "steps/observation/rgb"
    instruction: str  # path of the field
    image_size: int  # pixels; images are resized to it
    weight: float = 1.0  # times each of its windows is seen in an epoch
    video: bool = False  # a window's images form one clip a camera (temporal attention, one CLS)
    fixed_positions: bool = False  # steps begin at position `max_text`, whatever the instruction's length
    layout: str = "actions"  # "actions", "answer" or "label"
    sampling: str = "consecutive"  # "consecutive" or "random"
    answer: str = ""  # path of the field; layout "answer" only
    max_answer: int = 0  # tokens of an answer, </s> included; 0 in the other layouts
    label: str = ""  # path of the field; layout "label" only
    actions_per_image: int = 1  # k: of a window's steps, every k-th has images and state
    # How bounds of the specs were found in the data, with a hash (domain_specs.py); {}: all bounds were declared.
    normalisation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> int:
        """The most images of a window."""
        return self.image_steps(self.window) * len(self.cameras)

    def image_steps(self, steps: Any) -> Any:
        """How many of the first `steps` steps of a window have images and state; a number, or an array of numbers."""
        return -(-steps // self.actions_per_image)

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Names of the cameras in acting: their paths without `steps/observation/`."""
        return tuple(path.removeprefix("steps/observation/") for path in self.cameras)

    @property
    def action_length(self) -> int:
        """The most ids of an action; 0 without one."""
        return self.spec.max_length if self.spec else 0

    @property
    def state_length(self) -> int:
        """The most ids of a state; 0 without one."""
        return self.state.max_length if self.state else 0

    @property
    def first_position(self) -> int:
        """Position of the first step's first slot; 0: it follows the instruction."""
        return self.max_text if self.fixed_positions else 0

    @property
    def has_terminal(self) -> bool:
        """Whether there is an end-of-episode action, with which short windows are then filled up."""
        return self.spec is not None and bool(self.spec.spec.terminal)

    def text_ids(self, instruction: str) -> np.ndarray:
        """The instruction as int32 ids, </s> first.

        Raises:
            ValueError: it is longer than `max_text`.
        """
        return self._checked([EOS, *self.vocabulary.text.encode(instruction)], instruction, "instruction", "max_text")

    def answer_ids(self, answer: str) -> np.ndarray:
        """The answer as int32 ids, </s> last.

        Raises:
            ValueError: it is empty, or longer than `max_answer`.
        """
        if not answer.strip():
            raise ValueError(f"domain {self.name!r}: an answer is empty (field {self.answer!r}), expected a text in "
                             "every record; fill it in, or remove these records")
        return self._checked([*self.vocabulary.text.encode(answer), EOS], answer, "answer", "max_answer")

    def _checked(self, ids: list[int], text: str, kind: str, limit: str) -> np.ndarray:
        most = getattr(self, limit)
        if len(ids) > most:
            raise ValueError(f"domain {self.name!r}: the {kind} {text!r} has {len(ids)} tokens with </s>, "
                             f"expected at most {limit}={most}; raise "
                             f"config.data.domains.{self.name}.{limit} to {len(ids)} or more"
                             + help_page("guides/data.md", "In a config"))
        return np.asarray(ids, np.int32)

    @classmethod
    def from_config(cls, name: str, index: int, config: DomainConfig, store: Store, vocabulary: Vocabulary,
                    image_size: int, specs: DomainSpecs | None) -> Domain:
        """The domain of a config entry and its data set.

        Args:
            name: key of the entry in config.data.domains.
            index: number of the domain in this run.
            config: the entry.
            store: its data set.
            vocabulary: to bind the specs to.
            image_size: pixels of the vision encoder.
            specs: result of `find_specs`; None in the layouts without actions.

        Raises:
            ValueError: a field of the config is missing in the data set or has the wrong type.
        """
        where = f"config.data.domains.{name}"
        for camera in config.cameras:
            _check_field(where, "cameras", store.field(camera), "image", store)
        store.text_fields(config.instruction)
        spec = state = None
        normalisation: Mapping[str, Any] = {}
        if specs:
            spec, normalisation = BoundSpec(specs.action, vocabulary), specs.normalisation
            state = BoundSpec(specs.state, vocabulary) if specs.state else None
        elif config.layout == "answer":
            _check_field(where, "answer", store.field(config.answer), "text", store)
        else:
            _check_field(where, "label", store.field(config.label), "array", store)
        answers = config.layout == "answer"
        return cls(name=name, index=index, spec=spec, state=state, vocabulary=vocabulary, window=config.window,
                   stride=config.stride, max_text=config.max_text, cameras=config.cameras,
                   instruction=config.instruction, image_size=image_size, weight=config.weight, video=config.video,
                   fixed_positions=config.fixed_positions, layout=config.layout, sampling=config.sampling,
                   answer=config.answer if answers else "", max_answer=config.max_answer if answers else 0,
                   label=config.label if config.layout == "label" else "",
                   actions_per_image=config.actions_per_image, normalisation=normalisation)

    def to_meta(self) -> dict[str, Any]:
        """The domain without its vocabulary, as JSON."""
        meta = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        action = self.spec.spec.to_dict() if self.spec else {}
        state = self.state.spec.to_dict() if self.state else {}
        return {**meta, "cameras": list(self.cameras), "action_spec": action, "state_spec": state}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], vocabulary: Vocabulary) -> Domain:
        """The domain that `to_meta` described.

        Fields that have a default may be missing, as in older checkpoints.

        Raises:
            ValueError: other fields are missing, or some are unknown.
        """
        missing, unknown = _REQUIRED - meta.keys(), meta.keys() - {*_PLAIN_FIELDS, "action_spec", "state_spec"}
        if missing or unknown:
            raise ValueError(f"domain meta: missing {sorted(missing)}, unknown {sorted(unknown)}; another "
                             "version wrote the checkpoint, use that one")
        spec = BoundSpec(ActionSpec.from_dict(meta["action_spec"]), vocabulary) if meta["action_spec"] else None
        state = BoundSpec(StateSpec.from_dict(meta["state_spec"]), vocabulary) if meta["state_spec"] else None
        plain: dict[str, Any] = {name: meta[name] for name in _PLAIN_FIELDS if name in meta}
        plain["cameras"] = tuple(meta["cameras"])
        return cls(**plain, spec=spec, state=state, vocabulary=vocabulary)


# The fields that to_meta writes unchanged, and those that from_meta requires.
_BOUND = ("spec", "state", "vocabulary")
_PLAIN_FIELDS = tuple(field.name for field in dataclasses.fields(Domain) if field.name not in _BOUND)
_REQUIRED = {"action_spec", "state_spec", *(field.name for field in dataclasses.fields(Domain)
                                            if field.name in _PLAIN_FIELDS and field.default is dataclasses.MISSING
                                            and field.default_factory is dataclasses.MISSING)}


def _check_field(where: str, name: str, field: Field, kind: str, store: Store) -> None:
    """Refuse a field that is not, as `kind` requires, an image of the steps, a text or one whole number."""
    fits = {"image": field.is_image and field.per_step, "text": field.kind == "text",
            "array": field.kind == "array" and field.dtype.kind in "iu" and field.shape in ((), (1,))}
    if not fits[kind]:
        wanted = {"image": "images of its steps, 8 bits a channel", "text": "text", "array": "one whole number"}[kind]
        raise ValueError(f"{where}.{name}={field.path!r}: found {field.kind} {list(field.shape)} of {field.dtype}, "
                         f"{'of each step' if field.per_step else 'of the record'}, in {store.directory}; expected "
                         f"{wanted}")
