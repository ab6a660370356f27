"""Detectors that look at images: blank, frozen and repeated frames, swapped cameras."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

from agent_jax.doctor.episodes import DataSet
from agent_jax.doctor.finding import Finding, place_of

BLANK_LEVELS = 3.0  # standard deviation of a thumbnail, of 255: a covered lens has noise below it, any scene more
SAME_LEVELS = 3  # greatest difference of any pixel: a video codec changes a still image by so much, motion by more
MOVES = 0.05  # standard deviations of a state or action that count as motion in one step: more than sensor noise
FROZEN_STEPS = 5  # equal frames in a row during motion; fewer are a slow camera (repeated_frames) or a blink
FROZEN_ACTIONS = 10  # the same without a state: an action may fail, as a step into a wall
REPEATED_SHARE = 0.2  # of the frames during motion; a camera at half the rate repeats 0.5
REPEATED_LEAST = 10  # steps with motion in an episode, to know a share
SWAP_RATIO = 0.5  # distance of the swapped images to the usual ones, over that of the unswapped


def blank_frames(data: DataSet) -> Iterator[Finding]:
    """Black frames, and others of a single colour."""
    for camera in data.cameras:
        places, black, count = [], 0, 0
        for episode in data.episodes:
            images = episode.thumbnails[camera].astype(np.float32)
            blank = np.flatnonzero(images.std(axis=(1, 2)).max(axis=-1) < BLANK_LEVELS)
            black += int((images[blank].mean(axis=(1, 2, 3)) < 16).sum())
            count += len(blank)
            places += [place_of(episode, blank[0])] if len(blank) else []
        if places:
            yield Finding("blank_frames", "wrong", f"{camera}: {count:,} frames of a single colour, {black:,} of them "
                          f"black, in {len(places):,} episodes; expected images of a scene",
                          "leave these episodes out, or copy their images again", places)


def frozen_frames(data: DataSet) -> Iterator[Finding]:
    """The image stands still while the robot moves."""
    moving = _moving(data)
    least = FROZEN_STEPS if data.states else FROZEN_ACTIONS
    for camera in data.cameras:
        runs = []
        for episode, moves in zip(data.episodes, moving, strict=True):
            found = [(length, start) for start, length in _runs(episode.changes[camera] <= SAME_LEVELS)
                     if length >= least and moves[start : start + length].mean() > 0.5]
            runs += [(max(found), episode)] if found else []
        runs.sort(key=lambda run: -run[0][0])
        if runs:
            (longest, _), _ = runs[0]
            yield Finding("frozen_frames", "wrong", f"{camera}: the image stands still for up to {longest} steps while "
                          f"the {'state' if data.states else 'action'} moves, in {len(runs):,} of "
                          f"{len(data.episodes):,} episodes", "leave these steps out; check the camera's driver and "
                          "the recorder's queue", [place_of(episode, start) for (_, start), episode in runs])


def repeated_frames(data: DataSet) -> Iterator[Finding]:
    """Single frames are stored twice: the camera is slower than the recorder."""
    if not data.states:  # of actions alone it is unknown whether they changed anything
        return
    moving = _moving(data)
    for camera in data.cameras:
        found = []
        for episode, moves in zip(data.episodes, moving, strict=True):
            same = episode.changes[camera] <= SAME_LEVELS
            for start, length in _runs(same):
                if length >= FROZEN_STEPS:  # frozen_frames
                    same[start : start + length] = False
            if moves.sum() >= REPEATED_LEAST and same[moves].mean() >= REPEATED_SHARE:
                found.append((float(same[moves].mean()), place_of(episode, np.flatnonzero(same & moves)[0])))
        found.sort(key=lambda pair: -pair[0])
        if found:
            yield Finding("repeated_frames", "wrong", f"{camera}: up to {found[0][0]:.0%} of the frames during motion "
                          f"repeat the frame before, in {len(found):,} of {len(data.episodes):,} episodes; the camera "
                          "is slower than the recorder", "prepare the data at the camera's rate (--config.rate_hz)",
                          [place for _, place in found])


def swapped_cameras(data: DataSet) -> Iterator[Finding]:
    """Two cameras have exchanged their names in some episodes."""
    cameras = data.cameras
    if len(cameras) < 2 or len(data.episodes) < 3:
        return
    mean_EC = np.stack([[episode.thumbnails[camera].mean(axis=0).ravel() for camera in cameras]
                        for episode in data.episodes])
    usual_C = np.median(mean_EC, axis=0)
    places, pairs = [], set()
    for episode, own_C in zip(data.episodes, mean_EC, strict=True):
        distance = np.abs(own_C[:, None] - usual_C[None]).mean(axis=-1)
        _, best = linear_sum_assignment(distance)
        wrong = np.flatnonzero(best != np.arange(len(cameras)))
        if len(wrong) and distance[wrong, best[wrong]].sum() < SWAP_RATIO * distance[wrong, wrong].sum():
            places.append(place_of(episode, 0))
            pairs.add(" and ".join(cameras[c] for c in wrong))
    if places:
        yield Finding("swapped_cameras", "wrong", f"the images of {', '.join(sorted(pairs))} are exchanged in "
                      f"{len(places):,} of {len(data.episodes):,} episodes", "exchange them in these episodes, or "
                      "leave the episodes out", places)


def _moving(data: DataSet) -> list[np.ndarray]:
    """bool (T,) of each episode: the state has changed since the step before; without states, the action acts."""
    if data.states:
        std = np.maximum(data.stacked("states").std(axis=0), 1e-9)
        steps = [np.abs(np.diff(episode.states, axis=0, prepend=episode.states[:1])) / std for episode in data.episodes]
    else:
        numbers = data.numbers()
        std = np.maximum(data.stacked("actions").std(axis=0), 1e-9)[numbers]
        # The action of a step shows in the next image.
        steps = [np.abs(np.diff(episode.actions[:, numbers], axis=0, prepend=episode.actions[:1, numbers])) / std
                 for episode in data.episodes]
    return [step.max(axis=1, initial=0) > MOVES for step in steps]


def _runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and length of each run of True."""
    start = 0
    for value, group in itertools.groupby(mask.tolist()):
        length = len(list(group))
        if value:
            yield start, length
        start += length
