"""A domain: one data set's way of speaking, as training writes it into a checkpoint and acting reads it back.

config + data set --from_config--> Domain --to_meta--> checkpoint --from_meta--> Domain
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_jax.actions import ActionSpec, BoundSpec, StateSpec
from agent_jax.config import DomainConfig
from agent_jax.vocabulary import EOS, Vocabulary

if TYPE_CHECKING:
    from agent_jax.data.store import Store


@dataclasses.dataclass(frozen=True)
class Domain:
    """What turns this domain's steps into ids and back, and cuts its episodes into windows."""

    name: str
    index: int  # its number in Batch.domain_*
    spec: BoundSpec  # of actions
    state: BoundSpec | None  # of proprioceptive state, input only
    vocabulary: Vocabulary
    window: int  # M, steps of a sample
    stride: int  # steps between the starts of windows
    max_text: int  # tokens of an instruction, </s> included
    image: str  # path of the field, e.g. "steps/observation/rgb"
    instruction: str  # path of the field
    image_size: int  # pixels; images are resized to it
    weight: float = 1.0  # times each of its windows is seen in an epoch
    video: bool = False  # a window's images form one clip (temporal attention, one CLS)
    fixed_positions: bool = False  # steps take the positions from `max_text` on, however long the instruction is

    @property
    def action_length(self) -> int:
        """The most ids of an action."""
        return self.spec.max_length

    @property
    def state_length(self) -> int:
        """The most ids of a state; 0 without one."""
        return self.state.max_length if self.state else 0

    @property
    def first_position(self) -> int:
        """Position of the first step's first slot in its sample; 0: it follows the instruction."""
        return self.max_text if self.fixed_positions else 0

    @property
    def has_terminal(self) -> bool:
        """Whether the action can say that the episode is over; a short window is then filled up with that action."""
        return bool(self.spec.spec.terminal)

    def text_ids(self, instruction: str) -> np.ndarray:
        """The instruction as int32 ids, </s> first.

        Raises:
            ValueError: if it is longer than `max_text`; nothing is cut off silently.
        """
        ids = np.asarray([EOS, *self.vocabulary.text.encode(instruction)], np.int32)
        if len(ids) > self.max_text:
            raise ValueError(f"domain {self.name!r}: the instruction {instruction!r} has {len(ids)} tokens with </s>, "
                             f"expected at most max_text={self.max_text}; raise "
                             f"config.data.domains.{self.name}.max_text to {len(ids)} or more")
        return ids

    @classmethod
    def from_config(cls, name: str, index: int, config: DomainConfig, store: Store, vocabulary: Vocabulary,
                    image_size: int) -> Domain:
        """The domain of a config entry and its data set.

        Args:
            name: key of the entry in config.data.domains.
            index: number of the domain in this run.
            config: the entry.
            store: its opened data set; an ActionSpec or StateSpec left empty in the config is taken from there.
            vocabulary: to bind the specs to.
            image_size: pixels of the vision encoder.

        Raises:
            ValueError: for a spec neither has, or that both have and disagree on; for fields the data set lacks.
        """
        where = f"config.data.domains.{name}"
        action = _agreed_spec(where, "action_spec", config.action_spec, store)
        state = _agreed_spec(where, "state_spec", config.state_spec, store)
        if not action:
            raise ValueError(f"{where}.action_spec: empty, and {store.directory} carries none of its own; give the "
                             "ActionSpec of its actions")
        store.field(config.image)
        store.field(config.instruction)
        spec = ActionSpec.from_dict(action).bind(vocabulary)
        state_spec = StateSpec.from_dict(state).bind(vocabulary) if state else None
        for bound in filter(None, (spec, state_spec)):
            _check_fields(where, bound, store)
        return cls(name=name, index=index, spec=spec, state=state_spec, vocabulary=vocabulary, window=config.window,
                   stride=config.stride, max_text=config.max_text, image=config.image, instruction=config.instruction,
                   image_size=image_size, weight=config.weight,
                   video=config.video, fixed_positions=config.fixed_positions)

    def to_meta(self) -> dict[str, Any]:
        """Everything but the vocabulary, as JSON."""
        meta = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        state = self.state.spec.to_dict() if self.state else {}
        return {**meta, "action_spec": self.spec.spec.to_dict(), "state_spec": state}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], vocabulary: Vocabulary) -> Domain:
        """The domain of `to_meta`, without its data set: what acting needs.

        Raises:
            ValueError: if fields are missing or unknown.
        """
        expected = {*_PLAIN_FIELDS, "action_spec", "state_spec"}
        if set(meta) != expected:
            raise ValueError(f"domain meta: missing {sorted(expected - set(meta))}, unknown "
                             f"{sorted(set(meta) - expected)}; the checkpoint was written by another version")
        spec = ActionSpec.from_dict(meta["action_spec"]).bind(vocabulary)
        state = StateSpec.from_dict(meta["state_spec"]).bind(vocabulary) if meta["state_spec"] else None
        return cls(**{name: meta[name] for name in _PLAIN_FIELDS}, spec=spec, state=state, vocabulary=vocabulary)


# What to_meta writes as it stands.
_BOUND = ("spec", "state", "vocabulary")
_PLAIN_FIELDS = tuple(field.name for field in dataclasses.fields(Domain) if field.name not in _BOUND)


def _agreed_spec(where: str, name: str, configured: Mapping[str, Any], store: Store) -> Mapping[str, Any]:
    """The spec of the config or of the store; an error where they differ."""
    own = store.metadata.get(name) or {}
    if configured and own:
        kind = ActionSpec if name == "action_spec" else StateSpec
        difference = kind.from_dict(configured).difference(kind.from_dict(own))
        if difference:
            raise ValueError(f"{where}.{name}: differs from the one that {store.directory} was written with (there): "
                             f"{difference}; leave it empty to take the data set's own")
    return configured or own


def _check_fields(where: str, bound: BoundSpec, store: Store) -> None:
    """Every key of the spec is a step field of the same shape."""
    for key, (shape, _) in bound.spec.fields.items():
        field = store.step_field(key)
        if field.kind != "array" or field.shape != shape:
            found = f"an {field.kind} of shape {field.shape}"
            raise ValueError(f"{where}: {bound.spec.kind} spec {bound.spec.name!r} expects numbers of shape {shape} "
                             f"for {key!r}; found {found} in field {field.path!r} of {store.directory}")
