from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from data_stores import babyai_domain, clip_domain, language_table_domain

from agent_jax.batch import Batch, RowSize
from agent_jax.data.pipeline.layout import (
    Step,
    Window,
    blank_row,
    lay_out,
    lay_out_prefix,
    row_size,
    stack,
    window_usage,
)

V, P = 3, 4  # visual tokens and patches of an image
SIZE = RowSize(frames=3, image_size=2, slots=24, targets=9)


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def ids(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int32)


def step(value: int, state: tuple[int, ...], action: tuple[int, ...], **weights: float) -> Step:
    return Step((image(value),), ids(*state), ids(*action), **weights)


TWO_STEPS = Window(1, ids(2, 50, 51), (step(10, (60,), (70, 71)), step(20, (61,), (72, 73))), seed=7)
ONE_STEP = Window(0, ids(2, 52), (step(30, (), (74,)),), seed=9)


def test_a_window_is_laid_out_as_in_the_module_docstring():
    row = lay_out([TWO_STEPS], SIZE, V, P)
    #              </s> w w | image 0 | s | a a | image 1 | s | a a | padding
    token = [2, 50, 51, 0, 0, 0, 60, 70, 71, 0, 0, 0, 61, 72, 73] + [0] * 9
    visual = [-1, -1, -1, 0, 1, 2, -1, -1, -1, 3, 4, 5, -1, -1, -1] + [-1] * 9
    np.testing.assert_array_equal(row["token_BS"], token)
    np.testing.assert_array_equal(row["visual_BS"], visual)
    np.testing.assert_array_equal(row["segment_BS"], [1] * 15 + [0] * 9)
    np.testing.assert_array_equal(row["position_BS"], [*range(15)] + [0] * 9)
    np.testing.assert_array_equal(row["domain_BS"], [1] * 15 + [0] * 9)
    np.testing.assert_array_equal(row["slot_BT"], [0, 1, 6, 7, 12, 13, 0, 0, 0])
    np.testing.assert_array_equal(row["target_BT"], [50, 51, 70, 71, 72, 73, 0, 0, 0])
    np.testing.assert_array_equal(row["language_weight_BT"], [1, 1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(row["action_weight_BT"], [0, 0, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(row["choice_BT"], [-1] * 9)  # the steps mark none
    np.testing.assert_array_equal(row["domain_BT"], [1] * 6 + [0] * 3)
    np.testing.assert_array_equal(row["denominator_BT"], [2 + 4 + 2 * P] * 6 + [1] * 3)
    np.testing.assert_array_equal(row["denominator_BF"], [2 + 4 + 2 * P] * 2 + [1])
    np.testing.assert_array_equal(row["frames_BFHWC"], [image(10), image(20), image(0)])
    np.testing.assert_array_equal(row["frame_weight_BF"], [1, 1, 0])
    np.testing.assert_array_equal(row["clip_BF"], [0, 1, -1])
    np.testing.assert_array_equal(row["domain_BF"], [1, 1, 0])
    assert row["seed_B"] == 7
    assert row["label_B"] == -1


def test_every_target_is_the_token_after_the_slot_that_predicts_it():
    row = lay_out([TWO_STEPS, ONE_STEP], SIZE, V, P)
    used = row["language_weight_BT"] + row["action_weight_BT"] > 0
    np.testing.assert_array_equal(row["token_BS"][row["slot_BT"][used] + 1], row["target_BT"][used])
    np.testing.assert_array_equal(row["segment_BS"][row["slot_BT"][used] + 1], row["segment_BS"][row["slot_BT"][used]])


def test_a_second_window_has_its_own_segment_positions_clips_domain_and_denominator():
    row = lay_out([TWO_STEPS, ONE_STEP], SIZE, V, P)
    single = lay_out([ONE_STEP], SIZE, V, P)
    np.testing.assert_array_equal(row["segment_BS"], [1] * 15 + [2] * 6 + [0] * 3)
    for name in ("token_BS", "position_BS", "domain_BS"):
        np.testing.assert_array_equal(row[name][15:21], single[name][:6])
    np.testing.assert_array_equal(row["visual_BS"][15:21], [-1, -1, 6, 7, 8, -1])  # image 2 of the row
    np.testing.assert_array_equal(row["clip_BF"], [0, 1, 2])
    np.testing.assert_array_equal(row["slot_BT"][6:8], single["slot_BT"][:2] + 15)
    np.testing.assert_array_equal(row["denominator_BT"][6:8], [1 + 1 + P] * 2)
    np.testing.assert_array_equal(row["denominator_BF"], [14, 14, 6])


def test_the_seed_of_a_packed_row_depends_on_all_its_windows():
    seeds = {int(lay_out(windows, SIZE, V, P)["seed_B"]) for windows in (
        [TWO_STEPS], [ONE_STEP], [TWO_STEPS, ONE_STEP], [TWO_STEPS, dataclasses.replace(ONE_STEP, seed=10)])}
    assert len(seeds) == 4


def test_weights_of_a_step_apply_to_its_targets_and_image_and_not_to_its_ids():
    masked = dataclasses.replace(TWO_STEPS, steps=(step(10, (60,), (70, 71), action_weight=0.0),
                                                   step(20, (61,), (72, 73), frame_weight=0.0)))
    row, plain = lay_out([masked], SIZE, V, P), lay_out([TWO_STEPS], SIZE, V, P)
    np.testing.assert_array_equal(row["token_BS"], plain["token_BS"])
    np.testing.assert_array_equal(row["action_weight_BT"], [0, 0, 0, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(row["frame_weight_BF"], [1, 0, 0])
    np.testing.assert_array_equal(row["denominator_BF"][:2], [2 + 2 + P] * 2)  # what has no weight is not counted


def test_two_cameras_are_two_images_of_a_step():
    two = Step((image(1), image(2)), ids(), ids(70))
    row = lay_out([Window(0, ids(2), (two,), seed=0)], SIZE, V, P)
    np.testing.assert_array_equal(row["visual_BS"][:8], [-1, 0, 1, 2, 3, 4, 5, -1])
    np.testing.assert_array_equal(row["clip_BF"], [0, 1, -1])
    np.testing.assert_array_equal(row["slot_BT"][:1], [6])


def blind(*action: int, **weights: float) -> Step:
    return Step((), ids(), ids(*action), **weights)


def test_with_two_actions_per_image_every_second_step_has_only_its_action():
    steps = (step(10, (60,), (70, 71)), blind(72, 73), step(20, (61,), (74, 75)))  # it ends amid the second image's
    row = lay_out([Window(1, ids(2, 50), steps, seed=7)], SIZE, V, P)
    #              </s> w | image 0 | s | a a | a a | image 1 | s | a a | padding
    token = [2, 50, 0, 0, 0, 60, 70, 71, 72, 73, 0, 0, 0, 61, 74, 75] + [0] * 8
    visual = [-1, -1, 0, 1, 2, -1, -1, -1, -1, -1, 3, 4, 5, -1, -1, -1] + [-1] * 8
    np.testing.assert_array_equal(row["token_BS"], token)
    np.testing.assert_array_equal(row["visual_BS"], visual)
    np.testing.assert_array_equal(row["position_BS"], [*range(16)] + [0] * 8)
    np.testing.assert_array_equal(row["slot_BT"], [0, 5, 6, 7, 8, 13, 14, 0, 0])
    np.testing.assert_array_equal(row["target_BT"], [50, 70, 71, 72, 73, 74, 75, 0, 0])
    np.testing.assert_array_equal(row["action_weight_BT"], [0, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(row["denominator_BT"], [1 + 6 + 2 * P] * 7 + [1] * 2)
    np.testing.assert_array_equal(row["frame_weight_BF"], [1, 1, 0])
    np.testing.assert_array_equal(row["clip_BF"], [0, 1, -1])
    joined = (step(10, (60,), (70, 71, 72, 73)), steps[2])  # as acting writes its history
    for name, array in lay_out([Window(1, ids(2, 50), joined, seed=7)], SIZE, V, P).items():
        np.testing.assert_array_equal(array, row[name])


def test_a_row_has_room_for_the_images_of_its_windows_and_for_all_their_actions():
    domain = language_table_domain(max_text=10, window=6, actions_per_image=3)
    assert domain.images == 2
    length, state = domain.action_length, domain.state_length
    size = row_size([domain], V, domain.images)
    assert (size.frames, size.targets) == (2, 9 + 6 * length)
    assert size.slots == -(-(10 + 2 * (V + state) + 6 * length) // 8) * 8
    assert row_size([domain], V, 4).targets == 2 * 9 + 12 * length
    with pytest.raises(ValueError, match=r"window=6 x .* once in 3 steps\), but the language model has 20"):
        row_size([domain], V, domain.images, 20)


def test_a_video_clip_has_one_class_token():
    row = lay_out([ONE_STEP, dataclasses.replace(TWO_STEPS, video=True)], SIZE, V, P)
    np.testing.assert_array_equal(row["clip_BF"], [0, 1, 1])
    np.testing.assert_array_equal(row["visual_BS"][6 : 6 + 14], [-1, -1, -1, 3, 4, 5, -1, -1, -1, 7, 8, -1, -1, -1])
    np.testing.assert_array_equal(row["slot_BT"][2:8], np.asarray([0, 1, 6, 7, 11, 12]) + 6)


@pytest.mark.parametrize("video", [False, True])
def test_the_usage_of_a_window_is_what_it_takes_of_its_row(video):
    window = dataclasses.replace(TWO_STEPS, video=video)
    usage = window_usage(window, V)
    row = lay_out([window], SIZE, V, P)
    assert usage.slots == (row["segment_BS"] > 0).sum()
    assert usage.frames == (row["clip_BF"] >= 0).sum()
    assert usage.targets == (row["language_weight_BT"] + row["action_weight_BT"] > 0).sum()
    assert usage.targets == (row["denominator_BT"] > 1).sum()


@pytest.mark.parametrize(("change", "named"), [
    ({"frames": 1}, "F=1"), ({"slots": 14}, "S=14"), ({"targets": 5}, "T=5")])
def test_a_row_that_is_too_small_is_refused_with_its_size(change, named):
    with pytest.raises(ValueError, match=f"do not fit into {named} of RowSize"):
        lay_out([TWO_STEPS], dataclasses.replace(SIZE, **change), V, P)


def test_a_row_without_windows_is_padding():
    row = stack([lay_out([], SIZE, V, P), blank_row(SIZE)])
    padding = Batch.padding(SIZE, 2)
    for field in dataclasses.fields(Batch):
        found, expected = getattr(row, field.name), getattr(padding, field.name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_rows_stack_to_the_specified_batch():
    batch = stack([lay_out([TWO_STEPS], SIZE, V, P), lay_out([ONE_STEP], SIZE, V, P)])
    spec = Batch.spec(SIZE, 2)
    for field in dataclasses.fields(Batch):
        found, expected = getattr(batch, field.name), getattr(spec, field.name)
        assert (field.name, found.shape, found.dtype) == (field.name, expected.shape, expected.dtype)


def test_a_blank_row_is_not_shared():
    blank_row(SIZE)["token_BS"][:] = 5
    assert not blank_row(SIZE)["token_BS"].any()


@pytest.mark.parametrize("partial", [(), (72,)])
def test_a_prefix_predicts_from_its_last_slot_and_has_no_weights(partial):
    window = dataclasses.replace(TWO_STEPS, steps=(TWO_STEPS.steps[0], step(20, (61,), partial)))
    row, full = lay_out_prefix(window, SIZE, V, P), lay_out([TWO_STEPS], SIZE, V, P)
    used = 13 + len(partial)
    for name in ("token_BS", "visual_BS", "segment_BS", "position_BS"):
        np.testing.assert_array_equal(row[name][:used], full[name][:used])
    assert row["segment_BS"][used] == 0
    assert row["slot_BT"][0] == used - 1
    assert not row["language_weight_BT"].any()
    assert not row["action_weight_BT"].any()
    np.testing.assert_array_equal(row["frames_BFHWC"], full["frames_BFHWC"])


CLIP = Window(2, ids(2, 50, 51), (step(10, (), ()), step(20, (), ())), seed=7, video=True, prompt=True)


def test_only_the_answer_after_the_clip_is_predicted():
    row = lay_out([dataclasses.replace(CLIP, answer_ids=ids(80, 81, 2))], SIZE, V, P)
    #              </s> w w | clip: CLS, 2 x 2 patches | answer </s>
    np.testing.assert_array_equal(row["token_BS"], [2, 50, 51, 0, 0, 0, 0, 0, 80, 81, 2] + [0] * 13)
    np.testing.assert_array_equal(row["visual_BS"], [-1, -1, -1, 0, 1, 2, 4, 5, -1, -1, -1] + [-1] * 13)
    np.testing.assert_array_equal(row["slot_BT"], [7, 8, 9] + [0] * 6)
    np.testing.assert_array_equal(row["target_BT"], [80, 81, 2] + [0] * 6)
    np.testing.assert_array_equal(row["language_weight_BT"], [1, 1, 1] + [0] * 6)
    assert not row["action_weight_BT"].any()
    np.testing.assert_array_equal(row["denominator_BT"], [3 + 2 * P] * 3 + [1] * 6)
    np.testing.assert_array_equal(row["clip_BF"], [0, 0, -1])


def test_a_row_with_a_label_predicts_no_token():
    row = lay_out([dataclasses.replace(CLIP, label=4)], SIZE, V, P)
    assert row["label_B"] == 4
    assert not row["language_weight_BT"].any()
    np.testing.assert_array_equal(row["denominator_BF"], [2 * P, 2 * P, 1])
    assert row["segment_BS"].sum() == 3 + 5


def test_a_window_with_a_label_shares_no_row():
    with pytest.raises(ValueError, match=r"2 windows with labels \[4, -1\]; a row has one label"):
        lay_out([dataclasses.replace(CLIP, label=4), ONE_STEP], SIZE, V, P)


def test_a_row_counts_the_images_of_all_cameras():
    domain = babyai_domain(cameras=("a", "b"), max_text=20)
    assert row_size([domain], V, frames_per_row=8) == RowSize(8, 16, slots=2 * 20 + 4 * (2 * V + 3) + 4, targets=50)
    with pytest.raises(ValueError, match="window=4 of 2 cameras: 8 images do not fit into a row of 7"):
        row_size([domain], V, frames_per_row=7)


def test_a_row_has_room_for_the_longest_prompt_and_answer():
    domain = clip_domain("answer", max_text=20, max_answer=12)
    assert row_size([domain], V, frames_per_row=3) == RowSize(3, 16, slots=2 * 32 + 3 * V + 7, targets=24)
    with pytest.raises(ValueError, match=r"41 positions \(max_text=20 \+ max_answer=12 \+ window=3 x"):
        row_size([domain], V, frames_per_row=3, positions=40)
    assert row_size([clip_domain("label", max_text=20)], V, frames_per_row=3) == RowSize(3, 16, slots=32, targets=1)


def test_a_row_holds_full_windows_of_every_domain():
    domains = [babyai_domain(max_text=20), language_table_domain(max_text=30)]
    size = row_size(domains, V, frames_per_row=8)
    assert size == RowSize(frames=8, image_size=16, slots=184, targets=2 * 29 + 8 * 4)
    assert 2 * 30 + 8 * (V + 8 + 4) == 180  # and 3 * 20 + 8 * (V + 3) is less


def test_slots_are_a_multiple_of_eight_and_short_windows_get_room_for_one_text_more():
    size = row_size([babyai_domain(max_text=20)], V, frames_per_row=4)
    assert size == RowSize(frames=4, image_size=16, slots=64, targets=2 * 19 + 4 * 3)  # 2 * 20 + 4 * 6 = 64
    size = row_size([babyai_domain(max_text=21)], V, frames_per_row=4)
    assert size.slots == 72


def test_a_window_longer_than_the_positions_of_the_language_model_is_refused_with_its_length():
    domain = language_table_domain(max_text=30)
    longest = 30 + 4 * (V + 8 + 4)
    row_size([domain], V, frames_per_row=8, positions=longest)
    message = f"a window takes {longest} positions .* but the language model has {longest - 1}"
    with pytest.raises(ValueError, match=message):
        row_size([domain], V, frames_per_row=4, positions=longest - 1)


def test_a_window_with_more_images_than_a_row_is_refused():
    with pytest.raises(ValueError, match="window=4 images do not fit into a row of 3"):
        row_size([babyai_domain()], V, frames_per_row=3)


def test_domains_of_different_image_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image sizes \[16, 32\], expected one"):
        row_size([babyai_domain(), dataclasses.replace(babyai_domain(), image_size=32)], V, frames_per_row=4)


def test_with_a_fixed_first_position_steps_have_the_positions_after_the_longest_text():
    def positions(text, first_position):
        steps = (step(1, (), (9,)), step(2, (), (9,)))
        window = Window(0, np.arange(2, 2 + text, dtype=np.int32), steps, seed=0, first_position=first_position)
        row = lay_out([window], SIZE, V, P)
        return row["position_BS"][row["segment_BS"] > 0]

    short, long = positions(3, 8), positions(8, 8)
    np.testing.assert_array_equal(short[:3], [0, 1, 2])
    np.testing.assert_array_equal(short[3:], long[8:])
    np.testing.assert_array_equal(long, positions(8, 0))
