"""What is remembered of an episode, and the row that it makes: the layout of training, cut where the action begins.

    text   step   step   step now
    [b w]  [v a]  [v a]  [v a        sliding: the last M - 1 steps and now, read anew at every step;
     ahead ----------->  new ->               or all but what is new as soon as the action before it is known
     used ------------>  new ->      flushed: only what is new is read; after `flush_every` steps, nothing is left

With k actions per image, a step of the history is a decision: one image and the actions that were executed after it.
If these are fewer than k, the decisions of k actions are joined to one step that has the image of the first one, so
that a row is always as in training.

Slots and steps come in a few sizes (`ChunkSizes`), so that short histories are cheap and little is compiled.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from agent_jax.batch import RowSize
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window, lay_out_prefix, row_size, window_usage
from agent_jax.policy.observation import NO_IDS, Prepared


@dataclasses.dataclass(frozen=True, eq=False)
class HistoryStep:
    """A decision: what was seen, and the actions that followed."""

    frames: tuple[np.ndarray, ...]  # empty where `tokens` are all that is needed of them
    tokens: Any  # visual tokens of its images (cameras * V, D), on the device; None in a video model
    state_ids: np.ndarray
    action_ids: np.ndarray  # of all its actions, joined


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeHistory:
    """Of one environment; replaced as a whole when a step has succeeded, so that a failed one leaves no trace."""

    number: int = 0  # episodes begun under its id before this one
    time: int = 0  # decisions
    text_ids: np.ndarray = dataclasses.field(default_factory=lambda: NO_IDS)
    steps: tuple[HistoryStep, ...] = ()  # that the next row may begin with
    kept: Any = None  # keys and values of the row so far (flushed history), or of what the next one begins with (ahead)
    used: int = 0  # how many slots they hold


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is to be read of an episode, and how its next action is chosen."""

    past: tuple[HistoryStep, ...]  # before the step of now
    seen: Prepared | None  # now; None: the steps before it are read ahead
    first: int  # number of the first step whose images are read: 0, or that of now
    used: int  # slots read before
    token_C: np.ndarray
    visual_C: np.ndarray
    position_C: np.ndarray
    noise_JA: np.ndarray | None = None  # f32, added to the logits of each choice
    taught_J: np.ndarray | None = None  # int32: columns of A to be taken; -1: the best
    kept: Any = None  # keys and values of the slots read before; given away where rows grow

    @property
    def frames(self) -> tuple[np.ndarray, ...]:
        """The images of now."""
        return self.seen.frames if self.seen else ()

    @property
    def steps(self) -> int:
        """How many steps are read, that of now included."""
        return len(self.past) + (self.seen is not None) - self.first


@dataclasses.dataclass(frozen=True)
class ChunkSizes:
    """The lengths that chunks are filled up to: (steps with images, slots), ascending."""

    chunks: tuple[tuple[int, int], ...]
    row: RowSize  # of whole rows, with images of one pixel: they are laid out elsewhere
    cache: int  # slots of an episode's keys and values

    @classmethod
    def of(cls, domain: Domain, visual_tokens: int, positions: int, *, ahead: bool = False) -> ChunkSizes:
        """Of a domain, in a model of V visual tokens an image and so many positions.

        Args:
            domain: in which is acted.
            visual_tokens: V.
            positions: of the model.
            ahead: caches hold what is read ahead, all but the newest step of a window; else rows that grow.

        Raises:
            ValueError: a full window does not fit into the positions.
        """
        row = row_size([domain], visual_tokens, domain.images, positions)
        actions = domain.actions_per_image * domain.action_length
        step = len(domain.cameras) * visual_tokens + domain.state_length + actions
        most = domain.image_steps(domain.window)
        before = {most - 1} if ahead else set()
        steps = sorted({most, *before, *(2**n for n in range(most.bit_length()))})
        chunks = [(n, min(_eight(domain.max_text + n * step), row.slots)) for n in steps]
        new = _eight(step)  # the rest of an action, images, state, and what opens every action
        if new < chunks[0][1]:
            chunks.insert(0, (1, new))
        cache = dict(chunks)[most - 1] if ahead else row.slots
        return cls(tuple(chunks), dataclasses.replace(row, image_size=1), cache)

    def fit(self, request: Request) -> tuple[int, int]:
        """The least (steps, slots) that hold what a request reads."""
        return next(size for size in self.chunks if size[0] >= request.steps and size[1] >= len(request.token_C))


