"""What is read of an episode: everything, or what is new; in sizes that hold it."""

from __future__ import annotations

import dataclasses

import numpy as np
from data_stores import CAMERAS, language_table_domain

from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window, lay_out_prefix, row_size
from agent_jax.policy.history import ChunkSizes, EpisodeHistory, HistoryStep, next_request, request_ahead
from agent_jax.policy.observation import Prepared

V = 5
PIXEL = np.zeros((1, 1, 3), np.uint8)


def episode_of(domain: Domain, steps: int) -> tuple[EpisodeHistory, Prepared]:
    """An episode of so many steps, and what is seen now."""
    assert domain.spec is not None
    assert domain.state is not None
    state_ids = domain.state.encode({key: np.zeros(2, np.float32) for key in domain.state.spec.fields})
    action_ids = domain.spec.encode({"action": np.zeros(2, np.float32)})
    seen = Prepared((PIXEL,) * len(domain.cameras), domain.text_ids("go there"), state_ids)
    return EpisodeHistory(text_ids=seen.text_ids, steps=(HistoryStep((), None, state_ids, action_ids),) * steps), seen


def test_what_is_new_follows_what_was_read_before_as_in_the_whole_row():
    domain = language_table_domain(max_text=16, cameras=CAMERAS, fixed_positions=True)
    sizes, first_ids = ChunkSizes.of(domain, V, 256), np.asarray([7], np.int32)
    episode, seen = episode_of(domain, 3)
    whole = next_request(domain, sizes, V, episode, seen, first_ids, 4, flushed=True)
    steps = [Step(seen.frames, step.state_ids, step.action_ids) for step in episode.steps]
    window = Window(domain.index, seen.text_ids, (*steps, Step(seen.frames, seen.state_ids, first_ids)), seed=0,
                    first_position=domain.first_position)
    size = dataclasses.replace(row_size([domain], V, domain.images), image_size=1)
    row, count = lay_out_prefix(window, size, V, V - 1), len(whole.token_C)
    np.testing.assert_array_equal(whole.token_C, row["token_BS"][:count])
    np.testing.assert_array_equal(whole.visual_C, row["visual_BS"][:count])
    np.testing.assert_array_equal(whole.position_C, row["position_BS"][:count])
    assert row["slot_BT"][0] == count - 1
    before = next_request(domain, sizes, V, dataclasses.replace(episode, steps=episode.steps[:2]), seen, first_ids, 4,
                        flushed=True)
    used = len(before.token_C)
    new = next_request(domain, sizes, V, dataclasses.replace(episode, used=used), seen, first_ids, 4, flushed=True)
    np.testing.assert_array_equal(new.token_C, whole.token_C[used:])
    np.testing.assert_array_equal(new.position_C, whole.position_C[used:])
    assert (new.first, new.steps, whole.steps) == (3, 1, 4)
    assert sorted(new.visual_C[new.visual_C >= 0]) == list(range(2 * V))
    assert sizes.fit(new)[1] < sizes.fit(whole)[1]


def test_a_sliding_row_forgets_its_oldest_step_and_a_full_flushed_one_all():
    domain = language_table_domain(max_text=16)
    sizes, (episode, seen) = ChunkSizes.of(domain, V, 256), episode_of(domain, 4)
    first_ids = np.asarray([7], np.int32)
    sliding = next_request(domain, sizes, V, episode, seen, first_ids, 4, flushed=False)
    flushed = next_request(domain, sizes, V, episode, seen, first_ids, 4, flushed=True)
    assert (sliding.steps, flushed.steps) == (4, 1)
    other = dataclasses.replace(seen, text_ids=domain.text_ids("stop"))
    used = dataclasses.replace(episode, steps=episode.steps[:2], used=9)
    assert next_request(domain, sizes, V, used, other, first_ids, 4, flushed=True).used == 0


def test_every_history_fits_a_size_and_the_cache_holds_what_is_written():
    for window in range(1, 10):
        domain = language_table_domain(max_text=16, window=window)
        sizes, first_ids = ChunkSizes.of(domain, V, 512), np.asarray([7], np.int32)
        used = 0
        for steps in range(window):
            episode, seen = episode_of(domain, steps)
            whole = next_request(domain, sizes, V, episode, seen, first_ids, window, flushed=True)
            new = next_request(domain, sizes, V, dataclasses.replace(episode, used=used), seen, first_ids, window,
                             flushed=True)
            assert sizes.fit(whole)[1] <= sizes.cache
            assert used + len(new.token_C) <= sizes.cache
            used += len(new.token_C)
            assert used == len(whole.token_C)


def test_what_is_read_ahead_is_what_the_next_sliding_row_begins_with():
    for window in range(2, 7):
        domain = language_table_domain(max_text=16, cameras=CAMERAS, window=window, fixed_positions=True)
        sizes, first_ids = ChunkSizes.of(domain, V, 512, ahead=True), np.asarray([7], np.int32)
        for steps in range(1, window):
            episode, seen = episode_of(domain, steps)
            ahead = request_ahead(domain, sizes, V, episode)
            whole = next_request(domain, sizes, V, episode, seen, first_ids, window, flushed=False)
            used = len(ahead.token_C)
            rest = next_request(domain, sizes, V, dataclasses.replace(episode, used=used), seen, first_ids, window,
                              flushed=False)
            for name in ("token_C", "position_C"):
                np.testing.assert_array_equal(np.concatenate([getattr(ahead, name), getattr(rest, name)]),
                                              getattr(whole, name))
            np.testing.assert_array_equal(ahead.visual_C, whole.visual_C[:used])
            assert (ahead.steps, rest.first, rest.steps, whole.steps) == (steps, steps, 1, steps + 1)
            assert sizes.fit(ahead)[0] >= steps
            assert used <= sizes.fit(ahead)[1] <= sizes.cache
            assert sizes.fit(rest) == sizes.chunks[0]
