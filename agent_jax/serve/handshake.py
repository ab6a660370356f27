"""The first message of a connection: the metadata of the policy."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import agent_jax
from agent_jax.actions import ActionSpec, BoundSpec, Choice, StateSpec
from agent_jax.client.wire import PROTOCOL
from agent_jax.data.pipeline.domains import Domain


def metadata(domain: Domain, step: int, *, checkpoint: str, temperature: float, passed_over: Sequence[int] = (),
             domains: Mapping[str, Domain] | None = None, replan_every: int = 0, engine: str = "jax") -> dict[str, Any]:
    """The policy's metadata, as JSON values.

    Args:
        domain: of the policy.
        step: of the checkpoint.
        checkpoint: the name of its directory.
        temperature: of the policy.
        passed_over: newer steps, which are damaged.
        domains: all of the policy, by name; those with texts are listed.
        replan_every: actions of a reply; 0: all of an image.
        engine: the library that the policy runs on.
    """
    spec, state = _spec(domain.spec), _spec(domain.state)
    return {
        "protocol": PROTOCOL,
        "server": "agent_jax",
        "versions": {"agent_jax": agent_jax.__version__, engine: importlib.import_module(engine).__version__,
                     "numpy": np.__version__, "python": platform.python_version()},
        "checkpoint": checkpoint, "step": step, "damaged_steps_passed_over": list(passed_over),
        "temperature": temperature,
        "domain": domain.name, "window": domain.window, "max_text": domain.max_text,
        "actions_per_image": domain.actions_per_image, "replan_every": replan_every or domain.actions_per_image,
        "cameras": list(domain.camera_names), "image_size": domain.image_size, "image_dtype": "uint8",
        "vocabulary_hash": domain.vocabulary.fingerprint(),
        "action_spec": spec.to_dict() if spec else {}, "action_fields": _fields(spec),
        "action_spec_hash": spec.fingerprint() if spec else "",
        "state_spec": state.to_dict() if state else {}, "state_fields": _fields(state),
        "text_domains": {name: {"window": one.window, "max_text": one.max_text, "max_answer": one.max_answer,
                                "cameras": list(one.camera_names)}
                         for name, one in (domains or {}).items() if one.layout == "answer"},
        "rate_hz": spec.rate_hz if isinstance(spec, ActionSpec) else 0.0,
    }


def _spec(bound: BoundSpec | None) -> ActionSpec | StateSpec | None:
    return bound.spec if bound else None


def _fields(spec: ActionSpec | StateSpec | None) -> dict[str, Any]:
    """Shape, dtype and bounds of each key, and the values of each component that is a choice."""
    fields: dict[str, Any] = {}
    if spec is None:
        return fields
    for key, (shape, dtype) in spec.fields.items():
        low, high = spec.bounds(key)
        choices = {str(part.index or 0): list(part.numbers) for part in spec.parts
                   if isinstance(part, Choice) and part.key == key}
        fields[key] = {"shape": list(shape), "dtype": dtype.name, "low": np.asarray(low).reshape(-1).tolist(),
                       "high": np.asarray(high).reshape(-1).tolist(), "choices": choices}
    return fields
