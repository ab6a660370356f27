"""Windows of steps laid out as one row of a `Batch`; the host decides, the device only gathers.

    </s> instruction   image 0          state   action      image 1          state   action
    [b w w w w w]  [v v v ... v (V)]  [s s s s]  [a a a a]  [v v v ... v (V)]  [s s s s]  [a a a a]   (padding)
       ^ ^ ^ ^ ^ language targets                 ^ ^ ^ ^ action targets: each is predicted by the slot before it

With k actions per image, only every k-th step has images and state, and k actions follow one another. Visual and state
slots carry no target. Several windows may share a row: `segment` separates them, and `position` starts
at 0 in each. Where no actions are predicted, the text is a prompt without targets and a camera's images form one clip:

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
from agent_jax.data.pipeline.row_usage import RowUsage

if TYPE_CHECKING:
    from agent_jax.data.pipeline.domains import Domain

Row = dict[str, np.ndarray]  # the fields of Batch, by name, without the B axis


@dataclasses.dataclass(frozen=True)
class Step:
    """One time step of a window, ready to be laid out."""

    frames: tuple[np.ndarray, ...]  # uint8 (size, size, 3), one a camera; empty in a step that has only an action
    state_ids: np.ndarray  # int32; inputs only; empty where the domain has no state, and where there are no frames
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
    seed: int  # uint32; depends on recording, first step and epoch
    video: bool = False  # the images of a camera form one clip with one CLS token
    first_position: int = 0  # of the first step's first slot; 0: it follows the instruction
    prompt: bool = False  # the text is an input only
    answer_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))  # after the steps
    label: int = -1  # class of the clip; -1: none. A window with a label has a row of its own


def window_usage(window: Window, visual_tokens: int) -> RowUsage:
    """What `window` takes of a row."""
    frames = sum(len(step.frames) for step in window.steps)
    clips = len(window.steps[0].frames) if window.steps else 0  # one a camera
    return RowUsage.of(
        visual_tokens, text=len(window.text_ids), frames=frames, answers=len(window.answer_ids),
        states=sum(len(step.state_ids) for step in window.steps),
        actions=sum(len(step.action_ids) for step in window.steps),
        shared_cls=frames - clips if window.video else 0, prompt=window.prompt)


def lay_out(windows: Sequence[Window], size: RowSize, visual_tokens: int, patches: int) -> Row:
    """One row of training or evaluation.

    Every token of an instruction after its </s>, unless it is a prompt, and every token of an answer is a language
    target of weight 1; every id of an action, delimiters included, is an action target of the step's weight, and those
    that are choices are marked. The denominator of eq. 5 counts, over a window, what carries a weight: language
    targets, action targets, and `patches` an image.

    Args:
        windows: the samples of the row, in order.
        size: of the row.
        visual_tokens: V, visual tokens of an image in the language model's row.
        patches: P, patches of an image.

    Returns:
        The fields of `Batch` without their B axis.

    Raises:
        ValueError: the windows need more images, slots or targets than the row has, or one with a label shares it.
    """
    if len(windows) > 1 and any(window.label >= 0 for window in windows):
        raise ValueError(f"row: found {len(windows)} windows with labels {[window.label for window in windows]}; a row "
                         "has one label, so a window with a label needs a row of its own")
    usages = [window_usage(window, visual_tokens) for window in windows]
    for name, dimension in (("frames", "F"), ("slots", "S"), ("targets", "T")):
        used = [getattr(usage, name) for usage in usages]
        if sum(used) > getattr(size, name):
            raise ValueError(f"row: {len(windows)} windows of {used} {name} do not fit into {dimension}="
                             f"{getattr(size, name)} of {size}; lay out fewer windows or make the row larger")
    writer = _RowWriter(size, visual_tokens, patches)
    for window, usage in zip(windows, usages, strict=True):
        writer.write(window, usage)
    row = writer.row
    if windows:
        seeds = np.asarray([window.seed for window in windows], np.uint32)
        seed = seeds[0] if len(seeds) == 1 else zlib.crc32(seeds.astype("<u4").tobytes())
        row["seed_B"], row["label_B"] = np.asarray(seed, np.uint32), np.asarray(windows[0].label, np.int32)
    return row


def lay_out_prefix(window: Window, size: RowSize, visual_tokens: int, patches: int) -> Row:
    """One row for acting: `window` ends in a partial or empty action, and the last used slot predicts the next id.

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

    Slots are rounded up to a multiple of 8: cuDNN's attention needs an even length, bf16 tensor cores rows of 16 bytes.

    Args:
        domains: of the run.
        visual_tokens: V, visual tokens of an image.
        frames_per_row: F.
        positions: positions of the language model; 0: not checked.

    Raises:
        ValueError: a single window does not fit into the images or the positions, or image sizes differ.
    """
    sizes = {domain.image_size for domain in domains}
    if len(sizes) != 1:
        raise ValueError(f"domains: found image sizes {sorted(sizes)}, expected one size for all")
    slots, targets = 1, 1
    for domain in domains:
        cameras = len(domain.cameras)
        if domain.images > frames_per_row:
            several = f" of {cameras} cameras: {domain.images}" if cameras > 1 else ""
            raise ValueError(f"domain {domain.name!r}: window={domain.window}{several} images do not fit into a row of "
                             f"{frames_per_row}; shorten the window or allow more images a row")
        longest = _longest_usage(domain, visual_tokens, domain.window, windows=1).slots
        if positions and longest > positions:
            answer = f" + max_answer={domain.max_answer}" if domain.max_answer else ""
            k = domain.actions_per_image
            per_image = f", visual and state once in {k} steps" if k > 1 else ""
            raise ValueError(f"domain {domain.name!r}: a window takes {longest} positions (max_text={domain.max_text}"
                             f"{answer} + window={domain.window} x ({cameras * visual_tokens} visual + "
                             f"{domain.state_length} state + {domain.action_length} action){per_image}), but the "
                             f"language model has {positions}; shorten window or max_text, or raise "
                             "config.model.language.positions")
        # Windows at the end of an episode are short: with room for one text more, they fill the images of a row.
        short = not domain.has_terminal and domain.window > 1
        images = frames_per_row // cameras  # of one camera
        steps = images * domain.actions_per_image
        windows = min(images, -(-steps // domain.window) + short)
        if domain.layout == "label":
            steps, windows = domain.window, 1
        usage = _longest_usage(domain, visual_tokens, steps, windows)
        slots, targets = max(slots, usage.slots), max(targets, usage.targets)
    return RowSize(frames=frames_per_row, image_size=sizes.pop(), slots=-(-slots // 8) * 8, targets=targets)


def _longest_usage(domain: Domain, visual_tokens: int, steps: int, windows: int) -> RowUsage:
    """What windows of `steps` steps in all take with the longest texts, answers, states and actions."""
    images = domain.image_steps(steps)
    return RowUsage.of(
        visual_tokens, text=windows * domain.max_text, frames=images * len(domain.cameras),
        states=images * domain.state_length, actions=steps * domain.action_length, answers=windows * domain.max_answer,
        windows=windows, prompt=domain.layout != "actions")


@functools.lru_cache(maxsize=16)
def _blank_fields(size: RowSize) -> Row:
    """The padding of every field except the images, made once for each size."""
    batch = Batch.padding(dataclasses.replace(size, image_size=1), 1)
    names = [field.name for field in dataclasses.fields(Batch)]
    return {name: getattr(batch, name)[0] for name in names}


class _RowWriter:
    """A row with the positions of the next window's segment, image, slot and target."""

    def __init__(self, size: RowSize, visual_tokens: int, patches: int):
        self.row = blank_row(size)
        self._visual_tokens, self._patches = visual_tokens, patches
        self._segment = self._frame = self._slot = self._target = 0

    def write(self, window: Window, usage: RowUsage) -> None:
        """Write a window after those before it."""
        row, text = self.row, window.text_ids
        frames = slice(self._frame, self._frame + usage.frames)
        slots = slice(self._slot, self._slot + usage.slots)
        targets = slice(self._target, self._target + usage.targets)
        self._segment += 1
        row["segment_BS"][slots] = self._segment
        row["position_BS"][slots] = np.arange(usage.slots)
        if window.first_position:
            row["position_BS"][slots][len(text) :] += window.first_position - len(text)
        row["domain_BS"][slots] = row["domain_BF"][frames] = row["domain_BT"][targets] = window.domain_index

        denominator = len(window.answer_ids)
        if window.prompt:
            self._write_inputs(text)
        else:
            self._write_inputs(text[:1])
            self._write_targets(text[1:], "language_weight_BT", 1.0)
            denominator += len(text) - 1
        for number, step in enumerate(window.steps):
            for camera, image in enumerate(step.frames):
                clip = frames.start + camera if window.video else self._frame
                self._write_image(image, step.frame_weight, clip, cls_token=not (window.video and number))
            denominator += self._patches * len(step.frames) * (step.frame_weight > 0)
            self._write_inputs(step.state_ids)
            row["choice_BT"][self._target : self._target + len(step.action_choices)] = step.action_choices
            self._write_targets(step.action_ids, "action_weight_BT", step.action_weight)
            denominator += len(step.action_ids) * (step.action_weight > 0)
        self._write_targets(window.answer_ids, "language_weight_BT", 1.0)
        row["denominator_BT"][targets] = row["denominator_BF"][frames] = max(1, denominator)

    def _write_inputs(self, ids: np.ndarray) -> None:
        """Write ids that are not predicted."""
        self.row["token_BS"][self._slot : self._slot + len(ids)] = ids
        self._slot += len(ids)

    def _write_targets(self, ids: np.ndarray, kind: str, weight: float) -> None:
        """Write ids, each the target of the slot before it; `kind` is the field of their weight."""
        targets = slice(self._target, self._target + len(ids))
        self.row["slot_BT"][targets] = np.arange(self._slot - 1, self._slot + len(ids) - 1)
        self.row["target_BT"][targets] = ids
        self.row[kind][targets] = weight
        self._write_inputs(ids)
        self._target += len(ids)

    def _write_image(self, image: np.ndarray, weight: float, clip: int, *, cls_token: bool) -> None:
        """Write an image and its visual tokens, the first of which is its CLS token."""
        frame = self._frame
        visual = np.arange(frame * self._visual_tokens + (not cls_token), (frame + 1) * self._visual_tokens)
        self.row["visual_BS"][self._slot : self._slot + len(visual)] = visual
        self.row["frames_BFHWC"][frame] = image
        self.row["frame_weight_BF"][frame] = weight
        self.row["clip_BF"][frame] = clip
        self._slot, self._frame = self._slot + len(visual), frame + 1
