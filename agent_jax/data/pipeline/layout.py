"""Windows of steps laid out as one row of a `Batch`; the host decides, the device only gathers.

    </s> instruction   image 0          state   action      image 1          state   action
    [b w w w w w]  [v v v ... v (V)]  [s s s s]  [a a a a]  [v v v ... v (V)]  [s s s s]  [a a a a]   (padding)
       ^ ^ ^ ^ ^ language targets                 ^ ^ ^ ^ action targets: each is predicted by the slot before it

Visual and state slots carry no target. Several windows may share a row: `segment` keeps them apart, `position` starts
anew in each. Where no actions are predicted, the text is a prompt without targets, and the images of a camera one clip:

    answer:  </s> prompt  clip (1 CLS + F * P)  answer </s>     a caption, or the answer to the prompt
    label:   </s> prompt  clip (1 CLS + F * P)                  label_B; one window a row
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent_jax.batch import Batch, RowSize

if TYPE_CHECKING:
    from agent_jax.data.pipeline.domains import Domain

Row = dict[str, np.ndarray]  # the fields of Batch, by name, without the B axis


@dataclasses.dataclass(frozen=True)
class Step:
    """One time step of a window, ready to be laid out."""

    frames: tuple[np.ndarray, ...]  # uint8 (size, size, 3), one a camera
    state_ids: np.ndarray  # int32; inputs only; empty where the domain has no state
    action_ids: np.ndarray  # int32, delimiters included
    frame_weight: float = 1.0  # of the images in the MAE loss; 0 for a repeated frame
    action_weight: float = 1.0  # of the action's ids in the action loss; 0 for a step not to be imitated
    # int32, by id of the action: `BoundSpec.choices`; empty where no accuracy is measured.
    action_choices: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


@dataclasses.dataclass(frozen=True)
class Window:
    """One sample: an instruction and the steps that follow it."""

    domain_index: int
    text_ids: np.ndarray  # int32, </s> first
    steps: tuple[Step, ...]
    seed: int  # uint32; from which recording and step, and which pass over the data
    video: bool = False  # the images of a camera form one clip, whose CLS token stands once
    first_position: int = 0  # of the first step's first slot; 0: it follows the instruction
    prompt: bool = False  # the text is an input only
    answer_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))  # after the steps
    label: int = -1  # class of the clip; a window with one has a row for itself


@dataclasses.dataclass(frozen=True)
class RowUsage:
    """Places of a row that a window takes."""

    frames: int
    slots: int
    targets: int


def window_usage(window: Window, visual_tokens: int) -> RowUsage:
    """What `window` takes of a row."""
    frames = sum(len(step.frames) for step in window.steps)
    visual = frames * visual_tokens
    if window.video and window.steps:
        visual -= frames - len(window.steps[0].frames)  # the CLS stands once a clip, and each camera is a clip
    actions = sum(len(step.action_ids) for step in window.steps)
    states = sum(len(step.state_ids) for step in window.steps)
    text, answer = len(window.text_ids), len(window.answer_ids)
    return RowUsage(frames, text + visual + states + actions + answer,
                    (text - 1) * (not window.prompt) + actions + answer)


def lay_out(windows: Sequence[Window], size: RowSize, visual_tokens: int, patches: int) -> Row:
    """One row of training or evaluation.

    Every token of an instruction after its </s>, unless it is a prompt, and every token of an answer is a language
    target of weight 1; every id of an action, delimiters included, is an action target of the step's weight, and those
    that are choices are marked. The denominator of eq. 5 counts, over a window, what carries a weight: language
    targets, action targets, and `patches` an image.

    Args:
        windows: the samples of the row, in order.
        size: of the row.
        visual_tokens: V, visual tokens of an image as the model hands them over.
        patches: P, patches of an image.

    Returns:
        The fields of `Batch` without their B axis.

    Raises:
        ValueError: if the windows need more images, slots or targets than the row has, or one with a label has company.
    """
    if len(windows) > 1 and any(window.label >= 0 for window in windows):
        raise ValueError(f"row: found {len(windows)} windows with labels {[window.label for window in windows]}; a row "
                         "has one label, expected a window with a label alone")
    needs = [window_usage(window, visual_tokens) for window in windows]
    for name, field in (("frames", "F"), ("slots", "S"), ("targets", "T")):
        needed = [getattr(need, name) for need in needs]
        if sum(needed) > getattr(size, name):
            raise ValueError(f"row: {len(windows)} windows of {needed} {name} do not fit into {field}="
                             f"{getattr(size, name)} of {size}; lay out fewer windows or make the row larger")
    row = blank_row(size)
    frame = slot = target = 0
    for segment, (window, need) in enumerate(zip(windows, needs, strict=True), start=1):
        _lay_out_window(row, window, need, visual_tokens, patches, segment, frame, slot, target)
        frame, slot, target = frame + need.frames, slot + need.slots, target + need.targets
    if windows:
        seeds = np.asarray([window.seed for window in windows], np.uint32)
        seed = seeds[0] if len(seeds) == 1 else zlib.crc32(seeds.astype("<u4").tobytes())
        row["seed_B"], row["label_B"] = np.asarray(seed, np.uint32), np.asarray(windows[0].label, np.int32)
    return row


def lay_out_prefix(window: Window, size: RowSize, visual_tokens: int, patches: int) -> Row:
    """One row for acting: `window` ends in a partial (or empty) action, and the last used slot predicts its next id.

    Returns:
        The row of `lay_out`, but with no weight anywhere in its targets; `slot_BT[0]` is the last used slot.

    Raises:
        ValueError: as `lay_out`.
    """
    row = lay_out((window,), size, visual_tokens, patches)
    blank = blank_row(size)
    for name in ("slot_BT", "target_BT", "language_weight_BT", "action_weight_BT", "choice_BT"):
        row[name] = blank[name]
    row["slot_BT"][0] = window_usage(window, visual_tokens).slots - 1
    return row


def blank_row(size: RowSize) -> Row:
    """A row in which every place is padding: all its weights are 0."""
    row = {name: array.copy() for name, array in _blank_fields(size).items()}
    row["frames_BFHWC"] = np.zeros((size.frames, size.image_size, size.image_size, 3), np.uint8)
    return row


def stack(rows: Sequence[Row]) -> Batch:
    """The rows as a Batch of NumPy arrays."""
    return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


def row_size(domains: Sequence[Domain], visual_tokens: int, frames_per_row: int, positions: int = 0) -> RowSize:
    """The row that holds `frames_per_row` images of any of the domains as full windows, each with its longest text.

    Slots are rounded up to a multiple of 8: cuDNN's attention wants an
    even length and bf16 tensor cores rows of 16 bytes, for at most 7 empty slots.

    Args:
        domains: of the run.
        visual_tokens: V, visual tokens of an image.
        frames_per_row: F.
        positions: positions the language model was built for; 0: not checked.

    Returns:
        The size.

    Raises:
        ValueError: if a single window does not fit into the images or the positions, or image sizes differ.
    """
    sizes = {domain.image_size for domain in domains}
    if len(sizes) != 1:
        raise ValueError(f"domains: found image sizes {sorted(sizes)}, expected one size for all")
    slots, targets = 1, 1
    for domain in domains:
        cameras, text = len(domain.cameras), domain.max_text + domain.max_answer
        step = cameras * visual_tokens + domain.action_length + domain.state_length
        longest = text + domain.window * step
        if domain.images > frames_per_row:
            several = f" of {cameras} cameras: {domain.images}" if cameras > 1 else ""
            raise ValueError(f"domain {domain.name!r}: window={domain.window}{several} images do not fit into a row of "
                             f"{frames_per_row}; shorten the window or allow more images a row")
        if positions and longest > positions:
            answer = f" + max_answer={domain.max_answer}" if domain.max_answer else ""
            raise ValueError(f"domain {domain.name!r}: a window takes {longest} positions (max_text={domain.max_text}"
                             f"{answer} + window={domain.window} x ({cameras * visual_tokens} visual + "
                             f"{domain.state_length} state + {domain.action_length} action)), but the language model "
                             f"has {positions}; shorten window or max_text, or raise config.model.language.positions")
        # A domain with short windows gets room for one text more than full windows need. Measured on episodes of 5
        # steps on average, in windows of 4: images fill 98% instead of 75% of a row of 4, 19% more images a slot.
        short = not domain.has_terminal and domain.window > 1
        steps = frames_per_row // cameras
        windows = min(steps, -(-steps // domain.window) + short)
        if domain.layout == "label":
            steps, windows = domain.window, 1
        text_targets = domain.max_text - 1 if domain.layout == "actions" else domain.max_answer
        slots = max(slots, windows * text + steps * step)
        targets = max(targets, windows * text_targets + steps * domain.action_length)
    return RowSize(frames=frames_per_row, image_size=sizes.pop(), slots=-(-slots // 8) * 8, targets=targets)


@functools.lru_cache(maxsize=16)
def _blank_fields(size: RowSize) -> Row:
    """The padding of every field but the images, once a size."""
    batch = Batch.padding(dataclasses.replace(size, image_size=1), 1)
    names = [field.name for field in dataclasses.fields(Batch)]
    return {name: getattr(batch, name)[0] for name in names}


def _lay_out_window(row: Row, window: Window, need: RowUsage, visual_tokens: int, patches: int, segment: int,
                    frame: int, slot: int, target: int) -> None:
    """Write one window into the row, from the given first image, slot and target."""
    slots, frames = slice(slot, slot + need.slots), slice(frame, frame + need.frames)
    targets = slice(target, target + need.targets)
    row["segment_BS"][slots] = segment
    row["position_BS"][slots] = np.arange(need.slots)
    if window.first_position:
        row["position_BS"][slot + len(window.text_ids) : slots.stop] += window.first_position - len(window.text_ids)
    row["domain_BS"][slots], row["domain_BF"][frames], row["domain_BT"][targets] = (window.domain_index,) * 3

    text, answer = window.text_ids, window.answer_ids
    denominator = len(answer)
    row["token_BS"][slot : slot + len(text)] = text
    if not window.prompt:
        target = _predict(row, text[1:], slot + 1, target, "language_weight_BT", 1.0)
        denominator += len(text) - 1
    slot, first_clip = slot + len(text), frame
    for number, step in enumerate(window.steps):
        for camera, image in enumerate(step.frames):
            first_token = 1 if window.video and number else 0
            visual = np.arange(frame * visual_tokens + first_token, (frame + 1) * visual_tokens)
            row["visual_BS"][slot : slot + len(visual)] = visual
            row["frames_BFHWC"][frame] = image
            row["frame_weight_BF"][frame] = step.frame_weight
            row["clip_BF"][frame] = first_clip + camera if window.video else frame
            denominator += patches * (step.frame_weight > 0)
            slot, frame = slot + len(visual), frame + 1
        row["token_BS"][slot : slot + len(step.state_ids)] = step.state_ids
        slot += len(step.state_ids)
        row["choice_BT"][target : target + len(step.action_choices)] = step.action_choices
        target = _predict(row, step.action_ids, slot, target, "action_weight_BT", step.action_weight)
        slot += len(step.action_ids)
        denominator += len(step.action_ids) * (step.action_weight > 0)
    _predict(row, answer, slot, target, "language_weight_BT", 1.0)
    row["denominator_BT"][targets] = row["denominator_BF"][frames] = max(1, denominator)


def _predict(row: Row, ids: np.ndarray, slot: int, target: int, kind: str, weight: float) -> int:
    """Write ids from `slot` on, each a target of the slot before it, from `target` on; returns the next free target."""
    end = target + len(ids)
    row["token_BS"][slot : slot + len(ids)] = ids
    row["slot_BT"][target:end] = np.arange(slot - 1, slot + len(ids) - 1)
    row["target_BT"][target:end] = ids
    row[kind][target:end] = weight
    return end
