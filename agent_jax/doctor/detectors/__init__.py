"""The detectors of `doctor data`, one function each: the data set in, findings out.

A new one is a function in a module of this folder, an entry in DETECTORS and a heading in docs/guides/doctor.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent_jax.doctor.detectors.frames import blank_frames, frozen_frames, repeated_frames, swapped_cameras
from agent_jax.doctor.detectors.labels import conflicting_labels, leaks_between_splits, unused_instruction
from agent_jax.doctor.detectors.numbers import (
    action_lag,
    clipped_dimensions,
    constant_dimensions,
    gripper_sign,
    uneven_times,
    unusable_values,
)
from agent_jax.doctor.episodes import DataSet
from agent_jax.doctor.finding import Finding

DETECTORS: tuple[Callable[[DataSet], Iterator[Finding]], ...] = (
    unusable_values, blank_frames, frozen_frames, repeated_frames, swapped_cameras, action_lag, constant_dimensions,
    clipped_dimensions, gripper_sign, uneven_times, conflicting_labels, unused_instruction, leaks_between_splits,
)