def next_request(domain: Domain, sizes: ChunkSizes, visual_tokens: int, episode: EpisodeHistory, seen: Prepared,
                 first_ids: np.ndarray, most_steps: int, *, flushed: bool, joined: int = 1) -> Request:
    """What is to be read for the next action of an episode.

    Args:
        domain: in which is acted.
        sizes: of its rows.
        visual_tokens: V.
        episode: so far.
        seen: now.
        first_ids: ids that open every action.
        most_steps: of a row, by its images.
        flushed: the row begins anew when it is full, or the text has changed; else it slides.
        joined: decisions that make one step of the row; sliding rows only.
    """
    past, used = join_decisions(episode.steps, joined), episode.used
    changed = not np.array_equal(episode.text_ids, seen.text_ids)
    if flushed and (len(past) >= most_steps or changed):
        past, used = (), 0
    elif not flushed:
        past, used = past[len(past) - most_steps + 1 :] if len(past) >= most_steps else past, 0 if changed else used
    now = Step(_pixels(domain), seen.state_ids, first_ids)
    token_C, visual_C, position_C = _laid_out(domain, sizes, visual_tokens, seen.text_ids, past, now)
    first, visual_C = len(past) if used else 0, visual_C[used:]
    visual_C = np.where(visual_C >= 0, visual_C - first * len(domain.cameras) * visual_tokens, -1)
    return Request(past, seen, first, used, token_C[used:], visual_C, position_C[used:])


def join_decisions(steps: tuple[HistoryStep, ...], joined: int) -> tuple[HistoryStep, ...]:
    """The steps of a row: each has the image of one decision and the actions of `joined` decisions from it on.

    The newest decision ends the last one; the oldest decisions are left out where they do not fill one.
    """
    if joined == 1:
        return steps
    groups = [steps[first : first + joined] for first in range(len(steps) % joined, len(steps), joined)]
    return tuple(dataclasses.replace(group[0], action_ids=np.concatenate([step.action_ids for step in group]))
                 for group in groups)


def request_ahead(domain: Domain, sizes: ChunkSizes, visual_tokens: int, episode: EpisodeHistory) -> Request:
    """What the row of the next action begins with if it slides and the instruction stays: text and remembered steps."""
    return Request(episode.steps, None, 0, 0, *_laid_out(domain, sizes, visual_tokens, episode.text_ids, episode.steps))


def _laid_out(domain: Domain, sizes: ChunkSizes, visual_tokens: int, text_ids: np.ndarray,
              past: tuple[HistoryStep, ...], *now: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """token_C, visual_C and position_C of a row, as in training."""
    steps = [Step(_pixels(domain), step.state_ids, step.action_ids) for step in past]
    window = Window(domain.index, text_ids, (*steps, *now), seed=0, video=domain.video,
                    first_position=domain.first_position)
    row = lay_out_prefix(window, sizes.row, visual_tokens, patches=visual_tokens - 1)
    slots = window_usage(window, visual_tokens).slots
    return row["token_BS"][:slots], row["visual_BS"][:slots], row["position_BS"][:slots]


def _pixels(domain: Domain) -> tuple[np.ndarray, ...]:
    """In the place of a step's images, which are encoded elsewhere."""
    return (np.zeros((1, 1, 3), np.uint8),) * len(domain.cameras)


def _eight(slots: int) -> int:
    """Rounded up to a multiple of 8, as rows are."""
    return -(-slots // 8) * 8
