"""Read and check a robot's message; errors are sent back to the robot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_jax.client import wire
from agent_jax.client.pictures import advice, shown
from agent_jax.data.images import LONGEST_SIDE
from agent_jax.data.pipeline.domains import Domain

# By type of message: the fields, and the types of what may be left out.
_SAY_OPTIONS: dict[str, type | tuple[type, ...]] = {
    "domain": str, "max_tokens": int, "temperature": (int, float), "top_p": (int, float), "seed": int}
_FIELDS = {"act": {"type", "images", "instruction", "state", "surprise"},
           "say": {"type", "images", "prompt", *_SAY_OPTIONS}, "reset": {"type"}}
_LONGEST_TEXT = 10_000  # characters of a text, so that tokenising it takes a bounded time
_MESSAGE_ENDS = 800, 200  # first and last characters kept of a long error: found and expected


class RefusedError(Exception):
    """A message that is answered with an error; the connection stays open.

    The text may contain data of the robot: the middle of a long text is removed and control characters are escaped, so
    that it is one line in a log.
    """

    def __init__(self, code: str, message: str) -> None:
        first, last = _MESSAGE_ENDS
        cut = message if len(message) <= first + last else f"{message[:first]} ... {message[-last:]}"
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in cut))
        self.code = code

    def reply(self) -> str:
        """The error as a text message; all other replies are binary."""
        return json.dumps({"error": self.code, "message": str(self)})


@dataclasses.dataclass(frozen=True)
class ReceivedObservation:
    """A robot's observation, with the types of `Policy.prepare`, which checks the rest."""

    images: Any
    instruction: str
    state: Mapping[str, Any] | None
    surprise: bool = False  # whether the reply is to have it


@dataclasses.dataclass(frozen=True)
class ReceivedPrompt:
    """What to say a text about, with the types of `Policy.say`, which checks the rest."""

    images: Any
    prompt: str
    options: Mapping[str, Any]  # keyword arguments


def read_request(content: str | bytes, domain: Domain) -> ReceivedObservation | ReceivedPrompt | None:
    """The observation of an "act", the prompt of a "say", or None for a "reset".

    Raises:
        ValueError: an invalid message.
    """
    if isinstance(content, str):
        raise ValueError("found a text message, expected a binary one: a msgpack map (agent_jax/client/wire.py)")
    message = wire.unpack(content)
    kind = message.get("type", "act")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(f"type: found {kind!r}, expected one of {', '.join(_FIELDS)}")
    if unknown := sorted(message.keys() - _FIELDS[kind]):
        raise ValueError(f"found unknown fields {', '.join(unknown)[:200]}; a message of type {kind!r} has "
                         f"{', '.join(sorted(_FIELDS[kind]))}")
    if kind == "reset":
        return None
    text_field = "prompt" if kind == "say" else "instruction"
    if missing := sorted({"images", text_field} - message.keys()):
        raise ValueError(f"missing fields {', '.join(missing)}")
    images, text = message["images"], message[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{text_field}: found {type(text).__name__}, expected a text")
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"{text_field}: found {len(text)} characters, expected at most "
                         f"{f'{domain.max_text} tokens' if kind == 'act' else _LONGEST_TEXT}")
    if kind == "say":
        return ReceivedPrompt(_clip(images), text, _say_options(message))
    _check_images(images)
    _check_state(message.get("state"), domain)
    if not isinstance(surprise := message.get("surprise", False), bool):
        raise ValueError(f"surprise: found {type(surprise).__name__}, expected true or false")
    return ReceivedObservation(images, text, message.get("state"), surprise)


def _clip(images: Any) -> Any:
    """The images of a "say": an array of one or several, a map of them by camera, or a list of these."""
    steps = images if isinstance(images, list) else list(images) if getattr(images, "ndim", 3) == 4 else [images]
    for step in steps:
        _check_images(step)
    return images


def _say_options(message: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: message[name] for name in _SAY_OPTIONS if name in message}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, _SAY_OPTIONS[name]):
            raise ValueError(f"{name}: found {value!r}, expected {'a text' if name == 'domain' else 'a number'}")
    if found.get("seed", 0) < 0:
        raise ValueError(f"seed: found {found['seed']}, expected 0 or more")
    return found


def _check_images(images: Any) -> None:
    found = [images] if isinstance(images, np.ndarray) else images
    if isinstance(found, dict):
        found = list(found.values()) if all(isinstance(name, str) for name in found) else None
    if not isinstance(found, list) or not all(isinstance(image, np.ndarray) for image in found):
        raise ValueError("images: expected an array uint8 (height, width, 3), a map of them by camera, or a list")
    for image in found:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"images: found {shown(image)}, expected uint8[height, width, 3]{advice(image)}")
        if max(image.shape) > LONGEST_SIDE:
            raise ValueError(f"images: found {list(image.shape)}, expected sides of at most {LONGEST_SIDE} pixels")


def _check_state(state: Any, domain: Domain) -> None:
    if state is None:
        return
    if not isinstance(state, dict):
        raise ValueError(f"state: found {type(state).__name__}, expected a map of the StateSpec's values")
    fields = domain.state.spec.fields if domain.state else {}
    if unknown := sorted(map(str, state.keys() - fields.keys())):
        raise ValueError(f"state: unknown keys {', '.join(unknown)[:200]}; domain {domain.name!r} has "
                         f"{', '.join(fields) or 'no state'}")
    for key, value in state.items():
        if isinstance(value, (dict, str, bytes)) or value is None:
            raise ValueError(f"state: {key}: found {type(value).__name__}, expected numbers")
        try:
            array = np.asarray(value)
        except ValueError:  # ragged
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"state: {key}: expected an array of numbers")
        if not np.isfinite(array).all():
            raise ValueError(f"state: {key}: found {array.tolist()}, expected finite numbers")
