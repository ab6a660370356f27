from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from bleeding_edge_clips import COLUMNS, actions, write_clip
from videos import frame_number, write_video

from agent_jax.actions import BLEEDING_EDGE, MINECRAFT, ActionSpec, BoundSpec
from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import BLEEDING_EDGE_BUTTONS, Vocabulary
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.video.bleeding_edge import numbered_spec
from agent_jax.data.store.store import open_store

NAMED = {"buttons": COLUMNS}


def opened(folder, **config):
    return open_source("bleeding_edge", folder, PrepareConfig(instruction_text="win", **config))


def read(folder, **config):
    source = opened(folder, **config)
    return [(episode, list(episode.steps)) for recording in source.recordings() for episode in source.read(recording)]


def numbers(steps):
    return [frame_number(np.asarray(step.images["rgb"])) for step in steps]


def test_a_clip_becomes_an_episode_of_the_papers_actions(tmp_path):
    write_clip(tmp_path)
    source = opened(tmp_path, options=NAMED)
    assert (source.action_spec, source.rate_hz) == (BLEEDING_EDGE.to_dict(), 10)
    assert source.schema.cameras == {"rgb": (48, 64)}
    [(episode, steps)] = read(tmp_path, options=NAMED)
    assert (episode.name, episode.instruction) == ("FB0A_12Movie.pb_step-4_tick-62", "win")
    assert numbers(steps) == list(range(12))
    for t, step in enumerate(steps):
        down = [name for name, pressed in zip(BLEEDING_EDGE_BUTTONS, step.actions["buttons"], strict=True) if pressed]
        assert down == ([] if t == 0 else [BLEEDING_EDGE_BUTTONS[11 - t]])  # column 0 has no name
        np.testing.assert_allclose(step.actions["left_stick"], [0.2, 1], rtol=1e-6)
        np.testing.assert_allclose(step.actions["right_stick"], [0, 0] if t < 6 else [1, 0])


def test_without_names_the_twelve_buttons_are_numbered(tmp_path):
    write_clip(tmp_path)
    source = opened(tmp_path)
    assert source.action_spec == numbered_spec().to_dict()
    assert any("config.options.buttons" in note for note in source.schema.notes)
    [(_, steps)] = read(tmp_path)
    assert [np.flatnonzero(step.actions["buttons"]).tolist() for step in steps] == [[t] for t in range(12)]
    spec = ActionSpec.from_dict(source.action_spec)
    bound = BoundSpec(spec, Vocabulary.build("bytes", vocabulary_blocks((spec.block,), [source.action_spec])))
    decoded = bound.decode(bound.encode(steps[7].actions))
    np.testing.assert_array_equal(decoded["buttons"], steps[7].actions["buttons"])


@pytest.mark.parametrize("last", [False, True])
def test_frames_may_be_those_of_the_npz_file(tmp_path, last):
    data = write_clip(tmp_path, last=last)
    data.with_name(data.name.replace("_data.npz", "_video.mp4")).unlink()
    assert opened(tmp_path, options={"images": "npz"}).schema.cameras == {"rgb": (48, 64)}
    [(_, steps)] = read(tmp_path, options={"images": "npz"})
    assert numbers(steps) == list(range(12))
    assert steps[0].images["rgb"].shape == (48, 64, 3)


def test_the_clips_of_a_game_are_one_recording(tmp_path):
    for part, name in (("part1", "A_step-1_tick-1"), ("part2", "A_step-2_tick-9"), ("part2", "B_step-1_tick-1")):
        write_clip(tmp_path / part, name, 4)
    source = opened(tmp_path)
    assert [recording.name for recording in source.recordings()] == ["A", "B"]
    first = source.recordings()[0]
    assert [episode.name for episode in source.read(first)] == ["A_step-1_tick-1", "A_step-2_tick-9"]
    assert [file.name for file in source.files(first)] == [
        f"A_step-{step}_{kind}" for step in ("1_tick-1", "2_tick-9") for kind in ("video.mp4", "data.npz")]
    write_clip(tmp_path / "part2", "A_step-1_tick-1", 4)
    with pytest.raises(ValueError, match=r"part1/A_step-1_tick-1 and as part2/A_step-1_tick-1"):
        opened(tmp_path)


def test_idle_chunks_are_left_out_by_the_option(tmp_path):
    values = actions(12)
    values[:, :12], values[:, 12:] = 0, 5
    values[4:8, :3] = 1
    write_clip(tmp_path, actions=values)
    [(episode, steps)] = read(tmp_path, window=4, options={"drop_idle": True})
    assert (episode.start, numbers(steps)) == (4, [4, 5, 6, 7])
    assert len(read(tmp_path, window=4)[0][1]) == 12


