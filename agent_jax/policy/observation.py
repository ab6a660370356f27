"""What a policy is given, checked and made ready: images resized, instruction and state as ids. NumPy alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.client.pictures import advice, as_array, is_image, shown
from agent_jax.data.images import LONGEST_SIDE, prepare_image
from agent_jax.data.pipeline.domains import Domain

# Of one environment: an image, or one a camera. An image may also be jax's, torch's or Pillow's.
Images = np.ndarray | Mapping[str, np.ndarray] | Sequence[np.ndarray]

NO_IDS = np.zeros(0, np.int32)


class _NoInstruction(str):
    """The type of `NO_INSTRUCTION`."""


# An empty instruction by intent: the policy reads </s> alone. Any other empty text is an error.
NO_INSTRUCTION: str = _NoInstruction()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One observation of one environment, as the model takes it."""

    frames: tuple[np.ndarray, ...]  # uint8 (size, size, 3), one a camera
    text_ids: np.ndarray  # int32, </s> first
    state_ids: np.ndarray  # int32; empty where the domain has no state


def prepare(domain: Domain, images: Images, instruction: str, state: Mapping[str, Any] | None = None) -> Prepared:
    """One observation, checked; whatever it holds afterwards is the policy's own.

    Args:
        domain: in which is acted.
        images: uint8 (height, width, 3), or one a camera: a mapping by `domain.camera_names`, or a tuple in that order.
            Arrays of NumPy, jax or torch, or RGB pictures of Pillow.
        instruction: what is to be done; or `NO_INSTRUCTION`.
        state: the StateSpec's values; needed if the domain has one.

    Raises:
        ValueError: says what was found and what was expected.
    """
    if not isinstance(instruction, str):
        raise ValueError(f"act: found an instruction of type {type(instruction).__name__}, expected a text (str)")
    if not instruction.strip() and instruction is not NO_INSTRUCTION:
        raise ValueError(f"act: found the empty instruction {instruction!r}, expected a text that says what to do")
    return Prepared(camera_images(domain, images), domain.text_ids(instruction), _state_ids(domain, state))


def _state_ids(domain: Domain, state: Mapping[str, Any] | None) -> np.ndarray:
    if (domain.state is None) != (state is None):
        raise ValueError(f"act: domain {domain.name!r} {'has no' if domain.state is None else 'needs a'} state for "
                         "each environment")
    if domain.state is None or state is None:
        return NO_IDS
    if not isinstance(state, Mapping):
        raise ValueError(f"act: found a state of type {type(state).__name__}, expected a mapping with the keys "
                         f"{', '.join(domain.state.spec.fields)}")
    for key in domain.state.spec.fields:
        # A number out of bounds is clipped, but infinity is no number: a sensor or a division failed.
        found = np.asarray(state.get(key, 0))
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise ValueError(f"act: the state {key!r} holds {found.tolist()}, expected finite numbers")
    return domain.state.encode(state)


def camera_images(domain: Domain, images: Images, call: str = "act") -> tuple[np.ndarray, ...]:
    """What the cameras show at one time, in the order of the domain, checked and resized.

    Args:
        domain: whose cameras they are.
        images: one image, or a mapping or tuple of the cameras'.
        call: that the images were given to, for messages.

    Raises:
        ValueError: says what was found and what was expected.
    """
    names = domain.camera_names
    if isinstance(images, Mapping):
        found, seen = ", ".join(map(str, images)), [images.get(name) for name in names]
    elif is_image(images):
        found, seen = "one image", [images]
    elif isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        found, seen = f"{len(images)} images", list(images)
    else:
        found, seen = f"a {type(images).__name__}", []
    extra = isinstance(images, Mapping) and len(images) != len(names)
    if len(seen) != len(names) or extra or any(image is None for image in seen):
        numbers = isinstance(images, bytes) or (isinstance(images, list) and images and isinstance(images[0], list))
        raise ValueError(f"{call}: domain {domain.name!r} sees through {', '.join(names)}; found {found} at a time, "
                         "expected an image of each, in a mapping by these names or a tuple in this order"
                         f"{advice(images) if numbers else ''}")
    return tuple(_frame(image, name, domain.image_size, call) for image, name in zip(seen, names, strict=True))


def _frame(image: Any, camera: str, size: int, call: str) -> np.ndarray:
    try:
        found = as_array(image)
    except ValueError as error:
        raise ValueError(f"{call}: the camera {camera!r}: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape[2:] != (3,) or not found.size:
        raise ValueError(f"{call}: the camera {camera!r} shows {shown(found)}, expected uint8[height, width, 3]"
                         f"{advice(found)}")
    if max(found.shape) > LONGEST_SIDE:
        raise ValueError(f"{call}: the camera {camera!r} shows {list(found.shape)}, expected sides of at most "
                         f"{LONGEST_SIDE} pixels")
    return np.array(prepare_image(found, size))  # a copy: simulators draw into the same buffer again
