"""Which windows share a row: a seeded plan of one pass, made from their sizes alone.

    shuffled windows:  [4 images] [1] [3] [4] [2] [2] ...
    rows of 4 images:  [4] | [1 3] | [4] | [2 2] | ...

First fit: a window goes into the first open row that still has room for its images, slots and targets. The plan
depends on nothing but its arguments, so every host makes the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from agent_jax.batch import RowSize

OPEN_ROWS = 64  # rows that still wait for company; more pack tighter and take longer

# For choosing a row's length. Per image, encoder and decoder cost as much as twice its visual tokens in the language
# model, counted for B/16 with the decoder of five blocks beside OPT-125M.
_IMAGE_COST = 2.0
_LENGTHS = 32  # tried between the longest window's and that of a row of longest windows
_SAMPLED = 8192  # windows that are packed for each
_TARGETS_QUANTILE = 0.99  # of the rows: the last hundredth would lengthen the logits of all others by a third


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

    def fill(self, need_N3: np.ndarray, size: RowSize) -> dict[str, float]:
        """The used share of the images, slots and targets of all rows, and windows a row."""
        used = need_N3[self.windows].sum(axis=0) / max(1, len(self))
        frames, slots, targets = (used / (size.frames, size.slots, size.targets)).tolist()
        per_row = len(self.windows) / max(1, len(self))
        return {"frames": frames, "slots": slots, "targets": targets, "windows_per_row": per_row}


def plan_rows(need_N3: np.ndarray, size: RowSize, seed: int | Sequence[int], open_rows: int = OPEN_ROWS,
              alone_N: np.ndarray | None = None) -> PackingPlan:
    """Every window once, in rows that hold them.

    Args:
        need_N3: images, slots and targets of each window.
        size: of a row.
        seed: of the order of the windows; a row stands where its first window does.
        open_rows: rows considered at a time.
        alone_N: bool, whether a window must have a row for itself; None: none must.

    Returns:
        The plan.

    Raises:
        ValueError: if a window alone exceeds a row.
    """
    room = np.asarray((size.frames, size.slots, size.targets))
    over = np.flatnonzero((need_N3 > room).any(axis=1))
    if over.size:
        raise ValueError(f"window {over[0]} needs {need_N3[over[0]].tolist()} images, slots and targets, but a row has "
                         f"{room.tolist()}; make the row larger or the window shorter")
    order = np.random.default_rng(seed).permutation(len(need_N3))
    need_N3 = need_N3[order]
    row_of = np.arange(len(order))  # every window opens a row of its own unless it finds another
    # Nothing fits beside these, whatever comes.
    alone = (need_N3 + need_N3.min(axis=0, initial=size.slots) > room).any(axis=1)
    if alone_N is not None:
        alone |= alone_N[order]
    _first_fit(row_of, need_N3, np.flatnonzero(~alone), room, open_rows)
    by_row = np.argsort(row_of, kind="stable")
    counts = np.bincount(row_of, minlength=len(order))
    offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])])
    return PackingPlan(offsets, order[by_row])


def fitted_size(need_N3: np.ndarray, largest: np.ndarray, size: RowSize, visual_tokens: int,
                alone_N: np.ndarray | None = None) -> RowSize:
    """The row whose padding costs least: as many images as `size`, no more slots and targets than windows really fill.

    `size` has room for the longest texts and actions at once, which few windows have: in a mixture of domains a third
    of such a row stays empty, four fifths of its targets.

    Args:
        need_N3: images, slots and targets of the windows of an epoch.
        largest: images, slots and targets that a window of any epoch may need.
        size: the longest row.
        visual_tokens: V, visual tokens of an image.
        alone_N: as in `plan_rows`.
    """
    if not len(need_N3):
        return size
    chosen = np.random.default_rng(0).permutation(len(need_N3))[:_SAMPLED]
    need_N3, alone_N = need_N3[chosen], None if alone_N is None else alone_N[chosen]
    least = max(1, int(largest[1]))
    lengths = {min(size.slots, -(-round(length) // 8) * 8) for length in np.linspace(least, size.slots, _LENGTHS)}
    plans = {}
    for slots in sorted(lengths):
        plan = plan_rows(need_N3, dataclasses.replace(size, slots=slots), 0, alone_N=alone_N)
        plans[len(plan) * (slots + _IMAGE_COST * size.frames * visual_tokens), slots] = plan
    (_, slots), plan = min(plans.items(), key=lambda item: item[0])
    by_row = np.add.reduceat(need_N3[plan.windows, 2], plan.offsets[:-1])
    targets = max(1, int(largest[2]), int(np.quantile(by_row, _TARGETS_QUANTILE, method="higher")))
    return dataclasses.replace(size, slots=slots, targets=min(size.targets, targets))


def _first_fit(row_of: np.ndarray, need_N3: np.ndarray, candidates: np.ndarray, room: np.ndarray,
               open_rows: int) -> None:
    """Give each candidate the first window of the row that it joins."""
    smallest = need_N3[candidates].min(axis=0, initial=int(room.max()))
    left: list[list[int]] = []  # room of each open row
    first: list[int] = []
    least_frames, least_slots, least_targets = smallest.tolist()
    for number, (frames, slots, targets) in zip(candidates.tolist(), need_N3[candidates].tolist(), strict=True):
        place = next((i for i, (f, s, t) in enumerate(left) if f >= frames and s >= slots and t >= targets), None)
        if place is None:
            if len(left) == open_rows:
                del left[0], first[0]  # the oldest has waited longest
            place = len(left)
            left.append(room.tolist())
            first.append(number)
        row_of[number] = first[place]
        f, s, t = left[place][0] - frames, left[place][1] - slots, left[place][2] - targets
        if f < least_frames or s < least_slots or t < least_targets:
            del left[place], first[place]
        else:
            left[place] = [f, s, t]
