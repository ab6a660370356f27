"""Which windows share a row: a seeded plan of one epoch, made from their sizes alone.

    shuffled windows:  [4 images] [1] [3] [4] [2] [2] ...
    rows of 4 images:  [4] | [1 3] | [4] | [2 2] | ...

First fit: a window goes into the first open row with room for its images, slots and targets. The plan depends on its
arguments alone, so every host makes the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from agent_jax.batch import RowSize

OPEN_ROWS = 64  # rows that may still take a window; more of them pack tighter and take longer

# For choosing a row's length: encoder and decoder cost per image about twice what its visual tokens cost in the
# language model (B/16, a decoder of five blocks, OPT-125M).
_IMAGE_COST = 2.0
_LENGTHS = 32  # row lengths to try, from the longest window's to that of a row of longest windows
_SAMPLED = 8192  # windows to pack for each of them
_TARGETS_QUANTILE = 0.99  # of the rows: a few rows with many targets would lengthen the logits of all


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Rows of windows. `windows[offsets[r] : offsets[r + 1]]` are those of row r."""

    offsets: np.ndarray  # int64 (rows + 1)
    windows: np.ndarray  # int64: positions in the arrays the plan was made from

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> np.ndarray:
        """The windows of a row."""
        return self.windows[self.offsets[number] : self.offsets[number + 1]]

    def fill(self, usage_N3: np.ndarray, size: RowSize) -> dict[str, float]:
        """The used share of the images, slots and targets of all rows, and windows a row."""
        used = usage_N3[self.windows].sum(axis=0) / max(1, len(self))
        frames, slots, targets = (used / (size.frames, size.slots, size.targets)).tolist()
        per_row = len(self.windows) / max(1, len(self))
        return {"frames": frames, "slots": slots, "targets": targets, "windows_per_row": per_row}


def plan_rows(usage_N3: np.ndarray, size: RowSize, seed: int | Sequence[int], open_rows: int = OPEN_ROWS,
              exclusive_N: np.ndarray | None = None) -> PackingPlan:
    """Pack every window once.

    Args:
        usage_N3: images, slots and targets of each window.
        size: of a row.
        seed: of the order of the windows; a row takes the place of its first window.
        open_rows: rows considered at a time.
        exclusive_N: bool, whether a window needs a row of its own; None: no window does.

    Raises:
        ValueError: a window exceeds a row.
    """
    room = np.asarray((size.frames, size.slots, size.targets))
    over = np.flatnonzero((usage_N3 > room).any(axis=1))
    if over.size:
        raise ValueError(f"window {over[0]} takes {usage_N3[over[0]].tolist()} images, slots and targets, expected at "
                         f"most {room.tolist()} as a row has; make the row larger or the window shorter")
    order = np.random.default_rng(seed).permutation(len(usage_N3))
    usage_N3 = usage_N3[order]
    row_of = np.arange(len(order))  # every window opens a row unless it joins another
    exclusive = (usage_N3 + usage_N3.min(axis=0, initial=size.slots) > room).any(axis=1)  # no other window fits in
    if exclusive_N is not None:
        exclusive |= exclusive_N[order]
    _first_fit(row_of, usage_N3, np.flatnonzero(~exclusive), room, open_rows)
    by_row = np.argsort(row_of, kind="stable")
    counts = np.bincount(row_of, minlength=len(order))
    offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])])
    return PackingPlan(offsets, order[by_row])


def fitted_size(usage_N3: np.ndarray, largest: np.ndarray, size: RowSize, visual_tokens: int,
                exclusive_N: np.ndarray | None = None) -> RowSize:
    """The row whose padding costs least: as many images as `size`, no more slots and targets than the windows fill.

    `size` has room for the longest texts and actions at once, which few windows have.

    Args:
        usage_N3: images, slots and targets of the windows of an epoch.
        largest: images, slots and targets of the largest window of any epoch.
        size: the longest row.
        visual_tokens: V, visual tokens of an image.
        exclusive_N: as in `plan_rows`.
    """
    if not len(usage_N3):
        return size
    chosen = np.random.default_rng(0).permutation(len(usage_N3))[:_SAMPLED]
    usage_N3, exclusive_N = usage_N3[chosen], None if exclusive_N is None else exclusive_N[chosen]
    least = max(1, int(largest[1]))
    lengths = {min(size.slots, -(-round(length) // 8) * 8) for length in np.linspace(least, size.slots, _LENGTHS)}
    plans = {}
    for slots in sorted(lengths):
        plan = plan_rows(usage_N3, dataclasses.replace(size, slots=slots), 0, exclusive_N=exclusive_N)
        plans[len(plan) * (slots + _IMAGE_COST * size.frames * visual_tokens), slots] = plan
    (_, slots), plan = min(plans.items(), key=lambda item: item[0])
    by_row = np.add.reduceat(usage_N3[plan.windows, 2], plan.offsets[:-1])
    targets = max(1, int(largest[2]), int(np.quantile(by_row, _TARGETS_QUANTILE, method="higher")))
    return dataclasses.replace(size, slots=slots, targets=min(size.targets, targets))


def _first_fit(row_of: np.ndarray, usage_N3: np.ndarray, candidates: np.ndarray, room: np.ndarray,
               open_rows: int) -> None:
    """Give each candidate the first window of the row that it joins."""
    smallest = usage_N3[candidates].min(axis=0, initial=int(room.max()))
    left: list[list[int]] = []  # room of each open row
    first: list[int] = []
    least_frames, least_slots, least_targets = smallest.tolist()
    for number, (frames, slots, targets) in zip(candidates.tolist(), usage_N3[candidates].tolist(), strict=True):
        place = next((i for i, (f, s, t) in enumerate(left) if f >= frames and s >= slots and t >= targets), None)
        if place is None:
            if len(left) == open_rows:
                del left[0], first[0]  # the oldest
            place = len(left)
            left.append(room.tolist())
            first.append(number)
        row_of[number] = first[place]
        f, s, t = left[place][0] - frames, left[place][1] - slots, left[place][2] - targets
        if f < least_frames or s < least_slots or t < least_targets:
            del left[place], first[place]
        else:
            left[place] = [f, s, t]