def test_bins_of_the_sticks_may_have_other_positions(tmp_path):
    write_clip(tmp_path)
    bins = (-1, -0.5, -0.4, -0.3, -0.2, 0, 0.2, 0.3, 0.4, 0.5, 1)
    [(_, steps)] = read(tmp_path, options={"stick_bins": bins})
    np.testing.assert_allclose(steps[0].actions["left_stick"], [0.2, 1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"config.options.stick_bins: .*expected 11 numbers"):
        read(tmp_path, options={"stick_bins": bins[1:]})


def changed(row, column, value):
    values = actions(12)
    values[row, column] = value
    return values


@pytest.mark.parametrize(("arrays", "message"), [
    ({"actions": actions(11)}, "holds 11 actions, expected 12, one for each frame .*config.options.images=npz"),
    ({"actions": actions(12)[:, :15]}, r"'actions': found float32 of shape \(12, 15\), expected .* \(frames, 16\)"),
    ({"actions": changed(3, 4, 0.5)}, "'actions', row 3, column 4: found 0.5, expected a whole number from 0 to 1"),
    ({"actions": changed(3, 13, 11)}, "'actions', row 3, column 13: found 11, expected a whole number from 0 to 10"),
    ({"actions": changed(0, 15, np.nan)}, "'actions', row 0, column 15: found nan"),
    ({"actions": np.array([None], object)}, "_data.npz, array 'actions'"),
])
def test_actions_of_another_form_are_refused(tmp_path, arrays, message):
    write_clip(tmp_path, **arrays)
    with pytest.raises(BadDataError, match=message):
        read(tmp_path)


def test_an_array_of_objects_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    data = write_clip(tmp_path)
    content = io.BytesIO()
    np.save(content, np.array([Trap()], object), allow_pickle=True)
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("actions.npy", content.getvalue())
    with pytest.raises(BadDataError, match="'actions'"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_incomplete_pairs_and_other_rates_are_refused(tmp_path):
    data = write_clip(tmp_path / "half")
    data.unlink()
    with pytest.raises(BadDataError, match=r"_data.npz: not found; expected a pair"):
        read(tmp_path / "half")
    data = write_clip(tmp_path / "fast", stored=False)
    write_video(data.with_name(data.name.replace("_data.npz", "_video.mp4")), 12, 20)
    with pytest.raises(BadDataError, match=r"found 20 frames a second, expected 10"):
        read(tmp_path / "fast")
    with pytest.raises(BadDataError, match=r"has no 'images'"):
        read(tmp_path / "fast", options={"images": "npz"})
    write_clip(tmp_path / "few", images=np.zeros((11, 3, 48, 64), np.uint8))
    with pytest.raises(BadDataError, match=r"holds 11 images and 12 actions"):
        read(tmp_path / "few", options={"images": "npz"})
    write_clip(tmp_path / "float", images=np.zeros((12, 3, 48, 64)))
    with pytest.raises(BadDataError, match=r"'images': found float64 .*expected uint8"):
        read(tmp_path / "float", options={"images": "npz"})
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"bare: found no file \*_video.mp4"):
        read(tmp_path / "bare")


@pytest.mark.parametrize(("config", "message"), [
    ({"options": {"buttons": {"Jump": 1}}}, "config.options.buttons: found no column for Evade, LockOn"),
    ({"options": {"buttons": {**COLUMNS, "Jmp": 0}}}, "config.options.buttons: found 'Jmp', did you mean 'Jump'"),
    ({"options": {"buttons": {**COLUMNS, "Jump": 12}}}, "config.options.buttons.Jump=12: .* from 0 to 11"),
    ({"options": {"buttons": {**COLUMNS, "Jump": 1}}}, "expected each column once"),
    ({"options": {"images": "png"}}, "config.options.images"),
    ({"fields": {"buttons": "x"}}, "config.fields.buttons: .* config.options.buttons"),
    ({"rate_hz": 5.0}, "config.rate_hz=5.0: expected 0 or 10"),
    ({"action_spec": MINECRAFT.to_dict()}, "found no column for ESC"),
    ({"action_spec": BLEEDING_EDGE.to_dict()}, "found no column for Evade"),
])
def test_invalid_config_is_reported(tmp_path, config, message):
    write_clip(tmp_path, frames=2)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **config)


def test_clips_are_prepared_and_read_back(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "store"
    for game in "AB":
        write_clip(raw, f"{game}_step-1_tick-1")
    columns = "{" + ", ".join(f'"{name}": {column}' for name, column in COLUMNS.items()) + "}"
    assert main(["prepare", "--source", "bleeding_edge", "--path", str(raw), "--out", str(out), "--config.window=9",
                 "--config.image_size=16", "--config.instruction_text=win", f"--config.options.buttons={columns}"]) == 0
    store = open_store(out)
    assert (store.metadata["action_spec"], store.metadata["rate_hz"]) == (BLEEDING_EDGE.to_dict(), 10)
    episode = store.split("train")[0]
    np.testing.assert_allclose(episode.values("steps/left_stick", 0, 12), [[0.2, 1]] * 12, rtol=1e-6)
    assert {store.split(split)[0].texts("instruction")[0] for split in ("train", "test")} == {"win"}
